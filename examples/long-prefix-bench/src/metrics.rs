//! What a run came to, in the figures that `docs/benchmark.md` defines.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sglang_sim::Timing;

use crate::lab::{Outcome, Request, Setting};
use crate::stats::{Distribution, mean, quantile};
use crate::workload::Traffic;

/// Of one run. Requests of the warm-up count nowhere; those that timed out or failed count everywhere.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Requests that were measured.
    pub requests: usize,
    /// Of these, those without a first token in time.
    pub timed_out: usize,
    /// And those that nobody took, or whose answer broke off.
    pub failed: usize,
    /// Cached prompt tokens over prompt tokens.
    pub hit_rate: f64,
    /// The same, relative to an infinite cache's.
    pub of_ideal: f64,
    /// Prompt tokens computed, relative to what an infinite cache would have left to compute.
    pub recompute_factor: f64,
    /// Time to first token, in seconds; without one, the timeout.
    pub ttft_s: Distribution,
    /// Time per output token after the first, in seconds.
    pub tpot_s: Distribution,
    /// Time to first token relative to that on an idle engine with an ideal cache.
    pub slowdown: Distribution,
    /// Share of requests that met both objectives.
    pub slo_share: f64,
    /// Of those that do not disturb, where some do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub others: Option<Others>,
    /// Requests that met both, a second.
    pub goodput_per_s: f64,
    /// Requests sent a second.
    pub offered_per_s: f64,
    /// Time from the start to the last answer.
    pub makespan_s: f64,
    /// Time that sessions took relative to their nominal time, in the mean; of sessions of one turn alone, nothing.
    pub session_stretch: f64,
    /// Most over mean of the engines' prefill time in windows of 30 s, weighted by work.
    pub imbalance_mean: f64,
    /// The same in the worst of a hundred windows.
    pub imbalance_p99: f64,
    /// Deviation over mean of the uncached tokens that wait at the engines, in the mean over time.
    pub queue_cov: f64,
    /// Copies of each cached block.
    pub replication: f64,
    /// Predicted less actual cached tokens, in the mean.
    pub prediction_bias_tokens: f64,
    /// The same without the sign.
    pub prediction_error_tokens: f64,
    /// Requests that engines put back for lack of memory.
    pub retracted: u64,
    /// Evicted tokens for each prompt token.
    pub evicted_per_prompt_token: f64,
    /// Of several routers: share of decisions that all of them would have taken alike at that moment, of those that all were asked about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<f64>,
}

/// How a run went over time, and how long requests waited.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Detail {
    /// Width of a point of the series, in seconds.
    pub step_s: f64,
    /// Hit rate of the requests sent in each step; absent where none was.
    pub hit_rate: Vec<Option<f64>>,
    /// Mean time to first token of the same, in seconds.
    pub ttft_s: Vec<Option<f64>>,
    /// Most over mean of the engines' prefill time.
    pub imbalance: Vec<Option<f64>>,
    /// Times to first token at equal distances of the cumulative distribution, in seconds.
    pub ttft_quantiles_s: Vec<f64>,
}

/// Figures of the requests of all sessions but those that are there to disturb them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Others {
    /// Requests.
    pub requests: usize,
    /// As [`Metrics::hit_rate`].
    pub hit_rate: f64,
    /// As [`Metrics::ttft_s`].
    pub ttft_s: Distribution,
    /// As [`Metrics::tpot_s`].
    pub tpot_s: Distribution,
    /// As [`Metrics::slo_share`].
    pub slo_share: f64,
}

/// A first token in time: within this, or within [`SLO_SLOWDOWN`] of the time alone.
const SLO_TTFT_S: f64 = 1.0;
const SLO_SLOWDOWN: f64 = 4.0;

/// Time per output token that an answer should not exceed.
const SLO_TPOT_S: f64 = 0.05;

/// Windows in which imbalance is measured.
const WINDOW: Duration = Duration::from_secs(30);

/// Points of a series, and of a cumulative distribution.
const POINTS: usize = 80;

/// One measured request.
struct Measured<'a> {
    request: &'a Request,
    prompt_tokens: usize,
    output_tokens: usize,
    ideal_tokens: usize,
    intrudes: bool,
}

impl Measured<'_> {
    fn ttft_s(&self, timeout: Duration) -> f64 {
        self.request.first.map_or(timeout, |first| first - self.request.sent).as_secs_f64()
    }

    /// Time to first token on an idle engine with an ideal cache.
    fn alone_s(&self, timing: &Timing) -> f64 {
        timing.prefill(self.prompt_tokens - self.ideal_tokens, self.ideal_tokens).as_secs_f64().max(1e-3)
    }

    fn tpot_s(&self) -> Option<f64> {
        let (first, done) = (self.request.first?, self.request.done?);
        (self.output_tokens > 1).then(|| (done - first).as_secs_f64() / (self.output_tokens - 1) as f64)
    }

    fn is_late(&self) -> bool {
        self.request.first.is_none() && !self.request.failed
    }

    fn meets(&self, setting: &Setting) -> bool {
        let most = SLO_TTFT_S.max(SLO_SLOWDOWN * self.alone_s(&setting.timing));
        self.request.done.is_some()
            && self.ttft_s(setting.timeout) <= most
            && self.tpot_s().is_none_or(|tpot| tpot <= SLO_TPOT_S)
    }
}

/// Figures of a run; `ideal` are the tokens of each prompt that an infinite cache holds.
pub fn metrics(setting: &Setting, traffic: &Traffic, ideal: &[usize], outcome: &Outcome) -> Metrics {
    let measured = measured(traffic, ideal, outcome);
    let sum = |of: fn(&Measured<'_>) -> usize| measured.iter().map(of).sum::<usize>() as f64;
    let prompt = sum(|one| one.prompt_tokens).max(1.0);
    let (cached, ideal) = (sum(|one| one.request.cached_tokens), sum(|one| one.ideal_tokens));
    let met = measured.iter().filter(|one| one.meets(setting)).count();
    let ttft = |one: &Measured<'_>| one.ttft_s(setting.timeout);
    let answered: Vec<_> = measured.iter().filter(|one| one.request.first.is_some()).collect();
    let errors: Vec<f64> = answered
        .iter()
        .map(|one| one.request.predicted_tokens as f64 - one.request.cached_tokens as f64)
        .collect();
    let sent = || measured.iter().map(|one| one.request.sent);
    let sending_s = (sent().max().unwrap_or_default() - sent().min().unwrap_or_default()).as_secs_f64();
    let (imbalance_mean, imbalance_p99) = imbalance(setting, outcome);
    Metrics {
        requests: measured.len(),
        timed_out: measured.iter().filter(|one| one.is_late()).count(),
        failed: measured.iter().filter(|one| one.request.failed).count(),
        hit_rate: cached / prompt,
        of_ideal: if ideal > 0.0 { cached / ideal } else { 1.0 },
        recompute_factor: (prompt - cached) / (prompt - ideal).max(1.0),
        ttft_s: Distribution::of(measured.iter().map(ttft).collect()),
        tpot_s: Distribution::of(measured.iter().filter_map(Measured::tpot_s).collect()),
        slowdown: Distribution::of(
            measured.iter().map(|one| ttft(one) / one.alone_s(&setting.timing)).collect(),
        ),
        slo_share: met as f64 / measured.len().max(1) as f64,
        others: others(setting, &measured),
        goodput_per_s: met as f64 / sending_s.max(1.0),
        offered_per_s: measured.len() as f64 / sending_s.max(1.0),
        makespan_s: outcome.end.as_secs_f64(),
        session_stretch: session_stretch(setting, traffic, outcome),
        imbalance_mean,
        imbalance_p99,
        queue_cov: queue_cov(outcome),
        replication: outcome.replication,
        prediction_bias_tokens: mean(&errors),
        prediction_error_tokens: mean(&errors.iter().map(|error| error.abs()).collect::<Vec<_>>()),
        retracted: outcome.retracted,
        evicted_per_prompt_token: outcome.evicted_tokens as f64 / traffic.prompt_tokens().max(1) as f64,
        agreement: agreement(traffic, outcome),
    }
}

fn agreement(traffic: &Traffic, outcome: &Outcome) -> Option<f64> {
    let measured = outcome.polls.iter().filter(|poll| poll.request >= traffic.warm_up);
    let polls: Vec<bool> = measured.map(|poll| poll.agreed).collect();
    let agreed = polls.iter().filter(|agreed| **agreed).count();
    (!polls.is_empty()).then(|| agreed as f64 / polls.len() as f64)
}

/// The run over time.
pub fn detail(setting: &Setting, traffic: &Traffic, ideal: &[usize], outcome: &Outcome) -> Detail {
    let end = outcome.requests.iter().map(|request| request.sent).max().unwrap_or_default();
    let step_s = (end.as_secs_f64() / POINTS as f64).max(1.0);
    let place = |at: Duration| ((at.as_secs_f64() / step_s) as usize).min(POINTS - 1);
    let (mut prompt, mut cached) = (vec![0_usize; POINTS], vec![0_usize; POINTS]);
    let mut ttft = vec![Vec::new(); POINTS];
    for (request, sequence) in outcome.requests.iter().zip(&traffic.requests) {
        let at = place(request.sent);
        prompt[at] += sequence.prompt_tokens();
        cached[at] += request.cached_tokens;
        ttft[at].push(request.first.map_or(setting.timeout, |first| first - request.sent).as_secs_f64());
    }
    let mut busy = vec![vec![0.0; setting.engines()]; POINTS];
    for (engine, ended, took) in &outcome.prefills {
        busy[place(*ended)][*engine] += took.as_secs_f64();
    }
    let mut waited: Vec<f64> =
        measured(traffic, ideal, outcome).iter().map(|one| one.ttft_s(setting.timeout)).collect();
    waited.sort_unstable_by(f64::total_cmp);
    let imbalance = |(point, busy): (usize, &Vec<f64>)| {
        let from = Duration::from_secs_f64(step_s * point as f64);
        most_over_mean(&of_those_there(outcome, busy, from, Duration::from_secs_f64(step_s)))
    };
    let rate = |(prompt, cached): (&usize, &usize)| (*prompt > 0).then(|| *cached as f64 / *prompt as f64);
    Detail {
        step_s,
        hit_rate: prompt.iter().zip(&cached).map(rate).collect(),
        ttft_s: ttft.iter().map(|all| (!all.is_empty()).then(|| mean(all))).collect(),
        imbalance: busy.iter().enumerate().map(imbalance).collect(),
        ttft_quantiles_s: (0..=POINTS).map(|i| quantile(&waited, i as f64 / POINTS as f64)).collect(),
    }
}

fn measured<'a>(traffic: &'a Traffic, ideal: &'a [usize], outcome: &'a Outcome) -> Vec<Measured<'a>> {
    let intrudes = |session: &u32| traffic.sessions.get(*session as usize).is_some_and(|of| of.intrudes);
    let all = outcome.requests.iter().zip(&traffic.requests).zip(ideal).zip(&traffic.session_of);
    all.skip(traffic.warm_up)
        .map(|(((request, sequence), ideal_tokens), session)| Measured {
            request,
            prompt_tokens: sequence.prompt_tokens(),
            output_tokens: sequence.output_tokens(),
            ideal_tokens: *ideal_tokens,
            intrudes: intrudes(session),
        })
        .collect()
}

fn others(setting: &Setting, measured: &[Measured<'_>]) -> Option<Others> {
    let others: Vec<_> = measured.iter().filter(|one| !one.intrudes).collect();
    if others.len() == measured.len() {
        return None;
    }
    let sum = |of: fn(&Measured<'_>) -> usize| others.iter().map(|one| of(one)).sum::<usize>() as f64;
    let met = others.iter().filter(|one| one.meets(setting)).count();
    Some(Others {
        requests: others.len(),
        hit_rate: sum(|one| one.request.cached_tokens) / sum(|one| one.prompt_tokens).max(1.0),
        ttft_s: Distribution::of(others.iter().map(|one| one.ttft_s(setting.timeout)).collect()),
        tpot_s: Distribution::of(others.iter().filter_map(|one| one.tpot_s()).collect()),
        slo_share: met as f64 / others.len().max(1) as f64,
    })
}

fn most_over_mean(busy: &[f64]) -> Option<f64> {
    let mean = mean(busy);
    (mean > 0.0).then(|| busy.iter().copied().fold(0.0, f64::max) / mean)
}

/// Prefill time of the engines that were in the fleet in a window.
fn of_those_there(outcome: &Outcome, busy: &[f64], from: Duration, lasts: Duration) -> Vec<f64> {
    let there = |(engine, _): &(usize, &f64)| outcome.is_there(*engine, from, from + lasts);
    busy.iter().enumerate().filter(there).map(|(_, busy)| *busy).collect()
}

/// In the mean, weighted by work, and in the worst of a hundred windows, of those that keep the fleet busy for a twentieth of their
/// time: one request alone is no imbalance.
fn imbalance(setting: &Setting, outcome: &Outcome) -> (f64, f64) {
    let windows = (outcome.end.as_secs() / WINDOW.as_secs() + 1) as usize;
    let mut busy = vec![vec![0.0; setting.engines()]; windows];
    for (engine, ended, took) in &outcome.prefills {
        let window = (ended.as_secs() / WINDOW.as_secs()) as usize;
        if let Some(window) = busy.get_mut(window) {
            window[*engine] += took.as_secs_f64();
        }
    }
    let least = 0.05 * WINDOW.as_secs_f64() * setting.workers as f64;
    let there = |(at, busy): (usize, &Vec<f64>)| of_those_there(outcome, busy, WINDOW * at as u32, WINDOW);
    let busy: Vec<Vec<f64>> = busy.iter().enumerate().map(there).collect();
    let worked = busy.iter().map(|busy| (busy.iter().sum::<f64>(), busy)).filter(|(work, _)| *work >= least);
    let all: Vec<(f64, f64)> =
        worked.filter_map(|(work, busy)| most_over_mean(busy).map(|ratio| (work, ratio))).collect();
    let work: f64 = all.iter().map(|(work, _)| work).sum();
    let weighted: f64 = all.iter().map(|(work, ratio)| work * ratio).sum();
    let mut ratios: Vec<f64> = all.iter().map(|(_, ratio)| *ratio).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    (if work > 0.0 { weighted / work } else { 1.0 }, quantile(&ratios, 0.99).max(1.0))
}

/// Of samples in which anything waits.
fn queue_cov(outcome: &Outcome) -> f64 {
    let covs = outcome.samples.iter().filter_map(|sample| {
        let queued: Vec<f64> = sample.queued_tokens.iter().map(|tokens| *tokens as f64).collect();
        let mean = mean(&queued);
        let variance = queued.iter().map(|tokens| (tokens - mean).powi(2)).sum::<f64>() / queued.len() as f64;
        (mean > 0.0).then(|| variance.sqrt() / mean)
    });
    mean(&covs.collect::<Vec<_>>())
}

/// Nominal: thinking, ideal prefill of what is new, and a decode step of a small batch for each output token.
fn session_stretch(setting: &Setting, traffic: &Traffic, outcome: &Outcome) -> f64 {
    let several =
        traffic.sessions.iter().zip(&outcome.session_ends).filter(|(session, _)| session.turns.len() > 1);
    let stretches = several.map(|(session, ended)| {
        let nominal: Duration = session
            .turns
            .iter()
            .map(|turn| {
                let longest = turn.requests.iter().map(|at| &traffic.requests[*at as usize]);
                let longest = longest.max_by_key(|sequence| sequence.output_tokens());
                let decode = longest.map_or(Duration::ZERO, |sequence| {
                    let context = sequence.prompt_tokens();
                    setting.timing.decode(4, 4 * context) * sequence.output_tokens() as u32
                });
                turn.think + decode
            })
            .sum();
        let waits_for_trace = session.turns.last().map_or(Duration::ZERO, |turn| turn.not_before);
        let nominal = nominal.max(waits_for_trace.saturating_sub(session.start));
        ended.saturating_sub(session.start).as_secs_f64() / nominal.as_secs_f64().max(1.0)
    });
    mean(&stretches.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::lab::Poll;
    use crate::sequence::Hasher;
    use crate::workload::{Draft, DraftSession, DraftTurn};

    fn setting() -> Setting {
        Setting::undisturbed(2, 1 << 20)
    }

    /// Ten requests of 1,000 tokens and 11 outputs each; the first one is the warm-up.
    fn traffic() -> Traffic {
        let hasher = Hasher::new();
        let tokens: Vec<u32> = (0..1_011).collect();
        let session = |number: u32| DraftSession {
            starts: f64::from(number) / 10.0,
            turns: vec![DraftTurn::new(Duration::ZERO, hasher.sequence(&tokens[..1_000], &tokens[1_000..]))],
            ..DraftSession::default()
        };
        let sessions = (0..10).map(session).collect();
        Draft { sessions, ..Draft::default() }.schedule(Duration::from_secs(100))
    }

    fn outcome(traffic: &Traffic) -> Outcome {
        let request = |(number, _): (usize, &Arc<_>)| Request {
            sent: Duration::from_secs(10 * number as u64),
            engine: number % 2,
            first: Some(Duration::from_secs(10 * number as u64) + Duration::from_millis(500)),
            done: Some(Duration::from_secs(10 * number as u64 + 1)),
            failed: false,
            cached_tokens: 480,
            predicted_tokens: 500,
            returned: None,
        };
        Outcome {
            requests: traffic.requests.iter().enumerate().map(request).collect(),
            prefills: vec![
                (0, Duration::from_secs(5), Duration::from_secs(9)),
                (1, Duration::from_secs(8), Duration::from_secs(3)),
            ],
            end: Duration::from_secs(91),
            session_ends: vec![Duration::ZERO; 10],
            replication: 2.0,
            ..Outcome::default()
        }
    }

    #[test]
    fn figures_follow_their_definitions() {
        let traffic = traffic();
        let mut outcome = outcome(&traffic);
        outcome.requests[9].first = None;
        outcome.requests[9].done = None;
        outcome.requests[9].cached_tokens = 0;
        let of = metrics(&setting(), &traffic, &[960; 10], &outcome);
        assert_eq!((of.requests, of.timed_out), (9, 1));
        assert!((of.hit_rate - 8.0 * 480.0 / 9_000.0).abs() < 1e-12);
        assert!((of.of_ideal - 8.0 / 18.0).abs() < 1e-12);
        assert!((of.recompute_factor - (9_000.0 - 3_840.0) / 360.0).abs() < 1e-9);
        assert!((of.ttft_s.mean - (8.0 * 0.5 + 120.0) / 9.0).abs() < 1e-12, "the timeout counts");
        outcome.requests[9].failed = true;
        let failed = metrics(&setting(), &traffic, &[960; 10], &outcome);
        assert_eq!((failed.timed_out, failed.failed), (0, 1));
        assert_eq!((failed.ttft_s, failed.slo_share), (of.ttft_s, of.slo_share), "either is a miss");
        assert_eq!((of.ttft_s.p50, of.ttft_s.p99), (0.5, 120.0));
        assert!((of.tpot_s.mean - 0.05).abs() < 1e-9);
        assert!((of.slo_share - 8.0 / 9.0).abs() < 1e-12);
        assert_eq!((of.imbalance_mean, of.imbalance_p99), (1.5, 1.5));
        assert_eq!(of.prediction_bias_tokens, 20.0);
    }

    #[test]
    fn an_objective_is_missed_by_either_time() {
        let traffic = traffic();
        let share = |change: fn(&mut Request)| {
            let mut outcome = outcome(&traffic);
            outcome.requests.iter_mut().for_each(change);
            metrics(&setting(), &traffic, &[960; 10], &outcome).slo_share
        };
        assert_eq!(share(|_| ()), 1.0);
        assert_eq!(share(|request| request.first = request.done), 1.0, "one second is in time");
        assert_eq!(
            share(|request| request.done = request.done.map(|done| done + Duration::from_secs(1))),
            0.0
        );
        assert_eq!(share(|request| request.sent = request.sent.saturating_sub(Duration::from_secs(1))), 0.0);
    }

    #[test]
    fn agreement_is_of_the_measured_and_engines_that_are_away_are_no_imbalance() {
        let traffic = traffic();
        let mut outcome = outcome(&traffic);
        assert_eq!(metrics(&setting(), &traffic, &[960; 10], &outcome).agreement, None);
        let poll = |(request, agreed)| Poll { request, agreed };
        outcome.polls = [(0, true), (3, true), (5, false), (7, true), (8, true)].map(poll).to_vec();
        outcome.stays = vec![(Duration::ZERO, Duration::MAX), (Duration::from_secs(60), Duration::MAX)];
        let of = metrics(&setting(), &traffic, &[960; 10], &outcome);
        assert_eq!(of.agreement, Some(0.75), "the first request is the warm-up");
        assert_eq!(of.imbalance_mean, 1.0, "one engine was there");
    }

    #[test]
    fn those_who_disturb_are_left_out_of_the_others_figures() {
        let mut traffic = traffic();
        let mut outcome = outcome(&traffic);
        assert_eq!(metrics(&setting(), &traffic, &[960; 10], &outcome).others, None);
        traffic.sessions[5].intrudes = true;
        outcome.requests[5].first = None;
        let of = metrics(&setting(), &traffic, &[960; 10], &outcome);
        let others = of.others.unwrap();
        assert_eq!((of.timed_out, others.requests), (1, 8));
        assert_eq!((others.ttft_s.p99, others.slo_share, others.hit_rate), (0.5, 1.0, 0.48));
        assert_eq!(of.ttft_s.p99, 120.0);
    }

    #[test]
    fn series_have_gaps_where_nothing_was_sent() {
        let traffic = traffic();
        let of = detail(&setting(), &traffic, &[0; 10], &outcome(&traffic));
        assert_eq!((of.hit_rate[0], of.hit_rate[1], of.ttft_s[0]), (Some(0.48), None, Some(0.5)));
        assert_eq!(of.imbalance.iter().flatten().count(), 2);
        assert!(of.ttft_quantiles_s.is_sorted());
    }
}
