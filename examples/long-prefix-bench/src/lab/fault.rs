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
    /// F4: every router dies once, and is back half a minute later, knowing nothing.
    Takeover,
    /// F5: two engines more, and later two fewer.
    Scale,
    /// F6: agents report late.
    LateEvents,
    /// F6: agents lose events of their engines.
    LostEvents,
}

/// Something that happens to an engine, or to a router.
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
    /// It joins the fleet, with an empty cache.
    Join,
    /// It gets nothing new, and leaves when what it has is over.
    Drain,
    /// The router dies.
    LoseRouter,
    /// Another router is in its place.
    ReplaceRouter,
}

/// A time from which it is measured how long hits take to come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// What happens then, as tables name it.
    pub what: &'static str,
    /// When.
    pub at: Duration,
}

/// Engines by which a fleet grows and shrinks.
const SPARE: usize = 2;

/// How long a dead engine stays away, and a dead router at most.
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
    pub const ALL: [Self; 7] = [
        Self::Kill,
        Self::Update,
        Self::Straggler,
        Self::Takeover,
        Self::Scale,
        Self::LateEvents,
        Self::LostEvents,
    ];

    /// As tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "F1 kills",
            Self::Update => "F2 weight update",
            Self::Straggler => "F3 stragglers",
            Self::Takeover => "F4 routers killed",
            Self::Scale => "F5 scale out and in",
            Self::LateEvents => "F6 late events",
            Self::LostEvents => "F6 lost events",
        }
    }

    /// Engines that a fleet has at times beyond its own.
    pub fn spare_engines(self) -> usize {
        if self == Self::Scale { SPARE } else { 0 }
    }

    /// From when on hits have to come back, in a run of so many engines and routers whose sessions start within `span`; empty where
    /// nothing is lost at one moment.
    pub fn moments(self, engines: usize, routers: usize, span: Duration) -> Vec<Moment> {
        let moment = |(at, _, blow)| {
            let (what, after) = match blow {
                Blow::Die => ("killed", Duration::ZERO),
                // Its cache is void when it goes on.
                Blow::Pause => ("updated", LOADING),
                Blow::LoseRouter => ("lost", Duration::ZERO),
                Blow::ReplaceRouter => ("replaced", Duration::ZERO),
                Blow::Join => ("out", Duration::ZERO),
                Blow::Drain => ("in", Duration::ZERO),
                Blow::Return | Blow::Renew | Blow::Slow | Blow::Recover => return None,
            };
            Some(Moment { what, at: at + after })
        };
        let mut moments: Vec<Moment> =
            self.blows(engines, routers, span).into_iter().filter_map(moment).collect();
        moments.dedup();
        moments
    }

    /// There are moments from which hits have to come back.
    pub fn has_moments(self) -> bool {
        !self.moments(1, 1, Duration::from_secs(1)).is_empty()
    }

    /// What happens in a run of so many engines and routers whose sessions start within `span`: when, to whom, and what. What ends it
    /// follows from it, but for routers.
    pub(super) fn blows(
        self,
        engines: usize,
        routers: usize,
        span: Duration,
    ) -> Vec<(Duration, usize, Blow)> {
        let at = |nth: usize, of: usize| span.mul_f64(FROM + FOR * nth as f64 / of as f64);
        let each = |blow| (0..engines).map(|engine| (at(engine, engines), engine, blow)).collect();
        match self {
            Self::Kill => each(Blow::Die),
            Self::Update => each(Blow::Pause),
            Self::Straggler => each(Blow::Slow),
            Self::Takeover => {
                let away = AWAY.min(span.mul_f64(FOR / routers as f64));
                let fate = |router| {
                    let dies = at(router, routers);
                    [(dies, router, Blow::LoseRouter), (dies + away, router, Blow::ReplaceRouter)]
                };
                (0..routers).flat_map(fate).collect()
            }
            Self::Scale => {
                let spare = engines..engines + SPARE;
                let joins = spare.clone().map(|engine| (at(0, 2), engine, Blow::Join));
                joins.chain(spare.map(|engine| (at(1, 2), engine, Blow::Drain))).collect()
            }
            Self::LateEvents | Self::LostEvents => Vec::new(),
        }
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
        let blows = Fault::Straggler.blows(8, 1, span);
        let engines: Vec<usize> = blows.iter().map(|(_, engine, _)| *engine).collect();
        assert_eq!(engines, (0..8).collect::<Vec<_>>());
        let slow = Fault::slow_for(8, span);
        assert!(blows.windows(2).all(|two| two[0].0 + slow <= two[1].0), "{slow:?}: {blows:?}");
        assert_eq!(Fault::slow_for(8, Duration::from_secs(4_000)), SLOW);
        assert!(Fault::LostEvents.blows(8, 1, span).is_empty());
    }

    #[test]
    fn another_router_is_there_before_the_next_one_dies() {
        for (routers, span) in [(2, 130), (4, 130), (4, 4_000)] {
            let moments = Fault::Takeover.moments(8, routers, Duration::from_secs(span));
            let what: Vec<&str> = moments.iter().map(|moment| moment.what).collect();
            assert_eq!(what, ["lost", "replaced"].repeat(routers));
            assert!(moments.is_sorted_by_key(|moment| moment.at), "{moments:?}");
        }
    }

    #[test]
    fn two_engines_come_and_the_same_two_go() {
        let span = Duration::from_secs(100);
        let who: Vec<_> =
            Fault::Scale.blows(8, 1, span).into_iter().map(|(_, engine, blow)| (engine, blow)).collect();
        assert_eq!(who, [(8, Blow::Join), (9, Blow::Join), (8, Blow::Drain), (9, Blow::Drain)]);
        let moments = Fault::Scale.moments(8, 1, span);
        assert_eq!(moments.iter().map(|moment| moment.what).collect::<Vec<_>>(), ["out", "in"]);
    }
}
