//! Neighbours of an agent, in this process: an engine and a coordinator that do as they are told.

#![allow(dead_code, reason = "each test file uses a part")]

mod coordinator;
mod engine;

use std::time::Duration;

pub(crate) use coordinator::{Book, Coordinator, Wishes};
pub(crate) use engine::{Engine, Setup};
use worker_agent::{Agent, AgentConfig, AgentHandle};

/// Longest wait for anything; only a failing test waits that long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A configuration whose every interval is short.
pub(crate) fn config(engine_url: String, coordinators: &[&Coordinator]) -> AgentConfig {
    AgentConfig {
        worker_url: engine_url,
        routers: coordinators.iter().map(|coordinator| coordinator.url()).collect(),
        state_interval: Duration::from_millis(50),
        info_interval: Duration::from_millis(500),
        verify_interval: Duration::from_millis(300),
        load_interval: Duration::from_millis(50),
        counts_interval: Duration::from_millis(200),
        max_reconnect_delay: Duration::from_millis(200),
        ..AgentConfig::default()
    }
}

pub(crate) fn agent(engine: &Engine, coordinators: &[&Coordinator]) -> AgentHandle {
    Agent::start(config(engine.url(), coordinators)).unwrap()
}

/// Tokens of a prompt; prompts with different `first` share nothing.
pub(crate) fn prompt(first: u32, tokens: u32) -> Vec<u32> {
    (0..tokens).map(|at| first * 1_000_000 + at).collect()
}
