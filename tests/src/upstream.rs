//! A worker that does what a test tells it, byte for byte, and remembers what it was sent.

use std::sync::{Arc, Mutex};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::PATIENCE;

/// One request as it came over the wire.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The head, with its last empty line.
    pub head: String,
    pub body: Vec<u8>,
    /// The connection it came over, counted from 1 over those that brought more than health checks.
    pub connection: usize,
}

/// What is done on a connection, in order.
#[derive(Clone, Debug)]
pub enum Act {
    /// Sends bytes.
    Say(Vec<u8>),
    /// Goes on once it is told to.
    Await(Arc<Notify>),
    /// Sends back what comes until the other side ends, and closes.
    Echo,
    /// Sends nothing more until the other side closes.
    Hang,
    /// Closes.
    Close,
}

/// What has come so far.
#[derive(Debug, Default)]
struct Record {
    requests: Vec<Seen>,
    health_check: Option<Seen>,
    connections: usize,
    closed: usize,
    left: usize,
    stopped: bool,
}

type Script = dyn Fn(&Seen) -> Vec<Act> + Send + Sync;

/// A scripted worker. Dropping it closes everything.
#[derive(Debug)]
pub struct Upstream {
    port: u16,
    seen: Arc<Mutex<Record>>,
    _serving: JoinSet<()>,
}

impl Upstream {
    /// Health checks are answered as a ready worker with `dp_size` ranks would; everything else is the script's. After its last
    /// act the connection takes the next request.
    pub async fn start(dp_size: u32, script: impl Fn(&Seen) -> Vec<Act> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen: Arc<Mutex<Record>> = Arc::default();
        let record = seen.clone();
        let script: Arc<Script> = Arc::new(script);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (record, script) = (record.clone(), script.clone());
                connections.spawn(async move {
                    let end = play(stream, dp_size, &record, &*script).await;
                    let mut record = record.lock().unwrap();
                    match end {
                        Some(()) => record.left += 1,
                        None => record.closed += 1,
                    }
                });
            }
        });
        Self { port, seen, _serving: serving }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on health checks are not answered.
    pub fn stop(&self) {
        self.seen.lock().unwrap().stopped = true;
    }

    /// What it was sent so far, health checks aside.
    pub fn requests(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().requests.clone()
    }

    /// The last health check.
    pub fn health_check(&self) -> Option<Seen> {
        self.seen.lock().unwrap().health_check.clone()
    }

    /// Connections that the other side closed.
    pub fn closed(&self) -> usize {
        self.seen.lock().unwrap().closed
    }

    /// Connections that it closed itself.
    pub fn left(&self) -> usize {
        self.seen.lock().unwrap().left
    }

    /// Connections that brought more than health checks.
    pub fn connections(&self) -> usize {
        self.seen.lock().unwrap().connections
    }
}

impl Seen {
    /// The values of a header, in order.
    pub fn header(&self, name: &str) -> Vec<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }

    fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or("")
    }
}

/// An answer of known length.
pub fn answer(body: &str) -> Vec<Act> {
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    vec![Act::Say((head + body).into_bytes())]
}

/// The head of an answer in chunks, with more header lines.
pub fn chunked(more: &str) -> Act {
    Act::Say(format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n{more}\r\n").into_bytes())
}

/// One chunk.
pub fn chunk(data: &str) -> Act {
    Act::Say(format!("{:x}\r\n{data}\r\n", data.len()).into_bytes())
}

/// Serves one connection; `None` when the other side has closed it.
async fn play(mut stream: TcpStream, dp_size: u32, record: &Mutex<Record>, script: &Script) -> Option<()> {
    let mut connection = None;
    loop {
        let mut request = read(&mut stream).await?;
        let acts = match request.path() {
            // Like a process that is stopped: connections are open, and nothing is said.
            "/ready" if record.lock().unwrap().stopped => vec![Act::Hang],
            "/ready" => {
                record.lock().unwrap().health_check = Some(request);
                answer("")
            }
            "/server_info" => answer(&json!({"dp_size": dp_size, "page_size": 16}).to_string()),
            _ => {
                let mut record = record.lock().unwrap();
                request.connection = *connection.get_or_insert_with(|| {
                    record.connections += 1;
                    record.connections
                });
                record.requests.push(request.clone());
                drop(record);
                script(&request)
            }
        };
        for act in acts {
            match act {
                Act::Say(bytes) => stream.write_all(&bytes).await.ok()?,
                Act::Await(told) => told.notified().await,
                Act::Echo => {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await.ok()?;
                    return None;
                }
                Act::Hang => {
                    while stream.read(&mut [0; 1024]).await.ok()? > 0 {}
                    return None;
                }
                Act::Close => return Some(()),
            }
        }
    }
}

/// Reads one request of known length.
async fn read(stream: &mut TcpStream) -> Option<Seen> {
    let mut bytes = Vec::new();
    loop {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        if let Some(end) = end {
            let mut seen =
                Seen { head: String::from_utf8_lossy(&bytes[..end + 4]).into_owned(), ..Seen::default() };
            let length = seen.header("content-length").first().map_or(0, |length| length.parse().unwrap());
            if bytes.len() >= end + 4 + length {
                seen.body = bytes[end + 4..].to_vec();
                return Some(seen);
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

/// Sends bytes to an address and reads until the other side closes.
pub async fn raw(address: std::net::SocketAddr, pieces: &[&str]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    for piece in pieces {
        // The other side may have heard enough.
        let _ = stream.write_all(piece.as_bytes()).await;
        let _ = stream.flush().await;
    }
    let mut bytes = Vec::new();
    let read = async {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            bytes.extend_from_slice(&buffer[..count]);
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("the other side closes");
    String::from_utf8_lossy(&bytes).into_owned()
}
