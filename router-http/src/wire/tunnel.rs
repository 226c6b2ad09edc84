//! Two connections that have become one: bytes pass both ways until both sides have said all.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::patience::Patience;
use super::read::Incoming;
use super::write::Outgoing;

/// One end.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) stream: TcpStream,
    pub(super) incoming: Incoming,
    /// Still to be sent to it.
    pub(super) outgoing: Outgoing,
}

/// How far one direction has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Progress {
    #[default]
    Open,
    /// The end has been read, and not passed on yet.
    Ended,
    Done,
}

/// Passes bytes until both sides have ended, one breaks, or nothing has passed for `idle`.
pub(super) async fn join(mut client: Side, mut worker: Side, idle: Option<Duration>) -> io::Result<()> {
    let (mut up, mut down) = (Progress::default(), Progress::default());
    let mut patience = idle.map(Patience::new);
    poll_fn(|context| {
        let mut moved = false;
        let upward = poll_pass(&mut client, &mut worker, &mut up, &mut moved, context)?;
        let downward = poll_pass(&mut worker, &mut client, &mut down, &mut moved, context)?;
        if upward.is_ready() && downward.is_ready() {
            return Poll::Ready(Ok(()));
        }
        let Some(patience) = &mut patience else { return Poll::Pending };
        if moved {
            patience.renew();
        }
        patience.poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    })
    .await
}

/// Passes what one side says to the other.
fn poll_pass(
    from: &mut Side,
    to: &mut Side,
    progress: &mut Progress,
    moved: &mut bool,
    context: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    loop {
        if !from.incoming.bytes.is_empty() {
            to.outgoing.put(from.incoming.bytes.split().freeze());
        }
        let waiting = to.outgoing.len();
        let flushed = to.outgoing.poll_flush(&mut to.stream, context);
        *moved |= to.outgoing.len() < waiting;
        ready!(flushed)?;
        match progress {
            Progress::Done => return Poll::Ready(Ok(())),
            Progress::Ended => {
                ready!(pin!(to.stream.shutdown()).poll(context))?;
                *progress = Progress::Done;
            }
            Progress::Open => {
                ready!(from.stream.poll_read_ready(context))?;
                if ready!(from.incoming.poll_read(&mut from.stream, context))? == 0 {
                    *progress = Progress::Ended;
                }
                *moved = true;
            }
        }
    }
}
