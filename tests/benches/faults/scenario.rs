//! One fault after the other: made, held, healed.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::Fault;
use crate::fleet::{Fleet, LOOK, WORKERS, in_use};
use crate::load::Load;
use crate::outcome::{Ended, Outcome, balanced_after, hit_rate, ttft};
use crate::rows::Plan;

/// What happens to the worker with the most requests, or to all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scenario {
    /// `continued`: streams go on at other workers.
    Kill {
        continued: bool,
    },
    Stop {
        continued: bool,
    },
    Errors,
    Resets,
    Slow,
    Restarts,
}

/// How long each part of a scenario takes.
#[derive(Clone, Copy, Debug)]
struct Times {
    settle: Duration,
    hold: Duration,
    recover: Duration,
}

/// When what happened.
#[derive(Debug)]
struct Course {
    /// Caches are warm.
    settled: Instant,
    fault: Instant,
    /// The fault was healed.
    healed: Instant,
    end: Instant,
    left_out: Option<Duration>,
    back: Option<Duration>,
}

const ALL: [Scenario; 8] = [
    Scenario::Kill { continued: false },
    Scenario::Kill { continued: true },
    Scenario::Stop { continued: false },
    Scenario::Stop { continued: true },
    Scenario::Errors,
    Scenario::Resets,
    Scenario::Slow,
    Scenario::Restarts,
];

pub(crate) async fn run(plan: &Plan, router: &Path) -> Result<(), Fault> {
    let times = match plan.quick {
        true => Times::of(10, 8, 8),
        false => Times::of(20, 30, 30),
    };
    let mut broken = Vec::new();
    for (seed, scenario) in ALL.into_iter().enumerate().filter(|(_, scenario)| plan.wants(scenario.name())) {
        plan.progress(&format!("{} …", scenario.name()));
        let mut fleet = Fleet::start(router, scenario.continues()).await?;
        let load = Load::start(&fleet.router, seed as u64);
        sleep(times.settle).await;
        let victim = fleet.busiest().await?;
        let course = scenario.play(&mut fleet, victim, times).await;
        let outcomes = load.finish().await;
        broken.extend(report(scenario, &outcomes, &course?, &fleet.url(victim))?);
    }
    if broken.is_empty() { Ok(()) } else { Err(format!("not kept: {}", broken.join("; ")).into()) }
}

impl Times {
    fn of(settle: u64, hold: u64, recover: u64) -> Self {
        let [settle, hold, recover] = [settle, hold, recover].map(Duration::from_secs);
        Self { settle, hold, recover }
    }
}

impl Scenario {
    fn name(self) -> &'static str {
        match self {
            Self::Kill { continued: false } => "kill -9",
            Self::Kill { continued: true } => "kill -9, continued",
            Self::Stop { continued: false } => "SIGSTOP",
            Self::Stop { continued: true } => "SIGSTOP, continued",
            Self::Errors => "status 500",
            Self::Resets => "every 20th reset",
            Self::Slow => "20 times slower",
            Self::Restarts => "all restarted, drained",
        }
    }

    /// Whether streams go on at other workers.
    fn continues(self) -> bool {
        matches!(self, Self::Kill { continued: true } | Self::Stop { continued: true })
    }

    /// Whether the worker is to be left out while it lasts.
    fn leaves_out(self) -> bool {
        matches!(self, Self::Kill { .. } | Self::Stop { .. } | Self::Errors)
    }

    async fn play(self, fleet: &mut Fleet, victim: usize, times: Times) -> Result<Course, Fault> {
        let fault = Instant::now();
        let settled = fault - times.settle / 2;
        if self == Self::Restarts {
            for at in 0..WORKERS {
                fleet.drain(at).await?;
                fleet.kill(at)?;
                fleet.restart(at)?;
                fleet.undrain(at).await?;
                fleet.until("it is in use again", at, in_use).await?;
            }
            let healed = Instant::now();
            sleep(times.recover).await;
            return Ok(Course { settled, fault, healed, end: Instant::now(), left_out: None, back: None });
        }
        self.make(fleet, victim).await?;
        let left_out = match self.leaves_out() {
            true => Some(fleet.until("it is left out", victim, |worker| !in_use(worker)).await?),
            false => None,
        };
        sleep(times.hold.saturating_sub(fault.elapsed())).await;
        self.heal(fleet, victim).await?;
        let healed = Instant::now();
        let back = match self.leaves_out() {
            true => Some(fleet.until("it is in use again", victim, in_use).await?),
            false => None,
        };
        sleep(times.recover.saturating_sub(healed.elapsed()).max(LOOK)).await;
        Ok(Course { settled, fault, healed, end: Instant::now(), left_out, back })
    }

    async fn make(self, fleet: &mut Fleet, victim: usize) -> Result<(), Fault> {
        match self {
            Self::Kill { .. } => fleet.kill(victim),
            Self::Stop { .. } => fleet.signal(victim, "-STOP"),
            Self::Errors => fleet.misbehave(victim, &json!({"status": 500})).await,
            Self::Resets => fleet.misbehave(victim, &json!({"reset_every": 20})).await,
            Self::Slow => fleet.misbehave(victim, &json!({"slowdown": 20.0})).await,
            Self::Restarts => Ok(()),
        }
    }

    async fn heal(self, fleet: &mut Fleet, victim: usize) -> Result<(), Fault> {
        match self {
            Self::Kill { .. } => fleet.restart(victim),
            Self::Stop { .. } => fleet.signal(victim, "-CONT"),
            Self::Errors | Self::Resets | Self::Slow => fleet.misbehave(victim, &json!({})).await,
            Self::Restarts => Ok(()),
        }
    }
}

/// Prints the rows; returns those that miss what is promised.
fn report(
    scenario: Scenario,
    outcomes: &[Outcome],
    course: &Course,
    victim: &str,
) -> Result<Vec<String>, Fault> {
    let mut ends: BTreeMap<&Ended, usize> = BTreeMap::new();
    outcomes.iter().for_each(|outcome| *ends.entry(&outcome.ended).or_default() += 1);
    writeln!(std::io::stderr(), "{}: {ends:?}", scenario.name())?;
    let during = |outcome: &&Outcome| (course.fault..course.healed).contains(&outcome.sent);
    let before = |outcome: &&Outcome| (course.settled..course.fault).contains(&outcome.sent);
    let after = |outcome: &&Outcome| outcome.sent >= course.healed;
    let unbegun = outcomes.iter().filter(|outcome| outcome.failed_unbegun()).count();
    let cut = outcomes.iter().filter(|outcome| outcome.broke_off()).count();
    let share = |when: &dyn Fn(&&Outcome) -> bool| {
        let all = outcomes.iter().filter(when).count() as f64;
        let there = outcomes.iter().filter(when).filter(|outcome| outcome.worker.as_deref() == Some(victim));
        100.0 * there.count() as f64 / all.max(1.0)
    };
    let mut broken = Vec::new();
    let mut row = |what: &str, unit: &str, ours: Option<f64>, target: Option<f64>| -> Result<(), Fault> {
        let Some(ours) = ours else { return Ok(()) };
        if target.is_some_and(|target| ours > target) {
            broken.push(format!("{}: {what}: {ours}", scenario.name()));
        }
        let row: Value = json!({
            "row": format!("{}: {what}", scenario.name()),
            "unit": unit,
            "ours": ours,
            "reference": null,
            "reference_name": null,
            "ratio": null,
            "target": target,
            "met": target.map(|target| ours <= target),
            "min": ours,
            "max": ours,
            "runs": 1,
        });
        Ok(writeln!(std::io::stdout(), "{row}")?)
    };
    let none = Some(0.0);
    row("requests", "", Some(outcomes.len() as f64), None)?;
    row("failed, their answer not begun", "", Some(unbegun as f64), none)?;
    let expects_cuts =
        matches!(scenario, Scenario::Kill { continued: false } | Scenario::Stop { continued: false });
    row("answers broken off", "", Some(cut as f64), none.filter(|_| !expects_cuts))?;
    row("until it is left out", "s", course.left_out.map(|time| time.as_secs_f64()), None)?;
    row("until it is back in use", "s", course.back.map(|time| time.as_secs_f64()), None)?;
    let balanced =
        balanced_after(outcomes, ttft(outcomes.iter().filter(before), 0.9), course.fault, course.end);
    if balanced.is_none() {
        writeln!(std::io::stderr(), "{}: to the end streams began later than before", scenario.name())?;
    }
    row("until streams begin as before", "s", balanced, None)?;
    row("TTFT p90 before", "s", Some(ttft(outcomes.iter().filter(before), 0.9)), None)?;
    row("TTFT p90 during", "s", Some(ttft(outcomes.iter().filter(during), 0.9)), None)?;
    row("hit rate before", "%", Some(hit_rate(outcomes.iter().filter(before))), None)?;
    row("hit rate during", "%", Some(hit_rate(outcomes.iter().filter(during))), None)?;
    row("hit rate after", "%", Some(hit_rate(outcomes.iter().filter(after))), None)?;
    if scenario != Scenario::Restarts {
        row("answered by that worker, before", "%", Some(share(&before)), None)?;
        row("answered by that worker, during", "%", Some(share(&during)), None)?;
        row("answered by that worker, after", "%", Some(share(&after)), None)?;
    }
    Ok(broken)
}
