//! Routes beyond generation: what the fleet is asked, what it is told, and what keeps its worker.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::HashSet;
use std::sync::Arc;

use espalier_tests::upstream::{Act, Upstream, answer, chunk, chunked};
use espalier_tests::{
    Answer, HttpClient, agent, alert, claimed, fast, generate, prompt, until, until_exact, until_ready,
    worker,
};
use http_body_util::BodyExt as _;
use router_core::key::Unit;
use router_core::{Done, FleetUpdate, Load, Update, WorkerState};
use router_grpc::{PolicyName, RouterConfig, RunningRouter};
use serde_json::{Value, json};
use sglang_sim::{Sim, SimConfig};
use tokio::sync::Notify;

/// Simulated workers behind a router that takes turns, so that whatever stays at one of them is kept there.
async fn fleet<const N: usize>(
    change: impl Fn(&mut SimConfig, usize),
) -> ([Sim; N], RunningRouter, HttpClient) {
    fleet_with(change, |_| {}).await
}

async fn fleet_with<const N: usize>(
    change: impl Fn(&mut SimConfig, usize),
    configure: impl FnOnce(&mut RouterConfig),
) -> ([Sim; N], RunningRouter, HttpClient) {
    let mut sims = Vec::new();
    for number in 0..N {
        let mut config = fast();
        change(&mut config, number);
        sims.push(Sim::start(config).await.unwrap());
    }
    let mut config = alert(sims.iter().map(Sim::url).collect());
    config.policy = PolicyName::RoundRobin;
    configure(&mut config);
    let router = router_grpc::start(config).await.unwrap();
    until_ready(&router, N).await;
    let client = HttpClient::of(&router);
    let Ok(sims) = sims.try_into() else { panic!("as many as were started") };
    (sims, router, client)
}

async fn remove(router: &RunningRouter, url: &str) {
    let worker = worker(router, url).unwrap().id;
    let remove = FleetUpdate::Remove { worker, done: Done::ignore() };
    router.router().updates().try_send(Update::Fleet(remove)).unwrap();
    until("it is gone", async || espalier_tests::worker(router, url).is_none()).await;
}

fn code(answer: &Answer) -> String {
    answer.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
}

fn nothing_in_flight(router: &RunningRouter) -> bool {
    router.router().snapshot().fleet.targets.iter().all(|target| target.load.read() == Load::default())
}

#[tokio::test]
async fn the_fleet_answers_as_one_server_would() {
    let names = ["a/b", "c", "c"];
    let (sims, router, client) =
        fleet::<3>(|config, number| config.served_model_name = names[number].to_owned()).await;
    let models = client.send("GET", "/v1/models", String::new()).await.json();
    assert_eq!(models["object"], "list");
    let ids: Vec<_> = models["data"].as_array().unwrap().iter().map(|model| model["id"].clone()).collect();
    assert_eq!(ids, ["a/b", "c"]);
    assert_eq!(models["data"][1]["workers"], json!([sims[1].url(), sims[2].url()]));
    let one = client.send("GET", "/v1/models/a/b", String::new()).await;
    assert_eq!((one.status, &one.json()["id"], &one.json()["object"]), (200, &json!("a/b"), &json!("model")));
    let none = client.send("GET", "/v1/models/nothing", String::new()).await;
    assert_eq!((none.status, &*code(&none)), (404, "model_not_found"));
    let tags = client.send("GET", "/api/tags", String::new()).await.json();
    assert_eq!(tags["models"].as_array().unwrap().len(), 2);
    for path in ["/model_info", "/get_model_info"] {
        let info = client.send("GET", path, String::new()).await.json();
        assert_eq!((&info["model_path"], info["workers"].as_array().unwrap().len()), (&json!("a/b"), 3));
    }
    let info = client.send("GET", "/server_info", String::new()).await.json();
    assert_eq!(info["internal_states"].as_array().unwrap().len(), 3);
    assert_eq!(info["workers"][2]["body"]["served_model_name"], "c");
    let loads = client.send("GET", "/v1/loads?include=core", String::new()).await.json();
    let of: HashSet<_> =
        loads["loads"].as_array().unwrap().iter().map(|load| load["worker"].to_string()).collect();
    assert_eq!((of.len(), &loads["num_accelerators"]), (3, &json!(3)));
    let metrics = client.send("GET", "/metrics", String::new()).await;
    assert!(metrics.header("content-type").starts_with("text/plain"));
    assert_eq!(metrics.text.matches("# TYPE sglang:num_running_reqs gauge").count(), 1);
    for sim in &sims {
        assert!(metrics.text.contains(&format!("sglang:num_running_reqs{{worker=\"{}\",", sim.url())));
    }
    for path in ["/health_generate", "/ready", "/ping", "/health"] {
        assert_eq!(client.send("GET", path, String::new()).await.status, 200, "{path}");
    }
    assert!(nothing_in_flight(&router));
}

#[tokio::test]
async fn other_work_goes_to_a_worker_of_its_model() {
    let names = ["a", "b"];
    let (sims, _router, client) =
        fleet::<2>(|config, number| config.served_model_name = names[number].to_owned()).await;
    for (model, wanted) in [("a", Some(0)), ("b", Some(1)), ("default", None)] {
        let mut seen = HashSet::new();
        for _ in 0..4 {
            let answer = client.post("/v1/tokenize", &json!({"prompt": "one two", "model": model})).await;
            assert_eq!((answer.status, &answer.json()["count"]), (200, &json!(2)), "{}", answer.text);
            seen.insert(answer.header("x-espalier-worker").to_owned());
        }
        match wanted {
            Some(at) => assert_eq!(seen, HashSet::from([sims[at].url()]), "{model}"),
            None => assert_eq!(seen.len(), 2, "the engine takes any name"),
        }
    }
}

#[tokio::test]
async fn a_worker_that_is_gone_does_not_silence_the_others() {
    let ([gone, stays], router, client) = fleet::<2>(|_, _| {}).await;
    let url = gone.url();
    gone.kill().await;
    // Whether or not it is known yet.
    let models = client.send("GET", "/v1/models", String::new()).await;
    assert_eq!((models.status, &models.json()["data"][0]["workers"]), (200, &json!([stays.url()])));
    let flushed = client.post("/flush_cache", &json!({})).await;
    assert_eq!((flushed.status, &*code(&flushed)), (502, "worker_unreachable"));
    let results = flushed.json()["results"].clone();
    assert_eq!((&results[0]["worker"], &results[0]["status"]), (&json!(url), &Value::Null));
    assert_eq!(results[0]["error"]["code"], "worker_unreachable");
    assert_eq!((&results[1]["worker"], &results[1]["status"]), (&json!(stays.url()), &json!(200)));
    assert!(nothing_in_flight(&router));
}

#[tokio::test]
async fn commands_reach_every_worker_and_each_result_is_told() {
    let (sims, router, client) = fleet::<3>(|_, _| {}).await;
    let done =
        client.post("/update_weights_from_disk", &json!({"model_path": "m", "weight_version": "v2"})).await;
    assert_eq!((done.status, &done.json()["success"]), (200, &json!(true)));
    for (result, sim) in done.json()["results"].as_array().unwrap().iter().zip(&sims) {
        assert_eq!((&result["worker"], &result["status"]), (&json!(sim.url()), &json!(200)));
        assert_eq!(result["body"]["success"], true);
    }
    assert_eq!(client.send("GET", "/model_info", String::new()).await.json()["weight_version"], "v2");
    // All of them refuse it alike: that is what one server would say.
    let refused = client.post("/update_weights_from_disk", &json!({"model_path": "missing"})).await;
    assert_eq!((refused.status, &refused.json()["success"]), (400, &json!(false)));
    // One of them is named, in either way, and its answer passes as it is.
    let named = format!("/update_weights_from_disk?x-espalier-worker={}", sims[1].url());
    let one = client.post(&named, &json!({"model_path": "m", "weight_version": "v3"})).await;
    assert_eq!((one.status, one.header("x-espalier-worker")), (200, &*sims[1].url()));
    assert_eq!(one.json()["results"], Value::Null);
    let info = client.send("GET", "/model_info", String::new()).await.json();
    assert_eq!(info["weight_version"], Value::Null, "they are not of one version");
    assert_eq!(info["workers"][1]["body"]["weight_version"], "v3");
    let unknown = client.post("/flush_cache?x-espalier-worker=http://nobody", &json!({})).await;
    assert_eq!((unknown.status, &*code(&unknown)), (404, "unknown_worker"));
    // What is about one worker's own place is not sent to all.
    let group = client.post("/init_weights_update_group", &json!({"rank_offset": 1})).await;
    assert_eq!((group.status, &*code(&group)), (400, "worker_not_named"));
    assert!(nothing_in_flight(&router));
}

#[tokio::test]
async fn a_request_can_be_sent_to_a_named_worker_also_while_it_drains() {
    let (sims, router, client) = fleet::<2>(|_, _| {}).await;
    let id = worker(&router, &sims[1].url()).unwrap().id;
    let drain = FleetUpdate::Drain { worker: id, on: true, done: Done::ignore() };
    router.router().updates().try_send(Update::Fleet(drain)).unwrap();
    until("it drains", async || worker(&router, &sims[1].url()).unwrap().state == WorkerState::Draining)
        .await;
    let body = generate(&prompt(1, 100), 1);
    for _ in 0..2 {
        assert_eq!(client.post("/generate", &body).await.header("x-espalier-worker"), sims[0].url());
        let named = format!("/generate?x-espalier-worker={}/", sims[1].url());
        assert_eq!(client.post(&named, &body).await.header("x-espalier-worker"), sims[1].url());
    }
}

#[tokio::test]
async fn a_flush_that_passes_voids_the_claims_before_it_is_answered() {
    for agents in [false, true] {
        let (sims, router, client) = fleet::<2>(|_, _| {}).await;
        let _agents = agents.then(|| sims.each_ref().map(|sim| agent(sim, &[&router])));
        for first in 0..4 {
            client.post("/generate", &generate(&prompt(first, 500), 2)).await;
        }
        until("both are claimed to hold something", async || {
            !claimed(&router, &sims[0]).await.is_empty() && !claimed(&router, &sims[1]).await.is_empty()
        })
        .await;
        if agents {
            until_exact(&router, &sims[0]).await;
            until_exact(&router, &sims[1]).await;
        }
        let one = format!("/flush_cache?x-espalier-worker={}", sims[0].url());
        assert_eq!(client.post(&one, &json!({})).await.status, 200);
        assert_eq!(claimed(&router, &sims[0]).await.len(), 0, "with agents: {agents}");
        assert!(!claimed(&router, &sims[1]).await.is_empty());
        let update = json!({"model_path": "m", "weight_version": "v2"});
        assert_eq!(client.post("/update_weights_from_disk", &update).await.status, 200);
        assert_eq!(claimed(&router, &sims[1]).await.len(), 0, "with agents: {agents}");
        if agents {
            client.post("/generate", &generate(&prompt(9, 500), 2)).await;
            until_exact(&router, &sims[0]).await;
            until_exact(&router, &sims[1]).await;
        }
    }
}

#[tokio::test]
async fn a_command_is_carried_out_also_when_its_caller_goes_away_and_doubt_voids() {
    let told = Arc::new(Notify::new());
    let wait = told.clone();
    let usage = json!({"meta_info": {"prompt_tokens": 256, "cached_tokens": 0, "x": 0}}).to_string();
    let upstream = Upstream::start(1, move |seen| match seen.head.split(' ').nth(1).unwrap() {
        "/generate" => answer(&usage),
        "/flush_cache" => [vec![Act::Await(wait.clone())], answer("Cache flushed.")].concat(),
        // Who knows what it did.
        _ => vec![Act::Close],
    })
    .await;
    let router = router_grpc::start(alert(vec![upstream.url()])).await.unwrap();
    until_ready(&router, 1).await;
    let client = HttpClient::of(&router);
    let target = router.router().snapshot().fleet.targets[0].id;
    let claims = async || router.claims(target, Unit::Token).await.len();
    let fill = async || {
        client.post("/generate", &json!({"input_ids": prompt(3, 256)})).await;
        until("it is claimed", async || claims().await == 4).await;
    };
    fill().await;
    let caller = client.clone();
    let flush = tokio::spawn(async move { caller.post("/flush_cache", &json!({})).await });
    let flushing = || upstream.requests().iter().any(|seen| seen.head.starts_with("POST /flush_cache"));
    until("it is at the worker", async || flushing()).await;
    flush.abort();
    assert!(flush.await.unwrap_err().is_cancelled());
    told.notify_one();
    until("its claims are void", async || claims().await == 0).await;
    until("nothing is in flight", async || nothing_in_flight(&router)).await;
    fill().await;
    let lost = client.post("/update_weights_from_disk", &json!({"model_path": "m"})).await;
    assert_eq!((lost.status, &*code(&lost)), (502, "worker_lost"));
    assert_eq!(claims().await, 0);
}

#[tokio::test]
async fn state_whose_worker_cannot_be_reached_is_looked_for_nowhere_else() {
    let (sims, _router, client) =
        fleet_with::<2>(|_, _| {}, |config| config.health_failure_threshold = u32::MAX).await;
    let opened = client.post("/open_session", &json!({"capacity_of_str_len": 1})).await;
    let at = opened.header("x-espalier-worker").to_owned();
    let (doomed, others): (Vec<_>, Vec<_>) = sims.into_iter().partition(|sim| sim.url() == at);
    for sim in doomed {
        sim.kill().await;
    }
    let body = json!({"text": "a", "session_params": {"id": opened.json()}, "sampling_params": {"max_new_tokens": 1}});
    let answer = client.post("/generate", &body).await;
    assert_eq!((answer.status, &*code(&answer)), (502, "worker_unreachable"));
    let free = json!({"text": "a", "sampling_params": {"max_new_tokens": 1}});
    assert_eq!(client.post("/generate", &free).await.header("x-espalier-worker"), others[0].url());
}

#[tokio::test]
async fn a_broken_stream_ends_with_what_anthropics_clients_raise() {
    let upstream = Upstream::start(1, |_| {
        vec![chunked("content-type: text/event-stream\r\n"), chunk("event: ping\ndata: {}\n\n"), Act::Close]
    })
    .await;
    let router = router_grpc::start(alert(vec![upstream.url()])).await.unwrap();
    until_ready(&router, 1).await;
    let body = json!({"model": "m", "messages": [], "max_tokens": 1, "stream": true});
    let text = HttpClient::of(&router).post("/v1/messages", &body).await.text;
    let event = text.split("event: error\ndata: ").nth(1).unwrap();
    let event: Value = serde_json::from_str(event.trim()).unwrap();
    assert_eq!((&event["type"], &event["error"]["type"]), (&json!("error"), &json!("api_error")));
}

#[tokio::test]
async fn a_pause_is_not_taken_for_death() {
    let (sims, router, client) = fleet::<2>(|_, _| {}).await;
    for first in 0..4 {
        client.post("/generate", &generate(&prompt(first, 500), 2)).await;
    }
    until("it is claimed to hold something", async || !claimed(&router, &sims[0]).await.is_empty()).await;
    let held = claimed(&router, &sims[0]).await;
    let at = |path: &str| format!("{path}?x-espalier-worker={}", sims[0].url());
    let state = |router: &RunningRouter| worker(router, &sims[0].url()).unwrap();
    let paused = client.post(&at("/pause_generation"), &json!({"mode": "in_place"})).await;
    assert_eq!((paused.status, &paused.json()["status"]), (200, &json!("ok")));
    assert_eq!(state(&router).state, WorkerState::Updating);
    for _ in 0..4 {
        let elsewhere = client.post("/generate", &generate(&prompt(1, 100), 1)).await;
        assert_eq!(elsewhere.header("x-espalier-worker"), sims[1].url());
    }
    assert_eq!(client.post(&at("/continue_generation"), &json!({})).await.status, 200);
    until("it is used again", async || state(&router).state == WorkerState::Ready).await;
    assert_eq!(claimed(&router, &sims[0]).await, held, "it is what it was");
    // One that is paused by somebody else is found out, and so is its going on.
    let direct = HttpClient::at(&sims[0].url());
    direct.post("/pause_generation", &json!({"mode": "in_place"})).await;
    until("its pause is noticed", async || state(&router).state == WorkerState::Updating).await;
    direct.post("/continue_generation", &json!({})).await;
    until("its going on is noticed", async || state(&router).state == WorkerState::Ready).await;
    assert_eq!(claimed(&router, &sims[0]).await, held);
}

#[tokio::test]
async fn a_session_stays_at_its_worker_and_is_lost_with_it() {
    let ([first, second], router, client) = fleet::<2>(|_, _| {}).await;
    let mut sessions = Vec::new();
    for number in 0..4 {
        let opened = client.post("/open_session", &json!({"capacity_of_str_len": 1000})).await;
        assert_eq!(opened.status, 200, "{}", opened.text);
        let id = opened.json().as_str().unwrap().to_owned();
        sessions.push((number, id, opened.header("x-espalier-worker").to_owned()));
    }
    let at: HashSet<_> = sessions.iter().map(|(.., worker)| worker.clone()).collect();
    assert_eq!(at.len(), 2, "they are opened by load");
    let turn = |id: &str| json!({"input_ids": prompt(7, 50), "sampling_params": {"max_new_tokens": 2}, "session_params": {"id": id}});
    for (_, id, worker) in &sessions {
        for turns in 1..=3 {
            let answer = client.post("/generate", &turn(id)).await;
            assert_eq!(
                (answer.status, answer.header("x-espalier-worker")),
                (200, &**worker),
                "{}",
                answer.text
            );
            let history = (turns - 1) * 52 + 50;
            assert_eq!(answer.json()["meta_info"]["prompt_tokens"], history, "its history came first");
        }
        // By its other name too; a label that was never opened binds nothing.
        let labelled = json!({"text": "a", "session_id": id, "sampling_params": {"max_new_tokens": 1}});
        assert_eq!(client.post("/generate", &labelled).await.header("x-espalier-worker"), worker);
    }
    let label = json!({"text": "a", "session_id": "a label", "sampling_params": {"max_new_tokens": 1}});
    let mut seen = HashSet::new();
    for _ in 0..4 {
        seen.insert(client.post("/generate", &label).await.header("x-espalier-worker").to_owned());
    }
    assert_eq!(seen.len(), 2);
    let (_, closed, _) = &sessions[0];
    assert_eq!(client.post("/close_session", &json!({"session_id": closed})).await.status, 200);
    let unknown = client.post("/generate", &turn(closed)).await;
    assert_eq!((unknown.status, &*code(&unknown)), (404, "state_unknown"));
    let url = second.url();
    remove(&router, &url).await;
    let (lost, kept): (Vec<_>, Vec<_>) = sessions[1..].iter().partition(|(.., worker)| *worker == url);
    for (_, id, _) in lost {
        let answer = client.post("/generate", &turn(id)).await;
        assert_eq!((answer.status, &*code(&answer)), (410, "state_lost"));
    }
    for (_, id, _) in kept {
        assert_eq!(client.post("/generate", &turn(id)).await.header("x-espalier-worker"), first.url());
    }
    assert!(nothing_in_flight(&router));
}

#[tokio::test]
async fn a_session_keeps_the_rank_that_has_its_history() {
    let (_sims, _router, client) = fleet::<2>(|config, _| config.dp_size = 3).await;
    for _ in 0..4 {
        let id = client.post("/open_session", &json!({"capacity_of_str_len": 1})).await.json();
        let body = json!({"input_ids": prompt(7, 50), "sampling_params": {"max_new_tokens": 1},
            "session_params": {"id": id}});
        let mut places = HashSet::new();
        for _ in 0..3 {
            let answer = client.post("/generate", &body).await;
            assert_eq!(answer.status, 200, "{}", answer.text);
            let rank = answer.json()["meta_info"]["dp_rank"].to_string();
            places.insert((answer.header("x-espalier-worker").to_owned(), rank));
        }
        assert_eq!(places.len(), 1);
    }
}

#[tokio::test]
async fn a_stored_response_is_found_where_it_is_whichever_way_it_came() {
    let ([_, second], router, client) = fleet::<2>(|_, _| {}).await;
    let mut ids = Vec::new();
    for stream in [false, true, false, true, true] {
        let body = json!({"model": "sim", "input": "hi", "max_output_tokens": 3, "stream": stream});
        let made = client.post("/v1/responses", &body).await;
        assert_eq!(made.status, 200, "{}", made.text);
        let at = made.text.find("\"id\":\"").unwrap() + 6;
        let id = made.text[at..].split('"').next().unwrap().to_owned();
        ids.push((id, made.header("x-espalier-worker").to_owned()));
    }
    for (id, worker) in &ids {
        for (method, path) in
            [("GET", format!("/v1/responses/{id}")), ("POST", format!("/v1/responses/{id}/cancel"))]
        {
            let stored = client.send(method, &path, String::new()).await;
            assert_eq!(
                (stored.status, stored.header("x-espalier-worker")),
                (200, &**worker),
                "{}",
                stored.text
            );
            assert_eq!(stored.json()["id"], **id);
        }
        let next =
            json!({"model": "sim", "input": "and?", "max_output_tokens": 3, "previous_response_id": id});
        let next = client.post("/v1/responses", &next).await;
        assert_eq!((next.status, next.header("x-espalier-worker")), (200, &**worker), "{}", next.text);
    }
    let unknown = client.send("GET", "/v1/responses/resp_nobody", String::new()).await;
    assert_eq!((unknown.status, &*code(&unknown)), (404, "state_unknown"));
    assert_eq!(unknown.json()["error"]["type"], "invalid_request_error");
    remove(&router, &second.url()).await;
    let (lost, _) = ids.iter().find(|(_, worker)| *worker == second.url()).unwrap();
    let answer = client.send("GET", &format!("/v1/responses/{lost}"), String::new()).await;
    assert_eq!((answer.status, &*code(&answer)), (410, "state_lost"));
}

#[tokio::test]
async fn every_api_is_keyed_by_its_prompt() {
    let text = "one two three four five six seven ".repeat(60);
    let user = json!([{"role": "user", "content": text}]);
    let bodies = [
        ("/v1/responses", json!({"model": "sim", "input": text, "max_output_tokens": 2})),
        ("/v1/messages", json!({"model": "sim", "system": "be good", "messages": user, "max_tokens": 2})),
        (
            "/api/chat",
            json!({"model": "sim", "messages": user, "stream": false, "options": {"num_predict": 2}}),
        ),
        (
            "/api/generate",
            json!({"model": "sim", "prompt": text, "stream": false, "options": {"num_predict": 2}}),
        ),
        ("/invocations", json!({"model": "sim", "messages": user, "max_tokens": 2})),
        (
            "/vertex_generate",
            json!({"instances": [{"text": text}], "parameters": {"sampling_params": {"max_new_tokens": 2}}}),
        ),
    ];
    for (path, body) in bodies {
        let (_sims, router, client) =
            fleet_with::<3>(|_, _| {}, |config| config.policy = PolicyName::CacheAware).await;
        let first = client.post(path, &body).await;
        assert_eq!(first.status, 200, "{path}: {}", first.text);
        assert_eq!(first.header("x-espalier-predicted-tokens"), "0");
        until("its prompt is claimed", async || {
            let targets: Vec<_> =
                router.router().snapshot().fleet.targets.iter().map(|target| target.id).collect();
            let mut claims = 0;
            for target in targets {
                claims += router.claims(target, Unit::Text).await.len();
            }
            claims > 0
        })
        .await;
        for _ in 0..2 {
            let again = client.post(path, &body).await;
            assert_eq!(again.header("x-espalier-worker"), first.header("x-espalier-worker"), "{path}");
            let predicted: u64 = again.header("x-espalier-predicted-tokens").parse().unwrap();
            assert!(predicted > 0, "{path}: its prefix is known");
        }
    }
}

#[tokio::test]
async fn an_abort_goes_to_the_worker_that_has_the_request() {
    let told = Arc::new(Notify::new());
    let script = |told: Arc<Notify>| {
        move |seen: &espalier_tests::upstream::Seen| match seen.head.starts_with("POST /generate") {
            true => [vec![Act::Await(told.clone())], answer("{}")].concat(),
            false => answer(""),
        }
    };
    let upstreams = [
        Upstream::start(1, script(told.clone())).await,
        Upstream::start(1, script(told.clone())).await,
        Upstream::start(1, script(told.clone())).await,
    ];
    let mut config = alert(upstreams.iter().map(Upstream::url).collect());
    config.policy = PolicyName::RoundRobin;
    let router = router_grpc::start(config).await.unwrap();
    until_ready(&router, 3).await;
    let client = HttpClient::of(&router);
    let aborts = || -> Vec<usize> {
        let aborts = |upstream: &Upstream| {
            upstream.requests().iter().filter(|seen| seen.head.starts_with("POST /abort_request")).count()
        };
        upstreams.iter().map(aborts).collect()
    };
    let has =
        |upstream: &Upstream| upstream.requests().iter().any(|seen| seen.head.starts_with("POST /generate"));
    let body = json!({"text": "a", "rid": "job-1", "sampling_params": {"max_new_tokens": 1}});
    let (waiting, sent) = (client.clone(), body.clone());
    let request = tokio::spawn(async move { waiting.post("/generate", &sent).await });
    until("it is at a worker", async || upstreams.iter().any(has)).await;
    let holder = upstreams.iter().position(has).unwrap();
    for rid in ["job-1", "job"] {
        let before = aborts();
        let aborted = client.post("/abort_request", &json!({"rid": rid})).await;
        assert_eq!((aborted.status, aborted.json()["results"].as_array().unwrap().len()), (200, 1));
        let mut expected = before;
        expected[holder] += 1;
        assert_eq!(aborts(), expected, "{rid}");
    }
    for everybody in
        [json!({"rid": "another"}), json!({"abort_all": true}), json!({"rid": "job-1", "abort_all": true})]
    {
        let before = aborts();
        assert_eq!(client.post("/abort_request", &everybody).await.status, 200);
        assert!(aborts().iter().zip(&before).all(|(after, before)| *after == before + 1), "{everybody}");
    }
    told.notify_one();
    assert_eq!(request.await.unwrap().status, 200);
    let before = aborts();
    client.post("/abort_request", &json!({"rid": "job-1"})).await;
    assert_eq!(
        aborts().iter().sum::<usize>() - before.iter().sum::<usize>(),
        3,
        "it is forgotten at its end"
    );
    // One that its client gives up is forgotten too.
    let (waiting, sent) = (client.clone(), body.clone());
    let given_up = tokio::spawn(async move { waiting.post("/generate", &sent).await });
    until("it is in flight", async || !nothing_in_flight(&router)).await;
    given_up.abort();
    until("it is over", async || nothing_in_flight(&router)).await;
    let before = aborts();
    client.post("/abort_request", &json!({"rid": "job-1"})).await;
    assert_eq!(aborts().iter().sum::<usize>() - before.iter().sum::<usize>(), 3);
}

#[tokio::test]
async fn an_admin_key_opens_what_controls_the_engine_and_nothing_else() {
    let keys = |config: &mut SimConfig, _| {
        config.api_key = Some("k1".to_owned());
        config.admin_api_key = Some("k2".to_owned());
    };
    let configure = |config: &mut RouterConfig| {
        config.api_key = Some("k1".to_owned());
        config.api.admin_api_key = Some("k2".to_owned());
    };
    let (_sims, _router, open) = fleet_with::<2>(keys, configure).await;
    let (user, admin) = (open.clone().with_key("k1"), open.clone().with_key("k2"));
    let text = json!({"text": "a", "sampling_params": {"max_new_tokens": 1}});
    // A worker undoes escapes in a path, and so must whoever guards it.
    for path in ["/flush_cache", "/flush%5Fcache", "/%66lush_cache"] {
        assert_eq!(open.post(path, &json!({})).await.status, 401);
        let refused = user.post(path, &json!({})).await;
        assert_eq!((refused.status, &*code(&refused)), (401, "invalid_admin_api_key"), "{path}");
        assert_eq!(admin.post(path, &json!({})).await.status, 200, "{path}");
    }
    assert_eq!(user.post("/generate", &text).await.status, 200);
    assert_eq!(admin.post("/generate", &text).await.status, 401);
    for path in ["/v1/models", "/ping", "/server_info"] {
        assert_eq!(user.send("GET", path, String::new()).await.status, 200, "{path}");
        assert_eq!(open.send("GET", path, String::new()).await.status, 401, "{path}");
    }
    for path in ["/health", "/ready", "/health_generate", "/metrics", "/liveness"] {
        assert_eq!(open.send("GET", path, String::new()).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn what_takes_too_long_or_is_too_large_is_said_of_its_worker_alone() {
    let silent = Upstream::start(1, |_| vec![Act::Hang]).await;
    let large = Upstream::start(1, |_| answer(&"x".repeat(5 << 20))).await;
    let sound = Upstream::start(1, |_| answer("{}")).await;
    let mut config = alert(vec![silent.url(), large.url(), sound.url()]);
    config.api.control_timeout_secs = 0.2;
    let router = router_grpc::start(config).await.unwrap();
    until_ready(&router, 3).await;
    let client = HttpClient::of(&router);
    let answer = client.post("/configure_logging", &json!({})).await;
    assert_eq!(answer.status, 502);
    let results = answer.json()["results"].clone();
    assert_eq!(results[0]["error"]["code"], "worker_timeout");
    assert_eq!(results[1]["error"]["code"], "answer_too_large");
    assert_eq!(results[2]["status"], 200);
    assert!(nothing_in_flight(&router));
}

#[tokio::test]
async fn errors_have_the_shape_of_the_api_that_was_asked() {
    let router = router_grpc::start(alert(Vec::new())).await.unwrap();
    let client = HttpClient::of(&router);
    let refused = |path: &'static str| {
        let client = client.clone();
        async move { client.post(path, &json!({"messages": 7, "prompt": 7.5})).await.json() }
    };
    let anthropic = refused("/v1/messages").await;
    assert_eq!(
        (&anthropic["type"], &anthropic["error"]["type"]),
        (&json!("error"), &json!("invalid_request_error"))
    );
    assert!(refused("/api/chat").await["error"].is_string());
    assert_eq!(refused("/v1/chat/completions").await["error"]["type"], "invalid_request_error");
    assert_eq!(refused("/invocations").await["error"]["code"], "invalid_field");
    let models = client.send("GET", "/v1/models", String::new()).await;
    assert_eq!((models.status, &*code(&models)), (503, "no_workers"));
    let streamed = client.open("GET", "/metrics", String::new()).await.into_body().collect().await;
    assert!(streamed.is_ok());
}
