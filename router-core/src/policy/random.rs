//! `random`: any target, with equal chance.

use super::{Choice, Policy, Reason, View};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Random;

impl Policy for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    fn choose(&self, view: &View<'_>, rng: &mut fastrand::Rng) -> Choice {
        Choice { index: rng.usize(..view.candidates.len()), reason: Reason::Random }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{candidate, view};
    use super::*;

    #[test]
    fn every_candidate_gets_its_share() {
        let all = [candidate(0), candidate(1), candidate(2), candidate(3)];
        let mut rng = fastrand::Rng::with_seed(1);
        let mut counts = [0; 4];
        for _ in 0..4_000 {
            counts[Random.choose(&view(&all, 10), &mut rng).index] += 1;
        }
        assert!(counts.iter().all(|&n| (850..1_150).contains(&n)), "{counts:?}");
    }
}
