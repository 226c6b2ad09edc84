//! `explain` and `workers`: questions to a running router.

use std::io::{self, Read as _, Write};
use std::process::ExitCode;

use espalier_proto::admin_client::AdminClient;
use espalier_proto::{Accuracy, AgentSession, ExplainRequest, ExplainResponse, ListWorkersRequest, Worker};
use serde_json::json;
use tonic::transport::{Channel, Endpoint};

use super::{AdminArguments, ExplainArguments, complain};

/// A question that was not answered.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("--admin {0}: not an address: {1}; write it like http://127.0.0.1:50051")]
    Address(String, tonic::transport::Error),
    #[error("no router answers at {0}: {1}; is it running, and is this its gRPC port?")]
    Unreachable(String, tonic::transport::Error),
    #[error("{}", .0.message())]
    Refused(#[from] tonic::Status),
    #[error("{0}: {1}")]
    File(String, io::Error),
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
}

pub(super) async fn workers(arguments: AdminArguments) -> ExitCode {
    finish(list(&arguments).await)
}

pub(super) async fn explain(arguments: ExplainArguments) -> ExitCode {
    finish(explain_one(&arguments).await)
}

fn finish(done: Result<(), AskError>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error.to_string()),
    }
}

async fn list(arguments: &AdminArguments) -> Result<(), AskError> {
    let answer = connect(&arguments.admin).await?.list_workers(ListWorkersRequest {}).await?.into_inner();
    let mut out = io::stdout().lock();
    if arguments.json {
        let workers: Vec<_> = answer.workers.iter().map(worker_json).collect();
        writeln!(out, "{}", json!({"epoch": answer.epoch, "workers": workers, "alarms": answer.alarms}))?;
        return Ok(());
    }
    writeln!(
        out,
        "{:<32} {:<8} {:<12} {:>4} {:>9} {:>12} {:>12} {:>10} {:>12}  agent",
        "worker", "role", "state", "rank", "in flight", "claimed", "capacity", "divergence", "error ± abs"
    )?;
    for worker in &answer.workers {
        for target in &worker.targets {
            let agent = match (worker.agent_connected, worker.report_age_ms) {
                (true, Some(age)) => format!("{} reports, last {age} ms ago", level(worker)),
                _ => "none".to_owned(),
            };
            let divergence =
                target.divergence_tokens.map_or_else(|| "–".to_owned(), |tokens| tokens.to_string());
            let error = target.accuracy.as_ref().filter(|accuracy| accuracy.checked_responses > 0);
            let error = error.map_or_else(|| "–".to_owned(), mean_error);
            writeln!(
                out,
                "{:<32} {:<8} {:<12} {:>4} {:>9} {:>12} {:>12} {divergence:>10} {error:>12}  {agent}",
                worker.url,
                role(worker),
                state(worker),
                target.rank,
                target.in_flight,
                target.claimed_tokens,
                target.capacity_tokens,
            )?;
        }
        if !worker.reason.is_empty() && state(worker) != "ready" {
            writeln!(out, "  {}", worker.reason)?;
        }
        let below = worker.targets.first().and_then(|target| target.lower_tier_tokens);
        match below {
            None => {}
            Some(0) => writeln!(out, "  what leaves its device is kept in a lower tier of unknown size")?,
            Some(tokens) => writeln!(out, "  up to {tokens} tokens of each rank are kept below its device")?,
        }
        let shortfall = worker.agent.as_ref().map_or("", |agent| &*agent.shortfall);
        if !shortfall.is_empty() {
            writeln!(out, "  less is reported than wanted: {shortfall}")?;
        }
    }
    for alarm in &answer.alarms {
        writeln!(out, "! {alarm}")?;
    }
    Ok(())
}

async fn explain_one(arguments: &ExplainArguments) -> Result<(), AskError> {
    let name = arguments.file.display().to_string();
    let mut body = String::new();
    let read = match name.as_str() {
        "-" => io::stdin().lock().read_to_string(&mut body),
        _ => std::fs::File::open(&arguments.file).and_then(|mut file| file.read_to_string(&mut body)),
    };
    read.map_err(|error| AskError::File(name, error))?;
    let request = ExplainRequest { path: arguments.path.clone(), body };
    let answer = connect(&arguments.admin.admin).await?.explain(request).await?.into_inner();
    let mut out = io::stdout().lock();
    if arguments.admin.json {
        writeln!(out, "{}", explanation_json(&answer))?;
        return Ok(());
    }
    print_explanation(&answer, &mut out)?;
    Ok(())
}

fn print_explanation(answer: &ExplainResponse, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{} rank {}, by {}: {}", answer.worker_url, answer.rank, answer.policy, answer.reason)?;
    writeln!(
        out,
        "{} prompt tokens in {} blocks of {}, decided on snapshot {}",
        answer.prompt_tokens,
        answer.blocks,
        unit(answer),
        answer.epoch
    )?;
    if !answer.chat_keyed.is_empty() {
        writeln!(out, "the chat is keyed {}", answer.chat_keyed)?;
    }
    writeln!(out)?;
    writeln!(
        out,
        "  {:<32} {:>4} {:>9} {:>9} {:>9} {:>11} {:>11} {:>11}",
        "worker", "rank", "matched", "confirmed", "in flight", "backlog ms", "prefill ms", "cost"
    )?;
    for candidate in &answer.candidates {
        let mark = if candidate.chosen { "→" } else { " " };
        writeln!(
            out,
            "{mark} {:<32} {:>4} {:>9} {:>9} {:>9} {:>11.1} {:>11.1} {:>11.1}",
            candidate.worker_url,
            candidate.rank,
            candidate.matched_tokens,
            candidate.confirmed_tokens,
            candidate.in_flight,
            candidate.backlog_ms,
            candidate.prefill_ms,
            candidate.cost,
        )?;
        if let Some(accuracy) = &candidate.accuracy {
            let (error, checked) = (mean_error(accuracy), accuracy.checked_responses);
            writeln!(
                out,
                "  error {error} tokens over {checked} responses; vouched for by {}",
                accuracy.vouched_by
            )?;
            writeln!(out, "  inference from evictions: {}", accuracy.inference)?;
        }
    }
    for excluded in &answer.excluded {
        writeln!(out, "✗ {:<32} {:>4} {}", excluded.worker_url, excluded.rank, excluded.reason)?;
    }
    Ok(())
}

async fn connect(admin: &str) -> Result<AdminClient<Channel>, AskError> {
    let endpoint =
        Endpoint::new(admin.to_owned()).map_err(|error| AskError::Address(admin.to_owned(), error))?;
    let channel = endpoint.connect().await.map_err(|error| AskError::Unreachable(admin.to_owned(), error))?;
    Ok(AdminClient::new(channel))
}

fn worker_json(worker: &Worker) -> serde_json::Value {
    let targets: Vec<_> = worker
        .targets
        .iter()
        .map(|target| {
            json!({
                "rank": target.rank, "in_flight": target.in_flight, "in_prefill": target.in_prefill,
                "claimed_tokens": target.claimed_tokens, "capacity_tokens": target.capacity_tokens,
                "lower_tier_tokens": target.lower_tier_tokens,
                "divergence_tokens": target.divergence_tokens, "doubtful": target.doubtful,
                "health": plain(target.health().as_str_name(), "TARGET_HEALTH_"),
                "accuracy": target.accuracy.as_ref().map(accuracy_json),
            })
        })
        .collect();
    json!({
        "url": worker.url, "role": role(worker), "state": state(worker), "reason": worker.reason, "model": worker.model,
        "engine_version": worker.engine_version, "agent_connected": worker.agent_connected,
        "report_level": level(worker), "report_age_ms": worker.report_age_ms,
        "agent": worker.agent.as_ref().map(session_json), "targets": targets,
    })
}

fn session_json(agent: &AgentSession) -> serde_json::Value {
    json!({
        "messages": agent.messages, "bytes": agent.bytes, "age_ms": agent.age_ms, "shortfall": agent.shortfall,
        "wanted_level": plain(agent.wanted_level().as_str_name(), "REPORT_LEVEL_"),
        "units": agent.units().map(|unit| plain(unit.as_str_name(), "KEY_UNIT_")).collect::<Vec<_>>(),
    })
}

fn accuracy_json(accuracy: &Accuracy) -> serde_json::Value {
    let causes = accuracy.causes.iter().map(|found| {
        json!({
            "cause": plain(found.cause().as_str_name(), "MISPREDICTION_CAUSE_"), "responses": found.responses,
            "tokens": found.tokens,
        })
    });
    let divergence = accuracy.divergence.as_ref().map(|found| {
        json!({
            "tokens": found.tokens, "source": plain(found.source().as_str_name(), "DIVERGENCE_SOURCE_"),
            "age_ms": found.age_ms,
        })
    });
    let counts = accuracy.counts.as_ref().map(|counts| {
        json!({
            "held_tokens": counts.held_tokens, "evicted_tokens_total": counts.evicted_tokens_total,
            "asked_of_engine": counts.asked_of_engine, "age_ms": counts.age_ms,
        })
    });
    let reconciliations = accuracy.reconciliations.iter().map(|found| {
        json!({
            "unit": plain(found.unit().as_str_name(), "KEY_UNIT_"), "false_claims": found.false_claims,
            "missing": found.missing, "tokens": found.tokens, "bytes": found.bytes, "age_ms": found.age_ms,
        })
    });
    json!({
        "checked_responses": accuracy.checked_responses, "mean_error_tokens": accuracy.mean_error_tokens,
        "mean_absolute_error_tokens": accuracy.mean_absolute_error_tokens, "causes": causes.collect::<Vec<_>>(),
        "divergence": divergence, "counts": counts, "reconciliations": reconciliations.collect::<Vec<_>>(),
        "unvouched": accuracy.unvouched, "vouched_by": accuracy.vouched_by, "inference": accuracy.inference,
    })
}

/// The signed and the absolute mean error of predictions, in tokens.
fn mean_error(accuracy: &Accuracy) -> String {
    format!("{:+.1} ± {:.1}", accuracy.mean_error_tokens, accuracy.mean_absolute_error_tokens)
}

fn explanation_json(answer: &ExplainResponse) -> serde_json::Value {
    let candidates: Vec<_> = answer.candidates.iter().map(|candidate| json!({
        "worker_url": candidate.worker_url, "rank": candidate.rank, "matched_tokens": candidate.matched_tokens,
        "confirmed_tokens": candidate.confirmed_tokens, "in_flight": candidate.in_flight,
        "backlog_ms": candidate.backlog_ms, "prefill_ms": candidate.prefill_ms, "cost": candidate.cost,
        "chosen": candidate.chosen, "accuracy": candidate.accuracy.as_ref().map(accuracy_json),
    })).collect();
    let excluded: Vec<_> = answer
        .excluded
        .iter()
        .map(|excluded| {
            json!({
                "worker_url": excluded.worker_url, "rank": excluded.rank, "reason": excluded.reason,
            })
        })
        .collect();
    json!({
        "policy": answer.policy, "worker_url": answer.worker_url, "rank": answer.rank, "reason": answer.reason,
        "key_unit": unit(answer), "chat_keyed": answer.chat_keyed, "blocks": answer.blocks, "prompt_tokens": answer.prompt_tokens,
        "epoch": answer.epoch, "candidates": candidates, "excluded": excluded,
    })
}

fn state(worker: &Worker) -> String {
    plain(worker.state().as_str_name(), "WORKER_STATE_")
}

fn role(worker: &Worker) -> String {
    plain(worker.role().as_str_name(), "WORKER_ROLE_")
}

fn level(worker: &Worker) -> String {
    plain(worker.report_level().as_str_name(), "REPORT_LEVEL_")
}

fn unit(answer: &ExplainResponse) -> String {
    plain(answer.key_unit().as_str_name(), "KEY_UNIT_")
}

fn plain(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_lowercase()
}
