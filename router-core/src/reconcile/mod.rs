//! Sketches of sets of block hashes, from which two sides find the difference of their sets (channel 4 of `docs/routing.md`).
//!
//! A rateless invertible Bloom lookup table: Yang, Gilad and Alizadeh, *Practical Rateless Set Reconciliation*, SIGCOMM 2024.
//! One side sends a stream of [coded symbols](Symbol), each a sum over those hashes of its set that map to it; the other
//! subtracts the symbols of its own set, so that what both have cancels out, and peels what is left. About 1.4 symbols for each
//! hash that only one side has are enough, however large the sets are and without knowing beforehand how many there will be.
//!
//! ```
//! use router_core::key::BlockHash;
//! use router_core::reconcile::{Decoder, Encoder, Progress};
//!
//! let set = |values: std::ops::Range<u64>| values.filter_map(BlockHash::new).collect::<Vec<_>>();
//! // Both sides use one salt; a new one for every round.
//! let mut theirs = Encoder::new(7, set(1..10_000));
//! let mut ours = Decoder::new(7, theirs.len(), set(11..10_004));
//! let mut wanted = 8;
//! let difference = loop {
//!     match ours.take(&theirs.symbols_to(wanted))? {
//!         Progress::More { symbols } => wanted = symbols,
//!         Progress::Complete(difference) => break difference,
//!     }
//! };
//! assert_eq!((difference.theirs.len(), difference.ours.len()), (10, 4));
//! # Ok::<(), router_core::reconcile::SketchError>(())
//! ```

mod decoder;
mod encoder;
mod mapping;
mod pace;
mod symbol;
#[cfg(test)]
mod tests;

pub use decoder::{Decoder, Difference, Progress};
pub use encoder::Encoder;
pub use pace::Pace;
pub use symbol::{SYMBOL_BYTES, Symbol};

/// Symbols of one round at most: with more, the sets differ by more than a reconciliation can save.
pub const MOST_SYMBOLS: u32 = 1 << 21;

/// Symbols that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SketchError {
    /// The bytes are not whole symbols.
    #[error("{bytes} bytes are not a whole number of symbols of {SYMBOL_BYTES} bytes")]
    Length {
        /// How many came.
        bytes: usize,
    },
    /// More symbols than a round may have.
    #[error("more than {MOST_SYMBOLS} symbols in one round")]
    TooMany,
    /// The symbols are not those of any set.
    #[error("the symbols contradict each other; they were damaged, or the sides do not use one salt")]
    Contradiction,
}
