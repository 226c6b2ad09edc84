//! Threads of the data plane and their connections to workers: who serves, what is used again, and what is not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::sync::Arc;

use bytes::Bytes;
use espalier_tests::upstream::{Act, Upstream, answer, chunk, chunked, raw};
use espalier_tests::{HttpClient, alert, until, until_ready};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use router_grpc::{RouterConfig, RunningRouter};
use tokio::sync::Notify;

async fn before(upstream: &Upstream, change: impl FnOnce(&mut RouterConfig)) -> RunningRouter {
    let mut config = alert(vec![upstream.url()]);
    change(&mut config);
    let router = router_grpc::start(config).await.unwrap();
    until_ready(&router, 1).await;
    router
}

#[tokio::test]
async fn one_clients_requests_go_over_one_connection() {
    let long = "x".repeat(300_000);
    let whole = long.clone();
    let upstream = Upstream::start(1, move |seen| match seen.head.split(' ').nth(1).unwrap() {
        "/long" => answer(&whole),
        "/chunks" => vec![chunked(""), chunk("a"), chunk(&whole), chunk("")],
        "/event" => vec![chunked("content-type: text/event-stream\r\n"), chunk("data: 1\n\n"), chunk("")],
        "/none" => vec![Act::Say(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec())],
        "/head" => vec![Act::Say(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n".to_vec())],
        _ => answer("{}"),
    })
    .await;
    let router = before(&upstream, |_| {}).await;
    let client = HttpClient::of(&router);
    let mut sent = 0;
    for _ in 0..3 {
        for (method, path, length) in [
            ("GET", "/long", 300_000),
            ("POST", "/chunks", 300_001),
            ("GET", "/event", 9),
            ("GET", "/none", 0),
            ("HEAD", "/head", 0),
            ("POST", "/short", 2),
        ] {
            assert_eq!(client.send(method, path, long.clone()).await.text.len(), length, "{path}");
            sent += 1;
            assert_eq!((upstream.requests().len(), upstream.connections()), (sent, 1), "{path}");
        }
    }
}

#[tokio::test]
async fn a_kept_connection_that_its_worker_closed_is_not_used() {
    let upstream = Upstream::start(1, |_| [answer("{}"), vec![Act::Close]].concat()).await;
    let router = before(&upstream, |_| {}).await;
    let client = HttpClient::of(&router);
    for request in 1..=5 {
        // Nobody may repeat it, so that it fails if it is sent into nothing.
        assert_eq!(client.send("POST", "/flush_cache", String::new()).await.status, 200);
        until("the worker has closed", async || upstream.left() == request).await;
        assert_eq!((upstream.requests().len(), upstream.connections()), (request, request));
    }
}

#[tokio::test]
async fn a_connection_is_closed_when_it_has_waited_too_long() {
    let upstream = Upstream::start(1, |_| answer("{}")).await;
    let router = before(&upstream, |config| config.pool_idle_timeout_secs = 0.01).await;
    let closed = upstream.closed();
    assert_eq!(HttpClient::of(&router).send("GET", "/v1/models", String::new()).await.status, 200);
    until("it is closed", async || upstream.closed() > closed).await;
}

#[tokio::test]
async fn a_body_passes_as_it_comes() {
    let more = Arc::new(Notify::new());
    let told = more.clone();
    let upstream = Upstream::start(1, move |_| {
        vec![chunked(""), chunk("a"), Act::Await(told.clone()), chunk("b"), chunk("")]
    })
    .await;
    let router = before(&upstream, |_| {}).await;
    let client = HttpClient::of(&router);
    for _ in 0..3 {
        let mut body = client.open("GET", "/slow", String::new()).await.into_body();
        let mut next = async || body.frame().await.map(|frame| frame.unwrap().into_data().unwrap());
        assert_eq!(next().await.as_deref(), Some(&b"a"[..]), "before the worker says more");
        more.notify_one();
        assert_eq!(next().await.as_deref(), Some(&b"b"[..]));
        assert_eq!(next().await, None);
    }
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn every_thread_serves_until_all_are_told_to_stop() {
    let upstream = Upstream::start(1, |_| answer("{}")).await;
    let router = before(&upstream, |config| config.http_threads = 2).await;
    let address = router.http_addr();
    let request = ["GET /v1/models HTTP/1.1\r\nhost: router\r\nconnection: close\r\n\r\n"];
    until("both have been used", async || {
        assert!(raw(address, &request).await.starts_with("HTTP/1.1 200"));
        // Requests come one after the other, so that each thread needs one connection.
        upstream.connections() == 2
    })
    .await;
    router.shutdown().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody listens any more");
    until("nothing is kept", async || upstream.closed() >= 2).await;
}

#[tokio::test]
async fn a_port_that_another_router_has_is_not_shared() {
    let first = router_grpc::start(alert(Vec::new())).await.unwrap();
    let config = RouterConfig { port: first.http_addr().port(), ..alert(Vec::new()) };
    let error = router_grpc::start(config).await.unwrap_err().to_string();
    assert!(error.contains("--port"), "{error}");
}

#[tokio::test]
async fn clients_that_begin_with_http2_are_served_with_it() {
    let upstream = Upstream::start(1, |seen| answer(&String::from_utf8_lossy(&seen.body))).await;
    let router = before(&upstream, |_| {}).await;
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let uri: http::Uri = format!("http://{}/a", router.http_addr()).parse().unwrap();
    let long = Bytes::from("x".repeat(300_000));
    let requests = (0..5).map(|_| {
        let request = http::Request::post(uri.clone()).body(Full::new(long.clone())).unwrap();
        client.request(request)
    });
    for request in requests {
        let answered = request.await.unwrap();
        assert_eq!((answered.status().as_u16(), answered.version()), (200, http::Version::HTTP_2));
        assert_eq!(answered.into_body().collect().await.unwrap().to_bytes(), long);
    }
    router.shutdown().await;
}
