//! One thread's connections: accepts them and serves HTTP/1.1, or HTTP/2 where the client begins with it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::DataPlaneConfig;
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

/// A connection's place among all, and a word that it is open.
type Held = (OwnedSemaphorePermit, mpsc::Sender<Infallible>);

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
            tokio::spawn(self.connection(stream, client, shutdown.clone(), (permit, open.clone())));
        }
        drop((listener, open));
        if tokio::time::timeout(self.config.shutdown_grace, all_closed.recv()).await.is_err() {
            tracing::warn!("connections were still open when the grace of the shutdown ended");
        }
    }

    /// Serves one connection. `held`: until it ends.
    fn connection(
        &self,
        stream: TcpStream,
        client: SocketAddr,
        shutdown: CancellationToken,
        held: Held,
    ) -> impl Future<Output = ()> + Send + use<> {
        let _ = stream.set_nodelay(true);
        let client = HeaderValue::try_from(client.ip().to_string()).ok();
        let patience = self.config.header_timeout;
        let mut connection = Connection::new(stream, client, self.service.clone(), patience, shutdown);
        let metrics = self.metrics.clone();
        async move {
            let _held = &held;
            metrics.connections.inc();
            let silent = match connection.serve().await {
                // Most connections need no room for what follows.
                End::Http2 => Box::pin(connection.serve_http2()).await,
                End::Tunnel(tunnel) => {
                    Box::pin(connection.join(*tunnel)).await;
                    false
                }
                end => {
                    // Closed before another can have its place.
                    drop(connection);
                    matches!(end, End::Silent)
                }
            };
            if silent {
                metrics.connections_silent.inc();
            }
            metrics.connections.dec();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Serve<F> = fn(&Accepting, TcpStream, SocketAddr, CancellationToken, Held) -> F;

    fn room<F>(_: Serve<F>) -> usize {
        size_of::<F>()
    }

    /// It has as much while it waits for a request.
    #[test]
    fn a_connection_takes_a_few_kilobytes() {
        let room = room(Accepting::connection);
        assert!(room <= 6 << 10, "{room} bytes");
    }
}
