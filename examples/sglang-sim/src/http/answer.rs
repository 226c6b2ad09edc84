//! Answers of the generating routes, whole and as streams.

use std::convert::Infallible;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};

use super::disaggregation::{Half, TransferError, error_event};
use super::request::{Api, BadRequest, Parsed};
use super::{Body, Server};
use crate::scheduler::{Job, RequestId};
use crate::tokenizer;

/// One generation under way.
struct Generation {
    server: Server,
    half: Half,
    api: Api,
    id: String,
    request: RequestId,
    model: String,
    prompt_tokens: usize,
    dp_rank: usize,
    include_usage: bool,
    began: Instant,
    /// What has been produced.
    output: Vec<u32>,
    cached_tokens: usize,
    /// Of these, those that were on the host alone.
    cached_on_host: usize,
    retractions: u32,
    finished: bool,
    /// It ended before its last token.
    aborted: bool,
    /// The session whose history it adds to, and its whole prompt.
    session: Option<(String, Vec<u32>)>,
    /// It failed: why.
    failure: Option<TransferError>,
}

impl Server {
    /// Whether a request can be served at all.
    pub(super) fn check(&self, parsed: &Parsed) -> Result<(), BadRequest> {
        let ranks = self.inner.ranks.len();
        if let Some(rank) = parsed.dp_rank
            && !usize::try_from(rank).is_ok_and(|rank| rank < ranks)
        {
            return Err(BadRequest::new(format!("routed_dp_rank={rank} out of range [0, {ranks})")));
        }
        let longest = parsed.prompts.iter().map(Vec::len).max().unwrap_or(0);
        let most = self.inner.config.max_req_input_len();
        if longest > most {
            return Err(BadRequest::new(format!(
                "Input length ({longest} tokens) exceeds the maximum allowed length ({most} tokens). \
                 Use a shorter input or enable --allow-auto-truncate."
            )));
        }
        Ok(())
    }

    pub(super) async fn generate(&self, api: Api, parsed: Parsed) -> Response<Body> {
        let (stream, is_batch) = (parsed.stream, parsed.is_batch);
        let Some(mut generations) = self.begin(api, parsed).await else {
            return super::json(
                StatusCode::SERVICE_UNAVAILABLE,
                &json!({"error": {"message": "shutting down"}}),
            );
        };
        if stream {
            return streamed(generations.remove(0));
        }
        let mut answers = Vec::new();
        // Together: one may wait for another server.
        let all = generations.iter_mut().map(|generation| async { while generation.advance().await {} });
        futures_util::future::join_all(all).await;
        for generation in &generations {
            if let Some(failure) = generation.failure {
                return api.fail(failure);
            }
            answers.push(generation.whole());
        }
        let body = match (api, is_batch) {
            (Api::Generate, true) => Value::Array(answers),
            (Api::Completions, true) => merge_choices(answers),
            _ => answers.remove(0),
        };
        super::json(StatusCode::OK, &body)
    }

    /// A chat's answer, whole.
    pub(super) async fn complete(&self, parsed: Parsed) -> Option<Value> {
        let mut generation = self.begin(Api::Chat, parsed).await?.pop()?;
        while generation.advance().await {}
        Some(generation.whole())
    }

    async fn begin(&self, api: Api, parsed: Parsed) -> Option<Vec<Generation>> {
        let mut generations = Vec::new();
        for (index, prompt) in parsed.prompts.into_iter().enumerate() {
            let request = RequestId(self.inner.next_id.fetch_add(1, Relaxed));
            let turn = self.inner.next_rank.fetch_add(1, Relaxed) as usize % self.inner.ranks.len();
            let turn = self.rank_of_room(&parsed.bootstrap, index).unwrap_or(turn);
            let dp_rank = parsed.dp_rank.and_then(|rank| usize::try_from(rank).ok()).unwrap_or(turn);
            let id = parsed.rid.clone().unwrap_or_else(|| format!("{:032x}", request.0 + 1));
            let prompt_tokens = prompt.len();
            // The pool bounds what fits behind the prompt.
            let room = self.inner.config.pool_tokens().saturating_sub(prompt_tokens);
            let session = parsed.session.clone().map(|session| (session, prompt.clone()));
            let job = Job {
                id: request,
                namespace: parsed.namespace.clone(),
                prompt,
                output_tokens: parsed.output_tokens.min(room),
                received: false,
                priority: parsed.priority,
            };
            let half = self.half(&parsed.bootstrap, index, dp_rank, job).await?;
            self.inner.named.lock().expect("no holder panics").push((id.clone(), dp_rank, request));
            generations.push(Generation {
                server: self.clone(),
                half,
                api,
                id,
                request,
                model: parsed.model.clone().unwrap_or_else(|| self.inner.config.served_model_name.clone()),
                prompt_tokens,
                dp_rank,
                include_usage: parsed.include_usage,
                began: Instant::now(),
                output: Vec::new(),
                cached_tokens: 0,
                cached_on_host: 0,
                retractions: 0,
                finished: false,
                aborted: false,
                session,
                failure: None,
            });
        }
        Some(generations)
    }
}

impl Generation {
    /// Waits for one more token; `false` when there are no more.
    async fn advance(&mut self) -> bool {
        self.step().await;
        !self.finished
    }

    /// Waits for the tokens of one more event; `None` when there are no more.
    async fn next_event(&mut self) -> Option<usize> {
        if self.finished {
            return None;
        }
        let before = self.output.len();
        let interval = self.server.inner.config.stream_interval;
        // The first token goes out at once.
        let wanted = if before == 0 { 1 } else { interval };
        while self.output.len() - before < wanted && !self.finished {
            self.step().await;
        }
        Some(before)
    }

    /// Waits for one more token, or for the end.
    async fn step(&mut self) {
        match self.half.next(&self.server).await {
            Ok(Some(produced)) => self.take(produced),
            Ok(None) => self.abort(),
            Err(failure) => {
                self.failure = Some(failure);
                self.abort();
            }
        }
    }

    fn take(&mut self, produced: crate::scheduler::Produced) {
        self.output.push(produced.token);
        self.cached_tokens = self.half.cached_elsewhere().unwrap_or(produced.cached_tokens);
        self.cached_on_host = produced.cached_on_host.min(self.cached_tokens);
        self.retractions = produced.retractions;
        self.finished = produced.last;
        if let Some((session, prompt)) = self.session.take_if(|_| produced.last) {
            self.server.remember(&session, prompt, &self.output);
        }
    }

    fn abort(&mut self) {
        (self.finished, self.aborted) = (true, true);
    }

    fn finish_reason(&self) -> &'static str {
        if self.aborted { "abort" } else { "length" }
    }

    /// The whole answer, or what a native stream's event says of all so far.
    fn whole(&self) -> Value {
        let text = tokenizer::decode(&self.output);
        match self.api {
            Api::Generate => json!({"text": text, "output_ids": self.output, "meta_info": self.meta_info()}),
            Api::Completions => {
                let choice = json!({"index": 0, "text": text, "logprobs": null, "finish_reason": self.finish_reason(),
                    "matched_stop": null});
                self.openai("text_completion", json!([choice]), Some(self.usage()))
            }
            Api::Chat => {
                let message = json!({"role": "assistant", "content": text, "tool_calls": null});
                let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": self.finish_reason(),
                    "matched_stop": null});
                self.openai("chat.completion", json!([choice]), Some(self.usage()))
            }
        }
    }

    /// One event of a stream: what came after the first `before` tokens.
    fn event(&self, before: usize) -> Value {
        let text = tokenizer::decode(&self.output[before..]);
        let finish_reason = self.finished.then(|| self.finish_reason());
        match self.api {
            Api::Generate => self.whole(),
            Api::Completions => {
                let choice = json!({"index": 0, "text": text, "logprobs": null, "finish_reason": finish_reason,
                    "matched_stop": null});
                self.openai("text_completion", json!([choice]), None)
            }
            Api::Chat => {
                let role = (before == 0).then_some("assistant");
                let delta = json!({"role": role, "content": text, "reasoning_content": null});
                let choice = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason,
                    "matched_stop": null});
                self.openai("chat.completion.chunk", json!([choice]), None)
            }
        }
    }

    fn openai(&self, object: &str, choices: Value, usage: Option<Value>) -> Value {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        json!({"id": self.id, "object": object, "created": created, "model": self.model, "choices": choices,
            "usage": usage})
    }

    fn usage(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.output.len(),
            "total_tokens": self.prompt_tokens + self.output.len(),
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "reasoning_tokens": 0,
        })
    }

    fn meta_info(&self) -> Value {
        let length = self.output.len();
        let finish_reason = self.finished.then(|| match self.aborted {
            true => json!({"type": "abort", "message": "Aborted"}),
            false => json!({"type": "length", "length": length}),
        });
        json!({
            "id": self.id,
            "finish_reason": finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "weight_version": self.server.weight_version(),
            "num_retractions": self.retractions,
            "completion_tokens": length,
            "cached_tokens": self.cached_tokens,
            "cached_tokens_details": (self.cached_tokens > 0).then(|| {
                json!({"device": self.cached_tokens - self.cached_on_host, "host": self.cached_on_host})
            }),
            "dp_rank": (self.server.inner.config.dp_size > 1).then_some(self.dp_rank),
            "e2e_latency": self.began.elapsed().as_secs_f64(),
        })
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        let mut named = self.server.inner.named.lock().expect("no holder panics");
        named.retain(|(_, rank, id)| (*rank, *id) != (self.dp_rank, self.request));
    }
}

/// The answers to a list of prompts as one.
fn merge_choices(answers: Vec<Value>) -> Value {
    let mut merged = answers.first().cloned().unwrap_or_default();
    let choices = answers.iter().enumerate().map(|(index, answer)| {
        let mut choice = answer["choices"][0].clone();
        choice["index"] = index.into();
        choice
    });
    merged["choices"] = choices.collect();
    for field in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        merged["usage"][field] =
            answers.iter().filter_map(|answer| answer["usage"][field].as_u64()).sum::<u64>().into();
    }
    merged
}

/// What a stream sends next.
enum Stage {
    Tokens(Box<Generation>),
    Done,
    End,
}

fn streamed(generation: Generation) -> Response<Body> {
    let events = stream::unfold(Stage::Tokens(Box::new(generation)), |stage| async move {
        match stage {
            Stage::Tokens(mut generation) => match generation.next_event().await {
                Some(before) => match generation.failure {
                    Some(failure) => Some((sse(&error_event(failure)), Stage::Done)),
                    None => Some((sse(&generation.event(before)), Stage::Tokens(generation))),
                },
                None if generation.include_usage => {
                    let usage =
                        generation.openai(chunk_object(generation.api), json!([]), Some(generation.usage()));
                    Some((sse(&usage), Stage::Done))
                }
                None => Some((done(), Stage::End)),
            },
            Stage::Done => Some((done(), Stage::End)),
            Stage::End => None,
        }
    });
    let frames = futures_util::StreamExt::map(events, |data| Ok::<_, Infallible>(Frame::data(data)));
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    let content_type = HeaderValue::from_static("text/event-stream; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

fn chunk_object(api: Api) -> &'static str {
    match api {
        Api::Chat => "chat.completion.chunk",
        Api::Completions | Api::Generate => "text_completion",
    }
}

fn sse(event: &Value) -> Bytes {
    Bytes::from(format!("data: {event}\n\n"))
}

fn done() -> Bytes {
    Bytes::from_static(b"data: [DONE]\n\n")
}
