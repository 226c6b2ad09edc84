//! Between this crate's types and the messages of the wire.

use espalier_proto as proto;
use espalier_proto::agent_message::Message;
use espalier_proto::{AgentMessage, BlockRun};
use router_core::key::SCHEME;

use crate::config::Level;
use crate::engine::{Eviction, Health, Life, LoadReading, State};
use crate::translate::{BUCKETS, Run, ViewDelta};

/// Most bytes of hashes in one message, so that it stays under 1 MiB whatever else it carries.
const MAX_PART_BYTES: usize = 900_000;
/// Bytes that a run takes besides its hashes, at most.
const RUN_BYTES: usize = 24;
const HASH_BYTES: usize = 8;

/// Version of the protocol spoken here.
const PROTOCOL_VERSION: u32 = 1;

pub(super) fn hello(
    life: &Life,
    worker_url: &str,
    max_level: Level,
    resume: Vec<proto::ResumePoint>,
) -> AgentMessage {
    let info = &life.info;
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
        schemes: vec![SCHEME.to_owned()],
        units: vec![proto::KeyUnit::Token.into()],
        max_level: to_level(max_level).into(),
        resume,
        agent: concat!("worker-agent/", env!("CARGO_PKG_VERSION")).to_owned(),
    }))
}

pub(super) fn accept(fingerprint: Option<u64>, reason: String) -> AgentMessage {
    wrap(Message::Accept(proto::Accept { fingerprints: fingerprint.into_iter().collect(), reason }))
}

/// `incarnation`: of a life that begins now, or zero.
pub(super) fn state(health: &Health, incarnation: u64, reason: String) -> AgentMessage {
    let state = match health.state {
        State::Unreachable => proto::WorkerState::Unreachable,
        State::Ready => proto::WorkerState::Ready,
        State::Updating => proto::WorkerState::Updating,
    };
    wrap(Message::State(proto::StateReport { state: state.into(), incarnation, reason }))
}

pub(super) fn load(rank: u32, reading: &LoadReading, capacity_tokens: u64) -> proto::LoadReport {
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
    proto::LoadReport { rank, load: Some(load) }
}

pub(super) fn load_message(report: proto::LoadReport) -> AgentMessage {
    wrap(Message::Load(report))
}

pub(super) fn counts(rank: u32, evicted_tokens_total: u64, cached_tokens: u64) -> AgentMessage {
    wrap(Message::Counts(proto::Counts { rank, evicted_tokens_total, cached_tokens }))
}

pub(super) fn set_fingerprint(rank: u32, seq: u64, blocks: u64, buckets: &[u16; BUCKETS]) -> AgentMessage {
    let buckets: Vec<u8> = buckets.iter().flat_map(|bucket| bucket.to_le_bytes()).collect();
    let unit = proto::KeyUnit::Token.into();
    wrap(Message::SetFingerprint(proto::SetFingerprint { rank, seq, blocks, buckets, unit }))
}

/// A change as deltas of bounded size, each numbered by `next_seq`; none if nothing changed.
pub(super) fn deltas(
    rank: u32,
    change: ViewDelta,
    mut next_seq: impl FnMut() -> u64,
) -> Vec<(u64, AgentMessage)> {
    let mut out = Vec::new();
    let mut push = |cleared, removed: Vec<u64>, stored: Vec<BlockRun>| {
        let seq = next_seq();
        let unit = proto::KeyUnit::Token.into();
        out.push((seq, wrap(Message::Delta(proto::Delta { rank, seq, cleared, removed, stored, unit }))));
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
    if cleared || !removed.is_empty() {
        push(cleared, removed, Vec::new());
    }
    out
}

/// Everything held, as the parts of one baseline; at least one.
pub(super) fn baseline(rank: u32, seq: u64, runs: Vec<Run>) -> Vec<AgentMessage> {
    let mut stored = parts(runs, 0);
    if stored.is_empty() {
        stored.push(Vec::new());
    }
    let parts = stored.len() as u32;
    let part = |(part, stored)| {
        let unit = proto::KeyUnit::Token.into();
        wrap(Message::Baseline(proto::Baseline { rank, seq, part: part as u32, parts, stored, unit }))
    };
    stored.into_iter().enumerate().map(part).collect()
}

pub(super) fn to_level(level: Level) -> proto::ReportLevel {
    match level {
        Level::Counts => proto::ReportLevel::Counts,
        Level::Removals => proto::ReportLevel::Removals,
        Level::Full => proto::ReportLevel::Full,
    }
}

/// A level that this side does not know is served as the one that claims least.
pub(super) fn from_level(level: proto::ReportLevel) -> Level {
    match level {
        proto::ReportLevel::Full => Level::Full,
        proto::ReportLevel::Removals => Level::Removals,
        proto::ReportLevel::Counts | proto::ReportLevel::Unspecified => Level::Counts,
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

fn wrap(message: Message) -> AgentMessage {
    AgentMessage { message: Some(message) }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn delta(message: &AgentMessage) -> &proto::Delta {
        let Some(Message::Delta(delta)) = &message.message else { panic!("not a delta") };
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
        let messages = deltas(2, change, &mut next);
        assert_eq!(messages.len(), 1);
        let first = delta(&messages[0].1);
        assert_eq!((first.seq, first.rank, first.cleared, first.removed.len()), (5, 2, true, 1));
        assert!(deltas(2, ViewDelta::default(), &mut next).is_empty());
        let cleared = ViewDelta { cleared: true, ..ViewDelta::default() };
        assert_eq!(deltas(2, cleared, &mut next).len(), 1);
    }

    #[test]
    fn large_changes_are_cut_below_a_mebibyte() {
        let removed: Vec<u64> = (1..=300_000).map(|hash| hash << 33).collect();
        let stored = vec![run(9, 1..=200_000), run(0, 300_000..=300_001)];
        let mut seq = 0;
        let messages = deltas(0, ViewDelta { cleared: true, removed, stored }, || {
            seq += 1;
            seq
        });
        assert!(messages.iter().all(|(_, message)| message.encoded_len() < 1 << 20));
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
        let parts = baseline(1, 7, Vec::new());
        let Some(Message::Baseline(only)) = &parts[0].message else { panic!("not a baseline") };
        assert_eq!((parts.len(), only.part, only.parts, only.seq), (1, 0, 1, 7));
        let parts = baseline(1, 7, vec![run(0, 1..=400_000)]);
        assert_eq!(parts.len(), 4);
        assert!(parts.iter().all(|part| part.encoded_len() < 1 << 20));
    }
}
