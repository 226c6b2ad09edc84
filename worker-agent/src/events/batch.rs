//! Batches of KV-cache events.

use super::DecodeError;
use super::reader::Reader;

/// What one forward pass did to one rank's cache.
#[derive(Clone, Debug, PartialEq)]
pub struct EventBatch {
    /// Seconds since the Unix epoch, by the engine's clock.
    pub timestamp_s: f64,
    /// The changes in the order in which they happened.
    pub events: Vec<Event>,
    /// The dp rank that publishes, where the engine names it.
    pub rank: Option<u32>,
}

/// One change of a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Pages were stored.
    Stored(Stored),
    /// Pages were removed.
    Removed(Removed),
    /// The whole cache was emptied.
    Cleared,
    /// An event of a kind that this decoder does not know.
    Unknown,
}

/// Consecutive pages of one path that were stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The engine's hash of each page.
    pub hashes: Vec<i64>,
    /// The engine's hash of the page before the first one; `None` where a prompt begins.
    pub parent: Option<i64>,
    /// The units of all pages, page after page.
    pub tokens: TokenIds,
    /// Units in one page.
    pub page_size: u32,
    /// Number of the LoRA adapter, from releases and formats that give one.
    pub lora_id: Option<i64>,
    /// Name of the LoRA adapter.
    pub lora_name: Option<String>,
    /// Salt that keeps the pages apart from equal ones.
    pub cache_salt: Option<String>,
    /// Where the pages are.
    pub medium: Option<Medium>,
}

/// Pages that were removed from one medium.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The engine's hash of each page.
    pub hashes: Vec<i64>,
    /// Where they were.
    pub medium: Option<Medium>,
}

/// Tier of the engine's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Medium {
    /// Device memory.
    Gpu,
    /// Pinned host memory.
    CpuPinned,
    /// Local disk.
    Disk,
    /// A store outside the engine.
    External,
    /// A tier that this decoder does not know.
    Other,
}

/// The units of stored pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenIds {
    /// Ordinary token ids.
    Narrow(Vec<u32>),
    /// Ids of which at least one exceeds `u32`: stand-ins for multimodal content.
    Wide(Vec<u64>),
    /// Bigrams of an EAGLE cache: each token with the one after it.
    Pairs(Vec<[u64; 2]>),
}

impl EventBatch {
    /// Decodes the payload of an event message.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(payload)?;
        let fields = reader.array()?;
        if fields < 2 {
            return Err(DecodeError::Missing { field: "events" });
        }
        let timestamp_s = reader.float()?;
        let len = reader.array()?;
        // Every event takes at least one byte.
        let mut events = Vec::with_capacity(len.min(reader.remaining()).min(1024));
        for _ in 0..len {
            events.push(event(&mut reader)?);
        }
        let rank = if fields > 2 { optional(&mut reader, |r| r.number("attn_dp_rank"))? } else { None };
        Ok(Self { timestamp_s, events, rank })
    }
}

impl TokenIds {
    /// Number of units.
    pub fn len(&self) -> usize {
        match self {
            Self::Narrow(ids) => ids.len(),
            Self::Wide(ids) => ids.len(),
            Self::Pairs(ids) => ids.len(),
        }
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The fields of an event that mean something here, under the names of the map form.
#[derive(Clone, Copy)]
enum Field {
    Hashes,
    Parent,
    Tokens,
    PageSize,
    LoraId,
    Medium,
    CacheSalt,
    LoraName,
    Ignored,
}

/// Positions of the array form, after the tag.
const STORED_POSITIONS: [Field; 9] = [
    Field::Hashes,
    Field::Parent,
    Field::Tokens,
    Field::PageSize,
    Field::LoraId,
    Field::Medium,
    Field::CacheSalt,
    Field::Ignored,
    Field::LoraName,
];
const REMOVED_POSITIONS: [Field; 2] = [Field::Hashes, Field::Medium];

/// An event under construction, of any kind.
#[derive(Default)]
struct Fields {
    hashes: Option<Vec<i64>>,
    parent: Option<i64>,
    tokens: Option<TokenIds>,
    page_size: Option<u32>,
    lora_id: Option<i64>,
    medium: Option<Medium>,
    cache_salt: Option<String>,
    lora_name: Option<String>,
}

#[derive(Clone, Copy)]
enum Kind {
    Stored,
    Removed,
    Cleared,
    Unknown,
}

fn event(reader: &mut Reader<'_>) -> Result<Event, DecodeError> {
    if reader.at_map() { map_event(reader) } else { array_event(reader) }
}

fn map_event(reader: &mut Reader<'_>) -> Result<Event, DecodeError> {
    let kind = kind_of_map(reader.clone())?;
    let pairs = reader.map()?;
    let mut fields = Fields::default();
    for _ in 0..pairs {
        let field = match key(reader)? {
            Some(name) => Field::named(name),
            None => Field::Ignored,
        };
        fields.read(field, reader)?;
    }
    fields.finish(kind)
}

/// Looks ahead for the tag, which is the first pair in practice and anywhere in principle.
fn kind_of_map(mut ahead: Reader<'_>) -> Result<Kind, DecodeError> {
    for _ in 0..ahead.map()? {
        if key(&mut ahead)? == Some(b"type") {
            return Ok(Kind::named(ahead.text()?));
        }
        ahead.skip()?;
    }
    Err(DecodeError::Missing { field: "type" })
}

/// A map's next key, `None` for one that is not a string.
fn key<'a>(reader: &mut Reader<'a>) -> Result<Option<&'a [u8]>, DecodeError> {
    let mut ahead = reader.clone();
    match ahead.text() {
        Ok(name) => {
            *reader = ahead;
            Ok(Some(name))
        }
        Err(DecodeError::Unexpected { .. }) => reader.skip().map(|()| None),
        Err(error) => Err(error),
    }
}

fn array_event(reader: &mut Reader<'_>) -> Result<Event, DecodeError> {
    let values = reader.array()?;
    if values == 0 {
        return Err(DecodeError::Missing { field: "type" });
    }
    let kind = Kind::named(reader.text()?);
    let positions: &[Field] = match kind {
        Kind::Stored => &STORED_POSITIONS,
        Kind::Removed => &REMOVED_POSITIONS,
        Kind::Cleared | Kind::Unknown => &[],
    };
    let mut fields = Fields::default();
    for position in 0..values - 1 {
        fields.read(positions.get(position).copied().unwrap_or(Field::Ignored), reader)?;
    }
    fields.finish(kind)
}

impl Kind {
    fn named(name: &[u8]) -> Self {
        match name {
            b"BlockStored" => Self::Stored,
            b"BlockRemoved" => Self::Removed,
            b"AllBlocksCleared" => Self::Cleared,
            _ => Self::Unknown,
        }
    }
}

impl Field {
    fn named(name: &[u8]) -> Self {
        match name {
            b"block_hashes" => Self::Hashes,
            b"parent_block_hash" => Self::Parent,
            b"token_ids" => Self::Tokens,
            b"block_size" => Self::PageSize,
            b"lora_id" => Self::LoraId,
            b"medium" => Self::Medium,
            b"cache_salt" => Self::CacheSalt,
            b"lora_name" => Self::LoraName,
            _ => Self::Ignored,
        }
    }
}

impl Medium {
    fn named(name: &[u8]) -> Self {
        match name {
            b"GPU" => Self::Gpu,
            b"CPU_PINNED" => Self::CpuPinned,
            b"DISK" => Self::Disk,
            b"EXTERNAL" => Self::External,
            _ => Self::Other,
        }
    }
}

impl Fields {
    fn read(&mut self, field: Field, reader: &mut Reader<'_>) -> Result<(), DecodeError> {
        match field {
            Field::Hashes => self.hashes = Some(hashes(reader)?),
            Field::Parent => self.parent = optional(reader, hash)?,
            Field::Tokens => self.tokens = Some(token_ids(reader)?),
            Field::PageSize => self.page_size = Some(reader.number("block_size")?),
            Field::LoraId => self.lora_id = optional(reader, |r| r.number("lora_id"))?,
            Field::Medium => self.medium = optional(reader, |r| r.text().map(Medium::named))?,
            Field::CacheSalt => self.cache_salt = optional(reader, string)?,
            Field::LoraName => self.lora_name = optional(reader, string)?,
            Field::Ignored => reader.skip()?,
        }
        Ok(())
    }

    fn finish(self, kind: Kind) -> Result<Event, DecodeError> {
        let missing = |field| DecodeError::Missing { field };
        Ok(match kind {
            Kind::Stored => Event::Stored(Stored {
                hashes: self.hashes.ok_or(missing("block_hashes"))?,
                parent: self.parent,
                tokens: self.tokens.ok_or(missing("token_ids"))?,
                page_size: self.page_size.ok_or(missing("block_size"))?,
                lora_id: self.lora_id,
                lora_name: self.lora_name,
                cache_salt: self.cache_salt,
                medium: self.medium,
            }),
            Kind::Removed => {
                let hashes = self.hashes.ok_or(missing("block_hashes"))?;
                Event::Removed(Removed { hashes, medium: self.medium })
            }
            Kind::Cleared => Event::Cleared,
            Kind::Unknown => Event::Unknown,
        })
    }
}

fn optional<'a, T>(
    reader: &mut Reader<'a>,
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<Option<T>, DecodeError> {
    if reader.take_nil() { Ok(None) } else { read(reader).map(Some) }
}

fn string(reader: &mut Reader<'_>) -> Result<String, DecodeError> {
    reader.text().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}

/// A page hash: 64 bits, whatever sign the encoder gave them.
fn hash(reader: &mut Reader<'_>) -> Result<i64, DecodeError> {
    let mut ahead = reader.clone();
    let value = ahead.integer()?;
    if value > i128::from(i64::MAX) {
        return reader.number::<u64>("block_hash").map(u64::cast_signed);
    }
    reader.number("block_hash")
}

fn hashes(reader: &mut Reader<'_>) -> Result<Vec<i64>, DecodeError> {
    let len = reader.array()?;
    let mut hashes = Vec::with_capacity(len.min(reader.remaining()));
    for _ in 0..len {
        hashes.push(hash(reader)?);
    }
    Ok(hashes)
}

fn token_ids(reader: &mut Reader<'_>) -> Result<TokenIds, DecodeError> {
    let len = reader.array()?;
    if len > 0 && reader.at_array() {
        return pairs(reader, len);
    }
    let mut narrow = Vec::with_capacity(len.min(reader.remaining()));
    for _ in 0..len {
        let id: u64 = reader.number("token_ids")?;
        let Ok(id) = u32::try_from(id) else {
            return wide(reader, narrow, id, len);
        };
        narrow.push(id);
    }
    Ok(TokenIds::Narrow(narrow))
}

fn wide(reader: &mut Reader<'_>, narrow: Vec<u32>, first: u64, len: usize) -> Result<TokenIds, DecodeError> {
    let mut ids: Vec<u64> = narrow.into_iter().map(u64::from).collect();
    ids.push(first);
    while ids.len() < len {
        ids.push(reader.number("token_ids")?);
    }
    Ok(TokenIds::Wide(ids))
}

fn pairs(reader: &mut Reader<'_>, len: usize) -> Result<TokenIds, DecodeError> {
    let mut ids = Vec::with_capacity(len.min(reader.remaining() / 3 + 1));
    for _ in 0..len {
        let units = reader.array()?;
        if units < 2 {
            return Err(DecodeError::Missing { field: "token_ids" });
        }
        ids.push([reader.number("token_ids")?, reader.number("token_ids")?]);
        for _ in 2..units {
            reader.skip()?;
        }
    }
    Ok(TokenIds::Pairs(ids))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The maps of release 0.5.20 with an unknown key, the tag last, and fields in another order.
    #[test]
    fn maps_are_read_by_name() {
        let mut bytes = vec![0x93, 0x01, 0x91, 0x86];
        bytes.extend(b"\xaablock_size\x02");
        bytes.extend(b"\xa9token_ids\x92\x05\x06");
        bytes.extend(b"\xa3new\x81\xa1k\x93\x01\x02\x03");
        bytes.extend(b"\xacblock_hashes\x91\xfd");
        bytes.extend(b"\xaacache_salt\xa1t");
        bytes.extend(b"\xa4type\xabBlockStored");
        bytes.push(0x02);
        let batch = EventBatch::decode(&bytes).unwrap();
        let expected = Stored {
            hashes: vec![-3],
            parent: None,
            tokens: TokenIds::Narrow(vec![5, 6]),
            page_size: 2,
            lora_id: None,
            lora_name: None,
            cache_salt: Some("t".to_owned()),
            medium: None,
        };
        assert_eq!(
            batch,
            EventBatch { timestamp_s: 1.0, events: vec![Event::Stored(expected)], rank: Some(2) }
        );
    }

    #[test]
    fn unknown_kinds_and_extra_fields_are_passed_over() {
        let bytes = b"\x94\x01\x92\x92\xa3New\x91\x01\x93\xacBlockRemoved\x91\x01\xc0\xc0\x07";
        let batch = EventBatch::decode(bytes).unwrap();
        let removed = Event::Removed(Removed { hashes: vec![1], medium: None });
        assert_eq!(batch.events, [Event::Unknown, removed]);
        assert_eq!(batch.rank, None);
    }

    #[test]
    fn what_is_missing_is_named() {
        let no_hashes = b"\x92\x01\x91\x91\xacBlockRemoved";
        assert_eq!(EventBatch::decode(no_hashes), Err(DecodeError::Missing { field: "block_hashes" }));
        let no_tag = b"\x92\x01\x91\x80";
        assert_eq!(EventBatch::decode(no_tag), Err(DecodeError::Missing { field: "type" }));
        assert_eq!(EventBatch::decode(b"\x91\x01"), Err(DecodeError::Missing { field: "events" }));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_give_an_error_or_a_batch(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = EventBatch::decode(&bytes);
        }

        /// Starts from a valid batch, so that the damage reaches deep.
        #[test]
        fn damaged_batches_give_an_error_or_a_batch(
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            keep in any::<prop::sample::Index>(),
        ) {
            let mut bytes = b"\x93\x01\x92\x84\xa4type\xabBlockStored\xacblock_hashes\x92\x01\xfe\xa9token_ids\x94\x01\x02\
                \x03\x04\xaablock_size\x02\x82\xa4type\xacBlockRemoved\xacblock_hashes\x91\x01\xc0".to_vec();
            for (index, byte) in flips {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(keep.index(bytes.len() + 1));
            let _ = EventBatch::decode(&bytes);
        }
    }
}
