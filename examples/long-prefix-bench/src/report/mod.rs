//! What people read: tables, a page, comparisons.

mod agreement;
mod capacity;
mod columns;
mod compare;
mod end_to_end;
mod faults;
mod gains;
mod others;
mod page;
mod pairs;
mod plots;
mod published;
mod regret;
mod svg;
mod table;
mod targets;

pub use agreement::{nominal, replays};
pub use capacity::{Ladder, capacities, ladders};
pub use compare::{CompareError, compare};
pub use end_to_end::checks;
pub use faults::faults;
pub use gains::gains;
pub use others::others;
pub use page::{heat_map, page};
pub use published::published;
pub use regret::{Regret, TRACKS, Track, regrets};
pub use table::{cells, standings};
pub use targets::{Target, targets, targets_table};
