//! What a run with a fault comes to beside the same traffic without it: how soon hits are back, and which sessions were moved for nothing.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::grid::Plan;
use crate::lab::{Fault, Moment, Outcome, Setting};
use crate::result::Run;
use crate::stats::{mean, quantile};
use crate::workload::{Traffic, Turn};

/// Of one seed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Aftermath {
    /// In the order in which things happen.
    pub recoveries: Vec<Recovery>,
    /// Where the fleet changes: sessions that were moved when it had; and in the same run without changes, at the same times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<Moved>,
    /// See `moved`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_without: Option<Moved>,
}

/// How soon hits are back after one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recovery {
    /// What happens then.
    pub after: String,
    /// When, in seconds.
    pub at_s: f64,
    /// Seconds from then until hits are back; absent if they do not come back.
    pub took_s: Option<f64>,
}

/// Next turns of the sessions that went on across a change of the fleet, where an engine of the turn before still took requests and
/// held some of the prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// Such requests.
    pub requests: usize,
    /// Of these, those that went to an engine that held less.
    pub moved: usize,
    /// Tokens of all their prompts that were held.
    pub held_tokens: u64,
    /// Of these, those that the engines did not hold that were chosen.
    pub moved_tokens: u64,
}

/// What has to be kept of a run until there is the other one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Course {
    /// Prompt tokens, and cached ones, of the requests sent in each second.
    seconds: Vec<(u64, u64)>,
    /// What was moved at the times at which a fleet would change.
    moved: Moved,
}

/// How the times to recover of many moments are distributed; what never comes back counts as longer than all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Times {
    /// The median; absent if half of all or more do not come back.
    pub median_s: Option<f64>,
    /// The least and the most of those that do.
    pub range_s: Option<(f64, f64)>,
    /// Moments after which hits do not come back.
    pub never: usize,
    /// All moments.
    pub of: usize,
}

/// Seconds over which a hit rate is taken: several turns of most sessions would hide that each of them lost its first.
const WINDOW_S: usize = 10;

/// Hits are back at this share of what they are without the fault.
const BACK: f64 = 0.9;

impl Course {
    /// Of a run.
    pub(crate) fn of(setting: &Setting, traffic: &Traffic, outcome: &Outcome) -> Self {
        let mut seconds = Vec::new();
        for (request, sequence) in outcome.requests.iter().zip(&traffic.requests) {
            let at = request.sent.as_secs() as usize;
            if seconds.len() <= at {
                seconds.resize(at + 1, (0, 0));
            }
            seconds[at].0 += sequence.prompt_tokens() as u64;
            seconds[at].1 += request.cached_tokens as u64;
        }
        let changes = Fault::Scale.moments(setting.workers, setting.routers, traffic.span);
        let mut moved = Moved::default();
        changes.iter().for_each(|change| moved.add(traffic, outcome, change.at));
        Self { seconds, moved }
    }

    /// Hit rate of what is sent in the window from a second on; nothing if nothing is.
    fn hit_rate(&self, from: usize) -> Option<f64> {
        let window = self.seconds.get(from..from + WINDOW_S)?;
        let (prompt, cached) = window.iter().fold((0, 0), |sum, of| (sum.0 + of.0, sum.1 + of.1));
        (prompt > 0).then(|| cached as f64 / prompt as f64)
    }

    fn recovery(&self, without: &Self, moment: Moment) -> Recovery {
        let from = moment.at.as_secs_f64().ceil() as usize;
        let is_back = |at: &usize| {
            let rates = self.hit_rate(*at).zip(without.hit_rate(*at));
            rates.is_some_and(|(with, without)| with >= BACK * without)
        };
        let took_s = (from..self.seconds.len()).find(is_back).map(|at| (at - from) as f64);
        Recovery { after: moment.what.to_owned(), at_s: moment.at.as_secs_f64(), took_s }
    }
}

impl Moved {
    /// The next turns after a moment of sessions that had begun before.
    fn add(&mut self, traffic: &Traffic, outcome: &Outcome, moment: Duration) {
        for session in &traffic.sessions {
            let sent = |turn: &Turn| turn.requests.iter().map(|at| outcome.requests[*at as usize].sent).min();
            let mut turns = session.turns.iter().skip_while(|turn| sent(turn) < Some(moment));
            let has_begun = session.turns.first().is_some_and(|turn| sent(turn) < Some(moment));
            let next = turns.next().filter(|_| has_begun);
            let requests = next.iter().flat_map(|turn| &turn.requests);
            for returned in requests.filter_map(|at| outcome.requests[*at as usize].returned) {
                if returned.held_tokens == 0 {
                    continue;
                }
                let lost = returned.held_tokens.saturating_sub(returned.here_tokens);
                self.requests += 1;
                self.moved += usize::from(lost > 0);
                self.held_tokens += returned.held_tokens as u64;
                self.moved_tokens += lost as u64;
            }
        }
    }

    /// Share of the requests.
    pub fn share(&self) -> f64 {
        self.moved as f64 / self.requests.max(1) as f64
    }

    /// Share of the tokens.
    pub fn token_share(&self) -> f64 {
        self.moved_tokens as f64 / self.held_tokens.max(1) as f64
    }
}

impl Aftermath {
    /// Of a run with a fault, and the same without.
    pub(crate) fn of(fault: Fault, moments: &[Moment], with: &Course, without: &Course) -> Self {
        let changes_fleet = fault.spare_engines() > 0;
        Self {
            recoveries: moments.iter().map(|moment| with.recovery(without, *moment)).collect(),
            moved: changes_fleet.then_some(with.moved),
            moved_without: changes_fleet.then_some(without.moved),
        }
    }
}

impl Times {
    /// Of everything that happened under one name, in all seeds; nothing if nothing did.
    pub fn of(aftermaths: &[Aftermath], after: &str) -> Option<Self> {
        let all = aftermaths.iter().flat_map(|aftermath| &aftermath.recoveries);
        let mut times: Vec<f64> = all
            .filter(|recovery| recovery.after == after)
            .map(|recovery| recovery.took_s.unwrap_or(f64::INFINITY))
            .collect();
        times.sort_unstable_by(f64::total_cmp);
        let back = times.iter().copied().filter(|time| time.is_finite());
        let range_s = back.clone().reduce(f64::min).zip(back.clone().reduce(f64::max));
        let median = quantile(&times, 0.5);
        (!times.is_empty()).then(|| Self {
            median_s: median.is_finite().then_some(median),
            range_s,
            never: times.len() - back.count(),
            of: times.len(),
        })
    }
}

/// Whether what happens in a cell has an aftermath, or it is what such a one is compared with.
pub(crate) fn concerns(plan: &Plan, all: &[Plan]) -> bool {
    let has = |plan: &Plan| plan.fault.is_some_and(Fault::has_moments);
    has(plan) || all.iter().any(|other| has(other) && other.undisturbed() == *plan)
}

impl Run {
    /// Means over the seeds of what was moved at changes of the fleet: without the changes, and with them.
    pub fn moved(&self, figure: fn(&Moved) -> f64) -> Option<(f64, f64)> {
        let mean_of = |of: fn(&Aftermath) -> Option<Moved>| {
            let all: Vec<f64> = self.aftermaths.iter().filter_map(of).map(|of| figure(&of)).collect();
            (!all.is_empty()).then(|| mean(&all))
        };
        Some((mean_of(|of| of.moved_without)?, mean_of(|of| of.moved)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{Request, Returned};
    use crate::sequence::Hasher;
    use crate::workload::{Draft, DraftSession, DraftTurn};

    /// Hit rates of so many seconds each, one prompt of 1,000 tokens a second.
    fn course(rates: &[(usize, u64)]) -> Course {
        let seconds = rates.iter().flat_map(|(seconds, cached)| vec![(1_000, *cached); *seconds]);
        Course { seconds: seconds.collect(), moved: Moved::default() }
    }

    fn took(with: &Course, without: &Course, at_s: f64) -> Option<f64> {
        let moment = Moment { what: "killed", at: Duration::from_secs_f64(at_s) };
        with.recovery(without, moment).took_s
    }

    /// The window from second `d` on has `d + 10 - 60` seconds at 900 and the rest at 600: 810 with seven, that is from second 57 on.
    #[test]
    fn hits_are_back_with_the_first_window_that_has_nine_tenths() {
        let without = course(&[(200, 900)]);
        let with = course(&[(40, 900), (20, 600), (140, 900)]);
        assert_eq!(took(&with, &without, 39.5), Some(17.0));
        assert_eq!(took(&without, &without, 39.5), Some(0.0), "nothing was lost");
        let poor = course(&[(40, 900), (160, 800)]);
        assert_eq!(took(&poor, &without, 39.5), None, "never");
        assert_eq!(took(&with, &without, 191.0), None, "no window is left");
        assert_eq!(took(&with, &course(&[(60, 900)]), 55.0), None, "nor of the other");
        assert_eq!(took(&with, &course(&[(200, 660)]), 39.5), Some(0.0), "others have no more");
    }

    #[test]
    fn a_median_counts_what_never_comes_back() {
        let recovery = |took_s| Recovery { after: "killed".to_owned(), at_s: 1.0, took_s };
        let aftermath = |all: &[Option<f64>]| Aftermath {
            recoveries: all.iter().copied().map(recovery).collect(),
            ..Aftermath::default()
        };
        let seeds = [aftermath(&[Some(4.0), Some(0.0)]), aftermath(&[None, Some(9.0), Some(2.0)])];
        let times = Times::of(&seeds, "killed").unwrap();
        let expected = Times { median_s: Some(4.0), range_s: Some((0.0, 9.0)), never: 1, of: 5 };
        assert_eq!(times, expected);
        let times = Times::of(&[aftermath(&[None, None, Some(1.0)])], "killed").unwrap();
        assert_eq!((times.median_s, times.range_s, times.never), (None, Some((1.0, 1.0)), 2));
        assert_eq!(Times::of(&seeds, "lost"), None);
    }

    /// Three sessions of three turns, ten seconds apart; the last one begins after the change at 5 s.
    #[test]
    fn only_next_turns_across_the_change_count() {
        let hasher = Hasher::new();
        let tokens: Vec<u32> = (0..200).collect();
        let turn =
            || DraftTurn::new(Duration::from_secs(10), hasher.sequence(&tokens[..100], &tokens[100..]));
        let session = |number: u32| DraftSession {
            offset: Duration::from_secs(if number == 2 { 20 } else { 0 }),
            turns: (0..3).map(|_| turn()).collect(),
            ..DraftSession::default()
        };
        let sessions = (0..3).map(session).collect();
        let traffic = Draft { sessions, ..Draft::default() }.schedule(Duration::ZERO);
        let mut outcome = Outcome { requests: vec![Request::default(); 9], ..Outcome::default() };
        for (number, session) in traffic.sessions.iter().enumerate() {
            for (turn, of) in session.turns.iter().enumerate() {
                let start = if number == 2 { 20 } else { 0 };
                let here_tokens = if number == 0 { 64 } else { 16 };
                outcome.requests[of.requests[0] as usize] = Request {
                    sent: Duration::from_secs(start + 10 * turn as u64),
                    returned: (turn > 0).then_some(Returned { held_tokens: 64, here_tokens }),
                    ..Request::default()
                };
            }
        }
        let mut moved = Moved::default();
        moved.add(&traffic, &outcome, Duration::from_secs(5));
        let expected = Moved { requests: 2, moved: 1, held_tokens: 128, moved_tokens: 48 };
        assert_eq!(moved, expected, "of the second turns of two sessions");
        assert_eq!((moved.share(), moved.token_share()), (0.5, 0.375));
        moved.add(&traffic, &outcome, Duration::from_secs(15));
        assert_eq!(moved.requests, 4, "the third turns of the same");
    }
}
