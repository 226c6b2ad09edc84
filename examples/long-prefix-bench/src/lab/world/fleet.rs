//! Engines come and go, and sessions find theirs again or do not.

use super::super::outcome::Returned;
use super::super::side::LabError;
use super::{Membership, World};
use crate::sequence::BLOCK_TOKENS;

impl World<'_> {
    /// Engines that are in the fleet.
    pub(super) fn present(&self) -> impl Iterator<Item = usize> + '_ {
        let is_there = |engine: &usize| {
            matches!(self.conditions[*engine].membership, Membership::Member | Membership::Leaving)
        };
        (0..self.engines.len()).filter(is_there)
    }

    /// An engine joins, with an empty cache.
    pub(super) fn join(&mut self, engine: usize) -> Result<(), LabError> {
        let (met, now) = (self.met(engine), self.now);
        let condition = &mut self.conditions[engine];
        (condition.membership, condition.stays.0) = (Membership::Member, now);
        self.sides.iter_mut().flatten().try_for_each(|side| side.join(met.clone(), now))
    }

    /// An engine gets nothing new.
    pub(super) fn drain(&mut self, engine: usize) -> Result<(), LabError> {
        self.conditions[engine].membership = Membership::Leaving;
        self.sides.iter_mut().flatten().try_for_each(|side| side.drain(engine, self.now))
    }

    /// Engines leave that are to, once they have nothing to do.
    pub(super) fn release_drained(&mut self) -> Result<(), LabError> {
        for engine in 0..self.engines.len() {
            let is_leaving = self.conditions[engine].membership == Membership::Leaving;
            if !is_leaving || self.engines[engine].requests() != (0, 0) {
                continue;
            }
            let condition = &mut self.conditions[engine];
            (condition.membership, condition.stays.1) = (Membership::Left, self.now);
            self.forget(engine);
            self.sides.iter_mut().flatten().try_for_each(|side| side.remove(engine, self.now))?;
        }
        Ok(())
    }

    /// What the engines of a session's last turn hold of its next.
    pub(super) fn note_return(&mut self, request: usize) {
        let session = self.traffic.session_of[request] as usize;
        let Some(before) = self.asking[session].turn.checked_sub(1) else { return };
        let takes_requests = |engine: &usize| {
            let condition = &self.conditions[*engine];
            condition.membership == Membership::Member && !condition.is_down && !condition.is_paused
        };
        let turn = &self.traffic.sessions[session].turns[before];
        let engines = turn.requests.iter().map(|before| self.outcome.requests[*before as usize].engine);
        let held = engines.filter(takes_requests).map(|engine| self.cached_tokens(engine, request));
        let held_tokens = held.max().unwrap_or(0);
        self.outcome.requests[request].returned = Some(Returned { held_tokens, here_tokens: 0 });
    }

    /// What the engine holds that it goes to.
    pub(super) fn note_where(&mut self, request: usize, engine: usize) {
        let here_tokens = self.cached_tokens(engine, request);
        if let Some(returned) = &mut self.outcome.requests[request].returned {
            returned.here_tokens = here_tokens;
        }
    }

    fn cached_tokens(&self, engine: usize, request: usize) -> usize {
        self.engines[engine].memory().borrow().cached_of(&self.traffic.requests[request]) * BLOCK_TOKENS
    }
}
