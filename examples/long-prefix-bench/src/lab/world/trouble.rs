//! What goes wrong with engines, and how routers and agents come to know.

use router_core::{FaultKind, ReportedLoad};

use super::super::fault::{AWAY, Blow, Fault, LOADING, PACE};
use super::super::side::{LabError, Seen, as_time};
use super::{BEAT, Event, World};
use crate::engine::Engine;
use crate::sequence::BLOCK_TOKENS;

/// Health checks in a row without an answer after which an engine is unreachable: the default.
const UNANSWERED: u32 = 2;

impl World<'_> {
    /// Something happens to an engine, or to a router.
    pub(super) fn strike(&mut self, whom: usize, blow: Blow) -> Result<(), LabError> {
        match blow {
            Blow::Die => {
                self.at(self.now + AWAY, Event::Blow { whom, blow: Blow::Return });
                self.die(whom)?;
            }
            Blow::Return => {
                let condition = &mut self.conditions[whom];
                (condition.is_down, condition.is_unknown) = (false, true);
                condition.lives += 1;
            }
            Blow::Pause => {
                let ends = self.engines[whom].pause(self.now);
                if let Some(ends) = ends {
                    self.at(ends, Event::PassEnd { engine: whom });
                }
                self.conditions[whom].is_paused = true;
                self.at(ends.unwrap_or(self.now) + LOADING, Event::Blow { whom, blow: Blow::Renew });
            }
            Blow::Renew => {
                self.conditions[whom].is_paused = false;
                self.engines[whom].resume(self.own_caches);
                self.begin_pass(whom);
                self.hear_changes(whom);
            }
            Blow::Slow => {
                self.set_pace(whom, PACE);
                let lasts = Fault::slow_for(self.setting.workers, self.traffic.span);
                self.at(self.now + lasts, Event::Blow { whom, blow: Blow::Recover });
            }
            Blow::Recover => self.set_pace(whom, 1.0),
            Blow::Join => self.join(whom)?,
            Blow::Drain => self.drain(whom)?,
            Blow::LoseRouter => self.lose_router(whom)?,
            Blow::ReplaceRouter => self.replace_router(whom)?,
        }
        Ok(())
    }

    fn set_pace(&mut self, engine: usize, pace: f64) {
        if let Some(ends) = self.engines[engine].slow_down(pace, self.now) {
            self.at(ends, Event::PassEnd { engine });
        }
    }

    /// Answers that have begun break off; what has not is sent elsewhere.
    fn die(&mut self, engine: usize) -> Result<(), LabError> {
        self.conditions[engine].is_down = true;
        self.forget(engine);
        for request in 0..self.in_flight.len() {
            let seen = self.outcome.requests[request];
            let there = |_: &mut _| seen.engine == engine;
            let Some(mut lost) = self.in_flight[request].take_if(there) else { continue };
            let kind = if seen.first.is_some() { FaultKind::Broken } else { FaultKind::Lost };
            lost.failed(kind, as_time(self.now));
            drop(lost);
            if seen.first.is_some() {
                self.fail(request);
            } else {
                self.tried[request].push(engine);
                self.dispatch(request)?;
            }
        }
        Ok(())
    }

    /// What an engine did and held is gone, and nobody tells of it.
    pub(super) fn forget(&mut self, engine: usize) {
        self.engines[engine].die(self.own_caches);
        self.untold[engine].clear();
        self.engines[engine].memory().borrow_mut().take_changes();
    }

    /// An engine's agent tells every router what has changed in its cache, unless it has not heard of it.
    pub(super) fn report(&mut self, engine: usize) -> Result<(), LabError> {
        let changes = std::mem::take(&mut self.untold[engine]);
        let lost = Fault::lost_share(self.setting.fault);
        if lost > 0.0 && self.rng.f64() < lost && !changes.iter().any(|change| change.cleared) {
            self.sides.iter_mut().flatten().for_each(|side| side.lost(engine));
            return Ok(());
        }
        self.sides.iter_mut().flatten().try_for_each(|side| side.changed(engine, &changes, self.now))
    }

    /// Every agent tells every router how its engine is.
    pub(super) fn beat(&mut self) -> Result<(), LabError> {
        for engine in self.present().collect::<Vec<_>>() {
            let (is_down, is_paused) = (self.conditions[engine].is_down, self.conditions[engine].is_paused);
            let load = self.load_of(&self.engines[engine]);
            let is_unknown = std::mem::take(&mut self.conditions[engine].is_unknown);
            let life = self.conditions[engine].lives + 1;
            for side in self.sides.iter_mut().flatten() {
                if is_unknown {
                    side.reborn(engine, life, self.now)?;
                }
                side.seen(engine, Seen { load, is_down, is_paused }, self.now)?;
            }
        }
        self.sides.iter_mut().flatten().for_each(|side| side.turn(self.now));
        if !self.is_over() {
            self.at(self.now + BEAT, Event::Beat);
        }
        Ok(())
    }

    fn load_of(&self, engine: &Engine) -> ReportedLoad {
        let (waiting, running) = engine.requests();
        ReportedLoad {
            running_requests: running as u32,
            waiting_requests: waiting as u32,
            waiting_uncached_tokens: engine.queued_tokens() as u64,
            used_tokens: (engine.memory().borrow().held_blocks() * BLOCK_TOKENS) as u64,
            capacity_tokens: self.setting.capacity_tokens as u64,
        }
    }

    /// Every router checks every engine.
    pub(super) fn check_engines(&mut self) -> Result<(), LabError> {
        for engine in self.present().collect::<Vec<_>>() {
            let condition = &mut self.conditions[engine];
            let was_reachable = condition.unanswered < UNANSWERED;
            condition.unanswered = if condition.is_down { condition.unanswered + 1 } else { 0 };
            let reachable = condition.unanswered < UNANSWERED;
            let finds_out = condition.is_unknown && !self.contestant.agents;
            condition.is_unknown &= !finds_out;
            let life = condition.lives + 1;
            for side in self.sides.iter_mut().flatten() {
                if finds_out {
                    side.reborn(engine, life, self.now)?;
                }
                if reachable != was_reachable {
                    side.checked(engine, reachable, self.now)?;
                }
            }
        }
        self.sides.iter_mut().flatten().for_each(|side| side.turn(self.now));
        Ok(())
    }
}
