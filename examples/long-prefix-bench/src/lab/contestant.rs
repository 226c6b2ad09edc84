//! Who is compared: policies of `router-core`, simple rules beside them, and references that no router can be.

use router_core::policy::{CacheAwareSettings, PolicyConfig, ThresholdSettings};

/// What an entry of the tables is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Could be deployed.
    Router,
    /// Knows or has what no router does; what there is to be won.
    Reference,
}

/// Who decides.
#[derive(Clone, Debug)]
pub(super) enum Rule {
    /// A policy of `router-core`, as it is.
    Policy(PolicyConfig),
    /// Rendezvous hashing of the prompt's first blocks.
    PrefixHash,
    /// Consistent hashing of the session, or the first blocks, with bounded loads.
    Ring,
    /// A session stays where its first request went, by least load.
    Sticky,
    /// `cache_aware` on what is true at the moment of the decision.
    Exact,
}

/// The engines' caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caches {
    /// Each engine has its own.
    Own,
    /// One for all, as large as theirs together.
    Pooled,
    /// One for all without bound.
    Infinite,
}

/// One entry of the tables.
#[derive(Clone, Debug)]
pub struct Contestant {
    /// As tables name it.
    pub name: &'static str,
    /// What it is, in words.
    pub what: &'static str,
    /// See [`Kind`].
    pub kind: Kind,
    pub(super) rule: Rule,
    /// Agents report what engines store and evict.
    pub(super) agents: bool,
    pub(super) caches: Caches,
}

impl Contestant {
    fn router(name: &'static str, what: &'static str, rule: Rule, agents: bool) -> Self {
        Self { name, what, kind: Kind::Router, rule, agents, caches: Caches::Own }
    }

    fn reference(name: &'static str, what: &'static str, agents: bool, caches: Caches) -> Self {
        Self { name, what, kind: Kind::Reference, rule: Rule::Exact, agents, caches }
    }

    /// The settings that decide, for the record.
    pub fn settings(&self) -> String {
        let agents = if self.agents {
            "agents report removals and stores every 50 ms, load every second"
        } else {
            "no agents"
        };
        match &self.rule {
            Rule::Policy(config) => format!("{config:?}; {agents}"),
            Rule::Ring => "64 places a worker, loads at most 1.25 times the mean".to_owned(),
            Rule::PrefixHash | Rule::Sticky => "no settings".to_owned(),
            Rule::Exact => format!("{:?} on the truth", CacheAwareSettings::default()),
        }
    }
}

/// Everybody, in the order of the tables. The references keep `cache_aware`'s defaults, whatever its settings are.
pub fn contestants(settings: CacheAwareSettings) -> Vec<Contestant> {
    let cache_aware = || Rule::Policy(PolicyConfig::CacheAware(settings));
    let threshold = Rule::Policy(PolicyConfig::Threshold(ThresholdSettings::default()));
    let policy = |name, what, config| Contestant::router(name, what, Rule::Policy(config), false);
    vec![
        Contestant::router("cache_aware", "router-core's default, with agents", cache_aware(), true),
        Contestant::router(
            "cache_aware, no agents",
            "the same, corrected by responses alone",
            cache_aware(),
            false,
        ),
        Contestant::router("threshold", "SGLang's classic rule with its defaults of 2025", threshold, false),
        Contestant::router("prefix_hash", "rendezvous hash of the first blocks", Rule::PrefixHash, false),
        Contestant::router(
            "consistent_hash",
            "a ring of hashes of the session, else of the first blocks, with bounded loads",
            Rule::Ring,
            false,
        ),
        Contestant::router("session_sticky", "a session stays with its first worker", Rule::Sticky, false),
        policy("least_load", "fewest requests in flight", PolicyConfig::LeastLoad),
        policy("power_of_two", "the less loaded of two drawn", PolicyConfig::PowerOfTwo),
        policy("round_robin", "in turn", PolicyConfig::RoundRobin),
        policy("random", "by chance", PolicyConfig::Random),
        Contestant::reference(
            "exact knowledge",
            "cache_aware's rule on the engines' true caches and queues",
            true,
            Caches::Own,
        ),
        Contestant::reference("pooled cache", "one LRU cache of the fleet's size", false, Caches::Pooled),
        Contestant::reference("infinite cache", "one cache without bound", false, Caches::Infinite),
    ]
}
