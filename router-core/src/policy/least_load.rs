//! `least_load`: the target with the fewest requests in flight, the shortest backlog among equals.

use super::{Choice, Policy, Reason, View};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct LeastLoad;

impl Policy for LeastLoad {
    fn name(&self) -> &'static str {
        "least_load"
    }

    fn choose(&self, view: &View<'_>, rng: &mut fastrand::Rng) -> Choice {
        let load = |c: &super::Candidate| (c.load.in_flight, c.backlog());
        let least = view.candidates.iter().map(load).min().unwrap_or_default();
        // By chance: rendezvous would make equal prompts meet, which is not what this policy promises.
        let by_chance = View { first_blocks: None, ..*view };
        Choice { index: by_chance.break_tie(rng, |c| load(c) == least), reason: Reason::LeastLoad }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{candidate, view};
    use super::*;

    #[test]
    fn the_least_loaded_is_taken_whatever_it_holds() {
        let mut all = [candidate(0), candidate(1), candidate(2)];
        all[0].matched_tokens = 1_000;
        all[0].load.in_flight = 2;
        all[1].load.in_flight = 1;
        all[2].load.in_flight = 3;
        let choice = LeastLoad.choose(&view(&all, 1_000), &mut fastrand::Rng::with_seed(1));
        assert_eq!(choice, Choice { index: 1, reason: Reason::LeastLoad });
    }

    #[test]
    fn ties_are_spread() {
        let all = [candidate(0), candidate(1)];
        let mut rng = fastrand::Rng::with_seed(1);
        let chosen: std::collections::HashSet<_> =
            (0..64).map(|_| LeastLoad.choose(&view(&all, 10), &mut rng).index).collect();
        assert_eq!(chosen.len(), 2);
    }
}
