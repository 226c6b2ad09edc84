//! What the items' own documentation has no place for: pages to read, without code.
//!
//! * [`patterns`]: how the pieces are put together.
//! * [`performance`]: what costs what, and how to measure it.
//! * [`limitations`]: what it does not do, and what it only estimates.
//! * [`internals`]: how it works, for those who change it.

pub mod internals;
pub mod limitations;
pub mod patterns;
pub mod performance;
