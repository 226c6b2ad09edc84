//! Between the wire and the core: every field of the agents' messages is checked here, and nowhere else.

use std::sync::Arc;

use chat_template::Source;
use espalier_proto::coordinator_message::Message as Reply;
use espalier_proto::{
    Ack, Baseline, CacheKind as WireCacheKind, ChatTemplate as WireTemplate, CoordinatorMessage,
    Delta as WireDelta, EvictionPolicy, Hello, KeySpace as WireKeySpace, KeyUnit, Load, Predicted,
    ReportLevel as WireLevel, ResumePoint, Resync, SetFingerprint, Symbols, Welcome, WorkerRole as WireRole,
};
use router_core::key::{BlockHash, KeySpace, SCHEME, Unit};
use router_core::{
    BlockRun, CacheKind, Considered, Delta, Incarnation, LowerTier, ReportLevel, ReportedLoad, Role,
    SetDigest, Units, WorkerProfile,
};
use tonic::Status;

use super::Terms;
use crate::worker_url::worker_url;

/// The version of the protocol that is spoken here.
const PROTOCOL_VERSION: u32 = 1;

/// The version of the sketches that are made here.
const SKETCH_VERSION: u32 = 1;

/// Longest name of a model or engine that is kept.
const MOST_NAME_BYTES: usize = 512;

/// Coordinators that an agent may report to.
const MOST_COORDINATORS: u32 = 1024;

/// Hello, checked.
#[derive(Debug)]
pub(super) struct Greeting {
    pub(super) url: Arc<str>,
    pub(super) incarnation: Incarnation,
    pub(super) profile: WorkerProfile,
    pub(super) max_level: ReportLevel,
    /// What the agent can translate to, with a hash that is known here.
    pub(super) units: Units,
    pub(super) reconciles: bool,
    /// Those that it reports to; 0 if unknown.
    pub(super) routers: u32,
}

pub(super) fn hello(hello: &Hello) -> Result<Greeting, Status> {
    let invalid = |what: String| Err(Status::invalid_argument(what));
    if hello.protocol_version != PROTOCOL_VERSION {
        return Err(Status::failed_precondition(format!(
            "protocol version {} is not spoken here; this router speaks {PROTOCOL_VERSION}",
            hello.protocol_version
        )));
    }
    let url = match worker_url(&hello.worker_url) {
        Ok(url) => url,
        Err(problem) => return invalid(format!("Hello.worker_url: {problem}")),
    };
    if hello.incarnation == 0 {
        return invalid("Hello.incarnation must be greater than zero".to_owned());
    }
    if hello.dp_size == 0 {
        return invalid("Hello.dp_size must be at least 1".to_owned());
    }
    if hello.page_size == 0 {
        return invalid("Hello.page_size must be at least 1".to_owned());
    }
    if hello.model.len() > MOST_NAME_BYTES || hello.engine_version.len() > MOST_NAME_BYTES {
        return invalid(format!("Hello.model and Hello.engine_version have at most {MOST_NAME_BYTES} bytes"));
    }
    if hello.coordinators > MOST_COORDINATORS {
        return invalid(format!(
            "Hello.coordinators is {}; an agent reports to at most {MOST_COORDINATORS}",
            hello.coordinators
        ));
    }
    let models = if hello.model.is_empty() { Vec::new() } else { vec![Arc::from(&*hello.model)] };
    let kind = WireCacheKind::try_from(hello.cache_kind);
    let knows_hash = hello.schemes.iter().any(|scheme| scheme == SCHEME);
    Ok(Greeting {
        url: url.into(),
        incarnation: Incarnation(hello.incarnation),
        profile: WorkerProfile {
            models,
            engine_version: Arc::from(&*hello.engine_version),
            dp_size: hello.dp_size,
            page_size: hello.page_size,
            capacity_tokens: hello.capacity_tokens,
            usage_on_request: None,
            // A kind that only a later agent knows: nothing may follow from what is evicted there.
            evicts_lru: hello.eviction_policy() == EvictionPolicy::Lru && kind.is_ok(),
            cache_kind: match kind {
                Ok(WireCacheKind::Unspecified) | Err(_) => CacheKind::Unknown,
                Ok(WireCacheKind::Full) => CacheKind::Full,
                Ok(WireCacheKind::SlidingWindow) => CacheKind::SlidingWindow,
                Ok(WireCacheKind::RecurrentState) => CacheKind::RecurrentState,
            },
            lower_tier: hello.lower_tier.map(|tier| LowerTier { capacity_tokens: tier.capacity_tokens }),
            role: role(hello.role()),
            bootstrap_port: u16::try_from(hello.bootstrap_port).ok().filter(|port| *port > 0),
        },
        max_level: match hello.max_level() {
            WireLevel::Unspecified | WireLevel::Counts => ReportLevel::Counts,
            WireLevel::Removals => ReportLevel::Removals,
            WireLevel::Full => ReportLevel::Full,
        },
        units: hello.units().filter(|_| knows_hash).filter_map(unit).collect(),
        reconciles: hello.sketch_version == SKETCH_VERSION,
        routers: hello.coordinators,
    })
}

/// The template that an agent offers.
pub(super) fn chat_template(offered: WireTemplate) -> Source {
    let WireTemplate { source, special_tokens, leading } = offered;
    Source { source, special_tokens: special_tokens.into_iter().collect(), leading }
}

/// `None` if it is not said.
pub(crate) fn role(role: WireRole) -> Option<Role> {
    match role {
        WireRole::Unspecified => None,
        WireRole::Unified => Some(Role::Unified),
        WireRole::Prefill => Some(Role::Prefill),
        WireRole::Decode => Some(Role::Decode),
    }
}

pub(super) fn welcome(
    terms: &Terms,
    level: ReportLevel,
    spaces: &[&KeySpace],
    (considered, fingerprint): (&Considered, u64),
) -> CoordinatorMessage {
    let key_spaces = spaces.iter().map(|space| WireKeySpace {
        unit: wire_unit(space.unit()).into(),
        block_size: space.block_size(),
        scheme: SCHEME.to_owned(),
        seed: space.seed(),
        fingerprint: space.fingerprint(),
    });
    let resume = considered.resume.iter().map(|&(rank, acked_seq)| ResumePoint {
        rank,
        acked_seq,
        key_space_fingerprint: fingerprint,
    });
    reply(Reply::Welcome(Welcome {
        lease_ms: terms.lease_ms,
        key_spaces: key_spaces.collect(),
        level: wire_level(level).into(),
        batch_interval_ms: terms.batch_interval_ms,
        resume: resume.collect(),
        reconcile: considered.reconcile.clone(),
    }))
}

pub(crate) fn wire_level(level: ReportLevel) -> WireLevel {
    match level {
        ReportLevel::Counts => WireLevel::Counts,
        ReportLevel::Removals => WireLevel::Removals,
        ReportLevel::Full => WireLevel::Full,
    }
}

pub(super) fn ack(rank: u32, seq: u64) -> CoordinatorMessage {
    reply(Reply::Ack(Ack { rank, seq }))
}

pub(super) fn resync(rank: u32, reason: &str) -> CoordinatorMessage {
    reply(Reply::Resync(Resync { rank, reason: reason.to_owned() }))
}

/// Symbols of a round, from number `first` on.
pub(super) fn symbols(
    (rank, unit, round): (u32, Unit, u64),
    blocks: u64,
    first: u32,
    symbols: Vec<u8>,
) -> CoordinatorMessage {
    reply(Reply::Symbols(Symbols { rank, unit: wire_unit(unit).into(), round, blocks, first, symbols }))
}

/// The last blocks of prompts that are claimed by prediction.
pub(super) fn predicted(rank: u32, unit: Unit, last: Vec<u64>) -> CoordinatorMessage {
    reply(Reply::Predicted(Predicted { rank, unit: wire_unit(unit).into(), last }))
}

pub(super) fn delta(delta: WireDelta) -> Result<Delta, Status> {
    let unit = named_unit(delta.unit())?;
    let runs = delta.stored.into_iter().map(|run| block_run(run.parent, &run.hashes));
    Ok(Delta {
        unit,
        seq: delta.seq,
        cleared: delta.cleared,
        removed: hashes(&delta.removed)?,
        stored: runs.collect::<Result<_, _>>()?,
        incomplete: delta.incomplete,
    })
}

pub(super) fn baseline_runs(baseline: &Baseline) -> Result<Vec<BlockRun>, Status> {
    baseline.stored.iter().map(|run| block_run(run.parent, &run.hashes)).collect()
}

pub(super) fn load(load: &Load) -> ReportedLoad {
    ReportedLoad {
        running_requests: load.running_requests,
        waiting_requests: load.waiting_requests,
        waiting_uncached_tokens: load.waiting_uncached_tokens,
        used_tokens: load.used_tokens,
        capacity_tokens: load.capacity_tokens,
    }
}

pub(super) fn digest(fingerprint: &SetFingerprint) -> Result<SetDigest, Status> {
    let mut digest = SetDigest::empty();
    if fingerprint.buckets.len() != 2 * digest.buckets.len() {
        return Err(Status::invalid_argument("SetFingerprint.buckets must have 512 bytes"));
    }
    digest.blocks = fingerprint.blocks;
    for (bucket, bytes) in digest.buckets.iter_mut().zip(fingerprint.buckets.chunks_exact(2)) {
        *bucket = u16::from_le_bytes([bytes[0], bytes[1]]);
    }
    Ok(digest)
}

fn unit(unit: KeyUnit) -> Option<Unit> {
    match unit {
        KeyUnit::Token => Some(Unit::Token),
        KeyUnit::Text => Some(Unit::Text),
        KeyUnit::Unspecified => None,
    }
}

fn wire_unit(unit: Unit) -> KeyUnit {
    match unit {
        Unit::Token => KeyUnit::Token,
        Unit::Text => KeyUnit::Text,
    }
}

/// The unit that a report says its blocks are of.
pub(super) fn named_unit(said: KeyUnit) -> Result<Unit, Status> {
    unit(said)
        .ok_or_else(|| Status::invalid_argument("a report of blocks does not say what they are cut from"))
}

fn block_run(parent: u64, values: &[u64]) -> Result<BlockRun, Status> {
    if values.is_empty() {
        return Err(Status::invalid_argument("BlockRun.hashes must not be empty"));
    }
    Ok(BlockRun { parent: BlockHash::new(parent), hashes: hashes(values)? })
}

fn hashes(values: &[u64]) -> Result<Vec<BlockHash>, Status> {
    let hash = |value: &u64| {
        BlockHash::new(*value).ok_or_else(|| Status::invalid_argument("a block hash is never zero"))
    };
    values.iter().map(hash).collect()
}

fn reply(message: Reply) -> CoordinatorMessage {
    CoordinatorMessage { message: Some(message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile_of(cache_kind: i32) -> WorkerProfile {
        let said = Hello {
            protocol_version: PROTOCOL_VERSION,
            worker_url: "http://worker:30000".to_owned(),
            incarnation: 1,
            dp_size: 1,
            page_size: 16,
            eviction_policy: EvictionPolicy::Lru.into(),
            cache_kind,
            ..Hello::default()
        };
        hello(&said).unwrap().profile
    }

    #[test]
    fn more_coordinators_than_there_can_be_are_refused() {
        let said = |coordinators: u32| Hello {
            protocol_version: PROTOCOL_VERSION,
            worker_url: "http://worker:30000".to_owned(),
            incarnation: 1,
            dp_size: 1,
            page_size: 16,
            coordinators,
            ..Hello::default()
        };
        for known in [0, 1, MOST_COORDINATORS] {
            assert_eq!(hello(&said(known)).unwrap().routers, known);
        }
        let refused = hello(&said(u32::MAX)).unwrap_err();
        assert!(refused.message().contains("Hello.coordinators is 4294967295"), "{}", refused.message());
    }

    #[test]
    fn of_a_kind_of_cache_that_is_not_known_nothing_is_inferred() {
        for kind in [WireCacheKind::Unspecified, WireCacheKind::Full] {
            assert!(profile_of(kind.into()).tells_evictions());
        }
        for kind in [WireCacheKind::SlidingWindow.into(), WireCacheKind::RecurrentState.into(), 4, -1] {
            assert!(!profile_of(kind).tells_evictions(), "{kind}");
        }
    }
}
