//! What the threads of the data plane share beside the core: where stateful calls have to go.

use std::sync::Arc;
use std::time::Duration;

use crate::kept::Kept;
use crate::rids::Rids;

/// Requests with names of their own that are noted at once; beyond, an abort of one is sent to every worker.
const MOST_RIDS: usize = 65_536;

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Sessions that were opened here.
    pub(crate) sessions: Kept,
    /// Responses that were stored by workers.
    pub(crate) responses: Kept,
    /// Requests in flight that have names.
    pub(crate) rids: Arc<Rids>,
}

impl Shared {
    /// `most`: ids of each kind that are kept, for `ttl` after their last use.
    pub(crate) fn new(most: usize, ttl: Duration) -> Self {
        let kept = || Kept::new(most, ttl);
        Self { sessions: kept(), responses: kept(), rids: Arc::new(Rids::new(MOST_RIDS)) }
    }
}
