//! Serves the metrics at `/metrics`, in Prometheus' text format.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// A metrics port that listens.
#[derive(Debug)]
pub(crate) struct Exporter {
    listener: TcpListener,
    registry: Arc<Registry>,
}

/// The metrics port cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen for metrics on {address}: {source}; choose another --prometheus-host or --prometheus-port"
)]
pub struct ExporterError {
    address: String,
    source: std::io::Error,
}

/// Scrapes at once; one is the rule.
const MOST_CONNECTIONS: usize = 32;

impl Exporter {
    pub(crate) async fn bind(host: &str, port: u16, registry: Registry) -> Result<Self, ExporterError> {
        let bound = TcpListener::bind((host, port)).await;
        let listener = bound.map_err(|source| ExporterError { address: format!("{host}:{port}"), source })?;
        Ok(Self { listener, registry: Arc::new(registry) })
    }

    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Serves until it is dropped.
    pub(crate) async fn serve(self) {
        let mut connections = JoinSet::new();
        loop {
            if connections.len() >= MOST_CONNECTIONS {
                connections.join_next().await;
            }
            let Ok((stream, _)) = self.listener.accept().await else { continue };
            while connections.try_join_next().is_some() {}
            let registry = self.registry.clone();
            connections.spawn(async move {
                let answer = service_fn(move |request| {
                    let answer = answer(&registry, &request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                let http = auto::Builder::new(TokioExecutor::new());
                let _ = http.serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    }
}

fn answer(registry: &Registry, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let mut text = String::new();
    let status = match request.uri().path() {
        "/metrics" if encode(&mut text, registry).is_ok() => StatusCode::OK,
        "/metrics" => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::NOT_FOUND,
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let format = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, format);
    response
}
