//! One life of the engine, and everything that is known of it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;

use super::load::LoadReading;
use super::probe::EngineInfo;
use crate::cache::{RankCache, lock};
use crate::mirror::Mirror;

/// Pages to track when neither a bound nor a capacity is known.
const DEFAULT_MAX_PAGES: usize = 4_000_000;
/// Room for host tiers, as a multiple of the device's pages.
const TIER_FACTOR: u64 = 4;
const MIN_MAX_PAGES: u64 = 65_536;

/// One life of the engine.
#[derive(Debug)]
pub(crate) struct Life {
    /// Microseconds since the Unix epoch at which this life was first seen; greater than that of every earlier life.
    pub(crate) incarnation: u64,
    pub(crate) info: EngineInfo,
    pub(crate) ranks: Vec<RankState>,
    /// Ends the tasks that follow this life.
    pub(crate) over: CancellationToken,
}

/// What is known of one rank.
#[derive(Debug)]
pub(crate) struct RankState {
    pub(crate) cache: Mutex<RankCache>,
    load: Mutex<Option<LoadReading>>,
    /// The first replay has ended, so that the mirror says something.
    synced: AtomicBool,
    pub(crate) counters: RankCounters,
}

/// What happened to one rank's events.
#[derive(Debug, Default)]
pub(crate) struct RankCounters {
    pub(crate) batches: AtomicU64,
    pub(crate) gaps: AtomicU64,
    pub(crate) holes: AtomicU64,
    pub(crate) undecodable: AtomicU64,
    pub(crate) replays: AtomicU64,
}

impl Life {
    pub(crate) fn new(info: EngineInfo, incarnation: u64, max_pages: Option<usize>, routers: usize) -> Self {
        let max_pages = max_pages.unwrap_or_else(|| default_max_pages(&info));
        let rank = |_| {
            let mirror = Mirror::new(info.page_size, max_pages);
            RankState {
                cache: Mutex::new(RankCache::new(mirror, routers)),
                load: Mutex::new(None),
                synced: AtomicBool::new(false),
                counters: RankCounters::default(),
            }
        };
        let ranks = (0..info.dp_size).map(rank).collect();
        Self { incarnation, ranks, info, over: CancellationToken::new() }
    }

    /// Whether a session with `other` can go on with this life: what `Hello` said still holds.
    pub(crate) fn same_shape(&self, other: &Self) -> bool {
        let shape = |info: &EngineInfo| {
            let sizes = (info.dp_size, info.page_size, info.capacity_tokens, info.events.is_empty());
            (sizes, info.model.clone(), info.version.clone(), info.weight_version.clone())
        };
        shape(&self.info) == shape(&other.info)
    }
}

impl RankState {
    pub(crate) fn load(&self) -> Option<LoadReading> {
        *lock(&self.load)
    }

    pub(crate) fn set_load(&self, reading: LoadReading) {
        *lock(&self.load) = Some(reading);
    }

    pub(crate) fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    pub(crate) fn set_synced(&self) {
        self.synced.store(true, Ordering::Release);
    }
}

fn default_max_pages(info: &EngineInfo) -> usize {
    if info.capacity_tokens == 0 {
        return DEFAULT_MAX_PAGES;
    }
    let device = info.capacity_tokens / u64::from(info.page_size);
    usize::try_from(device.saturating_mul(TIER_FACTOR).max(MIN_MAX_PAGES)).unwrap_or(DEFAULT_MAX_PAGES)
}

/// An incarnation for a life seen now, greater than `previous` whatever the clock says.
pub(crate) fn mint(previous: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
    u64::try_from(now).unwrap_or(u64::MAX).max(previous.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incarnations_only_grow() {
        let first = mint(0);
        assert!(first > 1_600_000_000_000_000);
        let ahead = first + 1_000_000_000;
        assert_eq!(mint(ahead), ahead + 1);
    }
}
