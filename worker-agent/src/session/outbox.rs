//! Sequence numbers of one rank, and the deltas a router has not acknowledged.

use std::collections::VecDeque;

use super::convert::Outgoing;

/// Bounds of what is kept for one rank.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) deltas: usize,
    pub(super) bytes: usize,
}

/// What was sent of one rank in one life of the engine.
///
/// A baseline takes a sequence number of its own, so that an acknowledgement says which of two baselines was meant.
#[derive(Debug)]
pub(super) struct Outbox {
    limits: Limits,
    last_seq: u64,
    acked_seq: u64,
    baseline_seq: Option<u64>,
    owes_baseline: bool,
    /// What was said last of the rank's completeness.
    told_incomplete: bool,
    unacked: VecDeque<Unacked>,
    unacked_bytes: usize,
}

#[derive(Debug)]
struct Unacked {
    seq: u64,
    bytes: usize,
    message: Outgoing,
}

impl Outbox {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            last_seq: 0,
            acked_seq: 0,
            baseline_seq: None,
            owes_baseline: true,
            told_incomplete: false,
            unacked: VecDeque::new(),
            unacked_bytes: 0,
        }
    }

    pub(super) fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Forgets what an earlier life was told. Numbers go on, so that an acknowledgement of that life, still on its way,
    /// says nothing of this one.
    pub(super) fn begin_life(&mut self) {
        self.baseline_seq = None;
        self.owe_baseline();
    }

    /// The next report must be a baseline.
    pub(super) fn owes_baseline(&self) -> bool {
        self.owes_baseline
    }

    pub(super) fn owe_baseline(&mut self) {
        self.owes_baseline = true;
        self.drop_unacked();
    }

    /// Whether the rank was said to be incomplete.
    pub(super) fn told_incomplete(&self) -> bool {
        self.told_incomplete
    }

    /// The rank is said to be incomplete, or exact, with what is sent now.
    pub(super) fn tell_incomplete(&mut self, incomplete: bool) {
        self.told_incomplete = incomplete;
    }

    /// Number of a baseline that is sent now.
    pub(super) fn begin_baseline(&mut self) -> u64 {
        self.drop_unacked();
        self.owes_baseline = false;
        self.last_seq += 1;
        self.baseline_seq = Some(self.last_seq);
        self.last_seq
    }

    /// Number of a delta that is sent now; [`Outbox::keep`] it.
    pub(super) fn next_seq(&mut self) -> u64 {
        self.last_seq += 1;
        self.last_seq
    }

    /// Keeps a delta of `bytes` until it is acknowledged. Answers false if that is more than may be kept: then nothing is
    /// kept, and a baseline is owed.
    pub(super) fn keep(&mut self, seq: u64, bytes: usize, message: Outgoing) -> bool {
        if self.unacked.len() >= self.limits.deltas || self.unacked_bytes + bytes > self.limits.bytes {
            self.owe_baseline();
            return false;
        }
        self.unacked.push_back(Unacked { seq, bytes, message });
        self.unacked_bytes += bytes;
        true
    }

    /// The router has applied everything up to `seq`; answers whether that put the last baseline in force.
    pub(super) fn ack(&mut self, seq: u64) -> bool {
        if seq > self.last_seq {
            return false;
        }
        let arrives = |acked| self.baseline_seq.is_some_and(|baseline| acked >= baseline);
        let in_force = !arrives(self.acked_seq) && arrives(seq);
        self.acked_seq = self.acked_seq.max(seq);
        while let Some(first) = self.unacked.front().filter(|first| first.seq <= seq) {
            self.unacked_bytes -= first.bytes;
            self.unacked.pop_front();
        }
        in_force
    }

    /// The number after which this outbox can go on, if it can: the last baseline has arrived, and nothing sent after it
    /// has been dropped.
    pub(super) fn resume_point(&self) -> Option<u64> {
        let arrived = self.baseline_seq.is_some_and(|baseline| self.acked_seq >= baseline);
        (arrived && !self.owes_baseline).then_some(self.acked_seq)
    }

    /// The deltas after `seq`, which a router named as the last one it has; `None` if they are not all here.
    pub(super) fn resume_after(&mut self, seq: u64) -> Option<Vec<Outgoing>> {
        let point = self.resume_point()?;
        if seq < point || seq > self.last_seq {
            return None;
        }
        self.ack(seq);
        Some(self.unacked.iter().map(|unacked| unacked.message.clone()).collect())
    }

    fn drop_unacked(&mut self) {
        self.unacked.clear();
        self.unacked_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox() -> Outbox {
        Outbox::new(Limits { deltas: 3, bytes: 100 })
    }

    fn send(outbox: &mut Outbox, bytes: usize) -> bool {
        let seq = outbox.next_seq();
        outbox.keep(seq, bytes, Outgoing::default())
    }

    #[test]
    fn resuming_needs_an_acknowledged_baseline() {
        let mut outbox = outbox();
        assert!(outbox.owes_baseline());
        assert_eq!(outbox.begin_baseline(), 1);
        assert!(send(&mut outbox, 10));
        assert_eq!((outbox.resume_point(), outbox.resume_after(1).map(|rest| rest.len())), (None, None));
        outbox.ack(1);
        assert!(send(&mut outbox, 10));
        assert_eq!(outbox.resume_point(), Some(1));
        assert_eq!(outbox.resume_after(0).map(|rest| rest.len()), None);
        assert_eq!(outbox.resume_after(4).map(|rest| rest.len()), None);
        assert_eq!(outbox.resume_after(2).map(|rest| rest.len()), Some(1));
        outbox.begin_baseline();
        assert_eq!(
            outbox.resume_point(),
            None,
            "the earlier acknowledgement does not speak for the new baseline"
        );
    }

    #[test]
    fn more_than_the_bounds_becomes_a_baseline() {
        for sizes in [[10, 10, 10, 10], [10, 10, 90, 0]] {
            let mut outbox = outbox();
            outbox.begin_baseline();
            outbox.ack(1);
            let kept: Vec<bool> = sizes.iter().map(|bytes| send(&mut outbox, *bytes)).collect();
            let first_refused = kept.iter().position(|kept| !kept).unwrap();
            assert!(first_refused >= 2 && outbox.owes_baseline() && outbox.resume_point().is_none());
            let next = outbox.last_seq() + 1;
            assert_eq!(outbox.begin_baseline(), next, "numbers go on");
        }
    }

    #[test]
    fn a_late_acknowledgement_says_nothing_of_the_next_life() {
        let mut outbox = outbox();
        outbox.begin_baseline();
        assert!(send(&mut outbox, 10) && send(&mut outbox, 10));
        outbox.begin_life();
        let baseline = outbox.begin_baseline();
        assert!(send(&mut outbox, 10));
        assert!(!outbox.ack(3));
        assert_eq!(outbox.resume_point(), None);
        assert!(outbox.ack(baseline), "it is in force");
        assert!(!outbox.ack(baseline), "and not twice");
        assert_eq!(outbox.resume_point(), Some(baseline));
    }

    #[test]
    fn acknowledgements_from_the_future_are_ignored() {
        let mut outbox = outbox();
        outbox.begin_baseline();
        outbox.ack(7);
        assert_eq!(outbox.resume_point(), None);
    }
}
