//! Consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam 2018), as routers of vLLM and SGLang have it.
//!
//! Workers stand at many places of a ring of hashes. A request goes to the next one after its own hash that has less than 1.25 times
//! the mean number of requests in flight. Requests are hashed by their session where they have one, else by their first blocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use router_core::policy::{Candidate, Choice, Policy, Reason, View};

/// See the module.
#[derive(Debug)]
pub(super) struct Ring {
    owner: Arc<Owner>,
}

/// Whose the next request is. Whoever decides tells it before.
#[derive(Debug, Default)]
pub(super) struct Owner(AtomicU64);

/// Places of a worker on the ring.
const PLACES: u64 = 64;

/// Most requests in flight at a worker, relative to the mean with this request.
const BOUND: f64 = 1.25;

impl Owner {
    /// A session, or nobody.
    pub(super) fn tell(&self, session: Option<u64>) {
        self.0.store(session.map_or(0, |session| session + 1), Relaxed);
    }

    fn hash(&self) -> Option<u64> {
        let owner = self.0.load(Relaxed);
        (owner > 0).then(|| mixed(owner))
    }
}

impl Ring {
    pub(super) fn new(owner: Arc<Owner>) -> Self {
        Self { owner }
    }

    /// Steps along the ring from a hash to a worker's next place.
    fn distance(candidate: &Candidate, from: u64) -> u64 {
        let places = (1..=PLACES).map(|place| mixed(candidate.identity ^ mixed(place)).wrapping_sub(from));
        places.min().unwrap_or(u64::MAX)
    }
}

impl Policy for Ring {
    fn name(&self) -> &'static str {
        "consistent_hash"
    }

    fn choose(&self, view: &View<'_>, rng: &mut fastrand::Rng) -> Choice {
        let hash = self.owner.hash().or(view.first_blocks).unwrap_or_else(|| rng.u64(..));
        let in_flight: u64 = view.candidates.iter().map(|candidate| candidate.load.in_flight).sum();
        let most = (BOUND * (in_flight + 1) as f64 / view.candidates.len() as f64).ceil() as u64;
        let with_room = view.candidates.iter().enumerate().filter(|(_, one)| one.load.in_flight < most);
        let next = with_room.min_by_key(|(_, candidate)| Self::distance(candidate, hash));
        Choice { index: next.map_or(0, |(index, _)| index), reason: Reason::Rendezvous }
    }
}

/// Spreads a number over all 64 bits: the finalizer of SplitMix64 (Steele, Lea and Flood 2014).
fn mixed(number: u64) -> u64 {
    let mut hash = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    hash ^ (hash >> 31)
}
