//! One keep-alive connection.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::Fault;

/// What every answer in one piece says.
const USAGE: &[u8] = b"\"cached_tokens\":";

/// See the module.
#[derive(Debug)]
pub(super) struct Connection {
    target: SocketAddr,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    pub(super) async fn open(target: SocketAddr) -> Result<Self, Fault> {
        Ok(Self { target, sender: connect(target).await? })
    }

    /// Sends a request and takes in the whole answer.
    pub(super) async fn exchange(&mut self, path: &str, body: Bytes) -> Result<(), Fault> {
        let answer = self.send(path, body).await?.into_body().collect().await?.to_bytes();
        if memchr::memmem::find(&answer, USAGE).is_none() {
            return Err(format!("an answer of {} bytes that is not a worker's", answer.len()).into());
        }
        Ok(())
    }

    /// Sends a request and waits for the head of the answer.
    pub(super) async fn send(&mut self, path: &str, body: Bytes) -> Result<Response<Incoming>, Fault> {
        // A server may close a connection after an answer, and says so.
        if self.sender.ready().await.is_err() {
            self.sender = connect(self.target).await?;
        }
        let request = Request::post(path)
            .header("host", self.target.to_string())
            .header("content-type", "application/json")
            .header("accept", "*/*")
            .header("user-agent", "espalier-bench")
            .body(Full::new(body))?;
        let response = self.sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            return Err(format!("{status}: {}", String::from_utf8_lossy(&body)).into());
        }
        Ok(response)
    }
}

async fn connect(target: SocketAddr) -> Result<SendRequest<Full<Bytes>>, Fault> {
    let stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}
