//! What happens: requests come, engines step, agents report, and now and then claims are held against the truth.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::time::Duration;

use router_core::key::{BlockHash, PrefixKey, Salt, Unit};
use router_core::{InFlight, Usage};
use sglang_sim::{Produced, RequestId};

use crate::engine::Engine;
use crate::figures::Figures;
use crate::level::Level;
use crate::side::{Fault, Side, as_time};
use crate::workload::{Kind, Request, Session, Workload};

/// Time between two reports of an agent: the coordinator's default.
const REPORT_EVERY: Duration = Duration::from_millis(50);

/// Reports in the time that a router has to name what it predicts, as agents have it.
const REPORTS_TO_NAME: u64 = 5;

/// Time between two signs of life of an agent, and between two of its counts: a third of its lease, and more often than that
/// nobody needs to know how full a cache is.
const ALIVE_EVERY: Duration = Duration::from_secs(1);

/// Time between two comparisons with the truth; not a multiple of the other.
const SAMPLE_EVERY: Duration = Duration::from_millis(1_333);

/// Of the requests, this share fills the caches before anything counts.
const WARM_UP: f64 = 0.25;

/// One run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) kind: Kind,
    pub(crate) level: Level,
    pub(crate) routers: usize,
    /// Engines plan ahead, as they do by default.
    pub(crate) overlap_schedule: bool,
    pub(crate) engines: usize,
    pub(crate) requests: usize,
    pub(crate) seed: u64,
}

/// What happens next somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival,
    StepEnd { engine: usize },
    Report,
    Alive,
    Sample,
    Reconcile { side: usize, engine: usize, elapsed: Duration },
}

/// A request at an engine.
#[derive(Debug)]
struct Live {
    in_flight: Option<InFlight>,
    /// The router that it came through.
    side: usize,
    key: PrefixKey,
    prompt_tokens: usize,
    /// The prompt and what has been produced.
    said: Vec<u32>,
    session: Option<Session>,
    prefilled: bool,
}

struct World {
    setting: Setting,
    now: Duration,
    events: BinaryHeap<Reverse<(Duration, Event)>>,
    workload: Workload,
    engines: Vec<Engine>,
    sides: Vec<Side>,
    live: HashMap<(usize, RequestId), Live>,
    rng: fastrand::Rng,
    sent: usize,
    reports_made: u64,
    figures: Figures,
    /// Bytes of events and of reports, reports and their time, when the warm-up ended.
    before: Option<(u64, u64, u64, f64)>,
}

/// Runs to the end of the last request.
pub(crate) fn run(setting: Setting) -> Result<Figures, Fault> {
    let sides = (0..setting.routers).map(|side| Side::new(setting, side as u64));
    let sides = sides.collect::<Result<Vec<_>, _>>()?;
    let space = sides[0].router.key_space(Unit::Token).clone();
    let engine = || {
        Engine::new(&space, setting.level.tells(setting.routers), setting.routers, setting.overlap_schedule)
    };
    let mut world = World {
        setting,
        now: Duration::ZERO,
        events: BinaryHeap::new(),
        workload: Workload::new(setting.kind, setting.engines, setting.seed),
        engines: (0..setting.engines).map(|_| engine()).collect(),
        sides,
        live: HashMap::new(),
        rng: fastrand::Rng::with_seed(setting.seed),
        sent: 0,
        reports_made: 0,
        figures: Figures::default(),
        before: None,
    };
    for event in [Event::Arrival, Event::Report, Event::Alive, Event::Sample] {
        world.after(Duration::ZERO, event);
    }
    if let Some(elapsed) = setting.level.first_comparison() {
        for (side, engine) in
            (0..setting.routers).flat_map(|side| (0..setting.engines).map(move |at| (side, at)))
        {
            world.after(elapsed, Event::Reconcile { side, engine, elapsed });
        }
    }
    while let Some(Reverse((at, event))) = world.events.pop() {
        world.now = at;
        world.happen(event)?;
    }
    Ok(world.ended())
}

impl World {
    fn after(&mut self, time: Duration, event: Event) {
        self.events.push(Reverse((self.now + time, event)));
    }

    fn happen(&mut self, event: Event) -> Result<(), Fault> {
        let over = self.sent == self.setting.requests && self.live.is_empty();
        match event {
            Event::Arrival => {
                self.arrive()?;
                if self.sent < self.setting.requests {
                    let gap = self.workload.next_gap();
                    self.after(gap, Event::Arrival);
                }
            }
            Event::StepEnd { engine } => self.end_step(engine),
            Event::Report => {
                self.report()?;
                if !over {
                    self.after(REPORT_EVERY, event);
                }
            }
            Event::Alive => {
                self.alive()?;
                if !over {
                    self.after(ALIVE_EVERY, event);
                }
            }
            Event::Sample => {
                self.sample()?;
                if !over {
                    self.after(SAMPLE_EVERY, event);
                }
            }
            // Once all is over, agents say no more that they are there.
            Event::Reconcile { .. } if over => {}
            Event::Reconcile { side, engine, elapsed } => {
                let (differing, blocks) = self.reconcile(side, engine)?;
                if let Some(elapsed) = self.setting.level.next_comparison(elapsed, differing, blocks) {
                    self.after(elapsed, Event::Reconcile { side, engine, elapsed });
                }
            }
        }
        Ok(())
    }

    fn counts(&self) -> bool {
        self.sent as f64 > WARM_UP * self.setting.requests as f64
    }

    fn arrive(&mut self) -> Result<(), Fault> {
        self.sent += 1;
        let Request { prompt, output_tokens, session } = self.workload.request();
        let number = self.rng.usize(..self.sides.len());
        let side = &mut self.sides[number];
        let key = side.router.key_space(Unit::Token).key_of_tokens(Salt::default(), &prompt);
        let in_flight = side.route(&key, as_time(self.now))?;
        let engine = side.engine_of(in_flight.target()).ok_or("a decision for nobody")?;
        let live = Live {
            in_flight: Some(in_flight),
            side: number,
            key,
            prompt_tokens: prompt.len(),
            said: prompt.clone(),
            session,
            prefilled: false,
        };
        let id = self.engines[engine].submit(prompt, output_tokens);
        self.live.insert((engine, id), live);
        self.begin_step(engine);
        Ok(())
    }

    fn begin_step(&mut self, engine: usize) {
        if let Some(takes) = self.engines[engine].begin() {
            self.after(takes, Event::StepEnd { engine });
        }
    }

    fn end_step(&mut self, engine: usize) {
        let step = self.engines[engine].end();
        for produced in step.produced {
            self.produce(engine, produced);
        }
        self.begin_step(engine);
    }

    fn produce(&mut self, engine: usize, produced: Produced) {
        let counts = self.counts();
        let Some(live) = self.live.get_mut(&(engine, produced.id)) else { return };
        live.said.push(produced.token);
        if !std::mem::replace(&mut live.prefilled, true)
            && let Some(in_flight) = &mut live.in_flight
        {
            let (prompt, cached) = (live.prompt_tokens as u64, produced.cached_tokens as u64);
            in_flight.first_token(as_time(self.now));
            in_flight.usage(Usage { prompt_tokens: prompt, cached_tokens: cached }, true);
            if counts {
                self.figures.requests += 1;
                self.figures.mispredicted += in_flight.predicted_tokens().abs_diff(cached);
                self.figures.prompt_tokens += prompt;
                self.figures.cached_tokens += cached;
            }
        }
        if produced.last
            && let Some(mut live) = self.live.remove(&(engine, produced.id))
        {
            if let Some(mut in_flight) = live.in_flight.take() {
                if self.setting.level.hears_responses() {
                    let space = self.sides[live.side].router.key_space(Unit::Token);
                    let said = &live.said[..live.said.len() - 1];
                    in_flight.generated(space.key_of_tokens(Salt::default(), said), as_time(self.now));
                }
                in_flight.complete(as_time(self.now));
            }
            if let Some(session) = live.session {
                self.workload.answered(session, live.said);
            }
        }
    }

    fn report(&mut self) -> Result<(), Fault> {
        if self.counts() && self.before.is_none() {
            self.before = Some(self.so_far());
        }
        let now = as_time(self.now);
        self.reports_made += 1;
        for (number, engine) in self.engines.iter_mut().enumerate() {
            for (view, side) in engine.views.iter_mut().zip(&mut self.sides) {
                side.predicted(number).into_iter().for_each(|last| view.predicted(last));
                if self.reports_made.is_multiple_of(REPORTS_TO_NAME) {
                    view.ripen();
                }
            }
            for (view, side) in engine.views.iter_mut().zip(&mut self.sides) {
                side.changed(number, view.take_delta(), now)?;
            }
        }
        Ok(())
    }

    /// Compares one router's claims on an engine with what that holds; how many of how many blocks differed.
    fn reconcile(&mut self, side: usize, engine: usize) -> Result<(u64, u64), Fault> {
        let now = as_time(self.now);
        let (view, router) = (&mut self.engines[engine].views[side], &mut self.sides[side]);
        // All that has changed is told before what a comparison finds.
        router.changed(engine, view.take_delta(), now)?;
        router.reconcile(engine, view, now)
    }

    fn alive(&mut self) -> Result<(), Fault> {
        if self.setting.level.session().is_none() {
            return Ok(());
        }
        let now = as_time(self.now);
        for (number, engine) in self.engines.iter().enumerate() {
            for side in &mut self.sides {
                side.counted(number, engine.counts(), now)?;
                side.alive(number, now)?;
            }
        }
        Ok(())
    }

    /// Holds every router's claims against what the engines hold. What is on its way to an engine and not prefilled is left out on
    /// both sides: it is claimed so that the next request follows it.
    fn sample(&mut self) -> Result<(), Fault> {
        if !self.counts() {
            return Ok(());
        }
        let now = as_time(self.now);
        let space = self.sides[0].router.key_space(Unit::Token).clone();
        for (number, engine) in self.engines.iter().enumerate() {
            let on_their_way: HashSet<BlockHash> = self
                .live
                .iter()
                .filter(|((at, _), live)| *at == number && !live.prefilled)
                .flat_map(|(_, live)| live.key.hashes().iter().copied())
                .collect();
            let mut held = engine.held(&space);
            held.retain(|hash| !on_their_way.contains(hash));
            for side in &mut self.sides {
                let mut claimed = side.claims(number, now)?;
                claimed.retain(|hash| !on_their_way.contains(hash));
                let falsely = claimed.difference(&held).count();
                let differing = falsely + held.difference(&claimed).count();
                self.figures.claimed += claimed.len() as u64;
                self.figures.falsely += falsely as u64;
                self.figures.divergences.push(differing as f64 / held.len().max(1) as f64);
            }
        }
        Ok(())
    }

    fn so_far(&self) -> (u64, u64, u64, f64) {
        let events: u64 = self.engines.iter().map(|engine| engine.event_bytes).sum();
        let sides = || self.sides.iter();
        (
            // What peers do: every router gets every event.
            events * self.sides.len() as u64,
            sides().map(|side| side.bytes).sum(),
            sides().map(|side| side.reports).sum(),
            sides().map(|side| side.report_us).sum(),
        )
    }

    fn ended(mut self) -> Figures {
        let (events, bytes, reports, us) = self.so_far();
        let before = self.before.unwrap_or_default();
        self.figures.event_bytes = events - before.0;
        self.figures.report_bytes = bytes - before.1;
        self.figures.reports = reports - before.2;
        self.figures.report_us = us - before.3;
        self.figures
    }
}
