//! What the data plane is told.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Bounds and habits of the data plane.
#[derive(Clone, Debug)]
pub struct DataPlaneConfig {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Largest request body, in bytes; beyond it the answer is 413.
    pub max_body_bytes: usize,
    /// Connections at once; beyond it new ones are closed and counted.
    pub max_connections: usize,
    /// Targets tried for one request, the first included.
    pub max_attempts: usize,
    /// Longest wait for a connection to a worker.
    pub connect_timeout: Duration,
    /// Longest wait for the head of a worker's answer; `None` waits for as long as the client does.
    pub head_timeout: Option<Duration>,
    /// Longest silence within a worker's answer, after its head; `None` for no bound.
    pub idle_timeout: Option<Duration>,
    /// Idle connections kept for each worker.
    pub pool_idle_per_worker: usize,
    /// How long requests in flight may take to finish at shutdown.
    pub shutdown_grace: Duration,
    /// Key that clients must send as `Authorization: Bearer …`; health routes are open.
    pub api_key: Option<Secret>,
    /// Key sent to the workers in place of the client's.
    pub worker_api_key: Option<Secret>,
}

/// A value that is compared in constant time and never printed.
#[derive(Clone)]
pub struct Secret(Arc<str>);

impl Default for DataPlaneConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 30000)),
            max_body_bytes: 256 << 20,
            max_connections: 16_384,
            max_attempts: 3,
            connect_timeout: Duration::from_secs(5),
            head_timeout: None,
            idle_timeout: Some(Duration::from_secs(600)),
            pool_idle_per_worker: 256,
            shutdown_grace: Duration::from_secs(30),
            api_key: None,
            worker_api_key: None,
        }
    }
}

impl Secret {
    /// The secret with surrounding white space removed; `None` if nothing is left.
    pub fn new(value: &str) -> Option<Self> {
        let value = value.trim();
        (!value.is_empty()).then(|| Self(value.into()))
    }

    /// Whether another value is the same, in a time that depends on the lengths alone.
    pub fn matches(&self, other: &[u8]) -> bool {
        let own = self.0.as_bytes();
        let differing = own.iter().zip(other).fold(0_u8, |differing, (a, b)| differing | (a ^ b));
        own.len() == other.len() && differing == 0
    }

    /// The value, to be sent.
    pub fn expose(&self) -> &str {
        &self.0
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
        assert!(Secret::new(" \n").is_none());
    }
}
