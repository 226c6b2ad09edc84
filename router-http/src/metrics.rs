//! What the data plane counts, in Prometheus families.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::decode::RouteKind;
use crate::key::ChatKeyed;

/// The data plane's families. Cheap to clone.
#[derive(Clone, Debug)]
pub struct HttpMetrics {
    pub(crate) requests: Family<RequestLabels, Counter>,
    pub(crate) duration_s: Histogram,
    pub(crate) ttft_s: Histogram,
    pub(crate) decision_s: Histogram,
    pub(crate) in_flight: Gauge,
    pub(crate) prompt_tokens: Counter,
    pub(crate) predicted_tokens: Counter,
    pub(crate) cached_tokens: Counter,
    pub(crate) retries: Counter,
    pub(crate) retries_refused: Counter,
    pub(crate) faults: Family<FaultLabels, Counter>,
    pub(crate) ejections: Counter,
    pub(crate) stream_breaks: Counter,
    pub(crate) streams_continued: Counter,
    pub(crate) connections: Gauge,
    pub(crate) connections_refused: Counter<u64, AtomicU64>,
    pub(crate) connections_silent: Counter,
    pub(crate) failures: Family<FailureLabels, Counter>,
    pub(crate) fan_out_failures: Counter,
    pub(crate) ids_forgotten: Counter,
    pub(crate) rids_refused: Counter,
    pub(crate) queue_waiting: Gauge,
    pub(crate) queue_wait_s: Histogram,
    pub(crate) queue_refused: Family<QueueLabels, Counter>,
    pub(crate) chats: Family<ChatLabels, Counter>,
}

/// Labels of one chat.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ChatLabels {
    pub(crate) keyed: &'static str,
}

/// Labels of one request that waited in vain, or could not.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct QueueLabels {
    pub(crate) reason: &'static str,
}

/// Labels of one request that no worker answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct FailureLabels {
    pub(crate) code: &'static str,
    pub(crate) source: &'static str,
}

/// Labels of one fault of a worker.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct FaultLabels {
    pub(crate) kind: &'static str,
}

/// Labels of one request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    pub(crate) route: &'static str,
    pub(crate) outcome: Outcome,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A worker answered with success, to the end.
    Answered,
    /// A worker answered with an error status.
    WorkerError,
    /// It was refused, and the client has to do something about it.
    Refused,
    /// No worker could answer it.
    Failed,
    /// The client went away before the end.
    ClientClosed,
    /// The worker went away in the middle of its answer.
    Broken,
}

/// The families as one thread uses them: what every request counts is looked up by its labels once.
#[derive(Debug)]
pub(crate) struct ThreadMetrics {
    pub(crate) families: HttpMetrics,
    requests: [[OnceLock<Counter>; OUTCOMES]; ROUTES],
    /// Rendered, and not.
    chats: [Counter; 2],
}

const OUTCOMES: usize = Outcome::Broken as usize + 1;
const ROUTES: usize = RouteKind::Other as usize + 1;

impl ThreadMetrics {
    pub(crate) fn new(families: HttpMetrics) -> Self {
        let chats = ["rendered", "canonical"];
        let chats = chats.map(|keyed| families.chats.get_or_create(&ChatLabels { keyed }).clone());
        Self { families, requests: Default::default(), chats }
    }

    /// Counts a chat by how it was keyed.
    pub(crate) fn chat(&self, keyed: &ChatKeyed) {
        self.chats[usize::from(*keyed != ChatKeyed::Rendered)].inc();
    }

    /// Counts a request that has ended.
    pub(crate) fn ended(&self, route: RouteKind, outcome: Outcome) {
        let labels = || RequestLabels { route: route.name(), outcome };
        let counter = &self.requests[route as usize][outcome as usize];
        counter.get_or_init(|| self.families.requests.get_or_create(&labels()).clone()).inc();
    }
}

impl Outcome {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::WorkerError => "worker_error",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::ClientClosed => "client_closed",
            Self::Broken => "broken",
        }
    }
}

impl EncodeLabelValue for Outcome {
    fn encode(
        &self,
        encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        self.name().encode(encoder)
    }
}

impl HttpMetrics {
    /// Registers the families.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            duration_s: Histogram::new(exponential_buckets(0.005, 2.0, 18)),
            ttft_s: Histogram::new(exponential_buckets(0.005, 2.0, 16)),
            decision_s: Histogram::new(exponential_buckets(1e-6, 2.0, 16)),
            in_flight: Gauge::default(),
            prompt_tokens: Counter::default(),
            predicted_tokens: Counter::default(),
            cached_tokens: Counter::default(),
            retries: Counter::default(),
            retries_refused: Counter::default(),
            faults: Family::default(),
            ejections: Counter::default(),
            stream_breaks: Counter::default(),
            streams_continued: Counter::default(),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            connections_silent: Counter::default(),
            failures: Family::default(),
            fan_out_failures: Counter::default(),
            ids_forgotten: Counter::default(),
            rids_refused: Counter::default(),
            queue_waiting: Gauge::default(),
            queue_wait_s: Histogram::new(exponential_buckets(0.001, 2.0, 18)),
            queue_refused: Family::default(),
            chats: Family::default(),
        };
        let it = &metrics;
        registry.register("espalier_requests", "Requests by route and how they ended", it.requests.clone());
        registry.register(
            "espalier_request_duration_seconds",
            "Time from a request's head to its end",
            it.duration_s.clone(),
        );
        registry.register(
            "espalier_ttft_seconds",
            "Time from a request's head to the first data of its stream",
            it.ttft_s.clone(),
        );
        registry.register(
            "espalier_decision_seconds",
            "Time to decode, key and route a request",
            it.decision_s.clone(),
        );
        registry.register(
            "espalier_in_flight_requests",
            "Requests sent to workers and not completed",
            it.in_flight.clone(),
        );
        registry.register(
            "espalier_prompt_tokens",
            "Prompt tokens, as workers counted them",
            it.prompt_tokens.clone(),
        );
        registry.register(
            "espalier_predicted_cached_tokens",
            "Prompt tokens expected to be cached",
            it.predicted_tokens.clone(),
        );
        registry.register(
            "espalier_cached_tokens",
            "Prompt tokens that were cached, as workers counted them",
            it.cached_tokens.clone(),
        );
        registry.register("espalier_retries", "Attempts after the first", it.retries.clone());
        registry.register(
            "espalier_retries_refused",
            "Retries that were not made because the budget was spent",
            it.retries_refused.clone(),
        );
        registry.register(
            "espalier_worker_faults",
            "Faults of workers that requests met, by kind",
            it.faults.clone(),
        );
        registry.register(
            "espalier_ejections",
            "Targets left out after failures, trials that failed included",
            it.ejections.clone(),
        );
        registry.register(
            "espalier_stream_breaks",
            "Streams that their worker broke off",
            it.stream_breaks.clone(),
        );
        registry.register(
            "espalier_streams_continued",
            "Streams that went on at another worker",
            it.streams_continued.clone(),
        );
        registry.register("espalier_connections", "Open client connections", it.connections.clone());
        registry.register(
            "espalier_connections_refused",
            "Connections closed because there were too many",
            it.connections_refused.clone(),
        );
        registry.register(
            "espalier_connections_silent",
            "Connections closed because no request came in time",
            it.connections_silent.clone(),
        );
        registry.register(
            "espalier_failures",
            "Requests that no worker answered, by the code of the error and by who has to do something about it",
            it.failures.clone(),
        );
        registry.register(
            "espalier_fan_out_failures",
            "Workers that did not answer what was sent to several",
            it.fan_out_failures.clone(),
        );
        registry.register(
            "espalier_kept_ids_forgotten",
            "Sessions and stored responses whose worker was forgotten for lack of room",
            it.ids_forgotten.clone(),
        );
        registry.register(
            "espalier_rids_refused",
            "Requests whose own name was not noted for lack of room, so that an abort of one goes to every worker",
            it.rids_refused.clone(),
        );
        registry.register(
            "espalier_queue_waiting_requests",
            "Requests that wait because as many are in flight as may be",
            it.queue_waiting.clone(),
        );
        registry.register(
            "espalier_queue_wait_seconds",
            "Time for which requests waited, also in vain",
            it.queue_wait_s.clone(),
        );
        registry.register(
            "espalier_queue_refused",
            "Requests that were refused for want of room: the queue was full, others had more right to their place, or they had waited \
             too long",
            it.queue_refused.clone(),
        );
        registry.register(
            "espalier_chats",
            "Chats, by whether they were keyed as the text that the model's template renders, or in the router's own serialisation",
            it.chats.clone(),
        );
        metrics
    }
}
