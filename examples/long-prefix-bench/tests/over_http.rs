//! The benchmark over HTTP: real connections, simulated workers, no router but the driver itself or a worker in a router's place.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use long_prefix_bench::grid::{Capacity, Plan, Workload};
use long_prefix_bench::http::{
    Against, Api, Contestant, HttpError, HttpJob, Programs, Progress, RouterError,
};
use long_prefix_bench::lab::Clients;
use long_prefix_bench::recording::Choices;
use long_prefix_bench::report::{cells, checks, nominal, page, regrets, replays};
use long_prefix_bench::result::Report;
use long_prefix_bench::runner::Job;
use long_prefix_bench::workload::Pattern;
use router_core::policy::CacheAwareSettings;
use sglang_sim::{Sim, SimConfig};
use tokio::sync::watch;

type Deed = Box<dyn FnOnce() + Send>;

/// Does something once so many requests are over.
struct After {
    requests: usize,
    over: Arc<AtomicUsize>,
    then: Arc<Mutex<Option<Deed>>>,
}

impl After {
    fn requests(requests: usize, then: impl FnOnce() + Send + 'static) -> Self {
        Self { requests, over: Arc::default(), then: Arc::new(Mutex::new(Some(Box::new(then)))) }
    }
}

impl Progress for After {
    fn begin(&self, _what: &str, _requests: usize) {}

    fn over(&self) -> Box<dyn Fn() + Send + Sync> {
        let (requests, over, then) = (self.requests, self.over.clone(), self.then.clone());
        Box::new(move || {
            if over.fetch_add(1, Relaxed) + 1 == requests
                && let Some(then) = then.lock().expect("nobody panics with it").take()
            {
                then();
            }
        })
    }

    fn note(&self, _text: &str) {}
}

/// Some seconds of traffic.
fn plan(pattern: Pattern, requests: usize) -> [Plan; 1] {
    let capacity = Capacity::Kappa(1.0);
    [Plan {
        workload: Workload::Generated(pattern),
        capacity,
        rho: 1.0,
        workers: 2,
        requests,
        routers: 1,
        clients: Clients::default(),
        fault: None,
        pace: None,
        most_blocks: None,
        quiet: false,
    }]
}

fn job(cells: &[Plan], against: Against) -> HttpJob<'_> {
    let scale = "16".parse().expect("it is a scale");
    HttpJob { suite: "test", cells, traces: None, seeds: 1, scale, api: Api::Generate, model: "sim", against }
}

async fn sim() -> Sim {
    let config =
        SimConfig { page_size: 4, token_weight: 16, max_total_tokens: 16_384, ..SimConfig::default() };
    Sim::start(config).await.expect("a free port is found")
}

fn running(url: &str, workers: &[&Sim]) -> Against {
    let workers = workers.iter().map(|sim| sim.url()).collect();
    Against::Running { name: "router".to_owned(), url: url.to_owned(), workers }
}

/// Nobody ever says stop.
fn unstopped() -> watch::Receiver<bool> {
    watch::channel(false).1
}

#[tokio::test(flavor = "multi_thread")]
async fn round_robin_does_over_http_what_it_does_in_the_lab() {
    let own = PathBuf::from(env!("CARGO_BIN_EXE_long-prefix-bench"));
    let none = PathBuf::from("not-installed");
    let programs = Programs { own, router: none.clone(), sglang_router: none.clone(), smg: none };
    let against = Against::Started { contestants: vec![Contestant::RoundRobin], programs };
    for (pattern, api) in [(Pattern::OnePrompt, Api::Generate), (Pattern::Branching, Api::Completions)] {
        let cells_of = plan(pattern, 16);
        let http = HttpJob { api, ..job(&cells_of, against.clone()) };
        let http = http.run(&After::requests(0, || ()), unstopped()).await.unwrap();
        let run = http.cells[0].run("round_robin").unwrap();
        let trust = &run.checks[0];
        assert!(trust.ended_early.is_none() && trust.failures.is_empty(), "{trust:?}");
        assert_eq!((trust.over, trust.other_lengths), (http.cells[0].seeds[0].requests, 0));
        assert!(!trust.disagrees(), "{:?}", trust.cached_tokens);

        let lab = Job {
            suite: "test",
            cells: &cells_of,
            traces: None,
            seeds: 1,
            threads: 1,
            cache_aware: CacheAwareSettings::default(),
        };
        let lab = lab.run(&|| ()).unwrap();
        let hits = |report: &Report| report.cells[0].run("round_robin").unwrap().mean(|of| of.hit_rate);
        // What comes together finds nothing of each other, and what is together is a matter of milliseconds.
        assert!((hits(&http) - hits(&lab)).abs() < 0.1, "{} {}", hits(&http), hits(&lab));
        assert!(nominal(&lab, &http).unwrap().contains("of 1 within") || !run.is_sound());
        let [recording] = run.recordings.as_slice() else { panic!("one seed, to its end") };
        let mut arrivals = recording.arrivals.clone();
        arrivals.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
        assert!(arrivals.iter().enumerate().all(|(turn, arrival)| arrival.engine == Some(turn % 2)));
        let [replay] = recording.replays.as_slice() else { panic!("by recorded choices alone") };
        assert_eq!((replay.choices, replay.known), (Choices::Recorded, arrivals.len()));
        // A turn that is held may lose its place.
        assert!(
            replay.elsewhere == Some(0) || replay.held > 0,
            "the same rule in the same order: {replay:?}"
        );
        assert!(replays(&http).contains("of 1 within") || !run.is_sound());
        assert!(http.cells[0].run("pooled cache").is_some(), "references are the lab's");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_is_down_is_an_error_before_the_run() {
    // Nobody listens there, and nobody else can.
    let taken = tokio::net::TcpSocket::new_v4().unwrap();
    taken.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let gone = format!("http://{}", taken.local_addr().unwrap());
    let cells = plan(Pattern::NoSharing, 10);
    let error =
        job(&cells, running(&gone, &[])).run(&After::requests(0, || ()), unstopped()).await.unwrap_err();
    assert!(matches!(error, HttpError::Router(RouterError::Down { .. })));
    assert!(error.to_string().starts_with(&format!("{gone} does not answer")), "{error}");
    assert!(error.to_string().contains("connection refused"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_not_there_is_named() {
    let none = PathBuf::from("not-installed");
    let programs =
        Programs { own: none.clone(), router: none.clone(), sglang_router: none.clone(), smg: none };
    let against = Against::Started { contestants: vec![Contestant::Smg], programs };
    let cells = plan(Pattern::NoSharing, 10);
    let error = job(&cells, against).run(&After::requests(0, || ()), unstopped()).await.unwrap_err();
    assert!(error.to_string().contains("cannot run not-installed --version"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_there_is_when_a_router_dies_is_kept_and_marked() {
    let sim = sim().await;
    let cells_of = plan(Pattern::NoSharing, 60);
    let against = running(&sim.url(), &[]);
    let report = job(&cells_of, against)
        .run(&After::requests(1, || drop(tokio::spawn(sim.kill()))), unstopped())
        .await
        .unwrap();
    let reason = report.end_to_end.as_ref().unwrap().ended_early.clone().unwrap();
    assert!(reason.contains("the router is gone"), "{reason}");
    let run = report.cells[0].run("router").unwrap();
    assert!(!run.is_sound());
    assert!(run.checks[0].failures["connection refused"] >= 10, "{:?}", run.checks[0].failures);
    assert!(run.seeds[0].requests > 0 && run.seeds[0].requests < 60, "{}", run.seeds[0].requests);
    assert!(regrets(&report, |_| true).is_empty(), "it has no standing");
    let text = checks(&report);
    assert!(text.contains("PARTIAL") && text.contains("ENDED EARLY"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_there_is_when_somebody_stops_it_is_kept_and_marked() {
    let sim = sim().await;
    let (stop, stopped) = watch::channel(false);
    let cells_of = plan(Pattern::NoSharing, 60);
    let asked = After::requests(4, move || stop.send(true).unwrap());
    let report = job(&cells_of, running(&sim.url(), &[&sim])).run(&asked, stopped).await.unwrap();
    let trust = &report.cells[0].run("router").unwrap().checks[0];
    assert_eq!(trust.ended_early.as_deref(), Some("stopped by whoever ran it"));
    assert!((4..60).contains(&trust.over), "{}", trust.over);

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("result.json");
    report.write(&path).unwrap();
    assert!(Report::read(&path).unwrap() == report, "it comes back as it was written");
    assert!(page(&report).contains("PARTIAL") && !cells(&report).contains("NaN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_count_otherwise_are_named() {
    let (router, other) = (sim().await, sim().await);
    let cells_of = plan(Pattern::OnePrompt, 10);
    let against = running(&router.url(), &[&other]);
    let report = job(&cells_of, against).run(&After::requests(0, || ()), unstopped()).await.unwrap();
    let trust = &report.cells[0].run("router").unwrap().checks[0];
    assert!(trust.disagrees(), "{:?}", trust.cached_tokens);
    assert!(checks(&report).contains("the workers counted 0 cached tokens"), "{}", checks(&report));
}
