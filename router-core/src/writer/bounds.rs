//! What sizes alone change: targets hold what they can, and the index what it may.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::State;
use super::claim::Scope;
use crate::fleet::{Slot, TargetId};
use crate::key::Unit;
use crate::time::Time;

/// Runs of retired slots released in one turn at most.
pub(super) const SWEEP_PER_TURN: usize = 4096;

/// Of an index that is full, one block in so many is given up at once: finding the oldest leaves of all targets has its price.
const ROOM_SHARE: u64 = 128;

/// Words of the index that may be in use before its blocks have to become fewer. They are numbered up to 2^32.
const MOST_WORDS: u64 = 3 << 30;

impl State {
    /// Keeps a target's claims within what it can hold.
    pub(super) fn bound_target(&mut self, target: TargetId) {
        let Some(member) = self.roster.get(target.worker) else { return };
        let Some(rank) = member.ranks.get(target.rank as usize) else { return };
        let capacity = match member.profile.capacity_tokens {
            0 => self.settings.default_capacity_tokens,
            known => known,
        };
        let beside = member.profile.lower_tier.map_or(0, |tier| tier.capacity_tokens);
        let slot = rank.slot;
        let most = capacity.saturating_add(beside);
        let fits = self.claims.tokens(slot, Scope::ALL) <= most;
        let evicted = if fits { 0 } else { self.evict_beyond(target, slot, most, capacity) };
        if let Some(rank) = self.roster.figures_mut(target) {
            rank.pressure.evicted(evicted);
        }
    }

    /// Drops what a target claims beyond `most`. Returns the tokens dropped.
    fn evict_beyond(&mut self, target: TargetId, slot: Slot, most: u64, capacity: u64) -> u64 {
        let named = most.saturating_add(capacity);
        let mut evicted = 0;
        for unit in [Unit::Token, Unit::Text] {
            // It reports what is evicted for a prediction when it happens; until then both are claimed, also of a long queue,
            // and guessing which leaf will go would lose one that stays. What it cannot name has to be guessed.
            if self.roster.reports_exactly(target, unit) {
                evicted += self.claims.evict_to(slot, Scope::named(unit), named);
            }
        }
        evicted + self.claims.evict_to(slot, self.guessed(target), most)
    }

    /// What no agent names exactly.
    pub(super) fn guessed(&self, target: TargetId) -> Scope {
        let exact = [Unit::Token, Unit::Text].into_iter();
        exact.filter(|unit| self.roster.reports_exactly(target, *unit)).fold(Scope::ALL, Scope::without)
    }

    /// Keeps the whole index within its bound: what no target claims any more goes first, then the oldest leaves of all targets,
    /// until there is some room again.
    pub(super) fn bound_index(&mut self) {
        let blocks = self.claims.size().blocks;
        let mut most = self.settings.max_blocks.min(crate::MAX_BLOCKS);
        if self.claims.words() > MOST_WORDS {
            // Runs of one block each, or snapshots that are held: a little at a time, since what is given up is free only later.
            most = most.min(blocks.saturating_sub(1));
        }
        let is_over = |state: &Self, most| state.claims.size().blocks > most;
        while is_over(self, most) && self.roster.retired() > 0 {
            self.sweep(SWEEP_PER_TURN);
        }
        if !is_over(self, most) {
            return;
        }
        let slots = self.roster.targets().map(|(_, _, rank)| rank.slot);
        let oldest = slots.filter_map(|slot| Some(Reverse((self.claims.oldest(slot)?, slot))));
        let mut oldest: BinaryHeap<_> = oldest.collect();
        while is_over(self, most - most / ROOM_SHARE)
            && let Some(Reverse((_, slot))) = oldest.pop()
        {
            self.claims.drop_oldest(slot, Scope::ALL, Time::MAX);
            oldest.extend(self.claims.oldest(slot).map(|time| Reverse((time, slot))));
            self.dirty = true;
        }
    }

    /// Releases at most `budget` runs of the targets that are no longer used.
    pub(super) fn sweep(&mut self, mut budget: usize) {
        while let Some(slot) = self.roster.next_retired() {
            let before = budget;
            let swept = self.claims.sweep(slot, &mut budget);
            self.dirty |= budget < before;
            if !swept {
                break;
            }
            self.roster.recycle();
        }
    }
}
