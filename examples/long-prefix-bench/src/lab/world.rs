//! What happens in a run: sessions ask, the router decides, engines work, agents report, clients lose patience.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;
use std::time::Duration;

use router_core::{InFlight, Usage};
use rustc_hash::FxHashSet;
use sglang_sim::Timing;

use super::contestant::{Caches, Contestant, Rule};
use super::side::{LabError, Side, as_time};
use crate::engine::{Change, Engine, Limits, Memory, Produced, RequestId};
use crate::sequence::BLOCK_TOKENS;
use crate::workload::Traffic;

/// The fleet and its clients.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Engines.
    pub workers: usize,
    /// KV tokens of each.
    pub capacity_tokens: usize,
    /// What an engine does at once.
    pub limits: Limits,
    /// How long it takes.
    pub timing: Timing,
    /// A client leaves if no token has come after this.
    pub timeout: Duration,
    /// Seeds the router's own randomness.
    pub seed: u64,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Request {
    /// When it was sent.
    pub sent: Duration,
    /// The engine that it went to.
    pub engine: usize,
    /// When its first token came; never if the client had left.
    pub first: Option<Duration>,
    /// When its last token came.
    pub done: Option<Duration>,
    /// Prompt tokens that were cached, as the engine says.
    pub cached_tokens: usize,
    /// Prompt tokens that the router expected to be.
    pub predicted_tokens: u64,
}

/// The fleet at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// When.
    pub at: Duration,
    /// Uncached tokens that wait at each engine.
    pub queued_tokens: Vec<usize>,
}

/// What became of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// In the order of [`Traffic::requests`].
    pub requests: Vec<Request>,
    /// Every prefill pass: the engine, its end, and how long it took.
    pub prefills: Vec<(usize, Duration, Duration)>,
    /// Every few seconds.
    pub samples: Vec<Sample>,
    /// When the last answer was complete.
    pub end: Duration,
    /// When each session's last answer was.
    pub session_ends: Vec<Duration>,
    /// Copies of each block that is cached anywhere, in the mean, when the last request has been sent.
    pub replication: f64,
    /// Requests put back by engines for lack of memory.
    pub retracted: u64,
    /// Tokens that were evicted.
    pub evicted_tokens: u64,
}

/// Time between two reports of an agent: the coordinator's default.
const REPORT_EVERY: Duration = Duration::from_millis(50);

/// Time between two signs of life of the agents, and between two samples.
const TICK: Duration = Duration::from_secs(5);

/// A capacity that nothing reaches, in blocks, with room to add to.
const UNBOUNDED: usize = usize::MAX >> 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A session asks its next turn.
    Ask { session: u32 },
    /// An engine's pass may be over.
    PassEnd { engine: usize },
    /// An engine's agent tells what has changed.
    Report { engine: usize },
    /// A client leaves unless its first token has come.
    Leave { request: u32 },
    /// Agents are alive, and the fleet is looked at.
    Tick,
}

/// A session that is asking.
#[derive(Clone, Copy, Debug, Default)]
struct Asking {
    turn: usize,
    /// Requests of the turn that are not over.
    open: usize,
    /// Where it went, if it stays there.
    engine: Option<usize>,
}

struct World<'a> {
    setting: &'a Setting,
    traffic: &'a Traffic,
    rule: &'a Rule,
    now: Duration,
    /// With a number that makes what happens at one time happen in order.
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    numbered: u64,
    engines: Vec<Engine>,
    side: Side,
    in_flight: Vec<Option<InFlight>>,
    asking: Vec<Asking>,
    /// What an engine's agent has seen and not told.
    untold: Vec<Vec<Change>>,
    unsent: usize,
    open: usize,
    outcome: Outcome,
}

/// Runs to the end of the last answer.
pub fn run(setting: &Setting, traffic: &Traffic, contestant: &Contestant) -> Result<Outcome, LabError> {
    let own = setting.capacity_tokens / BLOCK_TOKENS;
    let capacity_blocks = match contestant.caches {
        Caches::Own => own,
        Caches::Pooled => own * setting.workers,
        Caches::Infinite => UNBOUNDED,
    };
    let memory = || Rc::new(RefCell::new(Memory::new(capacity_blocks, contestant.agents)));
    let shared = memory();
    let engine = |_| {
        let memory = if contestant.caches == Caches::Own { memory() } else { shared.clone() };
        Engine::new(setting.limits, setting.timing, memory)
    };
    let capacity_tokens = setting.capacity_tokens as u64;
    let mut world = World {
        setting,
        traffic,
        rule: &contestant.rule,
        now: Duration::ZERO,
        events: BinaryHeap::new(),
        numbered: 0,
        engines: (0..setting.workers).map(engine).collect(),
        side: Side::new(contestant, setting.workers, capacity_tokens, setting.seed)?,
        in_flight: traffic.requests.iter().map(|_| None).collect(),
        asking: vec![Asking::default(); traffic.sessions.len()],
        untold: vec![Vec::new(); setting.workers],
        unsent: traffic.requests.len(),
        open: 0,
        outcome: Outcome {
            requests: vec![Request::default(); traffic.requests.len()],
            session_ends: vec![Duration::ZERO; traffic.sessions.len()],
            ..Outcome::default()
        },
    };
    for session in 0..traffic.sessions.len() {
        world.next_turn(session, traffic.sessions[session].start);
    }
    world.at(TICK, Event::Tick);
    while let Some(Reverse((at, _, event))) = world.events.pop() {
        world.now = at;
        world.happen(event)?;
    }
    Ok(world.ended())
}

impl World<'_> {
    fn at(&mut self, time: Duration, event: Event) {
        self.numbered += 1;
        self.events.push(Reverse((time, self.numbered, event)));
    }

    fn happen(&mut self, event: Event) -> Result<(), LabError> {
        match event {
            Event::Ask { session } => self.ask(session as usize)?,
            // A pass that was cut short has ended already, and another one may be under way.
            Event::PassEnd { engine } if self.engines[engine].ends() == Some(self.now) => {
                self.end_pass(engine)
            }
            Event::PassEnd { .. } => {}
            Event::Report { engine } => {
                let changes = std::mem::take(&mut self.untold[engine]);
                self.side.changed(engine, changes, self.now)?;
            }
            Event::Leave { request } => self.leave(request as usize),
            Event::Tick => self.tick()?,
        }
        Ok(())
    }

    /// A session's next turn is due.
    fn next_turn(&mut self, session: usize, answered: Duration) {
        let Some(turn) = self.traffic.sessions[session].turns.get(self.asking[session].turn) else {
            self.outcome.session_ends[session] = self.now;
            return;
        };
        let due = (answered + turn.think).max(turn.not_before);
        self.at(due, Event::Ask { session: session as u32 });
    }

    fn ask(&mut self, session: usize) -> Result<(), LabError> {
        let turn = &self.traffic.sessions[session].turns[self.asking[session].turn];
        self.asking[session].open = turn.requests.len();
        for request in &turn.requests {
            self.send(*request as usize, session)?;
        }
        if self.unsent == 0 && self.outcome.replication == 0.0 {
            self.outcome.replication = self.replication();
        }
        Ok(())
    }

    fn send(&mut self, request: usize, session: usize) -> Result<(), LabError> {
        let sequence = &self.traffic.requests[request];
        let mut expected = Vec::new();
        if matches!(self.rule, Rule::Exact) {
            expected = self.engines.iter().map(|engine| engine.will_match_tokens(sequence)).collect();
            let engines = self.engines.iter().zip(&expected).enumerate();
            let truth =
                engines.map(|(number, (engine, matched))| (number, *matched as u64, engine.backlog()));
            self.side.tell_truth(truth);
        }
        let only = self.asking[session].engine.filter(|_| matches!(self.rule, Rule::Sticky));
        let (engine, in_flight) = self.side.route(sequence.prompt(), only, self.now)?;
        self.asking[session].engine.get_or_insert(engine);
        self.outcome.requests[request] = Request {
            sent: self.now,
            engine,
            predicted_tokens: in_flight.predicted_tokens(),
            ..Request::default()
        };
        self.in_flight[request] = Some(in_flight);
        self.unsent -= 1;
        self.open += 1;
        self.engines[engine].submit(
            RequestId(request as u32),
            sequence.clone(),
            expected.get(engine).copied().unwrap_or(0),
        );
        if let Some(ends) = self.engines[engine].interrupt(self.now) {
            self.at(ends, Event::PassEnd { engine });
        }
        self.begin_pass(engine);
        self.at(self.now + self.setting.timeout, Event::Leave { request: request as u32 });
        Ok(())
    }

    fn begin_pass(&mut self, engine: usize) {
        if let Some(ends) = self.engines[engine].begin(self.now) {
            self.at(ends, Event::PassEnd { engine });
        }
    }

    fn end_pass(&mut self, engine: usize) {
        let (produced, prefilled) = self.engines[engine].end();
        if !prefilled.is_zero() {
            self.outcome.prefills.push((engine, self.now, prefilled));
        }
        for produced in produced {
            self.produce(produced);
        }
        self.begin_pass(engine);
        self.hear_changes(engine);
    }

    /// The agent hears what an engine publishes, and tells it before long.
    fn hear_changes(&mut self, engine: usize) {
        let changes = self.engines[engine].memory().borrow_mut().take_changes();
        if changes.is_empty() {
            return;
        }
        if self.untold[engine].is_empty() {
            self.at(self.now + REPORT_EVERY, Event::Report { engine });
        }
        self.untold[engine].extend(changes);
    }

    fn produce(&mut self, produced: Produced) {
        let request = produced.id.0 as usize;
        // The client may have left.
        let Some(in_flight) = &mut self.in_flight[request] else { return };
        let seen = &mut self.outcome.requests[request];
        if produced.first {
            seen.first = Some(self.now);
            seen.cached_tokens = produced.cached_tokens;
            in_flight.first_token(as_time(self.now));
            let prompt_tokens = self.traffic.requests[request].prompt_tokens() as u64;
            in_flight.usage(Usage { prompt_tokens, cached_tokens: produced.cached_tokens as u64 }, true);
        }
        if produced.last {
            seen.done = Some(self.now);
            if let Some(mut in_flight) = self.in_flight[request].take() {
                let answered = self.traffic.requests[request].answered().clone();
                in_flight.generated(answered, as_time(self.now));
                in_flight.complete(as_time(self.now));
            }
            self.over(request);
        }
    }

    /// A client that has waited too long for its first token goes on without it.
    fn leave(&mut self, request: usize) {
        if self.in_flight[request].is_none() || self.outcome.requests[request].first.is_some() {
            return;
        }
        let engine = self.outcome.requests[request].engine;
        self.engines[engine].abort(RequestId(request as u32));
        self.hear_changes(engine);
        self.in_flight[request] = None;
        self.over(request);
    }

    /// A request has been answered or given up.
    fn over(&mut self, request: usize) {
        self.open -= 1;
        self.outcome.end = self.now;
        let session = self.traffic.session_of[request] as usize;
        let asking = &mut self.asking[session];
        asking.open -= 1;
        if asking.open == 0 {
            asking.turn += 1;
            self.next_turn(session, self.now);
        }
    }

    fn tick(&mut self) -> Result<(), LabError> {
        self.side.alive(self.now)?;
        if self.unsent == 0 && self.open == 0 {
            return Ok(());
        }
        let queued_tokens = self.engines.iter().map(Engine::queued_tokens).collect();
        self.outcome.samples.push(Sample { at: self.now, queued_tokens });
        self.at(self.now + TICK, Event::Tick);
        Ok(())
    }

    /// Each memory once, however many engines share it.
    fn memories(&self) -> impl Iterator<Item = &Rc<RefCell<Memory>>> {
        let of = |engine: &Engine| Rc::as_ptr(engine.memory());
        let engines = self.engines.iter().enumerate();
        let first = move |(number, engine): &(usize, &Engine)| {
            !self.engines[..*number].iter().any(|other| of(other) == of(engine))
        };
        engines.filter(first).map(|(_, engine)| engine.memory())
    }

    fn replication(&self) -> f64 {
        let mut distinct = FxHashSet::default();
        let mut copies = 0;
        for memory in self.memories() {
            let memory = memory.borrow();
            copies += memory.cached_blocks();
            memory.collect(&mut distinct);
        }
        copies as f64 / distinct.len().max(1) as f64
    }

    fn ended(mut self) -> Outcome {
        let evicted: u64 = self.memories().map(|memory| memory.borrow().evicted_blocks()).sum();
        self.outcome.evicted_tokens = evicted * BLOCK_TOKENS as u64;
        self.outcome.retracted = self.engines.iter().map(|engine| engine.totals().retracted).sum();
        self.outcome
    }
}

#[cfg(test)]
mod tests {
    use router_core::policy::CacheAwareSettings;

    use super::super::contestants;
    use super::*;
    use crate::reference::Accesses;
    use crate::workload::{Pattern, draft};

    fn setting(capacity_tokens: usize) -> Setting {
        Setting {
            workers: 4,
            capacity_tokens,
            limits: Limits::default(),
            timing: Timing::default(),
            timeout: Duration::from_secs(120),
            seed: 1,
        }
    }

    fn outcome(pattern: Pattern, name: &str, capacity_tokens: usize) -> (Traffic, Outcome) {
        let setting = setting(capacity_tokens);
        let traffic = draft(pattern, 200, 7).at_load(0.4, setting.workers, &setting.timing);
        let contestant = contestants(CacheAwareSettings::default())
            .into_iter()
            .find(|contestant| contestant.name == name)
            .unwrap();
        let outcome = run(&setting, &traffic, &contestant).unwrap();
        (traffic, outcome)
    }

    fn cached(outcome: &Outcome) -> usize {
        outcome.requests.iter().map(|request| request.cached_tokens).sum()
    }

    #[test]
    fn the_seed_decides_everything() {
        for contestant in contestants(CacheAwareSettings::default()) {
            let run = || outcome(Pattern::Agents, contestant.name, 100_000).1;
            let (one, other) = (run(), run());
            assert_eq!(one.requests, other.requests, "{}", contestant.name);
            assert_eq!(one.samples, other.samples, "{}", contestant.name);
        }
    }

    #[test]
    fn everybody_answers_every_request() {
        for contestant in contestants(CacheAwareSettings::default()) {
            for pattern in [Pattern::Chat, Pattern::Branching] {
                let (traffic, outcome) = outcome(pattern, contestant.name, 1 << 20);
                let answered = outcome.requests.iter().filter(|request| request.done.is_some()).count();
                assert_eq!(answered, traffic.requests.len(), "{}, {}", contestant.name, pattern.name());
                for session in &traffic.sessions {
                    for turns in session.turns.windows(2) {
                        let over = turns[0].requests.iter().map(|at| outcome.requests[*at as usize].done);
                        let asked = outcome.requests[turns[1].requests[0] as usize].sent;
                        assert!(
                            over.max().flatten().unwrap() + turns[1].think <= asked,
                            "an answer comes first"
                        );
                    }
                }
            }
        }
    }

    /// Hits of the timed references are ordered as the replayed ones are.
    #[test]
    fn an_infinite_cache_finds_most_and_a_pooled_one_more_than_parts() {
        let tokens = 60_000;
        let hits = |name| cached(&outcome(Pattern::Documents, name, tokens).1);
        let (infinite, pooled, blind) = (hits("infinite cache"), hits("pooled cache"), hits("round_robin"));
        assert!(infinite >= pooled && pooled > blind, "{infinite} {pooled} {blind}");
        let (traffic, outcome) = outcome(Pattern::Chat, "infinite cache", tokens);
        assert_eq!(outcome.replication, 1.0, "a block in one cache is there once");
        let replayed: usize = Accesses::new(&traffic.requests).infinite().iter().sum();
        let found = cached(&outcome);
        let difference = found.abs_diff(replayed) as f64 / replayed as f64;
        assert!(difference < 0.02, "in time {found}, replayed {replayed}");
    }

    /// A router that is told what engines hold never expects less than it gets.
    #[test]
    fn agents_leave_nothing_to_be_found_by_surprise() {
        let surprises = |name| {
            let (_, outcome) = outcome(Pattern::Agents, name, 100_000);
            let seen = outcome.requests.iter().filter(|request| request.first.is_some());
            seen.map(|request| (request.cached_tokens as u64).saturating_sub(request.predicted_tokens))
                .sum::<u64>()
        };
        assert_eq!(surprises("cache_aware"), 0);
        assert!(surprises("cache_aware, no agents") > 0);
    }

    #[test]
    fn clients_leave_when_nothing_comes_and_the_engine_goes_on() {
        let setting = Setting { timeout: Duration::from_secs(1), workers: 1, ..setting(1 << 20) };
        let traffic = draft(Pattern::NoSharing, 60, 7).schedule(Duration::from_secs(1));
        let router = contestants(CacheAwareSettings::default())
            .into_iter()
            .find(|contestant| contestant.name == "round_robin")
            .unwrap();
        let outcome = run(&setting, &traffic, &router).unwrap();
        let left = outcome.requests.iter().filter(|request| request.first.is_none()).count();
        assert!(left > 20 && left < 60, "{left}");
        let late =
            |request: &&Request| request.first.is_some_and(|first| first > request.sent + setting.timeout);
        assert_eq!(outcome.requests.iter().filter(late).count(), 0);
    }
}
