//! Passive health of a target: what its own failures say about it, without a lock or a clock.
//!
//! ```text
//!     failures in a row, or their share, reach the limit
//!   closed ─────────────────────────────────────▶ ejected ◀──────────────┐
//!     ▲                                              │ its time is over  │ the trial fails: twice as long,
//!     │ slow start                                   ▼                   │ up to the bound
//!     └───────────── the trial succeeds ───────── half-open ─────────────┘
//! ```
//! The names are those of a circuit breaker. Time is an argument; a reading that another thread overtakes decides one request more
//! or less, never the state itself, which changes by compare-and-exchange alone.

mod rate;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use self::rate::FailureRate;
use crate::time::Time;

/// How failures of a target are judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EjectionSettings {
    /// Failures in a row after which a target is ejected; 0 ejects nobody for that.
    pub failures: u32,
    /// Share of the recent requests, 0 to 1, that must fail for a target to be ejected; above 1 nobody is for that.
    pub failure_rate: f64,
    /// Requests of which it must be a share,
    pub rate_requests: u32,
    /// and what recent is: those of the time before count half as much each time.
    pub rate_window: Duration,
    /// Length of the first ejection; it doubles with every failed trial,
    pub base: Duration,
    /// up to this.
    pub most: Duration,
    /// Largest share of the targets that a request may otherwise be sent to that may be ejected at once, 0 to 1. Beyond it
    /// ejections are ignored: that so many fail says more about the requests, or the network, than about the targets.
    pub most_share: f64,
    /// How long the share of a target that came back, or has just become ready, grows from a tenth to the whole; zero for no ramp.
    pub slow_start: Duration,
}

/// What went wrong at a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// No connection could be opened. It concerns every rank of the worker.
    Connect,
    /// The connection was lost before the answer began.
    Lost,
    /// The answer did not begin in time.
    Timeout,
    /// It answered with a status that says that it cannot.
    Status,
    /// It broke off in the middle of an answer.
    Broken,
}

/// A target's state, as people are shown it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HealthState {
    /// It takes requests.
    Closed,
    /// It takes none for so long.
    Ejected {
        /// How long.
        remaining: Duration,
    },
    /// Its next request is a trial, or its trial runs.
    HalfOpen {
        /// A trial runs, so that it takes no other request.
        trial: bool,
    },
    /// It asked to be left alone for so long (`Retry-After`).
    HeldOff {
        /// How long.
        remaining: Duration,
    },
}

/// The state of one target. See the module.
#[derive(Debug, Default)]
pub struct Health {
    /// Failures since the last success.
    failures: AtomicU32,
    /// Ejections since it was last closed, by which their length doubles.
    ejections: AtomicU32,
    /// End of the ejection, in microseconds; zero while closed.
    ejected_until: AtomicU64,
    /// It was ejected for more than not being there.
    ill: AtomicBool,
    /// A trial runs.
    trial: AtomicBool,
    /// Until when it asked to be left alone.
    held_until: AtomicU64,
    /// Begin of its slow start plus one; zero for none.
    ramp_from: AtomicU64,
    /// Ejections ever.
    ejected: AtomicU64,
    rate: FailureRate,
}

/// Most doublings: more would not fit, and the bound is reached before.
const MOST_DOUBLINGS: u32 = 20;

/// Share that a slow start begins with.
const FIRST_SHARE: f64 = 0.1;

impl Default for EjectionSettings {
    /// 5 failures, or half of at least 20 requests in 10 s; 5 s to 5 min, half of the targets, 10 s of slow start.
    fn default() -> Self {
        Self {
            failures: 5,
            failure_rate: 0.5,
            rate_requests: 20,
            rate_window: Duration::from_secs(10),
            base: Duration::from_secs(5),
            most: Duration::from_secs(300),
            most_share: 0.5,
            slow_start: Duration::from_secs(10),
        }
    }
}

impl Health {
    /// The state at a time.
    pub fn state(&self, now: Time) -> HealthState {
        let until = self.ejected_until.load(Relaxed);
        if until > now.as_micros() {
            return HealthState::Ejected { remaining: Time::from_micros(until).since(now) };
        }
        let held = self.held_until.load(Relaxed);
        if held > now.as_micros() {
            return HealthState::HeldOff { remaining: Time::from_micros(held).since(now) };
        }
        if until > 0 {
            HealthState::HalfOpen { trial: self.trial.load(Relaxed) }
        } else {
            HealthState::Closed
        }
    }

    /// Ejections so far.
    pub fn ejections(&self) -> u64 {
        self.ejected.load(Relaxed)
    }

    /// A request is about to go there: whether it is a trial, or `None` if another one's trial runs.
    pub(crate) fn admit(&self, now: Time) -> Option<bool> {
        match self.state(now) {
            HealthState::HalfOpen { .. } => {
                let taken = self.trial.compare_exchange(false, true, Relaxed, Relaxed);
                taken.is_ok().then_some(true)
            }
            _ => Some(false),
        }
    }

    /// A trial ended without saying anything: the next request is one.
    pub(crate) fn end_trial(&self) {
        self.trial.store(false, Relaxed);
    }

    /// A request succeeded. Without a trial it says nothing about an ejection: it may have begun before.
    pub(crate) fn succeeded(&self, trial: bool, now: Time, settings: &EjectionSettings) {
        if settings.counts_rate() {
            self.rate(false, now, settings);
        }
        // Every request ends here: what is zero is not written, so that the line stays shared.
        if self.failures.load(Relaxed) > 0 {
            self.failures.store(0, Relaxed);
        }
        if trial {
            self.ejected_until.store(0, Relaxed);
            self.ejections.store(0, Relaxed);
            self.begin_slow_start(now);
            self.end_trial();
        }
    }

    /// A request failed. Whether the target is ejected by it.
    pub(crate) fn failed(
        &self,
        kind: FaultKind,
        trial: bool,
        now: Time,
        settings: &EjectionSettings,
    ) -> bool {
        let failures = self.failures.fetch_add(1, Relaxed).saturating_add(1);
        let until = self.ejected_until.load(Relaxed);
        let too_many = settings.failures > 0 && failures >= settings.failures;
        let too_often = settings.counts_rate()
            && self.rate(true, now, settings).is_some_and(|share| share >= settings.failure_rate);
        let due = if until > 0 { trial } else { too_many || too_often };
        let ejects = due && self.eject(until, now, settings);
        if ejects {
            self.ill.store(matches!(kind, FaultKind::Timeout | FaultKind::Status), Relaxed);
        }
        if trial {
            self.end_trial();
        }
        ejects
    }

    fn rate(&self, failed: bool, now: Time, settings: &EjectionSettings) -> Option<f64> {
        self.rate.count(failed, now, settings.rate_window, u64::from(settings.rate_requests))
    }

    fn eject(&self, before: u64, now: Time, settings: &EjectionSettings) -> bool {
        let doublings = self.ejections.load(Relaxed).min(MOST_DOUBLINGS);
        let length = settings.base.saturating_mul(1 << doublings).min(settings.most);
        let until = (now + length).as_micros().max(1);
        // Of several that fail together one ejects.
        let ejects = self.ejected_until.compare_exchange(before, until, Relaxed, Relaxed).is_ok();
        if ejects {
            self.ejections.fetch_add(1, Relaxed);
            self.ejected.fetch_add(1, Relaxed);
            // What led to it does not count again.
            self.rate.clear();
        }
        ejects
    }

    /// The target asked to be left alone until then.
    pub(crate) fn hold_off(&self, until: Time) {
        self.held_until.fetch_max(until.as_micros(), Relaxed);
    }

    /// The target can be reached again, or for the first time. That undoes an ejection for not being there; what answered badly
    /// still has to prove itself.
    pub(crate) fn came_back(&self, now: Time) {
        if !self.ill.load(Relaxed) {
            self.failures.store(0, Relaxed);
            self.ejections.store(0, Relaxed);
            self.ejected_until.store(0, Relaxed);
        }
        self.begin_slow_start(now);
    }

    fn begin_slow_start(&self, now: Time) {
        self.ramp_from.store(now.as_micros().saturating_add(1), Relaxed);
    }

    /// Share of the usual load that the target gets, while its slow start lasts.
    pub(crate) fn ramp(&self, now: Time, settings: &EjectionSettings) -> Option<f64> {
        let from = self.ramp_from.load(Relaxed).checked_sub(1)?;
        let passed = now.since(Time::from_micros(from));
        let ramps = passed < settings.slow_start;
        ramps.then(|| (passed.as_secs_f64() / settings.slow_start.as_secs_f64()).max(FIRST_SHARE))
    }
}

impl EjectionSettings {
    fn counts_rate(&self) -> bool {
        self.failure_rate <= 1.0
    }
}

impl HealthState {
    /// It takes requests: all, or one as a trial.
    pub fn takes_requests(self) -> bool {
        matches!(self, Self::Closed | Self::HalfOpen { trial: false })
    }
}

impl FaultKind {
    /// Its name, as metrics have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Lost => "lost",
            Self::Timeout => "timeout",
            Self::Status => "status",
            Self::Broken => "broken",
        }
    }
}

impl fmt::Display for HealthState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("takes requests"),
            Self::Ejected { remaining } => {
                write!(f, "ejected after failures, for {:.1} s more", remaining.as_secs_f64())
            }
            Self::HalfOpen { trial: true } => f.write_str("ejected after failures; a trial request runs"),
            Self::HalfOpen { trial: false } => {
                f.write_str("ejected after failures; its next request is a trial")
            }
            Self::HeldOff { remaining } => {
                write!(f, "asked to be left alone, for {:.1} s more", remaining.as_secs_f64())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_micros(seconds * 1_000_000)
    }

    fn settings() -> EjectionSettings {
        EjectionSettings {
            failures: 3,
            failure_rate: 2.0,
            most: Duration::from_secs(15),
            ..EjectionSettings::default()
        }
    }

    fn ejected() -> Health {
        let health = Health::default();
        let told: Vec<bool> =
            (0..3).map(|_| health.failed(FaultKind::Status, false, at(1), &settings())).collect();
        assert_eq!(told, [false, false, true]);
        health
    }

    #[test]
    fn failures_in_a_row_eject_and_a_success_between_them_counts_anew() {
        let health = Health::default();
        for _ in 0..10 {
            assert!(!health.failed(FaultKind::Status, false, at(1), &settings()));
            assert!(!health.failed(FaultKind::Status, false, at(1), &settings()));
            health.succeeded(false, at(1), &settings());
        }
        assert_eq!(health.state(at(1)), HealthState::Closed);
        assert_eq!(ejected().state(at(2)), HealthState::Ejected { remaining: Duration::from_secs(4) });
    }

    #[test]
    fn one_trial_at_a_time_decides() {
        let health = ejected();
        assert_eq!(health.admit(at(6)), Some(true));
        assert_eq!(health.admit(at(6)), None);
        assert!(!health.state(at(6)).takes_requests());
        health.end_trial();
        assert_eq!(health.admit(at(6)), Some(true), "a client that went away says nothing");
        health.succeeded(false, at(6), &settings());
        assert_eq!(
            health.state(at(6)),
            HealthState::HalfOpen { trial: true },
            "it began before the ejection"
        );
        health.succeeded(true, at(6), &settings());
        assert_eq!(health.state(at(6)), HealthState::Closed);
    }

    #[test]
    fn ejections_double_up_to_their_bound_and_begin_anew_after_a_success() {
        let (health, settings) = (ejected(), settings());
        let mut now = at(6);
        for wanted in [10, 15, 15] {
            assert_eq!(health.admit(now), Some(true));
            assert!(health.failed(FaultKind::Status, true, now, &settings));
            let remaining = Duration::from_secs(wanted);
            assert_eq!(health.state(now), HealthState::Ejected { remaining });
            now = now + remaining;
        }
        assert_eq!(health.admit(now), Some(true));
        health.succeeded(true, now, &settings);
        (0..3).for_each(|_| _ = health.failed(FaultKind::Status, false, now, &settings));
        assert_eq!(health.state(now), HealthState::Ejected { remaining: settings.base });
        assert_eq!(health.ejections(), 5);
    }

    #[test]
    fn being_reachable_again_undoes_what_being_unreachable_did_and_no_more() {
        let (health, ill) = (Health::default(), ejected());
        let faults = [FaultKind::Broken, FaultKind::Lost, FaultKind::Connect];
        faults.into_iter().for_each(|kind| _ = health.failed(kind, false, at(1), &settings()));
        assert!(!health.state(at(2)).takes_requests());
        health.came_back(at(2));
        ill.came_back(at(2));
        assert_eq!(health.state(at(2)), HealthState::Closed);
        assert!(!ill.state(at(2)).takes_requests());
    }

    #[test]
    fn failing_often_ejects_though_never_in_a_row() {
        let settings = EjectionSettings { failure_rate: 0.5, ..settings() };
        let health = Health::default();
        for _ in 0..9 {
            health.succeeded(false, at(1), &settings);
            assert!(!health.failed(FaultKind::Status, false, at(1), &settings));
        }
        health.succeeded(false, at(1), &settings);
        assert!(health.failed(FaultKind::Status, false, at(1), &settings), "10 of 20");
        assert_eq!(health.admit(at(6)), Some(true));
        health.succeeded(true, at(6), &settings);
        assert!(!health.failed(FaultKind::Status, false, at(6), &settings), "what was is forgotten");
        let never = EjectionSettings { failure_rate: f64::INFINITY, ..settings };
        let health = Health::default();
        for _ in 0..100 {
            health.succeeded(false, at(1), &never);
            assert!(!health.failed(FaultKind::Status, false, at(1), &never));
        }
    }

    #[test]
    fn a_slow_start_grows_to_the_whole() {
        let (health, settings) = (Health::default(), settings());
        assert_eq!(health.ramp(at(0), &settings), None);
        health.begin_slow_start(at(0));
        assert_eq!(health.ramp(at(0), &settings), Some(FIRST_SHARE));
        assert_eq!(health.ramp(at(5), &settings), Some(0.5));
        assert_eq!(health.ramp(at(10), &settings), None);
    }

    #[test]
    fn whoever_asks_to_be_left_alone_is() {
        let health = Health::default();
        health.hold_off(at(7));
        health.hold_off(at(5));
        assert_eq!(health.state(at(4)), HealthState::HeldOff { remaining: Duration::from_secs(3) });
        assert_eq!(health.state(at(7)), HealthState::Closed);
    }

    #[test]
    fn no_sequence_of_outcomes_leaves_a_target_out_for_ever() {
        let settings = settings();
        for seed in 0..300 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (health, mut now) = (Health::default(), at(0));
            let mut running: Vec<bool> = Vec::new();
            for _ in 0..200 {
                now = now + Duration::from_millis(rng.u64(0..3_000));
                if rng.bool() && health.state(now).takes_requests() {
                    running.extend(health.admit(now));
                }
                assert!(running.iter().filter(|trial| **trial).count() <= 1);
                if !running.is_empty() && rng.bool() {
                    let trial = running.swap_remove(rng.usize(..running.len()));
                    match rng.u8(..3) {
                        0 => health.succeeded(trial, now, &settings),
                        1 => _ = health.failed(FaultKind::Status, trial, now, &settings),
                        _ if trial => health.end_trial(),
                        _ => {}
                    }
                }
            }
            for trial in running {
                if trial {
                    health.end_trial();
                }
            }
            now = now + settings.most;
            assert!(health.state(now).takes_requests(), "seed {seed}: {:?}", health.state(now));
        }
    }
}
