//! How much routers are told.

use std::time::Duration;

use router_core::ReportLevel;
use router_core::reconcile::Pace;
use worker_agent::translate::Tell;

const OFTEN: Duration = Duration::from_secs(5);

/// Longest time between two comparisons: the coordinator's default.
const LONGEST: Duration = Duration::from_secs(60);

/// What corrects a router's predictions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// Nothing.
    None,
    /// What responses say was cached.
    Responses,
    /// The same, and how much each engine has cached and evicted.
    Counts,
    /// The same, and which blocks were removed.
    Removals,
    /// The same, and every 5 s claims and caches are compared.
    Often,
    /// The same, and they are compared as often as the coordinator does it.
    Paced,
    /// As removals, and which blocks were stored.
    Full,
}

impl Level {
    /// All of them, from the least to the most that is told.
    pub(crate) const ALL: [Self; 7] =
        [Self::None, Self::Responses, Self::Counts, Self::Removals, Self::Often, Self::Paced, Self::Full];

    /// As rows name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Responses => "responses only",
            Self::Counts => "counts",
            Self::Removals => "removals",
            Self::Often => "reconciled every 5 s",
            Self::Paced => "reconciled as needed",
            Self::Full => "full",
        }
    }

    /// Most that claims may differ from the truth, in percent of the tokens cached; a target of issue 5.
    pub(crate) fn most_percent(self) -> Option<f64> {
        match self {
            Self::None | Self::Responses => None,
            Self::Counts => Some(5.0),
            Self::Removals => Some(1.0),
            Self::Often | Self::Paced | Self::Full => Some(0.5),
        }
    }

    /// Responses correct claims.
    pub(crate) fn hears_responses(self) -> bool {
        self != Self::None
    }

    /// The level of the agents' sessions; none without agents.
    pub(crate) fn session(self) -> Option<ReportLevel> {
        match self {
            Self::None | Self::Responses => None,
            Self::Counts => Some(ReportLevel::Counts),
            Self::Removals | Self::Often | Self::Paced => Some(ReportLevel::Removals),
            Self::Full => Some(ReportLevel::Full),
        }
    }

    /// Time to the first comparison of an engine's claims; none if they are not compared.
    pub(crate) fn first_comparison(self) -> Option<Duration> {
        self.next_comparison(OFTEN, 0, 1)
    }

    /// Time to the next one, after one of `blocks` found `differing`, `elapsed` after the last.
    pub(crate) fn next_comparison(self, elapsed: Duration, differing: u64, blocks: u64) -> Option<Duration> {
        match self {
            Self::Often => Some(OFTEN),
            Self::Paced => Some(Pace::new(LONGEST).compared(elapsed, differing, blocks)),
            _ => None,
        }
    }

    /// Which blocks agents tell each of so many routers of.
    pub(crate) fn tells(self, routers: usize) -> Option<Tell> {
        match self {
            Self::None | Self::Responses | Self::Counts => None,
            // A router that is not alone says what it predicts, and is told of the rest.
            Self::Removals | Self::Often | Self::Paced if routers > 1 => Some(Tell::Unpredicted),
            Self::Removals | Self::Often | Self::Paced => Some(Tell::Removals),
            Self::Full => Some(Tell::All),
        }
    }
}
