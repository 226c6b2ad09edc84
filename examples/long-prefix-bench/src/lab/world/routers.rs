//! Several routers: which one a request goes to, what becomes of it when that one dies, and whether the others would have decided alike.

use super::super::outcome::{Clients, Poll};
use super::super::side::{LabError, Met, Side};
use super::World;

/// Of so many requests all routers are asked about one.
const POLLED: usize = 8;

impl World<'_> {
    /// The router that a client sends a request to now, if any is there.
    fn router_for(&self, request: usize) -> Option<usize> {
        let living: Vec<usize> =
            (0..self.sides.len()).filter(|router| self.sides[*router].is_some()).collect();
        let session = self.traffic.session_of[request] as usize;
        match self.setting.clients {
            Clients::BySession => {
                let (usual, turn) = (session % self.sides.len(), session / self.sides.len());
                let instead = living.get(turn % living.len().max(1)).copied();
                living.contains(&usual).then_some(usual).or(instead)
            }
            Clients::AtRandom => {
                let seed = self.setting.seed ^ (request as u64 + 1) << 20;
                fastrand::Rng::with_seed(seed).choice(living)
            }
        }
    }

    /// A request comes to a router, which sends it on.
    pub(super) fn reach_router(&mut self, request: usize) -> Result<(), LabError> {
        match self.router_for(request) {
            Some(router) => {
                self.router_of[request] = router;
                self.dispatch(request)
            }
            None => {
                self.fail(request);
                Ok(())
            }
        }
    }

    /// Asks the other routers where they would send a request that one of them sends to an engine. Nothing changes by it.
    pub(super) fn poll(&mut self, request: usize, engine: usize) {
        let living = self.sides.iter().flatten().count();
        if living < 2 || !request.is_multiple_of(POLLED) || !self.tried[request].is_empty() {
            return;
        }
        let session = self.traffic.session_of[request] as usize;
        let mut agreed = true;
        for router in (0..self.sides.len()).filter(|router| *router != self.router_of[request]) {
            self.tell_owner(router, session);
            let only = self.home(router, request);
            if let Some(side) = &mut self.sides[router] {
                let prompt = self.traffic.requests[request].prompt();
                agreed &= side.would_choose(prompt, only, self.now) == Some(engine);
            }
        }
        self.outcome.polls.push(Poll { request, agreed });
    }

    /// A router dies: answers that have begun break off, what has not is sent again to another one. Engines see their connections close.
    pub(super) fn lose_router(&mut self, router: usize) -> Result<(), LabError> {
        self.sides[router] = None;
        self.homes[router].fill(None);
        let its_own = |request: &usize| self.router_of[*request] == router;
        let in_flight = |request: &usize| self.in_flight[*request].is_some();
        let lost: Vec<usize> = (0..self.in_flight.len()).filter(its_own).filter(in_flight).collect();
        for request in &lost {
            self.in_flight[*request] = None;
            self.abort(*request);
        }
        for request in lost {
            if self.outcome.requests[request].first.is_some() {
                self.fail(request);
            } else {
                // Another router knows nothing of earlier attempts.
                self.tried[request].clear();
                self.reach_router(request)?;
            }
        }
        Ok(())
    }

    /// Another router is in its place: it meets the engines as they are, and knows what their agents tell.
    pub(super) fn replace_router(&mut self, router: usize) -> Result<(), LabError> {
        // What agents are about to tell the others is in what they tell it.
        for engine in 0..self.engines.len() {
            self.report(engine)?;
        }
        let seed = self.setting.seed ^ (router as u64) << 32 ^ 1 << 48;
        let (capacity_tokens, most_blocks) = (self.setting.capacity_tokens as u64, self.setting.most_blocks);
        let routers = self.sides.len();
        let mut side = Side::new(self.contestant, (0, routers), capacity_tokens, most_blocks, seed)?;
        for engine in self.present().collect::<Vec<_>>() {
            side.join(self.met(engine), self.now)?;
        }
        self.sides[router] = Some(side);
        Ok(())
    }

    /// An engine as a router that does not know it meets it.
    pub(super) fn met(&self, engine: usize) -> Met {
        let stored = match self.contestant.agents {
            true => self.engines[engine].memory().borrow().stored(),
            false => Vec::new(),
        };
        Met { lives: self.conditions[engine].lives, stored }
    }
}
