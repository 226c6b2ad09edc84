//! Asking the engine for batches again.
//!
//! The request is one empty frame and the first sequence number wanted; the answers are one message for each batch that
//! the engine still has, then an end marker. Up to release 0.5.21 an answer is `[empty, seq, payload]`, later
//! `[empty, topic, seq, payload]`: sequence number and payload are always the last two frames.

use std::time::Duration;

use bytes::Bytes;
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, ZmqError, ZmqMessage};

use super::subscriber::options;

/// Sequence number of the message after the last batch.
const END: u64 = u64::MAX;

/// Longest wait for one message of the answer; an idle engine answers within about 0.1 s.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// A replay that did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplayError {
    #[error("the engine has no replay socket")]
    Unavailable,
    #[error("the replay socket: {0}")]
    Socket(#[from] ZmqError),
    #[error("no answer within {MESSAGE_TIMEOUT:?}")]
    Timeout,
    #[error("an answer has {frames} frames, of which none is a sequence number")]
    Shape { frames: usize },
}

/// An answer that is being received.
pub(crate) struct Replay {
    socket: DealerSocket,
}

impl Replay {
    /// Asks for all batches from `start` on.
    pub(crate) async fn request(endpoint: Option<&str>, start: u64) -> Result<Self, ReplayError> {
        let mut socket = DealerSocket::with_options(options());
        socket.connect(endpoint.ok_or(ReplayError::Unavailable)?).await?;
        let mut request = ZmqMessage::from(Bytes::new());
        request.push_back(Bytes::copy_from_slice(&start.to_be_bytes()));
        socket.send(request).await?;
        Ok(Self { socket })
    }

    /// The next batch's sequence number and payload, or `None` after the last one.
    pub(crate) async fn next(&mut self) -> Result<Option<(u64, Bytes)>, ReplayError> {
        let message = tokio::time::timeout(MESSAGE_TIMEOUT, self.socket.recv()).await;
        let message = message.map_err(|_| ReplayError::Timeout)??;
        let frames = message.len();
        let (seq, payload) = numbered(&message).ok_or(ReplayError::Shape { frames })?;
        Ok((seq != END).then_some((seq, payload)))
    }
}

/// Sequence number and payload: the last two frames of a message.
pub(crate) fn numbered(message: &ZmqMessage) -> Option<(u64, Bytes)> {
    let seq = message.get(message.len().checked_sub(2)?)?;
    let payload = message.get(message.len() - 1)?.clone();
    Some((u64::from_be_bytes(seq.as_ref().try_into().ok()?), payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(frames: &[&[u8]]) -> ZmqMessage {
        let frames: Vec<Bytes> = frames.iter().map(|frame| Bytes::copy_from_slice(frame)).collect();
        ZmqMessage::try_from(frames).unwrap()
    }

    #[test]
    fn answers_of_both_shapes_are_read_from_their_end() {
        let seq = 7_u64.to_be_bytes();
        for frames in [&[&b""[..], &seq[..], b"p"][..], &[&b""[..], b"topic", &seq[..], b"p"][..]] {
            assert_eq!(numbered(&message(frames)), Some((7, Bytes::from_static(b"p"))));
        }
        assert_eq!(numbered(&message(&[b"p"])), None);
        assert_eq!(numbered(&message(&[b"short", b"p"])), None);
    }

    /// What a publisher with a ring of eight batches answered to several requests.
    #[test]
    fn captured_answers_are_numbered_as_they_were_sent() {
        let capture = include_str!("../../tests/fixtures/publisher.json");
        let capture: serde_json::Value = serde_json::from_str(capture).unwrap();
        let bytes = |hex: &serde_json::Value| -> Vec<u8> {
            let hex = hex.as_str().unwrap();
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
        };
        let requests = capture["replay"].as_array().unwrap();
        for request in requests {
            let answers = request["reply_frames_hex"].as_array().unwrap();
            let numbers = answers.iter().map(|frames| {
                let frames: Vec<Vec<u8>> = frames.as_array().unwrap().iter().map(bytes).collect();
                let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
                numbered(&message(&frames)).unwrap().0 as i64
            });
            let sent: Vec<i64> =
                request["seqs"].as_array().unwrap().iter().map(|seq| seq.as_i64().unwrap()).collect();
            assert_eq!(numbers.collect::<Vec<_>>(), sent);
        }
        assert!(requests.len() > 2);
    }
}
