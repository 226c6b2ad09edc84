//! What came of a pass: tokens, what the cache has of it, who is over.

use super::batch::{Batch, Chunk, Work};
use super::{Produced, RequestId, Scheduler, Step};

impl Scheduler {
    /// Somebody is still there whom it computes for.
    pub(super) fn concerns_anybody(&self, batch: &Batch) -> bool {
        batch.requests().any(|id| self.place(id, 0).is_some())
    }

    /// Makes a pass's result count. Who is not running any more gets nothing of it.
    pub(super) fn settle(&mut self, batch: Batch) -> Step {
        let mut step = Step { duration: batch.duration, ..Step::default() };
        match batch.work {
            Work::Prefill(chunks) => {
                (step.prefill, step.publish) = (true, true);
                let computed = chunks.iter().filter(|chunk| !chunk.received).map(|chunk| chunk.tokens);
                self.totals.prefilled_tokens += computed.sum::<usize>() as u64;
                self.totals.prefill_busy_us += batch.duration.as_micros() as u64;
                self.settle_prefill(&chunks, &mut step.produced);
            }
            Work::Decode { due, .. } => {
                self.decode_steps += 1;
                step.publish = self.decode_steps.is_multiple_of(self.limits.decode_log_interval.max(1));
                self.settle_decode(&due, &mut step.produced);
            }
        }
        self.finish(&step.produced);
        step
    }

    /// Requests of one batch do not find each other's pages: they are stored when it is over. A chunk that is not the last is
    /// stored when the next one is planned.
    fn settle_prefill(&mut self, chunks: &[Chunk], produced: &mut Vec<Produced>) {
        let mut from = 0;
        for chunk in chunks {
            let Some(at) = self.place(chunk.id, from) else { continue };
            from = at;
            let live = &mut self.running[at];
            if chunk.last {
                produced.push(live.produce());
                self.memory.store(&mut live.hold, &live.owner, &live.tokens, chunk.end);
            }
        }
    }

    fn settle_decode(&mut self, due: &[RequestId], produced: &mut Vec<Produced>) {
        let mut from = 0;
        for id in due {
            let Some(at) = self.place(*id, from) else { continue };
            from = at;
            produced.push(self.running[at].produce());
        }
    }

    /// A request's place in the running batch, from a place on; batches keep its order.
    fn place(&self, id: RequestId, from: usize) -> Option<usize> {
        self.running[from..].iter().position(|live| live.id == id).map(|at| from + at)
    }

    /// Lets go of the requests that have produced their last token.
    fn finish(&mut self, produced: &[Produced]) {
        self.totals.output_tokens += produced.len() as u64;
        for done in produced.iter().filter(|produced| produced.last) {
            if let Some(at) = self.place(done.id, 0) {
                let live = self.running.remove(at);
                self.release(live);
                self.totals.finished += 1;
            }
        }
    }
}
