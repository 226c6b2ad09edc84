//! The call itself: the generated client, with this crate's messages on both sides of it.

use espalier_proto::CoordinatorMessage;
use espalier_proto::agent_client::AgentClient;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use super::Outgoing;
use super::incoming::{Incoming, incoming};

/// Metadata of a refusal that names the incarnation already registered.
const REGISTERED: &str = "espalier-registered-incarnation";

/// What a coordinator says in one session.
#[derive(Debug)]
pub(in crate::session) struct Inbound(Streaming<CoordinatorMessage>);

/// Opens the stream.
pub(in crate::session) async fn open(
    channel: Channel,
    outbound: mpsc::Receiver<Outgoing>,
    authorization: Option<AsciiMetadataValue>,
) -> Result<Inbound, Status> {
    let mut request = Request::new(ReceiverStream::new(outbound).map(|Outgoing(message)| message));
    if let Some(value) = authorization {
        request.metadata_mut().insert("authorization", value);
    }
    let answer = AgentClient::new(channel).connect(request).await?;
    Ok(Inbound(answer.into_inner()))
}

impl Inbound {
    /// The next message; `None` when the coordinator has closed the stream.
    pub(in crate::session) async fn next(&mut self) -> Result<Option<Incoming>, Status> {
        let message = self.0.message().await?;
        Ok(message.map(|message| incoming(message.message)))
    }
}

/// Whether a session was refused because the coordinator knows a later life of the engine, and which.
///
/// A coordinator that does not name it is understood by its text: a protocol version that it does not speak is refused with
/// the same code, and no other incarnation would help there.
pub(in crate::session) fn outdated(status: &Status) -> Option<Option<u64>> {
    if status.code() != tonic::Code::FailedPrecondition {
        return None;
    }
    let named = status.metadata().get(REGISTERED).and_then(|value| value.to_str().ok()?.parse().ok());
    (named.is_some() || status.message().contains("incarnation")).then_some(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_the_incarnation_is_told_from_others() {
        let mut status = Status::failed_precondition("the incarnation is older than the registered one");
        assert_eq!(outdated(&status), Some(None));
        status.metadata_mut().insert(REGISTERED, AsciiMetadataValue::from_static("77"));
        assert_eq!(outdated(&status), Some(Some(77)));
        assert_eq!(outdated(&Status::failed_precondition("protocol version 1 is not spoken here")), None);
        assert_eq!(outdated(&Status::invalid_argument("the incarnation must be greater than zero")), None);
    }
}
