//! Finds the difference of two sets from the symbols of one and the hashes of the other.

use super::encoder::Encoder;
use super::mapping::{Mapping, density};
use super::symbol::Symbol;
use super::{MOST_SYMBOLS, SketchError};
use crate::key::BlockHash;

/// Takes the other side's symbols.
#[derive(Clone, Debug)]
pub struct Decoder {
    salt: u64,
    /// Hashes that they have more than we have.
    surplus: i64,
    ours: Encoder,
    /// What is left of each symbol when both sets' common part and all that was found are taken out.
    left: Vec<Symbol>,
    /// Found so far, to be taken out of what comes later.
    only_theirs: Encoder,
    only_ours: Encoder,
}

/// What symbols led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// They are too few.
    More {
        /// So many in all should do, as far as can be said by now.
        symbols: u32,
    },
    /// Nothing is left.
    Complete(Difference),
}

/// The hashes that only one side has, in no order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Those of the side that sent the symbols.
    pub theirs: Vec<BlockHash>,
    /// Those of the side that decoded them.
    pub ours: Vec<BlockHash>,
}

/// Symbols that a hash of the difference takes, where there are many.
const SYMBOLS_PER_HASH: f64 = 1.32;
/// The same while there are too few symbols for a good estimate: what is too little can be mended, what is too much cannot.
const CAREFUL_SYMBOLS_PER_HASH: f64 = 0.7;

/// The first symbols say little about how many hashes are left: their true densities differ from the formula by a percent.
const DENSE_SYMBOLS: usize = 8;

impl Decoder {
    /// For the symbols of a set of so many hashes, and one's own set.
    pub fn new(salt: u64, their_len: u64, ours: impl IntoIterator<Item = BlockHash>) -> Self {
        let ours = Encoder::new(salt, ours);
        Self {
            salt,
            surplus: their_len.wrapping_sub(ours.len()) as i64,
            ours,
            left: Vec::new(),
            only_theirs: Encoder::new(salt, []),
            only_ours: Encoder::new(salt, []),
        }
    }

    /// Symbols taken so far; the next ones must follow these.
    pub fn taken(&self) -> u32 {
        self.left.len() as u32
    }

    /// Hashes in one's own set.
    pub fn own_len(&self) -> u64 {
        self.ours.len()
    }

    /// Takes the symbols that follow.
    ///
    /// # Errors
    /// If there are more than a round may have, or they are not those of any set. The decoder is of no use then.
    pub fn take(&mut self, symbols: &[Symbol]) -> Result<Progress, SketchError> {
        let begin = self.left.len();
        let end = u32::try_from(begin + symbols.len()).unwrap_or(u32::MAX);
        if end > MOST_SYMBOLS {
            return Err(SketchError::TooMany);
        }
        let ours = self.ours.symbols_to(end);
        let only_theirs = self.only_theirs.symbols_to(end);
        let only_ours = self.only_ours.symbols_to(end);
        let found = only_theirs.into_iter().zip(only_ours).map(|(theirs, ours)| theirs.minus(ours));
        let left = symbols.iter().zip(ours).zip(found);
        self.left.extend(left.map(|((theirs, ours), found)| theirs.minus(ours).minus(found)));
        self.peel(begin as u32)?;
        self.progress()
    }

    /// Takes out what symbols show, from symbol `begin` on and wherever that leaves a single hash.
    fn peel(&mut self, begin: u32) -> Result<(), SketchError> {
        let end = self.taken();
        let mut open: Vec<u32> = (begin..end).collect();
        while let Some(index) = open.pop() {
            let Some((hash, added)) = self.left[index as usize].only(self.salt) else { continue };
            let mapping = Mapping::new(self.salt, hash);
            if !mapping.includes(index) {
                continue;
            }
            let mut at = 0;
            while at < end {
                let symbol = &mut self.left[at as usize];
                if added {
                    symbol.take(hash, mapping);
                } else {
                    symbol.add(hash, mapping);
                }
                if matches!(symbol.count(), 1 | -1) {
                    open.push(at);
                }
                at = mapping.after(at);
            }
            if added {
                self.only_theirs.include(hash, at);
            } else {
                self.only_ours.include(hash, at);
            }
            // Every hash that is found uses up a symbol.
            if self.found() > u64::from(end) {
                return Err(SketchError::Contradiction);
            }
        }
        Ok(())
    }

    fn progress(&mut self) -> Result<Progress, SketchError> {
        let all_in_one = self.left.first().is_some_and(|first| first.is_empty());
        if all_in_one && self.surplus == self.found_surplus() {
            if !self.left.iter().all(|symbol| symbol.is_empty()) {
                return Err(SketchError::Contradiction);
            }
            let empty = || Encoder::new(0, []);
            let theirs = std::mem::replace(&mut self.only_theirs, empty()).into_hashes();
            let ours = std::mem::replace(&mut self.only_ours, empty()).into_hashes();
            return Ok(Progress::Complete(Difference { theirs, ours }));
        }
        Ok(Progress::More { symbols: self.wanted() })
    }

    fn found(&self) -> u64 {
        self.only_theirs.len() + self.only_ours.len()
    }

    fn found_surplus(&self) -> i64 {
        self.only_theirs.len() as i64 - self.only_ours.len() as i64
    }

    /// Symbols that should do.
    ///
    /// With `n` hashes of the difference left, `s` more of theirs than of ours, a symbol of density `p` has a count of mean `s p` and
    /// variance `n p (1 − p)`: so each count's squared distance from its mean, relative to `p (1 − p)`, estimates `n`.
    fn wanted(&self) -> u32 {
        let taken = self.taken();
        let surplus = self.surplus.wrapping_sub(self.found_surplus()) as f64;
        let (mut squares, mut symbols) = (0.0, 0.0);
        for (index, symbol) in (0_u32..).zip(&self.left).skip(DENSE_SYMBOLS) {
            let density = density(index);
            let mean = surplus * density;
            // Counts travel as remainders; near their mean that does not matter.
            let whole = mean.round();
            let distance = f64::from(symbol.count().wrapping_sub(whole as i64 as i8)) + (whole - mean);
            squares += distance * distance / (density * (1.0 - density));
            symbols += 1.0;
        }
        let left = (squares / f64::max(symbols, 1.0)).max(surplus.abs());
        let all = left + self.found() as f64;
        let factor = if 4.0 * f64::from(taken) < all { CAREFUL_SYMBOLS_PER_HASH } else { SYMBOLS_PER_HASH };
        let least = taken + taken / 24 + 8;
        ((factor * all) as u32).clamp(least, MOST_SYMBOLS + 1)
    }
}
