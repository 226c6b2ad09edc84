//! A routed request, from its decision to its end.

use std::sync::Arc;
use std::time::Duration;

use crate::admission::Entered;
use crate::fleet::{Slot, Target, TargetId, Tenure, Worker};
use crate::health::FaultKind;
use crate::key::PrefixKey;
use crate::load::{LoadCounters, Share};
use crate::policy::{Reason, retained};
use crate::router::Router;
use crate::time::Time;
use crate::update::{Observation, Traffic, TrafficEvent, Update};

/// A request counted at its target.
///
/// There is no other way to learn a target's address, so nothing can be sent uncounted. Dropping it ends the request: if no
/// first token had been seen, as a failure that undoes the claims its decision made. Report what happens with
/// [`first_token`](Self::first_token), [`usage`](Self::usage), [`generated`](Self::generated) and [`complete`](Self::complete).
#[must_use = "dropping it ends the request as failed"]
#[derive(Debug)]
pub struct InFlight {
    target: TargetId,
    slot: Slot,
    tenure: Tenure,
    worker: Arc<Worker>,
    counters: Arc<LoadCounters>,
    share: Share,
    routed: Routed,
    router: Router,
    /// Nothing else waited for its prefill there when it was routed.
    alone: bool,
    phase: Phase,
    /// The response said how much was cached.
    checked: bool,
    /// It decides whether its target is let back in.
    trial: bool,
    /// Dropped last: by then its target has the room.
    entered: Option<Entered>,
}

/// How a request was let in.
#[derive(Debug)]
pub(crate) struct Admitted {
    /// It decides whether its target is let back in.
    pub(crate) trial: bool,
    /// Requests that its target may then have at most.
    pub(crate) most: u64,
    pub(crate) entered: Option<Entered>,
}

/// What a response says about its prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Usage {
    /// Tokens in the prompt.
    pub prompt_tokens: u64,
    /// Of these, tokens that were cached.
    pub cached_tokens: u64,
}

/// A decision's own facts.
#[derive(Debug)]
pub(crate) struct Routed {
    pub(crate) ordinal: u64,
    pub(crate) epoch: u64,
    pub(crate) reason: Reason,
    pub(crate) matched_blocks: u32,
    pub(crate) predicted_tokens: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) decided_at: Time,
    /// `None` if it teaches nothing about its target's cache: then the writer is told nothing.
    pub(crate) key: Option<PrefixKey>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Prefill,
    Decode { first_token_after: Duration },
}

impl InFlight {
    /// Counts the request and claims its blocks, unless its target has as many as it may have: then it is as if it had not been
    /// admitted.
    pub(crate) fn start(
        target: &Target,
        routed: Routed,
        router: &Router,
        admitted: Admitted,
    ) -> Result<Self, Admitted> {
        let likely = retained(routed.predicted_tokens, target.retention);
        let new = routed.prompt_tokens.saturating_sub(likely);
        let prefill = target.prefill.prefill_time(routed.prompt_tokens, likely);
        let share = Share {
            prefill_tokens: new,
            prefill_us: u64::try_from(prefill.as_micros()).unwrap_or(u64::MAX),
            context_tokens: routed.prompt_tokens,
        };
        let alone = target.load.read().in_prefill == 0
            && target.reported.is_none_or(|reported| reported.waiting_requests == 0);
        if !target.load.start(share, admitted.most) {
            if admitted.trial {
                target.load.health().end_trial();
            }
            return Err(admitted);
        }
        let Admitted { trial, entered, .. } = admitted;
        let in_flight = Self {
            target: target.id,
            slot: target.slot,
            tenure: target.tenure,
            worker: target.worker.clone(),
            counters: target.load.clone(),
            share,
            routed,
            router: router.clone(),
            alone,
            phase: Phase::Prefill,
            checked: false,
            trial,
            entered,
        };
        in_flight.tell(TrafficEvent::Routed { prefill });
        Ok(in_flight)
    }

    /// It is not sent after all: as if it had never been routed.
    pub(crate) fn take_back(mut self) {
        let entered = self.entered.take();
        drop(self);
        if let Some(entered) = entered {
            entered.leave_silently();
        }
    }

    /// The target.
    pub fn target(&self) -> TargetId {
        self.target
    }

    /// Its worker, as the decision saw it.
    pub fn worker(&self) -> &Arc<Worker> {
        &self.worker
    }

    /// Cached tokens the engine is expected to report.
    pub fn predicted_tokens(&self) -> u64 {
        self.routed.predicted_tokens
    }

    /// Length of the prompt in tokens; an estimate for text, zero without a prompt.
    pub fn prompt_tokens(&self) -> u64 {
        self.routed.prompt_tokens
    }

    /// Why this target.
    pub fn reason(&self) -> Reason {
        self.routed.reason
    }

    /// Number of the snapshot that was read.
    pub fn epoch(&self) -> u64 {
        self.routed.epoch
    }

    /// When it was decided.
    pub fn decided_at(&self) -> Time {
        self.routed.decided_at
    }

    /// The first token arrived: prefill is over and its blocks are in the cache. Later calls do nothing.
    pub fn first_token(&mut self, now: Time) {
        if self.end_prefill(now) {
            self.tell(TrafficEvent::Prefilled { at: now, observed: None });
        }
    }

    /// Whether it had not been over before.
    fn end_prefill(&mut self, now: Time) -> bool {
        if self.phase != Phase::Prefill {
            return false;
        }
        self.phase = Phase::Decode { first_token_after: now.since(self.routed.decided_at) };
        self.counters.end_prefill(self.share);
        let trial = std::mem::take(&mut self.trial);
        self.counters.health().succeeded(trial, now, &self.router.settings().ejection);
        true
    }

    /// The target failed it. Whether that ejects the target; report it once a request.
    pub fn failed(&mut self, kind: FaultKind, now: Time) -> bool {
        let trial = std::mem::take(&mut self.trial);
        self.counters.health().failed(kind, trial, now, &self.router.settings().ejection)
    }

    /// The target asked to get no requests until then.
    pub fn hold_off(&self, until: Time) {
        self.counters.health().hold_off(until);
    }

    /// The response said how much of the prompt was cached. At most once a request.
    ///
    /// `streaming`: the first token was seen as it was produced, so that the time to it teaches the prefill speed.
    pub fn usage(&mut self, usage: Usage, streaming: bool) {
        let observation = self.observe(usage, streaming);
        self.tell(TrafficEvent::Observed(observation));
    }

    /// The same as [`first_token`](Self::first_token) and then [`usage`](Self::usage), in one message to the writer: an answer in one
    /// piece brings both at once. At most once a request.
    pub fn first_token_and_usage(&mut self, usage: Usage, streaming: bool, now: Time) {
        let is_first = self.end_prefill(now);
        let observation = self.observe(usage, streaming);
        self.tell(match is_first {
            true => TrafficEvent::Prefilled { at: now, observed: Some(observation) },
            false => TrafficEvent::Observed(observation),
        });
    }

    fn observe(&mut self, usage: Usage, streaming: bool) -> Observation {
        self.checked = true;
        let alone_for = match self.phase {
            Phase::Decode { first_token_after } if self.alone && streaming => Some(first_token_after),
            _ => None,
        };
        Observation {
            matched_blocks: self.routed.matched_blocks,
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens,
            alone_for,
        }
    }

    /// What was generated: the target holds it as it holds the prompt. `key` is the prompt's with all that was generated but the last
    /// token, which no engine computes on. At most once a request, when the answer is complete.
    pub fn generated(&mut self, key: PrefixKey, now: Time) {
        self.first_token(now);
        if self.routed.key.is_some() {
            self.tell_of(key, TrafficEvent::Answered { at: now });
        }
    }

    /// The response is complete.
    pub fn complete(mut self, now: Time) {
        // An answer without a visible first token has been prefilled all the same.
        self.first_token(now);
        if !self.checked {
            self.tell(TrafficEvent::Unchecked);
        }
    }

    fn tell(&self, event: TrafficEvent) {
        if let Some(key) = &self.routed.key {
            self.tell_of(key.clone(), event);
        }
    }

    fn tell_of(&self, key: PrefixKey, event: TrafficEvent) {
        // A full queue refuses and counts; the claim is then not made, or lapses by its lease: less is claimed, not more.
        self.router.updates().offer(Update::Traffic(Traffic {
            target: self.target,
            slot: self.slot,
            tenure: self.tenure,
            ordinal: self.routed.ordinal,
            key,
            decided_at: self.routed.decided_at,
            event,
        }));
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.trial {
            self.counters.health().end_trial();
        }
        if self.phase == Phase::Prefill {
            self.counters.end_prefill(self.share);
            self.tell(TrafficEvent::Undone);
        }
        self.counters.end(self.share);
    }
}
