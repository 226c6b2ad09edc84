//! Sends requests of the trace open loop over HTTP and measures what comes back.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{Request as HttpRequest, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use indicatif::ProgressBar;
use serde::Deserialize;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::trace::Request;

/// How the trace is played.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Times faster than the trace its requests arrive at the engines, in the engines' own time.
    pub(crate) compression: f64,
    /// Times faster than real time the engines run.
    pub(crate) time_scale: f64,
    /// A request that takes longer, in the engines' time, counts as failed.
    pub(crate) timeout: Duration,
}

/// What came of one request.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Time to its first token in the engines' time, from the moment it was due: what delays the sender delays the client.
    pub(crate) ttft: Duration,
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) predicted_tokens: u64,
    /// Base URL of the worker that answered.
    pub(crate) worker: String,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("not sent: {0}")]
    Transport(#[from] hyper_util::client::legacy::Error),
    #[error("answered {0}")]
    Status(StatusCode),
    #[error("broke off before their first token")]
    NeverBegun,
    #[error("broke off after their first token")]
    BrokenOff,
    #[error("answered with something else than SGLang's events")]
    Unreadable,
    #[error("timed out")]
    TimedOut,
}

/// What came of all of them.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) answers: Vec<Answer>,
    /// Number of failures, by reason.
    pub(crate) failures: BTreeMap<String, usize>,
}

/// The part of an event that is looked at.
#[derive(Deserialize)]
struct Event {
    meta_info: MetaInfo,
}

#[derive(Deserialize)]
struct MetaInfo {
    prompt_tokens: u64,
    cached_tokens: u64,
}

type HttpClient = Client<HttpConnector, Full<Bytes>>;

/// Requests under way to one router.
#[derive(Debug)]
pub(crate) struct Sender {
    client: HttpClient,
    url: String,
    pace: Pace,
    running: JoinSet<Result<Answer, Failure>>,
}

/// Plays the whole trace against `base` and waits for every answer.
pub(crate) async fn drive(base: &str, trace: &[Request], pace: Pace, progress: &ProgressBar) -> Outcome {
    let mut sender = Sender::new(base, pace);
    let began = Instant::now();
    let mut outcome = Outcome::default();
    for request in trace {
        // The body is made before its time comes, so that making it delays nobody.
        let body = body_of(request);
        let due = began + pace.until(request.at);
        tokio::time::sleep_until(due).await;
        sender.send(body, due);
        while let Some(done) = sender.try_next() {
            progress.inc(1);
            outcome.take(done);
        }
    }
    while let Some(done) = sender.next().await {
        progress.inc(1);
        outcome.take(done);
    }
    outcome
}

impl Pace {
    /// Real time after which a request of the trace is due.
    pub(crate) fn until(&self, at: Duration) -> Duration {
        self.wall(at.div_f64(self.compression))
    }

    fn wall(&self, engine: Duration) -> Duration {
        engine.div_f64(self.time_scale)
    }
}

impl Sender {
    pub(crate) fn new(base: &str, pace: Pace) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { client, url: format!("{base}/generate"), pace, running: JoinSet::new() }
    }

    /// Sends a request that was due at `due`.
    pub(crate) fn send(&mut self, body: Bytes, due: Instant) {
        let (client, url, pace) = (self.client.clone(), self.url.clone(), self.pace);
        self.running.spawn(async move {
            let answer = exchange(&client, &url, body, due, pace.time_scale);
            let answer = tokio::time::timeout_at(due + pace.wall(pace.timeout), answer).await;
            answer.unwrap_or(Err(Failure::TimedOut))
        });
    }

    /// Requests that are not answered yet.
    pub(crate) fn in_flight(&self) -> usize {
        self.running.len()
    }

    /// What came of a request that is done.
    pub(crate) fn try_next(&mut self) -> Option<Done> {
        self.running.try_join_next().map(Done)
    }

    /// Waits for a request to be done; `None` when none is under way.
    pub(crate) async fn next(&mut self) -> Option<Done> {
        self.running.join_next().await.map(Done)
    }
}

/// Sends one request and reads its events to the end.
async fn exchange(
    client: &HttpClient,
    url: &str,
    body: Bytes,
    due: Instant,
    time_scale: f64,
) -> Result<Answer, Failure> {
    let uri: Uri = url.parse().map_err(|_| Failure::Unreadable)?;
    let request = HttpRequest::post(uri)
        .header("content-type", "application/json")
        .body(Full::new(body))
        .map_err(|_| Failure::Unreadable)?;
    let response = client.request(request).await?;
    if response.status() != StatusCode::OK {
        return Err(Failure::Status(response.status()));
    }
    let header =
        |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    let worker = header("x-espalier-worker").to_owned();
    let predicted_tokens = header("x-espalier-predicted-tokens").parse().unwrap_or(0);
    let mut stream = response.into_body();
    let mut events = Events::default();
    let mut first: Option<(Duration, MetaInfo)> = None;
    while let Some(frame) = stream.frame().await {
        let frame = frame.map_err(|_| Failure::broken(first.is_some()))?;
        let Ok(data) = frame.into_data() else { continue };
        events.push(&data);
        while let Some(event) = events.next() {
            if event.starts_with(b"{\"error\"") {
                return Err(Failure::broken(first.is_some()));
            }
            if first.is_none() {
                let event: Event = serde_json::from_slice(&event).map_err(|_| Failure::Unreadable)?;
                first = Some((due.elapsed().mul_f64(time_scale), event.meta_info));
            }
        }
    }
    let (ttft, usage) = first.ok_or(Failure::NeverBegun)?;
    if !events.ended {
        return Err(Failure::BrokenOff);
    }
    let MetaInfo { prompt_tokens, cached_tokens } = usage;
    Ok(Answer { ttft, prompt_tokens, cached_tokens, predicted_tokens, worker })
}

/// A request as SGLang takes it.
pub(crate) fn body_of(request: &Request) -> Bytes {
    let body = serde_json::json!({
        "input_ids": request.tokens(),
        "sampling_params": {"max_new_tokens": request.output_tokens, "ignore_eos": true},
        "stream": true,
    });
    Bytes::from(body.to_string())
}

impl Failure {
    /// A stream that ends early. Before its first token the request could have been tried elsewhere; after it, it could not.
    fn broken(begun: bool) -> Self {
        if begun { Self::BrokenOff } else { Self::NeverBegun }
    }
}

/// What came of one request.
#[derive(Debug)]
pub(crate) struct Done(Result<Result<Answer, Failure>, JoinError>);

impl Outcome {
    pub(crate) fn take(&mut self, Done(done): Done) {
        let reason = match done {
            Ok(Ok(answer)) => return self.answers.push(answer),
            Ok(Err(failure)) => failure.to_string(),
            Err(error) => error.to_string(),
        };
        self.fail(reason);
    }

    /// Counts a request that has no answer.
    pub(crate) fn fail(&mut self, reason: String) {
        *self.failures.entry(reason).or_default() += 1;
    }

    /// Requests without a complete answer.
    pub(crate) fn failed(&self) -> usize {
        self.failures.values().sum()
    }

    /// Cached tokens per prompt token, as the engines counted them; `None` without answers.
    pub(crate) fn hit_rate(&self) -> Option<f64> {
        let sum = |of: fn(&Answer) -> u64| self.answers.iter().map(of).sum::<u64>() as f64;
        let prompt_tokens = sum(|answer| answer.prompt_tokens);
        (prompt_tokens > 0.0).then(|| sum(|answer| answer.cached_tokens) / prompt_tokens)
    }
}

/// Server-sent events out of chunks that end anywhere.
#[derive(Debug, Default)]
struct Events {
    pending: Vec<u8>,
    /// The stream said that it was complete.
    ended: bool,
}

impl Events {
    fn push(&mut self, chunk: &[u8]) {
        self.pending.extend_from_slice(chunk);
    }

    /// The data of the next whole event, without the one that ends the stream.
    fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let end = memchr::memmem::find(&self.pending, b"\n\n")?;
            let event: Vec<u8> = self.pending.drain(..end + 2).collect();
            let data = event.strip_prefix(b"data: ").unwrap_or(&event).trim_ascii();
            // A blank line closes whatever came before it, if anything did.
            if !data.is_empty() {
                self.ended = data == b"[DONE]";
                return (!self.ended).then(|| data.to_vec());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_across_chunks() {
        let mut events = Events::default();
        for chunk in ["\n\ndat", "a: {\"a\":1}\n", "\ndata: [DON", "E]\n\n"] {
            events.push(chunk.as_bytes());
        }
        assert_eq!(events.next().unwrap(), b"{\"a\":1}");
        assert!(!events.ended);
        assert_eq!(events.next(), None);
        assert!(events.ended);
    }

    /// Lag of the sender is the client's wait, and must not be hidden.
    #[tokio::test]
    async fn a_wait_counts_from_when_a_request_was_due() {
        let sim = sglang_sim::Sim::start(sglang_sim::SimConfig::default()).await.unwrap();
        let pace = Pace { compression: 1.0, time_scale: 2.0, timeout: Duration::from_secs(600) };
        let mut sender = Sender::new(&sim.url(), pace);
        let lag = Duration::from_secs(20);
        let body =
            Bytes::from(r#"{"input_ids":[1,2,3],"sampling_params":{"max_new_tokens":1},"stream":true}"#);
        sender.send(body, Instant::now().checked_sub(lag).unwrap());
        let Done(done) = sender.next().await.unwrap();
        assert!(done.unwrap().unwrap().ttft >= lag * 2);
        assert_eq!(pace.until(Duration::from_secs(8)), Duration::from_secs(4));
    }
}
