//! Updates to the writer from asynchronous code: sent with patience, answered through a future.

use std::time::Duration;

use router_core::{Done, Refused, Router, Update};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// The writer did not take an update, or did not answer it.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(crate) enum Unheard {
    #[error("the router is overloaded: its writer did not take an update within {} s", PATIENCE.as_secs())]
    Overloaded,
    #[error("the router's writer has died: it routes on and learns nothing; restart it")]
    Orphaned,
}

/// How long a full queue is tried again.
const PATIENCE: Duration = Duration::from_secs(5);

/// Pause between two tries; the writer takes thousands of updates in this time.
const PAUSE: Duration = Duration::from_millis(1);

/// Sends an update, waiting for room. Nothing is lost silently: without room in time it is an error.
pub(crate) async fn send(router: &Router, update: Update) -> Result<(), Unheard> {
    let give_up = Instant::now() + PATIENCE;
    let mut update = update;
    loop {
        match router.updates().try_send(update) {
            Ok(()) => return Ok(()),
            Err(Refused(_)) if router.is_orphaned() => return Err(Unheard::Orphaned),
            Err(Refused(_)) if Instant::now() >= give_up => return Err(Unheard::Overloaded),
            Err(Refused(back)) => update = *back,
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Sends an update that is answered, and waits for the answer.
pub(crate) async fn ask<T: Send + 'static>(
    router: &Router,
    update: impl FnOnce(Done<T>) -> Update,
) -> Result<T, Unheard> {
    let (answer, answered) = oneshot::channel();
    let done = Done::new(move |result| {
        // Whoever asked may have gone away.
        let _ = answer.send(result);
    });
    send(router, update(done)).await?;
    answered.await.map_err(|_| Unheard::Orphaned)
}
