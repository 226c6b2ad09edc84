//! The prefix index: one overlapped tree for all targets.
//!
//! A node is a *run*: consecutive blocks that nothing has told apart yet, with the slots that hold them. Where a prompt ends
//! or parts from others, and where a slot loses the rest of a run, the run is cut in two, as the engine's own radix tree is;
//! so whoever holds any of a run holds all of it. Along a path the holders only become fewer, because whoever holds a block
//! holds all before it: one walk from the root finds, for every target at once, how many leading blocks of a prompt it holds
//! ([`Tree::match_prefix`]).
//!
//! All of it stands in words in slabs (`words`). A chained hash commits to the whole prefix, so that a run needs no path to be
//! found: a table leads from the hash of its first block to its record (`heads`, `record`), a line of eight words with the
//! hash of its last block, its length and its holders; only where a prompt parts from a run in its middle are the run's other
//! hashes read. Records and tables are in pages that the writer copies before it changes them for the first time after a
//! publication; hashes are in a log and are never changed (`arena`). A snapshot is a list of pages and a guard: while the guard
//! lives, nothing that the snapshot sees is written again (`epochs`). Publishing, holding and dropping a snapshot cost the
//! same however large the index is.
//!
//! [`Index`] is the writer's side. [`NaiveIndex`] is the specification: a map from target to set of prefixes, against which the
//! tests check every operation.

mod arena;
mod edit;
mod epochs;
mod heads;
mod locator;
mod matches;
mod naive;
mod numbers;
mod record;
mod runs;
#[cfg(test)]
mod tests;
mod tree;
mod words;

pub use edit::Index;
pub(crate) use edit::{RunId, Split, Step};
pub use matches::Matches;
pub use naive::NaiveIndex;
pub(crate) use runs::Origin;
pub use tree::Tree;
