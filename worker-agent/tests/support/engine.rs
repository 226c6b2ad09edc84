//! An engine without a model: event publisher with replay, and the HTTP routes that an agent asks for.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rmp::encode::{write_array_len, write_f64, write_map_len, write_nil, write_sint, write_str, write_uint};
use router_core::key::{KeySpace, Salt};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use zeromq::{PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

/// Tells lives apart; every start is another one.
static STARTS: AtomicU64 = AtomicU64::new(1);

/// What kind of engine.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) page: usize,
    pub(crate) ranks: usize,
    /// Batches that can be replayed.
    pub(crate) ring: usize,
    /// Events as arrays and replay answers without a topic, as before 0.5.20.
    pub(crate) old: bool,
    /// `/server_info` shows how long the start took.
    pub(crate) shows_start: bool,
    /// `/server_info` shows when it started.
    pub(crate) dates_start: bool,
    /// There is a replay socket.
    pub(crate) replays: bool,
    /// `/server_info` shows event sources.
    pub(crate) events: bool,
    pub(crate) api_key: Option<&'static str>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            page: 4,
            ranks: 1,
            ring: 1000,
            old: false,
            shows_start: true,
            dates_start: false,
            replays: true,
            events: true,
            api_key: None,
        }
    }
}

/// Where an engine listens; a later life listens there again.
#[derive(Clone, Debug)]
struct Ports {
    http: u16,
    ranks: Vec<(u16, u16)>,
}

/// A running engine.
pub(crate) struct Engine {
    setup: Setup,
    ports: Ports,
    ranks: Vec<Rank>,
    face: Arc<Mutex<Face>>,
    tasks: JoinSet<()>,
}

struct Rank {
    publisher: PubSocket,
    ring: Arc<Mutex<Ring>>,
    /// Every page held, named by the path that ends with it.
    pages: BTreeSet<Vec<u32>>,
}

struct Ring {
    next: u64,
    limit: usize,
    old: bool,
    batches: VecDeque<(u64, Bytes)>,
}

/// What it shows over HTTP.
struct Face {
    ready: u16,
    ping: u16,
    info: Value,
    loads: Value,
    api_key: Option<&'static str>,
}

enum Change<'a> {
    Stored { path: &'a [u32], from: usize },
    Removed { path: &'a [u32], from: usize },
    Cleared,
}

impl Engine {
    pub(crate) async fn start(setup: Setup) -> Self {
        let ports = Ports { http: 0, ranks: vec![(0, 0); setup.ranks] };
        Self::start_at(setup, ports).await
    }

    /// Ends this life at once and begins another at the same addresses.
    pub(crate) async fn restart(self) -> Self {
        let (setup, ports) = self.kill().await;
        Self::start_at(setup, ports).await
    }

    /// The next life of an engine that was killed.
    pub(crate) async fn revive((setup, ports): (Setup, impl Into<PortsAgain>)) -> Self {
        Self::start_at(setup, ports.into().0).await
    }

    /// Ends this life at once; answers what the next one needs.
    pub(crate) async fn kill_for_later(self) -> (Setup, PortsAgain) {
        let (setup, ports) = self.kill().await;
        (setup, PortsAgain(ports))
    }

    async fn kill(mut self) -> (Setup, Ports) {
        self.tasks.shutdown().await;
        for rank in self.ranks {
            rank.publisher.close().await;
        }
        (self.setup, self.ports)
    }

    async fn start_at(setup: Setup, mut ports: Ports) -> Self {
        let mut tasks = JoinSet::new();
        let mut ranks = Vec::new();
        for (events, replay) in &mut ports.ranks {
            let mut publisher = PubSocket::new();
            *events = publisher
                .bind_listener(listener(*events))
                .await
                .unwrap()
                .to_string()
                .rsplit(':')
                .next()
                .unwrap()
                .parse()
                .unwrap();
            let ring = Ring { next: 0, limit: setup.ring, old: setup.old, batches: VecDeque::new() };
            let ring = Arc::new(Mutex::new(ring));
            let mut router = RouterSocket::new();
            *replay = router
                .bind_listener(listener(*replay))
                .await
                .unwrap()
                .to_string()
                .rsplit(':')
                .next()
                .unwrap()
                .parse()
                .unwrap();
            tasks.spawn(replay_task(router, Arc::clone(&ring)));
            ranks.push(Rank { publisher, ring, pages: BTreeSet::new() });
        }
        let http = listener(ports.http);
        http.set_nonblocking(true).unwrap();
        ports.http = http.local_addr().unwrap().port();
        let face = Face {
            ready: 200,
            ping: 200,
            info: info(&setup, &ports),
            loads: json!({"loads": []}),
            api_key: setup.api_key,
        };
        let face = Arc::new(Mutex::new(face));
        tasks.spawn(http_task(TcpListener::from_std(http).unwrap(), Arc::clone(&face)));
        let mut engine = Self { setup, ports, ranks, face, tasks };
        for rank in 0..engine.ranks.len() {
            engine.flush(rank).await;
        }
        engine
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.http)
    }

    /// Stores the pages of a path that are not held yet.
    pub(crate) async fn store(&mut self, rank: usize, tokens: &[u32]) {
        let held = self.add(rank, tokens);
        self.publish(rank, &[Change::Stored { path: tokens, from: held }], true).await;
    }

    /// The same, but the message gets lost on its way: only a replay shows it.
    pub(crate) async fn store_unheard(&mut self, rank: usize, tokens: &[u32]) {
        let held = self.add(rank, tokens);
        self.publish(rank, &[Change::Stored { path: tokens, from: held }], false).await;
    }

    /// Publishes the last pages of a path of which the first was never published.
    pub(crate) async fn store_orphans(&mut self, rank: usize, tokens: &[u32]) {
        self.publish(rank, &[Change::Stored { path: tokens, from: 1 }], true).await;
    }

    /// Evicts the pages of a path after the first `keep`.
    pub(crate) async fn evict(&mut self, rank: usize, tokens: &[u32], keep: usize) {
        let page = self.setup.page;
        for end in (page * (keep + 1)..=tokens.len()).step_by(page) {
            assert!(self.ranks[rank].pages.remove(&tokens[..end]), "only what is held can be evicted");
        }
        self.publish(rank, &[Change::Removed { path: tokens, from: keep }], true).await;
    }

    pub(crate) async fn flush(&mut self, rank: usize) {
        self.ranks[rank].pages.clear();
        self.publish(rank, &[Change::Cleared], true).await;
    }

    /// A payload that is no batch.
    pub(crate) async fn publish_garbage(&mut self, rank: usize) {
        self.send(rank, Bytes::from_static(b"\x93\xff garbage"), true).await;
    }

    /// The blocks of every path held, hashed from its first token.
    pub(crate) fn blocks(&self, rank: usize, space: &KeySpace) -> HashSet<u64> {
        let pages = self.ranks[rank].pages.iter();
        let keys = pages.map(|path| space.key_of_tokens(Salt::default(), path));
        keys.flat_map(|key| key.hashes().iter().map(|hash| hash.get()).collect::<Vec<_>>()).collect()
    }

    /// What `/ready` and `/ping` answer from now on.
    pub(crate) fn show(&self, ready: u16, ping: u16) {
        let mut face = self.face.lock().unwrap();
        (face.ready, face.ping) = (ready, ping);
    }

    pub(crate) fn show_load(&self, running: u32) {
        let load = json!({"dp_rank": 0, "num_running_reqs": running, "num_waiting_reqs": 1,
            "num_used_tokens": 12, "max_total_num_tokens": 4096, "total_prefill_uncached_tokens": 5,
            "total_prefill_busy_us": 6});
        self.face.lock().unwrap().loads = json!({"loads": [load]});
    }

    fn add(&mut self, rank: usize, tokens: &[u32]) -> usize {
        let page = self.setup.page;
        let pages = &mut self.ranks[rank].pages;
        let held =
            (page..=tokens.len()).step_by(page).take_while(|end| pages.contains(&tokens[..*end])).count();
        pages.extend((page..=tokens.len()).step_by(page).map(|end| tokens[..end].to_vec()));
        held
    }

    async fn publish(&mut self, rank: usize, changes: &[Change<'_>], live: bool) {
        let payload = encode(changes, self.setup.page, self.setup.old);
        self.send(rank, payload.into(), live).await;
    }

    async fn send(&mut self, rank: usize, payload: Bytes, live: bool) {
        let Rank { publisher, ring, .. } = &mut self.ranks[rank];
        let seq = {
            let mut ring = ring.lock().unwrap();
            let seq = ring.next;
            ring.next += 1;
            ring.batches.push_back((seq, payload.clone()));
            if ring.batches.len() > ring.limit {
                ring.batches.pop_front();
            }
            seq
        };
        if live {
            let mut message = ZmqMessage::from("kv");
            message.push_back(Bytes::copy_from_slice(&seq.to_be_bytes()));
            message.push_back(payload);
            publisher.send(message).await.unwrap();
        }
    }
}

/// Addresses for the next life.
pub(crate) struct PortsAgain(Ports);

fn listener(port: u16) -> std::net::TcpListener {
    // A life just ended may hold the port for a moment; binding is what is waited for.
    let began = std::time::Instant::now();
    loop {
        match std::net::TcpListener::bind(("127.0.0.1", port)) {
            Ok(listener) => return listener,
            Err(error) => assert!(began.elapsed() < super::PATIENCE, "port {port}: {error}"),
        }
        std::thread::yield_now();
    }
}

fn info(setup: &Setup, ports: &Ports) -> Value {
    let start = STARTS.fetch_add(1, Ordering::Relaxed) as f64;
    let mut info = json!({
        "version": "0.5.23", "served_model_name": "fake", "weight_version": "w1", "page_size": setup.page,
        "dp_size": setup.ranks, "max_total_num_tokens": 4096, "radix_eviction_policy": "lru",
        "enable_metrics": true, "decode_log_interval": 1,
        "internal_states": [{"max_mamba_cache_size": null, "memory_usage": {"token_capacity_swa": 2048}}],
    });
    if setup.shows_start {
        info["startup_time"] = json!({"scheduler_e2e": start + 0.25});
    }
    if setup.dates_start {
        info["start_time"] = json!(1.7e9 + start);
    }
    if setup.events {
        let source = |(rank, (events, replay)): (usize, &(u16, u16))| {
            let replay = setup.replays.then(|| format!("tcp://127.0.0.1:{replay}"));
            json!({"dp_rank": rank, "endpoint": format!("tcp://127.0.0.1:{events}"), "topic": "kv",
                "replay_endpoint": replay})
        };
        info["kv_event_sources"] = ports.ranks.iter().enumerate().map(source).collect();
    }
    info
}

async fn replay_task(mut socket: RouterSocket, ring: Arc<Mutex<Ring>>) {
    while let Ok(request) = socket.recv().await {
        let frames = request.into_vec();
        let [peer, empty, start] = &frames[..] else { continue };
        assert!(empty.is_empty());
        let start = u64::from_be_bytes(start.as_ref().try_into().unwrap());
        let (old, batches) = {
            let ring = ring.lock().unwrap();
            (ring.old, ring.batches.iter().filter(|(seq, _)| *seq >= start).cloned().collect::<Vec<_>>())
        };
        let end = (u64::MAX, Bytes::new());
        for (seq, payload) in batches.into_iter().chain([end]) {
            let mut frames = vec![peer.clone(), Bytes::new()];
            if !old {
                frames.push(if seq == u64::MAX { Bytes::new() } else { Bytes::from_static(b"kv") });
            }
            frames.extend([Bytes::copy_from_slice(&seq.to_be_bytes()), payload]);
            // The asker may be gone.
            let _ = socket.send(ZmqMessage::try_from(frames).unwrap()).await;
        }
    }
}

async fn http_task(listener: TcpListener, face: Arc<Mutex<Face>>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let face = Arc::clone(&face);
        let answer = service_fn(move |request| {
            let response = answer(&face.lock().unwrap(), &request);
            async move { Ok::<_, Infallible>(response) }
        });
        connections.spawn(async move {
            let builder = hyper::server::conn::http1::Builder::new();
            let _ = builder.serve_connection(TokioIo::new(stream), answer).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

fn answer(face: &Face, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, body) = match (request.uri().path(), face.api_key) {
        ("/ready", _) => (face.ready, String::new()),
        (_, Some(key))
            if request
                .headers()
                .get("authorization")
                .is_none_or(|value| value != &format!("Bearer {key}")) =>
        {
            (401, r#"{"error":"Unauthorized"}"#.to_owned())
        }
        ("/ping", _) => (face.ping, String::new()),
        ("/server_info", _) => (200, face.info.to_string()),
        ("/v1/loads", _) => (200, face.loads.to_string()),
        ("/v1/models", _) => (200, "{}".to_owned()),
        _ => (404, r#"{"detail":"Not Found"}"#.to_owned()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

fn hash(path: &[u32]) -> i64 {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish() as i64
}

fn encode(changes: &[Change<'_>], page: usize, old: bool) -> Vec<u8> {
    static CLOCK: AtomicU64 = AtomicU64::new(0);
    let mut out = Vec::new();
    write_array_len(&mut out, 3).unwrap();
    write_f64(&mut out, 1.7e9 + CLOCK.fetch_add(1, Ordering::Relaxed) as f64).unwrap();
    write_array_len(&mut out, changes.len() as u32).unwrap();
    for change in changes {
        let (kind, fields): (&str, &[&str]) = match change {
            Change::Stored { .. } => (
                "BlockStored",
                &["block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium"],
            ),
            Change::Removed { .. } => ("BlockRemoved", &["block_hashes", "medium"]),
            Change::Cleared => ("AllBlocksCleared", &[]),
        };
        if old {
            write_array_len(&mut out, fields.len() as u32 + 1).unwrap();
        } else {
            write_map_len(&mut out, fields.len() as u32 + 1).unwrap();
            write_str(&mut out, "type").unwrap();
        }
        write_str(&mut out, kind).unwrap();
        for field in fields {
            if !old {
                write_str(&mut out, field).unwrap();
            }
            write_field(&mut out, change, field, page);
        }
    }
    write_nil(&mut out).unwrap();
    out
}

fn write_field(out: &mut Vec<u8>, change: &Change<'_>, field: &str, page: usize) {
    let (Change::Stored { path, from } | Change::Removed { path, from }) = change else { return };
    match field {
        "block_hashes" => {
            let ends: Vec<usize> = (page * (from + 1)..=path.len()).step_by(page).collect();
            write_array_len(out, ends.len() as u32).unwrap();
            for end in ends {
                write_sint(out, hash(&path[..end])).unwrap();
            }
        }
        "parent_block_hash" if *from > 0 => {
            write_sint(out, hash(&path[..from * page])).unwrap();
        }
        "token_ids" => {
            let tokens = &path[from * page..path.len() / page * page];
            write_array_len(out, tokens.len() as u32).unwrap();
            for token in tokens {
                write_uint(out, (*token).into()).unwrap();
            }
        }
        "block_size" => {
            write_uint(out, page as u64).unwrap();
        }
        "medium" => write_str(out, "GPU").unwrap(),
        _ => write_nil(out).unwrap(),
    }
}
