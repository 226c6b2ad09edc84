//! The persistent tree and its lookup.

use super::branch::Children;
use super::matches::Matches;
use crate::key::BlockHash;

/// An immutable version of the index. Cloning shares everything.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    pub(super) root: Children,
}

impl Tree {
    /// Finds how many leading blocks of `key` each slot holds, in one walk.
    pub fn match_prefix(&self, key: &[BlockHash], matches: &mut Matches) {
        matches.clear();
        let mut level = &self.root;
        let mut rest = key;
        while let Some(run) = rest.first().and_then(|head| level.get(*head)) {
            let common = run.hashes.common(rest);
            if !matches.walk(&run.holders, common) || common < run.len() {
                break;
            }
            rest = &rest[common as usize..];
            level = &run.children;
        }
        matches.finish();
    }
}
