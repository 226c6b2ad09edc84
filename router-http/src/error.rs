//! Everything that the data plane answers by itself when it cannot answer with a worker's words: one table from error to
//! status, code and source, and the body in the shape of the API that was asked.

use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use router_core::RouteError;
use serde_json::json;

use crate::body::Body;
use crate::decode::DecodeError;
use crate::wire::chunked::ChunkError;
use crate::wire::head::HeadError;

/// Why a request was not answered by a worker.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(
        "the request body is larger than {limit} bytes; raise --max-payload-size on the router if that is intended"
    )]
    TooLarge { limit: usize },
    #[error("the request body broke off")]
    BodyBroken,
    #[error("the request's chunks are malformed: {0}")]
    Chunks(ChunkError),
    #[error("the request's head is refused: {0}")]
    Head(HeadError),
    #[error("the head of a request did not come within {seconds} s")]
    HeadSilent { seconds: u64 },
    #[error("nothing more of the request body came within {seconds} s")]
    UploadSilent { seconds: u64 },
    #[error("CONNECT is not served: requests are routed here, not tunnelled")]
    Tunnel,
    #[error("the API key is missing or wrong; send `Authorization: Bearer KEY`")]
    Unauthorized,
    #[error(
        "this route takes the admin key, and no other; send `Authorization: Bearer KEY` with what --admin-api-key is"
    )]
    NotAdmin,
    #[error("x-espalier-worker names no registered worker; /model_info lists their URLs")]
    UnknownWorker,
    #[error(
        "this call is about one worker, and there are several: name one by its URL in the header or the query parameter \
         x-espalier-worker"
    )]
    WorkerNotNamed,
    #[error(
        "the {what} is not known here: it was closed, forgotten after long disuse, or made through another router; begin a new \
         one, or name its worker with x-espalier-worker"
    )]
    StateUnknown { what: &'static str },
    #[error("the worker that had the {what} is gone, and the {what} with it; begin a new one")]
    StateLost { what: &'static str },
    #[error("{most} commands are being carried out, and no more at once; try again when some have ended")]
    TooManyCommands { most: usize },
    #[error(
        "the worker's answer is larger than {limit} bytes, the most that is read of one in an answer for many"
    )]
    AnswerTooLarge { limit: usize },
    #[error(transparent)]
    Route(#[from] RouteError),
    #[error("the worker could not be reached: {0}")]
    Unreachable(String),
    #[error("the worker closed the connection before it answered")]
    Lost,
    #[error("the worker's answer is not HTTP/1.1 as it must be: {0}")]
    Malformed(HeadError),
    #[error("x-request-timeout must be seconds, like 2.5, or have the unit ms, s or m, and be at most a day")]
    RequestTimeout,
    #[error("the answer was not there within {seconds} s, the time that the request was given")]
    Deadline { seconds: f64 },
    #[error("{waiting} requests are waiting for a worker, and no more may; try again in {retry_after_s} s")]
    QueueFull { waiting: usize, retry_after_s: u32 },
    #[error("no worker had room for it within {seconds} s; try again in {retry_after_s} s")]
    QueueTimeout { seconds: f64, retry_after_s: u32 },
    #[error("x-espalier-priority must be a whole number from -100 to 100")]
    Priority,
    #[error("{header} must name a tenant in at most 128 visible ASCII characters")]
    Tenant { header: Box<str> },
    #[error("the worker did not begin to answer within {seconds} s")]
    Slow { seconds: u64 },
}

/// Whose clients read an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Native,
    OpenAi,
    Anthropic,
    Ollama,
}

/// Who has to do something about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Client,
    Router,
    Worker,
}

/// A failure as clients and metrics see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Verdict {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) source: Source,
    /// Seconds after which trying again may help.
    pub(crate) retry_after_s: Option<u32>,
}

impl Shape {
    /// The shape that clients of a path understand.
    pub(crate) fn of(path: &str) -> Self {
        match path {
            path if path.starts_with("/v1/messages") => Self::Anthropic,
            path if path.starts_with("/v1/") => Self::OpenAi,
            path if path.starts_with("/api/") => Self::Ollama,
            _ => Self::Native,
        }
    }
}

impl Failure {
    /// The table.
    pub(crate) fn verdict(&self) -> Verdict {
        use Source::{Client, Router, Worker};
        let (status, code, source, retry_after_s) = match self {
            Self::Decode(DecodeError::Malformed { .. }) => (400, "malformed_json", Client, None),
            Self::Decode(_) => (400, "invalid_field", Client, None),
            Self::TooLarge { .. } => (413, "body_too_large", Client, None),
            Self::BodyBroken => (400, "body_broken", Client, None),
            Self::Chunks(_) => (400, "malformed_chunks", Client, None),
            Self::Head(error) => {
                let (status, code) = error.verdict();
                (status, code, Client, None)
            }
            Self::HeadSilent { .. } => (408, "head_timeout", Client, None),
            Self::UploadSilent { .. } => (408, "body_timeout", Client, None),
            Self::Tunnel => (405, "connect_not_served", Client, None),
            Self::Unauthorized => (401, "invalid_api_key", Client, None),
            Self::NotAdmin => (401, "invalid_admin_api_key", Client, None),
            Self::UnknownWorker => (404, "unknown_worker", Client, None),
            Self::WorkerNotNamed => (400, "worker_not_named", Client, None),
            Self::StateUnknown { .. } => (404, "state_unknown", Client, None),
            // Trying again brings nothing back: a client must not do that by itself, as it would after a 5xx.
            Self::StateLost { .. } => (410, "state_lost", Worker, None),
            Self::TooManyCommands { .. } => (503, "too_many_commands", Router, Some(1)),
            Self::AnswerTooLarge { .. } => (502, "answer_too_large", Worker, None),
            // It was there when it was named.
            Self::Route(RouteError::UnknownWorker(_)) => (410, "worker_gone", Worker, None),
            Self::Route(RouteError::UnknownModel { .. }) => (404, "model_not_found", Client, None),
            Self::Route(RouteError::UnknownRank { .. }) => (400, "unknown_dp_rank", Client, None),
            Self::Route(RouteError::NoWorkers) => (503, "no_workers", Router, Some(1)),
            Self::Route(RouteError::NoneReady { .. }) => (503, "no_worker_ready", Router, Some(1)),
            Self::Route(RouteError::PoolEmpty { .. }) => (503, "pool_empty", Router, Some(1)),
            Self::Route(RouteError::AllTried) => (502, "workers_failed", Worker, Some(1)),
            // Nobody waits for a control call; everybody else did, or was told so.
            Self::Route(RouteError::AtBound) => (503, "no_room", Router, Some(1)),
            Self::QueueFull { retry_after_s, .. } => (429, "queue_full", Router, Some(*retry_after_s)),
            Self::QueueTimeout { retry_after_s, .. } => (503, "queue_timeout", Router, Some(*retry_after_s)),
            Self::Priority => (400, "invalid_priority", Client, None),
            Self::Tenant { .. } => (400, "invalid_tenant", Client, None),
            Self::Unreachable(_) => (502, "worker_unreachable", Worker, Some(1)),
            Self::Lost => (502, "worker_lost", Worker, None),
            Self::Malformed(_) => (502, "worker_malformed", Worker, None),
            Self::RequestTimeout => (400, "invalid_request_timeout", Client, None),
            Self::Deadline { .. } => (504, "deadline_exceeded", Worker, None),
            Self::Slow { .. } => (504, "worker_timeout", Worker, None),
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Verdict { status, code, source, retry_after_s }
    }

    /// The answer, in the shape of the API that was asked.
    pub(crate) fn response(&self, shape: Shape) -> Response<Body> {
        let verdict = self.verdict();
        let message = self.to_string();
        let (code, source) = (verdict.code, verdict.source.name());
        let client = verdict.source == Source::Client;
        let body = match shape {
            Shape::OpenAi => {
                let kind = if client { "invalid_request_error" } else { "server_error" };
                json!({"error": {"message": message, "type": kind, "param": null, "code": code, "source": source}})
            }
            Shape::Anthropic => {
                let kind = if client { "invalid_request_error" } else { "api_error" };
                let error = json!({"type": kind, "message": message, "code": code, "source": source});
                json!({"type": "error", "error": error})
            }
            Shape::Ollama => json!({"error": message, "code": code, "source": source}),
            Shape::Native => json!({"error": {"message": message, "code": code, "source": source}}),
        };
        let mut response = Response::new(Body::own(Full::from(body.to_string())));
        *response.status_mut() = verdict.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert("x-espalier-error-source", HeaderValue::from_static(source));
        if verdict.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(header::ALLOW, HeaderValue::from_static(crate::own::ALLOWED));
        }
        if let Some(seconds) = verdict.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl Source {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Router => "router",
            Self::Worker => "worker",
        }
    }
}
