//! What the data plane tells: predictions, confirmations, and what responses said.

use std::time::Duration;

use super::claim::Source;
use super::member::Member;
use super::{LEASES_KEPT, OpenDecision, State};
use crate::fleet::TargetId;
use crate::index::Origin;
use crate::key::Unit;
use crate::notice::Notice;
use crate::time::Time;
use crate::update::{Traffic, TrafficEvent};

/// After this an agent has reported what a prefill stored: it is published when the prefill ends, and told within the batch
/// interval. A later report only claims it anew.
const WITNESS_DELAY: Duration = Duration::from_secs(2);

impl State {
    pub(super) fn apply_traffic(&mut self, traffic: &Traffic) {
        // A target that has moved since the decision: what was claimed and learned then is void, and stays so.
        let in_place = self.roster.rank(traffic.target).is_some_and(|rank| rank.tenure == traffic.tenure);
        match traffic.event {
            TrafficEvent::Routed { prefill } if in_place => self.arrive(traffic, prefill),
            TrafficEvent::Prefilled { at, observed } => {
                self.settle(traffic, at, in_place);
                if let Some(observation) = observed {
                    self.observe(traffic, &observation, in_place);
                }
            }
            TrafficEvent::Answered { at } if in_place => self.confirm_answer(traffic, at),
            TrafficEvent::Answered { .. } => {}
            TrafficEvent::Undone => self.take_back(traffic.target, traffic.ordinal),
            TrafficEvent::Observed(observation) => self.observe(traffic, &observation, in_place),
            TrafficEvent::Unchecked => self.miss_usage(traffic.target),
            TrafficEvent::Routed { .. } => {}
        }
    }

    /// A prompt has been computed.
    fn settle(&mut self, traffic: &Traffic, at: Time, in_place: bool) {
        if in_place && self.has_witness(traffic) {
            return self.await_witness(traffic, at);
        }
        self.close(traffic.target, traffic.ordinal);
        if in_place {
            self.confirm(traffic, at);
        }
    }

    /// Takes back what a decision predicted: it failed, or nothing was heard of it for too long.
    pub(super) fn take_back(&mut self, target: TargetId, ordinal: u64) {
        let Some(decision) = self.close(target, ordinal) else { return };
        let rank = self.roster.rank(target).filter(|rank| rank.tenure == decision.tenure);
        if let Some(slot) = rank.map(|rank| rank.slot) {
            self.claims.undo(slot, decision.key.hashes(), ordinal);
            self.dirty = true;
        }
    }

    /// Whether the agent will name what the target has stored of this prompt. Of tokens the router knows it by itself; where the
    /// engine's pages end in a text only the agent can tell.
    fn has_witness(&self, traffic: &Traffic) -> bool {
        let kind = traffic.key.kind();
        kind.unit() == Unit::Text && self.hears_stores(traffic.target, kind)
    }

    /// The target has computed the prompt; what its agent does not name of it soon was not stored.
    fn await_witness(&mut self, traffic: &Traffic, at: Time) {
        self.witnesses.push_back((at + WITNESS_DELAY, traffic.target, traffic.ordinal));
        if self.witnesses.len() > LEASES_KEPT
            && let Some((_, target, oldest)) = self.witnesses.pop_front()
        {
            self.take_back(target, oldest);
        }
    }

    /// A decision's predictions are settled.
    fn close(&mut self, target: TargetId, ordinal: u64) -> Option<OpenDecision> {
        let decisions = self.open.get_mut(&target)?;
        let decision = decisions.remove(&ordinal);
        if decisions.is_empty() {
            self.open.remove(&target);
        }
        decision
    }

    fn is_open(&self, target: TargetId, ordinal: u64) -> bool {
        self.open.get(&target).is_some_and(|decisions| decisions.contains_key(&ordinal))
    }

    /// A request is on its way: what it finds at its target is measured before anything of it is claimed.
    fn arrive(&mut self, traffic: &Traffic, prefill: Duration) {
        let reused = self.claims.tail_tokens(traffic.slot, traffic.key.hashes(), traffic.decided_at);
        if let Some(rank) = self.roster.figures_mut(traffic.target) {
            rank.arrivals.count(traffic.decided_at, prefill);
            rank.pressure.reused(reused);
            self.dirty = true;
        }
        if self.settings.predict {
            self.predict(traffic);
        }
    }

    fn predict(&mut self, traffic: &Traffic) {
        self.claim_prompt(traffic, traffic.decided_at, Source::Predicted { by: traffic.ordinal });
        self.tell_prediction(traffic);
        let decision =
            OpenDecision { tenure: traffic.tenure, key: traffic.key.clone(), decided_at: traffic.decided_at };
        self.open.entry(traffic.target).or_default().insert(traffic.ordinal, decision);
        // Most are settled within seconds: what is kept is as long as the oldest that is not.
        while self.leases.front().is_some_and(|(_, target, ordinal)| !self.is_open(*target, *ordinal)) {
            self.leases.pop_front();
        }
        let until = traffic.decided_at + self.settings.predicted_ttl;
        self.leases.push_back((until, traffic.target, traffic.ordinal));
        if self.leases.len() > LEASES_KEPT
            && let Some((_, target, oldest)) = self.leases.pop_front()
        {
            self.take_back(target, oldest);
        }
    }

    /// The target has computed the whole prompt, whatever became of earlier claims on it.
    fn confirm(&mut self, traffic: &Traffic, at: Time) {
        // An agent that tells of stores is the better witness of what is still there; without one, the response is.
        if self.hears_stores(traffic.target, traffic.key.kind()) || !self.settings.predict {
            self.claims.confirm(traffic.slot, traffic.key.hashes(), at);
        } else {
            self.claim_prompt(traffic, at, Source::Confirmed { at });
        }
        self.dirty = true;
    }

    /// The target has stored what it generated. An agent that tells of stores is the better witness.
    fn confirm_answer(&mut self, traffic: &Traffic, at: Time) {
        let hears = self.hears_stores(traffic.target, traffic.key.kind());
        if self.settings.predict && self.settings.correct_from_responses && !hears {
            self.claim_prompt(traffic, at, Source::Confirmed { at });
            self.tell_prediction(traffic);
        }
    }

    /// Names what is claimed to the agent, so that it need not tell of it.
    fn tell_prediction(&mut self, traffic: &Traffic) {
        let TargetId { worker, rank } = traffic.target;
        let Some(session) = self.roster.get(worker).and_then(Member::told_predictions) else { return };
        let unit = traffic.key.kind().named();
        let unit = unit.filter(|unit| self.roster.reports_exactly(traffic.target, *unit));
        if let (Some(unit), Some(last)) = (unit, traffic.key.hashes().last().copied()) {
            self.notices.push(Notice::Predicted { session, rank, unit, last });
        }
    }

    fn claim_prompt(&mut self, traffic: &Traffic, at: Time, source: Source) {
        let (kind, hashes) = (traffic.key.kind(), traffic.key.hashes());
        // Many a prompt is shorter than a block.
        let stored = match hashes {
            [] => 0,
            _ => self.claims.claim(traffic.slot, kind, (hashes, Origin::Derived), at, source),
        };
        if let Some(rank) = self.roster.figures_mut(traffic.target) {
            rank.pressure.stored(stored);
        }
        self.bound_target(traffic.target);
        self.dirty = true;
    }
}
