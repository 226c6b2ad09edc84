//! One life of the engine, and everything that is known of it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use router_core::key::Unit;
use tokio_util::sync::CancellationToken;

use super::load::LoadReading;
use super::model::Model;
use super::probe::EngineInfo;
use crate::cache::{RankCache, lock};
use crate::chat_template::ChatTemplate;
use crate::mirror::Mirror;
use crate::tokenizer::Vocabulary;

/// Pages to track when neither a bound nor a capacity is known.
const DEFAULT_MAX_PAGES: usize = 4_000_000;
/// Pages to track, as a multiple of those that an engine can hold as far as it says: it may be more than it says.
const HELD_FACTOR: u64 = 2;
/// The same of those of its device, for tiers below that of which it does not say what they hold.
const DEVICE_FACTOR: u64 = 4;
const MIN_MAX_PAGES: u64 = 65_536;

/// One life of the engine.
#[derive(Debug)]
pub(crate) struct Life {
    /// Microseconds since the Unix epoch at which this life began, where the engine shows it, or was first seen; greater
    /// than that of every earlier life.
    pub(crate) incarnation: u64,
    /// The first incarnation it had. Names the life within this process: a coordinator's refusal can change the other.
    pub(crate) birth: u64,
    pub(crate) info: EngineInfo,
    /// The bytes of the model's tokens, or why they are not known.
    pub(crate) vocabulary: Result<Arc<Vocabulary>, Arc<str>>,
    /// The template that chats are rendered with, or why it is not known.
    pub(crate) chat_template: Result<Arc<ChatTemplate>, Arc<str>>,
    pub(crate) ranks: Arc<[RankState]>,
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
    pub(crate) fn new(
        info: EngineInfo,
        Model { vocabulary, chat_template }: Model,
        incarnation: u64,
        max_pages: Option<usize>,
        routers: usize,
    ) -> Self {
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
        let over = CancellationToken::new();
        Self { incarnation, birth: incarnation, ranks, info, vocabulary, chat_template, over }
    }

    /// The same life, mirrors and all, under another incarnation.
    pub(crate) fn renumbered(&self, incarnation: u64) -> Self {
        let Self { birth, info, vocabulary, chat_template, ranks, over, .. } = self;
        let (vocabulary, chat_template) = (vocabulary.clone(), chat_template.clone());
        let (info, ranks, over) = (info.clone(), Arc::clone(ranks), over.clone());
        Self { incarnation, birth: *birth, info, vocabulary, chat_template, ranks, over }
    }

    /// The units that its pages can be translated to.
    pub(crate) fn units(&self) -> impl Iterator<Item = Unit> {
        let text = self.vocabulary.as_ref().map(|_| Unit::Text);
        std::iter::once(Unit::Token).chain(text.ok())
    }

    /// Whether a session with `other` can go on with this life: what `Hello` said still holds.
    pub(crate) fn same_shape(&self, other: &Self) -> bool {
        let shape = |info: &EngineInfo| {
            let sizes = (info.dp_size, info.page_size, info.capacity_tokens, info.lower_tier);
            (
                sizes,
                info.events.is_empty(),
                info.model.clone(),
                info.version.clone(),
                info.weight_version.clone(),
                info.tokenizer.clone(),
            )
        };
        shape(&self.info) == shape(&other.info) && self.chat_template == other.chat_template
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
    let below = info.lower_tier.map_or(0, |tier| tier.capacity_tokens / u64::from(info.page_size));
    let held = device.saturating_add(below).saturating_mul(HELD_FACTOR);
    let pages = held.max(device.saturating_mul(DEVICE_FACTOR)).max(MIN_MAX_PAGES);
    usize::try_from(pages).unwrap_or(DEFAULT_MAX_PAGES)
}

/// A registered incarnation further ahead of this clock than this is an error, not a clock that was stepped back. Following
/// it could leave no greater number for the next restart.
const MOST_AHEAD: Duration = Duration::from_secs(10 * 365 * 86_400);
/// First step towards a registered incarnation that a coordinator did not name; each further one is twice as long, so that
/// a clock stepped back by a day is caught up with in 17.
const FIRST_STEP: Duration = Duration::from_secs(1);

/// An incarnation for a life that began at `started_us` or is seen now, greater than `previous` whatever the clock says.
pub(crate) fn mint(previous: u64, started_us: Option<u64>) -> u64 {
    started_us.unwrap_or_else(now_us).max(previous.saturating_add(1))
}

/// An incarnation after `refused`, of which a coordinator says that it knows a later one, perhaps naming it. `None` if no
/// sensible one can be greater. `attempts`: earlier refusals of this life.
pub(crate) fn mint_after_refusal(refused: u64, registered: Option<u64>, attempts: u32) -> Option<u64> {
    let bound = now_us().saturating_add(micros(MOST_AHEAD));
    let least = match registered {
        Some(registered) => registered.max(refused),
        None => refused.saturating_add(micros(FIRST_STEP.saturating_mul(1 << attempts.min(30)))),
    };
    (least < bound).then(|| mint(least, None))
}

fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, micros)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incarnations_only_grow() {
        let first = mint(0, None);
        assert!(first > 1_600_000_000_000_000);
        let ahead = first + 1_000_000_000;
        assert_eq!(mint(ahead, None), ahead + 1);
        assert_eq!((mint(0, Some(7)), mint(7, Some(7))), (7, 8), "the engine's own time, where it shows one");
    }

    #[test]
    fn there_is_room_for_what_the_engine_says_it_can_hold_and_as_much_again() {
        let pages = |device: u64, below: Option<u64>| {
            let answer = serde_json::json!({"page_size": 16, "max_total_num_tokens": device});
            let lower_tier = below.map(|capacity_tokens| router_core::LowerTier { capacity_tokens });
            default_max_pages(&EngineInfo { lower_tier, ..EngineInfo::read(&answer, "w").unwrap() })
        };
        assert_eq!(pages(0, None), DEFAULT_MAX_PAGES);
        assert_eq!(pages(16 << 20, None), 4 << 20, "of releases that do not tell of tiers");
        assert_eq!(pages(16 << 20, Some(0)), 4 << 20);
        assert_eq!(pages(16 << 20, Some(16 * (7 << 20))), 16 << 20);
        assert_eq!(pages(1_600, Some(160)), MIN_MAX_PAGES as usize);
    }

    #[test]
    fn a_refusal_is_answered_with_a_greater_one() {
        let now = now_us();
        let ahead = now + 3_600_000_000;
        assert_eq!(mint_after_refusal(now, Some(ahead), 0), Some(ahead + 1));
        let mut blind = now;
        for attempt in 0..12 {
            blind = mint_after_refusal(blind, None, attempt).unwrap();
        }
        assert!(blind > ahead, "an hour is caught up with in 12 steps");
        assert_eq!(mint_after_refusal(now, Some(u64::MAX), 0), None);
    }
}
