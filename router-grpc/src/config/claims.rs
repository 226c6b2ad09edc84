//! Which of the router's own sources its claims come from. What agents tell has its own flags.

use clap::Args;

/// See the module. `docs/routing.md` explains the channels.
#[derive(Clone, Debug, Args)]
pub struct ClaimArgs {
    /// Nothing is claimed because it was routed: only what agents report
    #[arg(long, env = "ESPALIER_DISABLE_PREDICTION")]
    pub disable_prediction: bool,
    /// Nothing follows from what answers say was cached, and what they generated is not claimed
    #[arg(long, env = "ESPALIER_DISABLE_RESPONSE_CORRECTION")]
    pub disable_response_correction: bool,
}
