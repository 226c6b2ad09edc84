//! Takes in a request; its body whole, since its prompt decides where it goes, within bounds of size and of silence.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Uri, Version};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use tokio::time::timeout;

use crate::error::Failure;
use crate::wire::inbound::{Upload, UploadError};

/// A request's head, by whichever version of HTTP it came.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
}

/// A request's body as it arrives.
#[derive(Debug)]
pub(crate) enum Inbound {
    Http1(Upload),
    Http2(Incoming),
}

/// The whole body. `most` bytes at most; `idle` is the longest silence within it.
pub(crate) async fn whole(body: Inbound, most: usize, idle: Duration) -> Result<Bytes, Failure> {
    match body {
        Inbound::Http1(upload) => upload.whole(most, idle).await.map_err(|error| match error {
            UploadError::TooLarge => Failure::TooLarge { limit: most },
            UploadError::Silent => Failure::UploadSilent { seconds: idle.as_secs() },
            UploadError::Broken => Failure::BodyBroken,
            UploadError::Chunk(error) => Failure::Chunks(error),
        }),
        Inbound::Http2(body) => streamed(body, most, idle).await,
    }
}

async fn streamed(body: Incoming, most: usize, idle: Duration) -> Result<Bytes, Failure> {
    if body.size_hint().lower() > most as u64 {
        return Err(Failure::TooLarge { limit: most });
    }
    let mut body = Limited::new(body, most);
    // Most bodies are one piece, which is not copied.
    let (mut first, mut joined) = (Bytes::new(), Vec::new());
    loop {
        let frame = timeout(idle, body.frame()).await;
        let frame = match frame.map_err(|_| Failure::UploadSilent { seconds: idle.as_secs() })? {
            None => break,
            Some(Err(error)) if error.is::<LengthLimitError>() => {
                return Err(Failure::TooLarge { limit: most });
            }
            Some(Err(_)) => return Err(Failure::BodyBroken),
            Some(Ok(frame)) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        if first.is_empty() && joined.is_empty() {
            first = data;
        } else {
            joined.extend_from_slice(&std::mem::take(&mut first));
            joined.extend_from_slice(&data);
        }
    }
    Ok(if joined.is_empty() { first } else { joined.into() })
}
