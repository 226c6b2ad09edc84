//! The two sides of a disaggregated generation: what each waits for, and how it fails.

use std::time::Duration;

use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::request::{Api, BadRequest, Bootstrap, Parsed};
use super::{Body, Server};
use crate::config::DisaggregationMode;
use crate::engine::Running;
use crate::scheduler::{Job, Produced};
use crate::transfer::{RoomGuard, fetch};

/// What this server does of a generation.
pub(super) enum Half {
    /// All of it.
    Whole(Running),
    /// The prompt, whose KV is handed over before the answer ends.
    Prefill { running: Running, guard: RoomGuard, room: u64 },
    /// The output, once the KV is here.
    Decode(Box<Decoding>),
}

/// See [`Half::Decode`].
pub(super) struct Decoding {
    address: String,
    room: u64,
    prefill_rank: Option<u64>,
    dp_rank: usize,
    /// Until the KV is here.
    job: Option<Job>,
    /// From then on.
    running: Option<Running>,
    cached_tokens: usize,
}

/// KV that did not come, or was not asked for.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(super) enum TransferError {
    #[error(
        "KVTransferError(bootstrap_room={room}): Request {room} timed out after {:.1}s in KVPoll.{state}",
        after.as_secs_f64()
    )]
    TimedOut { room: u64, after: Duration, state: &'static str },
    #[error("KVTransferError(bootstrap_room={room}): lost connection with the prefill instance")]
    Lost { room: u64 },
}

impl Server {
    /// Whether a request names what this server's mode needs.
    pub(super) fn check_bootstrap(&self, parsed: &Parsed) -> Result<(), BadRequest> {
        let mode = self.inner.config.disaggregation_mode;
        if mode == DisaggregationMode::Null {
            return Ok(());
        }
        for index in 0..parsed.prompts.len() {
            if parsed.bootstrap.room(index).is_none() {
                return Err(BadRequest::new(
                    "Invalid request: Disaggregated request received without bootstrap room id.",
                ));
            }
            if mode == DisaggregationMode::Decode && parsed.bootstrap.address(index).is_none() {
                return Err(BadRequest::new(
                    "Disaggregated request received without bootstrap host and port.",
                ));
            }
        }
        Ok(())
    }

    /// The rank that a room belongs to where nothing else names one.
    pub(super) fn rank_of_room(&self, bootstrap: &Bootstrap, index: usize) -> Option<usize> {
        let prefill = self.inner.config.disaggregation_mode == DisaggregationMode::Prefill;
        let room = bootstrap.room(index).filter(|_| prefill)?;
        Some((room % self.inner.ranks.len() as u64) as usize)
    }

    /// Begins this server's part of a job; `None` if the rank is gone.
    pub(super) async fn half(
        &self,
        bootstrap: &Bootstrap,
        index: usize,
        dp_rank: usize,
        job: Job,
    ) -> Option<Half> {
        let rank = &self.inner.ranks[dp_rank];
        let room = bootstrap.room(index).unwrap_or_default();
        Some(match self.inner.config.disaggregation_mode {
            DisaggregationMode::Null => Half::Whole(rank.submit(job).await?),
            DisaggregationMode::Prefill => {
                let guard = self.inner.rooms.open(room, dp_rank);
                // One token: the one that the prompt's last position gives.
                let running = rank.submit(Job { output_tokens: 1, ..job }).await?;
                Half::Prefill { running, guard, room }
            }
            DisaggregationMode::Decode => Half::Decode(Box::new(Decoding {
                address: bootstrap.address(index).unwrap_or_default(),
                room,
                prefill_rank: bootstrap.disagg_prefill_dp_rank,
                dp_rank,
                job: Some(Job { received: true, ..job }),
                running: None,
                cached_tokens: 0,
            })),
        })
    }

    fn patience(&self) -> Duration {
        Duration::from_secs_f64(self.inner.config.disaggregation_timeout)
    }
}

impl Half {
    /// The next token; `None` if it was aborted. The error is what the client is told.
    pub(super) async fn next(&mut self, server: &Server) -> Result<Option<Produced>, TransferError> {
        match self {
            Self::Whole(running) => Ok(next(running).await),
            Self::Prefill { running, guard, room } => {
                let Some(produced) = next(running).await else { return Ok(None) };
                let handed_over = guard.hand_over(produced.cached_tokens);
                tokio::time::timeout(server.patience(), handed_over)
                    .await
                    .map_err(|_| timed_out(*room, server, "Bootstrapping"))?;
                Ok(Some(produced))
            }
            Self::Decode(decoding) => decoding.next(server).await,
        }
    }

    /// What the prefill side had cached, at a decode side.
    pub(super) fn cached_elsewhere(&self) -> Option<usize> {
        match self {
            Self::Decode(decoding) => Some(decoding.cached_tokens),
            Self::Whole(_) | Self::Prefill { .. } => None,
        }
    }
}

impl Decoding {
    async fn next(&mut self, server: &Server) -> Result<Option<Produced>, TransferError> {
        if let Some(job) = self.job.take() {
            let fetched = fetch(&self.address, self.room, self.prefill_rank);
            let fetched = tokio::time::timeout(server.patience(), fetched).await;
            let fetched = fetched.map_err(|_| timed_out(self.room, server, "WaitingForInput"))?;
            self.cached_tokens = fetched.ok_or(TransferError::Lost { room: self.room })?;
            self.running = server.inner.ranks[self.dp_rank].submit(job).await;
        }
        match &mut self.running {
            Some(running) => Ok(next(running).await),
            None => Ok(None),
        }
    }
}

async fn next(running: &mut Running) -> Option<Produced> {
    match running.ready() {
        Some(produced) => Some(produced),
        None => running.next().await,
    }
}

fn timed_out(room: u64, server: &Server, state: &'static str) -> TransferError {
    TransferError::TimedOut { room, after: server.patience(), state }
}

/// How a stream says that it failed.
pub(super) fn error_event(failure: TransferError) -> Value {
    json!({"error": {"message": failure.to_string(), "type": "InternalServerError", "code": 500, "retryable": false}})
}

impl Api {
    /// A failure of the server in this API's shape.
    pub(super) fn fail(self, failure: TransferError) -> Response<Body> {
        let message = failure.to_string();
        let body = match self {
            Self::Generate => json!({"error": {"message": message}}),
            Self::Completions | Self::Chat => json!({
                "object": "error", "message": message, "type": "InternalServerError", "param": null, "code": 500,
            }),
        };
        super::json(StatusCode::INTERNAL_SERVER_ERROR, &body)
    }
}
