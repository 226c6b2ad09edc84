//! What follows from a response's `cached_tokens`.
//!
//! Let the decision have predicted `M` cached blocks and the response say `C`. If `C < M`, and the first missing block had
//! been confirmed before the decision, it has been evicted since. For an engine that evicts the least recently used leaf:
//! 1. everything claimed below that block was false, except the path that this very request has stored again;
//! 2. so all other branches below it are gone, because an ancestor leaves a radix cache after its descendants;
//! 3. a block last used at `t` was evicted, so every leaf last used before `t` is gone.
//!
//! If nothing had confirmed the block, the request that was to store it had not been prefilled yet, and nothing follows.
//! Nothing is inferred of blocks whose removals an agent reports exactly, or where the engine evicts by another rule, or where a block may
//! be cached and of no use ([`CacheKind`](crate::CacheKind)), so that a short answer does not say that it was evicted.

use super::State;
use super::claim::{Claim, Scope};
use crate::fleet::TargetId;
use crate::index::RunId;
use crate::key::Unit;
use crate::notice::{MispredictionCause, Notice};
use crate::time::Time;
use crate::update::{Observation, Traffic};

/// Weight of one response in the mean length of a token.
const BYTES_PER_TOKEN_RATE: f64 = 0.02;

/// Tokens of a prompt below which special tokens and templates make its bytes per token meaningless.
const LEAST_LEARNED_TOKENS: u64 = 64;

/// Range in which a mean length of a token, in bytes, is believable.
const BYTES_PER_TOKEN: (f64, f64) = (1.0, 16.0);

impl State {
    pub(super) fn observe(&mut self, traffic: &Traffic, observation: &Observation, in_place: bool) {
        self.learn(traffic, observation);
        let expected = self.predicted_tokens(traffic, observation);
        let error = self.error_tokens(traffic, expected, observation.cached_tokens);
        let cause = self.misprediction(traffic, observation, error);
        if let Some(rank) = self.roster.figures_mut(traffic.target) {
            rank.evidence.predictions.check(error, cause);
            if in_place && matches!(cause, None | Some(MispredictionCause::Evicted)) {
                // A difference that is rounding is none.
                let found = if cause.is_none() { expected } else { observation.cached_tokens };
                rank.retention.observed(expected, found);
            }
            self.dirty = true;
        }
        self.notices.push(Notice::Mispredicted { target: traffic.target, error_tokens: error, cause });
        if in_place && cause == Some(MispredictionCause::Evicted) && self.may_infer(traffic) {
            self.infer_evictions(traffic, observation);
        }
    }

    /// Whether one eviction at a request's target tells about others.
    fn may_infer(&self, traffic: &Traffic) -> bool {
        let member = self.roster.get(traffic.target.worker);
        self.settings.correct_from_responses
            && member.is_some_and(|member| member.profile.tells_evictions())
            && !self.is_exact(traffic.target, traffic.key.kind())
    }

    /// A complete response did not say how much was cached.
    pub(super) fn miss_usage(&mut self, target: TargetId) {
        if let Some(rank) = self.roster.figures_mut(target) {
            rank.evidence.predictions.unchecked += 1;
            self.dirty = true;
        }
    }

    /// Predicted minus actual cached tokens; less than a block and a page of difference is rounding.
    fn error_tokens(&self, traffic: &Traffic, predicted: u64, cached: u64) -> i64 {
        let error = predicted as i64 - cached as i64;
        if error == 0 || error.unsigned_abs() < self.slack_tokens(traffic) { 0 } else { error }
    }

    fn misprediction(
        &self,
        traffic: &Traffic,
        observation: &Observation,
        error_tokens: i64,
    ) -> Option<MispredictionCause> {
        match error_tokens {
            0 => None,
            ..0 => Some(MispredictionCause::OtherTraffic),
            _ if self.first_missing(traffic, observation).is_some() => Some(MispredictionCause::Evicted),
            _ => Some(MispredictionCause::NotYetStored),
        }
    }

    fn infer_evictions(&mut self, traffic: &Traffic, observation: &Observation) {
        let Some((run, claim)) = self.first_missing(traffic, observation) else { return };
        let mut evicted = 0;
        let path = self.claims.path(traffic.slot, traffic.key.hashes());
        let before = self.claims.tokens(traffic.slot, Scope::ALL);
        for step in path.iter().skip_while(|step| step.run != run) {
            for child in self.claims.held_children(traffic.slot, step.run) {
                let own_path = path.iter().any(|step| step.run == child);
                let untouched = self
                    .claims
                    .claim_of(traffic.slot, child)
                    .is_some_and(|claim| claim.last_access < traffic.decided_at);
                if !own_path && untouched {
                    self.claims.drop_subtree(traffic.slot, child);
                }
            }
        }
        evicted += before - self.claims.tokens(traffic.slot, Scope::ALL);
        if let Some(last_used) = last_use_before(&claim, traffic.decided_at) {
            let scope = self.guessed(traffic.target);
            evicted += self.claims.move_horizon(traffic.slot, scope, last_used);
        }
        if let Some(rank) = self.roster.figures_mut(traffic.target) {
            rank.pressure.evicted(evicted);
        }
        self.dirty = true;
    }

    /// The run and claim of the first block that was not cached, if it had been confirmed before the decision.
    fn first_missing(&self, traffic: &Traffic, observation: &Observation) -> Option<(RunId, Claim)> {
        let cached_blocks = self.blocks_of(traffic, observation.cached_tokens, observation);
        let mut passed = 0;
        for step in self.claims.path(traffic.slot, traffic.key.hashes()) {
            if passed + u64::from(step.covered) > cached_blocks {
                let claim = self.claims.claim_of(traffic.slot, step.run)?;
                let confirmed = claim.confirmed_since.is_some_and(|since| since < traffic.decided_at);
                return confirmed.then(|| (step.run, claim.clone()));
            }
            passed += u64::from(step.covered);
        }
        None
    }

    fn predicted_tokens(&self, traffic: &Traffic, observation: &Observation) -> u64 {
        let page = self.page_size(traffic);
        let most = observation.prompt_tokens.saturating_sub(1);
        let matched = match traffic.key.unit() {
            Unit::Token => u64::from(observation.matched_blocks) * self.block_size(Unit::Token),
            Unit::Text => {
                let units = u64::from(observation.matched_blocks) * self.block_size(Unit::Text);
                (units as f64 * tokens_per_unit(traffic, observation)) as u64
            }
        };
        matched.min(most) / page * page
    }

    /// Whole blocks of the key in the first `tokens` tokens of the prompt.
    fn blocks_of(&self, traffic: &Traffic, tokens: u64, observation: &Observation) -> u64 {
        match traffic.key.unit() {
            Unit::Token => tokens / self.block_size(Unit::Token),
            Unit::Text => {
                let units = tokens as f64 / tokens_per_unit(traffic, observation).max(f64::EPSILON);
                units as u64 / self.block_size(Unit::Text)
            }
        }
    }

    /// Differences below this come from rounding to blocks and pages.
    fn slack_tokens(&self, traffic: &Traffic) -> u64 {
        let block = match traffic.key.unit() {
            Unit::Token => self.block_size(Unit::Token),
            // A text block's tokens are estimated, and its borders are not the tokens' borders.
            Unit::Text => 2 * (self.block_size(Unit::Text) as f64 / self.text_bytes_per_token) as u64,
        };
        block + self.page_size(traffic)
    }

    fn page_size(&self, traffic: &Traffic) -> u64 {
        self.roster.get(traffic.target.worker).map_or(1, |member| u64::from(member.profile.page_size.max(1)))
    }

    fn learn(&mut self, traffic: &Traffic, observation: &Observation) {
        if let Some(took) = observation.alone_for
            && let Some(rank) = self.roster.figures_mut(traffic.target)
        {
            rank.prefill.learn(observation.prompt_tokens, observation.cached_tokens, took);
            self.dirty = true;
        }
        if traffic.key.unit() == Unit::Text && observation.prompt_tokens >= LEAST_LEARNED_TOKENS {
            let sample = traffic.key.units() as f64 / observation.prompt_tokens as f64;
            let sample = sample.clamp(BYTES_PER_TOKEN.0, BYTES_PER_TOKEN.1);
            self.text_bytes_per_token += BYTES_PER_TOKEN_RATE * (sample - self.text_bytes_per_token);
            self.dirty = true;
        }
    }
}

/// Tokens per unit of this very prompt.
fn tokens_per_unit(traffic: &Traffic, observation: &Observation) -> f64 {
    observation.prompt_tokens as f64 / traffic.key.units().max(1) as f64
}

/// When a claim was last used before the decision that found it gone; `None` if others have used it since.
fn last_use_before(claim: &Claim, decided_at: Time) -> Option<Time> {
    // The last access is usually the request's own: when it was decided or, by now, when it was prefilled.
    [claim.last_access, claim.earlier_access].into_iter().find(|access| *access < decided_at)
}
