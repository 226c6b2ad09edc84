//! Metrics, logs and traces.

mod accuracy;
mod collector;
mod metrics;
mod prometheus;
mod tracing_setup;

pub(crate) use collector::FleetCollector;
pub(crate) use metrics::ControlMetrics;
pub(crate) use prometheus::{Exporter, ExporterError};
pub(crate) use tracing_setup::dropped_lines;
pub use tracing_setup::{Telemetry, TelemetryError, init};
