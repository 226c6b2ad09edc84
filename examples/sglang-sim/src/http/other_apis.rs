//! The responses API, Anthropic's, Ollama's and Vertex AI's: chats, or texts, that are answered in another shape.
//!
//! A chat template is given what came, as SGLang gives it; without one a chat is what its messages say.
//! A stream's events come all at once when the generation is over; their order and shapes are SGLang's.

use std::collections::HashMap;
use std::sync::Mutex;

use http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::request::{self, Api, BadRequest, Parsed};
use super::{Body, Server};
use crate::tokenizer::ChatApi;

/// Stored responses by id, each with the items that led to it and its own.
#[derive(Debug, Default)]
pub(super) struct Responses(Mutex<HashMap<String, (Value, Vec<Value>)>>);

/// Whether a route is one of these APIs'.
pub(super) fn knows(method: &Method, path: &str) -> bool {
    let posted = ["/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/api/chat", "/api/generate"];
    (*method == Method::POST && (posted.contains(&path) || path == "/vertex_generate"))
        || (*method == Method::GET && path == "/api/tags")
        || path.starts_with("/v1/responses/")
}

impl Server {
    pub(super) async fn other_api(&self, method: &Method, path: &str, body: &[u8]) -> Response<Body> {
        if let Some(id) = path.strip_prefix("/v1/responses/") {
            return self.stored(id.strip_suffix("/cancel").unwrap_or(id));
        }
        if *method == Method::GET {
            let name = &self.inner.config.served_model_name;
            return super::json(StatusCode::OK, &json!({"models": [{"name": name, "model": name}]}));
        }
        let Ok(asked) = serde_json::from_slice::<Value>(body) else {
            return refuse(path, StatusCode::BAD_REQUEST, "the request body is not JSON");
        };
        match path {
            "/v1/responses" => self.respond(&asked, body).await,
            "/vertex_generate" => self.vertex(&asked).await,
            "/api/generate" => self.ollama_generate(&asked).await,
            _ => self.converse(path, &asked, body).await,
        }
    }

    /// Generates; the error is in the API's shape.
    async fn completed(
        &self,
        path: &str,
        parsed: Result<Parsed, BadRequest>,
    ) -> Result<Value, Box<Response<Body>>> {
        let refused = |bad: &BadRequest| Box::new(refuse(path, StatusCode::BAD_REQUEST, bad.message()));
        let parsed = parsed.map_err(|bad| refused(&bad))?;
        self.check(&parsed).map_err(|bad| refused(&bad))?;
        let gone = || Box::new(refuse(path, StatusCode::SERVICE_UNAVAILABLE, "shutting down"));
        self.complete(parsed).await.ok_or_else(gone)
    }

    async fn respond(&self, asked: &Value, body: &[u8]) -> Response<Body> {
        const PATH: &str = "/v1/responses";
        let mut items = Vec::new();
        let previous = asked["previous_response_id"].as_str();
        if let Some(previous) = previous {
            match self.inner.responses.0.lock().expect("no holder panics").get(previous) {
                Some((_, history)) => items.clone_from(history),
                None => return not_found(previous),
            }
        }
        match &asked["input"] {
            Value::Array(more) => items.extend(more.iter().cloned()),
            input => items.push(json!({"role": "user", "content": input})),
        }
        // What is stored comes before what is said now.
        let whole = previous.map(|_| {
            let mut whole = asked.clone();
            whole["input"] = json!(items);
            whole["previous_response_id"] = Value::Null;
            whole.to_string()
        });
        let instructions = asked["instructions"].as_str().filter(|text| !text.is_empty());
        let system = instructions.map(|text| json!({"role": "system", "content": text}));
        let messages: Vec<&Value> = system.iter().chain(&items).collect();
        let plain = json!({"messages": messages, "max_tokens": asked["max_output_tokens"], "extra_key": asked["extra_key"],
            "cache_salt": asked["cache_salt"]});
        let body = whole.as_ref().map_or(body, String::as_bytes);
        let parsed = request::parse_chat(ChatApi::Responses, body, &plain, &self.inner.tokenizer);
        let answer = match self.completed(PATH, parsed).await {
            Ok(answer) => answer,
            Err(refused) => return *refused,
        };
        let (text, usage) = (&answer["choices"][0]["message"]["content"], &answer["usage"]);
        let made = || format!("resp_{}", super::unique_id());
        let id = asked["request_id"].as_str().map_or_else(made, str::to_owned);
        let content = json!([{"annotations": [], "text": text, "type": "output_text", "logprobs": null}]);
        let output = json!([{"id": "msg_1", "content": content, "role": "assistant", "status": "completed",
            "type": "message"}]);
        // The id stands first, as in SGLang's answers.
        let rest = json!({"object": "response", "created_at": answer["created"], "model": answer["model"],
            "output": output, "status": "completed", "parallel_tool_calls": true, "tool_choice": "auto", "tools": [],
            "error": null, "previous_response_id": asked["previous_response_id"], "store": true,
            "usage": {"input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": usage["prompt_tokens_details"]["cached_tokens"]},
                "output_tokens": usage["completion_tokens"], "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"]}})
        .to_string();
        let response = format!("{{\"id\":{},{}", json!(id), &rest[1..]);
        if asked["store"].as_bool().unwrap_or(true) {
            items.extend(output.as_array().into_iter().flatten().cloned());
            let stored = serde_json::from_str(&response).unwrap_or_default();
            self.inner.responses.0.lock().expect("no holder panics").insert(id, (stored, items));
        }
        if asked["stream"].as_bool() != Some(true) {
            return super::typed(StatusCode::OK, "application/json", response);
        }
        let event = |number: u32, kind: &str| {
            format!(
                "event: {kind}\ndata: {{\"type\":\"{kind}\",\"sequence_number\":{number},\"response\":{response}}}\n\n"
            )
        };
        let delta = json!({"type": "response.output_text.delta", "sequence_number": 1, "item_id": "msg_1", "output_index": 0,
            "content_index": 0, "delta": text, "logprobs": []});
        let delta = format!("event: response.output_text.delta\ndata: {delta}\n\n");
        let events = [event(0, "response.created"), delta, event(2, "response.completed")].concat();
        super::typed(StatusCode::OK, "text/event-stream; charset=utf-8", events)
    }

    fn stored(&self, id: &str) -> Response<Body> {
        match self.inner.responses.0.lock().expect("no holder panics").get(id) {
            Some((response, _)) => super::json(StatusCode::OK, response),
            None => not_found(id),
        }
    }

    /// Anthropic's and Ollama's chats.
    async fn converse(&self, path: &str, asked: &Value, body: &[u8]) -> Response<Body> {
        let ollama = path.starts_with("/api/");
        let system = &asked["system"];
        let system = (!ollama && !system.is_null()).then(|| json!({"role": "system", "content": system}));
        let Some(said) = asked["messages"].as_array() else {
            return refuse(path, StatusCode::BAD_REQUEST, "messages: Field required");
        };
        let messages: Vec<&Value> = system.iter().chain(said).collect();
        let most = if ollama { &asked["options"]["num_predict"] } else { &asked["max_tokens"] };
        let plain = json!({"messages": messages, "max_tokens": most});
        let api = if ollama { ChatApi::Ollama } else { ChatApi::Anthropic };
        let parsed = request::parse_chat(api, body, &plain, &self.inner.tokenizer);
        if path == "/v1/messages/count_tokens" {
            return match parsed {
                Ok(parsed) => super::json(StatusCode::OK, &json!({"input_tokens": parsed.prompts[0].len()})),
                Err(bad) => refuse(path, StatusCode::BAD_REQUEST, bad.message()),
            };
        }
        match self.completed(path, parsed).await {
            Err(refused) => *refused,
            Ok(answer) if ollama => ollamas(path, asked, &answer),
            Ok(answer) => anthropics(asked, &answer),
        }
    }

    /// Of text, without a template.
    async fn ollama_generate(&self, asked: &Value) -> Response<Body> {
        const PATH: &str = "/api/generate";
        let prompt = asked["prompt"].as_str().unwrap_or_default();
        let text = match asked["system"].as_str().filter(|system| !system.is_empty()) {
            Some(system) => format!("{system}\n\n{prompt}"),
            None => prompt.to_owned(),
        };
        let params = json!({"max_new_tokens": asked["options"]["num_predict"]});
        let body = json!({"text": text, "sampling_params": params}).to_string();
        let parsed = request::parse(Api::Generate, body.as_bytes(), &self.inner.tokenizer);
        match self.completed(PATH, parsed).await {
            Err(refused) => *refused,
            Ok(answer) => ollamas(PATH, asked, &answer),
        }
    }

    async fn vertex(&self, asked: &Value) -> Response<Body> {
        let mut predictions = Vec::new();
        for instance in asked["instances"].as_array().into_iter().flatten() {
            let body = json!({"text": instance["text"], "input_ids": instance["input_ids"],
                "sampling_params": asked["parameters"]["sampling_params"]});
            let parsed = request::parse(Api::Generate, body.to_string().as_bytes(), &self.inner.tokenizer);
            let answer = match parsed {
                Ok(parsed) => self.complete(parsed).await,
                Err(bad) => return Api::Generate.refuse(&bad),
            };
            let answer = answer.unwrap_or_default();
            predictions.push(json!({"text": answer["choices"][0]["message"]["content"]}));
        }
        super::json(StatusCode::OK, &json!({"predictions": predictions}))
    }
}

fn anthropics(asked: &Value, answer: &Value) -> Response<Body> {
    let (text, usage) = (&answer["choices"][0]["message"]["content"], &answer["usage"]);
    let (read, written) = (&usage["prompt_tokens"], &usage["completion_tokens"]);
    let message = |content: Value, written: &Value| {
        json!({"id": format!("msg_{}", answer["id"].as_str().unwrap_or_default()), "type": "message", "role": "assistant",
            "content": content, "model": answer["model"], "usage": {"input_tokens": read, "output_tokens": written}})
    };
    if asked["stream"].as_bool() != Some(true) {
        let mut whole = message(json!([{"type": "text", "text": text}]), written);
        whole["stop_reason"] = json!("max_tokens");
        return super::json(StatusCode::OK, &whole);
    }
    let events = [
        json!({"type": "message_start", "message": message(json!([]), &json!(0))}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}),
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": written}}),
        json!({"type": "message_stop"}),
    ];
    let events = events
        .iter()
        .map(|event| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap_or_default()));
    super::typed(StatusCode::OK, "text/event-stream; charset=utf-8", events.collect())
}

fn ollamas(path: &str, asked: &Value, answer: &Value) -> Response<Body> {
    let (text, usage) = (&answer["choices"][0]["message"]["content"], &answer["usage"]);
    let said = |text: &Value, done: bool| {
        let mut said = json!({"model": answer["model"], "created_at": "2026-01-01T00:00:00.000Z", "done": done,
            "done_reason": done.then_some("stop")});
        match path {
            "/api/generate" => said["response"] = text.clone(),
            _ => said["message"] = json!({"role": "assistant", "content": text, "images": null}),
        }
        if done {
            said["prompt_eval_count"] = usage["prompt_tokens"].clone();
            said["eval_count"] = usage["completion_tokens"].clone();
        }
        said
    };
    if asked["stream"].as_bool() == Some(false) {
        return super::json(StatusCode::OK, &said(text, true));
    }
    let lines = format!("{}\n{}\n", said(text, false), said(&json!(""), true));
    super::typed(StatusCode::OK, "application/x-ndjson", lines)
}

fn not_found(id: &str) -> Response<Body> {
    let error = json!({"message": format!("Response with id '{id}' not found."), "type": "invalid_request_error",
        "param": "response_id", "code": 404});
    super::json(StatusCode::NOT_FOUND, &json!({"error": error}))
}

fn refuse(path: &str, status: StatusCode, message: &str) -> Response<Body> {
    let error = match path {
        path if path.starts_with("/v1/messages") => {
            json!({"type": "error", "error": {"type": "invalid_request_error", "message": message}})
        }
        path if path.starts_with("/api/") => json!({"error": message}),
        _ => {
            json!({"error": {"message": message, "type": "BadRequest", "param": null, "code": status.as_u16()}})
        }
    };
    super::json(status, &error)
}
