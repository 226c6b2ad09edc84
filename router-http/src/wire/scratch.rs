//! Room that whichever stream of a thread is at work reads into and writes from.
//!
//! What a stream needs it for is over before the next one's turn, as a rule: its event has been taken by the kernel. So a thousand streams
//! use the same few kilobytes, one after the other, where each would find its own cold. What is not over, a half of an event or what a slow
//! client does not take yet, stays where it is, and the thread makes itself other room.

use std::cell::Cell;

use bytes::BytesMut;

/// Most that a thread keeps of each: no connection that takes it has much more than one with room of its own.
const MOST_ROOM: usize = 16 << 10;

/// What room is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Use {
    Reading,
    Writing,
}

thread_local! {
    static READING: Cell<BytesMut> = Cell::default();
    static WRITING: Cell<BytesMut> = Cell::default();
}

impl Use {
    /// An empty buffer, which may have no room at all.
    pub(super) fn take(self) -> BytesMut {
        // A thread that ends has nothing.
        let of = |cell: &Cell<BytesMut>| cell.take();
        match self {
            Self::Reading => READING.try_with(of),
            Self::Writing => WRITING.try_with(of),
        }
        .unwrap_or_default()
    }

    /// Takes the room of an empty buffer, for whoever is next. One that is not empty keeps its own.
    pub(super) fn give_back(self, buffer: &mut BytesMut) {
        if !buffer.is_empty() {
            return;
        }
        let buffer = std::mem::take(buffer);
        if (1..=MOST_ROOM).contains(&buffer.capacity()) {
            let to = |cell: &Cell<BytesMut>| cell.set(buffer);
            // A thread that ends keeps nothing.
            let _ = match self {
                Self::Reading => READING.try_with(to),
                Self::Writing => WRITING.try_with(to),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_goes_from_one_to_the_next() {
        let mut first = BytesMut::with_capacity(100);
        let place = first.as_ptr();
        Use::Reading.give_back(&mut first);
        assert_eq!(first.capacity(), 0);
        assert_eq!(Use::Writing.take().capacity(), 0);
        let next = Use::Reading.take();
        assert_eq!(next.as_ptr(), place);
        assert_eq!(Use::Reading.take().capacity(), 0);
        // None is no reason to give up what there is, and too much is not kept.
        Use::Writing.give_back(&mut { next });
        Use::Writing.give_back(&mut BytesMut::new());
        assert_eq!(Use::Writing.take().as_ptr(), place);
        let mut used = BytesMut::from(&b"abc"[..]);
        Use::Writing.give_back(&mut used);
        assert_eq!(used, b"abc"[..]);
        Use::Writing.give_back(&mut BytesMut::with_capacity(MOST_ROOM + 1));
        assert_eq!(Use::Writing.take().capacity(), 0);
    }
}
