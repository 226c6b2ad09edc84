//! Accepts connections and serves HTTP/1.1 and h2c on them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use router_core::Router;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::DataPlaneConfig;
use crate::metrics::HttpMetrics;
use crate::service::Service;

/// The data plane.
#[derive(Debug)]
pub struct DataPlane;

/// A data plane that listens and does not serve yet.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
    config: DataPlaneConfig,
    service: Service,
    metrics: HttpMetrics,
}

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen for clients on {address}: {source}; choose another --host or --port, or stop what listens there"
)]
pub struct BindError {
    address: SocketAddr,
    source: std::io::Error,
}

/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

impl DataPlane {
    /// Listens, so that the address is known and nothing is lost; [`Bound::serve`] then serves.
    pub async fn bind(
        config: DataPlaneConfig,
        router: Router,
        clock: Clock,
        metrics: HttpMetrics,
    ) -> Result<Bound, BindError> {
        let address = config.listen;
        let failed = |source| BindError { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let service = Service::new(config.clone(), router, clock, metrics.clone());
        Ok(Bound { listener, address, config, service, metrics })
    }
}

impl Bound {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`, then finishes what is in flight, for at most the configured grace.
    pub async fn serve(self, shutdown: CancellationToken) {
        let graceful = GracefulShutdown::new();
        // Ends the connections that outlast the grace.
        let end = CancellationToken::new();
        let _ends = end.clone().drop_guard();
        let room = Arc::new(Semaphore::new(self.config.max_connections));
        let mut http = auto::Builder::new(TokioExecutor::new());
        let patience = self.config.header_timeout;
        http.http1().timer(TokioTimer::new()).header_read_timeout(patience).pipeline_flush(true);
        http.http2().timer(TokioTimer::new()).keep_alive_interval(patience).keep_alive_timeout(patience);
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = shutdown.cancelled() => break,
            };
            let (stream, client) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, usually: it passes when connections close.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = room.clone().try_acquire_owned() else {
                self.metrics.connections_refused.inc();
                continue;
            };
            let connection = self.connection(&http, &graceful, stream, client);
            let end = end.clone();
            tokio::spawn(async move {
                let _permit = permit;
                end.run_until_cancelled(connection).await;
            });
        }
        drop(self.listener);
        if tokio::time::timeout(self.config.shutdown_grace, graceful.shutdown()).await.is_err() {
            tracing::warn!("connections were still open when the grace of the shutdown ended");
        }
    }

    fn connection(
        &self,
        http: &auto::Builder<TokioExecutor>,
        graceful: &GracefulShutdown,
        stream: TcpStream,
        client: SocketAddr,
    ) -> impl Future<Output = ()> + Send + use<> {
        let _ = stream.set_nodelay(true);
        let service = self.service.clone();
        let began = Arc::new(AtomicBool::new(false));
        let first = began.clone();
        let service = service_fn(move |request| {
            first.store(true, Relaxed);
            let service = service.clone();
            async move { Ok::<_, Infallible>(service.serve(request, Some(client)).await) }
        });
        let connection = http.serve_connection(TokioIo::new(stream), service).into_owned();
        let connection = graceful.watch(connection);
        let patience = self.config.header_timeout;
        // The protocol's own timers begin once it is known which protocol it is.
        let silent = async move {
            tokio::time::sleep(patience).await;
            if began.load(Relaxed) {
                std::future::pending().await
            }
        };
        let metrics = self.metrics.clone();
        async move {
            metrics.connections.inc();
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    // It concerns its client alone; what was in flight has been counted.
                    tracing::debug!(%error, "a client's connection broke");
                },
                () = silent => {
                    metrics.connections_silent.inc();
                }
            }
            metrics.connections.dec();
        }
    }
}
