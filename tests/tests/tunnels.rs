//! Connections that go on with another protocol: WebSocket, or whatever client and worker agree on.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use espalier_tests::upstream::{Act, Upstream, answer};
use espalier_tests::{alert, until, until_ready};
use router_core::Load;
use router_grpc::{RouterConfig, RunningRouter};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const ASK: &str = "GET /v1/realtime?model=m HTTP/1.1\r\nhost: r\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-key: k\r\nkeep-alive: 5\r\n\r\n";

async fn before(upstream: &Upstream, change: impl FnOnce(&mut RouterConfig)) -> RunningRouter {
    let mut config = alert(vec![upstream.url()]);
    change(&mut config);
    let router = router_grpc::start(config).await.unwrap();
    until_ready(&router, 1).await;
    router
}

fn load(router: &RunningRouter) -> Load {
    router.router().snapshot().fleet.targets[0].load.read()
}

async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

fn switch() -> Vec<Act> {
    let head = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade, x-hop\r\nx-hop: no\r\nupgrade: websocket\r\n\
        sec-websocket-accept: a\r\n\r\nhello";
    vec![Act::Say(head.as_bytes().to_vec()), Act::Echo]
}

#[tokio::test]
async fn bytes_pass_both_ways_until_both_sides_have_ended() {
    let upstream = Upstream::start(1, |_| switch()).await;
    let router = before(&upstream, |_| {}).await;
    let mut stream = TcpStream::connect(router.http_addr()).await.unwrap();
    stream.write_all(ASK.as_bytes()).await.unwrap();
    let answered = head(&mut stream).await;
    assert!(answered.starts_with("HTTP/1.1 101 "), "{answered}");
    for line in [
        "connection: upgrade\r\n",
        "upgrade: websocket\r\n",
        "sec-websocket-accept: a\r\n",
        "x-espalier-worker",
    ] {
        assert!(answered.contains(line), "{answered}");
    }
    assert!(!answered.contains("x-hop") && !answered.contains("content-length"), "{answered}");
    let seen = upstream.requests().pop().unwrap();
    assert_eq!((seen.header("connection"), seen.header("upgrade")), (vec!["upgrade"], vec!["websocket"]));
    assert_eq!((seen.header("sec-websocket-key"), seen.header("keep-alive").len()), (vec!["k"], 0));
    let mut hello = [0; 5];
    stream.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello", "what the worker says with its head is not lost");
    assert_ne!(load(&router), Load::default(), "it is counted for as long as it lasts");
    let much: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
    let (mut read, mut write) = stream.split();
    let mut back = Vec::new();
    let send = async {
        write.write_all(&much).await.unwrap();
        // This side has said all, and still listens.
        write.shutdown().await.unwrap();
    };
    let (_, received) = tokio::join!(send, read.read_to_end(&mut back));
    received.unwrap();
    assert!(back == much);
    until("nothing is in flight", async || load(&router) == Load::default()).await;
}

#[tokio::test]
async fn a_worker_that_does_not_change_the_protocol_is_answered_for_as_ever() {
    let upstream = Upstream::start(1, |_| answer("no")).await;
    let router = before(&upstream, |_| {}).await;
    let mut stream = TcpStream::connect(router.http_addr()).await.unwrap();
    for _ in 0..2 {
        stream.write_all(ASK.as_bytes()).await.unwrap();
        assert!(head(&mut stream).await.starts_with("HTTP/1.1 200 OK\r\n"));
        let mut body = [0; 2];
        stream.read_exact(&mut body).await.unwrap();
        assert_eq!(&body, b"no");
    }
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn a_tunnel_through_which_nothing_passes_is_closed() {
    let upstream = Upstream::start(1, |_| switch()).await;
    let router = before(&upstream, |config| config.idle_timeout_secs = 1).await;
    let mut stream = TcpStream::connect(router.http_addr()).await.unwrap();
    stream.write_all(ASK.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    assert!(all.ends_with(b"hello"));
    until("nothing is in flight", async || load(&router) == Load::default()).await;
}
