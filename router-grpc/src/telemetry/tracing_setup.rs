//! Logs to standard error; traces by OTLP where the standard `OTEL_*` variables ask for it.

use std::io;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::{EnvFilter, LevelFilter, ParseError};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

/// Logging and tracing in force. Dropping it sends what is left.
#[derive(Debug)]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
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
    /// Something else has set up logging.
    #[error("logging is set up already: {0}")]
    Twice(#[from] TryInitError),
}

/// Variables that ask for traces to be exported.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];

/// Sets up logging with a filter in the syntax of RUST_LOG, and traces if the environment asks for them.
pub fn init(filter: &str, json: bool) -> Result<Telemetry, TelemetryError> {
    let parsed = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).parse(filter);
    let filter = parsed.map_err(|source| TelemetryError::Filter { filter: filter.to_owned(), source })?;
    let plain = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let logs = if json { plain.json().boxed() } else { plain.boxed() };
    let provider = provider()?;
    let traces = provider
        .as_ref()
        .map(|provider| tracing_opentelemetry::layer().with_tracer(provider.tracer("espalier")));
    tracing_subscriber::registry().with(filter).with(logs).with(traces).try_init()?;
    Ok(Telemetry { provider })
}

fn provider() -> Result<Option<SdkTracerProvider>, TelemetryError> {
    let asked = ENDPOINTS.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
    if !asked {
        return Ok(None);
    }
    let exporter = SpanExporter::builder().with_tonic().build()?;
    let resource = Resource::builder().with_attribute(KeyValue::new("service.name", "espalier")).build();
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    global::set_text_map_propagator(TraceContextPropagator::new());
    Ok(Some(provider))
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(provider) = &self.provider {
            // At the end of the process there is nobody left to tell.
            let _ = provider.shutdown();
        }
    }
}
