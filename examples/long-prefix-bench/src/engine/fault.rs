//! What goes wrong with an engine: a request is given up, or it dies, pauses for new weights, or slows down.

use std::time::Duration;

use super::{Engine, Pass, RequestId, Work};

impl Engine {
    /// Ends a request early; what it computed stays cached.
    pub fn abort(&mut self, id: RequestId) {
        let waiting = self.waiting.iter().position(|live| live.id == id);
        let running = self.running.iter().position(|live| live.id == id);
        let live = match (waiting, running) {
            (Some(at), _) => self.waiting.remove(at),
            (_, Some(at)) => Some(self.running.remove(at)),
            (None, None) => None,
        };
        if let Some(live) = live {
            self.memory.borrow_mut().release(live.hold, &live.sequence);
        }
        // Whoever asks again is another request, also here.
        if let Some(Pass { work: Work::Prefill { produced }, .. }) = &mut self.under_way {
            produced.retain(|produced| produced.id != id);
        }
    }

    /// It is gone, and another one is in its place that has nothing to do and, if `forgets`, nothing cached.
    pub fn die(&mut self, forgets: bool) {
        self.under_way = None;
        self.is_paused = false;
        let mut memory = self.memory.borrow_mut();
        for mut live in self.waiting.drain(..).chain(self.running.drain(..)) {
            live.put_back(&mut memory);
        }
        if forgets {
            memory.clear();
        }
    }

    /// Begins no more passes until it [goes on](Self::resume). When the pass under way ends, if there is one: its new end.
    pub fn pause(&mut self, now: Duration) -> Option<Duration> {
        self.interrupt(now);
        self.is_paused = true;
        self.ends()
    }

    /// Goes on with other weights: what runs is computed anew, and if `forgets` nothing is cached. No pass may be under way.
    pub fn resume(&mut self, forgets: bool) {
        debug_assert!(self.under_way.is_none(), "a pause lasts longer than a pass");
        self.is_paused = false;
        let mut memory = self.memory.borrow_mut();
        while let Some(mut live) = self.running.pop() {
            live.put_back(&mut memory);
            self.totals.retracted += 1;
            self.waiting.push_front(live);
        }
        if forgets {
            memory.clear();
        }
    }

    /// From the next pass on everything takes so many times as long as usual. The new end of the pass under way, if it is cut short.
    pub fn slow_down(&mut self, pace: f64, now: Duration) -> Option<Duration> {
        self.pace = pace;
        self.interrupt(now)
    }

    /// Time until a prefill pass that is under way ends.
    pub(super) fn pass_rest(&self, now: Duration) -> Duration {
        let pass = self.under_way.as_ref().filter(|pass| matches!(pass.work, Work::Prefill { .. }));
        pass.map_or(Duration::ZERO, |pass| pass.ends.saturating_sub(now))
    }
}
