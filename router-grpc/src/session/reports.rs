//! Turns an agent's messages into reports for the writer, and holds them to the contract.

use std::collections::HashMap;

use espalier_proto::agent_message::Message;
use espalier_proto::{AgentMessage, Baseline, StateReport, WorkerState};
use router_core::key::Unit;
use router_core::{AgentReport, BlockRun, Incarnation, ReportLevel};
use tonic::Status;

use super::convert;
use super::opening::Bounds;

/// What a session has said so far, as far as later messages depend on it.
#[derive(Debug)]
pub(super) struct Reports {
    bounds: Bounds,
    /// Baselines of which the last part is missing, by rank; the last part of the last unit.
    assembling: HashMap<u32, Assembly>,
    /// Blocks that the baselines under way may have together: no more than the whole index.
    most_blocks: u64,
}

#[derive(Debug)]
struct Assembly {
    seq: u64,
    unit: Unit,
    parts: u32,
    next: u32,
    blocks: u64,
    stored: Vec<BlockRun>,
    /// Of the units before this one.
    complete: Vec<(Unit, Vec<BlockRun>)>,
}

impl Reports {
    pub(super) fn new(bounds: Bounds, most_blocks: u64) -> Self {
        Self { bounds, assembling: HashMap::new(), most_blocks }
    }

    /// What a message says; an error ends the session.
    pub(super) fn take(&mut self, message: AgentMessage) -> Result<Vec<AgentReport>, Status> {
        let Some(message) = message.message else {
            return Err(Status::invalid_argument("a message without content"));
        };
        let report = match message {
            Message::Hello(_) | Message::Accept(_) => {
                return Err(Status::invalid_argument("Hello and Accept must not be sent again"));
            }
            Message::Delta(delta) => {
                self.check_blocks(delta.rank, convert::named_unit(delta.unit())?)?;
                if self.assembling.contains_key(&delta.rank) {
                    return Err(Status::invalid_argument(
                        "a Delta between the parts of a Baseline of its rank",
                    ));
                }
                let rank = delta.rank;
                AgentReport::Delta { rank, delta: convert::delta(delta)? }
            }
            // It is no report.
            Message::MoreSymbols(more) => {
                self.check_blocks(more.rank, convert::named_unit(more.unit())?)?;
                AgentReport::Alive
            }
            Message::Baseline(baseline) => return self.assemble(&baseline),
            Message::Counts(counts) => {
                self.check_rank(counts.rank)?;
                AgentReport::Counts {
                    rank: counts.rank,
                    evicted_tokens_total: counts.evicted_tokens_total,
                    cached_tokens: counts.cached_tokens,
                }
            }
            Message::Load(report) => {
                self.check_rank(report.rank)?;
                let load =
                    report.load.ok_or_else(|| Status::invalid_argument("LoadReport.load is missing"))?;
                AgentReport::Load { rank: report.rank, load: convert::load(&load) }
            }
            Message::State(state) => return self.state(&state),
            Message::SetFingerprint(fingerprint) => {
                let unit = convert::named_unit(fingerprint.unit())?;
                self.check_blocks(fingerprint.rank, unit)?;
                AgentReport::Fingerprint {
                    rank: fingerprint.rank,
                    unit,
                    seq: fingerprint.seq,
                    digest: convert::digest(&fingerprint)?,
                }
            }
        };
        Ok(vec![report])
    }

    /// Takes a part of a baseline. The units of a session have one baseline: it is in force as a whole or not at all.
    fn assemble(&mut self, part: &Baseline) -> Result<Vec<AgentReport>, Status> {
        let unit = convert::named_unit(part.unit())?;
        self.check_blocks(part.rank, unit)?;
        let invalid = |what: String| Err(Status::invalid_argument(what));
        if part.parts == 0 || part.part >= part.parts {
            return invalid(format!("Baseline part {} of {}: parts count from 0", part.part, part.parts));
        }
        let stored = convert::baseline_runs(part)?;
        if part.part == 0 {
            let begun = self.assembling.remove(&part.rank).filter(|begun| begun.seq == part.seq);
            let next = Assembly::after(begun, unit, part);
            self.assembling.insert(part.rank, next);
        }
        let Some(assembly) = self.assembling.get_mut(&part.rank) else {
            return invalid(format!("Baseline part {} came before part 0", part.part));
        };
        if (part.part, part.parts, part.seq, unit)
            != (assembly.next, assembly.parts, assembly.seq, assembly.unit)
        {
            return invalid(format!("Baseline part {} came where part {} was due", part.part, assembly.next));
        }
        assembly.next += 1;
        assembly.blocks += stored.iter().map(|run| run.hashes.len() as u64).sum::<u64>();
        assembly.stored.extend(stored);
        let is_last = assembly.next == assembly.parts
            && assembly.complete.len() + 1 == self.bounds.units.iter().count();
        let blocks: u64 = self.assembling.values().map(|assembly| assembly.blocks).sum();
        if blocks > self.most_blocks {
            return Err(Status::resource_exhausted(format!(
                "baselines of more than {} blocks together; raise --max-blocks of the router",
                self.most_blocks
            )));
        }
        let Some(done) = is_last.then(|| self.assembling.remove(&part.rank)).flatten() else {
            return Ok(vec![AgentReport::Alive]);
        };
        let (rank, seq, incomplete) = (part.rank, done.seq, part.incomplete);
        let units = done.complete.into_iter().chain([(done.unit, done.stored)]);
        let report = |(unit, stored)| AgentReport::Baseline { rank, unit, seq, stored, incomplete };
        Ok(units.map(report).collect())
    }

    fn state(&mut self, state: &StateReport) -> Result<Vec<AgentReport>, Status> {
        let mut reports = Vec::new();
        if state.incarnation > 0 {
            self.assembling.clear();
            reports.push(AgentReport::NewIncarnation(Incarnation(state.incarnation)));
        }
        let (updating, reachable) = match state.state() {
            WorkerState::Ready => (false, true),
            WorkerState::Updating | WorkerState::Draining => (true, true),
            WorkerState::Unreachable => (false, false),
            WorkerState::Unspecified => return Err(Status::invalid_argument("StateReport.state is missing")),
        };
        let reason = state.reason.chars().take(200).collect::<String>().into();
        reports.push(AgentReport::State { updating, reachable, reason });
        Ok(reports)
    }

    fn check_rank(&self, rank: u32) -> Result<(), Status> {
        let ranks = self.bounds.dp_size;
        if rank < ranks {
            return Ok(());
        }
        Err(Status::invalid_argument(format!("rank {rank} does not exist: Hello said dp_size {ranks}")))
    }

    fn check_blocks(&self, rank: u32, unit: Unit) -> Result<(), Status> {
        self.check_rank(rank)?;
        if self.bounds.units.contains(unit) && self.bounds.level > ReportLevel::Counts {
            return Ok(());
        }
        Err(Status::invalid_argument(
            "this session reports no blocks of this unit: its key space was not accepted, or no blocks were asked for",
        ))
    }
}

impl Assembly {
    /// What a first part begins: the next unit of what has `begun`, or a new baseline.
    fn after(begun: Option<Self>, unit: Unit, part: &Baseline) -> Self {
        let mut blocks = 0;
        let mut complete = Vec::new();
        // A unit that was left off, or that comes again, begins everything anew.
        if let Some(begun) = begun.filter(|begun| begun.next == begun.parts) {
            complete = begun.complete;
            complete.push((begun.unit, begun.stored));
            match complete.iter().any(|(known, _)| *known == unit) {
                true => complete.clear(),
                false => blocks = begun.blocks,
            }
        }
        Self { seq: part.seq, unit, parts: part.parts, next: 0, blocks, stored: Vec::new(), complete }
    }
}

#[cfg(test)]
mod tests {
    use espalier_proto::{BlockRun as WireRun, KeyUnit};
    use router_core::Units;

    use super::*;

    fn reports(units: &[Unit]) -> Reports {
        let units: Units = units.iter().copied().collect();
        Reports::new(Bounds { dp_size: 1, units, level: ReportLevel::Full }, 1_000)
    }

    fn part(unit: KeyUnit, seq: u64, part: u32, parts: u32) -> AgentMessage {
        let stored = vec![WireRun { parent: 0, hashes: vec![1 + seq] }];
        let unit = unit.into();
        let baseline = Baseline { seq, part, parts, stored, unit, ..Baseline::default() };
        AgentMessage { message: Some(Message::Baseline(baseline)) }
    }

    /// The units of the baselines that a message puts in force.
    fn in_force(reports: &mut Reports, message: AgentMessage) -> Vec<(Unit, u64, usize)> {
        let taken = reports.take(message).unwrap().into_iter();
        let baseline = |report| match report {
            AgentReport::Baseline { unit, seq, stored, .. } => Some((unit, seq, stored.len())),
            _ => None,
        };
        taken.filter_map(baseline).collect()
    }

    #[test]
    fn baselines_of_two_units_are_in_force_together() {
        use KeyUnit::{Text, Token};
        let mut reports = reports(&[Unit::Token, Unit::Text]);
        assert_eq!(in_force(&mut reports, part(Token, 1, 0, 2)), []);
        assert_eq!(in_force(&mut reports, part(Token, 1, 1, 2)), []);
        let both = [(Unit::Token, 1, 2), (Unit::Text, 1, 1)];
        assert_eq!(in_force(&mut reports, part(Text, 1, 0, 1)), both);
        // One that is begun anew, with another number or with a unit that was there, has nothing of the one before.
        assert_eq!(in_force(&mut reports, part(Text, 2, 0, 1)), []);
        assert_eq!(in_force(&mut reports, part(Text, 3, 0, 1)), []);
        assert_eq!(in_force(&mut reports, part(Text, 3, 0, 1)), []);
        assert_eq!(in_force(&mut reports, part(Token, 3, 0, 1)), [(Unit::Text, 3, 1), (Unit::Token, 3, 1)]);
        // Neither a part of the other unit in between nor a delta belongs there.
        in_force(&mut reports, part(Token, 4, 0, 2));
        assert!(reports.take(part(Text, 4, 1, 2)).is_err());
    }

    #[test]
    fn a_unit_that_was_not_agreed_on_is_refused() {
        let mut reports = reports(&[Unit::Token]);
        assert!(reports.take(part(KeyUnit::Text, 1, 0, 1)).is_err());
        assert!(reports.take(part(KeyUnit::Unspecified, 1, 0, 1)).is_err());
        assert_eq!(in_force(&mut reports, part(KeyUnit::Token, 1, 0, 1)), [(Unit::Token, 1, 1)]);
    }
}
