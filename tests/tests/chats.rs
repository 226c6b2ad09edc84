//! Chats are keyed as the text that their model's template renders, so that claims on them are as exact as those on text.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::fs;
use std::path::Path;

use espalier_proto::ExplainRequest;
use espalier_tests::text::{both, tokenizer_path, until_text_is_exact};
use espalier_tests::{Answer, HttpClient, admin, agent, alert, fast, metrics, until, until_ready, worker};
use router_grpc::{RouterConfig, RunningRouter};
use serde_json::{Value, json};
use sglang_sim::tokenizer::Tokenizer;
use sglang_sim::{Sim, SimConfig};
use tempfile::TempDir;

/// In the style of Llama 3: the token that the tokenizer puts before every text stands in the template.
const HEADERS: &str = "{{- bos_token }}
{%- for message in messages %}
    {{- '[' + message.role + ']\\n\\n' + message.content | trim + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '[assistant]\\n\\n' }}
{%- endif %}";

/// In the style of ChatML, with tools before everything.
const TOOLS: &str = "{{- bos_token }}
{%- if tools %}
    {{- '<tools>\\n' }}{%- for tool in tools %}{{- tool | tojson }}{{- '\\n' }}{%- endfor %}{{- '</tools>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'critic' or message.content == 'refuse this' %}{{- raise_exception('no critics here') }}{%- endif %}
    {{- '<start>' ~ message.role ~ '\\n' ~ message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '<call>' ~ call.function.name ~ call.function.arguments | tojson ~ '</call>' }}
    {%- endfor %}
    {{- eos_token ~ '\\n' }}
{%- endfor %}
{{- '<start>assistant\\n' }}";

/// A model's directory.
fn model(template: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| fs::write(directory.path().join(name), text).unwrap();
    write("tokenizer.json", fs::read_to_string(tokenizer_path()).unwrap());
    let eos = json!({"content": "<|end|>", "lstrip": false});
    write(
        "tokenizer_config.json",
        json!({"bos_token": "<|begin|>", "eos_token": eos["content"]}).to_string(),
    );
    write("config.json", json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}).to_string());
    write("chat_template.jinja", template.to_owned());
    directory
}

/// The same where the tokenizer puts nothing before a text, and nothing can stand for it in a template: so it is with Qwen's.
fn without_beginning(directory: TempDir) -> TempDir {
    for (name, member) in [("tokenizer.json", "post_processor"), ("tokenizer_config.json", "bos_token")] {
        let path = directory.path().join(name);
        let mut file: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        file[member] = Value::Null;
        fs::write(path, file.to_string()).unwrap();
    }
    directory
}

async fn engine(model: &Path, max_total_tokens: usize) -> Sim {
    let tokenizer_path = Some(model.to_owned());
    Sim::start(SimConfig { tokenizer_path, max_total_tokens, ..fast() }).await.unwrap()
}

/// A router, and engines whose agents speak.
async fn router(sims: &[&Sim]) -> (RunningRouter, Vec<worker_agent::AgentHandle>) {
    let urls = sims.iter().map(|sim| sim.url()).collect();
    let config = RouterConfig { block_size: 16, text_block_size: 32, ..alert(urls) };
    let router = router_grpc::start(config).await.unwrap();
    until_ready(&router, sims.len()).await;
    let agents: Vec<_> = sims.iter().map(|sim| agent(sim, &[&router])).collect();
    until("the agents speak", async || {
        sims.iter().all(|sim| worker(&router, &sim.url()).is_some_and(|worker| worker.agent.is_some()))
    })
    .await;
    (router, agents)
}

async fn stop(router: RunningRouter, agents: Vec<worker_agent::AgentHandle>) {
    for agent in agents {
        agent.shutdown().await;
    }
    router.shutdown().await;
}

fn words(first: usize, count: usize) -> String {
    (0..count).map(|i| format!("word {} über\n", (i * 7919 + first * 131) % 1000)).collect()
}

fn message(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

fn chat(messages: &[Value]) -> Value {
    json!({"model": "sim", "messages": messages, "max_tokens": 1, "stream": false})
}

fn cached(answer: &Answer) -> u64 {
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0)
}

fn predicted(answer: &Answer) -> u64 {
    answer.header("x-espalier-predicted-tokens").parse().unwrap()
}

/// Sends texts of the kind that these tests have, until the router has learned how long their tokens are: what it predicts of a text
/// is an estimate.
async fn teach_length_of_tokens(router: &RunningRouter, client: &HttpClient) {
    let (tokenizer, _) = both();
    let mut first = 1000;
    until("the length of tokens is learned", async || {
        first += 1;
        let text = words(first, 60);
        let length = text.len() as f64 / tokenizer.encode(&text).len() as f64;
        client.post("/v1/completions", &json!({"model": "sim", "prompt": text, "max_tokens": 1})).await;
        (router.router().snapshot().text_bytes_per_token / length - 1.0).abs() < 0.01
    })
    .await;
}

/// The text that the router makes of a chat.
fn rendered(router: &RunningRouter, chat: &Value) -> String {
    let template = router.router().chat_template(Some("sim")).unwrap();
    template.render(chat.to_string().as_bytes()).unwrap()
}

async fn explained(router: &RunningRouter, path: &str, body: &Value) -> (String, String) {
    let request = ExplainRequest { path: path.to_owned(), body: body.to_string() };
    let answer = admin(router).await.explain(request).await.unwrap().into_inner();
    (answer.chat_keyed, answer.worker_url)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_turn_is_found_where_the_first_is_cached() {
    for model in [model(HEADERS), without_beginning(model(TOOLS))] {
        let sims = [engine(model.path(), 65_536).await, engine(model.path(), 65_536).await];
        let (router, agents) = router(&[&sims[0], &sims[1]]).await;
        let client = HttpClient::of(&router);
        teach_length_of_tokens(&router, &client).await;
        for first in 0..2 {
            let mut messages = vec![message("system", &words(first, 60)), message("user", "Hello?")];
            let opening = client.post("/v1/chat/completions", &chat(&messages)).await;
            assert!(cached(&opening) < 100, "{}", opening.text);
            for sim in &sims {
                until_text_is_exact(&router, sim).await;
            }
            messages.extend([message("assistant", "Hi! What is it?"), message("user", &words(9, 3))]);
            let body = chat(&messages);
            let (how, worker) = explained(&router, "/v1/chat/completions", &body).await;
            assert!(how.starts_with("rendered"), "{how}");
            let second = client.post("/v1/chat/completions", &body).await;
            assert_eq!(second.header("x-espalier-worker"), worker);
            assert_eq!(second.header("x-espalier-worker"), opening.header("x-espalier-worker"));
            let (cached, predicted) = (cached(&second), predicted(&second));
            assert!(
                cached > 400 && cached.abs_diff(predicted) <= 32,
                "{predicted} expected, {cached} cached"
            );
            // The text of the chat, whoever sends it, is the same prefix: the tokenizer begins it with what the template does.
            let text = rendered(&router, &body);
            assert!(!text.starts_with("<|begin|>"), "{text}");
            for sim in &sims {
                until_text_is_exact(&router, sim).await;
            }
            let length = Tokenizer::read(model.path()).unwrap().encode(&text).len() as u64;
            let body = json!({"model": "sim", "prompt": text, "max_tokens": 1});
            let same = client.post("/v1/completions", &body).await;
            assert_eq!(same.header("x-espalier-worker"), opening.header("x-espalier-worker"));
            assert_eq!(same.json()["usage"]["prompt_tokens"], length);
            assert!(self::cached(&same) + 32 > length, "{} of {length} tokens", self::cached(&same));
        }
        let text = metrics(&router).await;
        assert!(text.contains("espalier_chats_total{keyed=\"rendered\"} 4"), "{text}");
        stop(router, agents).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chats_that_the_engine_evicts_are_no_longer_claimed() {
    let model = model(HEADERS);
    let sim = engine(model.path(), 4_096).await;
    let (router, agents) = router(&[&sim]).await;
    let client = HttpClient::of(&router);
    let opening = |first| vec![message("system", &words(first, 80)), message("user", "Hello?")];
    // Eight chats of more than 800 tokens do not fit into 4,096.
    for first in 0..8 {
        cached(&client.post("/v1/chat/completions", &chat(&opening(first))).await);
        until_text_is_exact(&router, &sim).await;
    }
    assert!(sim.stats(0).unwrap().totals.evicted_tokens > 0, "the engine had to evict");
    assert!(until_text_is_exact(&router, &sim).await > 0);
    assert!(cached(&client.post("/v1/chat/completions", &chat(&opening(7))).await) > 500);
    assert!(cached(&client.post("/v1/chat/completions", &chat(&opening(0))).await) < 100);
    stop(router, agents).await;
}

/// What Anthropic's clients send: the system apart, contents in blocks.
fn anthropics(system: &str, turns: &[(&str, &str)]) -> Value {
    let turn =
        |&(role, text): &(&str, &str)| json!({"role": role, "content": [{"type": "text", "text": text}]});
    let messages: Vec<Value> = turns.iter().map(turn).collect();
    json!({"model": "sim", "max_tokens": 1, "system": system, "messages": messages})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_is_claimed_once_by_whichever_api_it_comes() {
    let model = model(HEADERS);
    let sims = [engine(model.path(), 65_536).await, engine(model.path(), 65_536).await];
    let (router, agents) = router(&[&sims[0], &sims[1]]).await;
    let client = HttpClient::of(&router);
    teach_length_of_tokens(&router, &client).await;
    let system = words(5, 60);
    let asked = anthropics(&system, &[("user", "Hello?")]);
    let (how, _) = explained(&router, "/v1/messages", &asked).await;
    assert!(how.starts_with("rendered"), "{how}");
    let opening = client.post("/v1/messages", &asked).await;
    assert_eq!(opening.status, 200, "{}", opening.text);
    for sim in &sims {
        until_text_is_exact(&router, sim).await;
    }
    let said = [("user", "Hello?"), ("assistant", "Hi! What is it?"), ("user", "Never mind.")];
    let mut messages = vec![message("system", &system)];
    messages.extend(said.map(|(role, text)| message(role, text)));
    let body = chat(&messages);
    let asked = anthropics(&system, &said);
    let template = router.router().chat_template(Some("sim")).unwrap();
    let of_messages = template.render_messages(asked.to_string().as_bytes()).unwrap();
    assert_eq!(of_messages, rendered(&router, &body));
    let second = client.post("/v1/chat/completions", &body).await;
    assert_eq!(second.header("x-espalier-worker"), opening.header("x-espalier-worker"));
    let (cached, predicted) = (cached(&second), predicted(&second));
    assert!(cached > 400 && cached.abs_diff(predicted) <= 32, "{predicted} expected, {cached} cached");
    // And back, once what the second claimed is seen by those who decide.
    for sim in &sims {
        until_text_is_exact(&router, sim).await;
    }
    let third = client.post("/v1/messages", &asked).await;
    let length = third.json()["usage"]["input_tokens"].as_u64().unwrap();
    assert!(self::predicted(&third).abs_diff(length) <= 64, "{} of {length}", self::predicted(&third));
    let image = json!({"type": "image", "source": {"type": "url", "url": "u"}});
    let (how, _) =
        explained(&router, "/v1/messages", &json!({"messages": [{"role": "user", "content": [image]}]}))
            .await;
    assert!(how.contains("own serialisation") && how.contains("not text"), "{how}");
    let text = metrics(&router).await;
    assert!(text.contains("espalier_chats_total{keyed=\"rendered\"} 3"), "{text}");
    stop(router, agents).await;
}

/// What OpenAI's newer clients send: the system apart, and items.
fn items(system: &str, turns: &[(&str, &str)]) -> Value {
    let turn = |&(role, text): &(&str, &str)| {
        let kind = if role == "assistant" { "output_text" } else { "input_text" };
        json!({"type": "message", "role": role, "content": [{"type": kind, "text": text}]})
    };
    let input: Vec<Value> = turns.iter().map(turn).collect();
    json!({"model": "sim", "max_output_tokens": 1, "instructions": system, "input": input})
}

/// What Ollama's clients send.
fn ollamas(system: &str, turns: &[(&str, &str)]) -> Value {
    let messages = [("system", system)].into_iter().chain(turns.iter().copied());
    let messages: Vec<Value> = messages.map(|(role, text)| message(role, text)).collect();
    json!({"model": "sim", "stream": false, "options": {"num_predict": 1}, "messages": messages})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_and_ollamas_chats_continue_those_of_the_other_apis() {
    let model = model(HEADERS);
    let sims = [engine(model.path(), 65_536).await, engine(model.path(), 65_536).await];
    let (router, agents) = router(&[&sims[0], &sims[1]]).await;
    let client = HttpClient::of(&router);
    teach_length_of_tokens(&router, &client).await;
    let system = words(5, 60);
    let turns = [
        ("user", "Hello?"),
        ("assistant", "Hi! What is it?"),
        ("user", "Never mind."),
        ("assistant", "I do not."),
        ("user", "Well then."),
    ];
    let opening = client.post("/v1/responses", &items(&system, &turns[..1])).await;
    assert_eq!(opening.status, 200, "{}", opening.text);
    for sim in &sims {
        until_text_is_exact(&router, sim).await;
    }
    let mut messages = vec![message("system", &system)];
    messages.extend(turns[..3].iter().map(|(role, text)| message(role, text)));
    let second = client.post("/v1/chat/completions", &chat(&messages)).await;
    assert_eq!(second.header("x-espalier-worker"), opening.header("x-espalier-worker"));
    let (found, expected) = (cached(&second), predicted(&second));
    assert!(found > 400 && found.abs_diff(expected) <= 32, "{expected} expected, {found} cached");
    let length = second.json()["usage"]["prompt_tokens"].as_u64().unwrap();
    for sim in &sims {
        until_text_is_exact(&router, sim).await;
    }
    for (path, asked) in [
        ("/v1/responses", items(&system, &turns)),
        ("/api/chat", ollamas(&system, &turns)),
        ("/v1/messages", anthropics(&system, &turns)),
    ] {
        let (how, worker) = explained(&router, path, &asked).await;
        assert!(how.starts_with("rendered"), "{path}: {how}");
        assert_eq!(worker, opening.header("x-espalier-worker"), "{path}");
        let next = client.post(path, &asked).await;
        assert_eq!(next.status, 200, "{}", next.text);
        let predicted = predicted(&next);
        assert!(predicted + 64 >= length, "{path}: {predicted} of {length}");
    }
    stop(router, agents).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chats_by_other_apis_that_the_engine_evicts_are_no_longer_claimed() {
    for (path, body) in [
        ("/v1/messages", anthropics as fn(&str, &[(&str, &str)]) -> Value),
        ("/v1/responses", items),
        ("/api/chat", ollamas),
    ] {
        let model = model(HEADERS);
        let sim = engine(model.path(), 4_096).await;
        let (router, agents) = router(&[&sim]).await;
        let client = HttpClient::of(&router);
        let opening = |first| body(&words(first, 80), &[("user", "Hello?")]);
        for first in 0..8 {
            assert_eq!(client.post(path, &opening(first)).await.status, 200);
            until_text_is_exact(&router, &sim).await;
        }
        assert!(sim.stats(0).unwrap().totals.evicted_tokens > 0, "the engine had to evict");
        assert!(until_text_is_exact(&router, &sim).await > 0);
        // The last one is claimed still, and the first one no more; what is not learned yet is the length of tokens.
        assert!(predicted(&client.post(path, &opening(7)).await) > 200, "{path}");
        assert!(predicted(&client.post(path, &opening(0)).await) < 100, "{path}");
        stop(router, agents).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_of_the_responses_api_are_claimed_as_they_are_rendered_and_cached() {
    let model = model(TOOLS);
    let sim = engine(model.path(), 65_536).await;
    let (router, agents) = router(&[&sim]).await;
    let client = HttpClient::of(&router);
    teach_length_of_tokens(&router, &client).await;
    let path = "/v1/responses";
    let function = json!({"type": "function", "name": "weather", "parameters": {"b": 1, "a": 2}});
    let mut input = vec![
        json!({"role": "developer", "content": words(4, 20)}),
        message("user", &words(3, 40)),
        json!({"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}),
        json!({"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{\"b\": 1,\"a\":[]}"}),
        json!({"type": "function_call_output", "call_id": "c", "output": "sun"}),
    ];
    let body = |input: &[Value]| json!({"model": "sim", "instructions": words(6, 10), "tools": [function], "max_output_tokens": 1, "input": input});
    let cached = |answer: &Answer| {
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()["usage"]["input_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    cached(&client.post(path, &body(&input)).await);
    until_text_is_exact(&router, &sim).await;
    input.push(message("user", "And tomorrow?"));
    let next = client.post(path, &body(&input)).await;
    let (found, expected) = (cached(&next), predicted(&next));
    assert!(found > 500 && found.abs_diff(expected) <= 32, "{expected} expected, {found} cached");
    for (asked, reason) in [
        (json!({"input": [{"type": "computer_call", "id": "x"}]}), "items"),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}]}),
            "not text",
        ),
        (json!({"input": "a", "reasoning": {"reasoning_effort": "none"}}), "fields"),
        (json!({"input": "refuse this"}), "refuses"),
    ] {
        let mut asked = asked;
        asked["model"] = json!("sim");
        let (how, _) = explained(&router, path, &asked).await;
        assert!(how.contains("own serialisation") && how.contains(reason), "{asked}: {how}");
    }
    // The prompt of one that goes on from a stored response is known to its worker alone.
    let stored = json!({"model": "sim", "input": "a", "previous_response_id": next.json()["id"]});
    assert_eq!(explained(&router, path, &stored).await.0, "");
    assert_eq!(client.post(path, &stored).await.status, 200);
    stop(router, agents).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chats_that_cannot_be_rendered_are_keyed_in_the_routers_own_way() {
    let model = model(TOOLS);
    let sim = engine(model.path(), 65_536).await;
    let (router, agents) = router(&[&sim]).await;
    let client = HttpClient::of(&router);
    teach_length_of_tokens(&router, &client).await;
    let path = "/v1/chat/completions";
    let plain = chat(&[message("user", "hi")]);
    assert!(explained(&router, path, &plain).await.0.starts_with("rendered"));
    let image = json!([{"type": "image_url", "image_url": {"url": "u"}}]);
    for (messages, reason) in [
        (json!([{"role": "user", "content": "refuse this"}]), "refuses"),
        (json!([{"role": "user", "content": image}]), "not text"),
        (
            json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "prefix": true}]),
            "fields",
        ),
    ] {
        let body = json!({"messages": messages});
        let (how, _) = explained(&router, path, &body).await;
        assert!(how.contains("own serialisation") && how.contains(reason), "{how}");
    }
    assert_eq!(explained(&router, "/generate", &json!({"text": "a"})).await.0, "");
    // The engine's refusal is the client's to see.
    let refused = client.post(path, &chat(&[message("user", "refuse this")])).await;
    assert_eq!(refused.status, 400, "{}", refused.text);
    let text = metrics(&router).await;
    assert!(text.contains("espalier_chats_total{keyed=\"canonical\"} 1"), "{text}");
    // What tools are offered is part of the prompt.
    let weather =
        json!([{"type": "function", "function": {"name": "weather", "parameters": {"b": 1, "a": 2}}}]);
    let calls = json!([{"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{\"b\": 1,\"a\":[]}"}}]);
    let mut body = chat(&[
        message("user", &words(3, 40)),
        json!({"role": "assistant", "content": null, "tool_calls": calls}),
        json!({"role": "tool", "tool_call_id": "c", "content": "sun"}),
    ]);
    body["tools"] = weather;
    cached(&client.post(path, &body).await);
    until_text_is_exact(&router, &sim).await;
    let again = client.post(path, &body).await;
    assert!(cached(&again) > 300 && cached(&again).abs_diff(predicted(&again)) <= 32, "{}", again.text);
    stop(router, agents).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn templates_that_differ_are_not_used() {
    let models = [model(HEADERS), model(TOOLS)];
    let sims = [engine(models[0].path(), 65_536).await, engine(models[1].path(), 65_536).await];
    let (router, agents) = router(&[&sims[0], &sims[1]]).await;
    let body = chat(&[message("user", "hi")]);
    let (how, _) = explained(&router, "/v1/chat/completions", &body).await;
    assert!(how.contains("different templates"), "{how}");
    stop(router, agents).await;
    // An engine with a template of its own, which its agent has to be given.
    let template = models[1].path().join("chat_template.jinja");
    let config = SimConfig {
        tokenizer_path: Some(models[0].path().to_owned()),
        chat_template: Some(template.clone()),
        ..fast()
    };
    let sim = Sim::start(config).await.unwrap();
    let (router, agents) = self::router(&[&sim]).await;
    let (how, _) = explained(&router, "/v1/chat/completions", &body).await;
    assert!(how.contains("offers no template"), "{how}");
    agents.into_iter().next().unwrap().shutdown().await;
    let routers = vec![format!("http://{}", router.grpc_addr())];
    let config = worker_agent::AgentConfig {
        worker_url: sim.url(),
        routers,
        chat_template: Some(template),
        ..worker_agent::AgentConfig::default()
    };
    let agent = worker_agent::Agent::start(config).unwrap();
    until("the template is there", async || router.router().chat_template(None).is_ok()).await;
    assert_eq!(rendered(&router, &body), "<start>user\nhi<|end|>\n<start>assistant\n");
    agent.shutdown().await;
    router.shutdown().await;
}
