//! The engine's load: frames where it publishes them, polls where it does not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use zeromq::{Socket, SocketRecv, SubSocket};

use super::client::EngineClient;
use super::life::Life;
use super::probe::EventSource;
use super::subscriber::{Backoff, options};
use crate::events::LoadStat;

/// A load and when it was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoadReading {
    pub(crate) stat: LoadStat,
    pub(crate) at: Instant,
    /// From a frame, not from a poll.
    pub(crate) published: bool,
}

/// Frames come at least once a second; older ones mean that the socket is gone.
const FRAME_LIFETIME: Duration = Duration::from_millis(2500);

/// Follows the load frames of one rank until its life is over.
pub(crate) async fn follow(life: Arc<Life>, rank: usize, source: EventSource) {
    let mut backoff = Backoff::default();
    loop {
        tokio::select! {
            () = life.over.cancelled() => return,
            error = receive(&life, rank, &source, &mut backoff) => {
                tracing::debug!(rank, %error, "load frames ended; connecting again");
            }
        }
        tokio::select! {
            () = life.over.cancelled() => return,
            () = backoff.wait() => {}
        }
    }
}

async fn receive(life: &Life, rank: usize, source: &EventSource, backoff: &mut Backoff) -> zeromq::ZmqError {
    let mut socket = SubSocket::with_options(options());
    if let Err(error) = socket.subscribe(&source.topic).await {
        return error;
    }
    if let Err(error) = socket.connect(&source.endpoint).await {
        return error;
    }
    loop {
        // A silent socket is rebuilt: the crate's own reconnects back off further than suits a restarted engine.
        let message = match tokio::time::timeout(FRAME_LIFETIME * 4, socket.recv()).await {
            Ok(Ok(message)) => message,
            Ok(Err(error)) => return error,
            Err(_) => return zeromq::ZmqError::NoMessage,
        };
        let payload = message.iter().last().map(AsRef::as_ref).unwrap_or_default();
        match LoadStat::decode(payload) {
            Ok(stat) => {
                backoff.reset();
                life.ranks[rank].set_load(LoadReading { stat, at: Instant::now(), published: true });
            }
            Err(error) => tracing::warn!(rank, %error, "a load frame cannot be decoded"),
        }
    }
}

/// Polls the load of all ranks whose frames do not come, until the life is over.
pub(crate) async fn poll(life: Arc<Life>, client: EngineClient, interval: Duration) {
    let mut timer = tokio::time::interval(interval);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = life.over.cancelled() => return,
            _ = timer.tick() => {}
        }
        let stale = |reading: LoadReading| !reading.published || reading.at.elapsed() > FRAME_LIFETIME;
        if !life.ranks.iter().any(|rank| rank.load().is_none_or(stale)) {
            continue;
        }
        let answer = tokio::select! {
            () = life.over.cancelled() => return,
            answer = client.json("/v1/loads?include=core") => answer,
        };
        match answer {
            Ok(answer) => {
                for (rank, stat) in read_loads(&answer) {
                    let Some(state) = life.ranks.get(rank) else { continue };
                    if state.load().is_none_or(stale) {
                        state.set_load(LoadReading { stat, at: Instant::now(), published: false });
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "the engine's load cannot be read"),
        }
    }
}

/// The ranks and loads in an answer of `/v1/loads`.
fn read_loads(answer: &Value) -> Vec<(usize, LoadStat)> {
    let loads = answer.get("loads").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let read = |load: &Value| {
        let count = |name| load.get(name).and_then(Value::as_u64);
        let small = |name| count(name).map(|count| u32::try_from(count).unwrap_or(u32::MAX));
        let rank = small("dp_rank").unwrap_or(0);
        let stat = LoadStat {
            running_requests: small("num_running_reqs")?,
            waiting_requests: small("num_waiting_reqs").unwrap_or(0),
            used_tokens: count("num_used_tokens").unwrap_or(0),
            capacity_tokens: count("max_total_num_tokens").unwrap_or(0),
            rank: Some(rank),
            waiting_uncached_tokens: count("num_waiting_uncached_tokens"),
            total_tokens: count("num_total_tokens"),
            max_running_requests: small("max_running_requests"),
            prefill_tokens_total: count("total_prefill_uncached_tokens"),
            prefill_busy_us_total: count("total_prefill_busy_us"),
        };
        Some((rank as usize, stat))
    };
    loads.iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polled_loads_are_read_by_rank() {
        let answer = serde_json::json!({"loads": [
            {"dp_rank": 1, "num_running_reqs": 3, "num_used_tokens": 240, "total_prefill_busy_us": 7},
            {"dp_rank": 0},
        ]});
        let loads = read_loads(&answer);
        assert_eq!(loads.len(), 1, "an entry without running requests says nothing");
        let (rank, stat) = loads[0];
        assert_eq!((rank, stat.running_requests, stat.used_tokens), (1, 3, 240));
        assert_eq!(stat.prefill_busy_us_total, Some(7));
        assert!(read_loads(&serde_json::json!({})).is_empty());
    }
}
