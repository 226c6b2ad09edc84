//! Puts a router together: core, writer, data plane, gRPC, metrics, health checks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use espalier_proto::FILE_DESCRIPTOR_SET;
use espalier_proto::admin_server::AdminServer;
use espalier_proto::agent_server::AgentServer;
use prometheus_client::registry::Registry;
use router_core::key::{BlockHash, Unit};
use router_core::{FleetUpdate, Query, Router, TargetId, Update};
use router_http::{BindError, Clock, DataPlane, HttpMetrics};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService as _;
use tonic_health::ServingStatus;

use crate::admin::AdminService;
use crate::config::{ConfigError, ConfigErrors, PoolMember, RouterConfig};
use crate::events::EventHub;
use crate::probe::{ProbeSettings, Prober};
use crate::requests::{Unheard, ask};
use crate::session::{AgentService, ChatTemplates, Sessions, Terms};
use crate::settings;
use crate::telemetry::{ControlMetrics, Exporter, ExporterError, FleetCollector};
use crate::worker_url::worker_url;
use crate::writer_thread::{Listeners, WriterThread};

/// Reconciliations under way at once.
const RECONCILIATIONS: usize = 4;

/// A running router. Dropping it stops it at once; [`shutdown`](Self::shutdown) lets requests finish.
#[derive(Debug)]
pub struct RunningRouter {
    router: Router,
    http_addr: SocketAddr,
    grpc_addr: SocketAddr,
    prometheus_addr: Option<SocketAddr>,
    metrics: ControlMetrics,
    /// Stops the data plane.
    stop: CancellationToken,
    /// The writer has died: requests are served on, and nothing is learned any more.
    died: CancellationToken,
    data_plane: JoinSet<()>,
    control_plane: JoinSet<()>,
    writer: Option<WriterThread>,
}

/// A router that cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// A file of the configuration is wrong.
    #[error(transparent)]
    File(#[from] ConfigError),
    /// An address has no meaning.
    #[error("--host {host}: not an address of this machine: {source}")]
    Host {
        /// What was given.
        host: String,
        /// Why.
        source: std::io::Error,
    },
    /// Clients cannot be listened for.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Administration and agents cannot be listened for.
    #[error(
        "cannot listen for administration and agents on {address}: {source}; choose another --grpc-host or --grpc-port"
    )]
    Grpc {
        /// The address.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// Metrics cannot be listened for.
    #[error(transparent)]
    Exporter(#[from] ExporterError),
    /// The writer's thread cannot be started.
    #[error("cannot start the writer's thread: {0}")]
    Thread(std::io::Error),
    /// The writer does not take updates.
    #[error("{0}")]
    Writer(String),
}

/// Starts a router on the current runtime. It serves when this returns, whether or not any worker is up.
pub async fn start(config: RouterConfig) -> Result<RunningRouter, StartError> {
    config.check()?;
    // It is read again for every session; that it cannot be read at all should be known before anybody waits.
    settings::secret("agent-token-file", config.agent_token_file.as_deref())?;
    let clock = Clock::new();
    let (router, writer) = Router::new(settings::core(&config)?);
    let mut registry = Registry::default();
    let http_metrics = HttpMetrics::register(&mut registry);
    let metrics = ControlMetrics::register(&mut registry);
    let collector = FleetCollector { router: router.clone(), clock, wanted: config.level() };
    registry.register_collector(Box::new(collector));

    let listen = resolve(&config.host, config.port).await?;
    let data_plane_config = settings::data_plane(&config, listen)?;
    let api_key = data_plane_config.worker_api_key.clone();
    let http = DataPlane::bind(data_plane_config, router.clone(), clock, http_metrics).await?;
    let exporter = Exporter::bind(&config.prometheus_host, config.prometheus_port, registry).await?;
    let (grpc, grpc_addr) = listen_grpc(&config.grpc_host, config.grpc_port).await?;

    let sessions = Sessions::default();
    let events = EventHub::new();
    let listeners =
        Listeners { sessions: sessions.clone(), events: events.clone(), metrics: metrics.clone() };
    let died = CancellationToken::new();
    let orphan = orphan(router.clone(), died.clone());
    let interval = router.settings().publish_interval;
    let writer =
        WriterThread::start(writer, clock, interval, listeners, orphan).map_err(StartError::Thread)?;
    register(&router, &config).await.map_err(|error| StartError::Writer(error.to_string()))?;

    let stop = CancellationToken::new();
    let (http_addr, prometheus_addr) = (http.local_addr(), exporter.local_addr());
    let (writer_died, thread_died) = (died.clone(), http.thread_died());
    let ill = async move {
        tokio::select! {
            () = writer_died.cancelled() => {}
            () = thread_died.cancelled() => {}
        }
    };
    let (mut data_plane, mut control_plane) = (JoinSet::new(), JoinSet::new());
    data_plane.spawn(http.serve(stop.clone()));
    control_plane.spawn(exporter.serve());
    let prober = Prober::new(probe_settings(&config, api_key));
    control_plane.spawn(prober.run(router.clone(), clock, events.watch()));
    let agents = AgentService {
        router: router.clone(),
        clock,
        sessions: sessions.clone(),
        metrics: metrics.clone(),
        events: events.clone(),
        terms: terms(&config),
        chat_templates: ChatTemplates::default(),
        next_session: Arc::new(AtomicU64::new(1)),
        room: Arc::new(Semaphore::new(config.max_agent_sessions.min(Semaphore::MAX_PERMITS))),
        reconciling: Arc::new(Semaphore::new(RECONCILIATIONS)),
    };
    let admin = AdminService { router: router.clone(), clock, events, sessions: sessions.clone() };
    let keepalive = Duration::from_secs(config.grpc_keepalive_secs);
    control_plane.spawn(serve_grpc(grpc, agents, admin, keepalive, ill));
    let writer = Some(writer);
    Ok(RunningRouter {
        router,
        http_addr,
        grpc_addr,
        prometheus_addr,
        metrics,
        stop,
        died,
        data_plane,
        control_plane,
        writer,
    })
}

impl RunningRouter {
    /// Where clients connect.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Where administration and agents connect.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// Where metrics are served.
    pub fn prometheus_addr(&self) -> Option<SocketAddr> {
        self.prometheus_addr
    }

    /// The core.
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// Every block claimed for a target; empty for an unknown one.
    pub async fn claims(&self, target: TargetId, unit: Unit) -> Vec<BlockHash> {
        let asked = ask(&self.router, |done| Update::Query(Query::Claims { target, unit, done }));
        asked.await.unwrap_or_default()
    }

    /// Bytes of all messages that agents have sent.
    pub fn report_bytes(&self) -> u64 {
        self.metrics.total_report_bytes()
    }

    /// Waits until the writer has died. Requests are served on, by load alone; only a restart makes the router learn again.
    pub async fn writer_died(&self) {
        self.died.cancelled().await;
    }

    /// Takes no new connection, lets requests finish within the configured grace, and stops.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        while self.data_plane.join_next().await.is_some() {}
        self.control_plane.shutdown().await;
        let writer = self.writer.take();
        // The thread is waited for where waiting harms nobody.
        let _ = tokio::task::spawn_blocking(move || drop(writer)).await;
    }
}

/// What is done when the writer dies: requests are served on, and everybody who can have the router restarted is told.
fn orphan(router: Router, died: CancellationToken) -> impl FnOnce() + Send + 'static {
    move || {
        router.orphan();
        died.cancel();
        tracing::error!(
            "the writer has died; requests are served on by load alone and nothing is learned any more: restart the router"
        );
    }
}

async fn register(router: &Router, config: &RouterConfig) -> Result<(), Unheard> {
    for url in config.worker_urls.iter().filter_map(|url| worker_url(url).ok()) {
        let added = ask(router, |done| Update::Fleet(FleetUpdate::Add { url: url.into(), done })).await?;
        if let Err(error) = added {
            tracing::warn!(%error, "a worker of the configuration was not registered");
        }
    }
    for PoolMember { url, declaration } in config.pools.members() {
        let added = ask(router, |done| Update::Fleet(FleetUpdate::Add { url: url.into(), done })).await?;
        let declared = match added {
            Ok(worker) => {
                ask(router, |done| Update::Fleet(FleetUpdate::Declare { worker, declaration, done })).await?
            }
            Err(error) => Err(error),
        };
        if let Err(error) = declared {
            tracing::warn!(%error, "a worker of the configuration was not registered");
        }
    }
    Ok(())
}

async fn resolve(host: &str, port: u16) -> Result<SocketAddr, StartError> {
    let failed = |source| StartError::Host { host: host.to_owned(), source };
    let mut found = tokio::net::lookup_host((host, port)).await.map_err(failed)?;
    found.next().ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))
}

async fn listen_grpc(host: &str, port: u16) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Grpc { address: format!("{host}:{port}"), source };
    let listener = TcpListener::bind((host, port)).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

fn probe_settings(config: &RouterConfig, api_key: Option<router_http::Secret>) -> ProbeSettings {
    ProbeSettings {
        interval: Duration::from_secs_f64(config.health_check_interval_secs),
        timeout: Duration::from_secs_f64(config.health_check_timeout_secs),
        failure_threshold: config.health_failure_threshold,
        api_key,
        counts_interval: config.claims.counts_interval(),
    }
}

fn terms(config: &RouterConfig) -> Terms {
    Terms {
        level: config.level(),
        lease_ms: u32::try_from(config.lease().as_millis()).unwrap_or(u32::MAX),
        batch_interval_ms: config.report_interval_ms,
        reconcile_interval: config.reconcile_interval(),
        token_file: config.agent_token_file.clone(),
    }
}

/// `ill`: until something has died that only a restart brings back.
async fn serve_grpc(
    listener: TcpListener,
    agents: AgentService,
    admin: AdminService,
    keepalive: Duration,
    ill: impl Future<Output = ()>,
) {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<AgentServer<AgentService>>().await;
    health.set_serving::<AdminServer<AdminService>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the descriptors are generated with the code");
    let server = tonic::transport::Server::builder()
        .tcp_nodelay(true)
        // A peer whose host has vanished must not hold its session's place for ever.
        .http2_keepalive_interval(Some(keepalive))
        .http2_keepalive_timeout(Some(keepalive))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(AgentServer::new(agents))
        .add_service(AdminServer::new(admin));
    let report = async {
        ill.await;
        for service in ["", AgentServer::<AgentService>::NAME, AdminServer::<AdminService>::NAME] {
            health.set_service_status(service, ServingStatus::NotServing).await;
        }
    };
    let (served, ()) = tokio::join!(server.serve_with_incoming(TcpListenerStream::new(listener)), report);
    if let Err(error) = served {
        tracing::error!(%error, "administration and agents are no longer served");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_file_that_cannot_be_read_is_known_before_serving() {
        let missing = Some("/nowhere/token".into());
        let config = RouterConfig { agent_token_file: missing, ..RouterConfig::default() };
        let error = start(config).await.unwrap_err().to_string();
        assert!(error.contains("--agent-token-file /nowhere/token"), "{error}");
    }
}
