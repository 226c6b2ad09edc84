//! What is read from the snapshot when somebody asks: its labels are the fleet's, and go with it.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use router_core::{ReportLevel, Router, Snapshot, Time, WorkerState};
use router_http::Clock;

use super::{accuracy, dropped_lines};

/// Encodes the fleet.
#[derive(Debug)]
pub(crate) struct FleetCollector {
    pub(crate) router: Router,
    pub(crate) clock: Clock,
    /// What agents are to report.
    pub(crate) wanted: ReportLevel,
}

impl Collector for FleetCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let snapshot = self.router.snapshot();
        self.encode_router(&mut encoder, &snapshot)?;
        self.encode_workers(&mut encoder, &snapshot)?;
        encode_health(&mut encoder, &snapshot, self.clock.now())?;
        encode_targets(&mut encoder, &snapshot)?;
        accuracy::encode(&mut encoder, &snapshot, self.clock.now())?;
        accuracy::encode_levels(&mut encoder, &snapshot, self.wanted)
    }
}

impl FleetCollector {
    fn encode_router(&self, encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot) -> fmt::Result {
        let age = self.clock.now().since(snapshot.published).as_secs_f64();
        gauge(encoder, "espalier_epoch", "Number of the snapshot in force", snapshot.epoch as f64)?;
        gauge(encoder, "espalier_epoch_age_seconds", "Age of the snapshot in force", age)?;
        gauge(encoder, "espalier_index_blocks", "Distinct blocks in the index", snapshot.size.blocks as f64)?;
        gauge(encoder, "espalier_index_runs", "Runs of blocks in the index", snapshot.size.runs as f64)?;
        gauge(
            encoder,
            "espalier_unvouched",
            "1 while cache-aware routing follows claims on some target that neither an agent nor responses vouch for",
            f64::from(u8::from(accuracy::is_unvouched(snapshot))),
        )?;
        gauge(
            encoder,
            "espalier_writer_alive",
            "0 once the writer has died: requests are routed by load on a snapshot that no longer changes",
            f64::from(u8::from(!self.router.is_orphaned())),
        )?;
        let refused = self.router.updates().refused();
        counter(encoder, "espalier_updates_refused", "Updates that found the writer's queue full", refused)?;
        let help = "Lines of the log that standard error did not take fast enough";
        counter(encoder, "espalier_log_lines_dropped", help, dropped_lines())
    }

    fn encode_workers(&self, encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot) -> fmt::Result {
        let states =
            [WorkerState::Unreachable, WorkerState::Ready, WorkerState::Draining, WorkerState::Updating];
        let workers = &snapshot.fleet.workers;
        let count = |state| workers.iter().filter(|worker| worker.state == state).count() as f64;
        let rows = states.map(|state| ([("state", state.to_string())], count(state)));
        gauges(encoder, "espalier_workers", "Registered workers by state", &rows)?;
        let now = self.clock.now();
        let age = |worker: &router_core::Worker| Some(now.since(worker.agent?.last_report).as_secs_f64());
        let ages =
            workers.iter().filter_map(|worker| Some(([("worker", worker.url.to_string())], age(worker)?)));
        let help = "Time since the last message of a worker's agent";
        gauges(encoder, "espalier_agent_report_age_seconds", help, &ages.collect::<Vec<_>>())
    }
}

fn encode_health(encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot, now: Time) -> fmt::Result {
    let rows = snapshot.fleet.targets.iter().map(|target| {
        let ejected = !target.load.health().state(now).takes_requests();
        let labels = [("worker", target.worker.url.to_string()), ("rank", target.id.rank.to_string())];
        (labels, f64::from(u8::from(ejected)))
    });
    let help = "1 while a target gets no requests because it failed or asked to be left alone";
    gauges(encoder, "espalier_target_left_out", help, &rows.collect::<Vec<_>>())
}

fn encode_targets(encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot) -> fmt::Result {
    let targets = || snapshot.fleet.targets.iter();
    let labels = |target: &router_core::Target| {
        [("worker", target.worker.url.to_string()), ("rank", target.id.rank.to_string())]
    };
    let claimed: Vec<_> = targets().map(|target| (labels(target), target.claimed_tokens as f64)).collect();
    gauges(encoder, "espalier_claimed_tokens", "Tokens claimed to be cached", &claimed)?;
    let in_flight: Vec<_> =
        targets().map(|target| (labels(target), target.load.read().in_flight as f64)).collect();
    gauges(encoder, "espalier_target_in_flight_requests", "Requests in flight", &in_flight)?;
    let pressure: Vec<_> =
        targets().map(|target| (labels(target), f64::from(target.eviction_pressure))).collect();
    gauges(encoder, "espalier_eviction_pressure", "Tokens evicted per token stored, at most 1", &pressure)?;
    let reuse: Vec<_> = targets().map(|target| (labels(target), f64::from(target.tail_reuse))).collect();
    let help = "Tokens found in the older half of the cache per token evicted";
    gauges(encoder, "espalier_tail_reuse", help, &reuse)?;
    let arrivals: Vec<_> = targets().map(|target| (labels(target), target.arrivals.per_s())).collect();
    let help = "Requests sent there each second: this router's, as many times as its agent knows of routers";
    gauges(encoder, "espalier_target_arrivals_per_second", help, &arrivals)?;
    let busy: Vec<_> = targets().map(|target| (labels(target), target.arrivals.busy())).collect();
    let help = "Share of the time that the prefills of these requests are expected to take";
    gauges(encoder, "espalier_target_prefill_busy", help, &busy)?;
    let retention: Vec<_> = targets().map(|target| (labels(target), f64::from(target.retention))).collect();
    gauges(encoder, "espalier_retention", "Share of claimed tokens that responses found cached", &retention)
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> fmt::Result {
    let gauge = ConstGauge::new(value);
    gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let counter = ConstCounter::new(value);
    counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)
}

pub(super) fn counters<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: &[(L, u64)],
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, ConstCounter::new(0_u64).metric_type())?;
    for (labels, value) in rows {
        ConstCounter::new(*value).encode(family.encode_family(labels)?)?;
    }
    Ok(())
}

pub(super) fn gauges<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: &[(L, f64)],
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, ConstGauge::new(0.0).metric_type())?;
    for (labels, value) in rows {
        ConstGauge::new(*value).encode(family.encode_family(labels)?)?;
    }
    Ok(())
}
