//! Sessions: what one rank's requests have said and been answered, put before what the next one says.

use std::collections::HashMap;
use std::sync::Mutex;

use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::request::{Api, BadRequest, Parsed};
use super::{Body, Server};

/// Open sessions by id, each with the tokens of its history.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<HashMap<String, Vec<u32>>>);

impl Server {
    /// Answers with the id as a JSON string.
    pub(super) fn open_session(&self, body: &[u8]) -> Response<Body> {
        let asked: Value = serde_json::from_slice(body).unwrap_or_default();
        let id = asked["session_id"].as_str().map_or_else(super::unique_id, str::to_owned);
        let mut sessions = self.inner.sessions.0.lock().expect("no holder panics");
        if sessions.contains_key(&id) {
            let still = "Failed to open the session. Check if a session with the same id is still open.";
            return Api::Generate.refuse(&BadRequest::new(still));
        }
        sessions.insert(id.clone(), Vec::new());
        super::json(StatusCode::OK, &json!(id))
    }

    pub(super) fn close_session(&self, body: &[u8]) -> Response<Body> {
        let asked: Value = serde_json::from_slice(body).unwrap_or_default();
        let id = asked["session_id"].as_str().unwrap_or_default();
        self.inner.sessions.0.lock().expect("no holder panics").remove(id);
        super::text(StatusCode::OK, "")
    }

    /// Puts a session's history before the prompt.
    pub(super) fn with_history(&self, mut parsed: Parsed) -> Result<Parsed, BadRequest> {
        let Some(session) = &parsed.session else { return Ok(parsed) };
        let sessions = self.inner.sessions.0.lock().expect("no holder panics");
        let Some(history) = sessions.get(session) else {
            return Err(BadRequest::new(format!("Invalid request: session id {session} does not exist")));
        };
        let prompt =
            parsed.prompts.first_mut().ok_or_else(|| BadRequest::new("the prompt must not be empty"))?;
        prompt.splice(0..0, history.iter().copied());
        Ok(parsed)
    }

    /// Adds to a session's history.
    pub(super) fn remember(&self, session: &str, prompt: Vec<u32>, output: &[u32]) {
        let mut sessions = self.inner.sessions.0.lock().expect("no holder panics");
        if let Some(history) = sessions.get_mut(session) {
            *history = prompt;
            history.extend_from_slice(output);
        }
    }
}
