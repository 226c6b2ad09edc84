//! What it takes to key a chat: rendered with its model's template, beside the canonical serialisation, which every chat is decoded
//! into: `cargo xtask bench chats`.
//!
//! Each round measures both, one after the other, so that drift of the machine meets both. A figure of one round is the median of its
//! runs.

#![allow(clippy::print_stdout, reason = "the rows are what it is run for")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on says so by panicking")]

use std::hint::black_box;
use std::time::Instant;

use chat_template::{ChatTemplate, Source};
use http::HeaderMap;
use router_http::decode::{self, RouteKind};
use serde_json::{Value, json};

/// Templates of the shapes of Llama 3 and of ChatML, from the fixtures of `chat-template`.
const TEMPLATES: [(&str, &str); 2] = [
    ("llama", include_str!("../chat-template/tests/fixtures/llama.jinja")),
    ("chatml", include_str!("../chat-template/tests/fixtures/chatml.jinja")),
];

/// Messages and bytes of the chats.
const CHATS: [(usize, usize); 3] = [(2, 4 << 10), (20, 64 << 10), (200, 64 << 10)];

/// What runs of one round take, in microseconds: the median.
fn time(runs: usize, mut once: impl FnMut() -> usize) -> f64 {
    let mut times: Vec<f64> = (0..runs)
        .map(|_| {
            let began = Instant::now();
            black_box(once());
            began.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    median(&mut times)
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}

fn chat(messages: usize, bytes: usize) -> String {
    let line = "So it went on, \"line\" by line,\nuntil the end. ";
    let content: String = line.chars().cycle().take(bytes / messages).collect();
    let role = |index: usize| if index.is_multiple_of(2) { "user" } else { "assistant" };
    let messages: Vec<Value> = (0..messages)
        .map(|index| json!({"role": role(index), "content": format!("{index}: {content}")}))
        .chain([json!({"role": "user", "content": "And then?"})])
        .collect();
    json!({"model": "m", "messages": messages, "stream": true}).to_string()
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let (rounds, runs) = if quick { (3, 20) } else { (9, 200) };
    for (name, source) in TEMPLATES {
        let special_tokens = [("bos_token".to_owned(), "<|begin_of_text|>".to_owned())].into();
        let source = Source { source: source.to_owned(), special_tokens, leading: String::new() };
        let template = ChatTemplate::compile(source).unwrap();
        for (messages, bytes) in CHATS {
            let body = chat(messages, bytes);
            let (mut rendered, mut canonical) = (Vec::new(), Vec::new());
            for _ in 0..rounds {
                rendered.push(time(runs, || template.render(body.as_bytes()).unwrap().len()));
                canonical.push(time(runs, || {
                    let facts = decode::facts(RouteKind::Chat, &HeaderMap::new(), body.as_bytes()).unwrap();
                    facts.model.map_or(0, |model| model.len())
                }));
            }
            let (ours, reference) = (median(&mut rendered), median(&mut canonical));
            let row = json!({
                "row": format!("render, {name}, {messages} messages, {} KB", bytes >> 10), "unit": "µs",
                "ours": ours, "reference": reference, "reference_name": "decode and serialise canonically",
                "ratio": reference / ours, "target": null, "met": null,
                "min": rendered[0], "max": rendered[rounds - 1], "runs": rounds,
            });
            println!("{row}");
        }
    }
}
