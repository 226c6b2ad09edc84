//! What is written can be read again, and the names are those that the crate promises: `--features serde`.

use std::fmt::Debug;

use router_core::key::{BlockKind, Unit};
use router_core::policy::{CacheAwareSettings, PolicyConfig, Reason, ThresholdSettings};
use router_core::{
    EventKind, Incarnation, IndexSize, Load, MispredictionCause, PrefillModel, ReportLevel, ReportedLoad,
    SessionEnd, SessionId, TargetId, Time, Usage, WorkerId, WorkerProfile, WorkerState,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

#[track_caller]
fn is_written_as<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: T, written: Value) {
    assert_eq!(serde_json::to_value(&value).expect("it can be written"), written);
    assert_eq!(serde_json::from_value::<T>(written).expect("it can be read"), value);
}

#[test]
fn identifiers_are_numbers_and_names() {
    is_written_as(Time::from_micros(1_500), json!(1_500));
    is_written_as(Incarnation(7), json!(7));
    is_written_as(SessionId(3), json!(3));
    let worker: WorkerId = serde_json::from_value(json!(4)).unwrap();
    is_written_as(TargetId { worker, rank: 1 }, json!({"worker": 4, "rank": 1}));
    is_written_as(WorkerState::Ready, json!("ready"));
    is_written_as(ReportLevel::Removals, json!("removals"));
    is_written_as(Unit::Token, json!("token"));
    is_written_as(BlockKind::SaltedTokens, json!("salted_tokens"));
    is_written_as(Reason::LongestMatch, json!("longest_match"));
    is_written_as(EventKind::ClaimsVoided, json!("claims_voided"));
    is_written_as(SessionEnd::LeaseEnded, json!("lease_ended"));
    for cause in
        [MispredictionCause::Evicted, MispredictionCause::NotYetStored, MispredictionCause::OtherTraffic]
    {
        is_written_as(cause, json!(cause.name()));
    }
}

#[test]
fn policies_are_written_as_they_are_named() {
    for policy in [
        PolicyConfig::CacheAware(CacheAwareSettings::default()),
        PolicyConfig::Threshold(ThresholdSettings::default()),
        PolicyConfig::LeastLoad,
        PolicyConfig::PowerOfTwo,
        PolicyConfig::RoundRobin,
        PolicyConfig::Random,
    ] {
        let written = serde_json::to_value(&policy).unwrap();
        let name = written.as_str().or_else(|| written.as_object()?.keys().next().map(String::as_str));
        assert_eq!(name, Some(policy.build().name()));
        assert_eq!(serde_json::from_value::<PolicyConfig>(written).unwrap(), policy);
    }
}

/// What is left out has its default; what is misspelt is not passed over.
#[test]
fn settings_may_be_partial_and_not_wrong() {
    let some: PolicyConfig = serde_json::from_value(json!({"cache_aware": {"stiffness": 0.0}})).unwrap();
    let expected = CacheAwareSettings { stiffness: 0.0, ..CacheAwareSettings::default() };
    assert_eq!(some, PolicyConfig::CacheAware(expected));
    assert!(serde_json::from_value::<ThresholdSettings>(json!({"cache_treshold": 0.5})).is_err());
}

#[test]
fn loads_profiles_and_sizes_come_back_as_they_were() {
    let load = Load { in_flight: 3, backlog_us: 1_250_000, ..Load::default() };
    let back: Load = serde_json::from_str(&serde_json::to_string(&load).unwrap()).unwrap();
    assert_eq!(back, load);
    let reported = ReportedLoad { waiting_requests: 2, capacity_tokens: 400_000, ..ReportedLoad::default() };
    let back: ReportedLoad = serde_json::from_str(&serde_json::to_string(&reported).unwrap()).unwrap();
    assert_eq!(back, reported);
    let profile = WorkerProfile { models: vec!["a".into()], dp_size: 4, ..WorkerProfile::default() };
    let back: WorkerProfile = serde_json::from_str(&serde_json::to_string(&profile).unwrap()).unwrap();
    assert_eq!(back, profile);
    is_written_as(IndexSize { blocks: 9, runs: 2 }, json!({"blocks": 9, "runs": 2}));
    is_written_as(
        Usage { prompt_tokens: 5, cached_tokens: 4 },
        json!({"prompt_tokens": 5, "cached_tokens": 4}),
    );
    let model = PrefillModel { tokens_per_s: 2.5, half_context_tokens: 10.0 };
    is_written_as(model, json!({"tokens_per_s": 2.5, "half_context_tokens": 10.0}));
}
