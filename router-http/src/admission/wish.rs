//! What a request that waits wants, kept for the thread that decides for it.

use std::hash::{BuildHasher as _, BuildHasherDefault};

use router_core::key::PrefixKey;
use router_core::{InFlight, Pair, Role, RouteError, RouteRequest, Router, Time, WorkerId};
use rustc_hash::FxHasher;

/// See the module.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) key: Option<PrefixKey>,
    pub(crate) model: Option<String>,
    pub(crate) rank: Option<u32>,
    pub(crate) role: Option<Role>,
    pub(crate) only: Option<WorkerId>,
    pub(crate) unpinned: bool,
    pub(crate) tried: Vec<WorkerId>,
    /// It goes to a prefill and a decode worker where the fleet has both.
    pub(crate) paired: bool,
}

/// Where a request goes that has waited.
#[derive(Debug)]
pub(crate) enum Granted {
    One(InFlight),
    Pair(Pair),
}

impl Wish {
    /// Tokens of the prompt that are cached where there is room for it, the most of any target.
    pub(super) fn matched(
        &self,
        router: &Router,
        now: Time,
        rng: &mut fastrand::Rng,
    ) -> Result<u64, RouteError> {
        let request = self.request();
        if !self.paired || !router.has_pools() {
            return router.match_with_room(&request, now, rng);
        }
        let mut of = |role, rank| {
            router.match_with_room(&RouteRequest { role: Some(role), rank, ..request }, now, rng)
        };
        let both = of(Role::Decode, None).and_then(|_| of(Role::Prefill, self.rank));
        both.or_else(|error| of(Role::Unified, self.rank).map_err(|_| error))
    }

    /// Decides it.
    pub(crate) fn route(
        &self,
        router: &Router,
        now: Time,
        rng: &mut fastrand::Rng,
    ) -> Result<Granted, RouteError> {
        let request = self.request();
        if !self.paired || !router.has_pools() {
            return router.route(&request, now, rng).map(Granted::One);
        }
        match router.route_pair(&request, now, rng)? {
            Some(pair) => Ok(Granted::Pair(pair)),
            None => {
                let request = RouteRequest { role: Some(Role::Unified), ..request };
                router.route(&request, now, rng).map(Granted::One)
            }
        }
    }

    /// Equal for wishes that go to the same targets, so that what holds one up holds up the others.
    pub(super) fn class(&self) -> u64 {
        let targets = (&self.model, self.rank, self.role, self.only, &self.tried, self.paired);
        BuildHasherDefault::<FxHasher>::default().hash_one(targets)
    }

    /// Prompt tokens, or what stands for them.
    pub(super) fn cost(&self, router: &Router) -> u64 {
        self.key.as_ref().map_or(1, |key| router.snapshot().prompt_tokens(key))
    }

    fn request(&self) -> RouteRequest<'_> {
        RouteRequest {
            key: self.key.as_ref(),
            model: self.model.as_deref(),
            rank: self.rank,
            role: self.role,
            tried: &self.tried,
            only: self.only,
            unpinned: self.unpinned,
            unbounded: false,
        }
    }
}
