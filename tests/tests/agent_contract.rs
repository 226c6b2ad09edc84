//! The contract of `espalier.v1.Agent`, spoken by hand: what breaks it, and what does not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use espalier_proto::agent_client::AgentClient;
use espalier_proto::agent_message::Message as Said;
use espalier_proto::coordinator_message::Message as Heard;
use espalier_proto::{
    Accept, AgentMessage, Baseline, BlockRun, CoordinatorMessage, Delta, EventKind, EvictionPolicy, Hello,
    KeyUnit, Load, LoadReport, RemoveWorkerRequest, ReportLevel, ResumePoint, SetFingerprint,
    WatchEventsRequest, Welcome,
};
use espalier_tests::{PATIENCE, admin, alert, until, worker};
use router_core::key::{KeySpace, SCHEME, Salt, Unit};
use router_grpc::{RouterConfig, RunningRouter};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

const URL: &str = "http://127.0.0.1:9";

/// One session, spoken by hand.
struct Session {
    say: mpsc::Sender<AgentMessage>,
    hear: Streaming<CoordinatorMessage>,
}

impl Session {
    async fn open(router: &RunningRouter, token: Option<&str>) -> Result<Self, Status> {
        let channel = Channel::from_shared(format!("http://{}", router.grpc_addr())).unwrap();
        let (say, said) = mpsc::channel(64);
        let mut request = Request::new(ReceiverStream::new(said));
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let hear = AgentClient::new(channel.connect().await.unwrap()).connect(request).await?.into_inner();
        Ok(Self { say, hear })
    }

    async fn say(&self, message: Said) {
        // A session that was closed does not listen; what it said last tells why.
        let _ = self.say.send(AgentMessage { message: Some(message) }).await;
    }

    async fn hear(&mut self) -> Result<Heard, Status> {
        let heard = timeout(PATIENCE, self.hear.message()).await.unwrap()?;
        heard
            .ok_or_else(|| Status::cancelled("the stream ended"))?
            .message
            .ok_or_else(|| Status::unknown("empty"))
    }

    /// Hello, Welcome, Accept.
    async fn greet(&mut self, hello: Hello) -> Result<Welcome, Status> {
        self.say(Said::Hello(hello)).await;
        let Heard::Welcome(welcome) = self.hear().await? else { panic!("Welcome comes first") };
        let fingerprints = welcome.key_spaces.iter().map(|space| space.fingerprint).collect();
        self.say(Said::Accept(Accept { fingerprints, reason: String::new() })).await;
        Ok(welcome)
    }

    /// What the session is closed with.
    async fn closed(&mut self) -> Status {
        loop {
            if let Err(status) = self.hear().await {
                return status;
            }
        }
    }
}

fn hello() -> Hello {
    Hello {
        protocol_version: 1,
        worker_url: URL.to_owned(),
        incarnation: 100,
        engine: "sglang".to_owned(),
        engine_version: "0.5.23".to_owned(),
        model: "m".to_owned(),
        dp_size: 2,
        page_size: 16,
        capacity_tokens: 100_000,
        eviction_policy: EvictionPolicy::Lru.into(),
        schemes: vec![SCHEME.to_owned()],
        units: vec![KeyUnit::Token.into()],
        max_level: ReportLevel::Full.into(),
        ..Hello::default()
    }
}

async fn router() -> RunningRouter {
    router_grpc::start(alert(Vec::new())).await.unwrap()
}

fn hashes(welcome: &Welcome, blocks: u32) -> Vec<u64> {
    let space = &welcome.key_spaces[0];
    let space = KeySpace::new(Unit::Token, space.block_size, space.seed).unwrap();
    let tokens: Vec<u32> = (0..blocks * space.block_size()).collect();
    space.key_of_tokens(Salt::default(), &tokens).hashes().iter().map(|hash| hash.get()).collect()
}

fn baseline(rank: u32, hashes: &[u64]) -> Baseline {
    let stored = vec![BlockRun { parent: 0, hashes: hashes.to_vec() }];
    Baseline { rank, parts: 1, stored, unit: KeyUnit::Token.into(), ..Baseline::default() }
}

fn claimed(router: &RunningRouter, rank: usize) -> u64 {
    let snapshot = router.router().snapshot();
    snapshot.fleet.targets.get(rank).map_or(0, |target| target.claimed_tokens)
}

#[tokio::test]
async fn a_session_reports_and_is_acknowledged() {
    let router = router().await;
    let mut session = Session::open(&router, None).await.unwrap();
    let welcome = session.greet(hello()).await.unwrap();
    assert_eq!(welcome.level(), ReportLevel::Full);
    let hashes = hashes(&welcome, 4);
    session.say(Said::Baseline(baseline(1, &hashes))).await;
    assert_eq!(session.hear().await.unwrap(), Heard::Ack(espalier_proto::Ack { rank: 1, seq: 0 }));
    assert_eq!((claimed(&router, 0), claimed(&router, 1)), (0, 256));
    let delta =
        Delta { rank: 1, seq: 1, removed: vec![hashes[2]], unit: KeyUnit::Token.into(), ..Delta::default() };
    session.say(Said::Delta(delta)).await;
    assert_eq!(session.hear().await.unwrap(), Heard::Ack(espalier_proto::Ack { rank: 1, seq: 1 }));
    assert_eq!(claimed(&router, 1), 128);
    // A gap: a baseline is asked for.
    session
        .say(Said::Delta(Delta { rank: 1, seq: 5, unit: KeyUnit::Token.into(), ..Delta::default() }))
        .await;
    let Heard::Resync(resync) = session.hear().await.unwrap() else { panic!("Resync is due") };
    assert_eq!(resync.rank, 1);
}

#[tokio::test]
async fn a_hello_that_breaks_the_contract_is_refused_with_what_to_do() {
    let router = router().await;
    let broken: [(Hello, Code, &str); 6] = [
        (Hello { protocol_version: 9, ..hello() }, Code::FailedPrecondition, "protocol version 9"),
        (Hello { worker_url: "nonsense".to_owned(), ..hello() }, Code::InvalidArgument, "Hello.worker_url"),
        (Hello { incarnation: 0, ..hello() }, Code::InvalidArgument, "Hello.incarnation"),
        (Hello { dp_size: 0, ..hello() }, Code::InvalidArgument, "Hello.dp_size"),
        (Hello { page_size: 0, ..hello() }, Code::InvalidArgument, "Hello.page_size"),
        (Hello { dp_size: 100_000, ..hello() }, Code::ResourceExhausted, "the fleet is full"),
    ];
    for (hello, code, what) in broken {
        let mut session = Session::open(&router, None).await.unwrap();
        let status = session.greet(hello).await.unwrap_err();
        assert!(status.code() == code && status.message().contains(what), "{status:?}");
    }
    let mut session = Session::open(&router, None).await.unwrap();
    session.say(Said::Load(LoadReport::default())).await;
    assert_eq!(session.closed().await.code(), Code::InvalidArgument);
    assert!(router.router().snapshot().fleet.workers.is_empty(), "whoever is refused leaves no trace");
}

#[tokio::test]
async fn a_stale_incarnation_is_refused_and_changes_nothing() {
    let router = router().await;
    let mut session = Session::open(&router, None).await.unwrap();
    let welcome = session.greet(hello()).await.unwrap();
    session.say(Said::Baseline(baseline(0, &hashes(&welcome, 4)))).await;
    session.hear().await.unwrap();
    let mut stale = Session::open(&router, None).await.unwrap();
    let status = stale.greet(Hello { incarnation: 99, dp_size: 5, ..hello() }).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(
        status.metadata().contains_key("espalier-registered-incarnation"),
        "for an agent whose clock was behind"
    );
    assert!(status.message().contains("mint a new one"), "{status:?}");
    assert_eq!(claimed(&router, 0), 256);
    assert_eq!(router.router().snapshot().fleet.targets.len(), 2, "not even its ranks count");
    assert!(worker(&router, URL).unwrap().agent.is_some());
    let mut newer = Session::open(&router, None).await.unwrap();
    newer.greet(Hello { incarnation: 101, ..hello() }).await.unwrap();
    until("the earlier life's claims are void", async || claimed(&router, 0) == 0).await;
}

#[tokio::test]
async fn an_agent_that_hashes_differently_reports_counts() {
    let router = router().await;
    let mut events = admin(&router).await.watch_events(WatchEventsRequest {}).await.unwrap().into_inner();
    let mut session = Session::open(&router, None).await.unwrap();
    session.say(Said::Hello(hello())).await;
    session.hear().await.unwrap();
    session.say(Said::Accept(Accept { fingerprints: vec![42], reason: "another hash".to_owned() })).await;
    let told = async {
        loop {
            let event = events.message().await.unwrap().unwrap();
            if event.kind() == EventKind::KeySpaceMismatch {
                return event;
            }
        }
    };
    assert_eq!(timeout(PATIENCE, told).await.unwrap().detail, "another hash");
    until("its level is counts", async || {
        worker(&router, URL)
            .is_some_and(|w| w.agent.is_some_and(|a| a.level == router_core::ReportLevel::Counts))
    })
    .await;
    // Load is welcome, blocks are not.
    let load = Load { running_requests: 3, ..Load::default() };
    session.say(Said::Load(LoadReport { rank: 1, load: Some(load) })).await;
    until("its load is known", async || {
        let snapshot = router.router().snapshot();
        snapshot.fleet.targets[1].reported.is_some_and(|load| load.running_requests == 3)
    })
    .await;
    session.say(Said::Baseline(baseline(0, &[1, 2, 3]))).await;
    assert_eq!(session.closed().await.code(), Code::InvalidArgument);
    assert_eq!(claimed(&router, 0), 0);
}

#[tokio::test]
async fn messages_that_break_the_contract_end_the_session_and_nothing_else() {
    let router = router().await;
    let unit = i32::from(KeyUnit::Token);
    let empty_run = BlockRun { parent: 0, hashes: Vec::new() };
    let broken: Vec<(Said, &str)> = vec![
        (Said::Hello(hello()), "must not be sent again"),
        (Said::Baseline(baseline(7, &[1])), "rank 7 does not exist"),
        (Said::Load(LoadReport { rank: 0, load: None }), "LoadReport.load is missing"),
        (Said::Baseline(Baseline { part: 1, parts: 2, ..baseline(0, &[1]) }), "part 1 came before part 0"),
        (Said::Baseline(Baseline { parts: 0, ..baseline(0, &[1]) }), "parts count from 0"),
        (Said::Baseline(baseline(0, &[0])), "never zero"),
        (
            Said::Delta(Delta { seq: 1, stored: vec![empty_run], unit, ..Delta::default() }),
            "must not be empty",
        ),
        (
            Said::Delta(Delta { seq: 1, unit: KeyUnit::Text.into(), ..Delta::default() }),
            "no blocks of this unit",
        ),
        (Said::Delta(Delta { seq: 1, ..Delta::default() }), "what they are cut from"),
        (
            Said::SetFingerprint(SetFingerprint { buckets: vec![1], unit, ..SetFingerprint::default() }),
            "512 bytes",
        ),
    ];
    for (message, what) in broken {
        let mut session = Session::open(&router, None).await.unwrap();
        session.greet(hello()).await.unwrap();
        session.say(message).await;
        let status = session.closed().await;
        assert!(
            status.code() == Code::InvalidArgument && status.message().contains(what),
            "{what}: {status:?}"
        );
    }
    // Parts in order make one baseline.
    let mut session = Session::open(&router, None).await.unwrap();
    let welcome = session.greet(hello()).await.unwrap();
    let hashes = hashes(&welcome, 4);
    session.say(Said::Baseline(Baseline { parts: 2, ..baseline(0, &hashes[..2]) })).await;
    let stored = vec![BlockRun { parent: hashes[1], hashes: hashes[2..].to_vec() }];
    session.say(Said::Baseline(Baseline { part: 1, parts: 2, stored, ..baseline(0, &hashes) })).await;
    session.hear().await.unwrap();
    assert_eq!(claimed(&router, 0), 256);
}

#[tokio::test]
async fn a_token_is_asked_for_where_one_is_configured() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "s3cret\n").unwrap();
    let config = RouterConfig { agent_token_file: Some(file.path().to_owned()), ..alert(Vec::new()) };
    let router = router_grpc::start(config).await.unwrap();
    for token in [None, Some("wrong")] {
        let refused = Session::open(&router, token).await.err().unwrap();
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert!(!refused.message().contains("s3cret"));
    }
    let mut session = Session::open(&router, Some("s3cret")).await.unwrap();
    session.greet(hello()).await.unwrap();
    // Read anew for every session.
    std::fs::write(file.path(), "other").unwrap();
    assert_eq!(Session::open(&router, Some("s3cret")).await.err().unwrap().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn ports_in_use_are_named_with_their_flags() {
    let router = router().await;
    let taken = [
        (RouterConfig { port: router.http_addr().port(), ..alert(Vec::new()) }, "--port"),
        (RouterConfig { grpc_port: router.grpc_addr().port(), ..alert(Vec::new()) }, "--grpc-port"),
        (
            RouterConfig { prometheus_port: router.prometheus_addr().unwrap().port(), ..alert(Vec::new()) },
            "--prometheus-port",
        ),
    ];
    for (config, flag) in taken {
        let error = router_grpc::start(config).await.unwrap_err().to_string();
        assert!(error.contains(flag) && error.contains("127.0.0.1:"), "{error}");
    }
}

#[tokio::test]
async fn a_session_that_gets_no_further_than_welcome_silences_nobody() {
    let router = router().await;
    let mut good = Session::open(&router, None).await.unwrap();
    let welcome = good.greet(hello()).await.unwrap();
    let hashes = hashes(&welcome, 4);
    let mut idle = Session::open(&router, None).await.unwrap();
    idle.say(Said::Hello(hello())).await;
    assert!(matches!(idle.hear().await, Ok(Heard::Welcome(_))));
    good.say(Said::Baseline(baseline(0, &hashes))).await;
    assert_eq!(good.hear().await.unwrap(), Heard::Ack(espalier_proto::Ack { rank: 0, seq: 0 }));
    // Once it has said Accept, it speaks for the worker, and the earlier one is told.
    let fingerprints = welcome.key_spaces.iter().map(|space| space.fingerprint).collect();
    idle.say(Said::Accept(Accept { fingerprints, reason: String::new() })).await;
    let status = good.closed().await;
    assert!(status.code() == Code::Aborted && status.message().contains("another session"), "{status:?}");
    idle.say(Said::Baseline(baseline(1, &hashes))).await;
    assert_eq!(idle.hear().await.unwrap(), Heard::Ack(espalier_proto::Ack { rank: 1, seq: 0 }));
}

#[tokio::test]
async fn an_agent_that_was_silent_for_too_long_is_sent_away_and_resumes() {
    let config = RouterConfig { lease_secs: 2.0, ..alert(Vec::new()) };
    let router = router_grpc::start(config).await.unwrap();
    let mut session = Session::open(&router, None).await.unwrap();
    let welcome = session.greet(hello()).await.unwrap();
    for rank in 0..2 {
        session.say(Said::Baseline(baseline(rank, &hashes(&welcome, 4)))).await;
        session.hear().await.unwrap();
    }
    let doubtful = || router.router().snapshot().fleet.targets.iter().any(|target| target.doubtful);
    let status = session.closed().await;
    assert!(status.code() == Code::Aborted && status.message().contains("lease"), "{status:?}");
    assert!(doubtful());
    let space = welcome.key_spaces[0].fingerprint;
    let resume = (0..2).map(|rank| ResumePoint { rank, acked_seq: 0, key_space_fingerprint: space });
    let mut again = Session::open(&router, None).await.unwrap();
    let welcome = again.greet(Hello { resume: resume.collect(), ..hello() }).await.unwrap();
    assert_eq!(welcome.resume.len(), 2);
    until("nothing is doubted any more", async || !doubtful()).await;
    assert_eq!((claimed(&router, 0), claimed(&router, 1)), (256, 256));
}

#[tokio::test]
async fn an_agent_whose_worker_was_removed_is_sent_away_and_registers_it_anew() {
    let router = router().await;
    let mut session = Session::open(&router, None).await.unwrap();
    let welcome = session.greet(hello()).await.unwrap();
    until("it is registered", async || worker(&router, URL).is_some()).await;
    admin(&router).await.remove_worker(RemoveWorkerRequest { url: URL.to_owned() }).await.unwrap();
    let status = session.closed().await;
    assert!(status.code() == Code::Aborted && status.message().contains("removed"), "{status:?}");
    let mut again = Session::open(&router, None).await.unwrap();
    again.greet(hello()).await.unwrap();
    again.say(Said::Baseline(baseline(0, &hashes(&welcome, 4)))).await;
    again.hear().await.unwrap();
    assert_eq!(claimed(&router, 0), 256);
}

#[tokio::test]
async fn sessions_and_what_they_hold_have_bounds_that_are_counted() {
    let config = RouterConfig { max_agent_sessions: 1, max_blocks: 5, ..alert(Vec::new()) };
    let router = router_grpc::start(config).await.unwrap();
    let mut session = Session::open(&router, None).await.unwrap();
    let refused = Session::open(&router, None).await.err().unwrap();
    assert!(
        refused.code() == Code::ResourceExhausted && refused.message().contains("--max-agent-sessions"),
        "{refused:?}"
    );
    // Three blocks under way in each of two ranks are more than five.
    let welcome = session.greet(hello()).await.unwrap();
    for rank in 0..2 {
        let part = Baseline { parts: 2, ..baseline(rank, &hashes(&welcome, 3)) };
        session.say(Said::Baseline(part)).await;
    }
    let status = session.closed().await;
    assert!(
        status.code() == Code::ResourceExhausted && status.message().contains("--max-blocks"),
        "{status:?}"
    );
    let metrics = espalier_tests::metrics(&router).await;
    for counted in ["espalier_agent_sessions_refused_total 1", "espalier_baselines_refused_total 1"] {
        assert!(metrics.contains(counted), "{counted} is missing in\n{metrics}");
    }
    until("there is room again", async || Session::open(&router, None).await.is_ok()).await;
}
