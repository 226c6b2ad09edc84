//! Routes that control the engine, as far as something of them can be seen.

use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{Body, Server};

/// Acknowledged, and without any effect here.
pub(super) const ACKNOWLEDGED: [&str; 6] =
    ["/start_profile", "/stop_profile", "/configure_logging", "/slow_down", "/freeze_gc", "/set_trace_level"];

/// Whether a route takes the admin key, where there is one.
pub(super) fn is_admins(path: &str) -> bool {
    let others = ["/flush_cache", "/abort_request", "/pause_generation", "/continue_generation"];
    ACKNOWLEDGED.contains(&path) || others.contains(&path) || path == "/update_weights_from_disk"
}

impl Server {
    /// Takes over a version, and empties the cache. A path with `missing` in it is one that cannot be loaded: nothing changes.
    pub(super) async fn update_weights(&self, body: &[u8]) -> Response<Body> {
        let asked: Value = serde_json::from_slice(body).unwrap_or_default();
        let answer = |status, message: &str| {
            let success = status == StatusCode::OK;
            let value = json!({"success": success, "message": message, "num_paused_requests": 0});
            super::json(status, &value)
        };
        match asked["model_path"].as_str() {
            None => answer(StatusCode::BAD_REQUEST, "model_path is required"),
            Some(path) if path.contains("missing") => {
                answer(StatusCode::BAD_REQUEST, "Failed to update weights: the path cannot be loaded.")
            }
            Some(_) => {
                if asked["flush_cache"].as_bool().unwrap_or(true) {
                    for rank in &self.inner.ranks {
                        rank.flush().await;
                    }
                }
                if let Some(version) = asked["weight_version"].as_str() {
                    *self.inner.weight_version.lock().expect("no holder panics") = version.to_owned();
                }
                answer(StatusCode::OK, "Succeeded to update model weights.")
            }
        }
    }

    pub(super) fn weight_version(&self) -> String {
        self.inner.weight_version.lock().expect("no holder panics").clone()
    }
}
