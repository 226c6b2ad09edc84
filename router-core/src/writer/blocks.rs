//! What the agents report of blocks: deltas in sequence, baselines, and digests to compare with.

use std::sync::Arc;

use rustc_hash::FxHashSet;

use super::State;
use super::claim::Source;
use super::gate::Verdict;
use crate::accuracy::{Divergence, DivergenceSource};
use crate::digest::SetDigest;
use crate::fleet::TargetId;
use crate::index::Origin;
use crate::key::{BlockHash, BlockKind, Unit};
use crate::notice::{EventKind, Notice};
use crate::report::{BlockRun, Delta, SessionId, Units};
use crate::time::Time;

/// What storing does to the time of blocks that are claimed already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// They have just been used.
    Now,
    /// Nothing: that they are there says nothing about when they were used.
    Unknown,
}

impl State {
    pub(super) fn apply_delta(&mut self, target: TargetId, session: SessionId, at: Time, delta: &Delta) {
        if self.admit(target, session, at, delta.seq) {
            self.apply_changes(target, at, delta);
        }
    }

    /// Whether a delta is to be applied. After a gap that an agent can help to find it is, and the rank doubted meanwhile: every
    /// delta is true by itself.
    pub(super) fn admit(&mut self, target: TargetId, session: SessionId, at: Time, seq: u64) -> bool {
        let heals = self.roster.get(target.worker).and_then(|member| member.session);
        let heals = heals.filter(|session| session.reconciles).map(|session| session.units);
        let Some(rank) = self.roster.figures_mut(target) else { return false };
        let expected = match rank.gate.pass(seq) {
            Verdict::Apply => return true,
            Verdict::Repeat | Verdict::Closed => return false,
            Verdict::Gap { expected } => expected,
        };
        if let Some(rank) = self.roster.rank_mut(target) {
            rank.doubtful = true;
            if let Some(units) = heals {
                rank.gate.open(seq);
                rank.unreconciled = units;
            }
        }
        self.dirty = true;
        let reason: Arc<str> = format!("delta {seq} came where {expected} was due").into();
        let (rank, why) = (target.rank, reason.clone());
        self.notices.push(match heals {
            Some(_) => Notice::ReconcileNeeded { session, rank, reason: why },
            None => Notice::ResyncNeeded { session, rank, reason: why },
        });
        self.happened(target.worker, Some(target.rank), at, EventKind::Gap, reason);
        heals.is_some()
    }

    fn apply_changes(&mut self, target: TargetId, at: Time, delta: &Delta) {
        if delta.cleared {
            self.roster.flush(target);
            if let Some(rank) = self.roster.rank_mut(target) {
                // Whatever had been lost before was about a cache that is empty now.
                rank.doubtful = false;
            }
            let detail = Arc::from("the engine cleared its cache");
            self.happened(target.worker, Some(target.rank), at, EventKind::ClaimsVoided, detail);
        }
        let Some(slot) = self.roster.rank(target).map(|rank| rank.slot) else { return };
        let evicted = self.claims.remove(slot, &delta.removed);
        if evicted > 0 || delta.cleared {
            self.predict_again(target);
        }
        if let Some(rank) = self.roster.figures_mut(target) {
            rank.pressure.evicted(evicted);
            rank.incomplete = delta.incomplete;
        }
        self.store(target, at, delta.unit.into(), &delta.stored, Access::Now);
        self.bound_target(target);
        self.dirty = true;
    }

    /// Brings a target's claims on the blocks that its agent can name to what the agent says it holds. Everything else stays:
    /// claims on other blocks, access times, and what is predicted and on its way there.
    pub(super) fn apply_baseline(
        &mut self,
        target: TargetId,
        at: Time,
        unit: Unit,
        seq: u64,
        stored: &[BlockRun],
    ) {
        let Some(slot) = self.roster.rank(target).map(|rank| rank.slot) else { return };
        self.claims.locate_blocks();
        let told: FxHashSet<BlockHash> = stored.iter().flat_map(|run| run.hashes.iter().copied()).collect();
        let mut gone = self.claims.vouched(slot, unit);
        gone.retain(|hash| !told.contains(hash));
        self.claims.remove(slot, &gone);
        self.store(target, at, unit.into(), stored, Access::Unknown);
        self.predict_again(target);
        if let Some(rank) = self.roster.rank_mut(target) {
            rank.gate.open(seq);
            rank.doubtful = false;
            rank.unreconciled = Units::default();
            rank.acked = None;
        }
        self.bound_target(target);
        self.dirty = true;
        let detail = format!("baseline at {seq}: {} runs, {} blocks gone", stored.len(), gone.len()).into();
        self.happened(target.worker, Some(target.rank), at, EventKind::Resynced, detail);
    }

    /// Claims what is on its way to a target: what is gone of it, and what stood below that, will be stored again.
    pub(super) fn predict_again(&mut self, target: TargetId) {
        let Some((slot, tenure)) = self.roster.rank(target).map(|rank| (rank.slot, rank.tenure)) else {
            return;
        };
        for (ordinal, decision) in self.open.get(&target).into_iter().flatten() {
            if decision.tenure == tenure {
                let source = Source::Predicted { by: *ordinal };
                let (kind, hashes) = (decision.key.kind(), decision.key.hashes());
                self.claims.claim(slot, kind, (hashes, Origin::Derived), decision.decided_at, source);
            }
        }
    }

    /// Claims runs that an agent vouches for.
    pub(super) fn store(
        &mut self,
        target: TargetId,
        at: Time,
        kind: BlockKind,
        runs: &[BlockRun],
        access: Access,
    ) {
        let Some(slot) = self.roster.rank(target).map(|rank| rank.slot) else { return };
        let (mut stored, mut unknown) = (0, 0);
        // Runs that go on where the one before ended are one, however finely they were cut.
        for runs in
            runs.chunk_by(|run, next| next.parent.is_some() && next.parent == run.hashes.last().copied())
        {
            let own = || runs.iter().flat_map(|run| run.hashes.iter().copied());
            let key = match runs[0].parent {
                None => Some(own().collect()),
                Some(parent) => self.claims.key_to(slot, parent).map(|mut key| {
                    key.extend(own());
                    key
                }),
            };
            // A run under an unknown parent says nothing about where it stands.
            let Some(key) = key else {
                unknown += runs.len() as u64;
                continue;
            };
            let known = key.last().and_then(|last| self.claims.last_access(slot, *last));
            let accessed = known.filter(|_| access == Access::Unknown).unwrap_or(at);
            stored +=
                self.claims.claim(slot, kind, (&key, Origin::Reported), accessed, Source::Confirmed { at });
        }
        if unknown > 0 {
            self.notices.push(Notice::UnknownParents { target, runs: unknown });
        }
        if let Some(rank) = self.roster.figures_mut(target) {
            rank.pressure.stored(stored);
        }
    }

    pub(super) fn compare(
        &mut self,
        target: TargetId,
        at: Time,
        (unit, seq): (Unit, u64),
        digest: &SetDigest,
    ) {
        let Some(rank) = self.roster.rank(target).filter(|rank| rank.gate.applied() == Some(seq)) else {
            return;
        };
        let blocks = digest.difference(&self.claims.digest(rank.slot, unit));
        let tokens = self.tokens_of_blocks(unit, blocks);
        if let Some(rank) = self.roster.figures_mut(target) {
            rank.evidence.found(unit, Divergence { tokens, source: DivergenceSource::Fingerprint, at });
            self.dirty = true;
        }
    }

    /// Tokens in so many blocks; an estimate for text.
    pub(super) fn tokens_of_blocks(&self, unit: Unit, blocks: u64) -> u64 {
        let units = blocks * self.block_size(unit);
        match unit {
            Unit::Token => units,
            Unit::Text => (units as f64 / self.text_bytes_per_token) as u64,
        }
    }
}
