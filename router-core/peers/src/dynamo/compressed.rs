//! `ConcurrentRadixTreeCompressed`: a concurrent tree of runs.
//!
//! Its events are applied only by `SyncIndexer::worker`, a loop over a channel that owns the writer's side. So one thread
//! runs that loop, and time is taken *in* that thread: a `Flush` task answers through a one-shot channel, whose send wakes
//! our waker right there. The first flush of a batch waits until the whole batch is in the channel, so that what is timed
//! is the work and one receive an event, and no waiting.

use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Wake, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dynamo_kv_router::ConcurrentRadixTreeCompressed;
use dynamo_kv_router::indexer::{SyncIndexer as _, WorkerTask};
use dynamo_kv_router::protocols::{LocalBlockHash, OverlapScores, RouterEvent};
use tokio::sync::oneshot;

use super::{event, hash, matched, sequence, touch};
use crate::contest::{Contestant, Matched, Operation, Pace, Reader};
use crate::work::Prompt;

/// See the module.
pub(crate) struct Compressed {
    tree: Arc<ConcurrentRadixTreeCompressed>,
    tasks: flume::Sender<WorkerTask>,
    staged: VecDeque<RouterEvent>,
    worker: Option<JoinHandle<()>>,
}

struct CompressedReader {
    tree: Arc<ConcurrentRadixTreeCompressed>,
    sequence: Vec<LocalBlockHash>,
    found: OverlapScores,
}

/// Does something on the worker's thread when woken.
struct OnWorker<F>(F);

impl Compressed {
    /// An empty tree and its writing thread.
    pub(crate) fn start() -> Self {
        let tree = Arc::new(ConcurrentRadixTreeCompressed::new());
        let (tasks, received) = flume::unbounded();
        let worked = tree.clone();
        let worker = std::thread::spawn(move || {
            worked.worker(received, None).expect("the worker ends only when told to");
        });
        Self { tree, tasks, staged: VecDeque::new(), worker: Some(worker) }
    }

    /// Queues something to be done on the worker's thread. The receiver must live until it is done.
    fn on_worker(&self, what: impl Fn() + Send + Sync + 'static) -> oneshot::Receiver<()> {
        let (answer, mut answered) = oneshot::channel();
        let waker = Waker::from(Arc::new(OnWorker(what)));
        let first = pin!(&mut answered).poll(&mut Context::from_waker(&waker));
        assert!(first.is_pending(), "nobody has answered yet");
        self.send(WorkerTask::Flush(answer));
        answered
    }

    fn send_events(&mut self, count: usize) {
        for event in self.staged.drain(..count) {
            self.tasks.send(WorkerTask::Event(event)).expect("the worker lives as long as this");
        }
    }

    fn send(&self, task: WorkerTask) {
        self.tasks.send(task).expect("the worker lives as long as this");
    }

    /// Waits until the worker has done all that is queued, and says when that was.
    fn finish(&self) -> Instant {
        let ended = Arc::new(OnceLock::new());
        let (caller, seen) = (std::thread::current(), ended.clone());
        let _answered = self.on_worker(move || {
            seen.get_or_init(Instant::now);
            caller.unpark();
        });
        loop {
            if let Some(&at) = ended.get() {
                return at;
            }
            std::thread::park();
        }
    }

    fn new_reader(&self) -> CompressedReader {
        let tree = self.tree.clone();
        CompressedReader { tree, sequence: Vec::new(), found: OverlapScores::new() }
    }
}

impl<F: Fn() + Send + Sync> Wake for OnWorker<F> {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }
}

impl Contestant for Compressed {
    fn name(&self) -> &'static str {
        "dynamo ConcurrentRadixTreeCompressed"
    }

    fn stage(&mut self, operations: &[Operation]) {
        self.staged.extend(operations.iter().map(event));
    }

    fn apply(&mut self, count: usize) -> Duration {
        let queued = Arc::new(AtomicBool::new(false));
        let began = Arc::new(OnceLock::new());
        let (go, start) = (queued.clone(), began.clone());
        let _answered = self.on_worker(move || {
            while !go.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            start.get_or_init(Instant::now);
        });
        self.send_events(count);
        queued.store(true, Ordering::Release);
        let ended = self.finish();
        let began = began.get().expect("the batch began before it ended");
        ended.duration_since(*began)
    }

    /// All is queued beforehand and the worker itself waits for the ticks: the storm is one thread's, as everyone's is.
    fn storm(&mut self, ticks: &[usize], pace: Pace) {
        let mut answers = Vec::with_capacity(ticks.len());
        for (tick, &count) in ticks.iter().enumerate() {
            answers.push(self.on_worker(move || pace.wait(tick)));
            self.send_events(count);
        }
        self.finish();
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        Box::new(self.new_reader())
    }

    fn shared_reader(&self) -> Option<Box<dyn Reader + Send>> {
        Some(Box::new(self.new_reader()))
    }
}

impl Drop for Compressed {
    fn drop(&mut self) {
        // If the worker is gone already, there is nothing to end.
        let _ = self.tasks.send(WorkerTask::Terminate);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

impl Reader for CompressedReader {
    fn warm(&mut self, prompt: &Prompt) {
        self.sequence.clear();
        self.sequence.extend(sequence(prompt));
        touch(&self.sequence);
    }

    fn lookup(&mut self, _prompt: &Prompt) {
        self.found = self.tree.find_matches(&self.sequence, false);
    }

    fn hash_and_lookup(&mut self, prompt: &Prompt) {
        self.found = self.tree.find_matches(&hash(&prompt.tokens), false);
    }

    fn matched(&mut self, targets: u16) -> Matched {
        matched(&self.found, targets)
    }
}
