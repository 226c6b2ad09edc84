//! A cluster that is kept: the trace goes on in a loop and in real time, and a person kills and starts engines.

use std::io::{self, BufRead as _, Write as _};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use crate::cluster::{Cluster, OperateError};
use crate::drive::{Outcome, Pace, Sender, body_of};
use crate::report::percentile_ms;
use crate::trace::Request;

/// Time between two lines of figures.
const LINE: Duration = Duration::from_secs(3);

/// Requests under way beyond which no more are sent: without engines they would pile up for ever.
const MOST_IN_FLIGHT: usize = 512;

/// Commands that may wait.
const QUEUE: usize = 16;

const HELP: &str = "kill N   ends engine N at once, as kill -9 would
start N  starts it again at its old address, with nothing cached
help     says this
quit     ends everything, as Ctrl-C does";

/// A cluster with traffic.
pub(crate) struct Kept {
    cluster: Cluster,
    pace: Pace,
    sender: Sender,
    began: Instant,
    sent: usize,
    failed: usize,
    /// What came back since the last line.
    fresh: Outcome,
}

/// What a person can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Kill(usize),
    Start(usize),
    Help,
    Quit,
    /// An empty line.
    Nothing,
}

/// A line that is no command.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line:?} is not understood; `help` lists what is")]
struct NotUnderstood {
    line: String,
}

impl std::str::FromStr for Command {
    type Err = NotUnderstood;

    fn from_str(line: &str) -> Result<Self, NotUnderstood> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |text: &str| text.parse().map_err(|_| NotUnderstood { line: line.trim().to_owned() });
        match words[..] {
            [] => Ok(Self::Nothing),
            ["kill", engine] => number(engine).map(Self::Kill),
            ["start", engine] => number(engine).map(Self::Start),
            ["help"] => Ok(Self::Help),
            ["quit"] => Ok(Self::Quit),
            _ => Err(NotUnderstood { line: line.trim().to_owned() }),
        }
    }
}

impl Kept {
    pub(crate) fn new(cluster: Cluster, pace: Pace) -> Self {
        let sender = Sender::new(&cluster.url(), pace);
        Self { cluster, pace, sender, began: Instant::now(), sent: 0, failed: 0, fresh: Outcome::default() }
    }

    /// Runs until it is told to end.
    pub(crate) async fn run(mut self, trace: &[Request]) -> io::Result<()> {
        say(&self.banner())?;
        let mut commands = commands();
        let mut lines = tokio::time::interval_at(Instant::now() + LINE, LINE);
        lines.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut requests = trace.iter();
        let mut round = Instant::now();
        loop {
            // The body is made before its time comes, so that making it delays nobody.
            let Some(request) = requests.next() else {
                (requests, round) = (trace.iter(), Instant::now());
                continue;
            };
            let (body, due) = (body_of(request), round + self.pace.until(request.at));
            loop {
                tokio::select! {
                    () = tokio::time::sleep_until(due) => break,
                    Some(done) = self.sender.next() => self.fresh.take(done),
                    _ = lines.tick() => say(&self.figures())?,
                    Some(line) = commands.recv() => {
                        if self.obey(&line).await? {
                            return self.end().await;
                        }
                    }
                    // Without a way to hear Ctrl-C the process's end does the same.
                    _ = tokio::signal::ctrl_c() => return self.end().await,
                }
            }
            self.sent += 1;
            if self.sender.in_flight() < MOST_IN_FLIGHT {
                self.sender.send(body, due);
            } else {
                self.fresh.fail("not sent: too many are under way".to_owned());
            }
        }
    }

    /// Does what a line says; answers whether that is to end.
    async fn obey(&mut self, line: &str) -> io::Result<bool> {
        let done = match line.parse() {
            Ok(Command::Kill(number)) => told(self.cluster.kill(number).await, number, "is down"),
            Ok(Command::Start(number)) => told(self.cluster.revive(number).await, number, "is up"),
            Ok(Command::Help) => HELP.to_owned(),
            Ok(Command::Nothing) => return Ok(false),
            Ok(Command::Quit) => return Ok(true),
            Err(error) => NotUnderstood::to_string(&error),
        };
        say(&done)?;
        Ok(false)
    }

    async fn end(self) -> io::Result<()> {
        self.cluster.shutdown().await;
        Ok(())
    }

    fn banner(&self) -> String {
        let (addresses, url) = (self.cluster.addresses(), self.cluster.url());
        format!(
            "\n{addresses}
Try, twice:
  curl -s {url}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{\"model\":\"sim\",\"max_tokens\":8,\"messages\":[{{\"role\":\"user\",\"content\":\"Hello there\"}}]}}' -i
The trace goes on in real time. Type:
{HELP}
"
        )
    }

    /// A line about the time since the last one; what failed is named below it.
    fn figures(&mut self) -> String {
        let mut fresh = std::mem::take(&mut self.fresh);
        self.failed += fresh.failed();
        fresh.answers.sort_unstable_by_key(|answer| answer.ttft);
        let ttfts: Vec<_> = fresh.answers.iter().map(|answer| answer.ttft).collect();
        let known = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
        let mut line = format!(
            "{:>5} s  sent {}, in flight {}, failed {}  hits {}  TTFT p50 {}  ready {} of {}",
            self.began.elapsed().as_secs(),
            self.sent,
            self.sender.in_flight(),
            self.failed,
            known(fresh.hit_rate().map(|rate| format!("{:.1} %", rate * 1e2))),
            known((!ttfts.is_empty()).then(|| format!("{:.0} ms", percentile_ms(&ttfts, 0.5)))),
            self.cluster.ready(),
            self.cluster.engines(),
        );
        for (reason, count) in &fresh.failures {
            line += &format!("\n         {count} requests {reason}");
        }
        line
    }
}

fn told(result: Result<(), OperateError>, number: usize, done: &str) -> String {
    result.map_or_else(|error| error.to_string(), |()| format!("engine {number} {done}"))
}

/// Lines from standard input; none when it ends, which does not end anything else.
fn commands() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    // Not one of tokio's threads: reading cannot be cancelled, and would keep the process from ending.
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn say(text: &str) -> io::Result<()> {
    writeln!(io::stderr().lock(), "{text}")
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use router_grpc::PolicyName;
    use sglang_sim::SimConfig;

    use super::*;
    use crate::cluster::Shape;
    use crate::drive::Failure;

    #[test]
    fn commands_are_read_and_others_refused() {
        let read = |line: &str| line.parse::<Command>();
        assert_eq!(read(" kill  2 "), Ok(Command::Kill(2)));
        assert_eq!(read("start 1"), Ok(Command::Start(1)));
        assert_eq!(
            (read("help"), read("quit"), read("")),
            (Ok(Command::Help), Ok(Command::Quit), Ok(Command::Nothing))
        );
        for line in ["kill", "kill two", "kill 1 2", "reboot", "kill -1"] {
            assert!(read(line).unwrap_err().to_string().contains(line));
        }
    }

    async fn kept() -> Kept {
        let sim = SimConfig { time_scale: 50.0, ..SimConfig::default() };
        let shape = Shape { workers: 2, sim, port: 0, grpc_port: 0, prometheus_port: 0 };
        let cluster = Cluster::start(PolicyName::CacheAware, &shape).await.unwrap();
        let pace = Pace { compression: 1.0, time_scale: 50.0, timeout: Duration::from_secs(3_000) };
        Kept::new(cluster, pace)
    }

    async fn until_ready(kept: &Kept, workers: usize) {
        let ready = async {
            while kept.cluster.ready() != workers {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), ready).await.expect("the router notices");
    }

    /// What `--keep` offers: an engine dies and comes back while requests run, and none goes unanswered or uncounted.
    #[tokio::test]
    async fn an_engine_is_killed_and_comes_back_to_its_old_address() {
        let mut kept = kept().await;
        let addresses = kept.cluster.addresses();
        assert!(!kept.obey("kill 2").await.unwrap());
        // The router may not know yet: what it sends there is refused, and tried elsewhere.
        let body = r#"{"input_ids":[1,2,3],"sampling_params":{"max_new_tokens":2},"stream":true}"#;
        for _ in 0..4 {
            kept.sender.send(body.into(), Instant::now());
        }
        while let Some(done) = kept.sender.next().await {
            kept.fresh.take(done);
        }
        assert_eq!((kept.fresh.answers.len(), kept.fresh.failed()), (4, 0));
        until_ready(&kept, 1).await;
        assert!(kept.figures().contains("ready 1 of 2"));
        kept.obey("start 2").await.unwrap();
        until_ready(&kept, 2).await;
        assert_eq!(kept.cluster.addresses(), addresses);
        assert!(kept.obey("quit").await.unwrap());
        kept.end().await.unwrap();
    }

    #[tokio::test]
    async fn failures_are_counted_and_named() {
        let mut kept = kept().await;
        kept.fresh.fail(Failure::Status(StatusCode::BAD_GATEWAY).to_string());
        kept.fresh.fail(Failure::BrokenOff.to_string());
        let line = kept.figures();
        assert!(line.contains("failed 2") && line.contains("1 requests answered 502"), "{line}");
        assert!(kept.figures().contains("failed 2"), "the sum stays");
        assert!(matches!(kept.cluster.kill(3).await, Err(OperateError::Unknown { number: 3, engines: 2 })));
        assert!(matches!(kept.cluster.revive(1).await, Err(OperateError::Up { number: 1 })));
        kept.end().await.unwrap();
    }
}
