//! What may be shared between threads and sent to another one: part of what the crate promises, checked by compiling.

use router_core::index::{Index, Matches, NaiveIndex, Tree};
use router_core::key::{BlockHash, KeySpace, KeySpaceError, PrefixKey, Salt};
use router_core::policy::{Candidate, Choice, Policy, PolicyConfig, View};
use router_core::{
    AgentReport, BlockRun, Delta, Done, Explanation, Fleet, FleetError, FleetUpdate, InFlight, JoinError,
    Load, LoadCounters, Notice, Query, Refused, RouteError, RouteRequest, Router, SetDigest, Settings,
    Snapshot, Target, Traffic, Update, UpdateSender, Worker, WorkerProfile, Writer,
};

const fn shared<T: Send + Sync + ?Sized>() {}
const fn sent<T: Send>() {}

const _: () = {
    shared::<Router>();
    shared::<RouteRequest<'_>>();
    shared::<RouteError>();
    shared::<Explanation>();
    shared::<Settings>();
    shared::<UpdateSender>();
    shared::<LoadCounters>();
    shared::<Load>();
};

/// A snapshot and everything in it.
const _: () = {
    shared::<Snapshot>();
    shared::<Fleet>();
    shared::<Target>();
    shared::<Worker>();
    shared::<WorkerProfile>();
    shared::<dyn Policy>();
};

const _: () = {
    shared::<Tree>();
    shared::<Matches>();
    shared::<Index>();
    shared::<NaiveIndex>();
    shared::<KeySpace>();
    shared::<KeySpaceError>();
    shared::<PrefixKey>();
    shared::<BlockHash>();
    shared::<Salt>();
    shared::<SetDigest>();
    shared::<PolicyConfig>();
    shared::<View<'_>>();
    shared::<Candidate>();
    shared::<Choice>();
};

/// One owner at a time: the writer, a request in flight, and what travels in the queue with its calls.
const _: () = {
    sent::<Writer>();
    sent::<InFlight>();
    sent::<Update>();
    sent::<FleetUpdate>();
    sent::<Query>();
    sent::<Traffic>();
    sent::<Done<u64>>();
    sent::<Refused>();
    shared::<InFlight>();
    shared::<AgentReport>();
    shared::<Delta>();
    shared::<BlockRun>();
    shared::<Notice>();
    shared::<FleetError>();
    shared::<JoinError>();
};

/// Errors can be boxed and passed on from any thread.
#[test]
fn errors_are_errors() {
    fn is_error<E: std::error::Error + Send + Sync + 'static>(error: E) -> String {
        error.to_string()
    }
    let messages = [
        is_error(RouteError::NoWorkers),
        is_error(KeySpaceError::BlockSize { block_size: 0 }),
        is_error(FleetError::Full { in_use: 4_096, max: 4_096, wanted: 1 }),
        is_error(JoinError::Fleet(FleetError::Full { in_use: 1, max: 1, wanted: 1 })),
    ];
    assert!(messages.iter().all(|message| !message.is_empty()));
}
