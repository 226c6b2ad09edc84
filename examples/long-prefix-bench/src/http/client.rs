//! One request over HTTP, and what came of it.

use std::error::Error as _;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::{Instant, timeout, timeout_at};

use super::events::{Api, Events, NotAnEvent, Usage};

/// Sends requests; connections are kept and used again. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Client {
    http: legacy::Client<HttpConnector, Full<Bytes>>,
}

/// Why a request has no complete answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Failure {
    /// The driver's own rule names nobody.
    #[error("no worker to send it to")]
    Nowhere,
    /// There is nobody there.
    #[error("connection refused")]
    Refused,
    /// This process may open no more.
    #[error("out of file descriptors")]
    OutOfDescriptors,
    /// The connection ended before an answer came.
    #[error("connection lost before an answer")]
    Lost,
    /// Answered with an error.
    #[error("answered {}", .0.as_u16())]
    Status(StatusCode),
    /// The stream ended or failed before its first token.
    #[error("stream broke off before its first token")]
    NeverBegun,
    /// The stream ended or failed after its first token.
    #[error("stream broke off after its first token")]
    BrokenOff,
    /// The answer cannot be understood.
    #[error("answer is not this route's")]
    Unreadable,
    /// No token came in time.
    #[error("no first token in time")]
    TimedOut,
    /// The first token came, the last one did not.
    #[error("answer never came to its end")]
    Stalled,
}

/// What was seen of an answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    pub(super) first: Option<Instant>,
    pub(super) done: Option<Instant>,
    pub(super) usage: Usage,
    /// Prompt tokens that the router expected to be cached, where it says so.
    pub(super) predicted_tokens: Option<u64>,
    /// The worker that the router chose, where it says so.
    pub(super) worker: Option<String>,
    pub(super) output: Vec<u32>,
}

/// An answer that takes longer after its first token has stalled.
const LONGEST_ANSWER: Duration = Duration::from_secs(600);

/// Longest wait for an answer that generates nothing.
const PATIENCE: Duration = Duration::from_secs(5);

/// Errors of the system by which a process has too many files open: its own limit, and the machine's. The same on Linux and macOS.
const TOO_MANY_FILES: [i32; 2] = [24, 23];

impl Client {
    pub(super) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self { http: legacy::Client::builder(TokioExecutor::new()).build(connector) }
    }

    /// Asks for a generation and reads it to its end, or until no first token has come by `leave_at`; calls `first` when it comes.
    pub(super) async fn generate(
        &self,
        url: &str,
        api: Api,
        body: String,
        leave_at: Instant,
        answer: &mut Answer,
        first: impl FnOnce(),
    ) -> Result<(), Failure> {
        let request =
            Request::post(format!("{url}{}", api.path())).header("content-type", "application/json");
        let request = request.body(Full::from(body)).map_err(|_| Failure::Unreadable)?;
        let response =
            timeout_at(leave_at, self.http.request(request)).await.map_err(|_| Failure::TimedOut)?;
        let response = response.map_err(|error| kind_of(&error))?;
        if response.status() != StatusCode::OK {
            return Err(Failure::Status(response.status()));
        }
        let said = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        answer.predicted_tokens = said("x-espalier-predicted-tokens").and_then(|tokens| tokens.parse().ok());
        answer.worker = said("x-espalier-worker").map(str::to_owned);
        let mut events = Events::of(api);
        let read = read(response, &mut events, leave_at, answer, first).await;
        answer.usage = events.usage.unwrap_or_default();
        answer.usage.retractions = answer.usage.retractions.max(events.retractions());
        read?;
        answer.done = Some(Instant::now());
        answer.output = events.output();
        Ok(())
    }

    /// What a route answers, if that is a success.
    pub(super) async fn get(&self, url: &str) -> Result<Bytes, Failure> {
        let request = Request::get(url).body(Full::default()).map_err(|_| Failure::Unreadable)?;
        self.whole(request).await
    }

    /// The same for a POST without a body.
    pub(super) async fn post(&self, url: &str) -> Result<Bytes, Failure> {
        let request = Request::post(url).body(Full::default()).map_err(|_| Failure::Unreadable)?;
        self.whole(request).await
    }

    async fn whole(&self, request: Request<Full<Bytes>>) -> Result<Bytes, Failure> {
        let exchange = async {
            let response = self.http.request(request).await.map_err(|error| kind_of(&error))?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(|_| Failure::Lost)?;
            if status.is_success() { Ok(body.to_bytes()) } else { Err(Failure::Status(status)) }
        };
        timeout(PATIENCE, exchange).await.unwrap_or(Err(Failure::TimedOut))
    }
}

async fn read(
    response: Response<Incoming>,
    events: &mut Events,
    leave_at: Instant,
    answer: &mut Answer,
    first: impl FnOnce(),
) -> Result<(), Failure> {
    let mut first = Some(first);
    let mut stream = response.into_body();
    loop {
        let (until, late) = match answer.first {
            None => (leave_at, Failure::TimedOut),
            Some(first) => (first + LONGEST_ANSWER, Failure::Stalled),
        };
        let broken = if answer.first.is_some() { Failure::BrokenOff } else { Failure::NeverBegun };
        let frame = match timeout_at(until, stream.frame()).await {
            Err(_) => return Err(late),
            Ok(Some(Err(_))) => return Err(broken),
            Ok(None) if events.ended && events.begun => return Ok(()),
            Ok(None) => return Err(broken),
            Ok(Some(Ok(frame))) => frame,
        };
        if let Ok(data) = frame.into_data() {
            events.push(&data).map_err(|NotAnEvent| Failure::Unreadable)?;
        }
        if events.failed {
            return Err(broken);
        }
        if events.begun
            && let Some(first) = first.take()
        {
            answer.first = Some(Instant::now());
            first();
        }
    }
}

fn kind_of(error: &legacy::Error) -> Failure {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            match io.raw_os_error() {
                Some(code) if TOO_MANY_FILES.contains(&code) => return Failure::OutOfDescriptors,
                _ if io.kind() == std::io::ErrorKind::ConnectionRefused => return Failure::Refused,
                _ => {}
            }
        }
        cause = error.source();
    }
    Failure::Lost
}
