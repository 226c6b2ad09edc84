//! Where the driver sends requests: to a router, or by a simple rule of its own straight to the workers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use router_core::policy::CacheAwareSettings;
use router_core::{InFlight, Usage};

use crate::lab::{self, LabError, Setting, Side, as_time};
use crate::sequence::Sequence;

/// See the module.
#[derive(Debug)]
pub(super) enum Way {
    /// All to one address.
    Router(String),
    /// To the workers in turn.
    RoundRobin { workers: Vec<String>, next: AtomicUsize },
    /// A session stays where its first request went, by least load.
    Sticky(Box<Sticky>),
}

/// The lab's rule, with the lab's own accounting of what is under way, in real time.
#[derive(Debug)]
pub(super) struct Sticky {
    workers: Vec<String>,
    side: Mutex<Side>,
    at: Mutex<HashMap<usize, usize>>,
}

/// Where a request goes. What is counted of it is counted until this is dropped.
#[derive(Debug)]
pub(super) struct Chosen<'a> {
    url: &'a str,
    /// Unless a router decides.
    engine: Option<usize>,
    in_flight: Option<InFlight>,
}

impl Way {
    pub(super) fn round_robin(workers: &[String]) -> Self {
        Self::RoundRobin { workers: workers.to_vec(), next: AtomicUsize::new(0) }
    }

    pub(super) fn sticky(workers: &[String], setting: &Setting) -> Result<Self, LabError> {
        let all = lab::contestants(CacheAwareSettings::default());
        let rule = all.iter().find(|of| of.name == "session_sticky").ok_or(LabError::UnknownWorker)?;
        let capacity_tokens = setting.capacity_tokens as u64;
        let side = Side::new(rule, (workers.len(), 1), capacity_tokens, setting.most_blocks, setting.seed)?;
        let (side, at) = (Mutex::new(side), Mutex::default());
        Ok(Self::Sticky(Box::new(Sticky { workers: workers.to_vec(), side, at })))
    }

    /// Where a session's next request goes.
    pub(super) fn choose(
        &self,
        session: usize,
        sequence: &Sequence,
        now: Duration,
    ) -> Result<Chosen<'_>, LabError> {
        match self {
            Self::Router(url) => Ok(Chosen { url, engine: None, in_flight: None }),
            Self::RoundRobin { workers, next } => {
                let turn = next.fetch_add(1, Relaxed) % workers.len().max(1);
                let url = workers.get(turn).map_or("", String::as_str);
                Ok(Chosen { url, engine: Some(turn), in_flight: None })
            }
            Self::Sticky(sticky) => sticky.choose(session, sequence, now),
        }
    }
}

impl Sticky {
    fn choose(&self, session: usize, sequence: &Sequence, now: Duration) -> Result<Chosen<'_>, LabError> {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        let mut side = self.side.lock().unwrap_or_else(PoisonError::into_inner);
        let routed = side.route(sequence.prompt(), at.get(&session).copied(), &[], now)?;
        let (worker, in_flight) = routed.ok_or(LabError::UnknownWorker)?;
        at.insert(session, worker);
        Ok(Chosen { url: &self.workers[worker], engine: Some(worker), in_flight: Some(in_flight) })
    }
}

impl Chosen<'_> {
    pub(super) fn url(&self) -> &str {
        self.url
    }

    /// The engine, unless a router decides.
    pub(super) fn engine(&self) -> Option<usize> {
        self.engine
    }

    /// Its first token came.
    pub(super) fn first_token(&mut self, now: Duration) {
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.first_token(as_time(now));
        }
    }

    /// Its last token came.
    pub(super) fn complete(mut self, sequence: &Sequence, cached_tokens: u64, now: Duration) {
        if let Some(mut in_flight) = self.in_flight.take() {
            let prompt_tokens = sequence.prompt_tokens() as u64;
            in_flight.usage(Usage { prompt_tokens, cached_tokens }, true);
            in_flight.generated(sequence.answered().clone(), as_time(now));
            in_flight.complete(as_time(now));
        }
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::sequence::Hasher;

    fn workers() -> Vec<String> {
        ["a", "b"].map(str::to_owned).to_vec()
    }

    fn sequence(first: u32) -> Sequence {
        let tokens: Vec<u32> = (first..first + 300).collect();
        Hasher::new().sequence(&tokens[..200], &tokens[200..])
    }

    #[test]
    fn in_turn() {
        let way = Way::round_robin(&workers());
        let url = |session| way.choose(session, &sequence(0), Duration::ZERO).unwrap().url().to_owned();
        assert_eq!((0..4).map(url).collect::<Vec<_>>(), ["a", "b", "a", "b"]);
    }

    #[test]
    fn a_session_stays_and_a_new_one_goes_where_least_is_under_way() {
        let setting = Setting::undisturbed(2, 1 << 17);
        let way = Way::sticky(&workers(), &setting).unwrap();
        let now = Duration::from_secs;
        let first = way.choose(1, &sequence(0), now(1)).unwrap();
        let second = way.choose(2, &sequence(1_000), now(1)).unwrap();
        assert_ne!(first.url(), second.url());
        let (one, other) = (first.url().to_owned(), second.url().to_owned());
        first.complete(&sequence(0), 0, now(2));
        assert_eq!(way.choose(3, &sequence(2_000), now(3)).unwrap().url(), one, "nothing is under way there");
        drop(second);
        assert_eq!(way.choose(2, &sequence(1_000), now(4)).unwrap().url(), other, "whatever the load");
    }
}
