//! `serve`: a router until it is told to stop.

use std::io::{self, Write as _};
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use super::complain;
use crate::config::RouterConfig;
use crate::{init_telemetry, start};

pub(super) async fn run(config: RouterConfig) -> ExitCode {
    let telemetry = match init_telemetry(&config.log_level, config.log_json) {
        Ok(telemetry) => telemetry,
        Err(error) => return complain(&error.to_string()),
    };
    let router = match start(config).await {
        Ok(router) => router,
        Err(error) => return complain(&error.to_string()),
    };
    let metrics =
        router.prometheus_addr().map(|address| format!("http://{address}/metrics")).unwrap_or_default();
    let (http, grpc) = (router.http_addr(), router.grpc_addr());
    // For people and for scripts that wait for it; everything else goes to the log.
    let _ = writeln!(io::stdout().lock(), "clients http://{http}  grpc http://{grpc}  metrics {metrics}");
    let code = tokio::select! {
        () = told_to_stop() => ExitCode::SUCCESS,
        () = router.failed() => complain("the writer has died; see the log. Restart the router"),
    };
    tracing::info!("stopping: requests in flight may finish");
    router.shutdown().await;
    drop(telemetry);
    code
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
