//! One run: a router and its workers, the traffic of a cell, and what came of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::checks::{CachedTokens, Checks, RouterCost};
use super::client::{Client, Failure};
use super::contestant::{Contestant, Index, Ports, Programs, Router, probe};
use super::drive::{Drive, Seen, Target};
use super::job::HttpError;
use super::limits::{open_files, out_of_descriptors};
use super::truth::{Counters, Truth, Watched};
use super::way::Way;
use super::workers::{Workers, WorkersRole};
use super::{Api, Scale, system};
use crate::lab::{Outcome, Request, Setting};
use crate::metrics::{Detail, Metrics};
use crate::recording::Recording;
use crate::runner::Prepared;
use crate::workload::Traffic;

/// How requests are made.
#[derive(Clone, Debug)]
pub(super) struct Manner {
    pub(super) scale: Scale,
    pub(super) api: Api,
    pub(super) model: String,
    /// Blocks in our router's index at most, if that is to matter.
    pub(super) most_blocks: Option<u64>,
}

/// Figures of a run.
pub(super) struct Ran {
    pub(super) metrics: Metrics,
    pub(super) detail: Detail,
    pub(super) checks: Checks,
    /// Of a run to its end.
    pub(super) recorded: Option<Recorded>,
}

/// Every request of a run: how it was sent, and what became of it.
pub(super) struct Recorded {
    pub(super) recording: Recording,
    pub(super) requests: Vec<Request>,
}

/// Processes of ours that take part in a run.
#[derive(Default)]
struct Parts {
    workers: Option<Workers>,
    router: Option<Router>,
}

/// What has been used so far, in seconds of CPU.
#[derive(Clone, Copy, Debug)]
struct Used {
    router: f64,
    driver: f64,
}

/// Why a run ended early that somebody stopped.
const STOPPED: &str = "stopped by whoever ran it";

/// Pause between two looks at whether everybody is alive.
const LOOK: Duration = Duration::from_millis(500);

/// Connections refused in a row by which a router that is not ours is taken to be gone.
const GONE: usize = 10;

/// Runs a contestant that we start, with fresh workers.
pub(super) async fn started(
    contestant: Contestant,
    programs: &Programs,
    prepared: &Prepared,
    manner: &Manner,
    stop: &mut watch::Receiver<bool>,
    over: Box<dyn Fn() + Send + Sync>,
) -> Result<Ran, HttpError> {
    let setting = &prepared.setting;
    let mut parts = tokio::select! {
        parts = start(contestant, programs, setting, manner) => parts?,
        () = stopped(stop) => return Ok(Ran::without(Checks { ended_early: Some(STOPPED.to_owned()), ..Checks::default() })),
    };
    let urls = parts.workers.as_ref().map(|workers| workers.urls.clone()).unwrap_or_default();
    let way = match &parts.router {
        Some(router) => Way::Router(router.url.clone()),
        None if contestant == Contestant::SessionSticky => Way::sticky(&urls, setting)?,
        None => Way::round_robin(&urls),
    };
    let ran = drive(prepared, manner, way, &urls, &mut parts, stop, over).await;
    if let Some(router) = parts.router {
        router.process.stop().await;
    }
    Ok(ran)
}

/// Fresh workers, and the router before them.
async fn start(
    contestant: Contestant,
    programs: &Programs,
    setting: &Setting,
    manner: &Manner,
) -> Result<Parts, HttpError> {
    let ports = Ports::free()?;
    let control = contestant.has_agents().then(|| ports.control_url());
    let role = WorkersRole::new(setting.workers, setting.capacity_tokens, manner.scale, control);
    let mut workers = Workers::start(&programs.own, &role).await?;
    let index = Index { scale: manner.scale, most_blocks: manner.most_blocks };
    let mut router = Router::start(contestant, programs, ports, &workers.urls, index)?;
    if let Some(router) = &mut router {
        router.ready(&Client::new()).await?;
    }
    workers.ready().await?;
    Ok(Parts { workers: Some(workers), router })
}

/// Runs against a router that is there.
pub(super) async fn running(
    url: &str,
    workers: &[String],
    prepared: &Prepared,
    manner: &Manner,
    stop: &mut watch::Receiver<bool>,
    over: Box<dyn Fn() + Send + Sync>,
) -> Result<Ran, HttpError> {
    probe(&Client::new(), url, manner.api, &manner.model).await?;
    // Every run begins with empty caches.
    if !workers.is_empty() && !Truth::new(workers).flush().await {
        return Err(HttpError::NotFlushed { workers: workers.join(", ") });
    }
    Ok(drive(prepared, manner, Way::Router(url.to_owned()), workers, &mut Parts::default(), stop, over).await)
}

async fn drive(
    prepared: &Prepared,
    manner: &Manner,
    way: Way,
    workers: &[String],
    parts: &mut Parts,
    stop: &mut watch::Receiver<bool>,
    over: Box<dyn Fn() + Send + Sync>,
) -> Ran {
    let Manner { scale, api, model, .. } = manner.clone();
    let truth = Truth::new(workers);
    let (before, used_before) = (truth.counters().await, parts.used());
    let target = Target { way, workers: workers.to_vec(), api, model, scale };
    let traffic = Arc::new(prepared.traffic.clone());
    let drive = Arc::new(Drive::new(traffic, target, prepared.setting.timeout, over));
    let ended_early = tokio::select! {
        () = drive.run() => None,
        () = truth.watch(drive.began) => None,
        reason = trouble(parts, &drive) => Some(reason),
        () = stopped(stop) => Some(STOPPED.to_owned()),
    };
    let wall_s = drive.began.elapsed().as_secs_f64();
    let (used, seen) = (parts.used(), drive.seen());
    let after = truth.counters().await;
    let lens = prepared.traffic.requests.iter().map(|sequence| scale.prompt_tokens(sequence));
    let mut checks = Checks { ended_early, ..Checks::of(&seen, lens) };
    let cores = (used.driver - used_before.driver) / wall_s.max(1e-9);
    checks.driver_cores = (used.driver > 0.0).then_some(cores);
    checks.router = parts.router.as_ref().and_then(|router| {
        let memory = system::memory(router.process.id());
        let cpu_ms = 1e3 * (used.router - used_before.router);
        let cost = RouterCost {
            cpu_ms_per_request: cpu_ms / checks.over.max(1) as f64,
            resident_mb: memory.resident,
            peak_mb: memory.peak,
        };
        (memory.peak > 0.0).then_some(cost)
    });
    let counted = before.zip(after);
    if checks.ended_early.is_none() {
        let by_answers: f64 = seen.iter().flatten().map(|seen| seen.cached_tokens as f64).sum();
        checks.cached_tokens = counted.map(|(before, after)| CachedTokens {
            by_answers: by_answers * scale.get() as f64,
            by_workers: (after.cached_tokens - before.cached_tokens) * scale.get() as f64,
        });
    }
    let outcome = outcome(&seen, truth.watched(), counted, drive.session_ends(), scale);
    let recorded = seen.iter().cloned().collect::<Option<Vec<Seen>>>().map(|seen| {
        let sent = seen.iter().map(|seen| (seen.sent, seen.engine));
        let recording = Recording::new(prepared.seed.seed, &prepared.traffic, sent);
        Recorded { recording, requests: outcome.requests.clone() }
    });
    let (metrics, detail) = figures(prepared, &seen, outcome);
    Ran { metrics, detail, checks, recorded }
}

/// Waits to be told; for ever, if whoever could tell is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending().await
    }
}

/// Waits for something to end that should not.
async fn trouble(parts: &mut Parts, drive: &Drive) -> String {
    // Asked for while a file can still be opened.
    let limit = open_files();
    loop {
        sleep(LOOK).await;
        if let Some(Err(error)) = parts.router.as_mut().map(|router| router.process.check()) {
            return error.to_string();
        }
        if let Some(Err(error)) = parts.workers.as_mut().map(Workers::check) {
            return error.to_string();
        }
        if drive.out_of_descriptors() {
            return out_of_descriptors(limit);
        }
        if drive.refused_in_a_row() >= GONE {
            return format!("{GONE} connections in a row were refused: the router is gone");
        }
    }
}

impl Ran {
    /// Of a run in which nothing was measured.
    pub(super) fn without(checks: Checks) -> Self {
        Self { metrics: Metrics::default(), detail: Detail::default(), checks, recorded: None }
    }
}

impl Parts {
    fn used(&self) -> Used {
        let cpu = |process| system::cpu_seconds(&system::family(process));
        let router = self.router.as_ref().map_or(0.0, |router| cpu(router.process.id()));
        let workers = self.workers.as_ref().map_or(0.0, |workers| cpu(workers.process()));
        // What this process started counts with it.
        Used { router, driver: cpu(std::process::id()) - router - workers }
    }
}

/// What was seen, in the workload's tokens.
fn outcome(
    seen: &[Option<Seen>],
    watched: Watched,
    counted: Option<(Counters, Counters)>,
    session_ends: Vec<Duration>,
    scale: Scale,
) -> Outcome {
    let weight = scale.get();
    let request = |seen: &Seen| Request {
        sent: seen.due,
        engine: 0,
        first: seen.first,
        done: seen.done,
        failed: seen.failure.as_ref().is_some_and(|failure| *failure != Failure::TimedOut),
        cached_tokens: seen.cached_tokens as usize * weight,
        // Of a router that does not say what it expects there is no error.
        predicted_tokens: seen.predicted_tokens.unwrap_or(seen.cached_tokens) * weight as u64,
        returned: None,
    };
    let evicted = counted.map_or(0.0, |(before, after)| after.evicted_tokens - before.evicted_tokens);
    Outcome {
        requests: seen.iter().map(|seen| seen.as_ref().map(request).unwrap_or_default()).collect(),
        prefills: watched.prefills,
        samples: watched.samples,
        end: seen.iter().flatten().filter_map(|seen| seen.done).max().unwrap_or_default(),
        session_ends,
        replication: 0.0,
        retracted: seen.iter().flatten().map(|seen| seen.retractions).sum(),
        evicted_tokens: evicted as u64 * weight as u64,
        ..Outcome::default()
    }
}

/// Of the requests that are over: all, unless the run ended early.
fn figures(prepared: &Prepared, seen: &[Option<Seen>], outcome: Outcome) -> (Metrics, Detail) {
    if seen.iter().all(Option::is_some) {
        return prepared.figures(&outcome);
    }
    let over: Vec<usize> = (0..seen.len()).filter(|place| seen[*place].is_some()).collect();
    let Prepared { traffic, ideal, setting, seed } = prepared;
    let part = Prepared {
        traffic: Traffic {
            requests: over.iter().map(|place| traffic.requests[*place].clone()).collect(),
            session_of: over.iter().map(|place| traffic.session_of[*place]).collect(),
            sessions: Vec::new(),
            span: traffic.span,
            warm_up: over.iter().filter(|place| **place < traffic.warm_up).count(),
            hash: traffic.hash,
        },
        ideal: over.iter().map(|place| ideal[*place]).collect(),
        setting: *setting,
        seed: seed.clone(),
    };
    let requests = over.iter().map(|place| outcome.requests[*place]).collect();
    part.figures(&Outcome { requests, session_ends: Vec::new(), ..outcome })
}
