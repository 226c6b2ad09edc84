//! Load frames.

use super::DecodeError;
use super::reader::Reader;

/// The load of one rank, as the engine publishes it. Fields that a release does not send are `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadStat {
    /// Requests in the running batch.
    pub running_requests: u32,
    /// Requests accepted and not yet scheduled.
    pub waiting_requests: u32,
    /// KV tokens held by running requests; what could be evicted does not count.
    pub used_tokens: u64,
    /// KV tokens the rank can hold.
    pub capacity_tokens: u64,
    /// The rank, where the engine names it.
    pub rank: Option<u32>,
    /// Tokens of waiting requests that will have to be computed, as the engine estimates them.
    pub waiting_uncached_tokens: Option<u64>,
    /// Tokens of all live requests, waiting ones included.
    pub total_tokens: Option<u64>,
    /// Most requests that run at once.
    pub max_running_requests: Option<u32>,
    /// Prompt tokens computed since the engine started.
    pub prefill_tokens_total: Option<u64>,
    /// Time spent on them, in microseconds.
    pub prefill_busy_us_total: Option<u64>,
}

impl LoadStat {
    /// Decodes the payload of a load frame. Fields that newer releases append are ignored.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(payload)?;
        let values = reader.array()?;
        if values == 0 || reader.text()? != b"LoadStat" {
            return Err(DecodeError::Unexpected { at: 0, expected: "a LoadStat" });
        }
        let mut left = values - 1;
        let mut next = |field| -> Result<Option<u64>, DecodeError> {
            if left == 0 {
                return Ok(None);
            }
            left -= 1;
            if reader.take_nil() { Ok(None) } else { count(&mut reader, field).map(Some) }
        };
        let required = |value: Option<u64>, field| value.ok_or(DecodeError::Missing { field });
        let running = required(next("num_running_reqs")?, "num_running_reqs")?;
        let waiting = required(next("num_waiting_reqs")?, "num_waiting_reqs")?;
        let used_tokens = required(next("num_tokens")?, "num_tokens")?;
        let capacity_tokens = required(next("max_total_num_tokens")?, "max_total_num_tokens")?;
        let rank = next("attn_dp_rank")?.map(saturated);
        let waiting_uncached_tokens = next("num_waiting_uncached_tokens")?;
        let total_tokens = next("num_total_tokens")?;
        let max_running_requests = next("max_running_requests")?.map(saturated);
        let prefill_tokens_total = next("total_prefill_uncached_tokens")?;
        let prefill_busy_us_total = next("total_prefill_busy_us")?;
        Ok(Self {
            running_requests: saturated(running),
            waiting_requests: saturated(waiting),
            used_tokens,
            capacity_tokens,
            rank,
            waiting_uncached_tokens,
            total_tokens,
            max_running_requests,
            prefill_tokens_total,
            prefill_busy_us_total,
        })
    }
}

/// A count. Estimates may arrive as floating-point numbers or slightly negative ones.
fn count(reader: &mut Reader<'_>, field: &'static str) -> Result<u64, DecodeError> {
    let mut ahead = reader.clone();
    match ahead.integer() {
        Ok(value) => {
            *reader = ahead;
            Ok(u64::try_from(value.max(0)).unwrap_or(u64::MAX))
        }
        Err(DecodeError::Unexpected { at, .. }) => {
            let value = reader.float()?;
            if value.is_finite() {
                Ok(value.max(0.0) as u64)
            } else {
                Err(DecodeError::OutOfRange { at, field })
            }
        }
        Err(error) => Err(error),
    }
}

fn saturated(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn short_and_long_frames_are_read() {
        let short = LoadStat::decode(b"\x95\xa8LoadStat\x01\x02\x03\x04").unwrap();
        assert_eq!((short.running_requests, short.waiting_requests), (1, 2));
        assert_eq!((short.used_tokens, short.capacity_tokens, short.rank), (3, 4, None));
        let long = b"\x9d\xa8LoadStat\x01\x02\x03\x04\x00\xcb\x40\x14\0\0\0\0\0\0\x06\x07\x08\x09\xa3new\x01";
        let long = LoadStat::decode(long).unwrap();
        assert_eq!((long.rank, long.waiting_uncached_tokens), (Some(0), Some(5)));
        assert_eq!(long.prefill_busy_us_total, Some(9));
    }

    #[test]
    fn other_messages_are_refused() {
        assert!(LoadStat::decode(b"\x91\xa5Other").is_err());
        assert_eq!(
            LoadStat::decode(b"\x92\xa8LoadStat\x01"),
            Err(DecodeError::Missing { field: "num_waiting_reqs" })
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_give_an_error_or_a_frame(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = LoadStat::decode(&bytes);
            let mut tagged = b"\x9b\xa8LoadStat".to_vec();
            tagged.extend(bytes);
            let _ = LoadStat::decode(&tagged);
        }
    }
}
