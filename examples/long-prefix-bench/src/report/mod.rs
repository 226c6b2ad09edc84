//! What people read: tables, a page, comparisons.

mod compare;
mod page;
mod plots;
mod regret;
mod svg;
mod table;

pub use compare::{CompareError, compare};
pub use page::page;
pub use regret::{Regret, TRACKS, Track, regrets};
pub use table::{cells, standings};
