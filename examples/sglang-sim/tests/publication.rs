//! The scheduler beside what one of SGLang 0.5.23 published, and when: `fixtures/publication.json`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use serde::Deserialize;
use sglang_sim::{CacheEvent, Eviction, Job, Limits, Namespace, RequestId, Scheduler, Timing};

#[derive(Deserialize)]
struct Capture {
    runs: Vec<Run>,
}

/// A server with these arguments.
#[derive(Deserialize)]
struct Run {
    overlap: bool,
    decode_log_interval: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    decoding: bool,
    prompts: Vec<Prompt>,
    frames: Vec<Frame>,
}

#[derive(Deserialize)]
struct Prompt {
    tokens: usize,
    max_new_tokens: usize,
    prefills: Vec<Prefill>,
}

#[derive(Deserialize)]
struct Prefill {
    removed: Option<By>,
    stored: By,
}

/// The result that was processed when a frame was published.
#[derive(Deserialize)]
struct By {
    seq: u64,
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Frame {
    events: Vec<(String, usize)>,
}

/// A step after which something was published: the kind of its batch, and the events, each kind with its blocks.
type Published = (&'static str, Vec<(String, usize)>);

const PAGE_TOKENS: usize = 16;

/// Tokens of the prompts that fill the pool.
const FILLING: usize = 63 * PAGE_TOKENS;

struct Rank {
    scheduler: Scheduler,
    submitted: u64,
}

impl Rank {
    /// As the captured servers were started, and with a cache as full as theirs.
    fn full(run: &Run) -> Self {
        let limits = Limits {
            page_size: PAGE_TOKENS,
            max_total_tokens: 4096,
            chunked_prefill_size: 1024,
            max_running_requests: 8,
            decode_log_interval: run.decode_log_interval,
            steps_per_token: 1,
            eviction: Eviction::Lru,
            overlap_schedule: run.overlap,
            host: None,
        };
        let mut rank = Self { scheduler: Scheduler::new(limits, Timing::default()), submitted: 0 };
        for _ in 0..4 {
            rank.serve(FILLING, 1);
        }
        rank
    }

    fn submit(&mut self, tokens: usize, output_tokens: usize) -> RequestId {
        self.submitted += 1;
        let id = RequestId(self.submitted);
        let prompt = (0..tokens as u32).map(|at| self.submitted as u32 * 10_000 + at).collect();
        let namespace = Namespace::default();
        self.scheduler.submit(Job { id, namespace, prompt, output_tokens, received: false, priority: 0 });
        id
    }

    /// Steps between two prompts, as many as the capture has.
    fn decode_some(&mut self) {
        for _ in 0..6 {
            self.scheduler.step();
        }
        self.scheduler.take_events();
    }

    /// Sends a prompt and takes steps until it is answered.
    fn serve(&mut self, tokens: usize, output_tokens: usize) -> Vec<Published> {
        let id = self.submit(tokens, output_tokens);
        let mut published = Vec::new();
        loop {
            let step = self.scheduler.step();
            if step.publish {
                let events = merged(&self.scheduler.take_events());
                if !events.is_empty() {
                    published.push((if step.prefill { "prefill" } else { "decode" }, events));
                }
            }
            if step.produced.iter().any(|produced| produced.id == id && produced.last) {
                return published;
            }
        }
    }
}

/// Events in a row of one kind count as one.
fn merged(events: &[CacheEvent]) -> Vec<(String, usize)> {
    let mut all: Vec<(String, usize)> = Vec::new();
    for event in events {
        let (kind, blocks) = match event {
            CacheEvent::Stored { hashes, .. } => ("BlockStored", hashes.len()),
            CacheEvent::Removed { hashes, .. } => ("BlockRemoved", hashes.len()),
            CacheEvent::Cleared => ("AllBlocksCleared", 0),
        };
        match all.last_mut().filter(|(last, _)| last == kind) {
            Some((_, sum)) => *sum += blocks,
            None => all.push((kind.to_owned(), blocks)),
        }
    }
    all
}

fn captured() -> Capture {
    serde_json::from_str(include_str!("fixtures/publication.json")).unwrap()
}

/// Prompts that are sent one at a time to an idle server.
#[test]
fn an_idle_rank_publishes_what_the_real_one_did() {
    let capture = captured();
    let mut compared = 0;
    for run in capture.runs.iter().filter(|run| run.decode_log_interval == 1) {
        for case in
            run.cases.iter().filter(|case| case.name.starts_with("idle") && !case.name.contains("three"))
        {
            let mut rank = Rank::full(run);
            let ours =
                case.prompts.iter().flat_map(|prompt| rank.serve(prompt.tokens, prompt.max_new_tokens));
            let ours: Vec<_> = ours.map(|(_, events)| events).collect();
            let real: Vec<_> = case.frames.iter().map(|frame| frame.events.clone()).collect();
            assert_eq!(ours, real, "{}, overlap {}", case.name, run.overlap);
            compared += 1;
        }
    }
    assert_eq!(compared, 9);
}

/// Prompts that are sent one at a time while another request decodes: of what batch the result was that removals left with, and stores.
#[test]
fn a_decoding_rank_publishes_evictions_when_the_real_one_did() {
    let capture = captured();
    let mut compared = 0;
    for run in capture.runs.iter().filter(|run| run.decode_log_interval == 1) {
        let single =
            |case: &&Case| case.decoding && !case.name.contains("three") && !case.name.contains("chunks");
        for case in run.cases.iter().filter(single) {
            let mut rank = Rank::full(run);
            rank.submit(PAGE_TOKENS, 1500);
            rank.decode_some();
            for prompt in &case.prompts {
                let first = |published: &[Published], kind: &str| {
                    let has = |(_, events): &Published| events.iter().any(|(event, _)| event == kind);
                    published.iter().position(has).map(|at| (at, published[at].0))
                };
                // A decode step that needs a page evicts a whole prompt, so that the next one finds room.
                let mut served = std::iter::from_fn(|| {
                    let published = rank.serve(prompt.tokens, prompt.max_new_tokens);
                    rank.decode_some();
                    Some(published)
                });
                let evicts = |published: &Vec<Published>| {
                    first(published, "BlockRemoved")
                        .is_some_and(|removed| removed <= first(published, "BlockStored").unwrap())
                };
                let published = served.find(evicts).unwrap();
                let (removed, stored) =
                    (first(&published, "BlockRemoved").unwrap(), first(&published, "BlockStored").unwrap());
                let real = &prompt.prefills[0];
                let Some(by) = &real.removed else { continue };
                assert_eq!(
                    (Some(removed.1), Some(stored.1), removed.0 == stored.0),
                    (by.kind.as_deref(), real.stored.kind.as_deref(), by.seq == real.stored.seq),
                    "{}, overlap {}",
                    case.name,
                    run.overlap
                );
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 15, "of 18: the others found room that a decode step had made");
}
