//! Buffers that bodies were read into, for the next ones.
//!
//! What a prompt of 64 KB leaves at the end of the heap, an allocator gives back to the system at once, and the next prompt has every
//! page of it made and cleared again: that took a quarter of all time. A thread keeps a few such buffers for as long as they are used.

use std::cell::RefCell;

use bytes::Bytes;

/// Largest buffer that is kept.
const MOST_BUFFER: usize = 1 << 20;

/// Bytes that a thread keeps.
const MOST_KEPT: usize = 4 << 20;

/// Times the room that is needed, lest many small bodies hold large buffers.
const MOST_SLACK: usize = 4;

thread_local! {
    static SPARE: RefCell<Spare> = const { RefCell::new(Spare { buffers: Vec::new(), bytes: 0, idle: 0 }) };
}

#[derive(Debug)]
struct Spare {
    /// The most recently used last.
    buffers: Vec<Vec<u8>>,
    /// Room in all of them.
    bytes: usize,
    /// Fewest that there were since the last sweep: so many have not been needed.
    idle: usize,
}

/// A buffer on loan.
struct Lent(Vec<u8>);

/// An empty buffer with at least so much room.
pub(super) fn take(room: usize) -> Vec<u8> {
    SPARE.with_borrow_mut(|spare| spare.take(room)).unwrap_or_else(|| Vec::with_capacity(room))
}

/// What was read, whose buffer comes back once nobody has it any more.
pub(super) fn lend(buffer: Vec<u8>) -> Bytes {
    Bytes::from_owner(Lent(buffer))
}

/// Gives up what this thread has not needed since the last time.
pub(crate) fn sweep() {
    SPARE.with_borrow_mut(Spare::sweep);
}

impl Spare {
    fn take(&mut self, room: usize) -> Option<Vec<u8>> {
        let fits = |buffer: &Vec<u8>| (room..=MOST_SLACK * room).contains(&buffer.capacity());
        let fits = self.buffers.iter().rposition(fits)?;
        let buffer = self.buffers.remove(fits);
        self.bytes -= buffer.capacity();
        self.idle = self.idle.min(self.buffers.len());
        Some(buffer)
    }

    fn give_back(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() <= MOST_BUFFER && self.bytes + buffer.capacity() <= MOST_KEPT {
            buffer.clear();
            self.bytes += buffer.capacity();
            self.buffers.push(buffer);
        }
    }

    fn sweep(&mut self) {
        let idle = self.idle.min(self.buffers.len());
        self.bytes -= self.buffers.drain(..idle).map(|buffer| buffer.capacity()).sum::<usize>();
        self.idle = self.buffers.len();
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        // A thread that ends keeps nothing.
        let _ = SPARE.try_with(|spare| spare.borrow_mut().give_back(buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> (usize, usize) {
        SPARE.with_borrow(|spare| {
            assert_eq!(spare.bytes, spare.buffers.iter().map(Vec::capacity).sum::<usize>());
            (spare.buffers.len(), spare.bytes)
        })
    }

    fn read(bytes: &[u8]) -> Bytes {
        let mut buffer = take(bytes.len());
        assert!(buffer.is_empty() && buffer.capacity() >= bytes.len());
        buffer.extend_from_slice(bytes);
        lend(buffer)
    }

    #[test]
    fn a_buffer_comes_back_once_nobody_has_it() {
        let body = read(b"a body");
        let part = body.slice(2..);
        drop(body);
        assert_eq!((&part[..], kept().0), (&b"body"[..], 0));
        drop(part);
        assert_eq!(kept().0, 1);
        assert_eq!(&read(b"other")[..], b"other");
        assert_eq!(kept().0, 1);
        // Too small for this one.
        drop(read(&[0; 100]));
        assert_eq!(kept().0, 2);
    }

    #[test]
    fn what_is_not_needed_is_given_up_and_no_more_is_kept_than_may_be() {
        let several: Vec<Bytes> = (0..9).map(|_| read(&[0; MOST_BUFFER])).collect();
        drop(several);
        assert_eq!(kept(), (4, MOST_KEPT));
        drop(read(&vec![0; MOST_BUFFER + 1]));
        assert_eq!(kept().0, 4);
        sweep();
        assert_eq!(kept().0, 4);
        drop(read(&[0; MOST_BUFFER / 2]));
        // It would be too large for this one.
        let small = read(&[1]);
        assert_eq!(kept().0, 4);
        drop(small);
        sweep();
        assert_eq!(kept(), (1, MOST_BUFFER));
        sweep();
        assert_eq!(kept(), (0, 0));
    }
}
