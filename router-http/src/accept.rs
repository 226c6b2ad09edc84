//! One thread's connections: accepts them and serves HTTP/1.1, or HTTP/2 where the client begins with it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::DataPlaneConfig;
use crate::http2;
use crate::metrics::HttpMetrics;
use crate::service::Service;
use crate::wire::server::{Connection, End};

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
        // Closed once no connection has its end any more.
        let (open, mut all_closed) = mpsc::channel::<Infallible>(1);
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
            let connection = self.connection(stream, client, shutdown.clone());
            let open = open.clone();
            tokio::spawn(async move {
                let _held = (permit, open);
                connection.await;
            });
        }
        drop((listener, open));
        if tokio::time::timeout(self.config.shutdown_grace, all_closed.recv()).await.is_err() {
            tracing::warn!("connections were still open when the grace of the shutdown ended");
        }
    }

    fn connection(
        &self,
        stream: TcpStream,
        client: SocketAddr,
        shutdown: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<> {
        let _ = stream.set_nodelay(true);
        let client = HeaderValue::try_from(client.ip().to_string()).ok();
        let (service, patience) = (self.service.clone(), self.config.header_timeout);
        let metrics = self.metrics.clone();
        async move {
            metrics.connections.inc();
            let connection =
                Connection::new(stream, client.clone(), service.clone(), patience, shutdown.clone());
            let silent = match connection.serve().await {
                End::Closed => false,
                End::Silent => true,
                End::Http2(stream, begun) => {
                    http2::serve(stream, begun, client, service, patience, shutdown).await
                }
            };
            if silent {
                metrics.connections_silent.inc();
            }
            metrics.connections.dec();
        }
    }
}
