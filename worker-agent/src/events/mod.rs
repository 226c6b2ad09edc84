//! What an engine publishes: batches of KV-cache events and load frames, decoded from msgpack.
//!
//! SGLang encodes an event as a tagged array up to release 0.5.19 and as a tagged map from 0.5.20 on; fields come and go
//! between releases. The decoders take both forms, ignore what they do not know, never trust a declared length and
//! answer malformed bytes with a [`DecodeError`].

mod batch;
mod load;
mod reader;

pub use batch::{Event, EventBatch, Medium, Removed, Stored, TokenIds};
pub use load::LoadStat;
pub use reader::DecodeError;

/// Most bytes a payload may have. A prefill chunk of 16,384 tokens takes about 220 KB at a page size of one.
pub const MAX_PAYLOAD_BYTES: usize = 64 << 20;
