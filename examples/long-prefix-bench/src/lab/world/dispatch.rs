//! Where a request goes: to an engine that its router chooses and that is there.

use router_core::{FaultKind, InFlight};

use super::super::contestant::Rule;
use super::super::side::{LabError, as_time};
use super::{Event, World};
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
            if self.conditions[engine].is_down {
                in_flight.failed(FaultKind::Connect, as_time(self.now));
                self.tried[request].push(engine);
                continue;
            }
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
        let tried = &self.tried[request];
        let home = self.asking[session].engine.filter(|engine| !tried.contains(engine));
        let only = home.filter(|_| matches!(self.rule, Rule::Sticky));
        let side = session % self.sides.len();
        let side = &mut self.sides[side];
        if matches!(self.rule, Rule::Ring) {
            let has_name = self.traffic.sessions[session].turns.len() > 1;
            side.tell_owner(has_name.then_some(session as u64));
        }
        let decided = side.route(self.traffic.requests[request].prompt(), only, tried, self.now)?;
        if let Some((engine, _)) = &decided
            && home.is_none()
        {
            self.asking[session].engine = Some(*engine);
        }
        Ok(decided)
    }

    /// Tells a reference what is true; what each engine will hold of the prompt.
    fn tell_truth(&self, request: usize) -> Vec<usize> {
        if !matches!(self.rule, Rule::Exact) {
            return Vec::new();
        }
        let sequence = &self.traffic.requests[request];
        let expected: Vec<usize> =
            self.engines.iter().map(|engine| engine.will_match_tokens(sequence)).collect();
        let engines = self.engines.iter().zip(&expected).enumerate();
        let truth =
            engines.map(|(number, (engine, matched))| (number, *matched as u64, engine.backlog(self.now)));
        let session = self.traffic.session_of[request] as usize;
        self.sides[session % self.sides.len()].tell_truth(truth);
        expected
    }
}
