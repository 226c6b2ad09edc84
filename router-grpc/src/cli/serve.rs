//! `serve`: a router until it is told to stop.

use std::io::{self, Write as _};
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use super::complain;
use crate::config::RouterConfig;
use crate::{init_telemetry, start};

pub(super) async fn run(config: RouterConfig, notes: &[&str]) -> ExitCode {
    let telemetry = match init_telemetry(&config.log_level, config.log_json) {
        Ok(telemetry) => telemetry,
        Err(error) => return complain(&error.to_string()),
    };
    for note in notes {
        tracing::warn!("{note}");
    }
    let router = match start(config).await {
        Ok(router) => router,
        Err(error) => return complain(&error.to_string()),
    };
    let metrics =
        router.prometheus_addr().map(|address| format!("http://{address}/metrics")).unwrap_or_default();
    let (http, grpc) = (router.http_addr(), router.grpc_addr());
    // For people and for scripts that wait for it; everything else goes to the log.
    let _ = writeln!(io::stdout().lock(), "clients http://{http}  grpc http://{grpc}  metrics {metrics}");
    // A writer that dies does not end this: requests are served on, and `/liveness` and the health service tell whoever restarts.
    told_to_stop().await;
    tracing::info!("stopping: requests in flight may finish");
    router.shutdown().await;
    drop(telemetry);
    ExitCode::SUCCESS
}

/// SIGTERM, or Ctrl-C.
async fn told_to_stop() {
    let terminate = async {
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => drop(terminate.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = terminate => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
