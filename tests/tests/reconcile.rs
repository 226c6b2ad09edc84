//! Reconciliation, end to end: what was not told is found by comparing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use espalier_proto::agent_client::AgentClient;
use espalier_proto::agent_message::Message as Said;
use espalier_proto::coordinator_message::Message as Heard;
use espalier_proto::{
    Accept, AgentMessage, Baseline, BlockRun, CoordinatorMessage, Delta, Hello, KeyUnit, MoreSymbols,
    ReportLevel, Welcome,
};
use espalier_tests::{
    HttpClient, agent, alert, fast, generate, metrics, prompt, until, until_exact, until_ready,
};
use router_core::key::{KeySpace, SCHEME, Salt, Unit};
use router_core::reconcile::{Decoder, Progress, Symbol};
use router_grpc::{LevelName, RouterConfig, RunningRouter};
use sglang_sim::Sim;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

#[tokio::test]
async fn what_the_level_does_not_tell_is_found_on_schedule() {
    let sim = Sim::start(fast()).await.unwrap();
    let config = RouterConfig {
        report_level: LevelName::Removals,
        reconcile_interval_secs: 0.2,
        ..alert(vec![sim.url()])
    };
    let router = router_grpc::start(config).await.unwrap();
    let _agent = agent(&sim, &[&router]);
    until_ready(&router, 1).await;
    // Whose blocks the router knows, and others that another router has sent.
    let (routed, foreign) = (HttpClient::of(&router), HttpClient::at(&sim.url()));
    for first in 0..8 {
        assert_eq!(routed.post("/generate", &generate(&prompt(first, 700), 150)).await.status, 200);
    }
    // So few that no baseline is shorter.
    for first in 0..2 {
        assert_eq!(foreign.post("/generate", &generate(&prompt(100 + first, 400), 5)).await.status, 200);
    }
    assert!(until_exact(&router, &sim).await > 100);
    let metrics = metrics(&router).await;
    assert!(metrics.contains("espalier_reconciled_blocks_total{kind=\"missing\"}"), "{metrics}");
}

type Stream = (mpsc::Sender<AgentMessage>, Streaming<CoordinatorMessage>);

/// Opens a session by hand; returns what Welcome says.
async fn open(router: &RunningRouter) -> (Stream, Welcome) {
    let channel = Channel::from_shared(format!("http://{}", router.grpc_addr())).unwrap();
    let (say, said) = mpsc::channel(16);
    let hello = Hello {
        protocol_version: 1,
        worker_url: "http://127.0.0.1:9".to_owned(),
        incarnation: 100,
        dp_size: 1,
        page_size: 16,
        schemes: vec![SCHEME.to_owned()],
        units: vec![KeyUnit::Token.into()],
        max_level: ReportLevel::Full.into(),
        sketch_version: 1,
        ..Hello::default()
    };
    say.send(AgentMessage { message: Some(Said::Hello(hello)) }).await.unwrap();
    let mut client = AgentClient::new(channel.connect().await.unwrap());
    let mut hear = client.connect(ReceiverStream::new(said)).await.unwrap().into_inner();
    let Some(Heard::Welcome(welcome)) = hear.message().await.unwrap().unwrap().message else {
        panic!("Welcome")
    };
    let fingerprints = welcome.key_spaces.iter().map(|space| space.fingerprint).collect();
    let accept = Said::Accept(Accept { fingerprints, ..Accept::default() });
    say.send(AgentMessage { message: Some(accept) }).await.unwrap();
    ((say, hear), welcome)
}

#[tokio::test]
async fn an_agent_that_has_lost_its_place_is_compared_instead_of_sending_a_baseline() {
    let config = RouterConfig { reconcile_interval_secs: 0.0, ..alert(Vec::new()) };
    let router = router_grpc::start(config).await.unwrap();
    let ((say, hear), welcome) = open(&router).await;
    assert!(welcome.reconcile.is_empty());
    let space = &welcome.key_spaces[0];
    let space = KeySpace::new(Unit::Token, space.block_size, space.seed).unwrap();
    let tokens: Vec<u32> = (0..100 * space.block_size()).collect();
    let key = space.key_of_tokens(Salt::default(), &tokens);
    let hashes: Vec<u64> = key.hashes().iter().map(|hash| hash.get()).collect();
    let unit = KeyUnit::Token.into();
    let stored = |parent, hashes: &[u64]| vec![BlockRun { parent, hashes: hashes.to_vec() }];
    let baseline = Baseline { parts: 1, stored: stored(0, &hashes[..90]), unit, ..Baseline::default() };
    say.send(AgentMessage { message: Some(Said::Baseline(baseline)) }).await.unwrap();
    let claims = async || {
        let targets = router.router().snapshot().fleet.targets.first().map(|target| target.claimed_tokens);
        targets.unwrap_or(0) / 64
    };
    until("the baseline is in force", async || claims().await == 90).await;
    drop((say, hear));
    // It comes again, holds ten more, and knows nothing of numbers.
    let ((say, mut hear), welcome) = open(&router).await;
    assert_eq!(welcome.reconcile, [0]);
    let begin = Delta { seq: 40, unit, ..Delta::default() };
    say.send(AgentMessage { message: Some(Said::Delta(begin)) }).await.unwrap();
    let mut decoder = None;
    let (round, found) = loop {
        let heard = hear.message().await.unwrap().unwrap().message;
        let Some(Heard::Symbols(symbols)) = heard else { continue };
        let held = key.hashes().iter().copied();
        let decoder = decoder
            .get_or_insert_with(|| Decoder::new(symbols.round, symbols.blocks, held.collect::<Vec<_>>()));
        match decoder.take(&Symbol::read(&symbols.symbols).unwrap()).unwrap() {
            Progress::Complete(found) => break (symbols.round, found),
            Progress::More { symbols: until } => {
                let more = MoreSymbols { rank: 0, unit, round: symbols.round, until };
                say.send(AgentMessage { message: Some(Said::MoreSymbols(more)) }).await.unwrap();
            }
        }
    };
    assert_eq!((found.theirs.len(), found.ours.len()), (0, 10));
    let stored = stored(hashes[89], &hashes[90..]);
    let answer = Delta { seq: 41, stored, unit, reconciles: round, ..Delta::default() };
    say.send(AgentMessage { message: Some(Said::Delta(answer)) }).await.unwrap();
    until("the difference is claimed", async || claims().await == 100).await;
    until("it is counted", async || {
        metrics(&router).await.contains("espalier_reconciliations_completed_total 1")
    })
    .await;
}
