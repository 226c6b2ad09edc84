//! What people read: tables, a page, comparisons.

mod agreement;
mod compare;
mod end_to_end;
mod page;
mod plots;
mod regret;
mod svg;
mod table;

pub use agreement::agreement;
pub use compare::{CompareError, compare};
pub use end_to_end::checks;
pub use page::page;
pub use regret::{Regret, TRACKS, Track, regrets};
pub use table::{cells, standings};
