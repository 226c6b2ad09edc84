//! Orders the deltas of one rank: every one once, none out of order, and no gap unseen.

/// The sequence of one rank within one incarnation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Nothing counts before a baseline.
    #[default]
    Closed,
    /// The next delta counts, whatever its number.
    Ajar,
    /// Everything up to `applied` has been applied.
    Open { applied: u64 },
}

/// What to do with a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Apply,
    /// It, or all of it, has been applied before.
    Repeat,
    /// Deltas are missing before it: ask for a baseline.
    Gap {
        /// The number that should have come.
        expected: u64,
    },
    /// A baseline is on its way; what comes before it does not count.
    Closed,
}

impl Gate {
    /// Judges a delta, and counts it if it is to be applied.
    pub(crate) fn pass(&mut self, seq: u64) -> Verdict {
        let applied = match self {
            Self::Closed => return Verdict::Closed,
            Self::Ajar => {
                self.open(seq);
                return Verdict::Apply;
            }
            Self::Open { applied } => applied,
        };
        if seq <= *applied {
            return Verdict::Repeat;
        }
        let expected = applied.saturating_add(1);
        if seq != expected {
            *self = Self::Closed;
            return Verdict::Gap { expected };
        }
        *applied = seq;
        Verdict::Apply
    }

    /// A baseline is in force.
    pub(crate) fn open(&mut self, seq: u64) {
        *self = Self::Open { applied: seq };
    }

    /// Deltas go on from wherever their sender begins: what was missed before will be found by comparing.
    pub(crate) fn begin_anywhere(&mut self) {
        *self = Self::Ajar;
    }

    pub(crate) fn close(&mut self) {
        *self = Self::Closed;
    }

    /// The last number applied, while the sequence is whole.
    pub(crate) fn applied(self) -> Option<u64> {
        match self {
            Self::Open { applied } => Some(applied),
            Self::Closed | Self::Ajar => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is duplicated, lost or reordered: what is applied is 1, 2, 3 … without a hole, until a gap is reported.
        #[test]
        fn applied_deltas_are_consecutive(sent in prop::collection::vec(1_u64..12, 0..60)) {
            let mut gate = Gate::default();
            prop_assert_eq!(gate.pass(1), Verdict::Closed);
            gate.open(0);
            let mut applied = 0;
            for seq in sent {
                let before = gate;
                match gate.pass(seq) {
                    Verdict::Apply => {
                        prop_assert_eq!(seq, applied + 1);
                        applied = seq;
                    }
                    Verdict::Repeat => {
                        prop_assert!(seq <= applied);
                        prop_assert_eq!(gate, before);
                    }
                    Verdict::Gap { expected } => {
                        prop_assert_eq!(expected, applied + 1);
                        prop_assert!(seq > expected);
                        prop_assert_eq!(gate.applied(), None);
                    }
                    Verdict::Closed => prop_assert_eq!(before, Gate::Closed),
                }
            }
        }
    }

    #[test]
    fn a_baseline_mends_a_gap() {
        let mut gate = Gate::default();
        gate.open(4);
        assert_eq!(gate.pass(6), Verdict::Gap { expected: 5 });
        assert_eq!(gate.pass(5), Verdict::Closed);
        gate.open(9);
        assert_eq!(gate.pass(9), Verdict::Repeat);
        assert_eq!(gate.pass(10), Verdict::Apply);
        assert_eq!(gate.applied(), Some(10));
    }
}
