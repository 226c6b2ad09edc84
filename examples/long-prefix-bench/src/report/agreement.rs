//! Whether a result of the lab and one over HTTP say the same of the same cells.

use std::fmt::Write as _;

use super::compare::{CompareError, pairs};
use super::end_to_end::how;
use crate::metrics::Metrics;
use crate::result::{Report, Run};

/// Hit rates may differ by this share,
const MOST_HITS_APART: f64 = 0.10;

/// and times to first token, in the median, by this one.
const MOST_TTFT_APART: f64 = 0.15;

/// A table of every contestant that both have, with how far apart its hit rate and its median time to first token are, and how many are
/// within the bounds. Runs that are void or ended early are left out.
///
/// # Errors
/// The results are not of the same traffic, engines and capacities.
pub fn agreement(lab: &Report, http: &Report) -> Result<String, CompareError> {
    let pairs = pairs(lab, http)?;
    let mut text = format!("{}, beside {}\n", how(lab), how(http));
    let (mut compared, mut within) = (0, 0);
    for (one, other) in pairs {
        let _ = writeln!(
            text,
            "{}\n  {:<24}{:>9}{:>9}{:>9}{:>12}{:>9}{:>9}",
            one.id, "", "hits %", "HTTP", "apart", "TTFT p50 s", "HTTP", "apart"
        );
        for entry in http.contestants.iter().filter(|entry| !entry.is_reference) {
            let runs = one.run(&entry.name).zip(other.run(&entry.name).filter(|run| run.is_sound()));
            let Some((one, other)) = runs else { continue };
            let hits = Beside::of(one, other, |of| of.hit_rate);
            let ttft = Beside::of(one, other, |of| of.ttft_s.p50);
            let agrees = hits.apart().abs() <= MOST_HITS_APART && ttft.apart().abs() <= MOST_TTFT_APART;
            compared += 1;
            within += usize::from(agrees);
            let _ = writeln!(
                text,
                "  {:<24}{:>9.1}{:>9.1}{:>+8.1}%{:>12.3}{:>9.3}{:>+8.1}%{}",
                entry.name,
                100.0 * hits.lab,
                100.0 * hits.http,
                100.0 * hits.apart(),
                ttft.lab,
                ttft.http,
                100.0 * ttft.apart(),
                if agrees { "" } else { "  APART" }
            );
        }
    }
    let _ = writeln!(
        text,
        "{within} of {compared} within {:.0} % of the lab's hit rate and {:.0} % of its median TTFT",
        100.0 * MOST_HITS_APART,
        100.0 * MOST_TTFT_APART
    );
    Ok(text)
}

/// One figure, in the mean over the seeds that both have.
struct Beside {
    lab: f64,
    http: f64,
}

impl Beside {
    fn of(lab: &Run, http: &Run, figure: fn(&Metrics) -> f64) -> Self {
        let seeds = lab.seeds.len().min(http.seeds.len());
        let mean = |run: &Run| run.seeds[..seeds].iter().map(figure).sum::<f64>() / seeds.max(1) as f64;
        Self { lab: mean(lab), http: mean(http) }
    }

    /// Relative to the lab; nothing from nothing is no difference.
    fn apart(&self) -> f64 {
        if self.lab == self.http { 0.0 } else { self.http / self.lab - 1.0 }
    }
}
