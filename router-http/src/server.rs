//! Listens, and serves on threads that share nothing on the way of a request but the core and a few counters.
//!
//! Each thread has its own runtime, socket, service and connections to workers ([`crate::accept`] is what one does). A thread
//! that dies is noticed: the others serve on, and `/liveness` says that the router should be restarted.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::{io, thread};

use router_core::Router;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::accept::Accepting;
use crate::admission::Admission;
use crate::clock::Clock;
use crate::config::DataPlaneConfig;
use crate::listen::listen;
use crate::metrics::HttpMetrics;
use crate::service::Service;
use crate::shared::Shared;

/// The data plane.
#[derive(Debug)]
pub struct DataPlane;

/// A data plane that listens and does not serve yet.
#[derive(Debug)]
pub struct Bound {
    listeners: Vec<TcpListener>,
    address: SocketAddr,
    config: DataPlaneConfig,
    router: Router,
    clock: Clock,
    metrics: HttpMetrics,
    death: Death,
}

/// What is known of threads that have died.
#[derive(Clone, Debug, Default)]
struct Death {
    /// For whoever looks at it with each request.
    any: Arc<AtomicBool>,
    /// For whoever waits for it.
    first: CancellationToken,
}

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen for clients on {address}: {source}; choose another --host or --port, or stop what listens there"
)]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// Says how a thread ended, however that comes.
struct End {
    ends: mpsc::UnboundedSender<Ended>,
    how: Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Told,
    Died,
}

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
        let listeners = listen(address, config.threads.max(1)).map_err(failed)?;
        let address = listeners[0].local_addr().map_err(failed)?;
        Ok(Bound { listeners, address, config, router, clock, metrics, death: Death::default() })
    }
}

impl Bound {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Cancelled when a thread dies. The others serve on; only a restart brings it back.
    pub fn thread_died(&self) -> CancellationToken {
        self.death.first.clone()
    }

    /// Serves until `shutdown`, then finishes what is in flight, for at most the configured grace. Dropping the future ends it at
    /// once.
    pub async fn serve(self, shutdown: CancellationToken) {
        // Ends what outlasts this future.
        let end = CancellationToken::new();
        let _ends = end.clone().drop_guard();
        let room = Arc::new(Semaphore::new(self.config.max_connections.min(Semaphore::MAX_PERMITS)));
        let admission =
            Admission::new(&self.config.admission, &self.router, self.clock, self.metrics.clone());
        let api = &self.config.api;
        let shared = Arc::new(Shared::new(api.max_kept_ids, api.kept_id_ttl, admission.clone()));
        let (ends, ended) = mpsc::unbounded_channel();
        for listener in self.listeners {
            let (config, router, clock) = (self.config.clone(), self.router.clone(), self.clock);
            let shared = shared.clone();
            let service = Service::new(
                config.clone(),
                router,
                clock,
                self.metrics.clone(),
                shared,
                self.death.any.clone(),
            );
            let accepting = Accepting { config, service, metrics: self.metrics.clone(), room: room.clone() };
            let (shutdown, end) = (shutdown.clone(), end.clone());
            start(ends.clone(), move || run(listener, accepting, shutdown, end));
        }
        drop(ends);
        let all_ended = self.death.follow(ended);
        let give_room = async {
            match admission {
                Some(admission) => admission.run().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = all_ended => {}
            () = give_room => {}
        }
    }
}

impl Death {
    /// Takes note of every thread that dies, until the last has ended.
    async fn follow(&self, mut ended: mpsc::UnboundedReceiver<Ended>) {
        while let Some(ended) = ended.recv().await {
            if matches!(ended, Ended::Died) {
                self.any.store(true, Relaxed);
                self.first.cancel();
                tracing::error!(
                    "a thread of the data plane has died; the others serve on: restart the router"
                );
            }
        }
    }
}

/// Starts a thread that says how it ended, whether or not it can be started.
fn start(ends: mpsc::UnboundedSender<Ended>, work: impl FnOnce() -> io::Result<()> + Send + 'static) {
    let end = End { ends, how: Ended::Died };
    let started = thread::Builder::new().name("data-plane".to_owned()).spawn(move || {
        // Taken whole, so that it is dropped here also when the work panics.
        let end = &mut { end };
        match work() {
            Ok(()) => end.how = Ended::Told,
            Err(error) => tracing::error!(%error, "a thread of the data plane cannot serve"),
        }
    });
    if let Err(error) = started {
        tracing::error!(%error, "a thread of the data plane cannot be started");
    }
}

/// What one thread does.
fn run(
    listener: TcpListener,
    accepting: Accepting,
    shutdown: CancellationToken,
    end: CancellationToken,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        end.run_until_cancelled(accepting.serve(listener, shutdown)).await;
        Ok(())
    });
    // Connections that are still open end here. A name that is still being looked up is not waited for.
    runtime.shutdown_background();
    served
}

impl Drop for End {
    fn drop(&mut self) {
        // Nobody listens where the future was dropped.
        let _ = self.ends.send(self.how);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_thread_that_dies_is_noticed_and_one_that_was_told_to_end_is_not_mourned() {
        let (ends, mut ended) = mpsc::unbounded_channel();
        for (work, how) in [
            (
                Box::new(|| -> io::Result<()> { panic!("as a bug would") })
                    as Box<dyn FnOnce() -> io::Result<()> + Send>,
                Ended::Died,
            ),
            (Box::new(|| Err(io::ErrorKind::Other.into())), Ended::Died),
            (Box::new(|| Ok(())), Ended::Told),
        ] {
            start(ends.clone(), work);
            assert_eq!(ended.recv().await, Some(how));
        }
    }

    #[tokio::test]
    async fn who_looks_and_who_waits_learns_of_a_death() {
        for (how, died) in [(Ended::Told, false), (Ended::Died, true)] {
            let (death, (ends, ended)) = (Death::default(), mpsc::unbounded_channel());
            start(ends, move || match how {
                Ended::Told => Ok(()),
                Ended::Died => panic!("as a bug would"),
            });
            death.follow(ended).await;
            assert_eq!((death.any.load(Relaxed), death.first.is_cancelled()), (died, died));
        }
    }
}
