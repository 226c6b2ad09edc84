//! Mirror and view against hashing every cached path from its first token, under random histories.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use proptest::prelude::*;
use router_core::key::{KeySpace, Salt, Unit};
use worker_agent::events::{Event, Medium, Removed, Stored, TokenIds};
use worker_agent::mirror::Mirror;
use worker_agent::translate::{BUCKETS, BlockView, Run, Tell, TranslateError, ViewDelta, runs};

/// A path of the cache: its salt and all its tokens.
type Path = (String, Vec<u32>);

/// One step of an engine.
#[derive(Clone, Debug)]
enum Op {
    /// Store a prompt: so many pages of an earlier one, then new pages.
    Store {
        salt: bool,
        of: prop::sample::Index,
        keep: usize,
        new: Vec<u8>,
    },
    /// Evict the last pages of a path that nothing hangs below.
    Evict {
        leaf: prop::sample::Index,
        pages: usize,
    },
    /// Copy a path to another tier.
    Copy {
        of: prop::sample::Index,
    },
    /// Drop such a copy.
    Uncopy {
        of: prop::sample::Index,
    },
    Clear,
    /// The batch ends: the mirror sees what has happened since the last one.
    Batch,
    /// The coordinator is told what changed.
    Report,
    /// The coordinator is told everything.
    Baseline,
}

fn op() -> impl Strategy<Value = Op> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        6 => (any::<bool>(), index(), 0..8_usize, proptest::collection::vec(0..3_u8, 1..7))
            .prop_map(|(salt, of, keep, new)| Op::Store { salt, of, keep, new }),
        5 => (index(), 1..5_usize).prop_map(|(leaf, pages)| Op::Evict { leaf, pages }),
        1 => index().prop_map(|of| Op::Copy { of }),
        1 => index().prop_map(|of| Op::Uncopy { of }),
        1 => Just(Op::Clear),
        5 => Just(Op::Batch),
        3 => Just(Op::Report),
        1 => Just(Op::Baseline),
    ]
}

/// An engine that keeps whole paths, so that nothing about it is incremental.
struct Engine {
    page: usize,
    /// Every page on the device, named by the path that ends with it.
    device: BTreeSet<Path>,
    /// Pages with a copy in host memory.
    host: BTreeSet<Path>,
    events: Vec<Event>,
}

impl Engine {
    fn hash(path: &Path) -> i64 {
        let mut hasher = DefaultHasher::new();
        path.hash(&mut hasher);
        hasher.finish() as i64
    }

    fn held(&self) -> impl Iterator<Item = &Path> {
        self.device.union(&self.host)
    }

    fn pick(&self, index: &prop::sample::Index) -> Option<Path> {
        let held: Vec<&Path> = self.held().collect();
        (!held.is_empty()).then(|| held[index.index(held.len())].clone())
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::Store { salt, of, keep, new } => {
                let base = self.pick(of).filter(|(had, _)| had.is_empty() != *salt);
                let (salt, mut tokens) =
                    base.unwrap_or((if *salt { "s" } else { "" }.to_owned(), Vec::new()));
                tokens.truncate(keep * self.page);
                for unit in new {
                    // Few different pages, so that prompts meet again.
                    tokens.extend((0..self.page as u32).map(|at| u32::from(*unit) * 100 + at));
                }
                self.store(&salt, &tokens, Medium::Gpu);
            }
            Op::Copy { of } => {
                if let Some((salt, tokens)) = self.pick(of) {
                    self.store(&salt, &tokens, Medium::CpuPinned);
                }
            }
            Op::Evict { leaf, pages } => self.evict(leaf, *pages, Medium::Gpu),
            Op::Uncopy { of } => self.evict(of, 2, Medium::CpuPinned),
            Op::Clear => {
                self.device.clear();
                self.host.clear();
                self.events.push(Event::Cleared);
            }
            Op::Batch | Op::Report | Op::Baseline => {}
        }
    }

    fn tier(&mut self, medium: Medium) -> &mut BTreeSet<Path> {
        if medium == Medium::Gpu { &mut self.device } else { &mut self.host }
    }

    /// Stores the pages of a path that the tier lacks, in one event for each run of them.
    fn store(&mut self, salt: &str, tokens: &[u32], medium: Medium) {
        let page = self.page;
        let mut new: Option<Stored> = None;
        for end in (page..=tokens.len()).step_by(page) {
            let path = (salt.to_owned(), tokens[..end].to_vec());
            let hash = Self::hash(&path);
            if !self.tier(medium).insert(path) {
                self.events.extend(new.take().map(Event::Stored));
                continue;
            }
            let stored = new.get_or_insert_with(|| Stored {
                hashes: Vec::new(),
                parent: (end > page).then(|| Self::hash(&(salt.to_owned(), tokens[..end - page].to_vec()))),
                tokens: TokenIds::Narrow(Vec::new()),
                page_size: page as u32,
                lora_id: None,
                lora_name: None,
                cache_salt: (!salt.is_empty()).then(|| salt.to_owned()),
                medium: Some(medium),
            });
            stored.hashes.push(hash);
            if let TokenIds::Narrow(ids) = &mut stored.tokens {
                ids.extend(&tokens[end - page..end]);
            }
        }
        self.events.extend(new.map(Event::Stored));
    }

    /// Evicts up to `pages` pages upwards from a leaf of the tier; the event names them first page first.
    fn evict(&mut self, leaf: &prop::sample::Index, pages: usize, medium: Medium) {
        let page = self.page;
        let other: Vec<Path> =
            if medium == Medium::Gpu { &self.host } else { &self.device }.iter().cloned().collect();
        let tier = self.tier(medium);
        let leaves: Vec<Path> = tier.iter().filter(|path| !below(path, tier.iter())).cloned().collect();
        if leaves.is_empty() {
            return;
        }
        let (salt, mut tokens) = leaves[leaf.index(leaves.len())].clone();
        let mut hashes = Vec::new();
        for _ in 0..pages {
            let path = (salt.clone(), tokens.clone());
            // A page whose children are on another tier only is not evicted from under them.
            let stranded = !other.contains(&path) && below(&path, other.iter());
            if tokens.is_empty() || below(&path, tier.iter()) || stranded {
                break;
            }
            tier.remove(&path);
            hashes.insert(0, Self::hash(&path));
            tokens.truncate(tokens.len() - page);
        }
        if !hashes.is_empty() {
            self.events.push(Event::Removed(Removed { hashes, medium: Some(medium) }));
        }
    }

    /// The blocks of every path, hashed from its first token.
    fn blocks(&self, space: &KeySpace) -> HashSet<u64> {
        let mut blocks = HashSet::new();
        for (salt, tokens) in self.held() {
            let key = space.key_of_tokens(Salt::new("", salt, ""), tokens);
            blocks.extend(key.hashes().iter().map(|hash| hash.get()));
        }
        blocks
    }
}

/// One of `all` hangs below `path`.
fn below<'a>(path: &Path, mut all: impl Iterator<Item = &'a Path>) -> bool {
    all.any(|(salt, tokens)| *salt == path.0 && tokens.len() > path.1.len() && tokens.starts_with(&path.1))
}

/// A coordinator that takes the contract literally.
#[derive(Default)]
struct Coordinator {
    parents: HashMap<u64, u64>,
}

impl Coordinator {
    fn apply(&mut self, delta: ViewDelta) {
        if delta.cleared {
            self.parents.clear();
        }
        for hash in delta.removed {
            // One that came and went between two reports was never told to have come.
            if self.parents.contains_key(&hash) {
                self.remove(hash);
            }
        }
        for run in delta.stored {
            self.store(run.parent, &run.hashes);
        }
    }

    fn store(&mut self, mut parent: u64, hashes: &[u64]) {
        for hash in hashes {
            assert!(parent == 0 || self.parents.contains_key(&parent), "a parent comes before its children");
            self.parents.insert(*hash, parent);
            parent = *hash;
        }
    }

    /// What hangs below a removed block is taken as removed.
    fn remove(&mut self, top: u64) {
        let mut gone = vec![top];
        while let Some(hash) = gone.pop() {
            self.parents.remove(&hash);
            gone.extend(self.parents.iter().filter(|(_, parent)| **parent == hash).map(|(child, _)| *child));
        }
    }

    fn blocks(&self) -> HashSet<u64> {
        self.parents.keys().copied().collect()
    }

    fn is_closed(&self) -> bool {
        self.parents.values().all(|parent| *parent == 0 || self.parents.contains_key(parent))
    }
}

fn buckets(blocks: &HashSet<u64>) -> [u16; BUCKETS] {
    let mut buckets = [0_u16; BUCKETS];
    for hash in blocks {
        let bucket = &mut buckets[(hash >> 56) as usize];
        *bucket = bucket.wrapping_add(*hash as u16);
    }
    buckets
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn views_equal_hashing_everything_anew(
        sizes in prop_oneof![Just((1_u32, 1_u32)), Just((1, 4)), Just((2, 4)), Just((4, 4)), Just((4, 12)), Just((8, 2))],
        ops in proptest::collection::vec(op(), 1..120),
    ) {
        let (page, block) = sizes;
        let space = KeySpace::new(Unit::Token, block, 7).unwrap();
        let mut engine =
            Engine { page: page as usize, device: BTreeSet::new(), host: BTreeSet::new(), events: Vec::new() };
        let mut mirror = Mirror::new(page, 100_000);
        let mut view = BlockView::new(space.clone(), Tell::All, &mirror).unwrap();
        let mut coordinator = Coordinator::default();
        for op in ops.iter().chain([&Op::Batch, &Op::Report]) {
            engine.run(op);
            match op {
                Op::Batch => {
                    let changes = mirror.apply(&std::mem::take(&mut engine.events));
                    view.follow(&mirror, &changes);
                    let truth = engine.blocks(&space);
                    prop_assert_eq!(view.len(), truth.len());
                    prop_assert_eq!(&view.buckets()[..], &buckets(&truth)[..]);
                    prop_assert_eq!(mirror.len(), engine.held().count());
                    let late = BlockView::new(space.clone(), Tell::All, &mirror).unwrap();
                    prop_assert_eq!(late.buckets(), view.buckets());
                }
                Op::Report => coordinator.apply(view.take_delta()),
                Op::Baseline => {
                    coordinator = Coordinator::default();
                    for run in runs(view.take_baseline()) {
                        coordinator.store(run.parent, &run.hashes);
                    }
                    prop_assert!(!view.has_changes());
                }
                _ => {}
            }
            prop_assert!(coordinator.is_closed());
        }
        prop_assert_eq!(coordinator.blocks(), engine.blocks(&space));
        prop_assert_eq!(mirror.doubt(), None);
        let stats = mirror.stats();
        prop_assert_eq!((stats.unknown_removals, stats.cut_off_pages, stats.conflicting_pages), (0, 0, 0));
    }

    /// What a coordinator has named and what it was told are together what the engine holds, whenever it names a prompt, and whatever others
    /// send.
    #[test]
    fn what_is_named_and_what_is_told_are_all_there_is(
        sizes in prop_oneof![Just((1_u32, 1_u32)), Just((2, 4)), Just((4, 4)), Just((8, 2))],
        ops in proptest::collection::vec((op(), 0..4_u8), 1..120),
    ) {
        let (page, block) = sizes;
        let space = KeySpace::new(Unit::Token, block, 7).unwrap();
        let mut engine =
            Engine { page: page as usize, device: BTreeSet::new(), host: BTreeSet::new(), events: Vec::new() };
        let mut mirror = Mirror::new(page, 100_000);
        let mut view = BlockView::new(space.clone(), Tell::Unpredicted, &mirror).unwrap();
        let mut coordinator = Coordinator::default();
        let (mut prompts, mut told_stores) = (0, 0);
        let clears = ops.iter().any(|(op, _)| matches!(op, Op::Clear));
        for (op, naming) in ops {
            // It claims what it sends when it sends it, and names it before the engine has stored it, or just after.
            let held = engine.held().cloned().collect::<HashSet<Path>>();
            engine.run(&op);
            let sent = engine.held().filter(|path| !held.contains(*path)).max_by_key(|path| path.1.len()).cloned();
            let own = sent.filter(|_| matches!(op, Op::Store { .. }) && naming < 3);
            let key = own.map(|(salt, tokens)| space.key_of_tokens(Salt::new("", &salt, ""), &tokens));
            let hashes: Vec<u64> = key.iter().flat_map(|key| key.hashes()).map(|hash| hash.get()).collect();
            if hashes.is_empty() {
                if !matches!(op, Op::Store { .. } | Op::Batch | Op::Report) {
                    // What goes is published before more is sent, so that a name cannot outlive what it names.
                    let changes = mirror.apply(&std::mem::take(&mut engine.events));
                    view.follow(&mirror, &changes);
                    coordinator.apply(view.take_delta());
                }
            } else {
                let (last, changed) = (*hashes.last().unwrap(), std::mem::take(&mut engine.events));
                if naming == 0 {
                    view.predicted(last);
                }
                let changes = mirror.apply(&changed);
                view.follow(&mirror, &changes);
                if naming > 0 {
                    view.predicted(last);
                }
                coordinator.store(0, &hashes);
                prompts += 1;
            }
            match op {
                Op::Batch => {
                    let changes = mirror.apply(&std::mem::take(&mut engine.events));
                    view.follow(&mirror, &changes);
                }
                Op::Report => {
                    view.ripen();
                    let delta = view.take_delta();
                    told_stores += delta.stored.len();
                    coordinator.apply(delta);
                }
                _ => {}
            }
        }
        let changes = mirror.apply(&std::mem::take(&mut engine.events));
        view.follow(&mirror, &changes);
        view.ripen();
        view.ripen();
        coordinator.apply(view.take_delta());
        if prompts > 0 {
            prop_assert_eq!(coordinator.blocks(), engine.blocks(&space));
        } else {
            // After a clear all stores are told for a while.
            prop_assert!(clears || told_stores == 0, "{} runs", told_stores);
        }
    }

    /// Events in any order and with any contradictions never make the mirror claim a page that was not stored, and never
    /// leave a view that disagrees with one built anew.
    #[test]
    fn contradictory_events_do_no_harm(
        batches in proptest::collection::vec(
            proptest::collection::vec((0..4_u8, 0..6_i64, 0..6_i64, any::<bool>()), 1..8), 1..30),
    ) {
        let space = KeySpace::new(Unit::Token, 4, 7).unwrap();
        let mut mirror = Mirror::new(2, 8);
        let mut view = BlockView::new(space.clone(), Tell::All, &mirror).unwrap();
        for batch in batches {
            let events: Vec<Event> = batch.into_iter().map(|(kind, hash, parent, gpu)| {
                let medium = Some(if gpu { Medium::Gpu } else { Medium::Other });
                match kind {
                    0 => Event::Removed(Removed { hashes: vec![hash, parent], medium }),
                    1 if hash == 0 => Event::Cleared,
                    _ => Event::Stored(Stored {
                        hashes: vec![hash],
                        parent: (parent > 0).then_some(parent),
                        tokens: TokenIds::Narrow(vec![hash as u32, parent as u32]),
                        page_size: 2,
                        lora_id: None,
                        lora_name: None,
                        cache_salt: None,
                        medium,
                    }),
                }
            }).collect();
            let changes = mirror.apply(&events);
            view.follow(&mirror, &changes);
            let anew = BlockView::new(space.clone(), Tell::All, &mirror).unwrap();
            prop_assert_eq!((view.len(), view.buckets()), (anew.len(), anew.buckets()));
            prop_assert!(mirror.len() <= 8);
            prop_assert_eq!(mirror.in_order().len(), mirror.len());
        }
    }
}

fn one_page(hash: i64, medium: Medium) -> Event {
    Event::Stored(Stored {
        hashes: vec![hash],
        parent: None,
        tokens: TokenIds::Narrow(vec![1, 2]),
        page_size: 2,
        lora_id: None,
        lora_name: None,
        cache_salt: None,
        medium: Some(medium),
    })
}

fn gone(hash: i64) -> Event {
    Event::Removed(Removed { hashes: vec![hash], medium: None })
}

#[test]
fn removals_and_stores_between_two_reports_cancel() {
    let mut mirror = Mirror::new(2, 100);
    let mut view = BlockView::new(KeySpace::new(Unit::Token, 2, 7).unwrap(), Tell::All, &mirror).unwrap();
    let mut batch = |view: &mut BlockView, event: Event| {
        let changes = mirror.apply(&[event]);
        view.follow(&mirror, &changes);
    };
    batch(&mut view, one_page(1, Medium::Gpu));
    batch(&mut view, gone(1));
    // Whoever sent the prompt here believes that it is held, whether or not it was told so.
    let delta = view.take_delta();
    assert_eq!((delta.removed.len(), delta.stored.len()), (1, 0), "stored and removed");
    batch(&mut view, one_page(1, Medium::Gpu));
    assert_eq!(view.take_delta().stored.len(), 1);
    batch(&mut view, gone(1));
    batch(&mut view, one_page(1, Medium::Gpu));
    assert_eq!(view.take_delta(), ViewDelta::default(), "removed and stored again");
    // The same tokens under another engine hash are the same block.
    batch(&mut view, one_page(2, Medium::Gpu));
    batch(&mut view, gone(1));
    assert_eq!((view.take_delta(), view.len()), (ViewDelta::default(), 1));
    batch(&mut view, gone(2));
    assert_eq!(view.take_delta().removed.len(), 1);
}

#[test]
fn where_only_removals_are_told_every_removal_is() {
    let mut mirror = Mirror::new(2, 100);
    let mut view =
        BlockView::new(KeySpace::new(Unit::Token, 2, 7).unwrap(), Tell::Removals, &mirror).unwrap();
    let changes = mirror.apply(&[one_page(1, Medium::Gpu)]);
    view.follow(&mirror, &changes);
    assert_eq!(view.take_delta(), ViewDelta::default());
    let changes = mirror.apply(&[gone(1)]);
    view.follow(&mirror, &changes);
    let delta = view.take_delta();
    assert_eq!((delta.removed.len(), delta.stored.len()), (1, 0));
    // The router may have predicted what came and went between two reports.
    for event in [one_page(1, Medium::Gpu), gone(1)] {
        let changes = mirror.apply(&[event]);
        view.follow(&mirror, &changes);
    }
    assert_eq!(view.take_delta().removed.len(), 1);
    // Told that all is gone, it forgets what it had predicted too: what has been stored since is told once.
    for event in [Event::Cleared, one_page(1, Medium::Gpu)] {
        let changes = mirror.apply(&[event]);
        view.follow(&mirror, &changes);
    }
    let delta = view.take_delta();
    assert_eq!((delta.cleared, delta.removed.len(), delta.stored.len()), (true, 0, 1));
    // So is what it saw computed before it heard of the clear, and the engine tells later: for a while all stores are.
    let mut told = 0;
    for page in 2..100 {
        let Event::Stored(other) = one_page(page, Medium::Gpu) else { unreachable!() };
        let tokens = TokenIds::Narrow(vec![page as u32, 2]);
        let changes = mirror.apply(&[Event::Stored(Stored { tokens, ..other })]);
        view.follow(&mirror, &changes);
        let delta = view.take_delta();
        assert!(delta.removed.is_empty() && (told == page - 2 || delta.stored.is_empty()), "no gap");
        told += delta.stored.len() as i64;
    }
    assert!((1..97).contains(&told), "{told} of 98 are told");
}

/// A mirror with the view of a coordinator that says what it predicts: pages and blocks of two tokens.
struct Predicting {
    mirror: Mirror,
    view: BlockView,
}

impl Predicting {
    fn new() -> Self {
        let mirror = Mirror::new(2, 1_000);
        let space = KeySpace::new(Unit::Token, 2, 7).unwrap();
        Self { view: BlockView::new(space, Tell::Unpredicted, &mirror).unwrap(), mirror }
    }

    fn happen(&mut self, events: &[Event]) {
        let changes = self.mirror.apply(events);
        self.view.follow(&self.mirror, &changes);
    }

    /// The engine stores the pages of a prompt from a place on.
    fn store(&mut self, prompt: &[u32], from: usize) {
        let engine_hash = |end: usize| Engine::hash(&(String::new(), prompt[..end].to_vec()));
        self.happen(&[Event::Stored(Stored {
            hashes: (from + 2..=prompt.len()).step_by(2).map(engine_hash).collect(),
            parent: (from > 0).then(|| engine_hash(from)),
            tokens: TokenIds::Narrow(prompt[from..].to_vec()),
            page_size: 2,
            lora_id: None,
            lora_name: None,
            cache_salt: None,
            medium: None,
        })]);
    }

    fn blocks(&self, prompt: &[u32]) -> Vec<u64> {
        let key = self.view.space().key_of_tokens(Salt::default(), prompt);
        key.hashes().iter().map(|hash| hash.get()).collect()
    }

    fn name(&mut self, prompt: &[u32]) {
        let last = *self.blocks(prompt).last().unwrap();
        self.view.predicted(last);
    }

    /// What is told once the coordinator has had its time.
    fn told(&mut self) -> ViewDelta {
        self.view.ripen();
        self.view.ripen();
        self.view.take_delta()
    }
}

#[test]
fn what_a_coordinator_names_it_is_not_told() {
    let mut all = Predicting::new();
    let (before, after, foreign) = ([1, 2, 3, 4, 5, 6], [9, 2, 3, 4, 5, 6], [7, 2, 3, 4]);
    all.name(&before);
    all.store(&before[..4], 0);
    all.store(&before, 4);
    all.store(&after, 0);
    all.store(&foreign, 0);
    all.view.ripen();
    assert!(!all.view.has_changes(), "there is time yet");
    all.name(&after);
    let told = all.told();
    let run = |parent, hashes: &[u64]| Run { parent, hashes: hashes.to_vec() };
    assert_eq!(told.stored, [run(0, &all.blocks(&foreign))], "the first chunk of a named prompt neither");
    // What follows a named prompt is told below it: an answer, or another's longer prompt.
    let longer = [1, 2, 3, 4, 5, 6, 70, 80, 71, 81];
    all.store(&longer, 6);
    let blocks = all.blocks(&longer);
    assert_eq!(all.told().stored, [run(blocks[2], &blocks[3..])]);
    assert_eq!(all.told(), ViewDelta::default(), "once");
}

#[test]
fn what_comes_back_is_told_unless_it_is_named_again() {
    let mut all = Predicting::new();
    let prompt = [1, 2, 3, 4];
    let first = all.blocks(&prompt)[0];
    let engine_hash = |end: usize| Engine::hash(&(String::new(), prompt[..end].to_vec()));
    let evicted = Event::Removed(Removed { hashes: vec![engine_hash(2), engine_hash(4)], medium: None });
    for named in [true, false, true] {
        if named {
            all.name(&prompt);
        }
        all.store(&prompt, 0);
        assert_eq!(all.told().stored.is_empty(), named);
        all.happen(std::slice::from_ref(&evicted));
        assert_eq!(all.told().removed, [first]);
    }
    // Gone before anybody was told of it: who has named it, or is about to, believes that it is held.
    all.store(&prompt, 0);
    all.happen(&[evicted]);
    let told = all.told();
    assert_eq!((told.removed, told.stored.len()), (vec![first], 0));
}

#[test]
fn a_coordinator_that_names_nothing_of_a_key_space_is_told_of_no_stores_until_it_does() {
    let mut all = Predicting::new();
    all.store(&[1, 2, 3, 4], 0);
    assert_eq!(all.told(), ViewDelta::default());
    all.name(&[5, 6]);
    let told = all.told();
    assert_eq!(told.stored, [Run { parent: 0, hashes: all.blocks(&[1, 2, 3, 4]) }]);
}

#[test]
fn a_clear_takes_what_was_named_with_it() {
    let mut all = Predicting::new();
    all.name(&[1, 2, 3, 4]);
    all.happen(&[Event::Cleared]);
    all.store(&[1, 2, 3, 4], 0);
    let told = all.view.take_delta();
    assert_eq!((told.cleared, told.stored.len()), (true, 1), "whoever hears of it forgets what it predicted");
}

#[test]
fn what_comes_back_before_it_was_told_comes_after_its_parent() {
    let mut all = Predicting::new();
    let prompt = [1, 2, 3, 4];
    let engine_hash = |end: usize| Engine::hash(&(String::new(), prompt[..end].to_vec()));
    let evicted = |ends: &[usize]| {
        let hashes = ends.iter().map(|end| engine_hash(*end)).collect();
        Event::Removed(Removed { hashes, medium: None })
    };
    all.name(&[8, 9]);
    // The end goes and comes while both wait to be named.
    all.store(&prompt, 0);
    all.happen(&[evicted(&[4])]);
    all.store(&prompt, 2);
    let both = [Run { parent: 0, hashes: all.blocks(&prompt) }];
    assert_eq!(all.view.take_delta().stored, both);
    // Named after it was stored, gone, and sent by another.
    all.happen(&[evicted(&[2, 4])]);
    all.told();
    all.store(&prompt[..2], 0);
    all.name(&prompt[..2]);
    all.store(&prompt, 2);
    all.name(&prompt);
    all.happen(&[evicted(&[4, 2])]);
    all.view.take_delta();
    all.store(&prompt, 0);
    assert_eq!(all.told().stored, both);
}

#[test]
fn a_name_is_void_when_all_is_stated_anew() {
    let mut all = Predicting::new();
    let prompt = [1, 2, 3, 4];
    all.name(&prompt);
    // Its request came to nothing, and the coordinator began anew; then another sends the same.
    all.view.count_as_told();
    all.store(&prompt, 0);
    assert_eq!(all.told().stored, [Run { parent: 0, hashes: all.blocks(&prompt) }]);
}

#[test]
fn a_name_is_good_for_one_store() {
    let mut all = Predicting::new();
    let prompt = [1, 2, 3, 4];
    let engine_hash = |end: usize| Engine::hash(&(String::new(), prompt[..end].to_vec()));
    let evicted = Event::Removed(Removed { hashes: vec![engine_hash(2), engine_hash(4)], medium: None });
    let again = |all: &mut Predicting| {
        all.happen(std::slice::from_ref(&evicted));
        while all.told() != ViewDelta::default() {}
        all.store(&prompt, 0);
        assert_eq!(all.told().stored.len(), 1, "another has sent it");
    };
    // Stored while all is told after a clear.
    all.happen(&[Event::Cleared]);
    all.view.take_delta();
    all.name(&prompt);
    all.store(&prompt, 0);
    assert_eq!(all.told().stored.len(), 1);
    for _ in 0..50 {
        all.told();
    }
    again(&mut all);
    // Stored before it was told that it had gone.
    all.happen(std::slice::from_ref(&evicted));
    all.name(&prompt);
    all.store(&prompt, 0);
    assert_eq!(all.told(), ViewDelta::default());
    again(&mut all);
}

#[test]
fn what_is_found_by_comparing_is_not_told_again() {
    let mut all = Predicting::new();
    all.name(&[8, 9]);
    all.store(&[1, 2, 3, 4], 0);
    let blocks = all.blocks(&[1, 2, 3, 4]);
    all.view.count_these_as_told(blocks);
    assert_eq!(all.told(), ViewDelta::default());
    all.store(&[8, 9], 0);
    all.store(&[3, 4], 0);
    all.view.count_as_told();
    assert_eq!(all.told(), ViewDelta::default(), "nor what a baseline has said");
}

#[test]
fn sizes_that_do_not_fit_and_text_are_refused() {
    let mirror = Mirror::new(16, 100);
    let space = |unit, block_size| KeySpace::new(unit, block_size, 7).unwrap();
    let sizes = BlockView::new(space(Unit::Token, 24), Tell::All, &mirror).err();
    assert_eq!(sizes, Some(TranslateError::Sizes { block_size: 24, page_size: 16 }));
    assert_eq!(BlockView::check(&space(Unit::Text, 16), 16), Err(TranslateError::Text));
    assert_eq!(BlockView::check(&space(Unit::Token, 8), 16), Ok(()));
}

/// Churn that nobody is told about must not grow a view without bound.
#[test]
fn an_absent_coordinator_costs_bounded_memory() {
    let mut mirror = Mirror::new(1, 1_000_000);
    let mut view = BlockView::new(KeySpace::new(Unit::Token, 1, 7).unwrap(), Tell::All, &mirror).unwrap();
    let mut most = 0;
    for round in 0..20_000_u32 {
        let hash = i64::from(round);
        let event = Event::Stored(Stored {
            hashes: vec![hash],
            parent: None,
            tokens: TokenIds::Narrow(vec![round]),
            page_size: 1,
            lora_id: None,
            lora_name: None,
            cache_salt: None,
            medium: None,
        });
        for event in [event, gone(hash)] {
            let changes = mirror.apply(&[event]);
            view.follow(&mirror, &changes);
        }
        most = most.max(view.pending());
    }
    assert!(most <= 1025, "{most} changes were kept for blocks that are gone");
}

/// A router that does not come to take what is to be told, of an engine that evicts all the time.
#[test]
fn what_an_absent_coordinator_is_to_be_told_is_bounded_and_never_left_out() {
    for tell in [Tell::Removals, Tell::Unpredicted, Tell::All] {
        let mut mirror = Mirror::new(2, 100);
        let space = KeySpace::new(Unit::Token, 2, 7).unwrap();
        let mut view = BlockView::new(space, tell, &mirror).unwrap();
        let mut happen = |view: &mut BlockView, event| {
            let changes = mirror.apply(&[event]);
            view.follow(&mirror, &changes);
        };
        let stored = |page: u32| {
            Event::Stored(Stored {
                hashes: vec![i64::from(page)],
                parent: None,
                tokens: TokenIds::Narrow(vec![page, page]),
                page_size: 2,
                lora_id: None,
                lora_name: None,
                cache_salt: None,
                medium: None,
            })
        };
        happen(&mut view, stored(1));
        let claimed: Vec<u64> = view.hashes().collect();
        view.take_delta();
        for page in 2..20_000 {
            happen(&mut view, stored(page));
            let gone = Removed { hashes: vec![i64::from(page) - 1], medium: None };
            happen(&mut view, Event::Removed(gone));
            assert!(view.pending() <= 2_000, "{tell:?}");
        }
        assert!(view.has_changes(), "{tell:?}");
        let is_told = view.needs_baseline() || view.take_delta().removed.contains(&claimed[0]);
        assert!(is_told, "{tell:?}");
        view.take_baseline();
        assert!(!view.needs_baseline());
    }
}
