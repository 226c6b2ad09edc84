//! KV-cache events and load frames in SGLang's MessagePack encodings.

use rmp::encode::{write_array_len, write_f64, write_map_len, write_nil, write_sint, write_str, write_uint};

/// One change of a prefix cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheEvent {
    /// Pages were stored after the page `parent`.
    Stored {
        /// Where.
        tier: Tier,
        /// One for each page.
        hashes: Vec<i64>,
        /// The page before; `None` where a prompt begins.
        parent: Option<i64>,
        /// Tokens of all pages.
        tokens: Vec<u32>,
        /// Empty without one.
        cache_salt: String,
    },
    /// Pages were evicted.
    Removed {
        /// From where.
        tier: Tier,
        /// In token order within a node.
        hashes: Vec<i64>,
    },
    /// Everything is gone.
    Cleared,
}

/// Where pages are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Memory of the GPU.
    Device,
    /// Memory of the host.
    Host,
}

impl CacheEvent {
    /// Takes up the change after it: a removal from the same tier, or a store of what follows. What it does not is given back.
    pub(crate) fn merge(&mut self, next: Self) -> Option<Self> {
        match (self, next) {
            (Self::Removed { tier, hashes }, Self::Removed { tier: to, hashes: more }) if *tier == to => {
                hashes.extend(more);
                None
            }
            (
                Self::Stored { tier, hashes, tokens, cache_salt, .. },
                Self::Stored {
                    tier: to,
                    hashes: more,
                    parent: Some(parent),
                    tokens: their,
                    cache_salt: salt,
                },
            ) if *tier == to && *cache_salt == salt && hashes.last() == Some(&parent) => {
                hashes.extend(more);
                tokens.extend(their);
                None
            }
            (_, next) => Some(next),
        }
    }
}

/// How events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum EventEncoding {
    /// Maps with a `type`, since 0.5.20.
    #[default]
    Map,
    /// Arrays that begin with the type, up to 0.5.19.
    Array,
}

/// What SGLang publishes of one rank's load, in the order of the frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadStat {
    /// Requests in the running batch.
    pub running: u64,
    /// Requests that wait.
    pub waiting: u64,
    /// KV tokens held by live requests.
    pub tokens: u64,
    /// KV tokens there are.
    pub max_total_tokens: u64,
    /// The rank.
    pub dp_rank: u64,
    /// Tokens of waiting requests; without metrics every one counts as uncached.
    pub waiting_uncached_tokens: u64,
    /// Tokens of all live requests.
    pub total_tokens: u64,
    /// Most requests that run at once.
    pub max_running: u64,
    /// Prompt tokens computed since the start.
    pub prefill_uncached_total: u64,
    /// Time spent on them, in microseconds.
    pub prefill_busy_us_total: u64,
}

/// Writing to memory does not fail.
const IN_MEMORY: &str = "writing to a Vec does not fail";

impl Tier {
    /// `medium` of an event.
    fn medium(self) -> &'static str {
        match self {
            Self::Device => "GPU",
            Self::Host => "CPU_PINNED",
        }
    }
}

/// A batch of events: `[ts, events, attn_dp_rank]`.
pub fn encode_batch(
    ts: f64,
    events: &[CacheEvent],
    page_size: usize,
    dp_rank: u32,
    encoding: EventEncoding,
) -> Vec<u8> {
    let mut out = Vec::new();
    write_array_len(&mut out, 3).expect(IN_MEMORY);
    write_f64(&mut out, ts).expect(IN_MEMORY);
    write_array_len(&mut out, events.len() as u32).expect(IN_MEMORY);
    for event in events {
        match encoding {
            EventEncoding::Map => encode_map(&mut out, event, page_size),
            EventEncoding::Array => encode_array(&mut out, event, page_size),
        }
    }
    write_uint(&mut out, u64::from(dp_rank)).expect(IN_MEMORY);
    out
}

/// A load frame: `["LoadStat", …]`.
pub fn encode_load(load: &LoadStat) -> Vec<u8> {
    let mut out = Vec::new();
    let fields = [
        load.running,
        load.waiting,
        load.tokens,
        load.max_total_tokens,
        load.dp_rank,
        load.waiting_uncached_tokens,
        load.total_tokens,
        load.max_running,
        load.prefill_uncached_total,
        load.prefill_busy_us_total,
    ];
    write_array_len(&mut out, fields.len() as u32 + 1).expect(IN_MEMORY);
    write_str(&mut out, "LoadStat").expect(IN_MEMORY);
    fields.iter().for_each(|field| _ = write_uint(&mut out, *field).expect(IN_MEMORY));
    out
}

fn encode_map(out: &mut Vec<u8>, event: &CacheEvent, page_size: usize) {
    let key = |out: &mut Vec<u8>, name| write_str(out, name).expect(IN_MEMORY);
    match event {
        CacheEvent::Stored { tier, hashes, parent, tokens, cache_salt } => {
            write_map_len(out, if cache_salt.is_empty() { 7 } else { 8 }).expect(IN_MEMORY);
            key(out, "type");
            key(out, "BlockStored");
            key(out, "block_hashes");
            encode_hashes(out, hashes);
            key(out, "parent_block_hash");
            encode_parent(out, *parent);
            key(out, "token_ids");
            encode_tokens(out, tokens);
            key(out, "block_size");
            write_uint(out, page_size as u64).expect(IN_MEMORY);
            key(out, "lora_id");
            write_nil(out).expect(IN_MEMORY);
            key(out, "medium");
            key(out, tier.medium());
            if !cache_salt.is_empty() {
                key(out, "cache_salt");
                write_str(out, cache_salt).expect(IN_MEMORY);
            }
        }
        CacheEvent::Removed { tier, hashes } => {
            write_map_len(out, 3).expect(IN_MEMORY);
            key(out, "type");
            key(out, "BlockRemoved");
            key(out, "block_hashes");
            encode_hashes(out, hashes);
            key(out, "medium");
            key(out, tier.medium());
        }
        CacheEvent::Cleared => {
            write_map_len(out, 1).expect(IN_MEMORY);
            key(out, "type");
            key(out, "AllBlocksCleared");
        }
    }
}

fn encode_array(out: &mut Vec<u8>, event: &CacheEvent, page_size: usize) {
    match event {
        CacheEvent::Stored { tier, hashes, parent, tokens, cache_salt } => {
            write_array_len(out, if cache_salt.is_empty() { 7 } else { 8 }).expect(IN_MEMORY);
            write_str(out, "BlockStored").expect(IN_MEMORY);
            encode_hashes(out, hashes);
            encode_parent(out, *parent);
            encode_tokens(out, tokens);
            write_uint(out, page_size as u64).expect(IN_MEMORY);
            write_nil(out).expect(IN_MEMORY);
            write_str(out, tier.medium()).expect(IN_MEMORY);
            if !cache_salt.is_empty() {
                write_str(out, cache_salt).expect(IN_MEMORY);
            }
        }
        CacheEvent::Removed { tier, hashes } => {
            write_array_len(out, 3).expect(IN_MEMORY);
            write_str(out, "BlockRemoved").expect(IN_MEMORY);
            encode_hashes(out, hashes);
            write_str(out, tier.medium()).expect(IN_MEMORY);
        }
        CacheEvent::Cleared => {
            write_array_len(out, 1).expect(IN_MEMORY);
            write_str(out, "AllBlocksCleared").expect(IN_MEMORY);
        }
    }
}

fn encode_hashes(out: &mut Vec<u8>, hashes: &[i64]) {
    write_array_len(out, hashes.len() as u32).expect(IN_MEMORY);
    hashes.iter().for_each(|hash| _ = write_sint(out, *hash).expect(IN_MEMORY));
}

fn encode_parent(out: &mut Vec<u8>, parent: Option<i64>) {
    match parent {
        Some(parent) => _ = write_sint(out, parent).expect(IN_MEMORY),
        None => write_nil(out).expect(IN_MEMORY),
    }
}

fn encode_tokens(out: &mut Vec<u8>, tokens: &[u32]) {
    write_array_len(out, tokens.len() as u32).expect(IN_MEMORY);
    tokens.iter().for_each(|token| _ = write_uint(out, u64::from(*token)).expect(IN_MEMORY));
}
