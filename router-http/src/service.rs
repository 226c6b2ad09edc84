//! What happens to one request: decode → key → [attempts] at workers → the answer passed on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use opentelemetry::global;
use router_core::Router;
use tracing::Instrument as _;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::arrived::{Arrived, Wanted};
use crate::attempts::{self, Answered, is_stream, takes_event};
use crate::body::{Body, EventShape};
use crate::budget::RetryBudget;
use crate::clock::Clock;
use crate::config::DataPlaneConfig;
use crate::deadline;
use crate::decode::{self, RouteKind};
use crate::error::Failure;
use crate::exchange::Exchange;
use crate::headers::{self, HeaderExtractor, HeaderInjector};
use crate::metrics::{FailureLabels, HttpMetrics, ThreadMetrics};
use crate::own;
use crate::receive;
use crate::upstream::Upstream;

/// Serves the requests of one thread. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    plane: Arc<Plane>,
}

/// What one thread's requests share.
#[derive(Debug)]
pub(crate) struct Plane {
    pub(crate) config: DataPlaneConfig,
    pub(crate) router: Router,
    pub(crate) clock: Clock,
    pub(crate) metrics: Arc<ThreadMetrics>,
    pub(crate) upstream: Upstream,
    pub(crate) budget: RetryBudget,
    /// A thread of the data plane has.
    died: Arc<AtomicBool>,
    /// Requests have spans, and carry their context.
    traced: bool,
}

impl Service {
    pub(crate) fn new(
        config: DataPlaneConfig,
        router: Router,
        clock: Clock,
        metrics: HttpMetrics,
        died: Arc<AtomicBool>,
    ) -> Self {
        let upstream = Upstream::new(&config);
        let budget = RetryBudget::default();
        let metrics = Arc::new(ThreadMetrics::new(metrics));
        // Where nothing exports traces there is no propagator either, and the client's own context is passed on untouched.
        let traced = global::get_text_map_propagator(|propagator| propagator.fields().next().is_some());
        Self { plane: Arc::new(Plane { config, router, clock, metrics, upstream, budget, died, traced }) }
    }

    /// Closes connections to workers that have waited too long.
    pub(crate) fn sweep(&self) {
        self.plane.upstream.sweep();
    }

    /// `client`: its address, as a header names it.
    pub(crate) async fn serve(
        self,
        request: Request<Incoming>,
        client: Option<HeaderValue>,
    ) -> Response<Body> {
        if let Some(answer) = own::answer(&self.plane.router, !self.plane.died.load(Relaxed), &request) {
            return answer;
        }
        let kind = RouteKind::of(request.method(), request.uri().path());
        if !self.plane.traced {
            return self.answer(kind, request, client).await;
        }
        let span = tracing::info_span!(
            "request", otel.kind = "server", method = %request.method(), route = kind.name()
        );
        // Fails only where the log filter has no such span.
        let _ = span.set_parent(global::get_text_map_propagator(|propagator| {
            propagator.extract(&HeaderExtractor(request.headers()))
        }));
        self.answer(kind, request, client).instrument(span).await
    }

    async fn answer(
        self,
        kind: RouteKind,
        request: Request<Incoming>,
        client: Option<HeaderValue>,
    ) -> Response<Body> {
        let plane = &self.plane;
        let id = headers::request_id(request.headers());
        let method = request.method().clone();
        let mut exchange = Exchange::begin(plane.metrics.clone(), plane.clock, method, kind, id);
        let openai = request.uri().path().starts_with("/v1/");
        let shape = EventShape::of(request.uri().path());
        match self.exchange(kind, request, client, &mut exchange).await {
            Ok((answered, deadline)) => self.pass_on(answered, exchange, shape, deadline),
            Err(failure) => {
                let mut response = failure.response(openai);
                response.headers_mut().insert(headers::REQUEST_ID, exchange.request_id().clone());
                let verdict = failure.verdict();
                let labels = FailureLabels { code: verdict.code, source: verdict.source.name() };
                plane.metrics.families.failures.get_or_create(&labels).inc();
                exchange.refused(response.status());
                response
            }
        }
    }

    /// The head of a worker's answer, with what is told of its decision, and until when the rest of it must be there.
    async fn exchange(
        &self,
        kind: RouteKind,
        request: Request<Incoming>,
        client: Option<HeaderValue>,
        exchange: &mut Exchange,
    ) -> Result<(Answered, Option<tokio::time::Instant>), Failure> {
        let arrived_at = tokio::time::Instant::now();
        self.authorize(request.headers())?;
        own::refuse_tunnels(&request)?;
        let mut arrived = self.receive(kind, request).await?;
        let own = deadline::take(&mut arrived.headers)?;
        let began = Instant::now();
        let wanted = self.decode(&arrived)?;
        if wanted.several {
            exchange.has_several_prompts();
        }
        if self.plane.config.api_key.is_some() {
            // The key to this router is no worker's business.
            arrived.headers.remove(header::AUTHORIZATION);
        }
        let key = self.plane.config.worker_api_key.as_ref().map(|key| key.as_header());
        headers::to_worker(&mut arrived.headers, client.as_ref(), exchange.request_id(), key);
        if self.plane.traced {
            let context = tracing::Span::current().context();
            global::get_text_map_propagator(|propagator| {
                propagator.inject_context(&context, &mut HeaderInjector(&mut arrived.headers));
            });
        }
        let answer = attempts::answer(&self.plane, &arrived, &wanted, began, exchange);
        let Some(given) = own.or(self.plane.config.request_timeout) else { return Ok((answer.await?, None)) };
        let deadline = arrived_at + given;
        let answered = tokio::time::timeout_at(deadline, answer).await;
        let answered = answered.map_err(|_| Failure::Deadline { seconds: given.as_secs_f64() })??;
        // A stream that has begun goes on for as long as it says something, unless its client itself said how long.
        let bound = own.is_some() || !is_stream(answered.response.headers());
        Ok((answered, bound.then_some(deadline)))
    }

    fn decode(&self, arrived: &Arrived) -> Result<Wanted, Failure> {
        let facts = decode::facts(arrived.kind, &arrived.headers, &arrived.body)?;
        let key = crate::key::key(&self.plane.router, &facts);
        let (rank, several) = (facts.rank, facts.several);
        Ok(Wanted { key, model: facts.model.map(|model| model.into_owned()), rank, several })
    }

    async fn receive(&self, kind: RouteKind, request: Request<Incoming>) -> Result<Arrived, Failure> {
        let (head, body) = request.into_parts();
        let config = &self.plane.config;
        let body = receive::whole(body, config.max_body_bytes, config.upload_idle_timeout).await?;
        let path = head.uri.into_parts().path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
        Ok(Arrived { kind, method: head.method, path, headers: head.headers, body })
    }

    fn authorize(&self, headers: &HeaderMap) -> Result<(), Failure> {
        let Some(key) = &self.plane.config.api_key else { return Ok(()) };
        let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        let given = given.and_then(headers::bearer);
        if given.is_some_and(|given| key.matches(given)) { Ok(()) } else { Err(Failure::Unauthorized) }
    }

    /// Passes a worker's answer on; from here on its body reports what happens.
    fn pass_on(
        &self,
        answered: Answered,
        mut exchange: Exchange,
        shape: EventShape,
        deadline: Option<tokio::time::Instant>,
    ) -> Response<Body> {
        let (mut head, body) = answered.response.into_parts();
        headers::strip_hop_by_hop(&mut head.headers);
        exchange.describe(&mut head.headers);
        let streaming = is_stream(&head.headers);
        exchange.answered(head.status, streaming);
        let event = (streaming && takes_event(&head.headers)).then_some(shape);
        let idle_timeout = self.plane.config.idle_timeout;
        let body = Body::passing(body, answered.first, exchange, event, idle_timeout, deadline);
        Response::from_parts(head, body)
    }
}
