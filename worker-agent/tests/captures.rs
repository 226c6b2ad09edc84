//! Every capture of a real engine decodes to what its own decoder saw.
//!
//! The samples in `fixtures` are always tested; where the whole collection is at hand, it is walked too.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]
#![allow(clippy::print_stderr, reason = "what was skipped must be seen")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use router_core::CacheKind;
use serde_json::Value;
use worker_agent::events::{Event, EventBatch, LoadStat, Medium, TokenIds};
use worker_agent::mirror::Mirror;
use worker_agent::{EngineInfo, Eviction};

/// How many captured messages of each kind were compared.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    batches: usize,
    loads: usize,
}

fn fixture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    read(&path)
}

fn read(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let bytes = match path.extension().is_some_and(|extension| extension == "zst") {
        true => zstd::decode_all(&bytes[..]).unwrap(),
        false => bytes,
    };
    serde_json::from_slice(&bytes).unwrap()
}

fn hex(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().unwrap();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// Finds every message that was captured with its decoded form, at any depth, and compares the two.
fn compare_all(value: &Value, seen: &mut Seen) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| compare_all(value, seen)),
        Value::Object(fields) => {
            let frames = fields.get("frames_hex").and_then(Value::as_array).and_then(|frames| frames.last());
            let payload = frames.or_else(|| fields.get("payload_hex")).map(hex);
            let decoded = ["payload", "payload_decoded", "decoded"].iter().find_map(|name| fields.get(*name));
            if let (Some(payload), Some(decoded)) = (payload, decoded) {
                compare(&payload, decoded, seen);
            }
            let step = fields.get("batch_payload_hex").filter(|payload| !payload.is_null());
            if let (Some(payload), Some(events)) = (step, fields.get("events")) {
                compare_events(&EventBatch::decode(&hex(payload)).unwrap().events, events);
                seen.batches += 1;
            }
            fields.values().for_each(|value| compare_all(value, seen));
        }
        _ => {}
    }
}

fn compare(payload: &[u8], decoded: &Value, seen: &mut Seen) {
    if decoded[0] == "LoadStat" {
        compare_load(&LoadStat::decode(payload).unwrap(), decoded);
        seen.loads += 1;
        return;
    }
    let batch = EventBatch::decode(payload).unwrap();
    // The JSON parser may be off by one in the last place; the bytes are not.
    let off = batch.timestamp_s - decoded[0].as_f64().unwrap();
    assert!(off.abs() < 1e-6, "{off}");
    compare_events(&batch.events, &decoded[1]);
    assert_eq!(batch.rank.map(u64::from), decoded[2].as_u64());
    seen.batches += 1;
}

fn compare_load(load: &LoadStat, decoded: &Value) {
    let number = |at: usize| decoded[at].as_u64();
    assert_eq!(
        [
            Some(load.running_requests.into()),
            Some(load.waiting_requests.into()),
            Some(load.used_tokens),
            Some(load.capacity_tokens),
            load.rank.map(u64::from),
            load.waiting_uncached_tokens,
            load.total_tokens,
            load.max_running_requests.map(u64::from),
            load.prefill_tokens_total,
            load.prefill_busy_us_total,
        ],
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 10].map(number)
    );
}

fn compare_events(events: &[Event], decoded: &Value) {
    let decoded = decoded.as_array().unwrap();
    assert_eq!(events.len(), decoded.len());
    for (event, decoded) in events.iter().zip(decoded) {
        compare_event(event, decoded);
    }
}

/// A field of an event in either of its forms.
fn field<'a>(event: &'a Value, name: &str, position: usize) -> &'a Value {
    if event.is_array() { &event[position] } else { &event[name] }
}

fn compare_event(event: &Event, decoded: &Value) {
    let hashes = |hashes: &[i64]| assert_eq!(Value::from(hashes), *field(decoded, "block_hashes", 1));
    let medium = |medium: Option<Medium>, position| {
        let name = medium.map(|medium| match medium {
            Medium::Gpu => "GPU",
            Medium::CpuPinned => "CPU_PINNED",
            Medium::Disk => "DISK",
            Medium::External => "EXTERNAL",
            Medium::Other => "?",
        });
        assert_eq!(name, field(decoded, "medium", position).as_str());
    };
    match (event, field(decoded, "type", 0).as_str().unwrap()) {
        (Event::Cleared, "AllBlocksCleared") => {}
        (Event::Removed(removed), "BlockRemoved") => {
            hashes(&removed.hashes);
            medium(removed.medium, 2);
        }
        (Event::Stored(stored), "BlockStored") => {
            hashes(&stored.hashes);
            assert_eq!(stored.parent, field(decoded, "parent_block_hash", 2).as_i64());
            let tokens = match &stored.tokens {
                TokenIds::Narrow(ids) => Value::from(ids.as_slice()),
                TokenIds::Wide(ids) => Value::from(ids.as_slice()),
                TokenIds::Pairs(ids) => ids.iter().map(|pair| Value::from(&pair[..])).collect(),
            };
            assert_eq!(tokens, *field(decoded, "token_ids", 3));
            assert_eq!(Some(u64::from(stored.page_size)), field(decoded, "block_size", 4).as_u64());
            assert_eq!(stored.lora_id, field(decoded, "lora_id", 5).as_i64());
            medium(stored.medium, 6);
            assert_eq!(stored.cache_salt.as_deref(), field(decoded, "cache_salt", 7).as_str());
            assert_eq!(stored.lora_name.as_deref(), field(decoded, "lora_name", 9).as_str());
        }
        (event, kind) => panic!("a {kind} was decoded as {event:?}"),
    }
}

/// Follows the script of a real cache: after every step the mirror must hold as many tokens as the cache says it does,
/// and as many pages as a plain count of its events gives. Answers the number of steps.
fn follow_scripts(capture: &Value) -> usize {
    let mut steps = 0;
    for run in capture["runs"].as_array().unwrap() {
        let page_size = run["page_size"].as_u64().unwrap();
        let mut mirror = Mirror::new(page_size as u32, 10_000);
        let mut copies: HashMap<i64, usize> = HashMap::new();
        for step in run["steps"].as_array().unwrap() {
            steps += 1;
            if !step["batch_payload_hex"].is_null() {
                let batch = EventBatch::decode(&hex(&step["batch_payload_hex"])).unwrap();
                mirror.apply(&batch.events);
                count(&batch.events, &mut copies);
            }
            let tokens =
                step["evictable_tokens"].as_u64().unwrap() + step["protected_tokens"].as_u64().unwrap();
            let told = format!("{} page {page_size} {}: {}", run["cache"], run["format"], step["op"]);
            assert_eq!(mirror.stats().cached_tokens, tokens, "{told}");
            assert_eq!(copies.values().sum::<usize>() as u64 * page_size, tokens, "{told}");
            assert_eq!(mirror.len(), copies.len(), "{told}");
            assert_eq!(mirror.doubt(), None, "{told}");
        }
        let stats = mirror.stats();
        let trouble =
            [stats.unknown_removals, stats.cut_off_pages, stats.conflicting_pages, stats.unknown_events];
        assert_eq!(trouble, [0; 4]);
    }
    steps
}

fn count(events: &[Event], copies: &mut HashMap<i64, usize>) {
    for event in events {
        match event {
            Event::Stored(stored) => {
                stored.hashes.iter().for_each(|hash| *copies.entry(*hash).or_default() += 1)
            }
            Event::Removed(removed) => {
                for hash in &removed.hashes {
                    let left = copies.get_mut(hash).unwrap();
                    *left -= 1;
                    if *left == 0 {
                        copies.remove(hash);
                    }
                }
            }
            Event::Cleared => copies.clear(),
            Event::Unknown => panic!("a captured event is unknown"),
        }
    }
}

#[test]
fn samples_of_every_release_decode_exactly() {
    let mut seen = Seen::default();
    for name in ["events_by_version.json", "publisher.json", "traffic.json", "load.json", "radix.json"] {
        compare_all(&fixture(name), &mut seen);
    }
    assert_eq!((seen.loads, seen.batches > 80), (4, true), "{seen:?}");
}

#[test]
fn the_mirror_holds_what_the_real_cache_holds() {
    assert_eq!(follow_scripts(&fixture("radix.json")), 44);
}

/// Tokens of a prompt that a cache with pages of one token has the KV of, by the hashes that have followed one another in its events.
fn kv_tokens(prompt: &[u64], next: &HashMap<(Option<i64>, u64), i64>, copies: &HashMap<i64, usize>) -> u64 {
    let mut last = None;
    let held = prompt.iter().take_while(|token| {
        last = next.get(&(last, **token)).copied();
        last.is_some_and(|hash| copies.contains_key(&hash))
    });
    held.count() as u64
}

#[test]
fn hybrid_caches_publish_their_kv_and_use_less_of_it_without_a_word() {
    let capture = fixture("hybrid.json");
    assert_eq!(follow_scripts(&capture), 146);
    for run in capture["runs"].as_array().unwrap() {
        let (mut next, mut copies) = (HashMap::new(), HashMap::new());
        // What was used of each prompt since the last removal.
        let mut used_before: HashMap<Vec<u64>, u64> = HashMap::new();
        let (mut all, mut less, mut lost) = (0, 0, 0);
        for step in run["steps"].as_array().unwrap() {
            if !step["batch_payload_hex"].is_null() {
                let batch = EventBatch::decode(&hex(&step["batch_payload_hex"])).unwrap();
                count(&batch.events, &mut copies);
                for event in &batch.events {
                    match event {
                        Event::Stored(stored) => {
                            let TokenIds::Narrow(tokens) = &stored.tokens else { panic!("{stored:?}") };
                            let mut parent = stored.parent;
                            for (token, hash) in tokens.iter().zip(&stored.hashes) {
                                next.insert((parent, u64::from(*token)), *hash);
                                parent = Some(*hash);
                            }
                        }
                        _ => used_before.clear(),
                    }
                }
            }
            if step["op"] != "match" {
                continue;
            }
            let prompt: Vec<u64> =
                step["tokens"].as_array().unwrap().iter().map(|token| token.as_u64().unwrap()).collect();
            let kv = kv_tokens(&prompt, &next, &copies);
            assert_eq!(Some(kv), step["kv_tokens"].as_u64(), "{}", run["kind"]);
            let used = step["used_tokens"].as_u64().unwrap();
            assert!(used <= kv, "{used} of {kv}");
            all += 1;
            less += u32::from(used < kv);
            lost += u32::from(used_before.insert(prompt, used).is_some_and(|before| used < before));
        }
        assert!(less * 4 > all, "{less} of {all}");
        assert!(lost > 0, "a prompt lost what it needs, and no removal was published");
    }
}

#[test]
fn a_real_description_is_read() {
    let info = EngineInfo::read(&fixture("server_info.json"), "10.0.0.7").unwrap();
    assert_eq!((info.version.as_str(), info.model.as_str()), ("0.5.23", "tiny"));
    assert_eq!((info.page_size, info.dp_size, info.capacity_tokens), (16, 1, 1024));
    assert_eq!((info.eviction, info.cache_kind), (Eviction::Lru, CacheKind::Full));
    let source = &info.events[0];
    assert_eq!((source.endpoint.as_str(), source.topic.as_str()), ("tcp://10.0.0.7:31557", "kv-events"));
    assert_eq!(source.replay.as_deref(), Some("tcp://10.0.0.7:31657"));
    assert_eq!(info.loads[0].endpoint, "tcp://10.0.0.7:31558");
    assert!(info.life_fingerprint.is_some() && info.decode_log_interval == Some(40));
}

#[test]
fn the_whole_collection_decodes_exactly_where_it_is_at_hand() {
    let root: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    if !root.is_dir() {
        eprintln!("SKIPPED: the collection of captures is not here; only the samples were tested");
        return;
    }
    let mut seen = Seen::default();
    let mut files = 0;
    for folder in ["sglang-kv-events", "sglang-http"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if !(name.ends_with(".json") || name.ends_with(".json.zst")) {
                continue;
            }
            let capture = read(&path);
            compare_all(&capture, &mut seen);
            if name == "radix_cache_golden.json" {
                assert_eq!(follow_scripts(&capture), 264);
            }
            files += 1;
        }
    }
    eprintln!("{files} files: {seen:?}");
    // 42 encodings, 22 through the publisher, 14 + 14 of servers, and every step of the caches that published; the
    // replay answers repeat published batches.
    assert!(files >= 10 && seen.batches > 200, "{seen:?}");
    assert_eq!(seen.loads, 40);
}
