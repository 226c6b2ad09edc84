//! HTTP/1.1 over raw sockets: what could be read in two ways is refused on both sides, and what is right comes through however it
//! is cut into pieces.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use espalier_tests::upstream::{Act, Upstream, answer, chunk, chunked, raw};
use espalier_tests::{HttpClient, alert, until_ready};
use router_grpc::RunningRouter;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

async fn before(upstream: &Upstream) -> RunningRouter {
    let router = router_grpc::start(alert(vec![upstream.url()])).await.unwrap();
    until_ready(&router, 1).await;
    router
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// `Connection: close` is never asked for here: that [`raw`] returns at all shows that the router closes.
#[tokio::test]
async fn a_request_that_two_readers_could_understand_differently_is_refused_and_its_connection_closed() {
    let upstream = Upstream::start(1, |_| answer("{}")).await;
    let router = before(&upstream).await;
    let post = |lines: &str, body: &str| format!("POST /a HTTP/1.1\r\nHost: r\r\n{lines}\r\n{body}");
    let hidden = "GET /hidden HTTP/1.1\r\nHost: r\r\n\r\n";
    let both = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n";
    let chunks = |body: &str| post("Transfer-Encoding: chunked\r\n", body);
    let many = "x: y\r\n".repeat(200);
    let large = format!("x: {}\r\n", "y".repeat(70_000));
    let cases = [
        (post(both, &format!("0\r\n\r\n{hidden}")), 400),
        (post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", &format!("0\r\n\r\n{hidden}")), 400),
        (post("Content-Length: 0\r\nContent-Length: 44\r\n", hidden), 400),
        (post("Content-Length: 0, 44\r\n", hidden), 400),
        (post("Content-Length: -1\r\n", hidden), 400),
        (post("Content-Length: +0\r\n", hidden), 400),
        (post("Content-Length: 0x0\r\n", hidden), 400),
        (post("Content-Length : 0\r\n", hidden), 400),
        (post("Content-Length:\r\n", hidden), 400),
        (post("Transfer-Encoding: xchunked\r\n", &format!("0\r\n\r\n{hidden}")), 501),
        (post("Transfer-Encoding: chunked, identity\r\n", &format!("0\r\n\r\n{hidden}")), 501),
        (post("Transfer-Encoding : chunked\r\n", &format!("0\r\n\r\n{hidden}")), 400),
        (post("Transfer-Encoding:\u{b}chunked\r\n", &format!("0\r\n\r\n{hidden}")), 400),
        (post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n"), 501),
        (post("x: a\r\n Content-Length: 44\r\n", hidden), 400),
        (post("x: a\nTransfer-Encoding: chunked\r\n", &format!("0\r\n\r\n{hidden}")), 400),
        (post("x: a\rTransfer-Encoding: chunked\r\n", &format!("0\r\n\r\n{hidden}")), 400),
        (post("x: a\0b\r\n", hidden), 400),
        (post("Host: other\r\n", hidden), 400),
        ("GET /a HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET /a HTTP/1.1\n\n".to_owned(), 400),
        ("GET  /a HTTP/1.1\r\nHost: r\r\n\r\n".to_owned(), 400),
        ("GET a HTTP/1.1\r\nHost: r\r\n\r\n".to_owned(), 400),
        ("GET /a HTTP/1.1 \r\nHost: r\r\n\r\n".to_owned(), 400),
        ("GET /a HTTP/2.0\r\nHost: r\r\n\r\n".to_owned(), 505),
        ("G\u{0}T /a HTTP/1.1\r\nHost: r\r\n\r\n".to_owned(), 400),
        ("POST /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(), 501),
        ("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_owned(), 505),
        (chunks(&format!("0x0\r\n\r\n{hidden}")), 400),
        (chunks(&format!("1 \r\na\r\n0\r\n\r\n{hidden}")), 400),
        (chunks(&format!("1\r\nab\r\n0\r\n\r\n{hidden}")), 400),
        (chunks(&format!("1\na\n0\n\n{hidden}")), 400),
        (chunks(&format!("ffffffffffffffff1\r\na\r\n{hidden}")), 400),
        (chunks(&format!("1;{}\r\na\r\n{hidden}", "x".repeat(5000))), 400),
        (chunks(&format!("0\r\nx: \0\r\n\r\n{hidden}")), 400),
        (post(&many, ""), 431),
        (post(&large, ""), 431),
    ];
    for (request, wanted) in cases {
        let answered = raw(router.http_addr(), &[&request]).await;
        let shown: String = request.chars().take(200).collect();
        assert_eq!(status(&answered), wanted, "{}\n{answered}", shown.escape_debug());
        assert!(answered.contains("connection: close"), "{answered}");
        assert_eq!(answered.matches("\r\ncontent-length: ").count(), 1, "one answer alone: {answered}");
    }
    assert!(upstream.requests().is_empty(), "nothing of it reached the worker");
}

#[tokio::test]
async fn requests_that_come_together_are_answered_in_order() {
    let upstream = Upstream::start(1, |seen| answer(&String::from_utf8_lossy(&seen.body))).await;
    let router = before(&upstream).await;
    let first = "POST /a HTTP/1.1\r\nhost: r\r\ncontent-length: 5\r\n\r\nfirst";
    let second = "\r\nPOST /b HTTP/1.1\r\nhost: r\r\ntransfer-encoding: chunked\r\n\r\n3\r\nsec\r\n3\r\nond\r\n0\r\n\r\n";
    let third = "POST http://elsewhere/c?d HTTP/1.1\r\nhost: r\r\ncontent-length: 5\r\nconnection: close\r\n\r\nthird";
    let all = format!("{first}{second}{third}{first}");
    for step in [all.len(), 7, 1] {
        let pieces: Vec<&str> =
            all.as_bytes().chunks(step).map(|piece| std::str::from_utf8(piece).unwrap()).collect();
        let sent = upstream.requests().len();
        let answered = raw(router.http_addr(), &pieces).await;
        let bodies: Vec<&str> = answered.split("HTTP/1.1 200 OK\r\n").skip(1).collect();
        assert_eq!(bodies.len(), 3, "{answered}");
        for (body, wanted) in bodies.iter().zip(["first", "second", "third"]) {
            assert!(body.ends_with(&format!("\r\n\r\n{wanted}")), "{answered}");
        }
        assert!(upstream.requests()[sent + 2].head.starts_with("POST /c?d HTTP/1.1\r\n"));
        assert_eq!(upstream.requests().len(), sent + 3, "nothing after the client's own last word");
    }
}

#[tokio::test]
async fn a_client_that_waits_for_a_word_gets_it() {
    let upstream = Upstream::start(1, |seen| answer(&String::from_utf8_lossy(&seen.body))).await;
    let router = before(&upstream).await;
    let mut stream = TcpStream::connect(router.http_addr()).await.unwrap();
    let head = "POST /a HTTP/1.1\r\nhost: r\r\ncontent-length: 4\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut word = vec![0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
    stream.read_exact(&mut word).await.unwrap();
    assert_eq!(word, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"body").await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert!(status(&rest) == 200 && rest.ends_with("body"), "{rest}");
    assert!(upstream.requests()[0].header("expect").is_empty());
}

#[tokio::test]
async fn an_old_client_gets_what_it_understands() {
    let upstream = Upstream::start(1, |_| vec![chunked(""), chunk("ab"), chunk("c"), chunk("")]).await;
    let router = before(&upstream).await;
    let answered = raw(router.http_addr(), &["GET /a HTTP/1.0\r\n\r\n"]).await;
    assert!(status(&answered) == 200 && answered.ends_with("\r\n\r\nabc"), "{answered}");
    assert!(!answered.contains("transfer-encoding"), "{answered}");
}

#[tokio::test]
async fn an_answer_that_two_readers_could_understand_differently_is_not_passed_on() {
    let say = |text: &str| vec![Act::Say(text.as_bytes().to_vec())];
    let cases = [
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\ncontent-length: 0\n\n",
        "HTTP/1.1 200 OK\r\nx : a\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx: a\0\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 2000 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        "ICY 200 OK\r\n\r\n",
    ];
    let upstream = Upstream::start(1, move |seen| {
        let at: usize = seen.head.split(['/', ' ']).nth(2).unwrap().parse().unwrap();
        cases.get(at).map_or_else(|| answer("{}"), |text| say(text))
    })
    .await;
    let router = before(&upstream).await;
    let client = HttpClient::of(&router);
    for (at, case) in cases.iter().enumerate() {
        let refused = client.send("POST", &format!("/{at}"), String::new()).await;
        assert_eq!((refused.status, &*refused.text), (502, &*refused.text), "{}", case.escape_debug());
        assert_eq!(refused.json()["error"]["code"], "worker_malformed", "{}", case.escape_debug());
        assert_eq!(upstream.connections(), at + 1, "its connection is not used again");
    }
    assert_eq!(client.send("POST", "/99", String::new()).await.status, 200);
}

#[tokio::test]
async fn what_follows_an_answer_is_not_the_next_one() {
    let upstream = Upstream::start(1, |seen| match seen.head.split(' ').nth(1).unwrap() {
        "/more" => {
            let more = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
            vec![Act::Say(more.as_bytes().to_vec())]
        }
        "/chunks" => vec![chunked(""), chunk("a"), Act::Say(b"zz\r\n".to_vec())],
        "/hints" => {
            let hints = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n";
            [vec![Act::Say(hints.as_bytes().to_vec())], answer("good")].concat()
        }
        "/until" => vec![Act::Say(b"HTTP/1.1 200 OK\r\n\r\ngood".to_vec()), Act::Close],
        _ => answer("good"),
    })
    .await;
    let router = before(&upstream).await;
    let client = HttpClient::of(&router);
    assert_eq!(client.send("POST", "/more", String::new()).await.text, "ok");
    for path in ["/next", "/hints", "/until", "/next"] {
        assert_eq!(client.send("POST", path, String::new()).await.text, "good", "{path}");
    }
    let broken = raw(router.http_addr(), &["GET /chunks HTTP/1.1\r\nhost: r\r\n\r\n"]).await;
    assert!(status(&broken) == 200 && !broken.ends_with("0\r\n\r\n"), "{broken}");
    assert_eq!(client.send("POST", "/next", String::new()).await.text, "good");
}

/// It answers health checks, and everything else before it has read the body, of which it reads nothing.
async fn hasty() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                loop {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(stream.read_u8().await?);
                    }
                    let (status, body) = match head.split(|byte| *byte == b' ').nth(1) {
                        Some(b"/ready") => ("200 OK", ""),
                        Some(b"/server_info") => ("200 OK", "{}"),
                        _ => ("413 Content Too Large", "too much"),
                    };
                    let length = body.len();
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}");
                    stream.write_all(answer.as_bytes()).await?;
                    if !body.is_empty() && body != "{}" {
                        std::future::pending::<()>().await;
                    }
                }
                #[allow(unreachable_code, reason = "it says what `?` returns")]
                std::io::Result::Ok(())
            });
        }
    });
    url
}

#[tokio::test]
async fn an_answer_that_comes_before_the_request_has_gone_is_passed_on() {
    let router = router_grpc::start(alert(vec![hasty().await])).await.unwrap();
    until_ready(&router, 1).await;
    // More than the sockets in between can hold.
    let client = HttpClient::of(&router);
    let answered = client.send("POST", "/big", "x".repeat(32 << 20)).await;
    assert_eq!((answered.status, &*answered.text), (413, "too much"));
}
