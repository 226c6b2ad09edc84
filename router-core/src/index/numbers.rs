//! A persistent list of 32-bit numbers.

use std::sync::Arc;

const CHUNK: usize = 1024;

/// A list whose clones share all chunks of it that have not been changed since.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers {
    chunks: Vec<Arc<[u32; CHUNK]>>,
    len: usize,
}

impl Numbers {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(super) fn get(&self, at: usize) -> u32 {
        self.chunks[at / CHUNK][at % CHUNK]
    }

    pub(super) fn set(&mut self, at: usize, number: u32) {
        Arc::make_mut(&mut self.chunks[at / CHUNK])[at % CHUNK] = number;
    }

    pub(super) fn push(&mut self, number: u32) {
        if self.len == self.chunks.len() * CHUNK {
            self.chunks.push(Arc::new([0; CHUNK]));
        }
        self.len += 1;
        self.set(self.len - 1, number);
    }

    /// Appends the list to itself. One of whole chunks shares them with itself until they differ.
    pub(super) fn double(&mut self) {
        if self.len.is_multiple_of(CHUNK) {
            self.chunks.extend_from_within(..);
            self.len *= 2;
        } else {
            (0..self.len).for_each(|at| self.push(self.get(at)));
        }
    }
}
