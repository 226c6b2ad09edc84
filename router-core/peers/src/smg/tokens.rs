//! `TokenTree`: a concurrent tree of tokens, without hashes.
//!
//! It tells only the longest match and some of who has it, and forgets nothing block by block; so it is only looked up
//! in, and its lookup is also its hashing and lookup.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_index::{TokenMatchResult, TokenTree};

use crate::contest::{Contestant, Matched, Operation, Reader};
use crate::work::{BLOCK_TOKENS, Prompt};

/// See the module.
pub(crate) struct Tokens {
    tree: Arc<TokenTree>,
    tenants: Vec<String>,
    staged: VecDeque<Operation>,
}

struct TokensReader {
    tree: Arc<TokenTree>,
    found: Option<TokenMatchResult>,
}

impl Tokens {
    /// An empty tree for workers `0..targets`.
    pub(crate) fn new(targets: u16) -> Self {
        let tenants = (0..targets).map(|target| format!("http://worker-{target}")).collect();
        Self { tree: Arc::new(TokenTree::new()), tenants, staged: VecDeque::new() }
    }
}

impl Contestant for Tokens {
    fn name(&self) -> &'static str {
        "smg TokenTree"
    }

    fn stage(&mut self, operations: &[Operation]) {
        self.staged.extend(operations.iter().cloned());
    }

    fn apply(&mut self, count: usize) -> Duration {
        let operations: Vec<_> = self.staged.drain(..count).collect();
        let began = Instant::now();
        for operation in &operations {
            let Operation::Store { held, to, .. } = operation else { continue };
            let tokens = &held.prompt.tokens[..to * BLOCK_TOKENS];
            self.tree.insert_tokens(tokens, &self.tenants[usize::from(held.target)]);
        }
        began.elapsed()
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        Box::new(TokensReader { tree: self.tree.clone(), found: None })
    }

    fn updates(&self) -> bool {
        false
    }
}

impl Reader for TokensReader {
    fn warm(&mut self, prompt: &Prompt) {
        self.warm_tokens(prompt);
    }

    fn lookup(&mut self, prompt: &Prompt) {
        self.found = Some(self.tree.match_prefix_with_counts(&prompt.tokens));
    }

    fn hash_and_lookup(&mut self, prompt: &Prompt) {
        self.lookup(prompt);
    }

    fn matched(&mut self, _targets: u16) -> Matched {
        let tokens = self.found.as_ref().map_or(0, |found| found.matched_token_count);
        Matched::Longest((tokens / BLOCK_TOKENS) as u32)
    }
}
