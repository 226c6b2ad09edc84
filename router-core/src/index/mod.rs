//! The overlapped prefix index: one tree of runs for all targets.

use crate::fleet::Slot;
use crate::key::BlockHash;

#[derive(Clone, Debug, Default)]
pub struct Tree {}
#[derive(Clone, Debug, Default)]
pub struct Matches {}
impl Matches { pub fn blocks(&self, _slot: Slot) -> u32 { 0 } }
impl Tree { pub fn match_prefix(&self, _key: &[BlockHash], _matches: &mut Matches) {} }
