//! Sends the trace open loop over HTTP and measures what comes back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request as HttpRequest, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use indicatif::ProgressBar;
use serde::Deserialize;
use tokio::task::JoinSet;

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
    /// Time to its first token in the engines' time.
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
    #[error("broke off: {0}")]
    Broken(#[from] hyper::Error),
    #[error("ended before its last event")]
    Unfinished,
    #[error("answered with an error event")]
    ErrorEvent,
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

/// Plays the whole trace against `base` and waits for every answer.
pub(crate) async fn drive(base: &str, trace: &[Request], pace: Pace, progress: &ProgressBar) -> Outcome {
    let client: Arc<HttpClient> = Arc::new(Client::builder(TokioExecutor::new()).build_http());
    let began = tokio::time::Instant::now();
    let mut running = JoinSet::new();
    let mut outcome = Outcome::default();
    let wall = move |engine: Duration| engine.div_f64(pace.time_scale);
    for request in trace {
        // The body is made before its time comes, so that making it delays nobody.
        let body = body_of(request);
        tokio::time::sleep_until(began + wall(request.at.div_f64(pace.compression))).await;
        let (client, url) = (client.clone(), format!("{base}/generate"));
        running.spawn(async move {
            let answer = tokio::time::timeout(wall(pace.timeout), send(&client, &url, body, pace.time_scale));
            answer.await.unwrap_or(Err(Failure::TimedOut))
        });
        while let Some(done) = running.try_join_next() {
            outcome.take(done, progress);
        }
    }
    while let Some(done) = running.join_next().await {
        outcome.take(done, progress);
    }
    outcome
}

/// Sends one request and reads its events to the end.
async fn send(client: &HttpClient, url: &str, body: Bytes, time_scale: f64) -> Result<Answer, Failure> {
    let uri: Uri = url.parse().map_err(|_| Failure::Unreadable)?;
    let request = HttpRequest::post(uri)
        .header("content-type", "application/json")
        .body(Full::new(body))
        .map_err(|_| Failure::Unreadable)?;
    let sent = Instant::now();
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
        let Ok(data) = frame?.into_data() else { continue };
        events.push(&data);
        while let Some(event) = events.next() {
            if event.starts_with(b"{\"error\"") {
                return Err(Failure::ErrorEvent);
            }
            if first.is_none() {
                let event: Event = serde_json::from_slice(&event).map_err(|_| Failure::Unreadable)?;
                first = Some((sent.elapsed().mul_f64(time_scale), event.meta_info));
            }
        }
    }
    let (ttft, usage) = first.ok_or(Failure::Unreadable)?;
    if !events.ended {
        return Err(Failure::Unfinished);
    }
    let MetaInfo { prompt_tokens, cached_tokens } = usage;
    Ok(Answer { ttft, prompt_tokens, cached_tokens, predicted_tokens, worker })
}

fn body_of(request: &Request) -> Bytes {
    let body = serde_json::json!({
        "input_ids": request.tokens(),
        "sampling_params": {"max_new_tokens": request.output_tokens, "ignore_eos": true},
        "stream": true,
    });
    Bytes::from(body.to_string())
}

impl Outcome {
    fn take(
        &mut self,
        done: Result<Result<Answer, Failure>, tokio::task::JoinError>,
        progress: &ProgressBar,
    ) {
        progress.inc(1);
        match done {
            Ok(Ok(answer)) => self.answers.push(answer),
            Ok(Err(failure)) => *self.failures.entry(failure.to_string()).or_default() += 1,
            Err(error) => *self.failures.entry(error.to_string()).or_default() += 1,
        }
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
        let end = memchr::memmem::find(&self.pending, b"\n\n")?;
        let event: Vec<u8> = self.pending.drain(..end + 2).collect();
        let data = event.strip_prefix(b"data: ").unwrap_or(&event).trim_ascii_end();
        self.ended = data == b"[DONE]";
        (!self.ended).then(|| data.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_across_chunks() {
        let mut events = Events::default();
        for chunk in ["dat", "a: {\"a\":1}\n", "\ndata: [DON", "E]\n\n"] {
            events.push(chunk.as_bytes());
        }
        assert_eq!(events.next().unwrap(), b"{\"a\":1}");
        assert!(!events.ended);
        assert_eq!(events.next(), None);
        assert!(events.ended);
    }
}
