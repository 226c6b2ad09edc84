//! Administration: the service `espalier.v1.Admin`.

mod convert;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use espalier_proto::admin_server::Admin;
use espalier_proto::{
    AddWorkerRequest, DrainProgress, DrainRequest, Event, ExplainRequest, ExplainResponse, GetWorkerRequest,
    ListWorkersRequest, ListWorkersResponse, RemoveWorkerRequest, RemoveWorkerResponse, UndrainRequest,
    WatchEventsRequest, Worker as WireWorker,
};
use http::{HeaderMap, Method};
use router_core::{
    EventKind, FleetError, FleetUpdate, LoadCounters, Query, RouteRequest, Router, Snapshot, Update, Worker,
    WorkerId, WorkerState,
};
use router_http::Clock;
use router_http::Keyed;
use router_http::decode::{self, RouteKind};
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use crate::events::EventHub;
use crate::requests::{Unheard, ask};
use crate::session::Sessions;
use crate::worker_url::worker_url;

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct AdminService {
    pub(crate) router: Router,
    pub(crate) clock: Clock,
    pub(crate) events: EventHub,
    pub(crate) sessions: Sessions,
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// How often a drain looks whether it is done.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

#[tonic::async_trait]
impl Admin for AdminService {
    type DrainStream = Streamed<DrainProgress>;
    type WatchEventsStream = Streamed<Event>;

    async fn list_workers(
        &self,
        _: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersResponse>, Status> {
        let snapshot = self.router.snapshot();
        let workers = snapshot.fleet.workers.iter();
        let workers = workers.map(|worker| self.shown(&snapshot, worker)).collect();
        let alarms = convert::alarms(&snapshot, self.router.is_orphaned());
        Ok(Response::new(ListWorkersResponse { workers, epoch: snapshot.epoch, alarms }))
    }

    async fn get_worker(&self, request: Request<GetWorkerRequest>) -> Result<Response<WireWorker>, Status> {
        let worker = self.find(&request.get_ref().url)?;
        Ok(Response::new(self.describe(worker.id)?))
    }

    async fn add_worker(&self, request: Request<AddWorkerRequest>) -> Result<Response<WireWorker>, Status> {
        let url = usable(&request.get_ref().url)?;
        let (role, port) = (request.get_ref().role(), request.get_ref().bootstrap_port);
        let declaration = convert::declaration(role, port).map_err(Status::invalid_argument)?;
        let added = ask(&self.router, |done| Update::Fleet(FleetUpdate::Add { url: url.into(), done }));
        let worker = added.await.map_err(unheard)?.map_err(|error| refuse(&error))?;
        if let Some(declaration) = declaration {
            let declared =
                ask(&self.router, |done| Update::Fleet(FleetUpdate::Declare { worker, declaration, done }));
            declared.await.map_err(unheard)?.map_err(|error| refuse(&error))?;
        }
        Ok(Response::new(self.describe(worker)?))
    }

    async fn remove_worker(
        &self,
        request: Request<RemoveWorkerRequest>,
    ) -> Result<Response<RemoveWorkerResponse>, Status> {
        let worker = self.find(&request.get_ref().url)?.id;
        let removed = ask(&self.router, |done| Update::Fleet(FleetUpdate::Remove { worker, done }));
        let in_flight = removed.await.map_err(unheard)?.map_err(|error| refuse(&error))?;
        Ok(Response::new(RemoveWorkerResponse { in_flight }))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<Self::DrainStream>, Status> {
        let worker = self.find(&request.get_ref().url)?;
        // Held before it is asked for, so that a worker that is removed meanwhile is still waited for.
        let snapshot = self.router.snapshot();
        let loads = snapshot.fleet.targets_of(worker.id).map(|target| target.load.clone()).collect();
        drop(snapshot);
        self.set_draining(worker.id, true).await?;
        let (router, events) = (self.router.clone(), self.events.clone());
        let progress = drain_progress(worker.clone(), loads, router, events);
        Ok(Response::new(Box::pin(progress)))
    }

    async fn undrain(&self, request: Request<UndrainRequest>) -> Result<Response<WireWorker>, Status> {
        let worker = self.find(&request.get_ref().url)?.id;
        self.set_draining(worker, false).await?;
        Ok(Response::new(self.describe(worker)?))
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        let ExplainRequest { path, body } = request.into_inner();
        let path = if path.is_empty() { "/generate" } else { &*path };
        let kind = RouteKind::of(&Method::POST, path);
        let facts = decode::facts(kind, &HeaderMap::new(), body.as_bytes());
        let facts = facts.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let Keyed { key, chat, .. } = router_http::key(&self.router, &facts, body.as_bytes());
        let wanted = RouteRequest {
            key: key.as_ref(),
            model: facts.model.as_deref(),
            rank: facts.rank,
            unpinned: !kind.takes_rank(),
            ..RouteRequest::default()
        };
        let explained = self.router.explain(&wanted, self.clock.now(), &mut fastrand::Rng::new());
        let explained = explained.map_err(|error| Status::failed_precondition(error.to_string()))?;
        let confirmed = match key.clone() {
            Some(key) => ask(&self.router, |done| Update::Query(Query::Confirmed { key, done })).await,
            None => Ok(Vec::new()),
        };
        let confirmed = confirmed.map_err(unheard)?;
        let chat_keyed = chat.map(|chat| chat.to_string()).unwrap_or_default();
        let (router, now) = (&self.router, self.clock.now());
        let explanation = convert::explanation(router, &explained, key.as_ref(), &confirmed, now);
        Ok(Response::new(ExplainResponse { chat_keyed, ..explanation }))
    }

    async fn watch_events(
        &self,
        _: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let events = BroadcastStream::new(self.events.watch()).map(|event| {
            Ok(match event {
                Ok(event) => convert::event(&event),
                Err(BroadcastStreamRecvError::Lagged(missed)) => convert::lost(missed),
            })
        });
        Ok(Response::new(Box::pin(events)))
    }
}

impl AdminService {
    fn find(&self, url: &str) -> Result<Arc<Worker>, Status> {
        let url = usable(url)?;
        let snapshot = self.router.snapshot();
        let worker = snapshot.fleet.worker_by_url(&url).cloned();
        worker.ok_or_else(|| Status::not_found(format!("{url} is not registered; ListWorkers shows what is")))
    }

    fn describe(&self, worker: WorkerId) -> Result<WireWorker, Status> {
        let snapshot = self.router.snapshot();
        let found = snapshot.fleet.workers.iter().find(|known| known.id == worker);
        let found = found.ok_or_else(|| Status::not_found("the worker was removed meanwhile"))?;
        Ok(self.shown(&snapshot, found))
    }

    fn shown(&self, snapshot: &Snapshot, worker: &Worker) -> WireWorker {
        let now = self.clock.now();
        let account = worker.agent.and_then(|agent| self.sessions.account(agent.session));
        let session = worker.agent.zip(account);
        let session = session.map(|(agent, account)| convert::session(&agent, &account, now));
        WireWorker { agent: session, ..convert::worker((snapshot, self.router.settings()), worker, now) }
    }

    async fn set_draining(&self, worker: WorkerId, on: bool) -> Result<(), Status> {
        let set = ask(&self.router, |done| Update::Fleet(FleetUpdate::Drain { worker, on, done }));
        set.await.map_err(unheard)?.map_err(|error| refuse(&error))
    }
}

/// Tells how many requests are left whenever that changes, until none is, or the drain is called off.
fn drain_progress(
    worker: Arc<Worker>,
    loads: Vec<Arc<LoadCounters>>,
    router: Router,
    events: EventHub,
) -> impl Stream<Item = Result<DrainProgress, Status>> + Send {
    // All that was decided before the drain is counted by now: only then the writer says that it has begun.
    let state = Some((loads, None));
    futures_util::stream::unfold(state, move |state| {
        let (router, events, url) = (router.clone(), events.clone(), worker.url.clone());
        let worker = worker.clone();
        async move {
            let (loads, told) = state?;
            loop {
                if undrained(&router, worker.id) {
                    let status =
                        Status::aborted("the worker was undrained meanwhile and gets requests again");
                    return Some((Err(status), None));
                }
                let in_flight: u64 = loads.iter().map(|load| load.read().in_flight).sum();
                if in_flight == 0 {
                    events.tell(EventKind::DrainDone, url, None, "nothing is in flight".into());
                    return Some((Ok(DrainProgress { in_flight, done: true }), None));
                }
                if told != Some(in_flight) {
                    return Some((
                        Ok(DrainProgress { in_flight, done: false }),
                        Some((loads, Some(in_flight))),
                    ));
                }
                tokio::time::sleep(DRAIN_LOOK).await;
            }
        }
    })
}

/// Whether a worker that was drained is no longer: a drain that was called off never ends by itself.
fn undrained(router: &Router, worker: WorkerId) -> bool {
    let snapshot = router.snapshot();
    let found = snapshot.fleet.workers.iter().find(|known| known.id == worker);
    found.is_some_and(|worker| matches!(worker.state, WorkerState::Ready | WorkerState::Updating))
}

fn usable(url: &str) -> Result<String, Status> {
    worker_url(url).map_err(|problem| {
        Status::invalid_argument(format!("url: {problem}; write it like http://10.0.0.7:30000"))
    })
}

fn refuse(error: &FleetError) -> Status {
    match error {
        FleetError::AlreadyRegistered { .. } => Status::already_exists(error.to_string()),
        FleetError::UnknownWorker(_) => Status::not_found(error.to_string()),
        FleetError::Full { .. } => Status::resource_exhausted(error.to_string()),
    }
}

fn unheard(error: Unheard) -> Status {
    Status::unavailable(error.to_string())
}
