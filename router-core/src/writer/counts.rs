//! What an engine's counts change: claims stay within what it holds, and what it must have evicted goes.

use std::time::Duration;

use super::claim::Scope;
use super::horizon::Evictions;
use super::{FIRST_TEXT_BYTES_PER_TOKEN, State};
use crate::accuracy::{Counted, Counts, Divergence, DivergenceSource, Witness};
use crate::fleet::{Slot, TargetId};
use crate::key::{PrefixKey, Unit};
use crate::time::Time;

/// Of an engine's capacity, one token in so many may be claimed beyond what it has said that it holds.
const COUNT_MARGIN_SHARE: u64 = 64;

/// What was used so shortly before a count may have been used after it: an engine refreshes what it shows when a step ends.
const SETTLING: Duration = Duration::from_secs(2);

impl State {
    /// The engine of a worker without an agent was asked for its metrics. An agent knows better, and has its own say.
    pub(super) fn apply_asked_counts(&mut self, target: TargetId, counts: Counts, at: Time) {
        let member = self.roster.get(target.worker);
        let has_agent = member.is_some_and(|member| member.session.is_some_and(|session| session.open));
        if self.settings.count_from_engines && !has_agent {
            self.apply_counts(target, Counted { counts, by: Witness::Engine, at });
        }
    }

    pub(super) fn apply_counts(&mut self, target: TargetId, counted: Counted) {
        let member = self.roster.get(target.worker);
        let exact = member.is_some_and(|member| member.reports_exactly());
        let has_lower_tier = member.is_some_and(|member| member.profile.lower_tier.is_some());
        // An engine counts its device, and as evicted also what it keeps below that. An agent counts both.
        let is_partial = has_lower_tier && counted.by == Witness::Engine;
        let Some(rank) = self.roster.figures_mut(target) else { return };
        let Counts { held_tokens, evicted_tokens_total } = counted.counts;
        let before = rank.evidence.counted.replace(counted);
        if before.is_some_and(|before| before.by != counted.by) {
            // Each counts from a beginning of its own.
            rank.evidence.evictions = Evictions::default();
        }
        if let Some(total) = evicted_tokens_total {
            let evicted = rank.evidence.evictions.count(counted.at, held_tokens, total);
            // Exact reports have counted them block by block.
            if !exact && !is_partial {
                rank.pressure.evicted(evicted);
            }
        }
        self.dirty = true;
        if is_partial {
            rank.evidence.by_count = None;
            return;
        }
        self.bound_by_count(target, held_tokens);
        self.forget_evicted(target);
        let Some(slot) = self.roster.rank(target).map(|rank| rank.slot) else { return };
        let tokens = self.estimated_tokens(target, slot, Scope::ALL).abs_diff(held_tokens);
        if let Some(rank) = self.roster.figures_mut(target) {
            let source = DivergenceSource::Counts;
            rank.evidence.by_count = Some(Divergence { tokens, source, at: counted.at });
        }
    }

    /// Claims no more than an engine says that it holds, beside what is on its way to it and a margin for what it has stored since it
    /// said so. What goes is what an engine evicts that takes the least recently used leaf first; of others nothing follows, nor where a
    /// leaf may go for the sake of another pool, by when that was used.
    fn bound_by_count(&mut self, target: TargetId, held_tokens: u64) {
        let Some(member) = self.roster.get(target.worker).filter(|member| member.profile.tells_evictions())
        else {
            return;
        };
        let margin = member.profile.capacity_tokens / COUNT_MARGIN_SHARE;
        let Some(slot) = self.roster.rank(target).map(|rank| rank.slot) else { return };
        let decisions = self.open.get(&target).into_iter().flat_map(|decisions| decisions.values());
        let on_its_way: u64 = decisions.map(|decision| self.tokens_of(&decision.key)).sum();
        let most = held_tokens.saturating_add(on_its_way).saturating_add(margin);
        let scope = self.guessed(target);
        let (claimed, estimated) =
            (self.claims.tokens(slot, scope), self.estimated_tokens(target, slot, scope));
        if estimated > most {
            // Claims are counted with a fixed length of a token.
            let share = most as f64 / estimated as f64;
            // The count has told the pressure already.
            self.claims.evict_to(slot, scope, (claimed as f64 * share) as u64);
        }
    }

    /// Tokens in the claims, with the length of a token that responses have taught. What agents cannot name is taken for text.
    fn estimated_tokens(&self, target: TargetId, slot: Slot, scope: Scope) -> u64 {
        let are_tokens_in = scope == Scope::ALL || !self.roster.reports_exactly(target, Unit::Token);
        let tokens = if are_tokens_in { self.claims.tokens(slot, Scope::named(Unit::Token)) } else { 0 };
        let text = self.claims.tokens(slot, scope).saturating_sub(tokens);
        tokens + (text as f64 * FIRST_TEXT_BYTES_PER_TOKEN / self.text_bytes_per_token) as u64
    }

    /// Gives up what the engine must have evicted by now, as [`horizon`](super::horizon) reckons.
    fn forget_evicted(&mut self, target: TargetId) {
        let member = self.roster.get(target.worker);
        let tells_evictions = member.is_some_and(|member| member.profile.tells_evictions());
        let Some(rank) = self.roster.figures_mut(target).filter(|_| tells_evictions) else { return };
        let Some(horizon) = rank.evidence.evictions.horizon() else { return };
        let slot = rank.slot;
        let scope = self.guessed(target);
        if self.claims.move_horizon(slot, scope, horizon - SETTLING) > 0 {
            self.predict_again(target);
        }
    }

    fn tokens_of(&self, key: &PrefixKey) -> u64 {
        match key.unit() {
            Unit::Token => key.units(),
            Unit::Text => (key.units() as f64 / self.text_bytes_per_token) as u64,
        }
    }
}
