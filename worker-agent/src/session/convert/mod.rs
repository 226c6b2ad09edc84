//! Between this crate's types and the messages of the wire; nothing generated leaves this module.

mod call;
mod incoming;

use espalier_proto as proto;
use espalier_proto::agent_message::Message;
use espalier_proto::{AgentMessage, BlockRun};
use prost::Message as _;
use router_core::CacheKind;
use router_core::key::{SCHEME, Unit};

use crate::chat_template::ChatTemplate;
use crate::config::Level;
use crate::engine::{EngineRole, Eviction, Health, Life, LoadReading, State};
use crate::translate::{BlockView, Run, ViewDelta};
pub(super) use call::{Inbound, open, outdated};
pub(super) use incoming::{Incoming, PredictedPrompts, ResumePoint, SymbolBatch, WantedSpace, Welcome};

/// Most bytes of hashes in one message, so that it stays under 1 MiB whatever else it carries.
const MAX_PART_BYTES: usize = 900_000;
/// Bytes that a run takes besides its hashes, at most.
const RUN_BYTES: usize = 24;
const HASH_BYTES: usize = 8;

/// Version of the protocol spoken here.
const PROTOCOL_VERSION: u32 = 1;

/// Version of the sketches that are decoded here.
const SKETCH_VERSION: u32 = 1;

/// A message to a coordinator.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Outgoing(AgentMessage);

/// What to say of a rank's completeness along with its changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Completeness {
    /// The agent may miss stores and removals from here on.
    pub(super) incomplete: bool,
    /// That is news, to be told even if no block changed.
    pub(super) news: bool,
}

impl Outgoing {
    /// Bytes on the wire, before compression.
    pub(super) fn len(&self) -> usize {
        self.0.encoded_len()
    }
}

pub(super) fn hello(
    life: &Life,
    worker_url: &str,
    max_level: Level,
    (resume, coordinators): (Vec<ResumePoint>, u32),
) -> Outgoing {
    let info = &life.info;
    let point = |point: ResumePoint| proto::ResumePoint {
        rank: point.rank,
        acked_seq: point.acked_seq,
        key_space_fingerprint: point.fingerprint,
    };
    wrap(Message::Hello(proto::Hello {
        protocol_version: PROTOCOL_VERSION,
        worker_url: worker_url.to_owned(),
        incarnation: life.incarnation,
        engine: "sglang".to_owned(),
        engine_version: info.version.clone(),
        model: info.model.clone(),
        weight_version: info.weight_version.clone(),
        dp_size: info.dp_size,
        page_size: info.page_size,
        capacity_tokens: info.capacity_tokens,
        eviction_policy: match info.eviction {
            Eviction::Lru => proto::EvictionPolicy::Lru,
            Eviction::Other => proto::EvictionPolicy::Other,
            Eviction::Unknown => proto::EvictionPolicy::Unspecified,
        }
        .into(),
        cache_kind: match info.cache_kind {
            CacheKind::Unknown => proto::CacheKind::Unspecified,
            CacheKind::Full => proto::CacheKind::Full,
            CacheKind::SlidingWindow => proto::CacheKind::SlidingWindow,
            CacheKind::RecurrentState => proto::CacheKind::RecurrentState,
        }
        .into(),
        lower_tier: info.lower_tier.map(|tier| proto::LowerTier { capacity_tokens: tier.capacity_tokens }),
        role: match info.role {
            EngineRole::Unified => proto::WorkerRole::Unified,
            EngineRole::Prefill => proto::WorkerRole::Prefill,
            EngineRole::Decode => proto::WorkerRole::Decode,
            EngineRole::Unknown => proto::WorkerRole::Unspecified,
        }
        .into(),
        bootstrap_port: info.bootstrap_port.unwrap_or(0).into(),
        schemes: vec![SCHEME.to_owned()],
        units: life.units().map(|unit| to_unit(unit).into()).collect(),
        max_level: to_level(max_level).into(),
        resume: resume.into_iter().map(point).collect(),
        sketch_version: SKETCH_VERSION,
        coordinators,
        chat_template: life.chat_template.as_ref().ok().map(|template| chat_template(template)),
        agent: concat!("worker-agent/", env!("CARGO_PKG_VERSION")).to_owned(),
    }))
}

fn chat_template(template: &ChatTemplate) -> proto::ChatTemplate {
    let ChatTemplate { source, special_tokens, leading } = template.clone();
    proto::ChatTemplate { source, special_tokens: special_tokens.into_iter().collect(), leading }
}

pub(super) fn accept(fingerprints: Vec<u64>, reason: String) -> Outgoing {
    wrap(Message::Accept(proto::Accept { fingerprints, reason }))
}

/// `incarnation`: of a life that begins now, or zero.
pub(super) fn state(health: &Health, incarnation: u64, reason: String) -> Outgoing {
    let state = match health.state {
        State::Unreachable => proto::WorkerState::Unreachable,
        State::Ready => proto::WorkerState::Ready,
        State::Updating => proto::WorkerState::Updating,
    };
    wrap(Message::State(proto::StateReport { state: state.into(), incarnation, reason }))
}

pub(super) fn load(rank: u32, reading: &LoadReading, capacity_tokens: u64) -> Outgoing {
    let stat = &reading.stat;
    let load = proto::Load {
        running_requests: stat.running_requests,
        waiting_requests: stat.waiting_requests,
        waiting_uncached_tokens: stat.waiting_uncached_tokens.unwrap_or(0),
        used_tokens: stat.used_tokens,
        capacity_tokens: if stat.capacity_tokens > 0 { stat.capacity_tokens } else { capacity_tokens },
        prefill_tokens_total: stat.prefill_tokens_total.unwrap_or(0),
        prefill_busy_us_total: stat.prefill_busy_us_total.unwrap_or(0),
    };
    wrap(Message::Load(proto::LoadReport { rank, load: Some(load) }))
}

pub(super) fn counts(rank: u32, evicted_tokens_total: u64, cached_tokens: u64) -> Outgoing {
    wrap(Message::Counts(proto::Counts { rank, evicted_tokens_total, cached_tokens }))
}

/// A digest of a view of which everything has been told up to `seq`.
pub(super) fn set_fingerprint(rank: u32, seq: u64, view: &BlockView) -> Outgoing {
    let buckets: Vec<u8> = view.buckets().iter().flat_map(|bucket| bucket.to_le_bytes()).collect();
    let (blocks, unit) = (view.len() as u64, to_unit(view.space().unit()).into());
    wrap(Message::SetFingerprint(proto::SetFingerprint { rank, seq, blocks, buckets, unit }))
}

/// A change as deltas of bounded size, each numbered by `next_seq`; none if there is nothing to tell.
pub(super) fn deltas(
    (rank, unit): (u32, Unit),
    change: ViewDelta,
    Completeness { incomplete, news }: Completeness,
    mut next_seq: impl FnMut() -> u64,
) -> Vec<(u64, Outgoing)> {
    let nothing_changed = !change.cleared && change.removed.is_empty() && change.stored.is_empty();
    let mut out = Vec::new();
    let mut push = |cleared, removed: Vec<u64>, stored: Vec<BlockRun>| {
        let (seq, unit) = (next_seq(), to_unit(unit).into());
        let delta = proto::Delta { rank, seq, cleared, removed, stored, unit, incomplete, reconciles: 0 };
        out.push((seq, wrap(Message::Delta(delta))));
    };
    let ViewDelta { mut cleared, mut removed, stored } = change;
    // Removals of all parts come before stores of all parts.
    while removed.len() * HASH_BYTES > MAX_PART_BYTES {
        let rest = removed.split_off(MAX_PART_BYTES / HASH_BYTES);
        push(std::mem::take(&mut cleared), std::mem::replace(&mut removed, rest), Vec::new());
    }
    for part in parts(stored, removed.len() * HASH_BYTES) {
        push(std::mem::take(&mut cleared), std::mem::take(&mut removed), part);
    }
    if cleared || !removed.is_empty() || (news && nothing_changed) {
        push(cleared, removed, Vec::new());
    }
    out
}

/// What a comparison has found, in one message; `None` if it does not fit into one. `round`: the comparison, or zero for none.
pub(super) fn reconciled(
    (rank, unit): (u32, Unit),
    seq: u64,
    change: ViewDelta,
    incomplete: bool,
    round: u64,
) -> Option<Outgoing> {
    let ViewDelta { cleared, removed, stored } = change;
    let mut stored = parts(stored, removed.len() * HASH_BYTES);
    if stored.len() > 1 || removed.len() * HASH_BYTES > MAX_PART_BYTES {
        return None;
    }
    let (stored, unit) = (stored.pop().unwrap_or_default(), to_unit(unit).into());
    let delta = proto::Delta { rank, seq, cleared, removed, stored, unit, incomplete, reconciles: round };
    Some(wrap(Message::Delta(delta)))
}

/// More symbols of a round are needed.
pub(super) fn more_symbols((rank, unit): (u32, Unit), round: u64, until: u32) -> Outgoing {
    wrap(Message::MoreSymbols(proto::MoreSymbols { rank, unit: to_unit(unit).into(), round, until }))
}

/// Everything held, as the parts of one baseline; at least one.
pub(super) fn baseline(
    (rank, unit): (u32, Unit),
    seq: u64,
    incomplete: bool,
    runs: Vec<Run>,
) -> Vec<Outgoing> {
    let mut stored = parts(runs, 0);
    if stored.is_empty() {
        stored.push(Vec::new());
    }
    let parts = stored.len() as u32;
    let part = |(part, stored)| {
        let (part, unit) = (part as u32, to_unit(unit).into());
        wrap(Message::Baseline(proto::Baseline { rank, seq, part, parts, stored, unit, incomplete }))
    };
    stored.into_iter().enumerate().map(part).collect()
}

fn to_unit(unit: Unit) -> proto::KeyUnit {
    match unit {
        Unit::Token => proto::KeyUnit::Token,
        Unit::Text => proto::KeyUnit::Text,
    }
}

fn to_level(level: Level) -> proto::ReportLevel {
    match level {
        Level::Counts => proto::ReportLevel::Counts,
        Level::Removals => proto::ReportLevel::Removals,
        Level::Full => proto::ReportLevel::Full,
    }
}

/// Groups runs into parts of bounded size, cutting runs that are longer; the first part already has `used` bytes.
fn parts(runs: Vec<Run>, used: usize) -> Vec<Vec<BlockRun>> {
    let mut out = Vec::new();
    let mut part: Vec<BlockRun> = Vec::new();
    let mut room = MAX_PART_BYTES.saturating_sub(used);
    for run in runs {
        let Run { mut parent, mut hashes } = run;
        while !hashes.is_empty() {
            if room < RUN_BYTES + HASH_BYTES {
                out.push(std::mem::take(&mut part));
                room = MAX_PART_BYTES;
            }
            let fits = ((room - RUN_BYTES) / HASH_BYTES).min(hashes.len());
            let rest = hashes.split_off(fits);
            let last = hashes[fits - 1];
            part.push(BlockRun { parent, hashes });
            room -= RUN_BYTES + fits * HASH_BYTES;
            (parent, hashes) = (last, rest);
        }
    }
    if !part.is_empty() {
        out.push(part);
    }
    out
}

fn wrap(message: Message) -> Outgoing {
    Outgoing(AgentMessage { message: Some(message) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXACT: Completeness = Completeness { incomplete: false, news: false };

    fn delta(message: &Outgoing) -> &proto::Delta {
        let Some(Message::Delta(delta)) = &message.0.message else { panic!("not a delta") };
        delta
    }

    fn run(parent: u64, hashes: std::ops::RangeInclusive<u64>) -> Run {
        Run { parent, hashes: hashes.map(|hash| hash << 32).collect() }
    }

    #[test]
    fn a_small_change_is_one_delta_and_no_change_none() {
        let change = ViewDelta { cleared: true, removed: vec![1], stored: vec![run(0, 2..=3)] };
        let mut seq = 4;
        let mut next = || {
            seq += 1;
            seq
        };
        let messages = deltas((2, Unit::Token), change, EXACT, &mut next);
        assert_eq!(messages.len(), 1);
        let first = delta(&messages[0].1);
        assert_eq!((first.seq, first.rank, first.cleared, first.removed.len()), (5, 2, true, 1));
        assert!(deltas((2, Unit::Token), ViewDelta::default(), EXACT, &mut next).is_empty());
        let cleared = ViewDelta { cleared: true, ..ViewDelta::default() };
        assert_eq!(deltas((2, Unit::Token), cleared, EXACT, &mut next).len(), 1);
    }

    #[test]
    fn a_doubt_is_told_although_no_block_changed() {
        let doubt = Completeness { incomplete: true, news: true };
        let messages = deltas((2, Unit::Token), ViewDelta::default(), doubt, || 9);
        let only = delta(&messages[0].1);
        assert_eq!((messages.len(), only.seq, only.incomplete), (1, 9, true));
        let change = ViewDelta { removed: vec![1], ..ViewDelta::default() };
        assert_eq!(deltas((2, Unit::Token), change, doubt, || 9).len(), 1, "once");
    }

    #[test]
    fn large_changes_are_cut_below_a_mebibyte() {
        let removed: Vec<u64> = (1..=300_000).map(|hash| hash << 33).collect();
        let stored = vec![run(9, 1..=200_000), run(0, 300_000..=300_001)];
        let mut seq = 0;
        let messages = deltas((0, Unit::Token), ViewDelta { cleared: true, removed, stored }, EXACT, || {
            seq += 1;
            seq
        });
        assert!(messages.iter().all(|(_, message)| message.len() < 1 << 20));
        let deltas: Vec<_> = messages.iter().map(|(_, message)| delta(message)).collect();
        assert!(deltas[0].cleared && deltas[1..].iter().all(|delta| !delta.cleared));
        assert_eq!(deltas.iter().map(|delta| delta.removed.len()).sum::<usize>(), 300_000);
        let last_removal = deltas.iter().rposition(|delta| !delta.removed.is_empty()).unwrap();
        let first_store = deltas.iter().position(|delta| !delta.stored.is_empty()).unwrap();
        assert!(last_removal <= first_store);
        let runs: Vec<_> = deltas.iter().flat_map(|delta| &delta.stored).collect();
        assert_eq!(runs.iter().map(|run| run.hashes.len()).sum::<usize>(), 200_002);
        assert_eq!(runs[1].parent, *runs[0].hashes.last().unwrap(), "a cut run goes on where it was cut");
        assert!(deltas.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1));
    }

    #[test]
    fn a_baseline_of_nothing_has_one_part() {
        let parts = baseline((1, Unit::Token), 7, true, Vec::new());
        let Some(Message::Baseline(only)) = &parts[0].0.message else { panic!("not a baseline") };
        assert_eq!((parts.len(), only.part, only.parts, only.seq), (1, 0, 1, 7));
        assert!(only.incomplete);
        let parts = baseline((1, Unit::Token), 7, false, vec![run(0, 1..=400_000)]);
        assert_eq!(parts.len(), 4);
        assert!(parts.iter().all(|part| part.len() < 1 << 20));
    }
}
