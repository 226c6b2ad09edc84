//! Reconciliation, as far as the writer has a part in it: it shows what is claimed, and applies what was found to differ.
//!
//! The claims of one moment are compared with what the agent holds at a later one, while deltas go on. Whatever they change in between
//! is true on both sides: what is found to be claimed and not held is not held now either, or its agent has told so since.

use std::sync::Arc;
use std::time::Duration;

use super::State;
use super::blocks::Access;
use super::claim::Scope;
use crate::accuracy::Reconciliation;
use crate::fleet::{Slot, TargetId};
use crate::key::Unit;
use crate::notice::{EventKind, Notice};
use crate::report::{Delta, SessionId};
use crate::snapshot::Snapshot;
use crate::time::Time;
use crate::update::Done;
use crate::vouched::VouchedClaims;

/// A question for the claims on a target, to be answered from the next snapshot.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) target: TargetId,
    pub(super) unit: Unit,
    pub(super) done: Done<Option<VouchedClaims>>,
}

/// When claims were compared, and what that took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Compared {
    /// When the difference came.
    pub(super) at: Time,
    /// The moment of the claims.
    pub(super) as_of: Time,
    pub(super) bytes: u64,
}

/// What was used so shortly before the claims were compared may be stored by now, and its agent not have heard of it: an engine tells
/// when a step ends, and first tokens travel faster.
const SETTLING: Duration = Duration::from_secs(2);

/// With fewer blocks a baseline is as short as the symbols that every comparison begins with.
const LEAST_BLOCKS: u64 = 64;

impl State {
    /// Shows claims as they are in the snapshot that was published last. Takes time for each run, not for each block.
    pub(super) fn answer_wanted(&mut self, snapshot: &Arc<Snapshot>, now: Time) {
        for Wanted { target, unit, done } in std::mem::take(&mut self.wanted) {
            let vouched = self.roster.rank(target).map(|rank| {
                let (runs, blocks) = self.claims.vouched_runs(rank.slot, unit);
                let (snapshot, incomplete) = (snapshot.clone(), rank.incomplete);
                VouchedClaims { snapshot, runs, blocks, as_of: now, incomplete }
            });
            done.call(vouched);
        }
    }

    /// Whether so much is claimed of what agents can name that finding a difference will be cheaper than a baseline.
    pub(super) fn is_worth_comparing(&self, slot: Slot) -> bool {
        let claimed = self.claims.tokens(slot, Scope::named(Unit::Token));
        claimed >= LEAST_BLOCKS * self.block_size(Unit::Token)
    }

    /// Puts right what was found to differ.
    pub(super) fn apply_reconciled(
        &mut self,
        target: TargetId,
        session: SessionId,
        compared: Compared,
        delta: &Delta,
    ) {
        let Compared { at, as_of, bytes } = compared;
        if !self.admit(target, session, at, delta.seq) {
            return;
        }
        let Some(slot) = self.roster.rank(target).map(|rank| rank.slot) else { return };
        let settled = |access: Time| access + SETTLING < as_of;
        let mut gone = delta.removed.clone();
        gone.retain(|hash| self.claims.last_access(slot, *hash).is_some_and(settled));
        let evicted = self.claims.remove(slot, &gone);
        self.store(target, at, delta.unit.into(), &delta.stored, Access::Unknown);
        if evicted > 0 {
            self.predict_again(target);
        }
        let mut healed = false;
        if let Some(rank) = self.roster.rank_mut(target) {
            rank.incomplete = delta.incomplete;
            let was_whole = rank.unreconciled.is_empty();
            rank.unreconciled.remove(delta.unit);
            healed = !was_whole && rank.unreconciled.is_empty();
            rank.doubtful &= !rank.unreconciled.is_empty();
        }
        self.bound_target(target);
        self.dirty = true;
        let missing: u64 = delta.stored.iter().map(|run| run.hashes.len() as u64).sum();
        let false_claims = gone.len() as u64;
        let tokens = self.tokens_of_blocks(delta.unit, missing + false_claims);
        if let Some(rank) = self.roster.figures_mut(target) {
            let reconciliation = Reconciliation { at, false_claims, missing, tokens, bytes };
            rank.evidence.reconciled(delta.unit, reconciliation);
        }
        self.notices.push(Notice::Reconciled { target, false_claims, missing });
        if healed {
            let detail = format!("reconciled at {}: {false_claims} blocks gone, {missing} found", delta.seq);
            self.happened(target.worker, Some(target.rank), at, EventKind::Resynced, detail.into());
        }
    }
}
