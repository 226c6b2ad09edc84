//! What a coordinator says, in this crate's types.

use espalier_proto as proto;
use espalier_proto::coordinator_message::Message;
use router_core::key::Unit;

use crate::config::Level;

/// One message of a coordinator.
#[derive(Debug)]
pub(in crate::session) enum Incoming {
    Welcome(Welcome),
    /// Everything of the rank up to this number has been applied.
    Ack {
        rank: u32,
        seq: u64,
    },
    /// The rank must be told anew.
    Resync {
        rank: u32,
        reason: String,
    },
    Level(Level),
    Symbols(SymbolBatch),
    Predicted(PredictedPrompts),
    /// From a newer coordinator.
    Unknown,
}

/// Symbols of the blocks that the coordinator claims for a rank.
#[derive(Clone, Debug)]
pub(in crate::session) struct SymbolBatch {
    pub(in crate::session) rank: u32,
    pub(in crate::session) unit: Unit,
    pub(in crate::session) round: u64,
    /// Blocks claimed.
    pub(in crate::session) blocks: u64,
    /// Number of the first symbol.
    pub(in crate::session) first: u32,
    pub(in crate::session) bytes: Vec<u8>,
}

/// What the coordinator claims by its own routing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::session) struct PredictedPrompts {
    pub(in crate::session) rank: u32,
    pub(in crate::session) unit: Unit,
    /// The last block of each.
    pub(in crate::session) last: Vec<u64>,
}

/// The answer to Hello, not yet checked.
#[derive(Clone, Debug)]
pub(in crate::session) struct Welcome {
    pub(in crate::session) lease_ms: u32,
    pub(in crate::session) batch_interval_ms: u32,
    pub(in crate::session) level: Level,
    pub(in crate::session) key_spaces: Vec<WantedSpace>,
    pub(in crate::session) resume: Vec<ResumePoint>,
    /// Ranks that begin with a delta, to be compared.
    pub(in crate::session) reconcile: Vec<u32>,
}

/// A key space that a coordinator wants reports in.
#[derive(Clone, Debug)]
pub(in crate::session) struct WantedSpace {
    /// `None` if it is not known here.
    pub(in crate::session) unit: Option<Unit>,
    pub(in crate::session) block_size: u32,
    pub(in crate::session) scheme: String,
    pub(in crate::session) seed: u64,
    pub(in crate::session) fingerprint: u64,
}

/// A place in one rank's sequence, and the key space of what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::session) struct ResumePoint {
    pub(in crate::session) rank: u32,
    pub(in crate::session) acked_seq: u64,
    pub(in crate::session) fingerprint: u64,
}

pub(super) fn incoming(message: Option<Message>) -> Incoming {
    match message {
        Some(Message::Welcome(said)) => Incoming::Welcome(welcome(said)),
        Some(Message::Ack(ack)) => Incoming::Ack { rank: ack.rank, seq: ack.seq },
        Some(Message::Resync(resync)) => Incoming::Resync { rank: resync.rank, reason: resync.reason },
        Some(Message::SetReportLevel(set)) => Incoming::Level(from_level(set.level())),
        Some(Message::Symbols(symbols)) => match unit(symbols.unit()) {
            Some(unit) => Incoming::Symbols(SymbolBatch {
                rank: symbols.rank,
                unit,
                round: symbols.round,
                blocks: symbols.blocks,
                first: symbols.first,
                bytes: symbols.symbols,
            }),
            None => Incoming::Unknown,
        },
        Some(Message::Predicted(predicted)) => match unit(predicted.unit()) {
            Some(unit) => {
                Incoming::Predicted(PredictedPrompts { rank: predicted.rank, unit, last: predicted.last })
            }
            None => Incoming::Unknown,
        },
        None => Incoming::Unknown,
    }
}

fn welcome(said: proto::Welcome) -> Welcome {
    let level = from_level(said.level());
    let point = |point: proto::ResumePoint| ResumePoint {
        rank: point.rank,
        acked_seq: point.acked_seq,
        fingerprint: point.key_space_fingerprint,
    };
    Welcome {
        lease_ms: said.lease_ms,
        batch_interval_ms: said.batch_interval_ms,
        level,
        key_spaces: said.key_spaces.into_iter().map(wanted_space).collect(),
        resume: said.resume.into_iter().map(point).collect(),
        reconcile: said.reconcile,
    }
}

fn wanted_space(said: proto::KeySpace) -> WantedSpace {
    WantedSpace {
        unit: unit(said.unit()),
        block_size: said.block_size,
        scheme: said.scheme,
        seed: said.seed,
        fingerprint: said.fingerprint,
    }
}

fn unit(said: proto::KeyUnit) -> Option<Unit> {
    match said {
        proto::KeyUnit::Token => Some(Unit::Token),
        proto::KeyUnit::Text => Some(Unit::Text),
        proto::KeyUnit::Unspecified => None,
    }
}

/// A level that this side does not know is served as the one that claims least.
fn from_level(level: proto::ReportLevel) -> Level {
    match level {
        proto::ReportLevel::Full => Level::Full,
        proto::ReportLevel::Removals => Level::Removals,
        proto::ReportLevel::Counts | proto::ReportLevel::Unspecified => Level::Counts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_side_does_not_know_claims_least() {
        let set = proto::SetReportLevel { level: 99 };
        let Incoming::Level(level) = incoming(Some(Message::SetReportLevel(set))) else { panic!("a level") };
        assert_eq!(level, Level::Counts);
        let space = proto::KeySpace { unit: 99, ..proto::KeySpace::default() };
        let said = proto::Welcome { key_spaces: vec![space], ..proto::Welcome::default() };
        let Incoming::Welcome(welcome) = incoming(Some(Message::Welcome(said))) else { panic!("a welcome") };
        assert_eq!((welcome.key_spaces[0].unit, welcome.level), (None, Level::Counts));
        assert!(matches!(incoming(None), Incoming::Unknown));
    }
}
