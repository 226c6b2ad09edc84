//! What the router knows of its own error, as administration shows it.

use std::time::Duration;

use espalier_proto::{
    Accuracy as WireAccuracy, CacheCounts, CauseOfError, Divergence as WireDivergence,
    DivergenceSource as WireSource, MispredictionCause as WireCause, Reconciliation as WireReconciliation,
};
use router_core::key::Unit;
use router_core::{
    Accuracy, CacheKind, Counted, Divergence, DivergenceSource, MispredictionCause, ReportLevel, Settings,
    Snapshot, Target, Time, Witness, Worker,
};

use super::key_unit;

pub(super) fn shown(
    (target, accuracy): (&Target, &Accuracy),
    settings: &Settings,
    now: Time,
) -> WireAccuracy {
    let predictions = &accuracy.predictions;
    let causes = predictions.causes().into_iter().filter(|(_, sum)| sum.responses > 0);
    let causes = causes.map(|(cause, sum)| CauseOfError {
        cause: wire_cause(cause).into(),
        responses: sum.responses,
        tokens: sum.tokens,
    });
    let reconciliations = [Unit::Token, Unit::Text].into_iter().filter_map(|unit| {
        accuracy.reconciliation(unit).map(|found| WireReconciliation {
            unit: key_unit(unit).into(),
            false_claims: found.false_claims,
            missing: found.missing,
            tokens: found.tokens,
            bytes: found.bytes,
            age_ms: age_ms(found.at, now),
        })
    });
    WireAccuracy {
        checked_responses: predictions.checked,
        mean_error_tokens: predictions.mean_tokens(),
        mean_absolute_error_tokens: predictions.mean_absolute_tokens(),
        causes: causes.collect(),
        divergence: accuracy.divergence.map(|divergence| wire_divergence(divergence, now)),
        counts: accuracy.counts.map(|counted| wire_counts(counted, now)),
        reconciliations: reconciliations.collect(),
        unvouched: accuracy.unvouched,
        vouched_by: vouched_by(target, accuracy, now),
        inference: inference(&target.worker, settings),
    }
}

/// What somebody should look at.
pub(in crate::admin) fn alarms(snapshot: &Snapshot, orphaned: bool) -> Vec<String> {
    let mut alarms = Vec::new();
    if orphaned {
        alarms.push(
            "the writer has died: requests are routed by load and nothing is learned; restart the router"
                .into(),
        );
    }
    let unvouched = snapshot.fleet.with_accuracy().filter(|(_, accuracy)| accuracy.unvouched);
    alarms.extend(unvouched.map(|(target, _)| {
        format!(
            "{} rank {}: {} routes by what is believed to be cached there, and nothing vouches for it: no agent is connected, \
             and responses do not say what was cached",
            target.worker.url,
            target.id.rank,
            snapshot.policy.name()
        )
    }));
    alarms
}

/// Whether one eviction tells of others, and if not, why.
fn inference(worker: &Worker, settings: &Settings) -> String {
    if let Some(tier) = worker.profile.lower_tier {
        let size = match tier.capacity_tokens {
            0 => String::new(),
            tokens => format!(" ({tokens} tokens beside those of the device)"),
        };
        return format!(
            "off: what leaves the engine's device stays cached in a lower tier{size}, so that one eviction tells nothing of others"
        );
    }
    let names_blocks = worker.agent.is_some_and(|agent| agent.level > ReportLevel::Counts);
    let told = match () {
        () if !worker.profile.evicts_lru => {
            "off: the engine does not evict the least recently used leaf first, or keeps what it evicts elsewhere, so that one eviction tells nothing of others"
        }
        () if worker.profile.cache_kind == CacheKind::SlidingWindow => {
            "off: the model has sliding windows, which are evicted apart from its other KV, so that a short answer does not tell what was evicted (cache kind sliding_window)"
        }
        () if worker.profile.cache_kind == CacheKind::RecurrentState => {
            "off: the model has recurrent state (or the engine was given --max-mamba-cache-size), which is evicted apart from its KV, so that a short answer does not tell what was evicted (cache kind recurrent_state)"
        }
        () if !settings.correct_from_responses => "from counts alone: --disable-response-correction",
        () if names_blocks => "of what the agent does not name",
        () => "on",
    };
    told.to_owned()
}

fn vouched_by(target: &Target, accuracy: &Accuracy, now: Time) -> String {
    if accuracy.unvouched {
        return "nothing".to_owned();
    }
    let mut witnesses = Vec::new();
    if let Some(agent) = target.worker.agent {
        let age = seconds(now.since(agent.last_report));
        witnesses.push(format!("its agent, which reports {} and was heard {age} ago", agent.level));
    }
    if accuracy.predictions.checked > 0 {
        witnesses.push(format!("{} responses", accuracy.predictions.checked));
    }
    if let Some(Counted { by: Witness::Engine, at, .. }) = accuracy.counts {
        witnesses.push(format!("the engine's own counts of {} ago", seconds(now.since(at))));
    }
    match witnesses.is_empty() {
        true => "nothing yet".to_owned(),
        false => witnesses.join("; "),
    }
}

fn wire_divergence(divergence: Divergence, now: Time) -> WireDivergence {
    let source = match divergence.source {
        DivergenceSource::Fingerprint => WireSource::Fingerprint,
        DivergenceSource::Reconciliation => WireSource::Reconciliation,
        DivergenceSource::Counts => WireSource::Counts,
    };
    WireDivergence { tokens: divergence.tokens, source: source.into(), age_ms: age_ms(divergence.at, now) }
}

fn wire_counts(counted: Counted, now: Time) -> CacheCounts {
    CacheCounts {
        held_tokens: counted.counts.held_tokens,
        evicted_tokens_total: counted.counts.evicted_tokens_total,
        asked_of_engine: counted.by == Witness::Engine,
        age_ms: age_ms(counted.at, now),
    }
}

fn wire_cause(cause: MispredictionCause) -> WireCause {
    match cause {
        MispredictionCause::Evicted => WireCause::Evicted,
        MispredictionCause::NotYetStored => WireCause::NotYetStored,
        MispredictionCause::OtherTraffic => WireCause::OtherTraffic,
    }
}

fn age_ms(at: Time, now: Time) -> u64 {
    now.since(at).as_millis() as u64
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
