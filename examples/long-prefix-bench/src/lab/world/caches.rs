//! What the engines' caches hold together.

use std::cell::RefCell;
use std::rc::Rc;

use rustc_hash::FxHashSet;

use super::World;
use crate::engine::{Engine, Memory};

impl World<'_> {
    /// Each memory once, however many engines share it.
    pub(super) fn memories(&self) -> impl Iterator<Item = &Rc<RefCell<Memory>>> {
        let of = |engine: &Engine| Rc::as_ptr(engine.memory());
        let engines = self.engines.iter().enumerate();
        let first = move |(number, engine): &(usize, &Engine)| {
            !self.engines[..*number].iter().any(|other| of(other) == of(engine))
        };
        engines.filter(first).map(|(_, engine)| engine.memory())
    }

    /// Copies of each cached block, in the mean.
    pub(super) fn replication(&self) -> f64 {
        let mut distinct = FxHashSet::default();
        let mut copies = 0;
        for memory in self.memories() {
            let memory = memory.borrow();
            copies += memory.cached_blocks();
            memory.collect(&mut distinct);
        }
        copies as f64 / distinct.len().max(1) as f64
    }
}
