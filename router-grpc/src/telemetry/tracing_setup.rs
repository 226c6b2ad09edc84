//! Logs to standard error; traces by OTLP where the standard `OTEL_*` variables ask for it.
//!
//! A thread of its own writes the lines: whoever reads standard error slowly must not slow down requests. What finds its buffer
//! full is dropped and counted.

use std::io;
use std::sync::OnceLock;

use opentelemetry::global;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Subscriber;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{EnvFilter, LevelFilter, ParseError};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

/// Logging and tracing in force. Dropping it sends what is left.
#[derive(Debug)]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
    /// Writes what is left when it is dropped.
    _log: WorkerGuard,
}

/// Lines that may wait to be written.
const LINES_WAITING: usize = 1 << 16;

/// Counts lines that found the buffer full. There is one log in a process.
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// Lines of the log that were dropped because standard error did not take them fast enough.
pub(crate) fn dropped_lines() -> u64 {
    DROPPED.get().map_or(0, |dropped| dropped.dropped_lines() as u64)
}

/// Telemetry that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not in the syntax of RUST_LOG.
    #[error("--log-level {filter}: {source}; write it like info, or warn,router_http=debug")]
    Filter {
        /// What was given.
        filter: String,
        /// Why.
        source: ParseError,
    },
    /// The exporter cannot be built.
    #[error("traces cannot be exported as the OTEL_* variables ask: {0}")]
    Exporter(#[from] ExporterBuildError),
    /// Only OTLP over gRPC is built in.
    #[error(
        "{variable}={value}: only grpc is spoken; leave it out or set it to grpc, and name the collector's gRPC port"
    )]
    Protocol {
        /// The variable.
        variable: &'static str,
        /// What it says.
        value: String,
    },
    /// Something else has set up logging.
    #[error("logging is set up already: {0}")]
    Twice(#[from] TryInitError),
}

/// Variables that ask for traces to be exported.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];

/// Variables that say how; the more specific one first, as it wins.
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];

/// Sets up logging with a filter in the syntax of RUST_LOG, and traces if the environment asks for them.
pub fn init(filter: &str, json: bool) -> Result<Telemetry, TelemetryError> {
    let parsed = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).parse(filter);
    let filter = parsed.map_err(|source| TelemetryError::Filter { filter: filter.to_owned(), source })?;
    let provider = provider(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))?;
    let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_WAITING);
    let (log, guard) = builder.thread_name("log").finish(io::stderr());
    let dropped = log.error_counter();
    subscriber(filter, json, log, provider.as_ref()).try_init()?;
    DROPPED.get_or_init(|| dropped);
    Ok(Telemetry { provider, _log: guard })
}

/// What is logged is a matter of the filter; what is exported is not: a quiet log must not lose the traces.
fn subscriber<W>(
    filter: EnvFilter,
    json: bool,
    writer: W,
    provider: Option<&SdkTracerProvider>,
) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let plain = tracing_subscriber::fmt::layer().with_writer(writer);
    let logs = if json { plain.json().boxed() } else { plain.boxed() };
    let traces = provider.map(|provider| {
        tracing_opentelemetry::layer().with_tracer(provider.tracer("espalier")).with_filter(LevelFilter::INFO)
    });
    tracing_subscriber::registry().with(logs.with_filter(filter)).with(traces)
}

/// Where spans go, if the environment asks for them to go anywhere.
fn provider(variable: impl Fn(&str) -> Option<String>) -> Result<Option<SdkTracerProvider>, TelemetryError> {
    if ENDPOINTS.iter().all(|name| variable(name).is_none()) {
        return Ok(None);
    }
    check_protocol(&variable)?;
    let exporter = SpanExporter::builder().with_tonic().build()?;
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource(variable("OTEL_SERVICE_NAME").is_some()))
        .build();
    global::set_text_map_propagator(TraceContextPropagator::new());
    Ok(Some(provider))
}

fn check_protocol(variable: impl Fn(&str) -> Option<String>) -> Result<(), TelemetryError> {
    let said = PROTOCOLS.into_iter().find_map(|name| Some((name, variable(name)?)));
    match said {
        Some((variable, value)) if value != "grpc" => Err(TelemetryError::Protocol { variable, value }),
        _ => Ok(()),
    }
}

/// Who exports. `named`: OTEL_SERVICE_NAME says so, which the builder reads by itself.
fn resource(named: bool) -> Resource {
    let resource = Resource::builder();
    if named { resource.build() } else { resource.with_service_name("espalier").build() }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(provider) = &self.provider {
            // At the end of the process there is nobody left to tell.
            let _ = provider.shutdown();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};

    use super::*;

    /// Counts the spans that would be exported.
    #[derive(Clone, Debug, Default)]
    struct Count(Arc<AtomicUsize>);

    impl SpanProcessor for Count {
        fn on_start(&self, _: &mut Span, _: &opentelemetry::Context) {}

        fn on_end(&self, _: SpanData) {
            self.0.fetch_add(1, Relaxed);
        }

        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }

        fn shutdown_with_timeout(&self, _: std::time::Duration) -> OTelSdkResult {
            Ok(())
        }
    }

    #[test]
    fn a_quiet_log_does_not_lose_the_traces() {
        let count = Count::default();
        let provider = SdkTracerProvider::builder().with_span_processor(count.clone()).build();
        let log = tempfile::NamedTempFile::new().unwrap();
        let writer = Arc::new(log.reopen().unwrap());
        let subscriber = subscriber(EnvFilter::new("warn"), false, writer, Some(&provider));
        tracing::subscriber::with_default(subscriber, || {
            tracing::info_span!("request").in_scope(|| tracing::info!("not worth a line"));
            tracing::debug_span!("detail").in_scope(|| tracing::warn!("worth a line"));
        });
        assert_eq!(count.0.load(Relaxed), 1);
        let log = std::fs::read_to_string(log.path()).unwrap();
        assert!(log.contains("worth a line") && !log.contains("not worth"), "{log}");
    }

    #[test]
    fn the_more_specific_protocol_wins_and_must_be_grpc() {
        let check = |said: &[(&str, &str)]| {
            check_protocol(|name| {
                said.iter().find(|(variable, _)| *variable == name).map(|(_, value)| (*value).to_owned())
            })
        };
        assert!(check(&[]).is_ok());
        assert!(check(&[(PROTOCOLS[1], "http/protobuf"), (PROTOCOLS[0], "grpc")]).is_ok());
        let error = check(&[(PROTOCOLS[1], "http/protobuf")]).unwrap_err().to_string();
        assert!(
            error.contains("OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf") && error.contains("grpc"),
            "{error}"
        );
    }

    #[test]
    fn a_service_name_of_the_environment_is_not_overwritten() {
        let name = |resource: Resource| {
            resource.get(&opentelemetry::Key::from_static_str("service.name")).map(|name| name.to_string())
        };
        assert_eq!(name(resource(false)).as_deref(), Some("espalier"));
        assert_ne!(name(resource(true)).as_deref(), Some("espalier"));
    }
}
