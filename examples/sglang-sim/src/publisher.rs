//! Publishes one rank's KV events and load over ZeroMQ, and replays what has been published.
//!
//! Frames of an event batch: topic, sequence number as 8 bytes big-endian, payload. A replay request is answered with every
//! batch from the asked number on that is still in the ring, and an end marker.

use std::collections::VecDeque;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use zeromq::{PubSocket, RouterSocket, SocketRecv as _, SocketSend as _, ZmqMessage};

use crate::config::SimError;

/// Topic of the KV events.
pub(crate) const EVENTS_TOPIC: &str = "kv-events";

/// Topic of the load frames.
pub(crate) const LOAD_TOPIC: &str = "load";

/// Batches that may wait to be published; beyond it they are dropped, as SGLang's own publisher drops them.
const QUEUE: usize = 1024;

/// One rank's sockets.
#[derive(Debug)]
pub(crate) struct Publisher {
    events: mpsc::Sender<(u64, Bytes)>,
    load: mpsc::Sender<(u64, Bytes)>,
    ring: Arc<Mutex<Ring>>,
    next_load: AtomicU64,
    dropped: AtomicU64,
}

/// Listeners for one rank's sockets.
#[derive(Debug)]
pub(crate) struct Listeners {
    pub(crate) events: TcpListener,
    pub(crate) replay: TcpListener,
    pub(crate) load: TcpListener,
}

#[derive(Debug)]
struct Ring {
    next: u64,
    batches: VecDeque<(u64, Bytes)>,
    capacity: usize,
}

impl Publisher {
    /// Starts the sockets as tasks of `tasks`.
    pub(crate) async fn start(
        listeners: Listeners,
        buffer_steps: usize,
        tasks: &mut JoinSet<()>,
    ) -> Result<Self, SimError> {
        let ring = Arc::new(Mutex::new(Ring { next: 0, batches: VecDeque::new(), capacity: buffer_steps }));
        let (events, load) = (publish(listeners.events, EVENTS_TOPIC), publish(listeners.load, LOAD_TOPIC));
        let (events, load) = (events.await?, load.await?);
        tasks.spawn(replay(bound::<RouterSocket>(listeners.replay).await?, ring.clone()));
        tasks.spawn(events.1);
        tasks.spawn(load.1);
        let (next_load, dropped) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { events: events.0, load: load.0, ring, next_load, dropped })
    }

    /// Publishes a batch of events. Never waits.
    pub(crate) fn publish_events(&self, payload: Vec<u8>) {
        let payload = Bytes::from(payload);
        let seq = self.ring.lock().expect("no holder panics").push(payload.clone());
        if self.events.try_send((seq, payload)).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Publishes a load frame. Never waits; a frame that finds no room is shed.
    pub(crate) fn publish_load(&self, payload: Vec<u8>) {
        let seq = self.next_load.fetch_add(1, Relaxed);
        let _ = self.load.try_send((seq, payload.into()));
    }

    /// Batches that subscribers did not get because the queue was full; replay has them.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

impl Ring {
    fn push(&mut self, payload: Bytes) -> u64 {
        let seq = self.next;
        self.next += 1;
        self.batches.push_back((seq, payload));
        if self.batches.len() > self.capacity {
            self.batches.pop_front();
        }
        seq
    }
}

/// A publishing socket: where to send to it, and its task.
async fn publish(
    listener: TcpListener,
    topic: &'static str,
) -> Result<(mpsc::Sender<(u64, Bytes)>, impl Future<Output = ()> + Send + use<>), SimError> {
    let mut socket = bound::<PubSocket>(listener).await?;
    let (sender, mut queue) = mpsc::channel::<(u64, Bytes)>(QUEUE);
    let task = async move {
        while let Some((seq, payload)) = queue.recv().await {
            let message = frames([topic.into(), sequence(seq), payload]);
            if let Err(error) = socket.send(message).await {
                tracing::debug!(%error, topic, "a subscriber was lost");
            }
        }
    };
    Ok((sender, task))
}

/// Answers replay requests.
async fn replay(mut socket: RouterSocket, ring: Arc<Mutex<Ring>>) {
    while let Ok(request) = socket.recv().await {
        // identity, empty, first number wanted
        let [identity, empty, start] = &request.into_vec()[..] else {
            tracing::warn!("a replay request without its three frames is not answered");
            continue;
        };
        let (Ok(start), true) = (<[u8; 8]>::try_from(&start[..]), empty.is_empty()) else {
            tracing::warn!("a replay request without a sequence number is not answered");
            continue;
        };
        let start = u64::from_be_bytes(start);
        let batches: Vec<_> = {
            let ring = ring.lock().expect("no holder panics");
            ring.batches.iter().filter(|(seq, _)| *seq >= start).cloned().collect()
        };
        let topic = Bytes::from_static(EVENTS_TOPIC.as_bytes());
        let answers = batches.into_iter().map(|(seq, payload)| [topic.clone(), sequence(seq), payload]);
        let end = [Bytes::new(), Bytes::copy_from_slice(&(-1_i64).to_be_bytes()), Bytes::new()];
        for [topic, seq, payload] in answers.chain([end]) {
            let message = frames([identity.clone(), Bytes::new(), topic, seq, payload]);
            if socket.send(message).await.is_err() {
                break;
            }
        }
    }
}

async fn bound<S: zeromq::Socket>(listener: TcpListener) -> Result<S, SimError> {
    let address = listener.local_addr().map(|address| address.to_string()).unwrap_or_default();
    let mut socket = S::new();
    let bound = socket.bind_listener(listener).await;
    bound.map_err(|source| SimError::Publish { address, source })?;
    Ok(socket)
}

fn sequence(seq: u64) -> Bytes {
    Bytes::copy_from_slice(&seq.to_be_bytes())
}

fn frames<const N: usize>(frames: [Bytes; N]) -> ZmqMessage {
    ZmqMessage::try_from(Vec::from(frames)).expect("a message has at least one frame")
}
