//! What a request met at a worker, told to whoever keeps count of the worker's health.

use router_core::{FaultKind, InFlight};

use crate::error::Failure;
use crate::metrics::{FaultLabels, HttpMetrics};
use crate::service::Plane;

/// How a failure counts.
pub(crate) fn kind_of(failure: &Failure) -> FaultKind {
    match failure {
        Failure::Unreachable(_) => FaultKind::Connect,
        Failure::Slow { .. } => FaultKind::Timeout,
        _ => FaultKind::Lost,
    }
}

/// The target failed the request.
pub(crate) fn count(
    families: &HttpMetrics,
    in_flight: &mut InFlight,
    kind: FaultKind,
    now: router_core::Time,
) {
    let ejected = in_flight.failed(kind, now);
    families.faults.get_or_create(&FaultLabels { kind: kind.name() }).inc();
    if ejected {
        families.ejections.inc();
        let (worker, rank) = (&*in_flight.worker().url, in_flight.target().rank);
        tracing::warn!(worker, rank, fault = kind.name(), "left out after failures");
    }
}

/// The same, and a connection that cannot be opened concerns the worker's other ranks too.
pub(crate) fn count_failure(plane: &Plane, in_flight: &mut InFlight, failure: &Failure) {
    let (kind, now) = (kind_of(failure), plane.clock.now());
    count(&plane.metrics.families, in_flight, kind, now);
    if kind == FaultKind::Connect {
        plane.router.worker_failed(in_flight.target(), now);
    }
}
