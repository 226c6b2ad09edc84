//! What people read: tables, a page, comparisons.

mod compare;
mod regret;
mod table;

pub use compare::{CompareError, compare};
pub use regret::{Regret, TRACKS, Track, regrets};
pub use table::{cells, standings};
