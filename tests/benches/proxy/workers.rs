//! The role `workers`: four simulated engines in one process, as light as hyper allows.
//!
//! Every request is read whole and answered at once, either with one JSON object or with a stream of events without end. The
//! streams of a worker step together, as the decode steps of an engine make them, each worker's at its own time. Half of every prompt is said to have been
//! cached, which is what the prompts share.

use std::convert::Infallible;
use std::io::{BufRead as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, interval_at};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::IntervalStream;

use crate::Fault;

/// Workers.
const COUNT: usize = 4;

/// One event of a stream, as SGLang writes it.
const EVENT: &str = concat!(
    r#"data: {"id":"5f0c3d2ab1e94c1c8d7b8f1a2e3d4c5b","object":"text_completion","created":1767225600,"#,
    r#""model":"bench","choices":[{"index":0,"text":" token","logprobs":null,"finish_reason":null,"#,
    r#""matched_stop":null}],"usage":null}"#,
    "\n\n"
);

/// One event of `/generate`, each of which tells all so far.
const NATIVE_EVENT: &str = concat!(
    r#"data: {"text":" token","output_ids":[4037],"meta_info":{"id":"5f0c3d2ab1e94c1c8d7b8f1a2e3d4c5b","#,
    r#""finish_reason":null,"prompt_tokens":117,"weight_version":"default","completion_tokens":1,"cached_tokens":58}}"#,
    "\n\n"
);

/// One event of a streamed chat.
const CHAT_EVENT: &str = concat!(
    r#"data: {"id":"5f0c3d2ab1e94c1c8d7b8f1a2e3d4c5b","object":"chat.completion.chunk","created":1767225600,"#,
    r#""model":"bench","choices":[{"index":0,"delta":{"role":null,"content":" token","reasoning_content":null,"#,
    r#""tool_calls":null},"logprobs":null,"finish_reason":null,"matched_stop":null}],"usage":null}"#,
    "\n\n"
);

/// What a worker says about itself, whatever it is asked: a fleet's tokens are those of two H100 with a model of 32B.
const ABOUT: &str = concat!(
    r#"{"object":"list","data":[{"id":"bench","object":"model","created":1767225600,"owned_by":"sglang","#,
    r#""root":"bench","max_model_len":262144}],"served_model_name":"bench","model_path":"bench","#,
    r#""tokenizer_path":"bench","is_generation":true,"version":"0.5.9","dp_size":1,"page_size":16,"#,
    r#""max_total_num_tokens":307328,"status":"ready"}"#
);

/// How a request was put, and its answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Api {
    Generate,
    Completions,
    Chat,
}

/// A worker.
#[derive(Debug)]
struct Engine {
    /// Which of the workers it is.
    index: usize,
    /// Steps are counted from here.
    epoch: Instant,
    /// Time between two events of a stream, the same for all.
    step_ms: Arc<AtomicU64>,
}

/// Prints the workers' addresses, then serves until its input ends. Each line of the input sets the time of a step, in ms.
pub(crate) fn run() -> Result<(), Fault> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (epoch, step_ms) = (Instant::now(), Arc::new(AtomicU64::new(1000)));
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for index in 0..COUNT {
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        addresses.push(listener.local_addr()?);
        let engine = Engine { index, epoch, step_ms: step_ms.clone() };
        runtime.spawn(accept(listener, Arc::new(engine)));
    }
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&addresses)?)?;
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if let Ok(asked) = line.trim().parse() {
                step_ms.store(asked, Relaxed);
            }
        }
        drop(end);
    });
    // It ends by being dropped.
    let _ = runtime.block_on(ended);
    Ok(())
}

async fn accept(listener: TcpListener, engine: Arc<Engine>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(serve(stream, engine.clone()));
    }
}

async fn serve(stream: TcpStream, engine: Arc<Engine>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| answer(engine.clone(), request));
    // Whoever closes it has its reasons.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(
    engine: Arc<Engine>,
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, hyper::Error> {
    let api = match (request.method(), request.uri().path()) {
        (&Method::POST, "/generate") => Api::Generate,
        (&Method::POST, "/v1/completions") => Api::Completions,
        (&Method::POST, "/v1/chat/completions") => Api::Chat,
        (&Method::GET, _) => return Ok(respond("application/json", Full::from(ABOUT).boxed())),
        _ => {
            let mut response = respond("text/plain", Full::default().boxed());
            *response.status_mut() = StatusCode::NOT_FOUND;
            return Ok(response);
        }
    };
    let body = request.into_body().collect().await?.to_bytes();
    if memchr::memmem::find(&body, b"\"stream\":true").is_some() {
        return Ok(respond("text/event-stream", engine.steps(api)));
    }
    Ok(respond("application/json", Full::from(generated(api, body.len())).boxed()))
}

fn respond(kind: &'static str, body: BoxBody<Bytes, Infallible>) -> Response<BoxBody<Bytes, Infallible>> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

/// An answer that came in one piece, to a request of so many bytes.
fn generated(api: Api, request_bytes: usize) -> String {
    if api == Api::Generate {
        let tokens = request_bytes / 6;
        let cached = tokens / 2;
        return format!(
            r#"{{"text":" An answer of some words.","output_ids":[358,1079,264,4128,1614],"meta_info":{{"id":"5f0c3d2ab1e94c1c8d7b8f1a2e3d4c5b","finish_reason":{{"type":"stop","matched":151645}},"prompt_tokens":{tokens},"weight_version":"default","completion_tokens":5,"cached_tokens":{cached},"e2e_latency":0.01}}}}"#
        );
    }
    let (object, said) = match api {
        Api::Chat => (
            "chat.completion",
            r#""message":{"role":"assistant","content":"An answer of some words.","reasoning_content":null,"tool_calls":null}"#,
        ),
        Api::Completions | Api::Generate => ("text_completion", r#""text":" An answer of some words.""#),
    };
    let tokens = request_bytes / 4;
    let (cached, total) = (tokens / 2, tokens + 5);
    format!(
        r#"{{"id":"5f0c3d2ab1e94c1c8d7b8f1a2e3d4c5b","object":"{object}","created":1767225600,"model":"bench","choices":[{{"index":0,{said},"logprobs":null,"finish_reason":"stop","matched_stop":151645}}],"usage":{{"prompt_tokens":{tokens},"total_tokens":{total},"completion_tokens":5,"prompt_tokens_details":{{"cached_tokens":{cached}}}}}}}"#
    )
}

impl Engine {
    /// Events at every step from the next one on.
    fn steps(&self, api: Api) -> BoxBody<Bytes, Infallible> {
        let step = Duration::from_millis(self.step_ms.load(Relaxed).max(1));
        let passed = self.epoch.elapsed().as_millis() / step.as_millis();
        // The worker's own part of a step later than the first worker's.
        let own = step * self.index as u32 / COUNT as u32;
        let next = self.epoch + step * (passed as u32 + 1) + own;
        let steps = IntervalStream::new(interval_at(next, step));
        let event = match api {
            Api::Generate => NATIVE_EVENT,
            Api::Completions => EVENT,
            Api::Chat => CHAT_EVENT,
        };
        StreamBody::new(steps.map(|_| Ok(Frame::data(Bytes::from_static(event.as_bytes()))))).boxed()
    }
}
