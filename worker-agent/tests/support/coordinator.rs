//! A coordinator that takes the contract literally and writes down what it is told.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use espalier_proto as proto;
use espalier_proto::agent_message::Message as Said;
use espalier_proto::agent_server::{Agent, AgentServer};
use espalier_proto::coordinator_message::Message as Answer;
use espalier_proto::{AgentMessage, CoordinatorMessage};
use router_core::key::{KeySpace, SCHEME, Unit};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// How a coordinator behaves.
#[derive(Clone, Debug)]
pub(crate) struct Wishes {
    pub(crate) block: u32,
    pub(crate) seed: u64,
    pub(crate) level: proto::ReportLevel,
    pub(crate) lease: Duration,
    /// Acknowledges what it applied.
    pub(crate) acks: bool,
    /// Resumes where it can.
    pub(crate) resumes: bool,
    /// The least incarnation that it lets in; it names it when it refuses another.
    pub(crate) least_incarnation: u64,
    /// It does not name it.
    pub(crate) says_little: bool,
    /// Announces a fingerprint that nobody computes.
    pub(crate) hashes_differently: bool,
}

impl Default for Wishes {
    fn default() -> Self {
        Self {
            block: 4,
            seed: 7,
            level: proto::ReportLevel::Full,
            lease: Duration::from_secs(3),
            acks: true,
            resumes: true,
            least_incarnation: 0,
            says_little: false,
            hashes_differently: false,
        }
    }
}

/// What was said, and what follows from it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Book {
    pub(crate) sessions: usize,
    /// Sessions refused for their incarnation.
    pub(crate) refused: usize,
    pub(crate) hellos: Vec<proto::Hello>,
    pub(crate) tokens: Vec<Option<String>>,
    pub(crate) accepts: Vec<proto::Accept>,
    pub(crate) states: Vec<proto::StateReport>,
    pub(crate) loads: Vec<proto::LoadReport>,
    pub(crate) counts: Vec<proto::Counts>,
    pub(crate) deltas: Vec<proto::Delta>,
    pub(crate) baselines: usize,
    /// Set fingerprints that were compared.
    pub(crate) digests: usize,
    pub(crate) ranks: BTreeMap<u32, Told>,
    /// The engine's life that was told of last.
    pub(crate) incarnation: u64,
    pub(crate) bytes: usize,
    /// Whatever broke the contract.
    pub(crate) violations: Vec<String>,
}

/// What one rank is said to hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    pub(crate) seq: u64,
    /// What is not told of the rank proves nothing.
    pub(crate) incomplete: bool,
    /// Blocks with their parents.
    blocks: HashMap<u64, u64>,
    /// A baseline in the middle of its parts.
    incoming: Option<(u64, u32, HashMap<u64, u64>)>,
    /// Nothing counts before a baseline.
    begun: bool,
}

/// A running coordinator.
pub(crate) struct Coordinator {
    port: u16,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

struct Shared {
    wishes: Wishes,
    space: KeySpace,
    book: watch::Sender<Book>,
    /// The way to the agent of the latest session, and the end of that session.
    session: Mutex<Option<(Outbox, CancellationToken)>>,
}

type Outbox = mpsc::Sender<Result<CoordinatorMessage, Status>>;

impl Coordinator {
    pub(crate) async fn start(wishes: Wishes) -> Self {
        Self::start_at(wishes, 0).await
    }

    async fn start_at(wishes: Wishes, port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let space = KeySpace::new(Unit::Token, wishes.block, wishes.seed).unwrap();
        let book = watch::Sender::new(Book::default());
        let shared = Arc::new(Shared { wishes, space, book, session: Mutex::new(None) });
        let service = AgentServer::from_arc(Arc::new(Service(Arc::clone(&shared))));
        let server = tonic::transport::Server::builder().add_service(service);
        let serve =
            async move { server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap() };
        Self { port, shared, server: tokio::spawn(serve) }
    }

    /// A process that remembers nothing takes this one's place.
    pub(crate) async fn restart(self, wishes: Wishes) -> Self {
        let port = self.stop().await;
        Self::start_at(wishes, port).await
    }

    /// Goes away; answers its port.
    pub(crate) async fn stop(self) -> u16 {
        self.server.abort();
        let _ = self.server.await;
        if let Some((_, end)) = self.shared.session.lock().unwrap().take() {
            end.cancel();
        }
        self.port
    }

    /// Cuts the present session's connection.
    pub(crate) fn cut(&self) {
        if let Some((_, end)) = self.shared.session.lock().unwrap().take() {
            end.cancel();
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn space(&self) -> &KeySpace {
        &self.shared.space
    }

    pub(crate) fn book(&self) -> Book {
        self.shared.book.borrow().clone()
    }

    pub(crate) async fn tell(&self, message: Answer) {
        let session = self.shared.session.lock().unwrap().clone();
        let (way, _) = session.expect("a session is open");
        way.send(Ok(CoordinatorMessage { message: Some(message) })).await.unwrap();
    }

    /// Waits until the book shows something; every book seen must keep to the contract.
    pub(crate) async fn until(&self, what: &str, mut holds: impl FnMut(&Book) -> bool) -> Book {
        let mut book = self.shared.book.subscribe();
        let seen = tokio::time::timeout(
            super::PATIENCE,
            book.wait_for(|book| !book.violations.is_empty() || holds(book)),
        );
        let seen = match seen.await {
            Ok(seen) => seen.unwrap().clone(),
            Err(_) => {
                let Book { ranks, states, accepts, .. } = self.book();
                panic!("{what}: not within {:?}; {ranks:?} {states:?} {accepts:?}", super::PATIENCE)
            }
        };
        assert_eq!(seen.violations, [""; 0], "{what}");
        seen
    }

    /// Waits until exactly `blocks` are claimed of a rank.
    pub(crate) async fn until_holds(&self, rank: u32, blocks: &HashSet<u64>) -> Book {
        let what = format!("{} blocks of rank {rank}", blocks.len());
        self.until(&what, |book| {
            book.blocks(rank) == *blocks && book.ranks.get(&rank).is_some_and(|told| told.begun)
        })
        .await
    }
}

impl Book {
    pub(crate) fn blocks(&self, rank: u32) -> HashSet<u64> {
        self.ranks.get(&rank).map(|told| told.blocks.keys().copied().collect()).unwrap_or_default()
    }

    /// Whether the rank's reports were said to be incomplete.
    pub(crate) fn incomplete(&self, rank: u32) -> bool {
        self.ranks.get(&rank).is_some_and(|told| told.incomplete)
    }

    pub(crate) fn last_state(&self) -> Option<proto::WorkerState> {
        self.states.last().map(proto::StateReport::state)
    }

    fn hear(&mut self, said: Said, wishes: &Wishes) -> Option<proto::Ack> {
        match said {
            Said::Hello(_) => self.violate("Hello was sent again"),
            Said::Accept(accept) => self.accepts.push(accept),
            Said::Delta(delta) => {
                self.deltas.push(delta.clone());
                let told = self.ranks.entry(delta.rank).or_default();
                let ack = proto::Ack { rank: delta.rank, seq: delta.seq };
                match told.change(delta) {
                    Ok(()) => return Some(ack),
                    Err(broken) => self.violate(broken),
                }
            }
            Said::Baseline(baseline) => {
                let ack = proto::Ack { rank: baseline.rank, seq: baseline.seq };
                let told = self.ranks.entry(baseline.rank).or_default();
                match told.replace(baseline) {
                    Ok(true) => {
                        self.baselines += 1;
                        return Some(ack);
                    }
                    Ok(false) => {}
                    Err(broken) => self.violate(broken),
                }
            }
            Said::MoreSymbols(_) => self.violate("symbols were asked for that were never sent"),
            Said::Counts(counts) => self.counts.push(counts),
            Said::Load(load) => self.loads.push(load),
            Said::State(state) => {
                if state.incarnation > 0 {
                    self.ranks.clear();
                    self.incarnation = state.incarnation;
                }
                self.states.push(state);
            }
            Said::SetFingerprint(digest) => {
                let told = self.ranks.entry(digest.rank).or_default();
                if wishes.level == proto::ReportLevel::Full {
                    match told.compare(&digest) {
                        Ok(()) => self.digests += 1,
                        Err(broken) => self.violate(broken),
                    }
                }
            }
        }
        None
    }

    fn violate(&mut self, broken: &str) {
        self.violations.push(broken.to_owned());
    }
}

impl Told {
    fn change(&mut self, delta: proto::Delta) -> Result<(), &'static str> {
        if !self.begun {
            return Err("a Delta before the first Baseline");
        }
        if self.incoming.is_some() {
            return Err("a Delta between the parts of a Baseline");
        }
        if delta.seq != self.seq + 1 {
            return Err("a gap in the numbers of Deltas");
        }
        (self.seq, self.incomplete) = (delta.seq, delta.incomplete);
        if delta.cleared {
            self.blocks.clear();
        }
        for hash in delta.removed {
            remove(&mut self.blocks, hash);
        }
        store(&mut self.blocks, delta.stored)
    }

    fn replace(&mut self, baseline: proto::Baseline) -> Result<bool, &'static str> {
        let (seq, part, mut blocks) = self.incoming.take().unwrap_or((baseline.seq, 0, HashMap::new()));
        if (baseline.seq, baseline.part) != (seq, part) || baseline.part >= baseline.parts {
            return Err("the parts of a Baseline are out of order");
        }
        store(&mut blocks, baseline.stored)?;
        if part + 1 < baseline.parts {
            self.incoming = Some((seq, part + 1, blocks));
            return Ok(false);
        }
        (self.seq, self.blocks, self.begun) = (seq, blocks, true);
        self.incomplete = baseline.incomplete;
        Ok(true)
    }

    fn compare(&self, digest: &proto::SetFingerprint) -> Result<(), &'static str> {
        if digest.seq != self.seq {
            return Err("a SetFingerprint of another state");
        }
        let mut buckets = [0_u16; 256];
        for hash in self.blocks.keys() {
            let bucket = &mut buckets[(hash >> 56) as usize];
            *bucket = bucket.wrapping_add(*hash as u16);
        }
        let buckets: Vec<u8> = buckets.iter().flat_map(|bucket| bucket.to_le_bytes()).collect();
        let equal = digest.blocks == self.blocks.len() as u64 && digest.buckets == buckets;
        equal.then_some(()).ok_or("a SetFingerprint of another set")
    }
}

/// What hangs below a removed block is taken as removed.
fn remove(blocks: &mut HashMap<u64, u64>, top: u64) {
    let mut gone = vec![top];
    while let Some(hash) = gone.pop() {
        blocks.remove(&hash);
        gone.extend(blocks.iter().filter(|(_, parent)| **parent == hash).map(|(child, _)| *child));
    }
}

fn store(blocks: &mut HashMap<u64, u64>, runs: Vec<proto::BlockRun>) -> Result<(), &'static str> {
    for run in runs {
        let mut parent = run.parent;
        if run.hashes.is_empty() {
            return Err("an empty run");
        }
        for hash in run.hashes {
            if parent != 0 && !blocks.contains_key(&parent) {
                return Err("a run whose parent is not known");
            }
            blocks.insert(hash, parent);
            parent = hash;
        }
    }
    Ok(())
}

struct Service(Arc<Shared>);

#[tonic::async_trait]
impl Agent for Service {
    type ConnectStream = Pin<Box<dyn Stream<Item = Result<CoordinatorMessage, Status>> + Send>>;

    async fn connect(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let token = request.metadata().get("authorization").map(|token| token.to_str().unwrap().to_owned());
        let mut inbound = request.into_inner();
        let Some(Said::Hello(hello)) = inbound.message().await?.and_then(|first| first.message) else {
            return Err(Status::invalid_argument("Hello comes first"));
        };
        self.0.admit(&hello)?;
        let (way, answers) = mpsc::channel(64);
        let end = CancellationToken::new();
        let welcome = self.0.welcome(hello, token);
        way.send(Ok(CoordinatorMessage { message: Some(Answer::Welcome(welcome)) })).await.unwrap();
        *self.0.session.lock().unwrap() = Some((way.clone(), end.clone()));
        tokio::spawn(Arc::clone(&self.0).listen(inbound, way, end.clone()));
        let ended = async move { end.cancelled_owned().await };
        let stream = futures_util::StreamExt::take_until(ReceiverStream::new(answers), Box::pin(ended));
        Ok(Response::new(Box::pin(stream)))
    }
}

impl Shared {
    fn admit(&self, hello: &proto::Hello) -> Result<(), Status> {
        let least = self.wishes.least_incarnation;
        if hello.incarnation >= least {
            return Ok(());
        }
        self.book.send_modify(|book| book.refused += 1);
        let mut status = Status::failed_precondition("the incarnation is older than the registered one");
        if !self.wishes.says_little {
            status.metadata_mut().insert("espalier-registered-incarnation", least.into());
        }
        Err(status)
    }

    fn welcome(&self, hello: proto::Hello, token: Option<String>) -> proto::Welcome {
        let mut resume = Vec::new();
        let fingerprint = self.space.fingerprint();
        self.book.send_modify(|book| {
            let same = std::mem::replace(&mut book.incarnation, hello.incarnation) == hello.incarnation;
            book.sessions += 1;
            for (rank, told) in &mut book.ranks {
                told.incoming = None;
                let point = hello.resume.iter().find(|point| point.rank == *rank);
                let known = point.is_some_and(|point| {
                    point.acked_seq <= told.seq && point.key_space_fingerprint == fingerprint
                });
                if self.wishes.resumes && same && known && told.begun {
                    let point = proto::ResumePoint {
                        rank: *rank,
                        acked_seq: told.seq,
                        key_space_fingerprint: fingerprint,
                    };
                    resume.push(point);
                } else {
                    told.begun = false;
                }
            }
            book.hellos.push(hello);
            book.tokens.push(token);
        });
        let key_space = proto::KeySpace {
            unit: proto::KeyUnit::Token.into(),
            block_size: self.wishes.block,
            scheme: SCHEME.to_owned(),
            seed: self.wishes.seed,
            fingerprint: fingerprint ^ u64::from(self.wishes.hashes_differently),
        };
        proto::Welcome {
            lease_ms: self.wishes.lease.as_millis() as u32,
            key_spaces: vec![key_space],
            level: self.wishes.level.into(),
            batch_interval_ms: 10,
            resume,
            reconcile: Vec::new(),
        }
    }

    async fn listen(
        self: Arc<Self>,
        mut inbound: Streaming<AgentMessage>,
        way: mpsc::Sender<Result<CoordinatorMessage, Status>>,
        end: CancellationToken,
    ) {
        loop {
            let said = tokio::select! {
                () = end.cancelled() => return,
                said = inbound.next() => said,
            };
            let Some(Ok(message)) = said else { return };
            let bytes = prost::Message::encoded_len(&message);
            let Some(said) = message.message else { continue };
            let mut ack = None;
            self.book.send_modify(|book| {
                book.bytes += bytes;
                if bytes >= 1 << 20 {
                    book.violate("a message of 1 MiB or more");
                }
                ack = book.hear(said, &self.wishes);
            });
            if let Some(ack) = ack.filter(|_| self.wishes.acks) {
                let _ = way.send(Ok(CoordinatorMessage { message: Some(Answer::Ack(ack)) })).await;
            }
        }
    }
}
