//! The hand-over of KV from a prefill server to decode servers, by room.
//!
//! SGLang's servers find each other through an HTTP bootstrap server at the prefill side and then move memory; here one TCP
//! connection for each request does both. A decode server says `ROOM RANK`, the rank being `-` where the request names none,
//! and gets `CACHED_TOKENS` when the room's prompt has been computed there; if the connection ends without it, the transfer has
//! failed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// The rooms of a prefill server. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Rooms {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dp_size: u64,
    rooms: Mutex<HashMap<u64, Room>>,
    changed: Notify,
}

#[derive(Clone, Copy, Debug)]
struct Room {
    rank: u64,
    /// Cached tokens of its prompt, once that has been computed.
    computed: Option<usize>,
    taken: bool,
}

/// A room that a request of this server has. Dropping it ends it, and with it whoever waits for its KV.
#[derive(Debug)]
pub(crate) struct RoomGuard {
    rooms: Rooms,
    room: u64,
}

/// Longest line of the protocol.
const MOST_LINE_BYTES: usize = 128;

impl Rooms {
    pub(crate) fn new(dp_size: u32) -> Self {
        let inner = Inner { dp_size: dp_size.into(), rooms: Mutex::default(), changed: Notify::new() };
        Self { inner: Arc::new(inner) }
    }

    /// A room of a request at one of the ranks.
    pub(crate) fn open(&self, room: u64, rank: usize) -> RoomGuard {
        self.rooms().insert(room, Room { rank: rank as u64, computed: None, taken: false });
        self.inner.changed.notify_waiters();
        RoomGuard { rooms: self.clone(), room }
    }

    /// Hands KV over until it is dropped.
    pub(crate) async fn serve(self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let rooms = self.clone();
            connections.spawn(async move {
                // Whoever asked and has gone is missed by nobody.
                let _ = rooms.hand_over(stream).await;
            });
            while connections.try_join_next().is_some() {}
        }
    }

    async fn hand_over(&self, stream: TcpStream) -> Option<()> {
        let mut stream = BufReader::new(stream);
        let line = line(&mut stream).await?;
        let (room, rank) = line.split_once(' ')?;
        let room: u64 = room.parse().ok()?;
        let rank = rank.parse().unwrap_or(room % self.inner.dp_size);
        let cached_tokens = tokio::select! {
            cached_tokens = self.take(room, rank) => cached_tokens?,
            // The decode side has given up.
            _ = stream.fill_buf() => return None,
        };
        stream.into_inner().write_all(format!("{cached_tokens}\n").as_bytes()).await.ok()
    }

    /// Waits until a room's prompt has been computed at a rank, and takes it; `None` if the room ends before.
    async fn take(&self, room: u64, rank: u64) -> Option<usize> {
        let mut known = false;
        loop {
            let mut changed = std::pin::pin!(self.inner.changed.notified());
            changed.as_mut().enable();
            match self.rooms().get_mut(&room) {
                Some(found) if found.rank == rank => {
                    known = true;
                    if let Some(cached_tokens) = found.computed {
                        found.taken = true;
                        self.inner.changed.notify_waiters();
                        return Some(cached_tokens);
                    }
                }
                // Another rank's is never found, as in SGLang.
                Some(_) => {}
                None if known => return None,
                None => {}
            }
            changed.await;
        }
    }

    fn rooms(&self) -> MutexGuard<'_, HashMap<u64, Room>> {
        self.inner.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RoomGuard {
    /// The prompt has been computed: waits until its KV has been taken.
    pub(crate) async fn hand_over(&self, cached_tokens: usize) {
        loop {
            let mut changed = std::pin::pin!(self.rooms.inner.changed.notified());
            changed.as_mut().enable();
            let taken = self.rooms.rooms().get_mut(&self.room).is_none_or(|room| {
                if room.computed.replace(cached_tokens).is_none() {
                    self.rooms.inner.changed.notify_waiters();
                }
                room.taken
            });
            if taken {
                return;
            }
            changed.await;
        }
    }
}

impl Drop for RoomGuard {
    fn drop(&mut self) {
        self.rooms.rooms().remove(&self.room);
        self.rooms.inner.changed.notify_waiters();
    }
}

/// Takes a room's KV from the prefill server whose bootstrap server this is: the tokens that were cached there. `None` if it
/// ended without.
pub(crate) async fn fetch(address: &str, room: u64, rank: Option<u64>) -> Option<usize> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let rank = rank.map_or_else(|| "-".to_owned(), |rank| rank.to_string());
    stream.write_all(format!("{room} {rank}\n").as_bytes()).await.ok()?;
    line(&mut BufReader::new(stream)).await?.parse().ok()
}

async fn line(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut line = Vec::new();
    while let Some(byte) = stream.fill_buf().await.ok()?.first().copied() {
        stream.consume(1);
        if byte == b'\n' {
            return String::from_utf8(line).ok();
        }
        line.push(byte);
        if line.len() > MOST_LINE_BYTES {
            return None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn served(dp_size: u32) -> (Rooms, String, JoinSet<()>) {
        let rooms = Rooms::new(dp_size);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut tasks = JoinSet::new();
        tasks.spawn(rooms.clone().serve(listener));
        (rooms, address, tasks)
    }

    #[tokio::test]
    async fn both_sides_of_a_room_wait_for_each_other() {
        let (rooms, address, _tasks) = served(2).await;
        let room = rooms.open(7, 1);
        let (fetched, ()) = tokio::join!(fetch(&address, 7, None), room.hand_over(48));
        assert_eq!(fetched, Some(48), "without a rank it is the room's remainder");
    }

    #[tokio::test]
    async fn who_waits_for_a_room_that_ends_is_told() {
        let rooms = Rooms::new(1);
        let room = rooms.open(7, 0);
        let mut waits = std::pin::pin!(rooms.take(7, 0));
        assert!(futures_util::poll!(&mut waits).is_pending());
        drop(room);
        assert_eq!(waits.await, None);
        let _room = rooms.open(8, 0);
        let mut other = std::pin::pin!(rooms.take(8, 1));
        assert!(futures_util::poll!(&mut other).is_pending(), "another rank's is not found");
    }
}
