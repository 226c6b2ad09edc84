//! HTTP requests to the engine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use url::Url;

use super::probe::EngineInfo;
use crate::config::Settings;

/// Most bytes of an answer that are read; `/server_info` of 0.5.23 has about 40 KB.
const MAX_ANSWER_BYTES: usize = 8 << 20;

/// A request to the engine that brought nothing usable.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A key file cannot be read.
    #[error("cannot read the key file {}: {source}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The key cannot stand in a header.
    #[error("the key in {} has characters that an HTTP header cannot carry", path.display())]
    KeyCharacters {
        /// The file.
        path: PathBuf,
    },
    /// The engine did not answer.
    #[error("{path}: {source}")]
    Unreachable {
        /// Path of the request.
        path: String,
        /// What the connection said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The engine took too long.
    #[error("{path}: no answer within {timeout:?}")]
    Timeout {
        /// Path of the request.
        path: String,
        /// How long was waited.
        timeout: Duration,
    },
    /// The engine refused.
    #[error("{path}: the engine answered {status}{}", if *status == StatusCode::UNAUTHORIZED {
        " (give its key with --api-key-file)" } else { "" })]
    Status {
        /// Path of the request.
        path: String,
        /// What it answered.
        status: StatusCode,
    },
    /// The answer is not the JSON document it should be.
    #[error("{path}: the answer cannot be used: {problem}")]
    Answer {
        /// Path of the request.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// Talks to one engine. Cloning shares the connections.
#[derive(Clone, Debug)]
pub(crate) struct EngineClient {
    client: Client<HttpConnector, Empty<Bytes>>,
    base: Url,
    api_key_file: Option<PathBuf>,
    admin_api_key_file: Option<PathBuf>,
    timeout: Duration,
}

impl EngineClient {
    pub(crate) fn new(settings: &Settings) -> Self {
        let config = &settings.config;
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(config.engine_timeout));
        connector.set_nodelay(true);
        Self {
            client: Client::builder(TokioExecutor::new()).pool_max_idle_per_host(2).build(connector),
            base: settings.engine.clone(),
            api_key_file: config.api_key_file.clone(),
            admin_api_key_file: config.admin_api_key_file.clone(),
            timeout: config.engine_timeout,
        }
    }

    /// The host under which this agent reaches the engine.
    pub(crate) fn host(&self) -> &str {
        self.base.host_str().unwrap_or("127.0.0.1")
    }

    /// Status of a GET with the API key, and with the admin key where that one is refused.
    pub(crate) async fn get(&self, path: &str) -> Result<(StatusCode, Bytes), EngineError> {
        let first = self.get_with(path, self.api_key_file.as_deref()).await?;
        let refused = matches!(first.0, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        match &self.admin_api_key_file {
            Some(admin) if refused => self.get_with(path, Some(admin)).await,
            _ => Ok(first),
        }
    }

    /// The JSON document at `path`.
    pub(crate) async fn json(&self, path: &str) -> Result<serde_json::Value, EngineError> {
        let (status, body) = self.get(path).await?;
        if !status.is_success() {
            return Err(EngineError::Status { path: path.to_owned(), status });
        }
        serde_json::from_slice(&body)
            .map_err(|_| EngineError::Answer { path: path.to_owned(), problem: "it is not JSON" })
    }

    /// What the engine says about itself.
    pub(crate) async fn info(&self) -> Result<EngineInfo, EngineError> {
        let answer = match self.json("/server_info").await {
            Err(EngineError::Status { status: StatusCode::NOT_FOUND, .. }) => {
                self.json("/get_server_info").await?
            }
            other => other?,
        };
        EngineInfo::read(&answer, self.host())
            .ok_or(EngineError::Answer { path: "/server_info".to_owned(), problem: "it names no page size" })
    }

    async fn get_with(&self, path: &str, key: Option<&Path>) -> Result<(StatusCode, Bytes), EngineError> {
        let unreachable = |source| EngineError::Unreachable { path: path.to_owned(), source };
        let uri = format!("{}{path}", self.base.as_str().trim_end_matches('/'));
        let mut request = Request::get(uri);
        if let Some(key) = key {
            request = request.header(header::AUTHORIZATION, bearer(key)?);
        }
        let request = request.body(Empty::new()).map_err(|error| unreachable(error.into()))?;
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| unreachable(error.into()))?;
            let status = response.status();
            let body =
                Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await.map_err(unreachable)?;
            Ok((status, body.to_bytes()))
        };
        let late = |_| EngineError::Timeout { path: path.to_owned(), timeout: self.timeout };
        tokio::time::timeout(self.timeout, exchange).await.map_err(late)?
    }
}

/// The value of an `authorization` header with the secret from a file.
pub(crate) fn bearer(path: &Path) -> Result<http::HeaderValue, EngineError> {
    let secret =
        std::fs::read_to_string(path).map_err(|source| EngineError::Key { path: path.to_owned(), source })?;
    let mut value = http::HeaderValue::from_str(&format!("Bearer {}", secret.trim()))
        .map_err(|_| EngineError::KeyCharacters { path: path.to_owned() })?;
    value.set_sensitive(true);
    Ok(value)
}
