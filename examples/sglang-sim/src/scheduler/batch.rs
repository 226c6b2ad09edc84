//! What one pass computes: its memory is taken, its result is still to come.

use std::time::Duration;

use super::RequestId;

/// See the module.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) work: Work,
    /// How long it takes.
    pub(super) duration: Duration,
}

/// Parts of running requests, in the order of the running batch.
#[derive(Debug)]
pub(super) enum Work {
    Prefill(Vec<Chunk>),
    Decode {
        /// All that decode.
        batch: Vec<RequestId>,
        /// Those of them whose next token comes of it.
        due: Vec<RequestId>,
    },
}

/// One request's part of a prefill pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    pub(super) id: RequestId,
    /// Tokens that it computes.
    pub(super) tokens: usize,
    /// Tokens whose KV exists once it is computed.
    pub(super) end: usize,
    /// It is the last one of the prompt, so that the first token comes of it.
    pub(super) last: bool,
    /// Its KV comes from elsewhere.
    pub(super) received: bool,
}

impl Batch {
    /// The requests that it computes for.
    pub(super) fn requests(&self) -> Box<dyn Iterator<Item = RequestId> + '_> {
        match &self.work {
            Work::Prefill(chunks) => Box::new(chunks.iter().map(|chunk| chunk.id)),
            Work::Decode { batch, .. } => Box::new(batch.iter().copied()),
        }
    }
}
