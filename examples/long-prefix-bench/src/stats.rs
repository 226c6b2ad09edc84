//! Means, quantiles, and intervals of ratios over seeds.

use serde::{Deserialize, Serialize};

/// How a figure is distributed over requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// Arithmetic mean.
    pub mean: f64,
    /// Half of all are no more.
    pub p50: f64,
    /// 90 % are no more.
    pub p90: f64,
    /// 99 % are no more.
    pub p99: f64,
}

/// A ratio and the interval that holds it with 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// Geometric mean of the paired ratios.
    pub ratio: f64,
    /// Lower end; equals the ratio with one pair alone.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Pairs.
    pub pairs: usize,
}

/// Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom.
const STUDENT: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// The same for more.
const NORMAL: f64 = 1.960;

impl Distribution {
    /// Of these figures, in any order; all zero if there are none.
    pub fn of(mut figures: Vec<f64>) -> Self {
        figures.sort_unstable_by(f64::total_cmp);
        let quantile = |share| quantile(&figures, share);
        Self { mean: mean(&figures), p50: quantile(0.5), p90: quantile(0.9), p99: quantile(0.99) }
    }
}

impl Ratio {
    /// Of paired figures, none of them zero or less: ours over theirs.
    pub fn of(pairs: impl Iterator<Item = (f64, f64)>) -> Option<Self> {
        let logs: Vec<f64> = pairs.filter(|(a, b)| *a > 0.0 && *b > 0.0).map(|(a, b)| (a / b).ln()).collect();
        if logs.is_empty() {
            return None;
        }
        let (mean, n) = (mean(&logs), logs.len());
        let half = if n == 1 {
            0.0
        } else {
            let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
            STUDENT.get(n - 2).copied().unwrap_or(NORMAL) * (variance / n as f64).sqrt()
        };
        Some(Self { ratio: mean.exp(), low: (mean - half).exp(), high: (mean + half).exp(), pairs: n })
    }

    /// Whether it is a difference: several pairs, and the interval excludes 1.
    pub fn differs(&self) -> bool {
        self.pairs > 1 && (self.low > 1.0 || self.high < 1.0)
    }
}

/// Arithmetic mean; zero of nothing.
pub fn mean(figures: &[f64]) -> f64 {
    if figures.is_empty() { 0.0 } else { figures.iter().sum::<f64>() / figures.len() as f64 }
}

/// Geometric mean of positive figures; 1 of nothing.
pub fn geometric_mean(figures: &[f64]) -> f64 {
    mean(&figures.iter().map(|figure| figure.ln()).collect::<Vec<_>>()).exp()
}

/// The figure below which this share of sorted ones lies; zero of nothing.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((share * sorted.len() as f64) as usize).or(sorted.get(last)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted() {
        let of = Distribution::of((1..=100).rev().map(f64::from).collect());
        assert_eq!((of.mean, of.p50, of.p90, of.p99), (50.5, 51.0, 91.0, 100.0));
        assert_eq!(Distribution::of(Vec::new()), Distribution::default());
    }

    /// Logs 0.1, 0.2, 0.3: mean 0.2, deviation 0.1, half width 4.303 · 0.1 / √3 = 0.2484.
    #[test]
    fn intervals_are_student_s() {
        let pairs = [0.1_f64, 0.2, 0.3].map(|log| (log.exp(), 1.0));
        let ratio = Ratio::of(pairs.into_iter()).unwrap();
        assert!((ratio.ratio.ln() - 0.2).abs() < 1e-9);
        assert!((ratio.low.ln() + 0.0484).abs() < 1e-3 && (ratio.high.ln() - 0.4484).abs() < 1e-3);
        assert!(!ratio.differs());
        let clear = Ratio::of([(2.0, 1.0), (2.1, 1.0), (1.9, 1.0)].into_iter()).unwrap();
        assert!(clear.differs());
        assert!(!Ratio::of([(2.0, 1.0)].into_iter()).unwrap().differs(), "one pair shows nothing");
        assert_eq!(Ratio::of(std::iter::empty()), None);
    }

    #[test]
    fn a_geometric_mean_is_of_ratios() {
        assert!((geometric_mean(&[1.0, 4.0]) - 2.0).abs() < 1e-12);
    }
}
