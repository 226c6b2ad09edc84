//! What happens to one request: decode → key → [attempts] at workers → the answer passed on.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use http::header::UPGRADE;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use opentelemetry::global;
use router_core::{Router, WorkerId};
use tracing::Instrument as _;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::access;
use crate::addressee;
use crate::admission::Standing;
use crate::arrived::{Arrived, Wanted};
use crate::attempts::{self, Answered, is_stream, takes_event};
use crate::body::{Body, Told};
use crate::budget::RetryBudget;
use crate::clock::Clock;
use crate::config::DataPlaneConfig;
use crate::continuation::Continuation;
use crate::deadline;
use crate::decode::{self, RouteKind};
use crate::error::{Failure, Shape};
use crate::exchange::Exchange;
use crate::fleet;
use crate::generated::Generated;
use crate::headers::{self, HeaderExtractor, HeaderInjector};
use crate::housekeeping::{BadNews, keep_house};
use crate::kept::Place;
use crate::learn::{Learning, What};
use crate::metrics::{FailureLabels, HttpMetrics, ThreadMetrics};
use crate::own;
use crate::pd::{self, Served};
use crate::receive::{self, Head, Inbound};
use crate::route::{self, Handling, Route};
use crate::shared::Shared;
use crate::upstream::Upstream;
use crate::wire;

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
    /// With the other threads.
    pub(crate) shared: Arc<Shared>,
    pub(crate) budget: RetryBudget,
    /// Told when a worker may be gone that a request waits for.
    pub(crate) bad_news: BadNews,
    /// A thread of the data plane has.
    died: Arc<AtomicBool>,
    /// Requests have spans, and carry their context.
    traced: bool,
}

/// What a request comes to.
enum Reply {
    /// One worker's answer, as it comes.
    Passing {
        answered: Answered,
        /// The time by which the rest of it must be there.
        deadline: Option<tokio::time::Instant>,
        /// How it goes on if its worker is lost.
        continuation: Option<Box<Continuation>>,
    },
    /// An answer for several workers.
    Joined(Box<Response<Body>>),
}

impl Service {
    pub(crate) fn new(
        config: DataPlaneConfig,
        router: Router,
        clock: Clock,
        metrics: HttpMetrics,
        shared: Arc<Shared>,
        died: Arc<AtomicBool>,
    ) -> Self {
        let upstream = Upstream::new(&config);
        let (budget, bad_news) = (RetryBudget::default(), BadNews::default());
        let metrics = Arc::new(ThreadMetrics::new(metrics));
        // Where nothing exports traces there is no propagator either, and the client's own context is passed on untouched.
        let traced = global::get_text_map_propagator(|propagator| propagator.fields().next().is_some());
        let inner =
            Plane { config, router, clock, metrics, upstream, shared, budget, bad_news, died, traced };
        Self { plane: Arc::new(inner) }
    }

    pub(crate) fn plane(&self) -> &Plane {
        &self.plane
    }

    /// What is to be done beside all requests, for as long as there are any.
    pub(crate) fn keep_house(&self) -> impl Future<Output = ()> + Send + use<> {
        keep_house(self.plane.clone())
    }

    /// Takes of the head what is passed on. `client`: its address, as a header names it.
    pub(crate) async fn serve(
        &self,
        head: &mut Head,
        body: Inbound,
        client: Option<&HeaderValue>,
    ) -> Response<Body> {
        let path = addressee::plain_path(&head.uri);
        let route = route::of(&head.method, &path);
        let whole = !self.plane.died.load(Relaxed);
        if let Some(answer) = own::answer(&self.plane.router, whole, head) {
            let allowed = self.authorize(route, &head.method, &head.headers);
            return allowed.map_or_else(|failure| failure.response(Shape::of(&path)), |()| answer);
        }
        drop(path);
        if !self.plane.traced {
            return self.answer(route, head, body, client).await;
        }
        let span = tracing::info_span!(
            "request", otel.kind = "server", method = %head.method, route = route.kind().name()
        );
        // Fails only where the log filter has no such span.
        let _ = span.set_parent(global::get_text_map_propagator(|propagator| {
            propagator.extract(&HeaderExtractor(&head.headers))
        }));
        self.answer(route, head, body, client).instrument(span).await
    }

    async fn answer(
        &self,
        route: &'static Route,
        head: &mut Head,
        body: Inbound,
        client: Option<&HeaderValue>,
    ) -> Response<Body> {
        let plane = &self.plane;
        let id = headers::request_id(&head.headers);
        let method = head.method.clone();
        let exchange = Exchange::begin(plane.metrics.clone(), plane.clock, method, route.kind(), id);
        let mut exchange = Box::new(exchange);
        let shape = Shape::of(head.uri.path());
        match self.exchange(route, head, body, client, &mut exchange).await {
            Ok(Reply::Passing { answered, deadline, continuation }) => {
                self.pass_on(answered, exchange, deadline, continuation)
            }
            Ok(Reply::Joined(mut response)) => {
                response.headers_mut().insert(headers::REQUEST_ID, exchange.request_id().clone());
                exchange.answered(response.status(), false);
                exchange.complete(Instant::now());
                *response
            }
            Err(failure) => {
                let mut response = self.fail(&failure, shape);
                response.headers_mut().insert(headers::REQUEST_ID, exchange.request_id().clone());
                exchange.refused(response.status());
                response
            }
        }
    }

    /// The answer to what is no request.
    pub(crate) fn refuse(&self, failure: &Failure) -> Response<Body> {
        self.fail(failure, Shape::Native)
    }

    fn fail(&self, failure: &Failure, shape: Shape) -> Response<Body> {
        let verdict = failure.verdict();
        let labels = FailureLabels { code: verdict.code, source: verdict.source.name() };
        self.plane.metrics.families.failures.get_or_create(&labels).inc();
        failure.response(shape)
    }

    /// The head of a worker's answer, with what is told of its decision, and until when the rest of it must be there; or the answer
    /// for several workers.
    async fn exchange(
        &self,
        route: &'static Route,
        head: &mut Head,
        body: Inbound,
        client: Option<&HeaderValue>,
        exchange: &mut Exchange,
    ) -> Result<Reply, Failure> {
        let plane = &*self.plane;
        self.authorize(route, &head.method, &head.headers)?;
        own::refuse_connect(&head.method)?;
        let upgrade = own::upgrade_of(head);
        let body =
            receive::whole(body, plane.config.max_body_bytes, plane.config.upload_idle_timeout).await?;
        let mut arrived = Arrived::of(route.kind(), head, body);
        let own = deadline::take(&mut arrived.headers)?;
        let standing = Standing::take(&mut arrived.headers, &plane.config.admission.tenant_header)?;
        let only = addressee::named(&plane.router, &mut arrived.headers, &mut arrived.path)?;
        let key = access::exchange_keys(&plane.config, &arrived.method, route.access, &mut arrived.headers);
        arrived.added = headers::introduce(&mut arrived.headers, client, exchange.request_id(), key);
        if plane.traced {
            let context = tracing::Span::current().context();
            global::get_text_map_propagator(|propagator| {
                propagator.inject_context(&context, &mut HeaderInjector(&mut arrived.headers));
            });
        }
        if let Handling::Many(concern) = route.handling {
            let joined = fleet::answer(&self.plane, route, concern, arrived, only).await?;
            return Ok(Reply::Joined(Box::new(joined)));
        }
        if let Some(protocols) = upgrade {
            headers::offer_upgrade(&mut arrived.headers, protocols);
        }
        let began = Instant::now();
        let mut wanted = self.decide_by(route, &mut arrived, only, exchange)?;
        wanted.standing = standing;
        if wanted.several {
            exchange.has_several_prompts();
        }
        let arrived_at = exchange.began();
        let Some(given) = own.or(plane.config.request_timeout) else {
            let answered = self.answer_one(&arrived, &mut wanted, began, exchange).await?;
            let continuation = Continuation::of(self, route, &arrived, &wanted, &answered);
            wire::head::give_back(arrived.headers);
            return Ok(Reply::Passing { answered, deadline: None, continuation });
        };
        let deadline = tokio::time::Instant::from_std(arrived_at) + given;
        let answer = self.answer_one(&arrived, &mut wanted, began, exchange);
        let answered = tokio::time::timeout_at(deadline, answer).await;
        let answered = answered.map_err(|_| Failure::Deadline { seconds: given.as_secs_f64() })??;
        // A stream or tunnel that has begun goes on for as long as it says something, unless its client itself said how long.
        let goes_on = is_stream(answered.response.headers()) || is_tunnel(&answered);
        let bound = own.is_some() || !goes_on;
        let continuation = Continuation::of(self, route, &arrived, &wanted, &answered);
        Ok(Reply::Passing { answered, deadline: bound.then_some(deadline), continuation })
    }

    /// The answer of a worker, or of a pair of workers that share the work.
    async fn answer_one(
        &self,
        arrived: &Arrived,
        wanted: &mut Wanted,
        began: Instant,
        exchange: &mut Exchange,
    ) -> Result<Answered, Failure> {
        self.plane.budget.deposit(&self.plane.config.retry);
        // Who names a worker means that one.
        if wanted.only.is_none() && self.plane.router.has_pools() {
            match pd::answer(&self.plane, arrived, wanted, began, exchange).await? {
                Served::Answered(answered) => return Ok(answered),
                Served::ByOne => {}
            }
        }
        attempts::answer(&self.plane, arrived, wanted, &[], began, exchange).await
    }

    /// Another worker's answer to a request for the rest of a stream, those that were `lost` being asked at last.
    pub(crate) async fn answer_rest(
        &self,
        route: &Route,
        mut arrived: Arrived,
        standing: Standing,
        lost: &[WorkerId],
        exchange: &mut Exchange,
    ) -> Result<Answered, Failure> {
        let began = Instant::now();
        let mut wanted = self.decide_by(route, &mut arrived, None, exchange)?;
        wanted.standing = standing;
        attempts::answer(&self.plane, &arrived, &wanted, lost, began, exchange).await
    }

    /// What a request is decided by, and what its answer will teach.
    fn decide_by(
        &self,
        route: &Route,
        arrived: &mut Arrived,
        only: Option<WorkerId>,
        exchange: &mut Exchange,
    ) -> Result<Wanted, Failure> {
        let plane = &*self.plane;
        let facts = decode::facts(arrived.kind, &arrived.headers, &arrived.body)?;
        let keyed = crate::key::key(&plane.router, &facts, &arrived.body);
        if let Some(chat) = &keyed.chat {
            plane.metrics.chat(chat);
        }
        exchange.claims(Generated::of(&plane.router, &facts, &keyed));
        let key = keyed.key;
        let place = match only {
            Some(worker) => Some(Place { worker, rank: None }),
            None if arrived.kind.generates() => {
                addressee::of_history(&plane.router, &plane.shared, &facts.names, plane.clock)?
            }
            None if arrived.kind == RouteKind::Session => {
                let path = addressee::percent_decoded(arrived.path.path());
                addressee::of_route(
                    &plane.router,
                    &plane.shared,
                    route,
                    &path,
                    &arrived.body,
                    plane.clock.now(),
                )?
            }
            None => None,
        };
        let names = &facts.names;
        if let Some(rid) = &names.rid {
            exchange.is_named(Arc::from(&**rid), plane.shared.rids.clone());
        }
        let session = names
            .session
            .as_ref()
            .or(names.session_id.as_ref().filter(|_| only.is_none() && place.is_some()));
        let learns = match route.handling {
            Handling::OpenSession => Some(What::Opened),
            Handling::Prefix(RouteKind::Responses) => Some(What::Stored),
            _ => session.map(|session| What::Continued(Arc::from(&**session))),
        };
        let once = names.session.is_some()
            || matches!(route.handling, Handling::OpenSession | Handling::CloseSession);
        if let Some(what) = learns {
            exchange.learns(Learning::new(plane.shared.clone(), what));
        }
        let wanted = Wanted {
            key,
            rank: facts.rank,
            several: facts.several,
            asks_usage: plane.config.asks_usage && facts.quiet_stream,
            model: facts.model.or_else(|| self.model_elsewhere(arrived)).map(Cow::into_owned),
            only: place.map(|place| place.worker),
            only_rank: place.and_then(|place| place.rank),
            role: None,
            standing: Standing::default(),
        };
        facts.prompt.give_back();
        arrived.once = once;
        Ok(wanted)
    }

    /// The model that work without a prompt names, if a worker serves it: the engine takes any name, and so it is no error here.
    fn model_elsewhere<'b>(&self, arrived: &'b Arrived) -> Option<Cow<'b, str>> {
        if arrived.kind != RouteKind::Other || arrived.method != Method::POST {
            return None;
        }
        let model = decode::model(&arrived.body)?;
        let snapshot = self.plane.router.snapshot();
        snapshot.fleet.workers.iter().any(|worker| worker.serves(&model)).then_some(model)
    }

    fn authorize(&self, route: &Route, method: &Method, headers: &HeaderMap) -> Result<(), Failure> {
        access::authorize(&self.plane.config, method, route.access, headers)
    }

    /// Passes a worker's answer on; from here on its body reports what happens.
    fn pass_on(
        &self,
        answered: Answered,
        mut exchange: Box<Exchange>,
        deadline: Option<tokio::time::Instant>,
        continuation: Option<Box<Continuation>>,
    ) -> Response<Body> {
        let protocol =
            if is_tunnel(&answered) { answered.response.headers().get(UPGRADE).cloned() } else { None };
        let streaming = is_stream(answered.response.headers());
        let takes_event = streaming && takes_event(&answered.response);
        let (mut head, body) = answered.response.into_parts();
        headers::strip_answer(&mut head.headers);
        if let Some(protocol) = protocol {
            headers::offer_upgrade(&mut head.headers, protocol);
        }
        exchange.answered(head.status, streaming);
        let (first, idle_timeout) = (answered.first, self.plane.config.idle_timeout);
        // Nothing can be taken out of compressed data.
        let told = if answered.asked_usage && takes_event { Told::AllButUsage } else { Told::All };
        let body = match continuation {
            Some(continuation) => {
                exchange.said().put(&mut head.headers);
                head.headers.insert(headers::CONTINUABLE, HeaderValue::from_static("true"));
                Body::continuable(body, first, exchange, told, *continuation, idle_timeout, deadline)
            }
            None => Body::passing(body, first, exchange, told, takes_event, idle_timeout, deadline),
        };
        Response::from_parts(head, body)
    }
}

fn is_tunnel(answered: &Answered) -> bool {
    answered.response.status() == StatusCode::SWITCHING_PROTOCOLS
}
