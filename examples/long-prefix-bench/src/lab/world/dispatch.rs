//! Where a request goes: to an engine that its router chooses and that is there.

use std::time::Duration;

use router_core::{FaultKind, InFlight};

use super::super::contestant::Rule;
use super::super::side::{LabError, as_time};
use super::{Event, Membership, World};
use crate::engine::RequestId;

/// Engines that a request is sent to before it fails: the default of `--max-attempts`.
const MOST_ATTEMPTS: usize = 3;

impl World<'_> {
    /// Sends a request to an engine that it has not been tried at.
    pub(super) fn dispatch(&mut self, request: usize) -> Result<(), LabError> {
        while self.tried[request].len() < MOST_ATTEMPTS {
            let sequence = &self.traffic.requests[request];
            let expected = self.tell_truth(request);
            let Some((engine, mut in_flight)) = self.decide(request)? else { break };
            self.poll(request, engine);
            if self.conditions[engine].is_down {
                in_flight.failed(FaultKind::Connect, as_time(self.now));
                self.tried[request].push(engine);
                continue;
            }
            self.note_where(request, engine);
            let seen = &mut self.outcome.requests[request];
            (seen.engine, seen.predicted_tokens) = (engine, in_flight.predicted_tokens());
            self.in_flight[request] = Some(in_flight);
            let expected = expected.get(engine).copied().unwrap_or(0);
            self.engines[engine].submit(RequestId(request as u32), sequence.clone(), expected);
            if let Some(ends) = self.engines[engine].interrupt(self.now) {
                self.at(ends, Event::PassEnd { engine });
            }
            self.begin_pass(engine);
            return Ok(());
        }
        self.fail(request);
        Ok(())
    }

    /// Where a request goes, if anybody can take it.
    fn decide(&mut self, request: usize) -> Result<Option<(usize, InFlight)>, LabError> {
        let session = self.traffic.session_of[request] as usize;
        let router = self.router_of[request];
        let only = self.home(router, request);
        self.tell_owner(router, session);
        let Some(side) = &mut self.sides[router] else { return Ok(None) };
        let prompt = self.traffic.requests[request].prompt();
        let decided = match self.recorded.get(request).copied().flatten() {
            Some(engine) => {
                let (in_flight, agrees) = side.route_to(prompt, only, engine, self.now)?;
                self.outcome.overruled += usize::from(!agrees);
                Some((engine, in_flight))
            }
            None => side.route(prompt, only, &self.tried[request], self.now)?,
        };
        if let Some((engine, _)) = &decided
            && only.is_none()
        {
            self.homes[router][session] = Some(*engine);
        }
        Ok(decided)
    }

    /// Where a router has to send a request, if its session stays where it is.
    pub(super) fn home(&self, router: usize, request: usize) -> Option<usize> {
        let session = self.traffic.session_of[request] as usize;
        let stays = |engine: &usize| {
            self.conditions[*engine].membership == Membership::Member && !self.tried[request].contains(engine)
        };
        let home = self.homes[router][session].filter(|_| matches!(self.contestant.rule, Rule::Sticky));
        home.filter(stays)
    }

    /// Tells a ring whose the next request is: a session of several turns has a name.
    pub(super) fn tell_owner(&self, router: usize, session: usize) {
        if let Some(side) = self.sides[router].as_ref().filter(|_| matches!(self.contestant.rule, Rule::Ring))
        {
            let has_name = self.traffic.sessions[session].turns.len() > 1;
            side.tell_owner(has_name.then_some(session as u64));
        }
    }

    /// Tells a reference what is true; what each engine will hold of the prompt.
    fn tell_truth(&self, request: usize) -> Vec<usize> {
        if !matches!(self.contestant.rule, Rule::Exact) {
            return Vec::new();
        }
        let sequence = &self.traffic.requests[request];
        let expected: Vec<usize> =
            self.engines.iter().map(|engine| engine.will_match_tokens(sequence)).collect();
        let backlogs: Vec<Duration> = self.engines.iter().map(|engine| engine.backlog(self.now)).collect();
        for side in self.sides.iter().flatten() {
            let matched = expected.iter().map(|tokens| *tokens as u64);
            side.tell_truth(matched.zip(backlogs.iter().copied()));
        }
        expected
    }
}
