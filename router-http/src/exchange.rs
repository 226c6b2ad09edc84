//! One request from its head to its end: what is logged and counted of it, once, however it ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use router_core::{FaultKind, InFlight, Time, Usage};

use crate::clock::Clock;
use crate::decided::{Decided, Said};
use crate::decode::RouteKind;
use crate::faults;
use crate::generated::Generated;
use crate::learn::Learning;
use crate::metrics::{HttpMetrics, Outcome, ThreadMetrics};
use crate::pd::PrefillLeg;
use crate::rids::{Noted, Rids};

/// See the module. Dropping it without [`end`](Self::end) counts as the client going away.
#[derive(Debug)]
pub(crate) struct Exchange {
    metrics: Arc<ThreadMetrics>,
    clock: Clock,
    began: Instant,
    method: Method,
    route: RouteKind,
    request_id: HeaderValue,
    status: StatusCode,
    attempts: usize,
    in_flight: Option<InFlight>,
    /// The half that another worker prefills; cancelled with the rest unless the answer is complete.
    prefill: Option<PrefillLeg>,
    /// What is logged of the decision, kept after the request in flight is gone.
    decided: Option<Decided>,
    usage: Option<Usage>,
    /// The request has several prompts, whose usage the answer sums up.
    several_prompts: bool,
    ttft: Option<Duration>,
    streaming: bool,
    bytes: u64,
    /// Data of the attempt under way has passed.
    begun: bool,
    refused_in_stream: bool,
    /// The request's own name, and where such names are noted while it is in flight.
    rid: Option<(Arc<Rids>, Arc<str>)>,
    noted: Option<Noted>,
    learning: Option<Box<Learning>>,
    /// What is generated will be claimed as the prompt is.
    generated: Option<Box<Generated>>,
    ended: bool,
}

/// A request in flight whose answer waits while another worker is asked.
#[derive(Debug)]
pub(crate) struct Aside {
    in_flight: InFlight,
    decided: Option<Decided>,
}

/// How a stream begins that is an error.
const ERROR_EVENT: &[u8] = b"data: {\"error\"";

impl Exchange {
    pub(crate) fn begin(
        metrics: Arc<ThreadMetrics>,
        clock: Clock,
        method: Method,
        route: RouteKind,
        request_id: HeaderValue,
    ) -> Self {
        Self {
            metrics,
            clock,
            began: Instant::now(),
            method,
            route,
            request_id,
            status: StatusCode::OK,
            attempts: 0,
            in_flight: None,
            prefill: None,
            decided: None,
            usage: None,
            several_prompts: false,
            ttft: None,
            streaming: false,
            bytes: 0,
            begun: false,
            refused_in_stream: false,
            rid: None,
            noted: None,
            learning: None,
            generated: None,
            ended: false,
        }
    }

    /// The request has a name of its own, by which it can be aborted while it is in flight.
    pub(crate) fn is_named(&mut self, rid: Arc<str>, rids: Arc<Rids>) {
        self.rid = Some((rids, rid));
    }

    /// Its answer teaches where what it names is kept.
    pub(crate) fn learns(&mut self, learning: Learning) {
        self.learning = Some(Box::new(learning));
    }

    /// What its answer generates is cached where it is generated.
    pub(crate) fn claims(&mut self, generated: Option<Box<Generated>>) {
        self.generated = generated;
    }

    /// When its head had come.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    pub(crate) fn route(&self) -> RouteKind {
        self.route
    }

    fn families(&self) -> &HttpMetrics {
        &self.metrics.families
    }

    pub(crate) fn request_id(&self) -> &HeaderValue {
        &self.request_id
    }

    /// The request has several prompts.
    pub(crate) fn has_several_prompts(&mut self) {
        self.several_prompts = true;
    }

    /// A target was decided on. From here on it is counted, whatever happens.
    pub(crate) fn sent(&mut self, in_flight: InFlight) -> &InFlight {
        self.attempts += 1;
        self.begun = false;
        if self.attempts > 1 {
            self.families().retries.inc();
        }
        self.families().in_flight.inc();
        self.decided = Some(Decided {
            worker: in_flight.worker().url.clone(),
            rank: in_flight.target().rank,
            reason: in_flight.reason(),
            predicted_tokens: in_flight.predicted_tokens(),
            prefill: None,
        });
        if let Some((rids, rid)) = &self.rid {
            self.noted = rids.note(rid, in_flight.target().worker);
            if self.noted.is_none() {
                self.families().rids_refused.inc();
            }
        }
        self.in_flight.insert(in_flight)
    }

    /// The answer is that of the target decided on, and this is its other half.
    pub(crate) fn shares(&mut self, leg: PrefillLeg) {
        if let Some(decided) = &mut self.decided {
            decided.predicted_tokens = leg.predicted_tokens;
            decided.prefill = Some((leg.url.clone(), leg.rank));
        }
        self.prefill = Some(leg);
    }

    /// Another request of the same attempt is the one that is answered.
    pub(crate) fn stands_in(&mut self, in_flight: InFlight) {
        if let Some(decided) = &mut self.decided {
            (decided.worker, decided.rank) = (in_flight.worker().url.clone(), in_flight.target().rank);
            decided.reason = in_flight.reason();
        }
        self.in_flight = Some(in_flight);
    }

    /// The attempt came to nothing; what its decision claimed is undone.
    pub(crate) fn failed_attempt(&mut self) {
        self.noted = None;
        if self.in_flight.take().is_some() {
            self.families().in_flight.dec();
        }
    }

    /// The worker failed it.
    pub(crate) fn fault(&mut self, kind: FaultKind) {
        let now = self.clock.now();
        if let Some(in_flight) = &mut self.in_flight {
            faults::count(&self.metrics.families, in_flight, kind, now);
        }
    }

    /// The request in flight, if there is one.
    pub(crate) fn in_flight(&self) -> Option<&InFlight> {
        self.in_flight.as_ref()
    }

    /// The same, to be told what came of it.
    pub(crate) fn in_flight_mut(&mut self) -> Option<&mut InFlight> {
        self.in_flight.as_mut()
    }

    /// The worker asked to get no requests until then.
    pub(crate) fn hold_off(&self, until: Time) {
        if let Some(in_flight) = &self.in_flight {
            in_flight.hold_off(until);
        }
    }

    /// Puts an attempt aside, its answer unread and still counted at its target, while another one is made.
    pub(crate) fn set_aside(&mut self) -> Option<Aside> {
        let in_flight = self.in_flight.take()?;
        self.families().in_flight.dec();
        Some(Aside { in_flight, decided: self.decided.clone() })
    }

    /// Goes on with what was set aside.
    pub(crate) fn resume(&mut self, aside: Aside) {
        self.failed_attempt();
        self.families().in_flight.inc();
        self.decided = aside.decided;
        self.in_flight = Some(aside.in_flight);
    }

    /// What a worker's answer says of the decision.
    pub(crate) fn said(&self) -> Said<'_> {
        Said(self.decided.as_ref().map(|decided| (decided, &self.request_id)))
    }

    /// The worker answers. `streaming`: with server-sent events.
    pub(crate) fn answered(&mut self, status: StatusCode, streaming: bool) {
        self.status = status;
        self.streaming = streaming;
    }

    /// Data of the answer passed.
    pub(crate) fn passed(&mut self, data: &Bytes, now: Instant) {
        // SGLang refuses a stream with status 200 and an error as its first event: nothing was prefilled for it.
        let begins = !std::mem::replace(&mut self.begun, true);
        self.refused_in_stream |= begins && self.streaming && data.starts_with(ERROR_EVENT);
        self.bytes += data.len() as u64;
        if let (Some(learning), Some(in_flight)) = (&mut self.learning, &self.in_flight)
            && self.status.is_success()
            && !self.refused_in_stream
        {
            learning.look(data, in_flight.target(), self.clock.at(now), &self.metrics.families);
        }
        if let Some(generated) = &mut self.generated {
            generated.look(data, self.streaming);
        }
        if begins && self.streaming && self.status.is_success() && !self.refused_in_stream {
            if self.ttft.is_none() {
                let ttft = now.saturating_duration_since(self.began);
                self.ttft = Some(ttft);
                self.families().ttft_s.observe(ttft.as_secs_f64());
            }
            if let Some(in_flight) = &mut self.in_flight {
                in_flight.first_token(self.clock.at(now));
            }
        }
    }

    /// The answer said how much was cached.
    pub(crate) fn used(&mut self, usage: Usage, now: Instant) {
        self.usage = Some(usage);
        if self.prefill.is_some() {
            // What was cached where it was prefilled is said, and counted, there.
            if let Some(in_flight) = &mut self.in_flight {
                in_flight.first_token(self.clock.at(now));
            }
            return;
        }
        self.families().prompt_tokens.inc_by(usage.prompt_tokens);
        self.families().cached_tokens.inc_by(usage.cached_tokens);
        if let Some(in_flight) = &mut self.in_flight {
            // Only now is an answer that came in one piece known to have been prefilled.
            let now = self.clock.at(now);
            // A sum over several prompts says nothing about the one that was decided by.
            if self.several_prompts {
                return in_flight.first_token(now);
            }
            self.metrics.families.predicted_tokens.inc_by(in_flight.predicted_tokens());
            in_flight.first_token_and_usage(usage, self.streaming, now);
        }
    }

    /// The request ended.
    pub(crate) fn end(&mut self, outcome: Outcome) {
        if !self.ended {
            self.end_at(outcome, Instant::now());
        }
    }

    fn end_at(&mut self, outcome: Outcome, ended: Instant) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.noted = None;
        if let Some(mut in_flight) = self.in_flight.take() {
            self.families().in_flight.dec();
            // An error of the worker has prefilled nothing.
            if outcome == Outcome::Answered {
                let now = self.clock.at(ended);
                // Of a pair only one holds it, and is not chosen by what it holds.
                let generated = self.generated.take().filter(|_| self.prefill.is_none());
                if let Some(key) = generated.and_then(|mut generated| generated.key()) {
                    in_flight.generated(key, now);
                }
                in_flight.complete(now);
            }
        }
        if let Some(prefill) = self.prefill.take()
            && outcome == Outcome::Answered
        {
            prefill.let_finish();
        }
        let took = ended.saturating_duration_since(self.began);
        self.families().duration_s.observe(took.as_secs_f64());
        self.metrics.ended(self.route, outcome);
        self.log(outcome, took);
    }

    /// The worker's answer is complete.
    pub(crate) fn complete(&mut self, now: Instant) {
        let refused =
            self.refused_in_stream || self.status.is_server_error() || self.status.is_client_error();
        let outcome = if refused { Outcome::WorkerError } else { Outcome::Answered };
        self.end_at(outcome, now);
    }

    /// The tunnel that the answer opened has ended.
    pub(crate) fn tunnelled(mut self) {
        self.complete(Instant::now());
    }

    /// The worker broke off in the middle.
    pub(crate) fn broke(&mut self) {
        self.families().stream_breaks.inc();
        self.fault(FaultKind::Broken);
    }

    /// Another worker goes on with it.
    pub(crate) fn continued(&mut self) {
        // What was generated before is part of a prompt now, and nobody's answer.
        self.generated = None;
        self.families().streams_continued.inc();
    }

    /// The base URL of the worker that was decided on last.
    pub(crate) fn worker_url(&self) -> Option<&str> {
        self.decided.as_ref().map(|decided| &*decided.worker)
    }

    /// The router answers by itself.
    pub(crate) fn refused(&mut self, status: StatusCode) {
        self.status = status;
        self.failed_attempt();
        self.end(if status.is_client_error() { Outcome::Refused } else { Outcome::Failed });
    }

    fn log(&self, outcome: Outcome, took: Duration) {
        let ms = |time: Duration| (time.as_secs_f64() * 1e5).round() / 1e2;
        let decided = self.decided.as_ref();
        tracing::info!(
            target: "espalier::access",
            request_id = self.request_id.to_str().unwrap_or_default(),
            method = %self.method,
            route = self.route.name(),
            status = self.status.as_u16(),
            outcome = outcome.name(),
            worker = decided.map(|decided| &*decided.worker),
            rank = decided.map(|decided| decided.rank),
            prefill = decided.and_then(|decided| decided.prefill.as_ref()).map(|(worker, _)| &**worker),
            reason = decided.map(|decided| tracing::field::display(decided.reason)),
            attempts = self.attempts,
            prompt_tokens = self.usage.map(|usage| usage.prompt_tokens),
            predicted_tokens = decided.map(|decided| decided.predicted_tokens),
            cached_tokens = self.usage.map(|usage| usage.cached_tokens),
            ttft_ms = self.ttft.map(ms),
            total_ms = ms(took),
            bytes = self.bytes,
        );
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.end(Outcome::ClientClosed);
    }
}
