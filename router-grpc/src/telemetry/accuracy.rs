//! What the router knows of its own error, target by target.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;
use router_core::{Accuracy, ReportLevel, Snapshot, Target, Time};

use super::collector::{counters, gauges};

pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot, now: Time) -> fmt::Result {
    encode_predictions(encoder, snapshot)?;
    encode_divergence(encoder, snapshot, now)?;
    let rows = rows(snapshot, |accuracy| Some(f64::from(u8::from(accuracy.unvouched))));
    let help = "1 while requests follow the claims on a target and nothing vouches for them: no agent, and no response that says \
                what was cached";
    gauges(encoder, "espalier_target_unvouched", help, &rows)?;
    encode_caches(encoder, snapshot)
}

/// What engines' caches let the router conclude.
fn encode_caches(encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot) -> fmt::Result {
    let workers = || snapshot.fleet.workers.iter().map(|worker| (worker.url.to_string(), &worker.profile));
    let rows: Vec<_> = workers()
        .map(|(url, profile)| ([("worker", url)], f64::from(u8::from(profile.tells_evictions()))))
        .collect();
    let help = "1 where an eviction tells of others, because the engine evicts the least recently used leaf first, keeps nothing of \
                it elsewhere, and its cache is of full attention alone";
    gauges(encoder, "espalier_infers_evictions", help, &rows)?;
    let rows: Vec<_> = workers()
        .map(|(url, profile)| ([("worker", url), ("kind", profile.cache_kind.to_string())], 1.0))
        .collect();
    let help = "What an engine's cache keeps beside the KV of full attention; always 1";
    gauges(encoder, "espalier_cache_kind", help, &rows)?;
    let rows: Vec<_> = workers()
        .filter_map(|(url, profile)| Some(([("worker", url)], profile.lower_tier?.capacity_tokens as f64)))
        .collect();
    let help = "Tokens of one rank that an engine can keep of what has left its device, in host memory or storage; 0 where it does not \
                say how many, absent where it keeps none";
    gauges(encoder, "espalier_lower_tier_tokens", help, &rows)
}

/// Whether cache-aware routing follows claims somewhere that nothing vouches for.
pub(super) fn is_unvouched(snapshot: &Snapshot) -> bool {
    snapshot.fleet.with_accuracy().any(|(_, accuracy)| accuracy.unvouched)
}

/// Sessions that report less than they were to.
pub(super) fn encode_levels(
    encoder: &mut DescriptorEncoder<'_>,
    snapshot: &Snapshot,
    wanted: ReportLevel,
) -> fmt::Result {
    let links = snapshot.fleet.workers.iter().filter_map(|worker| Some((worker, worker.agent?)));
    let rows: Vec<_> = links
        .map(|(worker, agent)| {
            let labels = [("worker", worker.url.to_string()), ("level", agent.level.to_string())];
            (labels, f64::from(u8::from(agent.level < wanted)))
        })
        .collect();
    let help = "1 while a worker's agent reports less than --report-level; the label is what it does report";
    gauges(encoder, "espalier_agent_below_wanted_level", help, &rows)
}

fn encode_predictions(encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot) -> fmt::Result {
    let checked: Vec<_> = snapshot
        .fleet
        .with_accuracy()
        .map(|(target, accuracy)| (labels(target), accuracy.predictions.checked))
        .collect();
    let help = "Responses that said how much was cached, against what had been predicted";
    counters(encoder, "espalier_target_checked_predictions", help, &checked)?;
    let by_cause: Vec<_> = snapshot
        .fleet
        .with_accuracy()
        .flat_map(|(target, accuracy)| {
            let [worker, rank] = labels(target);
            let causes = accuracy.predictions.causes().into_iter();
            causes.map(move |(cause, sum)| {
                ([worker.clone(), rank.clone(), ("cause", cause.name().to_owned())], sum.tokens)
            })
        })
        .collect();
    let help = "Absolute difference of predicted and actual cached tokens; with the cause other_traffic less was predicted";
    counters(encoder, "espalier_target_mispredicted_tokens", help, &by_cause)?;
    let checked = |accuracy: &Accuracy| Some(accuracy.predictions).filter(|sums| sums.checked > 0);
    let mean = rows(snapshot, |accuracy| checked(accuracy).map(|sums| sums.mean_tokens()));
    let help = "Mean of predicted minus actual cached tokens, of all responses that told";
    gauges(encoder, "espalier_target_mean_error_tokens", help, &mean)?;
    let mean = rows(snapshot, |accuracy| checked(accuracy).map(|sums| sums.mean_absolute_tokens()));
    let help = "Mean absolute difference of predicted and actual cached tokens, of all responses that told";
    gauges(encoder, "espalier_target_mean_absolute_error_tokens", help, &mean)
}

fn encode_divergence(encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot, now: Time) -> fmt::Result {
    let age = |at: Time| now.since(at).as_secs_f64();
    let divergence: Vec<_> = snapshot
        .fleet
        .with_accuracy()
        .filter_map(|(target, accuracy)| {
            let [worker, rank] = labels(target);
            let divergence = accuracy.divergence?;
            let source = ("source", divergence.source.name().to_owned());
            Some(([worker, rank, source], divergence.tokens as f64))
        })
        .collect();
    let help = "Tokens claimed and not held, or held and not claimed, when somebody last could tell";
    gauges(encoder, "espalier_divergence_tokens", help, &divergence)?;
    let ages = rows(snapshot, |accuracy| Some(age(accuracy.divergence?.at)));
    gauges(encoder, "espalier_divergence_age_seconds", "Time since the divergence was found", &ages)?;
    let held = rows(snapshot, |accuracy| Some(accuracy.counts?.counts.held_tokens as f64));
    let help = "Tokens in the prefix cache, as an agent counts them on all tiers, or the engine's metrics on its device";
    gauges(encoder, "espalier_held_tokens", help, &held)?;
    let last = |accuracy: &Accuracy| accuracy.reconciliations.iter().flatten().map(|found| found.at).max();
    let ages = rows(snapshot, |accuracy| last(accuracy).map(age));
    let help = "Time since claims were last reconciled with the cache";
    gauges(encoder, "espalier_reconciliation_age_seconds", help, &ages)
}

fn rows(
    snapshot: &Snapshot,
    figure: impl Fn(&Accuracy) -> Option<f64>,
) -> Vec<([(&'static str, String); 2], f64)> {
    let targets = snapshot.fleet.with_accuracy();
    targets.filter_map(|(target, accuracy)| Some((labels(target), figure(accuracy)?))).collect()
}

fn labels(target: &Target) -> [(&'static str, String); 2] {
    [("worker", target.worker.url.to_string()), ("rank", target.id.rank.to_string())]
}
