//! How much routers are told.

use std::time::Duration;

use router_core::ReportLevel;
use worker_agent::translate::Tell;

const OFTEN: Duration = Duration::from_secs(5);

/// The coordinator's default.
const SELDOM: Duration = Duration::from_secs(60);

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
    /// The same, and now and then claims and caches are compared.
    Reconciled { every: Duration },
    /// As removals, and which blocks were stored.
    Full,
}

impl Level {
    /// All of them, from the least to the most that is told.
    pub(crate) const ALL: [Self; 7] = [
        Self::None,
        Self::Responses,
        Self::Counts,
        Self::Removals,
        Self::Reconciled { every: OFTEN },
        Self::Reconciled { every: SELDOM },
        Self::Full,
    ];

    /// As rows name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Responses => "responses only",
            Self::Counts => "counts",
            Self::Removals => "removals",
            Self::Reconciled { every: OFTEN } => "reconciled every 5 s",
            Self::Reconciled { .. } => "reconciled every 60 s",
            Self::Full => "full",
        }
    }

    /// Most that claims may differ from the truth, in percent of the tokens cached; a target of issue 5.
    pub(crate) fn most_percent(self) -> Option<f64> {
        match self {
            Self::None | Self::Responses => None,
            Self::Counts => Some(5.0),
            Self::Removals => Some(1.0),
            Self::Reconciled { .. } | Self::Full => Some(0.5),
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
            Self::Removals | Self::Reconciled { .. } => Some(ReportLevel::Removals),
            Self::Full => Some(ReportLevel::Full),
        }
    }

    /// Time between two comparisons of each engine's claims.
    pub(crate) fn reconciles_every(self) -> Option<Duration> {
        match self {
            Self::Reconciled { every } => Some(every),
            _ => None,
        }
    }

    /// Which blocks agents tell of.
    pub(crate) fn tells(self) -> Option<Tell> {
        match self {
            Self::None | Self::Responses | Self::Counts => None,
            Self::Removals | Self::Reconciled { .. } => Some(Tell::Removals),
            Self::Full => Some(Tell::All),
        }
    }
}
