//! Whatever was lost: once a reconciliation is complete, claims are what the engine holds.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use proptest::prelude::*;

use super::*;
use crate::reconcile::{Decoder, Difference, Encoder, Progress};
use crate::{Considered, DivergenceSource, VouchedClaims};

/// What happens.
#[derive(Clone, Debug)]
enum Happening {
    /// A request is routed and answered.
    Request { prompt: Vec<u32>, told: bool },
    /// Another router's request.
    Foreign { prompt: Vec<u32>, told: bool },
    /// The engine drops a block and all below it.
    Evict { pick: prop::sample::Index, told: bool },
    /// The agent is restarted, and numbers its deltas from 1.
    AgentRestarts,
    /// The engine is, empty, and serves these before its agent says so.
    EngineRestarts { before: Vec<Vec<u32>> },
    /// The engine drops everything: new weights, or a flush.
    Flush { told: bool },
    /// Claims are compared, while the engine goes on and its agent tells.
    Reconcile { meanwhile: Vec<Happening> },
}

/// The engine, its agent, and the router.
struct Cluster {
    story: Story,
    worker: WorkerId,
    session: u64,
    incarnation: u64,
    /// Blocks that the engine holds, each with the one before.
    held: BTreeMap<BlockHash, Option<BlockHash>>,
    seq: u64,
}

fn prompts() -> impl Strategy<Value = Vec<u32>> {
    let stretched = |symbols: Vec<u32>| symbols.into_iter().flat_map(|symbol| [symbol; BLOCK]).collect();
    prop::collection::vec(0_u32..3, 1..12).prop_map(stretched)
}

fn change(told: impl Strategy<Value = bool> + Clone + 'static) -> impl Strategy<Value = Happening> {
    prop_oneof![
        (prompts(), told.clone()).prop_map(|(prompt, told)| Happening::Foreign { prompt, told }),
        (any::<prop::sample::Index>(), told).prop_map(|(pick, told)| Happening::Evict { pick, told }),
    ]
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => (prompts(), any::<bool>()).prop_map(|(prompt, told)| Happening::Request { prompt, told }),
        6 => change(any::<bool>()),
        1 => Just(Happening::AgentRestarts),
        1 => prop::collection::vec(prompts(), 0..3).prop_map(|before| Happening::EngineRestarts { before }),
        1 => any::<bool>().prop_map(|told| Happening::Flush { told }),
        2 => prop::collection::vec(change(Just(true)), 0..4).prop_map(|meanwhile| Happening::Reconcile { meanwhile }),
    ]
}

impl Cluster {
    fn new() -> Self {
        let profile = WorkerProfile { capacity_tokens: 1 << 20, ..WorkerProfile::default() };
        let story = Story::with(1, profile, |_| {});
        let worker = story.router.snapshot().fleet.workers[0].id;
        let mut cluster = Self { story, worker, session: 0, incarnation: 0, held: BTreeMap::new(), seq: 0 };
        cluster.restart_engine(Vec::new());
        cluster
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Request { prompt, told } => {
                self.story.serve(&prompt, 0);
                self.store(&prompt, told);
            }
            Happening::Foreign { prompt, told } => self.store(&prompt, told),
            Happening::Evict { pick, told } => self.evict(pick, told),
            Happening::AgentRestarts => {
                let joined = self.join(vec![0]);
                assert_eq!((joined.unreconciled, joined.resumed), (vec![0], Vec::new()));
            }
            Happening::EngineRestarts { before } => self.restart_engine(before),
            Happening::Flush { told } => {
                self.held.clear();
                self.tell(told, |delta| delta.cleared = true);
            }
            Happening::Reconcile { meanwhile } => self.reconcile(meanwhile),
        }
    }

    /// Another session of the worker's agent, whose deltas begin anew.
    fn join(&mut self, reconcile: Vec<u32>) -> Joined {
        (self.session, self.seq) = (self.session + 1, 0);
        let agent = reconciling(&self.story, self.worker, self.incarnation, reconcile);
        self.story.join_as(agent, self.session).unwrap()
    }

    fn restart_engine(&mut self, before: Vec<Vec<u32>>) {
        self.held.clear();
        self.incarnation += 1;
        let mut baseline = Vec::new();
        for prompt in before {
            self.story.serve(&prompt, 0);
            baseline.push(stored(None, &self.hold(&prompt)));
        }
        let joined = self.join(Vec::new());
        assert_eq!((joined.unreconciled, joined.resumed), (Vec::new(), Vec::new()));
        self.story.baseline(self.worker, self.session, 0, baseline);
    }

    fn store(&mut self, prompt: &[u32], told: bool) {
        let hashes = self.hold(prompt);
        self.tell(told, |delta| delta.stored = vec![stored(None, &hashes)]);
    }

    /// The engine holds a prompt.
    fn hold(&mut self, prompt: &[u32]) -> Vec<BlockHash> {
        let hashes = self.story.hashes(prompt);
        let parents = std::iter::once(None).chain(hashes.iter().copied().map(Some));
        self.held.extend(hashes.iter().copied().zip(parents));
        hashes
    }

    fn evict(&mut self, pick: prop::sample::Index, told: bool) {
        if self.held.is_empty() {
            return;
        }
        let top = *self.held.keys().nth(pick.index(self.held.len())).unwrap();
        let mut gone = BTreeSet::from([top]);
        while let Some(below) = self
            .held
            .iter()
            .find(|(hash, above)| above.is_some_and(|above| gone.contains(&above)) && !gone.contains(*hash))
        {
            gone.insert(*below.0);
        }
        self.held.retain(|hash, _| !gone.contains(hash));
        self.tell(told, |delta| delta.removed = vec![top]);
    }

    /// Every change has a number, whether or not it gets through.
    fn tell(&mut self, gets_through: bool, say: impl FnOnce(&mut Delta)) {
        self.seq += 1;
        let mut delta = delta(self.seq);
        say(&mut delta);
        if gets_through {
            self.story.delta(self.worker, self.session, delta);
        }
    }

    fn vouched(&mut self) -> VouchedClaims {
        let target = TargetId { worker: self.worker, rank: 0 };
        self.story.ask(|done| Update::Query(Query::Vouched { target, unit: Unit::Token, done })).unwrap()
    }

    fn reconcile(&mut self, meanwhile: Vec<Happening>) {
        // An agent that begins anywhere begins with a delta; and what was in flight settles.
        self.tell(true, |_| ());
        for _ in 0..3 {
            self.story.pass(Duration::from_secs(1));
            self.story.report(self.worker, self.session, AgentReport::Alive);
        }
        let vouched = self.vouched();
        let mut encoder = Encoder::new(self.seq, vouched.hashes());
        assert_eq!(encoder.len(), vouched.blocks);
        let mut decoder = Decoder::new(self.seq, encoder.len(), self.held.keys().copied());
        let mut wanted = 16;
        let Difference { theirs, ours } = loop {
            match decoder.take(&encoder.symbols_to(wanted)).unwrap() {
                Progress::More { symbols } => wanted = symbols,
                Progress::Complete(difference) => break difference,
            }
        };
        meanwhile.into_iter().for_each(|happening| self.happen(happening));
        let removed = theirs.into_iter().filter(|hash| !self.held.contains_key(hash)).collect();
        // Parents first: of a chain the shorter ones.
        let mut found: Vec<_> = ours.into_iter().filter(|hash| self.held.contains_key(hash)).collect();
        found.sort_by_key(|hash| std::iter::successors(Some(*hash), |hash| self.held[hash]).count());
        let stored = found.iter().map(|hash| stored(self.held[hash], &[*hash])).collect();
        self.seq += 1;
        let delta = Delta { removed, stored, ..delta(self.seq) };
        let report = AgentReport::Reconciled { rank: 0, as_of: vouched.as_of, bytes: 0, delta };
        self.story.report(self.worker, self.session, report);
    }

    fn claims(&mut self) -> HashSet<BlockHash> {
        let target = TargetId { worker: self.worker, rank: 0 };
        let claims = self.story.ask(|done| Update::Query(Query::Claims { target, unit: Unit::Token, done }));
        claims.into_iter().collect()
    }
}

fn reconciling(story: &Story, worker: WorkerId, incarnation: u64, reconcile: Vec<u32>) -> Introduction {
    Introduction { reconciles: true, reconcile, ..story.introduction(worker, incarnation, Vec::new()) }
}

/// What happens while every delta gets through, in order.
#[derive(Clone, Debug)]
enum InOrder {
    /// A request is routed and waits for its prefill.
    Routed(Vec<u32>),
    /// One of those that wait is answered.
    Answered(prop::sample::Index),
    /// One of those that wait is given up.
    Cancelled(prop::sample::Index),
    Otherwise(Happening),
}

fn in_order() -> impl Strategy<Value = InOrder> {
    let restart =
        prop::collection::vec(prompts(), 0..3).prop_map(|before| Happening::EngineRestarts { before });
    prop_oneof![
        4 => prompts().prop_map(InOrder::Routed),
        3 => any::<prop::sample::Index>().prop_map(InOrder::Answered),
        1 => any::<prop::sample::Index>().prop_map(InOrder::Cancelled),
        5 => change(Just(true)).prop_map(InOrder::Otherwise),
        1 => Just(InOrder::Otherwise(Happening::Flush { told: true })),
        1 => restart.prop_map(InOrder::Otherwise),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn claims_are_what_is_held_once_reconciled(happenings in prop::collection::vec(happening(), 0..40)) {
        let mut cluster = Cluster::new();
        for happening in happenings {
            let compared = matches!(happening, Happening::Reconcile { .. });
            cluster.happen(happening);
            if compared {
                prop_assert_eq!(cluster.claims(), cluster.held.keys().copied().collect::<HashSet<_>>());
            }
        }
        cluster.happen(Happening::Reconcile { meanwhile: Vec::new() });
        prop_assert_eq!(cluster.claims(), cluster.held.keys().copied().collect::<HashSet<_>>());
        prop_assert!(!cluster.story.router.snapshot().fleet.targets[0].doubtful);
    }

    #[test]
    fn in_order_no_more_is_claimed_than_is_held_or_on_its_way(steps in prop::collection::vec(in_order(), 0..40)) {
        let mut cluster = Cluster::new();
        let mut waiting: Vec<(Vec<u32>, InFlight)> = Vec::new();
        for step in steps {
            match step {
                InOrder::Routed(prompt) => {
                    let in_flight = cluster.story.route(&prompt);
                    waiting.push((prompt, in_flight));
                }
                InOrder::Answered(pick) if !waiting.is_empty() => {
                    let (prompt, mut in_flight) = waiting.remove(pick.index(waiting.len()));
                    cluster.store(&prompt, true);
                    in_flight.first_token(cluster.story.now);
                    in_flight.complete(cluster.story.now);
                }
                InOrder::Cancelled(pick) if !waiting.is_empty() => {
                    drop(waiting.remove(pick.index(waiting.len())));
                }
                InOrder::Otherwise(happening) => cluster.happen(happening),
                InOrder::Answered(_) | InOrder::Cancelled(_) => {}
            }
            let mut may: HashSet<_> = cluster.held.keys().copied().collect();
            may.extend(waiting.iter().flat_map(|(prompt, _)| cluster.story.hashes(prompt)));
            let claims = cluster.claims();
            prop_assert!(claims.is_subset(&may), "{:?}", claims.difference(&may));
        }
    }
}

#[test]
fn after_a_gap_deltas_count_and_nothing_matches_until_it_is_healed() {
    let mut cluster = Cluster::new();
    let (known, lost) = (prompt(1, 4), prompt(2, 4));
    cluster.store(&known, true);
    cluster.store(&lost, false);
    cluster.seq += 1;
    let hashes = cluster.story.hashes(&prompt(3, 4));
    let later = Delta { stored: vec![stored(None, &hashes)], ..delta(cluster.seq) };
    let notices = cluster.story.delta(cluster.worker, 1, later);
    assert!(
        notices.iter().any(|notice| matches!(notice, Notice::ReconcileNeeded { rank: 0, .. })),
        "{notices:?}"
    );
    assert_eq!((cluster.claims().len(), cluster.story.matched(cluster.worker, &known)), (8, 0));
    cluster.store(&prompt(3, 4), true);
    cluster.reconcile(Vec::new());
    assert_eq!(cluster.story.matched(cluster.worker, &lost), 4);
}

#[test]
fn what_was_used_just_now_is_kept() {
    let mut cluster = Cluster::new();
    cluster.story.serve(&prompt(1, 4), 0);
    let hashes = cluster.story.hashes(&prompt(1, 4));
    cluster.tell(true, |delta| delta.stored = vec![stored(None, &hashes)]);
    // The claims are of now, and the agent has not heard of the store.
    let as_of = cluster.vouched().as_of;
    let delta = Delta { removed: hashes.clone(), ..delta(2) };
    cluster.story.report(
        cluster.worker,
        1,
        AgentReport::Reconciled { rank: 0, as_of, bytes: 500, delta: delta.clone() },
    );
    assert_eq!(cluster.claims().len(), 4);
    let later = as_of + Duration::from_secs(3);
    cluster.story.report(
        cluster.worker,
        1,
        AgentReport::Reconciled { rank: 0, as_of: later, bytes: 500, delta: Delta { seq: 3, ..delta } },
    );
    assert_eq!(cluster.claims().len(), 0);
    let accuracy = cluster.story.accuracy(cluster.worker);
    let last = accuracy.reconciliation(Unit::Token).unwrap();
    assert_eq!((last.false_claims, last.missing, last.tokens, last.bytes), (4, 0, 16, 500));
    let found = accuracy.divergence.unwrap();
    assert_eq!((found.tokens, found.source), (16, DivergenceSource::Reconciliation));
}

#[test]
fn only_what_is_worth_it_is_compared_at_a_reconnect() {
    let mut cluster = Cluster::new();
    let agent = reconciling(&cluster.story, cluster.worker, 1, Vec::new());
    let consider = |cluster: &mut Cluster, agent: &Introduction| {
        let agent = agent.clone().into();
        cluster.story.ask(|done| Update::Fleet(FleetUpdate::Consider { agent, done })).unwrap()
    };
    cluster.store(&prompt(1, 63), true);
    assert_eq!(consider(&mut cluster, &agent), Considered::default());
    cluster.store(&prompt(2, 1), true);
    assert_eq!(consider(&mut cluster, &agent), Considered { reconcile: vec![0], ..Considered::default() });
    let resuming = Introduction { resume: vec![(0, 2)], ..agent.clone() };
    assert_eq!(
        consider(&mut cluster, &resuming),
        Considered { resume: vec![(0, 2)], ..Considered::default() }
    );
    let other = Introduction { reconciles: false, ..agent };
    assert_eq!(consider(&mut cluster, &other), Considered::default());
}
