//! What readers have of the index, and its lookup.

use std::sync::Arc;

use super::arena::PAGE_LINES;
use super::edit::RunId;
use super::epochs::Guard;
use super::heads::{Head, Heads};
use super::matches::Matches;
use super::numbers::Numbers;
use super::record::Record;
use super::words::{Address, LINE_WORDS, Line, Words};
use crate::key::BlockHash;

/// An immutable version of the index. Cloning shares everything.
#[derive(Clone, Debug)]
pub struct Tree {
    pub(super) words: Words,
    pub(super) heads: Heads,
    pub(super) records: Records,
    /// While this lives, nothing that the version can see is written again.
    pub(super) _guard: Arc<Guard>,
}

/// The records of all runs, by their numbers.
#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    pub(super) pages: Numbers,
}

impl Tree {
    /// Finds how many leading blocks of `key` each slot holds, in one walk.
    ///
    /// A hash commits to all blocks before it, so every run is found by its first hash alone, and compared by its last.
    pub fn match_prefix(&self, key: &[BlockHash], matches: &mut Matches) {
        matches.begin();
        let (mut depth, mut above) = (0, None);
        while let Some((run, line, record)) = key.get(depth).and_then(|head| self.find(above, *head)) {
            let common = record.common(&self.words, &key[depth..]);
            depth += common as usize;
            matches.walk(line, depth as u32);
            if common < record.len {
                break;
            }
            above = Some(run);
        }
        matches.finish(&self.words);
    }

    /// The hashes of a run that this version has.
    pub(crate) fn hashes(&self, run: RunId) -> impl Iterator<Item = BlockHash> + '_ {
        self.records.get(&self.words, run.number()).all_hashes(&self.words)
    }

    /// The run that begins with `head` below another, or where a prompt begins, and where its record stands.
    #[inline]
    fn find(&self, above: Option<u32>, head: BlockHash) -> Option<(u32, Address, Record)> {
        let mut found = None;
        let run = self.heads.find(&self.words, Head { above, hash: head }, |run| {
            let line = self.records.address(run);
            let record = Record::of(self.words.line(line));
            let is_it = record.head == head.get();
            if is_it {
                found = Some((line, record));
            }
            is_it
        })?;
        found.map(|(line, record)| (run, line, record))
    }
}

impl Records {
    /// Where the record of a run stands.
    #[inline]
    pub(super) fn address(&self, run: u32) -> Address {
        self.pages.get(run as usize / PAGE_LINES) + (run as usize % PAGE_LINES * LINE_WORDS) as u32
    }

    pub(super) fn get(&self, words: &Words, run: u32) -> Record {
        Record::of(self.line(words, run))
    }

    fn line<'w>(&self, words: &'w Words, run: u32) -> &'w Line {
        words.line(self.address(run))
    }
}
