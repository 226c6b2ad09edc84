//! What the data plane is told.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;

use crate::admission::AdmissionConfig;
use crate::budget::RetryConfig;

/// Bounds and habits of the data plane.
#[derive(Clone, Debug)]
pub struct DataPlaneConfig {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Threads that serve clients, at least 1; each has its own connections to the workers.
    pub threads: usize,
    /// Largest request body, in bytes; beyond it the answer is 413.
    pub max_body_bytes: usize,
    /// Connections at once; beyond it new ones are closed and counted.
    pub max_connections: usize,
    /// Workers tried for one request, the first included.
    pub max_attempts: usize,
    /// Longest wait for a connection to a worker.
    pub connect_timeout: Duration,
    /// Time for a connection to send a request's head, and for one that speaks HTTP/2 and is silent to answer a ping; after it
    /// the connection is closed.
    pub header_timeout: Duration,
    /// Longest silence within a request's body; after it the answer is 408.
    pub upload_idle_timeout: Duration,
    /// Longest wait for the head of a worker's answer; `None` waits for as long as the client does.
    pub head_timeout: Option<Duration>,
    /// Longest time for all of a request, unless its header `x-request-timeout` says another; `None` for no bound. A stream that
    /// has begun is bound by its own header alone.
    pub request_timeout: Option<Duration>,
    /// How requests wait where as many are in flight as may be.
    pub admission: AdmissionConfig,
    /// What is tried again.
    pub retry: RetryConfig,
    /// OpenAI's streams are asked for usage on the behalf of clients who did not ask, and these do not see it.
    pub asks_usage: bool,
    /// Streams whose worker is lost go on at another one, where the request can be told to: `docs/fault-tolerance.md`.
    pub continue_streams: bool,
    /// Longest silence within a worker's answer, after its head; `None` for no bound.
    pub idle_timeout: Option<Duration>,
    /// Idle connections that each thread keeps for each worker.
    pub pool_idle_per_worker: usize,
    /// How long an unused connection to a worker is kept. Less than the 5 s after which uvicorn, SGLang's server, closes it: a
    /// request sent just then would be lost.
    pub pool_idle_timeout: Duration,
    /// Time after which a connection to a worker whose host has vanished, and closes nothing any more, is given up. Long answers
    /// are no matter: a host that is up acknowledges.
    pub dead_worker_timeout: Duration,
    /// How long requests in flight may take to finish at shutdown.
    pub shutdown_grace: Duration,
    /// Key that clients must send as `Authorization: Bearer …`; the routes about the router itself are open. No worker gets it
    /// unless it is the [`worker_api_key`](Self::worker_api_key) too.
    pub api_key: Option<Secret>,
    /// Key sent to the workers in place of the client's.
    pub worker_api_key: Option<Secret>,
    /// Beyond the generation of text.
    pub api: ApiConfig,
}

/// Bounds and keys of what is not a generation: control calls, questions to all workers, and what workers keep.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// Key that routes which control the engine take, and then no other; without it they take
    /// [`DataPlaneConfig::api_key`].
    pub admin_api_key: Option<Secret>,
    /// Key sent to the workers with such calls; without it [`DataPlaneConfig::worker_api_key`].
    pub worker_admin_api_key: Option<Secret>,
    /// Longest wait for one worker's answer to a control call: changing weights takes long.
    pub control_timeout: Duration,
    /// Longest wait for one worker's answer to a question that is asked of all.
    pub fleet_timeout: Duration,
    /// Sessions whose workers are remembered at most, and stored responses; the least recently used is forgotten first.
    pub max_kept_ids: usize,
    /// Time after its last use for which one is remembered.
    pub kept_id_ttl: Duration,
}

/// A value that is compared in constant time and never printed.
#[derive(Clone)]
pub struct Secret {
    value: Arc<str>,
    header: HeaderValue,
}

/// A value that cannot be a [`Secret`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretProblem {
    /// Nothing but white space: it would be an open door.
    #[error("it is empty")]
    Empty,
    /// It could not be sent.
    #[error("it has characters that cannot stand in an HTTP header")]
    Characters,
}

/// As many threads as this process can run at once.
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Default for DataPlaneConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 30000)),
            threads: available_threads(),
            max_body_bytes: 256 << 20,
            max_connections: 16_384,
            max_attempts: 3,
            connect_timeout: Duration::from_secs(5),
            head_timeout: None,
            request_timeout: None,
            admission: AdmissionConfig::default(),
            retry: RetryConfig::default(),
            asks_usage: true,
            continue_streams: false,
            idle_timeout: Some(Duration::from_secs(600)),
            header_timeout: Duration::from_secs(30),
            upload_idle_timeout: Duration::from_secs(30),
            pool_idle_per_worker: 256,
            pool_idle_timeout: Duration::from_secs(4),
            dead_worker_timeout: Duration::from_secs(30),
            shutdown_grace: Duration::from_secs(30),
            api_key: None,
            worker_api_key: None,
            api: ApiConfig::default(),
        }
    }
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            admin_api_key: None,
            worker_admin_api_key: None,
            control_timeout: Duration::from_secs(600),
            fleet_timeout: Duration::from_secs(5),
            max_kept_ids: 65_536,
            kept_id_ttl: Duration::from_secs(3600),
        }
    }
}

impl Secret {
    /// The secret with surrounding white space removed.
    pub fn new(value: &str) -> Result<Self, SecretProblem> {
        let value = value.trim();
        if value.is_empty() {
            return Err(SecretProblem::Empty);
        }
        let header = HeaderValue::try_from(format!("Bearer {value}"));
        let mut header = header.map_err(|_| SecretProblem::Characters)?;
        header.set_sensitive(true);
        Ok(Self { value: value.into(), header })
    }

    /// Whether another value is the same, in a time that depends on the lengths alone.
    pub fn matches(&self, other: &[u8]) -> bool {
        let own = self.value.as_bytes();
        let differing = own.iter().zip(other).fold(0_u8, |differing, (a, b)| differing | (a ^ b));
        own.len() == other.len() && differing == 0
    }

    /// The value of an `Authorization` header that proves it.
    pub fn as_header(&self) -> &HeaderValue {
        &self.header
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_compared_whole_and_not_shown() {
        let secret = Secret::new(" key\n").unwrap();
        assert!(secret.matches(b"key"));
        for other in ["", "ke", "kez", "keyy"] {
            assert!(!secret.matches(other.as_bytes()));
        }
        assert_eq!(format!("{secret:?}"), "Secret(…)");
        assert_eq!(secret.as_header(), "Bearer key");
        assert_eq!(Secret::new(" \n").unwrap_err(), SecretProblem::Empty);
        assert_eq!(Secret::new("a\nb").unwrap_err(), SecretProblem::Characters);
    }
}
