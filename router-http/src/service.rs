//! What happens to one request: decode → key → route → send, again elsewhere if nothing was sent, and the answer passed on.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming};
use opentelemetry::global;
use router_core::key::PrefixKey;
use router_core::{InFlight, RouteError, RouteRequest, Router, WorkerId};
use tracing::Instrument as _;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::body::Body;
use crate::clock::Clock;
use crate::config::DataPlaneConfig;
use crate::decode::{self, RouteKind};
use crate::error::Failure;
use crate::exchange::Exchange;
use crate::headers::{self, HeaderExtractor, HeaderInjector};
use crate::metrics::{FailureLabels, HttpMetrics, ThreadMetrics};
use crate::own;
use crate::receive;
use crate::upstream::{Attempt, Upstream, WorkerBody};

/// Serves the requests of one thread. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: DataPlaneConfig,
    router: Router,
    clock: Clock,
    metrics: Arc<ThreadMetrics>,
    upstream: Upstream,
    /// A thread of the data plane has.
    died: Arc<AtomicBool>,
    /// Requests have spans, and carry their context.
    traced: bool,
}

/// A request once its body is here.
struct Arrived {
    kind: RouteKind,
    method: Method,
    path: PathAndQuery,
    headers: HeaderMap,
    body: Bytes,
}

/// A worker's answer as far as it was waited for.
struct Answered {
    response: Response<WorkerBody>,
    /// The first data of a stream.
    first: Option<Frame<Bytes>>,
}

/// What a decision needs of it.
struct Wanted {
    key: Option<PrefixKey>,
    model: Option<String>,
    rank: Option<u32>,
    several: bool,
}

thread_local! {
    static RNG: RefCell<fastrand::Rng> = RefCell::new(fastrand::Rng::new());
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
        let metrics = Arc::new(ThreadMetrics::new(metrics));
        // Where nothing exports traces there is no propagator either, and the client's own context is passed on untouched.
        let traced = global::get_text_map_propagator(|propagator| propagator.fields().next().is_some());
        Self { inner: Arc::new(Inner { config, router, clock, metrics, upstream, died, traced }) }
    }

    /// Closes connections to workers that have waited too long.
    pub(crate) fn sweep(&self) {
        self.inner.upstream.sweep();
    }

    /// `client`: its address, as a header names it.
    pub(crate) async fn serve(
        self,
        request: Request<Incoming>,
        client: Option<HeaderValue>,
    ) -> Response<Body> {
        if let Some(answer) = own::answer(&self.inner.router, !self.inner.died.load(Relaxed), &request) {
            return answer;
        }
        let kind = RouteKind::of(request.method(), request.uri().path());
        if !self.inner.traced {
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
        let inner = &self.inner;
        let id = headers::request_id(request.headers());
        let method = request.method().clone();
        let mut exchange = Exchange::begin(inner.metrics.clone(), inner.clock, method, kind, id);
        let openai = request.uri().path().starts_with("/v1/");
        match self.exchange(kind, request, client, &mut exchange).await {
            Ok(answered) => self.pass_on(answered, exchange),
            Err(failure) => {
                let mut response = failure.response(openai);
                response.headers_mut().insert(headers::REQUEST_ID, exchange.request_id().clone());
                let verdict = failure.verdict();
                let labels = FailureLabels { code: verdict.code, source: verdict.source.name() };
                inner.metrics.families.failures.get_or_create(&labels).inc();
                exchange.refused(response.status());
                response
            }
        }
    }

    /// The head of a worker's answer, with what is told of its decision.
    async fn exchange(
        &self,
        kind: RouteKind,
        request: Request<Incoming>,
        client: Option<HeaderValue>,
        exchange: &mut Exchange,
    ) -> Result<Answered, Failure> {
        self.authorize(request.headers())?;
        own::refuse_tunnels(&request)?;
        let mut arrived = self.receive(kind, request).await?;
        let began = Instant::now();
        let wanted = self.decode(&arrived)?;
        if wanted.several {
            exchange.has_several_prompts();
        }
        if self.inner.config.api_key.is_some() {
            // The key to this router is no worker's business.
            arrived.headers.remove(header::AUTHORIZATION);
        }
        let key = self.inner.config.worker_api_key.as_ref().map(|key| key.as_header());
        headers::to_worker(&mut arrived.headers, client.as_ref(), exchange.request_id(), key);
        if self.inner.traced {
            let context = tracing::Span::current().context();
            global::get_text_map_propagator(|propagator| {
                propagator.inject_context(&context, &mut HeaderInjector(&mut arrived.headers));
            });
        }
        self.attempt(&arrived, &wanted, began, exchange).await
    }

    /// Tries one worker after the other until one answers.
    async fn attempt(
        &self,
        arrived: &Arrived,
        wanted: &Wanted,
        began: Instant,
        exchange: &mut Exchange,
    ) -> Result<Answered, Failure> {
        let mut tried: Vec<WorkerId> = Vec::new();
        let mut last: Option<Failure> = None;
        // A request that was sent and lost is repeated once: the worker may have closed a connection that it had kept, just
        // then. Not more often, lest one that kills its worker kill them all.
        let mut lost_at: Option<WorkerId> = None;
        for attempt in 0..self.inner.config.max_attempts.max(1) {
            let routed = self.route(wanted, &tried).or_else(|error| match lost_at {
                // Nobody else can do it.
                Some(worker) if error == RouteError::AllTried => {
                    tried.retain(|tried| *tried != worker);
                    self.route(wanted, &tried)
                }
                _ => Err(error),
            });
            let in_flight = match routed {
                Ok(in_flight) => in_flight,
                // What the last worker said is of more use than that there is no other.
                Err(error) => return Err(last.unwrap_or(Failure::Route(error))),
            };
            if attempt == 0 {
                self.inner.metrics.families.decision_s.observe(began.elapsed().as_secs_f64());
            }
            let worker = in_flight.target().worker;
            tried.push(worker);
            let request = (&arrived.method, &arrived.path);
            let (headers, body) = (arrived.headers.clone(), arrived.body.clone());
            let pin_rank = arrived.kind != RouteKind::Other && wanted.rank.is_none();
            let sent = self.inner.upstream.send(exchange.sent(in_flight), request, headers, body, pin_rank);
            let answered = match sent.await {
                Ok(response) => self.begin(arrived, response).await,
                Err(attempt) => Err(attempt),
            };
            match answered {
                Ok(answered) => return Ok(answered),
                Err(Attempt { failure, unsent }) => {
                    exchange.failed_attempt();
                    let lost = matches!(failure, Failure::Lost) && arrived.may_repeat() && lost_at.is_none();
                    if !unsent && !lost {
                        return Err(failure);
                    }
                    if lost {
                        lost_at = Some(worker);
                    }
                    last = Some(failure);
                }
            }
        }
        Err(last.unwrap_or(Failure::Route(RouteError::AllTried)))
    }

    /// Waits for the first data of a stream, before which nothing has been said that another worker could not say too.
    async fn begin(
        &self,
        arrived: &Arrived,
        mut response: Response<WorkerBody>,
    ) -> Result<Answered, Attempt> {
        let holds = arrived.may_repeat() && response.status().is_success() && is_stream(response.headers());
        if !holds || !takes_event(response.headers()) {
            return Ok(Answered { response, first: None });
        }
        let frame = response.body_mut().frame();
        let frame = match self.inner.config.idle_timeout {
            None => frame.await,
            Some(timeout) => match tokio::time::timeout(timeout, frame).await {
                Ok(frame) => frame,
                Err(_) => {
                    let failure = Failure::Slow { seconds: timeout.as_secs() };
                    return Err(Attempt { failure, unsent: false });
                }
            },
        };
        match frame.transpose() {
            Ok(first) => Ok(Answered { response, first }),
            Err(_) => Err(Attempt { failure: Failure::Lost, unsent: false }),
        }
    }

    fn route(&self, wanted: &Wanted, tried: &[WorkerId]) -> Result<InFlight, RouteError> {
        let request = RouteRequest {
            key: wanted.key.as_ref(),
            model: wanted.model.as_deref(),
            rank: wanted.rank,
            tried,
        };
        RNG.with_borrow_mut(|rng| self.inner.router.route(&request, self.inner.clock.now(), rng))
    }

    fn decode(&self, arrived: &Arrived) -> Result<Wanted, Failure> {
        let facts = decode::facts(arrived.kind, &arrived.headers, &arrived.body)?;
        let key = crate::key::key(&self.inner.router, &facts);
        let (rank, several) = (facts.rank, facts.several);
        Ok(Wanted { key, model: facts.model.map(|model| model.into_owned()), rank, several })
    }

    async fn receive(&self, kind: RouteKind, request: Request<Incoming>) -> Result<Arrived, Failure> {
        let (head, body) = request.into_parts();
        let config = &self.inner.config;
        let body = receive::whole(body, config.max_body_bytes, config.upload_idle_timeout).await?;
        let path = head.uri.into_parts().path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
        Ok(Arrived { kind, method: head.method, path, headers: head.headers, body })
    }

    fn authorize(&self, headers: &HeaderMap) -> Result<(), Failure> {
        let Some(key) = &self.inner.config.api_key else { return Ok(()) };
        let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        let given = given.and_then(headers::bearer);
        if given.is_some_and(|given| key.matches(given)) { Ok(()) } else { Err(Failure::Unauthorized) }
    }

    /// Passes a worker's answer on; from here on its body reports what happens.
    fn pass_on(&self, answered: Answered, mut exchange: Exchange) -> Response<Body> {
        let (mut head, body) = answered.response.into_parts();
        headers::strip_hop_by_hop(&mut head.headers);
        exchange.describe(&mut head.headers);
        let streaming = is_stream(&head.headers);
        exchange.answered(head.status, streaming);
        let takes_event = streaming && takes_event(&head.headers);
        let idle_timeout = self.inner.config.idle_timeout;
        Response::from_parts(head, Body::passing(body, answered.first, exchange, takes_event, idle_timeout))
    }
}

/// The answer is a stream of server-sent events.
fn is_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind.starts_with(b"text/event-stream"))
}

impl Arrived {
    /// A generation that has not been answered at all can be done again, and so can what only reads; who knows what else could.
    fn may_repeat(&self) -> bool {
        self.kind != RouteKind::Other || matches!(self.method, Method::GET | Method::HEAD)
    }
}

/// Whether something can be put after a stream: not into compressed data, and not beyond a length that was announced.
fn takes_event(headers: &HeaderMap) -> bool {
    let encoding = headers.get(header::CONTENT_ENCODING).map(HeaderValue::as_bytes);
    let plain = encoding.is_none_or(|encoding| encoding.eq_ignore_ascii_case(b"identity"));
    plain && !headers.contains_key(header::CONTENT_LENGTH)
}
