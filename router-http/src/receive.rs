//! Takes in a request's body: whole, since its prompt decides where it goes, within bounds of size and of silence.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::time::timeout;

use crate::error::Failure;

/// Most bytes that are set aside for what has been announced and has not come.
const MOST_RESERVED: usize = 4 << 20;

/// The whole body. `most` bytes at most; `idle` is the longest silence within it.
pub(crate) async fn whole(mut body: Incoming, most: usize, idle: Duration) -> Result<Bytes, Failure> {
    let too_large = Failure::TooLarge { limit: most };
    let announced = body.size_hint().lower();
    if announced > most as u64 {
        return Err(too_large);
    }
    let announced = usize::try_from(announced).unwrap_or(usize::MAX).min(MOST_RESERVED);
    // Most bodies are one piece, which is not copied.
    let (mut first, mut joined) = (Bytes::new(), Vec::new());
    loop {
        let frame = timeout(idle, body.frame()).await;
        let frame = match frame.map_err(|_| Failure::UploadSilent { seconds: idle.as_secs() })? {
            None => break,
            Some(Err(_)) => return Err(Failure::BodyBroken),
            Some(Ok(frame)) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        if first.len().max(joined.len()) + data.len() > most {
            return Err(too_large);
        }
        if first.is_empty() && joined.is_empty() {
            first = data;
        } else {
            if joined.is_empty() {
                joined.reserve_exact(announced.max(first.len() + data.len()));
                joined.extend_from_slice(&first);
                first = Bytes::new();
            }
            joined.extend_from_slice(&data);
        }
    }
    Ok(if joined.is_empty() { first } else { joined.into() })
}
