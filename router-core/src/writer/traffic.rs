//! What the data plane tells: predictions, confirmations, and what responses said.

use super::claim::Source;
use super::{LEASES_KEPT, Lease, State};
use crate::time::Time;
use crate::update::{Traffic, TrafficEvent};

impl State {
    pub(super) fn apply_traffic(&mut self, traffic: &Traffic) {
        // A target that has moved since the decision: what was claimed and learned then is void, and stays so.
        let in_place = self.roster.rank(traffic.target).is_some_and(|rank| rank.tenure == traffic.tenure);
        match traffic.event {
            TrafficEvent::Routed if in_place && self.settings.predict => self.predict(traffic),
            TrafficEvent::Prefilled { at } if in_place => self.confirm(traffic, at),
            TrafficEvent::Undone if in_place => {
                self.claims.undo(traffic.slot, traffic.key.hashes(), traffic.ordinal);
                self.dirty = true;
            }
            TrafficEvent::Observed(observation) => self.observe(traffic, &observation, in_place),
            _ => {}
        }
    }

    fn predict(&mut self, traffic: &Traffic) {
        let until = traffic.decided_at + self.settings.predicted_ttl;
        let source = Source::Predicted { by: traffic.ordinal, until };
        self.claim_prompt(traffic, traffic.decided_at, source);
        let last = self.claims.path(traffic.slot, traffic.key.hashes()).last().map(|step| step.run);
        if let Some(run) = last {
            self.leases.push_back(Lease { until, slot: traffic.slot, run });
        }
        if self.leases.len() > LEASES_KEPT
            && let Some(lease) = self.leases.pop_front()
        {
            self.claims.lapse(lease.slot, lease.run, lease.until);
        }
    }

    /// The target has computed the whole prompt, whatever became of earlier claims on it.
    fn confirm(&mut self, traffic: &Traffic, at: Time) {
        // An exact agent is the better witness of what is still there; without one, the response is.
        let exact = self.roster.get(traffic.target.worker).is_some_and(|member| member.reports_exactly());
        if exact || !self.settings.predict {
            self.claims.confirm(traffic.slot, traffic.key.hashes(), at);
        } else {
            self.claim_prompt(traffic, at, Source::Confirmed { at });
        }
        self.dirty = true;
    }

    fn claim_prompt(&mut self, traffic: &Traffic, at: Time, source: Source) {
        let stored = self.claims.claim(traffic.slot, traffic.key.unit(), traffic.key.hashes(), at, source);
        if let Some(rank) = self.roster.rank_mut(traffic.target) {
            rank.pressure.stored(stored);
        }
        self.bound_target(traffic.target);
        self.dirty = true;
    }
}
