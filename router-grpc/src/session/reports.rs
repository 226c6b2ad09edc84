//! Turns an agent's messages into reports for the writer, and holds them to the contract.

use std::collections::HashMap;

use espalier_proto::agent_message::Message;
use espalier_proto::{AgentMessage, Baseline, StateReport, WorkerState};
use router_core::key::Unit;
use router_core::{AgentReport, BlockRun, Incarnation, ReportLevel};
use tonic::Status;

use super::convert;
use super::opening::Opened;

/// What a session has said so far, as far as later messages depend on it.
#[derive(Debug)]
pub(super) struct Reports {
    opened: Opened,
    /// Baselines of which the last part is missing, by rank.
    assembling: HashMap<u32, Assembly>,
    /// Blocks that the baselines under way may have together: no more than the whole index.
    most_blocks: u64,
}

#[derive(Debug)]
struct Assembly {
    seq: u64,
    parts: u32,
    next: u32,
    blocks: u64,
    stored: Vec<BlockRun>,
}

impl Reports {
    pub(super) fn new(opened: Opened, most_blocks: u64) -> Self {
        Self { opened, assembling: HashMap::new(), most_blocks }
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
                self.check_blocks(delta.rank)?;
                if self.assembling.contains_key(&delta.rank) {
                    return Err(Status::invalid_argument(
                        "a Delta between the parts of a Baseline of its rank",
                    ));
                }
                let rank = delta.rank;
                AgentReport::Delta { rank, delta: convert::delta(delta)? }
            }
            Message::Baseline(baseline) => match self.assemble(&baseline)? {
                Some(report) => report,
                None => AgentReport::Alive,
            },
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
                self.check_blocks(fingerprint.rank)?;
                AgentReport::Fingerprint {
                    rank: fingerprint.rank,
                    seq: fingerprint.seq,
                    digest: convert::digest(&fingerprint)?,
                }
            }
        };
        Ok(vec![report])
    }

    fn assemble(&mut self, part: &Baseline) -> Result<Option<AgentReport>, Status> {
        self.check_blocks(part.rank)?;
        let invalid = |what: String| Err(Status::invalid_argument(what));
        if part.parts == 0 || part.part >= part.parts {
            return invalid(format!("Baseline part {} of {}: parts count from 0", part.part, part.parts));
        }
        let stored = convert::baseline_runs(part)?;
        if part.part == 0 {
            let fresh = Assembly { seq: part.seq, parts: part.parts, next: 0, blocks: 0, stored: Vec::new() };
            self.assembling.insert(part.rank, fresh);
        }
        let Some(assembly) = self.assembling.get_mut(&part.rank) else {
            return invalid(format!("Baseline part {} came before part 0", part.part));
        };
        if (part.part, part.parts, part.seq) != (assembly.next, assembly.parts, assembly.seq) {
            return invalid(format!("Baseline part {} came where part {} was due", part.part, assembly.next));
        }
        assembly.next += 1;
        assembly.blocks += stored.iter().map(|run| run.hashes.len() as u64).sum::<u64>();
        assembly.stored.extend(stored);
        let complete = assembly.next == assembly.parts;
        let blocks: u64 = self.assembling.values().map(|assembly| assembly.blocks).sum();
        if blocks > self.most_blocks {
            return Err(Status::resource_exhausted(format!(
                "baselines of more than {} blocks together; raise --max-blocks of the router",
                self.most_blocks
            )));
        }
        if !complete {
            return Ok(None);
        }
        let done = self.assembling.remove(&part.rank);
        Ok(done.map(|done| AgentReport::Baseline {
            rank: part.rank,
            unit: Unit::Token,
            seq: done.seq,
            stored: done.stored,
            incomplete: part.incomplete,
        }))
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
        let ranks = self.opened.dp_size;
        if rank < ranks {
            return Ok(());
        }
        Err(Status::invalid_argument(format!("rank {rank} does not exist: Hello said dp_size {ranks}")))
    }

    fn check_blocks(&self, rank: u32) -> Result<(), Status> {
        self.check_rank(rank)?;
        if self.opened.hashes && self.opened.level > ReportLevel::Counts {
            return Ok(());
        }
        Err(Status::invalid_argument(
            "this session reports counts: its key space was not accepted, or no blocks were asked for",
        ))
    }
}
