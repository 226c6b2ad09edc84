//! The prefix index: one overlapped tree for all targets.
//!
//! A node is a *run*: consecutive blocks that nothing has told apart yet, with the slots that hold them. Along any path
//! the holders only become fewer, because whoever holds a block holds all before it; so one walk from the root finds, for
//! every target at once, how many leading blocks of a prompt it holds ([`Tree::match_prefix`]).
//!
//! The tree is persistent. A snapshot shares every node with the writer's tree until the writer changes it, and
//! [`Arc::make_mut`](std::sync::Arc::make_mut) then copies only what a snapshot still shares. Cloning a [`Tree`] is one
//! increment of a counter, and what has been cloned never changes.
//!
//! [`Index`] is the writer's side: it edits the tree and knows where each run stands. [`NaiveIndex`] is the specification:
//! a map from target to set of prefixes, against which the tests check every operation.

mod branch;
mod edit;
mod holders;
mod matches;
mod naive;
mod run;
mod slot_set;
mod tree;

pub use edit::Index;
pub(crate) use edit::{Split, Step};
pub use matches::Matches;
pub use naive::NaiveIndex;
pub use run::RunId;
pub use tree::Tree;
