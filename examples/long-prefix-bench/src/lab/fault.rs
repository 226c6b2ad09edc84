//! What goes wrong in a run, and when.

use std::time::Duration;

/// What goes wrong. What each stands for is in `docs/benchmark.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// F1: every engine dies once, and is back with an empty cache half a minute later.
    Kill,
    /// F2: every engine in turn pauses for new weights, and what it had cached is void.
    Update,
    /// F3: every engine in turn is three times as slow for a minute.
    Straggler,
    /// F6: agents report late.
    LateEvents,
    /// F6: agents lose events of their engines.
    LostEvents,
}

/// Something that happens to an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Blow {
    /// It dies.
    Die,
    /// It is back, with an empty cache.
    Return,
    /// It begins no more passes.
    Pause,
    /// It goes on with new weights.
    Renew,
    /// It is slow.
    Slow,
    /// It is as fast as ever.
    Recover,
}

/// How long a dead engine stays away.
pub(super) const AWAY: Duration = Duration::from_secs(30);

/// How long new weights take to load.
pub(super) const LOADING: Duration = Duration::from_secs(10);

/// How long an engine is slow,
const SLOW: Duration = Duration::from_secs(60);

/// and how many times as long everything takes then.
pub(super) const PACE: f64 = 3.0;

/// Time between two reports of an agent: the coordinator's default.
const REPORT_EVERY: Duration = Duration::from_millis(50);

/// The same where reports are late.
const LATE: Duration = Duration::from_secs(2);

/// Share of reports that are lost where some are.
const LOST_SHARE: f64 = 0.05;

/// The part of the span in which engines meet their fates, one after the other.
const FROM: f64 = 0.2;
const FOR: f64 = 0.7;

impl Fault {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Kill, Self::Update, Self::Straggler, Self::LateEvents, Self::LostEvents];

    /// As tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "F1 kills",
            Self::Update => "F2 weight update",
            Self::Straggler => "F3 stragglers",
            Self::LateEvents => "F6 late events",
            Self::LostEvents => "F6 lost events",
        }
    }

    /// Begins of what happens to engines in a run whose sessions start within `span`. What ends it follows from it.
    pub(super) fn blows(self, engines: usize, span: Duration) -> Vec<(Duration, usize, Blow)> {
        let blow = match self {
            Self::Kill => Blow::Die,
            Self::Update => Blow::Pause,
            Self::Straggler => Blow::Slow,
            Self::LateEvents | Self::LostEvents => return Vec::new(),
        };
        let at = |engine: usize| span.mul_f64(FROM + FOR * engine as f64 / engines as f64);
        (0..engines).map(|engine| (at(engine), engine, blow)).collect()
    }

    /// How long a slow engine is slow: one at a time.
    pub(super) fn slow_for(engines: usize, span: Duration) -> Duration {
        SLOW.min(span.mul_f64(FOR / engines as f64))
    }

    /// Time from something that happens in an engine's cache to its agent's report.
    pub(super) fn report_after(fault: Option<Self>) -> Duration {
        if fault == Some(Self::LateEvents) { LATE } else { REPORT_EVERY }
    }

    /// Share of the reports whose events the agent has lost.
    pub(super) fn lost_share(fault: Option<Self>) -> f64 {
        if fault == Some(Self::LostEvents) { LOST_SHARE } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_engine_is_hit_once_and_one_at_a_time() {
        let span = Duration::from_secs(400);
        let blows = Fault::Straggler.blows(8, span);
        let engines: Vec<usize> = blows.iter().map(|(_, engine, _)| *engine).collect();
        assert_eq!(engines, (0..8).collect::<Vec<_>>());
        let slow = Fault::slow_for(8, span);
        assert!(blows.windows(2).all(|two| two[0].0 + slow <= two[1].0), "{slow:?}: {blows:?}");
        assert_eq!(Fault::slow_for(8, Duration::from_secs(4_000)), SLOW);
        assert!(Fault::LostEvents.blows(8, span).is_empty());
    }
}
