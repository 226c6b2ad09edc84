//! The clients: requests at random times of a rate, whether or not those before are answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use crate::outcome::{Ended, Outcome};

/// Requests a second.
const RATE: f64 = 40.0;

/// Groups of prompts that share their first tokens.
const GROUPS: u32 = 48;

const SHARED_TOKENS: u32 = 3_000;
const OWN_TOKENS: u32 = 200;
const OUTPUT_TOKENS: u32 = 150;

/// A client that has waited so long gives up.
const PATIENCE: Duration = Duration::from_secs(120);

/// Clients at work.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    driver: JoinHandle<Vec<Outcome>>,
}

impl Load {
    /// Sends to `router` until it is told to finish.
    pub(crate) fn start(router: &str, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let driver = tokio::spawn(drive(router.to_owned(), seed, stop.clone()));
        Self { stop, driver }
    }

    /// Sends no more, and waits for what has been sent.
    pub(crate) async fn finish(self) -> Vec<Outcome> {
        self.stop.store(true, Relaxed);
        self.driver.await.unwrap_or_default()
    }
}

async fn drive(router: String, seed: u64, stop: Arc<AtomicBool>) -> Vec<Outcome> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut sent, mut number) = (JoinSet::new(), 0_u32);
    let mut due = Instant::now();
    while !stop.load(Relaxed) {
        due += Duration::from_secs_f64(-(1.0 - rng.f64()).ln() / RATE);
        sleep_until(due).await;
        let (client, router) = (client.clone(), router.clone());
        // Some prompts are asked for often, most seldom.
        let group = (f64::from(GROUPS) * rng.f64() * rng.f64()) as u32;
        let stream = !number.is_multiple_of(3);
        let body = request(group, number, stream);
        sent.spawn(ask(client, router, body, stream, due));
        number += 1;
    }
    sent.join_all().await
}

fn request(group: u32, number: u32, stream: bool) -> Value {
    let shared = (0..SHARED_TOKENS).map(|at| (group * 131 + at) % 50_000);
    let own = (0..OWN_TOKENS).map(|at| if at == 0 { 50_000 + number } else { at });
    json!({
        "input_ids": shared.chain(own).collect::<Vec<u32>>(),
        "sampling_params": {"max_new_tokens": OUTPUT_TOKENS},
        "stream": stream,
    })
}

async fn ask(
    client: Client<HttpConnector, Full<Bytes>>,
    router: String,
    body: Value,
    stream: bool,
    sent: Instant,
) -> Outcome {
    let mut outcome = Outcome::new(sent, stream);
    let asked = timeout(PATIENCE, exchange(client, router, body, &mut outcome)).await;
    outcome.ended = asked.unwrap_or(Ended::Late);
    outcome
}

async fn exchange(
    client: Client<HttpConnector, Full<Bytes>>,
    router: String,
    body: Value,
    outcome: &mut Outcome,
) -> Ended {
    let request =
        Request::post(format!("{router}/generate")).header(header::CONTENT_TYPE, "application/json");
    let Ok(request) = request.body(Full::from(body.to_string())) else { return Ended::Lost };
    let Ok(response) = client.request(request).await else { return Ended::Lost };
    let (head, mut body) = response.into_parts();
    let worker = head.headers.get("x-espalier-worker").and_then(|worker| worker.to_str().ok());
    outcome.worker = worker.map(str::to_owned);
    let mut text = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Ended::Cut };
        if outcome.first.is_none() {
            outcome.first = Some(outcome.sent.elapsed());
        }
        text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
    }
    let text = String::from_utf8_lossy(&text);
    if !head.status.is_success() {
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        return Ended::Refused(value["error"]["code"].as_str().unwrap_or(head.status.as_str()).to_owned());
    }
    if outcome.stream && !text.trim_end().ends_with("data: [DONE]") {
        return Ended::Cut;
    }
    outcome.usage = (number(&text, "\"prompt_tokens\":"), number(&text, "\"cached_tokens\":"));
    // Every event says how many there are by then.
    let last = text.rfind("\"completion_tokens\":").map_or("", |at| &text[at..]);
    match number(last, "\"completion_tokens\":") == u64::from(OUTPUT_TOKENS) {
        true => Ended::Answered,
        false => Ended::Incomplete,
    }
}

/// The number after the first `name`.
fn number(text: &str, name: &str) -> u64 {
    let after = text.find(name).map_or("", |at| &text[at + name.len()..]);
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}
