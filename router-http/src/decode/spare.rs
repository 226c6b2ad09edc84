//! Memory that a prompt was written to, for the next one: a large piece that is freed may go back to the system, which clears every
//! page of the next.

use std::cell::Cell;
use std::mem::size_of;

/// What a thread keeps of it. `T`: what it is filled with.
pub(super) struct Spare<T>(Cell<Vec<T>>);

/// Bytes that are kept.
const MOST_BYTES: usize = 1 << 20;

impl<T> Spare<T> {
    pub(super) const fn new() -> Self {
        Self(Cell::new(Vec::new()))
    }

    /// An empty vector, with room if there is any.
    pub(super) fn take(&self) -> Vec<T> {
        self.0.take()
    }

    /// Takes back what nobody reads any more. Of two the larger is kept.
    pub(super) fn give_back(&self, mut used: Vec<T>) {
        used.clear();
        let kept = self.0.take();
        let fits = used.capacity() * size_of::<T>() <= MOST_BYTES;
        self.0.set(if fits && used.capacity() > kept.capacity() { used } else { kept });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_is_kept_empty_and_none_that_is_too_large() {
        let spare = Spare::<u32>::new();
        spare.give_back(vec![1; 100]);
        spare.give_back(vec![2; 10]);
        spare.give_back(Vec::with_capacity(MOST_BYTES / 4 + 1));
        let taken = spare.take();
        assert_eq!((taken.len(), taken.capacity()), (0, 100));
        assert_eq!(spare.take().capacity(), 0);
    }
}
