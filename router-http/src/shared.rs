//! What the threads of the data plane share beside the core: where stateful calls have to go.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::admission::Admission;
use crate::kept::Kept;
use crate::rids::Rids;

/// Requests with names of their own that are noted at once; beyond, an abort of one is sent to every worker.
const MOST_RIDS: usize = 65_536;

/// Commands that are carried out at once.
pub(crate) const MOST_COMMANDS: usize = 64;

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Sessions that were opened here.
    pub(crate) sessions: Kept,
    /// Responses that were stored by workers.
    pub(crate) responses: Kept,
    /// Requests in flight that have names.
    pub(crate) rids: Arc<Rids>,
    /// Room for commands, which go on when their caller has gone.
    pub(crate) commands: Arc<Semaphore>,
    /// Where requests wait for room, if there are bounds.
    pub(crate) admission: Option<Arc<Admission>>,
}

impl Shared {
    /// `most`: ids of each kind that are kept, for `ttl` after their last use.
    pub(crate) fn new(most: usize, ttl: Duration, admission: Option<Arc<Admission>>) -> Self {
        let kept = || Kept::new(most, ttl);
        let (rids, commands) = (Arc::new(Rids::new(MOST_RIDS)), Arc::new(Semaphore::new(MOST_COMMANDS)));
        Self { sessions: kept(), responses: kept(), rids, commands, admission }
    }
}
