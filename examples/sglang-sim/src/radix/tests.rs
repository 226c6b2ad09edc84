//! The tree beside what the real caches did.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::*;
use crate::events::{EventEncoding, encode_batch};

fn tokens(value: &Value) -> Vec<u32> {
    value["tokens"].as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32).collect()
}

fn namespace(value: &Value) -> Namespace {
    let text = |name: &str| value[name].as_str().unwrap_or("").to_owned();
    Namespace { extra_key: text("extra_key"), cache_salt: text("cache_salt") }
}

/// The time stamp of a captured batch.
fn time_stamp(payload: &[u8]) -> f64 {
    f64::from_be_bytes(payload[2..10].try_into().unwrap())
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digit).collect()
}

/// The real cache, step by step: results, sizes, and every byte of its events.
#[test]
fn it_does_what_the_real_cache_did() {
    let runs: Value = serde_json::from_str(include_str!("../../tests/fixtures/radix_cache.json")).unwrap();
    let mut steps = 0;
    for run in runs.as_array().unwrap() {
        let page_size = run["page_size"].as_u64().unwrap() as usize;
        let mut cache = RadixCache::new(page_size, Eviction::Lru, None);
        for (number, step) in run["steps"].as_array().unwrap().iter().enumerate() {
            replay(&mut cache, step, page_size, number);
            steps += 1;
        }
    }
    assert_eq!(steps, 54);
}

fn replay(cache: &mut RadixCache, step: &Value, page_size: usize, number: usize) {
    let (arguments, result) = (&step["args"], &step["result"]);
    let at = format!("page size {page_size}, step {number}: {}", step["op"]);
    match step["op"].as_str().unwrap() {
        "construct" => {}
        "insert" => {
            let found = cache.insert(&namespace(arguments), &tokens(arguments), Storing::default()).tokens;
            assert_eq!(found as u64, result["prefix_len"].as_u64().unwrap(), "{at}");
        }
        "match_prefix" => {
            let found = cache.match_prefix(&namespace(arguments), &tokens(arguments)).tokens;
            assert_eq!(found as u64, result["device_prefix_len"].as_u64().unwrap(), "{at}");
        }
        "lock" => {
            let last = cache.match_prefix(&namespace(arguments), &tokens(arguments)).last;
            cache.lock(last);
        }
        "unlock" => {
            let last = cache.match_prefix(&namespace(arguments), &tokens(arguments)).last;
            cache.unlock(last);
        }
        "evict" => {
            let freed = cache.evict(arguments["num_tokens"].as_u64().unwrap() as usize);
            assert_eq!(freed as u64, result["num_tokens_evicted"].as_u64().unwrap(), "{at}");
        }
        "reset" => cache.clear(),
        other => panic!("the fixture has an operation the test does not know: {other}"),
    }
    let events = cache.take_events();
    match step["batch_payload_hex"].as_str() {
        None => assert_eq!(events, [], "{at}"),
        Some(captured) => {
            let captured = unhex(captured);
            let ours = encode_batch(time_stamp(&captured), &events, page_size, 0, EventEncoding::Map);
            assert_eq!(ours, captured, "{at}");
        }
    }
    assert_eq!(cache.evictable_tokens() as u64, step["evictable_tokens"].as_u64().unwrap(), "{at}");
    assert_eq!(cache.protected_tokens() as u64, step["protected_tokens"].as_u64().unwrap(), "{at}");
}

/// A policy as a run names it.
fn eviction(run: &Value) -> Eviction {
    let number = |name: &str| run["config"][name].as_u64();
    match run["policy"].as_str().unwrap() {
        "lru" => Eviction::Lru,
        "lfu" => Eviction::Lfu,
        "fifo" => Eviction::Fifo,
        "mru" => Eviction::Mru,
        "filo" => Eviction::Filo,
        "priority" => Eviction::Priority,
        "slru" => Eviction::Slru { protected_hits: number("protected_threshold").unwrap_or(2) },
        "tlru" => {
            let tail = number("threshold").unwrap() - number("next_prompt_estimate").unwrap();
            Eviction::Tlru { tail_tokens: tail as usize }
        }
        other => panic!("the fixture has a policy the test does not know: {other}"),
    }
}

/// A sequence written as spans of a first token and how many count up from it.
fn sequence(spans: &Value) -> Vec<u32> {
    let number = |value: &Value| value.as_u64().unwrap() as u32;
    let spans = spans.as_array().unwrap().iter();
    spans.flat_map(|span| number(&span[0])..number(&span[0]) + number(&span[1])).collect()
}

/// A cache that runs a captured script.
struct Replay {
    cache: RadixCache,
    /// By the step that took them.
    locks: HashMap<u64, Option<NodeId>>,
}

impl Replay {
    /// What the step returns.
    fn step(&mut self, number: u64, step: &Value) -> Option<usize> {
        let namespace = Namespace::default();
        match step[0].as_str().unwrap() {
            "insert" => {
                let counted = step[3].as_u64().unwrap() as usize;
                let storing = Storing { priority: step[2].as_i64().unwrap(), counted };
                Some(self.cache.insert(&namespace, &sequence(&step[1]), storing).tokens)
            }
            "match" => Some(self.cache.match_prefix(&namespace, &sequence(&step[1])).tokens),
            "lock" => {
                let found = self.cache.match_prefix(&namespace, &sequence(&step[1]));
                self.cache.lock(found.last);
                self.locks.insert(number, found.last);
                Some(found.tokens)
            }
            "unlock" => {
                self.cache.unlock(self.locks.remove(&step[1].as_u64().unwrap()).unwrap());
                None
            }
            "evict" => Some(self.cache.evict(step[1].as_u64().unwrap() as usize)),
            other => panic!("the fixture has an operation the test does not know: {other}"),
        }
    }
}

/// Random scripts under every policy, as the cache of a server of 0.5.23 went through them: what every step returned, the
/// sizes after it, its victims in their order; and, as far as the plain `RadixCache` did the same, every byte of its events.
#[test]
fn under_every_policy_the_leaves_go_in_the_order_they_went_in() {
    let captured: Value = serde_json::from_str(include_str!("../../tests/fixtures/evictions.json")).unwrap();
    let (mut policies, mut bytes_compared) = (BTreeSet::new(), 0);
    for run in captured["runs"].as_array().unwrap() {
        // What the plain class alone does: its fifo takes the front of a split node for younger than the rest.
        if run["events"]["UnifiedRadixCache/rust"].is_null() {
            continue;
        }
        let script = &captured["scripts"][run["script"].as_u64().unwrap() as usize];
        let page_size = script["page_size"].as_u64().unwrap() as usize;
        let mut replay =
            Replay { cache: RadixCache::new(page_size, eviction(run), None), locks: HashMap::new() };
        replay.cache.take_events();
        let mut events_seen = Sha256::new();
        let steps = script["steps"].as_array().unwrap().iter().zip(run["steps"].as_array().unwrap());
        for (number, (step, captured)) in steps.enumerate() {
            let at = format!(
                "{} {}, script {}, step {number}: {step}",
                run["policy"], run["config"], run["script"]
            );
            let result = replay.step(number as u64, step);
            assert_eq!(json!(result), captured[0], "{at}");
            assert_eq!(json!(replay.cache.evictable_tokens()), captured[1], "{at}");
            assert_eq!(json!(replay.cache.protected_tokens()), captured[2], "{at}");
            let events = replay.cache.take_events();
            let victims: Vec<i64> = events.iter().flat_map(victims).collect();
            assert_eq!(json!(victims), captured[3], "{at}");
            events_seen.update(encode_batch(0.0, &events, page_size, 0, EventEncoding::Map));
        }
        if let Some(digest) = run["events"]["RadixCache"].as_str() {
            assert_eq!(hex(&events_seen.finalize()), digest, "{} script {}", run["policy"], run["script"]);
            bytes_compared += 1;
        }
        policies.insert((run["policy"].to_string(), run["config"].to_string()));
    }
    assert_eq!((policies.len(), bytes_compared), (10, 29));
}

fn victims(event: &CacheEvent) -> Vec<i64> {
    match event {
        CacheEvent::Removed { hashes, .. } => hashes.clone(),
        _ => Vec::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An event as the fixture of the host tier tells it: what, where, how many pages, and a hash of their hashes.
fn told(event: &CacheEvent) -> Value {
    let (name, tier, hashes) = match event {
        CacheEvent::Stored { tier, hashes, .. } => ("stored", tier, hashes),
        CacheEvent::Removed { tier, hashes } => ("removed", tier, hashes),
        CacheEvent::Cleared => panic!("nothing clears it"),
    };
    let medium = match tier {
        Tier::Device => "GPU",
        Tier::Host => "CPU_PINNED",
    };
    let digest = Sha256::digest(hashes.iter().flat_map(|hash| hash.to_be_bytes()).collect::<Vec<_>>());
    json!([name, medium, hashes.len(), &hex(&digest)[..12]])
}

/// Neighbours of one kind and place as one: where an event ends differs between the cores of the real cache.
fn merged(events: Vec<CacheEvent>) -> Vec<CacheEvent> {
    let mut out: Vec<CacheEvent> = Vec::new();
    for event in events {
        match (out.last_mut(), event) {
            (
                Some(CacheEvent::Stored { tier, hashes, .. }),
                CacheEvent::Stored { tier: to, hashes: more, .. },
            ) if *tier == to => hashes.extend(more),
            (_, event) => out.push(event),
        }
    }
    out
}

impl Replay {
    /// What a step of the host tier's scripts returns.
    fn tiered_step(&mut self, number: u64, step: &Value) -> Value {
        match step[0].as_str().unwrap() {
            "acknowledge" => self.cache.acknowledge(),
            kind @ ("match" | "load" | "lock") => {
                let found = self.cache.match_prefix(&Namespace::default(), &sequence(&step[1]));
                let mut result = vec![found.tokens, found.host_tokens];
                match kind {
                    "load" => result.push(self.cache.load_back(found.last)),
                    "lock" => {
                        let end = self.cache.on_device(found.last);
                        self.cache.lock(end);
                        self.locks.insert(number, end);
                    }
                    _ => {}
                }
                return json!(result);
            }
            _ => return json!(self.step(number, step)),
        }
        Value::Null
    }
}

/// Random scripts under every write policy, as the cache of a server of 0.5.23 with a host tier went through them: what every step
/// returned, the sizes of both tiers after it, and what it told of which pages on which tier.
#[test]
fn blocks_go_between_the_tiers_as_they_went() {
    let captured: Value = serde_json::from_str(include_str!("../../tests/fixtures/host_tier.json")).unwrap();
    let mut steps_seen = 0;
    for run in captured["runs"].as_array().unwrap() {
        assert_eq!(run["cores"], json!(["rust", "python"]));
        let script = &captured["scripts"][run["script"].as_u64().unwrap() as usize];
        let number = |name: &str| script[name].as_u64().unwrap() as usize;
        let write_policy =
            <WritePolicy as clap::ValueEnum>::from_str(run["write_policy"].as_str().unwrap(), false).unwrap();
        let host = HostTier { capacity_tokens: number("host_tokens"), write_policy };
        let policy = json!({"policy": run["eviction_policy"]});
        let cache = RadixCache::new(number("page_size"), eviction(&policy), Some(host));
        let mut replay = Replay { cache, locks: HashMap::new() };
        replay.cache.take_events();
        let steps = script["steps"].as_array().unwrap().iter().zip(run["steps"].as_array().unwrap());
        for (number, (step, captured)) in steps.enumerate() {
            let at = format!("{write_policy:?} {policy}, script {}, step {number}: {step}", run["script"]);
            let result = replay.tiered_step(number as u64, step);
            assert_eq!(result, captured[0], "{at}");
            let events: Vec<_> = merged(replay.cache.take_events()).iter().map(told).collect();
            assert_eq!(json!(events), captured[4], "{at}");
            let cache = &replay.cache;
            let sizes = [cache.evictable_tokens(), cache.protected_tokens(), cache.host_tokens()];
            assert_eq!(json!(sizes), json!(captured.as_array().unwrap()[1..4]), "{at}");
            steps_seen += 1;
        }
    }
    assert!(steps_seen > 3_000, "{steps_seen}");
}

#[test]
fn paths_are_what_is_cached() {
    let mut cache = RadixCache::new(2, Eviction::Lru, None);
    let namespace = Namespace::default();
    cache.insert(&namespace, &[1, 2, 3, 4, 5], Storing::default());
    cache.insert(&namespace, &[1, 2, 9, 9], Storing::default());
    let mut paths: Vec<_> = cache.paths().into_iter().map(|(_, tokens)| tokens).collect();
    paths.sort();
    assert_eq!(paths, [vec![1, 2, 3, 4], vec![1, 2, 9, 9]]);
}
