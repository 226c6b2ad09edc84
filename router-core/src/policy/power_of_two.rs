//! `power_of_two`: the less loaded of two targets drawn at random (Mitzenmacher 2001).

use super::{Choice, Policy, Reason, View};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct PowerOfTwo;

impl Policy for PowerOfTwo {
    fn name(&self) -> &'static str {
        "power_of_two"
    }

    fn choose(&self, view: &View<'_>, rng: &mut fastrand::Rng) -> Choice {
        let count = view.candidates.len();
        if count == 1 {
            return Choice { index: 0, reason: Reason::Only };
        }
        let first = rng.usize(..count);
        // Drawn from the others, so that two different ones are compared.
        let second = (first + 1 + rng.usize(..count - 1)) % count;
        let load = |index: usize| {
            let candidate = &view.candidates[index];
            (candidate.load.in_flight, candidate.backlog())
        };
        let index = if load(second) < load(first) { second } else { first };
        Choice { index, reason: Reason::LeastLoad }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{candidate, view};
    use super::*;

    #[test]
    fn the_most_loaded_is_never_taken() {
        let mut all: Vec<_> = (0..5).map(candidate).collect();
        all[3].load.in_flight = 9;
        let mut rng = fastrand::Rng::with_seed(1);
        let chosen: std::collections::BTreeSet<_> =
            (0..200).map(|_| PowerOfTwo.choose(&view(&all, 10), &mut rng).index).collect();
        assert_eq!(chosen.into_iter().collect::<Vec<_>>(), [0, 1, 2, 4]);
    }
}
