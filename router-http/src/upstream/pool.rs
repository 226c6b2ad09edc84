//! Connections to workers that wait for their next request. One thread's own: its lock is never waited for.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use router_core::{Worker, WorkerId};
use rustc_hash::FxHashMap;

use super::origin::Origin;
use crate::wire::client::Link;

/// See the module.
#[derive(Debug)]
pub(super) struct Pool {
    /// Connections kept for each worker.
    most: usize,
    idle_timeout: Duration,
    workers: Mutex<FxHashMap<WorkerId, Kept>>,
}

/// What is kept of a worker.
#[derive(Debug)]
struct Kept {
    origin: Arc<Origin>,
    /// The most recently used last.
    links: VecDeque<(Box<Link>, Instant)>,
}

impl Pool {
    pub(super) fn new(most: usize, idle_timeout: Duration) -> Self {
        Self { most, idle_timeout, workers: Mutex::default() }
    }

    /// The address of a worker; `None` if it is of no use.
    pub(super) fn origin(&self, worker: &Worker) -> Option<Arc<Origin>> {
        let mut workers = self.workers();
        if let Some(kept) = workers.get(&worker.id) {
            return Some(kept.origin.clone());
        }
        let origin = Arc::new(Origin::parse(&worker.url)?);
        workers.insert(worker.id, Kept { origin: origin.clone(), links: VecDeque::new() });
        Some(origin)
    }

    /// The connection that was used last, of those that the worker has not closed.
    pub(super) fn take(&self, worker: WorkerId) -> Option<Box<Link>> {
        let mut workers = self.workers();
        let links = &mut workers.get_mut(&worker)?.links;
        while let Some((mut link, since)) = links.pop_back() {
            if since.elapsed() >= self.idle_timeout {
                // All others have waited longer.
                links.clear();
            } else if link.is_free() {
                return Some(link);
            }
        }
        None
    }

    /// Keeps a connection for the next request, if one can be sent on it.
    pub(super) fn put(&self, worker: WorkerId, mut link: Box<Link>) {
        // Whether the worker has closed it is seen when it is taken, or when it has waited too long.
        if !link.has_ended() {
            return;
        }
        if let Some(kept) = self.workers().get_mut(&worker)
            && kept.links.len() < self.most
        {
            link.rest();
            kept.links.push_back((link, Instant::now()));
        }
    }

    /// Closes what has waited too long, and forgets workers to which nothing is left.
    pub(super) fn sweep(&self) {
        self.workers().retain(|_, kept| {
            while kept.links.front().is_some_and(|(_, since)| since.elapsed() >= self.idle_timeout) {
                kept.links.pop_front();
            }
            !kept.links.is_empty()
        });
    }

    fn workers(&self) -> MutexGuard<'_, FxHashMap<WorkerId, Kept>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
