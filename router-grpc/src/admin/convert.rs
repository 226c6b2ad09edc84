//! From the core to the wire, for administration.

mod accuracy;

pub(super) use accuracy::alarms;
use espalier_proto::{
    AgentSession, Candidate, Event, EventKind as WireKind, Excluded, ExplainResponse, KeyUnit, Load,
    ReportLevel as WireLevel, Target as WireTarget, TargetHealth, Worker as WireWorker,
    WorkerRole as WireRole, WorkerState as WireState,
};
use router_core::key::{PrefixKey, Unit};
use router_core::{
    Accuracy, AgentLink, Declaration, EventKind, Explanation, HealthState, ReportLevel, Role, Router,
    Settings, Snapshot, Target, TargetId, Time, Worker, WorkerState,
};

use crate::events::FleetEvent;
use crate::session::Account;

pub(super) fn worker((snapshot, settings): (&Snapshot, &Settings), worker: &Worker, now: Time) -> WireWorker {
    let level = worker.agent.map_or(WireLevel::Unspecified, |agent| wire_level(agent.level));
    let targets = snapshot.fleet.with_accuracy().filter(|(target, _)| target.id.worker == worker.id);
    WireWorker {
        url: worker.url.to_string(),
        state: state(worker.state).into(),
        model: worker.profile.models.first().map(ToString::to_string).unwrap_or_default(),
        engine_version: worker.profile.engine_version.to_string(),
        targets: targets.map(|(at, accuracy)| target((at, accuracy), settings, now)).collect(),
        agent_connected: worker.agent.is_some(),
        report_level: level.into(),
        report_age_ms: worker.agent.map(|agent| now.since(agent.last_report).as_millis() as u64),
        reason: reason(snapshot, worker, now),
        incarnation: worker.incarnation.0,
        role: wire_role(worker.role).into(),
        bootstrap_port: (worker.role == Role::Prefill).then_some(worker.bootstrap_port.into()),
        agent: None,
    }
}

fn wire_level(level: ReportLevel) -> WireLevel {
    match level {
        ReportLevel::Counts => WireLevel::Counts,
        ReportLevel::Removals => WireLevel::Removals,
        ReportLevel::Full => WireLevel::Full,
    }
}

/// An agent's session, as its account has it.
pub(super) fn session(agent: &AgentLink, account: &Account, now: Time) -> AgentSession {
    AgentSession {
        messages: account.messages(),
        bytes: account.bytes(),
        age_ms: now.since(agent.since).as_millis() as u64,
        wanted_level: wire_level(account.wanted).into(),
        shortfall: account.shortfall.clone(),
        units: agent.units.iter().map(|unit| key_unit(unit).into()).collect(),
    }
}

fn wire_role(role: Role) -> WireRole {
    match role {
        Role::Unified => WireRole::Unified,
        Role::Prefill => WireRole::Prefill,
        Role::Decode => WireRole::Decode,
    }
}

/// What AddWorker says of a role, if it says anything; an error names the field that cannot be used.
pub(super) fn declaration(role: WireRole, bootstrap_port: u32) -> Result<Option<Declaration>, &'static str> {
    let port = u16::try_from(bootstrap_port).map_err(|_| "bootstrap_port: a port is at most 65535")?;
    let declaration =
        Declaration { role: crate::session::role(role), bootstrap_port: Some(port).filter(|port| *port > 0) };
    let says = declaration.role.is_some() || declaration.bootstrap_port.is_some();
    Ok(says.then_some(declaration))
}

/// Why a worker is in its state, and which of its ranks get no requests all the same.
fn reason(snapshot: &Snapshot, worker: &Worker, now: Time) -> String {
    let mut reason = worker.reason.to_string();
    for target in snapshot.fleet.targets_of(worker.id) {
        let state = target.load.health().state(now);
        if !state.takes_requests() {
            reason.push_str(&format!("; rank {} {state}", target.id.rank));
        }
    }
    reason
}

fn target((target, accuracy): (&Target, &Accuracy), settings: &Settings, now: Time) -> WireTarget {
    let load = target.load.read();
    WireTarget {
        rank: target.id.rank,
        in_flight: load.in_flight,
        in_prefill: load.in_prefill,
        claimed_tokens: target.claimed_tokens,
        capacity_tokens: target.worker.profile.capacity_tokens,
        lower_tier_tokens: target.worker.profile.lower_tier.map(|tier| tier.capacity_tokens),
        load: target.reported.map(|reported| Load {
            running_requests: reported.running_requests,
            waiting_requests: reported.waiting_requests,
            waiting_uncached_tokens: reported.waiting_uncached_tokens,
            used_tokens: reported.used_tokens,
            capacity_tokens: reported.capacity_tokens,
            ..Load::default()
        }),
        divergence_tokens: accuracy.divergence.map(|divergence| divergence.tokens),
        doubtful: target.doubtful,
        health: health(target.load.health().state(now)).into(),
        accuracy: Some(accuracy::shown((target, accuracy), settings, now)),
    }
}

fn health(state: HealthState) -> TargetHealth {
    match state {
        HealthState::Closed => TargetHealth::Closed,
        HealthState::Ejected { .. } => TargetHealth::Ejected,
        HealthState::HalfOpen { .. } => TargetHealth::HalfOpen,
        _ => TargetHealth::Unspecified,
    }
}

fn state(state: WorkerState) -> WireState {
    match state {
        WorkerState::Unreachable => WireState::Unreachable,
        WorkerState::Ready => WireState::Ready,
        WorkerState::Draining => WireState::Draining,
        WorkerState::Updating => WireState::Updating,
    }
}

pub(super) fn explanation(
    router: &Router,
    explained: &Explanation,
    key: Option<&PrefixKey>,
    confirmed: &[(TargetId, u32)],
    now: Time,
) -> ExplainResponse {
    let snapshot = &explained.snapshot;
    let url = |target: TargetId| {
        let worker = snapshot.fleet.workers.iter().find(|worker| worker.id == target.worker);
        worker.map(|worker| worker.url.to_string()).unwrap_or_default()
    };
    let accuracy_of = |id| {
        let (target, accuracy) = (snapshot.fleet.target(id)?, snapshot.fleet.accuracy(id)?);
        Some(accuracy::shown((target, accuracy), router.settings(), now))
    };
    let tokens = |blocks: u32| {
        key.map_or(0, |key| snapshot.tokens_of_blocks(router.key_space(key.unit()), u64::from(blocks)))
    };
    let candidates = explained.candidates.iter().enumerate().map(|(index, candidate)| {
        let known = confirmed.iter().find(|(target, _)| *target == candidate.target);
        Candidate {
            worker_url: url(candidate.target),
            rank: candidate.target.rank,
            matched_tokens: candidate.matched_tokens,
            confirmed_tokens: known.map_or(0, |(_, blocks)| tokens(*blocks)).min(candidate.matched_tokens),
            in_flight: candidate.load.in_flight,
            backlog_ms: candidate.backlog.as_secs_f64() * 1e3,
            prefill_ms: candidate.prefill.as_secs_f64() * 1e3,
            cost: candidate.cost.unwrap_or(0.0),
            chosen: index == explained.chosen,
            accuracy: accuracy_of(candidate.target),
        }
    });
    let excluded = explained.excluded.iter().map(|excluded| Excluded {
        worker_url: url(excluded.target),
        rank: excluded.target.rank,
        reason: excluded.why.to_string(),
    });
    let chosen = explained.candidates[explained.chosen].target;
    ExplainResponse {
        policy: explained.policy.to_owned(),
        worker_url: url(chosen),
        rank: chosen.rank,
        reason: explained.reason.to_string(),
        key_unit: key.map_or(KeyUnit::Unspecified, |key| key_unit(key.unit())).into(),
        blocks: key.map_or(0, |key| key.hashes().len() as u32),
        prompt_tokens: explained.prompt_tokens,
        epoch: snapshot.epoch,
        candidates: candidates.collect(),
        excluded: excluded.collect(),
        chat_keyed: String::new(),
    }
}

fn key_unit(unit: Unit) -> KeyUnit {
    match unit {
        Unit::Token => KeyUnit::Token,
        Unit::Text => KeyUnit::Text,
    }
}

pub(super) fn event(event: &FleetEvent) -> Event {
    let kind = match event.kind {
        EventKind::WorkerAdded => WireKind::WorkerAdded,
        EventKind::WorkerRemoved => WireKind::WorkerRemoved,
        EventKind::WorkerState => WireKind::WorkerState,
        EventKind::AgentConnected => WireKind::AgentConnected,
        EventKind::AgentLost => WireKind::AgentLost,
        EventKind::Gap => WireKind::Gap,
        EventKind::Resynced => WireKind::Resynced,
        EventKind::ClaimsVoided => WireKind::ClaimsVoided,
        EventKind::DrainStarted => WireKind::DrainStarted,
        EventKind::DrainDone => WireKind::DrainDone,
        EventKind::KeySpaceMismatch => WireKind::KeySpaceMismatch,
        EventKind::Unvouched => WireKind::Unvouched,
        EventKind::Vouched => WireKind::Vouched,
    };
    Event {
        time_ms: event.time_ms,
        kind: kind.into(),
        worker_url: event.url.to_string(),
        rank: event.rank,
        detail: event.detail.to_string(),
    }
}

pub(super) fn lost(missed: u64) -> Event {
    let detail = format!("{missed} events were lost: read faster");
    Event { kind: WireKind::Lost.into(), detail, ..Event::default() }
}
