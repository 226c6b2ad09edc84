//! Where the driver sends requests: to a router, or by a simple rule of its own straight to the workers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// See the module.
#[derive(Debug)]
pub(super) enum Way {
    /// All to one address.
    Router(String),
    /// To the workers in turn.
    RoundRobin { workers: Vec<String>, next: AtomicUsize },
    /// A session stays where its first request went, by least load.
    Sticky(Sticky),
}

/// Workers with the load that is under way from here.
#[derive(Debug)]
pub(super) struct Sticky {
    workers: Vec<Worker>,
    at: Mutex<HashMap<usize, usize>>,
}

#[derive(Debug)]
struct Worker {
    url: String,
    in_flight: AtomicUsize,
    prompt_tokens: AtomicUsize,
}

/// An address, in use until this is dropped.
#[derive(Debug)]
pub(super) struct Chosen<'a> {
    url: &'a str,
    counted: Option<(&'a Worker, usize)>,
}

impl Way {
    pub(super) fn round_robin(workers: &[String]) -> Self {
        Self::RoundRobin { workers: workers.to_vec(), next: AtomicUsize::new(0) }
    }

    pub(super) fn sticky(workers: &[String]) -> Self {
        let worker = |url: &String| Worker {
            url: url.clone(),
            in_flight: AtomicUsize::new(0),
            prompt_tokens: AtomicUsize::new(0),
        };
        Self::Sticky(Sticky { workers: workers.iter().map(worker).collect(), at: Mutex::default() })
    }

    /// Where a session's next request goes.
    pub(super) fn choose(&self, session: usize, prompt_tokens: usize) -> Chosen<'_> {
        match self {
            Self::Router(url) => Chosen { url, counted: None },
            Self::RoundRobin { workers, next } => {
                let turn = next.fetch_add(1, Relaxed) % workers.len().max(1);
                Chosen { url: workers.get(turn).map_or("", String::as_str), counted: None }
            }
            Self::Sticky(sticky) => sticky.choose(session, prompt_tokens),
        }
    }
}

impl Sticky {
    fn choose(&self, session: usize, prompt_tokens: usize) -> Chosen<'_> {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        let least = || {
            let load = |worker: &Worker| (worker.in_flight.load(Relaxed), worker.prompt_tokens.load(Relaxed));
            (0..self.workers.len()).min_by_key(|place| load(&self.workers[*place])).unwrap_or(0)
        };
        let worker = &self.workers[*at.entry(session).or_insert_with(least)];
        worker.in_flight.fetch_add(1, Relaxed);
        worker.prompt_tokens.fetch_add(prompt_tokens, Relaxed);
        Chosen { url: &worker.url, counted: Some((worker, prompt_tokens)) }
    }
}

impl Chosen<'_> {
    pub(super) fn url(&self) -> &str {
        self.url
    }
}

impl Drop for Chosen<'_> {
    fn drop(&mut self) {
        if let Some((worker, prompt_tokens)) = self.counted {
            worker.in_flight.fetch_sub(1, Relaxed);
            worker.prompt_tokens.fetch_sub(prompt_tokens, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workers() -> Vec<String> {
        ["a", "b"].map(str::to_owned).to_vec()
    }

    #[test]
    fn in_turn() {
        let way = Way::round_robin(&workers());
        let urls: Vec<_> = (0..4).map(|session| way.choose(session, 1).url().to_owned()).collect();
        assert_eq!(urls, ["a", "b", "a", "b"]);
    }

    #[test]
    fn a_session_stays_and_a_new_one_goes_where_least_is_under_way() {
        let way = Way::sticky(&workers());
        let first = way.choose(1, 100);
        assert_eq!(first.url(), "a");
        let second = way.choose(2, 500);
        assert_eq!(second.url(), "b");
        assert_eq!(way.choose(3, 10).url(), "a", "as many requests, fewer tokens");
        drop(first);
        assert_eq!(way.choose(4, 10).url(), "a");
        drop(second);
        assert_eq!(way.choose(2, 10).url(), "b", "whatever the load");
    }
}
