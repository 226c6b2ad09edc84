//! One thread's connections: accepts them and serves HTTP/1.1 and h2c on them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use http::HeaderValue;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::DataPlaneConfig;
use crate::metrics::HttpMetrics;
use crate::service::Service;

/// See the module.
#[derive(Debug)]
pub(crate) struct Accepting {
    pub(crate) config: DataPlaneConfig,
    pub(crate) service: Service,
    pub(crate) metrics: HttpMetrics,
    /// For connections, of all threads together.
    pub(crate) room: Arc<Semaphore>,
}

/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

impl Accepting {
    /// Serves until `shutdown`, then finishes what is in flight, for at most the configured grace.
    pub(crate) async fn serve(self, listener: TcpListener, shutdown: CancellationToken) {
        let graceful = GracefulShutdown::new();
        let mut http = auto::Builder::new(TokioExecutor::new());
        let patience = self.config.header_timeout;
        http.http1().timer(TokioTimer::new()).header_read_timeout(patience).pipeline_flush(true);
        http.http2().timer(TokioTimer::new()).keep_alive_interval(patience).keep_alive_timeout(patience);
        let mut beside = JoinSet::new();
        beside.spawn(self.service.keep_house());
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
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
            let Ok(permit) = self.room.clone().try_acquire_owned() else {
                self.metrics.connections_refused.inc();
                continue;
            };
            let connection = self.connection(&http, &graceful, stream, client);
            tokio::spawn(async move {
                let _permit = permit;
                connection.await;
            });
        }
        drop(listener);
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
        let client = HeaderValue::try_from(client.ip().to_string()).ok();
        let service = service_fn(move |request| {
            first.store(true, Relaxed);
            let (service, client) = (service.clone(), client.clone());
            async move { Ok::<_, Infallible>(service.serve(request, client).await) }
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
