//! What happens in a run: sessions ask, routers decide, engines work, agents report, clients lose patience. What goes wrong with
//! engines is in `trouble`, with routers in `routers`; in `fleet` engines come and go; `caches` is what they hold together.

mod caches;
mod dispatch;
mod fleet;
mod routers;
#[cfg(test)]
mod tests;
mod trouble;

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;
use std::time::Duration;

use router_core::{InFlight, Usage};

use super::contestant::{Caches, Contestant};
use super::fault::{Blow, Fault};
use super::outcome::{Outcome, Request, Sample, Setting};
use super::side::{LabError, Side, as_time};
use crate::engine::{Change, Engine, Memory, Produced, RequestId};
use crate::sequence::BLOCK_TOKENS;
use crate::workload::Traffic;

/// Time between two health checks, the default, and between two samples.
const TICK: Duration = Duration::from_secs(5);

/// Time between two reports of an agent on its engine's load and state: the default.
const BEAT: Duration = Duration::from_secs(1);

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
    /// Something goes wrong with an engine or a router, or is over.
    Blow { whom: usize, blow: Blow },
    /// Agents tell how their engines are.
    Beat,
    /// Routers check their engines, and the fleet is looked at.
    Tick,
}

/// A session that is asking.
#[derive(Clone, Copy, Debug, Default)]
struct Asking {
    turn: usize,
    /// Requests of the turn that are not over.
    open: usize,
}

/// Whether an engine is in the fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Membership {
    #[default]
    Member,
    /// It will join.
    Ahead,
    /// It finishes what it has.
    Leaving,
    Left,
}

/// What is wrong with an engine.
#[derive(Clone, Copy, Debug, Default)]
struct Condition {
    is_down: bool,
    is_paused: bool,
    /// Lives before this one.
    lives: u64,
    /// Nobody has found out yet that this life is another one.
    is_unknown: bool,
    /// Health checks in a row that it did not answer.
    unanswered: u32,
    membership: Membership,
    /// When it joined, and when it left.
    stays: (Duration, Duration),
}

struct World<'a> {
    setting: &'a Setting,
    traffic: &'a Traffic,
    contestant: &'a Contestant,
    now: Duration,
    /// With a number that makes what happens at one time happen in order.
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    numbered: u64,
    engines: Vec<Engine>,
    conditions: Vec<Condition>,
    /// Each engine has a cache of its own.
    own_caches: bool,
    /// The routers; nothing where one is dead.
    sides: Vec<Option<Side>>,
    /// Where each router has sent sessions that stay there.
    homes: Vec<Vec<Option<usize>>>,
    rng: fastrand::Rng,
    /// The router of each request.
    router_of: Vec<usize>,
    /// Engines that could not serve a request.
    tried: Vec<Vec<usize>>,
    in_flight: Vec<Option<InFlight>>,
    asking: Vec<Asking>,
    /// What an engine's agent has seen and not told.
    untold: Vec<Vec<Change>>,
    /// Where requests have to go, whatever the router would do.
    recorded: &'a [Option<usize>],
    unsent: usize,
    open: usize,
    outcome: Outcome,
}

/// Runs to the end of the last answer.
pub fn run(setting: &Setting, traffic: &Traffic, contestant: &Contestant) -> Result<Outcome, LabError> {
    replay(setting, traffic, contestant, &[])
}

/// The same, with every request sent to the engine that is given for it, if one is. The router is asked all the same, and the
/// [`Outcome`] tells how often it was overruled.
pub fn replay(
    setting: &Setting,
    traffic: &Traffic,
    contestant: &Contestant,
    recorded: &[Option<usize>],
) -> Result<Outcome, LabError> {
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
    let (engines, routers) = (setting.engines(), setting.routers.max(1));
    let condition = |engine| Condition {
        membership: if engine < setting.workers { Membership::Member } else { Membership::Ahead },
        stays: (Duration::ZERO, Duration::MAX),
        ..Condition::default()
    };
    let side = |number: usize| {
        let seed = setting.seed ^ (number as u64) << 32;
        let capacity_tokens = setting.capacity_tokens as u64;
        let fleet = (setting.workers, routers);
        Side::new(contestant, fleet, capacity_tokens, setting.most_blocks, seed).map(Some)
    };
    let mut world = World {
        setting,
        traffic,
        contestant,
        now: Duration::ZERO,
        events: BinaryHeap::new(),
        numbered: 0,
        engines: (0..engines).map(engine).collect(),
        conditions: (0..engines).map(condition).collect(),
        own_caches: contestant.caches == Caches::Own,
        sides: (0..routers).map(side).collect::<Result<_, _>>()?,
        homes: vec![vec![None; traffic.sessions.len()]; routers],
        rng: fastrand::Rng::with_seed(setting.seed),
        router_of: vec![0; traffic.requests.len()],
        tried: vec![Vec::new(); traffic.requests.len()],
        in_flight: traffic.requests.iter().map(|_| None).collect(),
        asking: vec![Asking::default(); traffic.sessions.len()],
        untold: vec![Vec::new(); engines],
        recorded,
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
    if contestant.agents {
        world.at(BEAT, Event::Beat);
    }
    if let Some(fault) = setting.fault {
        for (at, whom, blow) in fault.blows(setting.workers, routers, traffic.span) {
            world.at(at, Event::Blow { whom, blow });
        }
    }
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
            Event::Report { engine } => self.report(engine)?,
            Event::Blow { whom, blow } => self.strike(whom, blow)?,
            Event::Beat => self.beat()?,
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
            self.send(*request as usize)?;
        }
        if self.unsent == 0 && self.outcome.replication == 0.0 {
            self.outcome.replication = self.replication();
        }
        Ok(())
    }

    fn send(&mut self, request: usize) -> Result<(), LabError> {
        self.outcome.requests[request].sent = self.now;
        self.note_return(request);
        self.unsent -= 1;
        self.open += 1;
        self.at(self.now + self.setting.timeout, Event::Leave { request: request as u32 });
        self.reach_router(request)
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
            self.at(self.now + Fault::report_after(self.setting.fault), Event::Report { engine });
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
        self.abort(request);
        self.in_flight[request] = None;
        self.over(request);
    }

    /// Its engine hears that nobody waits for a request any more.
    fn abort(&mut self, request: usize) {
        let engine = self.outcome.requests[request].engine;
        if let Some(ends) = self.engines[engine].interrupt(self.now) {
            self.at(ends, Event::PassEnd { engine });
        }
        self.engines[engine].abort(RequestId(request as u32));
        self.begin_pass(engine);
        self.hear_changes(engine);
    }

    /// A request finds nobody, or its answer breaks off.
    fn fail(&mut self, request: usize) {
        self.outcome.requests[request].failed = true;
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
        self.check_engines()?;
        self.release_drained()?;
        if self.is_over() {
            return Ok(());
        }
        let present = self.present().map(|engine| self.engines[engine].queued_tokens());
        let queued_tokens = present.collect();
        self.outcome.samples.push(Sample { at: self.now, queued_tokens });
        self.at(self.now + TICK, Event::Tick);
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.unsent == 0 && self.open == 0
    }

    fn ended(mut self) -> Outcome {
        let evicted: u64 = self.memories().map(|memory| memory.borrow().evicted_blocks()).sum();
        self.outcome.evicted_tokens = evicted * BLOCK_TOKENS as u64;
        if self.engines.len() > self.setting.workers {
            self.outcome.stays = self.conditions.iter().map(|condition| condition.stays).collect();
        }
        self.outcome.retracted = self.engines.iter().map(|engine| engine.totals().retracted).sum();
        self.outcome
    }
}
