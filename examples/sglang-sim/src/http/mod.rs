//! The HTTP side of a simulated server: accepts, authenticates, dispatches.

mod answer;
mod control;
mod disaggregation;
mod faults;
mod other_apis;
mod request;
mod sessions;
mod state;

use std::convert::Infallible;
use std::hash::{BuildHasher as _, Hasher as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use self::request::{Api, BadRequest};
use crate::config::SimConfig;
use crate::engine::{Command, EngineHandle};
use crate::scheduler::Pause;
use crate::sim::Ports;
use crate::tokenizer::Tokenizer;
use crate::transfer::Rooms;

pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Largest request body.
const MOST_BODY_BYTES: usize = 256 << 20;

/// The HTTP side. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Arc<SimConfig>,
    tokenizer: Tokenizer,
    ranks: Vec<EngineHandle>,
    ports: Ports,
    address: SocketAddr,
    /// Of a prefill server.
    rooms: Rooms,
    next_id: AtomicU64,
    next_rank: AtomicU64,
    paused: AtomicBool,
    faults: faults::Faults,
    started: Instant,
    /// Told in `startup_time`; different for every start, as a real server's is.
    started_at: SystemTime,
    sessions: sessions::Sessions,
    responses: other_apis::Responses,
    /// Told as `weight_version`.
    weight_version: std::sync::Mutex<String>,
    /// Requests that can be aborted by their name.
    named: std::sync::Mutex<Vec<(String, usize, crate::scheduler::RequestId)>>,
}

impl Server {
    pub(crate) fn new(
        config: Arc<SimConfig>,
        tokenizer: Tokenizer,
        ranks: Vec<EngineHandle>,
        ports: Ports,
        address: SocketAddr,
        rooms: Rooms,
    ) -> Self {
        let weight_version = std::sync::Mutex::new(config.weight_version.clone());
        let inner = Inner {
            config,
            sessions: sessions::Sessions::default(),
            responses: other_apis::Responses::default(),
            weight_version,
            tokenizer,
            ranks,
            ports,
            address,
            rooms,
            next_id: AtomicU64::new(0),
            next_rank: AtomicU64::new(0),
            paused: AtomicBool::new(false),
            faults: faults::Faults::default(),
            started: Instant::now(),
            started_at: SystemTime::now(),
            named: std::sync::Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// A rank, if there is one of that number.
    pub(crate) fn rank(&self, rank: u32) -> Option<&EngineHandle> {
        self.inner.ranks.get(rank as usize)
    }

    /// Accepts connections until it is dropped, and every connection with it.
    pub(crate) fn accept(
        self,
        listener: std::net::TcpListener,
    ) -> std::io::Result<impl Future<Output = ()> + Send> {
        let listener = TcpListener::from_std(listener)?;
        Ok(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let _ = stream.set_nodelay(true);
                let server = self.clone();
                connections.spawn(async move {
                    let (stream, resets) = faults::Resettable::new(stream);
                    let service = service_fn(move |request| {
                        let (server, resets) = (server.clone(), resets.clone());
                        async move {
                            if server.inner.faults.is_reset(&request) {
                                return Err(resets.reset());
                            }
                            Ok(server.answer(request).await)
                        }
                    });
                    let http = auto::Builder::new(TokioExecutor::new());
                    // A connection that breaks concerns its client alone.
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
                while connections.try_join_next().is_some() {}
            }
        })
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        // uvicorn undoes escapes before it looks at a path.
        let path = unescaped(request.uri().path());
        let open = ["/health", "/health_generate", "/ready", "/metrics"];
        if !open.contains(&&*path) && !self.authorized(&request) {
            return json(StatusCode::UNAUTHORIZED, &serde_json::json!({"error": "Unauthorized"}));
        }
        if let Some(failing) = self.inner.faults.answer(&request) {
            return failing;
        }
        let query = request.uri().query().unwrap_or("").to_owned();
        let api = match (request.method(), &*path) {
            (&Method::POST | &Method::PUT, "/generate") => Api::Generate,
            (&Method::POST, "/v1/completions") => Api::Completions,
            (&Method::POST, "/v1/chat/completions" | "/invocations") => Api::Chat,
            (method, path) => {
                let method = method.clone();
                let body = read(request).await;
                return self.other(&method, path, &query, body).await;
            }
        };
        let header_rank = request.headers().get("x-data-parallel-rank").cloned();
        let Some(body) = read(request).await else {
            return api.refuse(&BadRequest::new("the request body could not be read"));
        };
        let parsed = request::parse(api, &body, &self.inner.tokenizer).and_then(|mut parsed| {
            if api != Api::Generate {
                parsed.take_rank_header(header_rank.as_ref())?;
            }
            self.check(&parsed)?;
            self.check_bootstrap(&parsed)?;
            Ok(parsed)
        });
        match parsed.and_then(|parsed| self.with_history(parsed)) {
            Ok(parsed) => self.generate(api, parsed).await,
            Err(bad) => api.refuse(&bad),
        }
    }

    /// All routes that generate nothing.
    async fn other(&self, method: &Method, path: &str, query: &str, body: Option<Bytes>) -> Response<Body> {
        let ok = || text(StatusCode::OK, "");
        match path {
            "/health" | "/health_generate" | "/ping" => ok(),
            "/ready" if self.inner.paused.load(Relaxed) => text(StatusCode::SERVICE_UNAVAILABLE, ""),
            "/ready" => ok(),
            "/v1/models" => json(StatusCode::OK, &self.models()),
            "/model_info" | "/get_model_info" => json(StatusCode::OK, &self.model_info()),
            "/server_info" | "/get_server_info" => json(StatusCode::OK, &self.server_info()),
            "/v1/loads" => json(StatusCode::OK, &self.loads(query)),
            "/metrics" => text(StatusCode::OK, &self.metrics()),
            "/flush_cache" => self.flush().await,
            faults::PATH if method == Method::POST => self.set_faults(&body.unwrap_or_default()).await,
            "/abort_request" if method == Method::POST => self.abort(&body.unwrap_or_default()).await,
            "/pause_generation" if method == Method::POST => self.pause(&body.unwrap_or_default()).await,
            "/continue_generation" if method == Method::POST => self.resume().await,
            "/tokenize" | "/v1/tokenize" if method == Method::POST => {
                tokenize(&body.unwrap_or_default(), &self.inner.tokenizer)
            }
            "/open_session" => self.open_session(&body.unwrap_or_default()),
            "/close_session" => self.close_session(&body.unwrap_or_default()),
            _ if control::ACKNOWLEDGED.contains(&path) => ok(),
            "/update_weights_from_disk" => self.update_weights(&body.unwrap_or_default()).await,
            _ if other_apis::knows(method, path) => {
                self.other_api(method, path, &body.unwrap_or_default()).await
            }
            _ => json(StatusCode::NOT_FOUND, &serde_json::json!({"detail": "Not Found"})),
        }
    }

    async fn flush(&self) -> Response<Body> {
        let mut flushed = true;
        for rank in &self.inner.ranks {
            flushed &= rank.flush().await;
        }
        match flushed {
            true => text(StatusCode::OK, "Cache flushed.\n"),
            false => text(StatusCode::BAD_REQUEST, "Flush cache failed.\n"),
        }
    }

    /// Aborts every request whose name begins with the given one, and answers 200 whether there was one or not.
    async fn abort(&self, body: &[u8]) -> Response<Body> {
        let asked: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let all = asked["abort_all"].as_bool().unwrap_or(false);
        let rid = asked["rid"].as_str().filter(|rid| !rid.is_empty());
        let meant = |name: &str| all || rid.is_some_and(|rid| name.starts_with(rid));
        let found: Vec<_> = {
            let named = self.inner.named.lock().expect("no holder panics");
            named.iter().filter(|(name, ..)| meant(name)).map(|(_, rank, id)| (*rank, *id)).collect()
        };
        for (rank, id) in found {
            self.inner.ranks[rank].send(Command::Abort(id)).await;
        }
        text(StatusCode::OK, "")
    }

    async fn pause(&self, body: &[u8]) -> Response<Body> {
        let asked: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let mode = match asked["mode"].as_str() {
            None | Some("abort") => Pause::Abort,
            Some("retract") => Pause::Retract,
            Some("in_place") => Pause::InPlace,
            Some(_) => {
                let bad = BadRequest::new("mode: one of 'abort', 'retract' and 'in_place' is required");
                return Api::Generate.refuse(&bad);
            }
        };
        self.inner.paused.store(true, Relaxed);
        for rank in &self.inner.ranks {
            rank.pause(Some(mode)).await;
        }
        json(
            StatusCode::OK,
            &serde_json::json!({"status": "ok", "message": "Generation paused successfully."}),
        )
    }

    async fn resume(&self) -> Response<Body> {
        for rank in &self.inner.ranks {
            rank.pause(None).await;
        }
        self.inner.paused.store(false, Relaxed);
        let message = "Generation continued successfully.";
        json(StatusCode::OK, &serde_json::json!({"status": "ok", "message": message}))
    }

    fn authorized<T>(&self, request: &Request<T>) -> bool {
        let config = &self.inner.config;
        let admin =
            config.admin_api_key.as_ref().filter(|_| control::is_admins(&unescaped(request.uri().path())));
        let Some(key) = admin.or(config.api_key.as_ref()) else { return true };
        let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        given.and_then(|value| value.strip_prefix("Bearer ")) == Some(key)
    }
}

fn tokenize(body: &[u8], tokenizer: &Tokenizer) -> Response<Body> {
    let asked: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let Some(prompt) = asked["prompt"].as_str() else {
        return Api::Chat.refuse(&BadRequest::new("prompt: a string is required"));
    };
    let tokens = tokenizer.encode(prompt);
    json(StatusCode::OK, &serde_json::json!({"count": tokens.len(), "tokens": tokens}))
}

fn unescaped(path: &str) -> String {
    let mut parts = path.split('%');
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                whole.push(char::from(byte));
                whole.push_str(&part[2..]);
            }
            None => {
                whole.push('%');
                whole.push_str(part);
            }
        }
    }
    whole
}

/// An id that no other server makes.
pub(super) fn unique_id() -> String {
    let random = || std::hash::RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}

/// The whole body; `None` if it breaks off or is too large.
async fn read(request: Request<Incoming>) -> Option<Bytes> {
    Limited::new(request.into_body(), MOST_BODY_BYTES).collect().await.ok().map(|body| body.to_bytes())
}

pub(super) fn json(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    typed(status, "application/json", value.to_string())
}

fn text(status: StatusCode, content: &str) -> Response<Body> {
    typed(status, "text/plain; charset=utf-8", content.to_owned())
}

fn typed(status: StatusCode, content_type: &'static str, content: String) -> Response<Body> {
    let mut response = Response::new(Full::from(content).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
