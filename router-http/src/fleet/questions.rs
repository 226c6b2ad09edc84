//! Questions about the fleet, answered in the shape in which one server answers them.
//!
//! What concerns one server only (its port, its start) is the first worker's; what adds up is added up; `workers` has what each
//! said where that is more.

use http::{Response, StatusCode};
use router_core::{WorkerId, WorkerState};
use serde_json::{Value, json};

use super::ask::{Heard, Told};
use super::{Call, ask_all, json_response, passed, prometheus, results, typed, workers};
use crate::addressee::percent_decoded;
use crate::arrived::Arrived;
use crate::body::Body;
use crate::error::Failure;
use crate::route::{Question, Route};
use crate::service::Plane;

/// The version of Prometheus' text format that is spoken.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Asks all workers that answer, or `only` one, and answers for them.
pub(super) async fn answer(
    plane: &Plane,
    route: &Route,
    arrived: &Arrived,
    question: Question,
    only: Option<WorkerId>,
) -> Result<Response<Body>, Failure> {
    let mut asked = workers(plane, only)?;
    if only.is_none() {
        // One that is known not to answer would be waited for in vain.
        let unreachable = |worker: &router_core::Worker| worker.state == WorkerState::Unreachable;
        if asked.iter().any(|worker| !unreachable(worker)) {
            asked.retain(|worker| !unreachable(worker));
        }
    }
    // Every worker is asked for its list, since a model that one of them does not have is no error.
    let list = (question == Question::Model && only.is_none()).then(|| arrived.at("/v1/models"));
    let limit = plane.config.api.fleet_timeout;
    let call = Call { arrived: list.as_ref().unwrap_or(arrived), limit, reads: true };
    let mut told = ask_all(plane, asked, &call).await;
    if only.is_some() {
        return told.pop().map_or(Err(Failure::UnknownWorker), passed);
    }
    if question == Question::Each {
        return Ok(each(&told));
    }
    if !told.iter().any(|told| told.good().is_some()) {
        return nobody(told);
    }
    Ok(match question {
        Question::Models => json_response(StatusCode::OK, &models(&told)),
        Question::Model => {
            let path = percent_decoded(arrived.path.path());
            model(&told, route.parameter(&path).unwrap_or_default())
        }
        Question::Tags => json_response(StatusCode::OK, &union(&told, "models", "model")),
        Question::ModelInfo => json_response(StatusCode::OK, &model_info(&told)),
        Question::ServerInfo => json_response(StatusCode::OK, &server_info(&told)),
        Question::Loads => loads(&told),
        Question::Metrics => typed(StatusCode::OK, PROMETHEUS, prometheus::join(&texts(&told))),
        Question::HealthGenerate => typed(StatusCode::OK, "text/plain; charset=utf-8", String::new()),
        Question::Each => each(&told),
    })
}

/// No worker answered well: what the first one that answered said, or why the first one did not.
fn nobody(told: Vec<Told>) -> Result<Response<Body>, Failure> {
    let at = told.iter().position(|told| told.outcome.is_ok()).unwrap_or(0);
    told.into_iter().nth(at).map_or(Err(Failure::UnknownWorker), passed)
}

/// Bodies of those who answered well, with their workers.
fn good(told: &[Told]) -> impl Iterator<Item = (&Told, &Heard)> {
    told.iter().filter_map(|told| Some((told, told.good()?)))
}

fn texts(told: &[Told]) -> Vec<(&str, String)> {
    good(told)
        .map(|(told, heard)| (&*told.worker.url, String::from_utf8_lossy(&heard.body).into_owned()))
        .collect()
}

/// The members of `list` of all answers, each once by its `key`, with the workers that have it.
fn union(told: &[Told], list: &str, key: &str) -> Value {
    let mut merged: Option<Value> = None;
    let mut items: Vec<Value> = Vec::new();
    for (told, heard) in good(told) {
        let mut value = heard.value();
        for mut item in value[list].as_array_mut().map(std::mem::take).unwrap_or_default() {
            let url = json!(&*told.worker.url);
            match items.iter_mut().find(|known| known[key] == item[key]) {
                Some(known) => {
                    if let Some(workers) = known["workers"].as_array_mut() {
                        workers.push(url);
                    }
                    // What every one of them takes.
                    if item["max_model_len"].as_u64() < known["max_model_len"].as_u64() {
                        known["max_model_len"] = item["max_model_len"].take();
                    }
                }
                None if item.is_object() => {
                    item["workers"] = json!([url]);
                    items.push(item);
                }
                None => {}
            }
        }
        merged = merged.or(Some(value));
    }
    let mut merged = merged.filter(Value::is_object).unwrap_or_else(|| json!({}));
    merged[list] = Value::Array(items);
    merged
}

fn models(told: &[Told]) -> Value {
    union(told, "data", "id")
}

fn model(told: &[Told], wanted: &str) -> Response<Body> {
    let mut all = models(told);
    let found = all["data"].as_array_mut().and_then(|all| all.iter_mut().find(|model| model["id"] == wanted));
    match found {
        Some(model) => json_response(StatusCode::OK, model),
        None => {
            let error = json!({"message": format!("The model '{wanted}' does not exist"),
                "type": "invalid_request_error", "param": "model", "code": "model_not_found"});
            json_response(StatusCode::NOT_FOUND, &json!({"error": error}))
        }
    }
}

/// The first answer, with what each said. Weights of different versions are of none.
fn model_info(told: &[Told]) -> Value {
    let mut answers = good(told).map(|(_, heard)| heard.value());
    let mut first = answers.next().filter(Value::is_object).unwrap_or_else(|| json!({}));
    if answers.any(|other| other["weight_version"] != first["weight_version"]) {
        first["weight_version"] = Value::Null;
    }
    first["workers"] = results(told);
    first
}

/// The first answer, with the states of all engines one after the other.
fn server_info(told: &[Told]) -> Value {
    let mut states = Vec::new();
    let mut first: Option<Value> = None;
    for (_, heard) in good(told) {
        let value = heard.value();
        states.extend(value["internal_states"].as_array().into_iter().flatten().cloned());
        first = first.or(Some(value));
    }
    let mut first = first.filter(Value::is_object).unwrap_or_else(|| json!({}));
    first["internal_states"] = Value::Array(states);
    first["workers"] = results(told);
    first
}

/// The loads of all ranks of all workers, each with its worker.
fn loads(told: &[Told]) -> Response<Body> {
    let is_text =
        |heard: &Heard| heard.content_type.as_ref().is_some_and(|kind| kind.as_bytes().starts_with(b"text/"));
    if good(told).any(|(_, heard)| is_text(heard)) {
        return typed(StatusCode::OK, PROMETHEUS, prometheus::join(&texts(told)));
    }
    let (mut loads, mut accelerators) = (Vec::new(), 0);
    let mut first: Option<Value> = None;
    for (told, heard) in good(told) {
        let mut value = heard.value();
        for mut load in value["loads"].as_array_mut().map(std::mem::take).unwrap_or_default() {
            if load.is_object() {
                load["worker"] = json!(&*told.worker.url);
            }
            loads.push(load);
        }
        accelerators += value["num_accelerators"].as_u64().unwrap_or(0);
        first = first.or(Some(value));
    }
    let mut first = first.filter(Value::is_object).unwrap_or_else(|| json!({}));
    first["loads"] = Value::Array(loads);
    first["num_accelerators"] = json!(accelerators);
    json_response(StatusCode::OK, &first)
}

/// What each said, beside the first one's members.
fn each(told: &[Told]) -> Response<Body> {
    super::control::all(told)
}
