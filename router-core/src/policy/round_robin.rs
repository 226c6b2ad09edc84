//! `round_robin`: one after the other.

use super::{Choice, Policy, Reason, View};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct RoundRobin;

impl Policy for RoundRobin {
    fn name(&self) -> &'static str {
        "round_robin"
    }

    fn choose(&self, view: &View<'_>, _rng: &mut fastrand::Rng) -> Choice {
        Choice { index: (view.ordinal % view.candidates.len() as u64) as usize, reason: Reason::Turn }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{candidate, view};
    use super::*;

    #[test]
    fn turns_are_equal() {
        let all = [candidate(0), candidate(1), candidate(2)];
        let mut rng = fastrand::Rng::with_seed(1);
        let turns: Vec<_> = (0..6)
            .map(|ordinal| RoundRobin.choose(&View { ordinal, ..view(&all, 10) }, &mut rng).index)
            .collect();
        assert_eq!(turns, [0, 1, 2, 0, 1, 2]);
    }
}
