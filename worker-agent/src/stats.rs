//! What an agent has done, as plain numbers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cache::lock;
use crate::config::Level;
use crate::engine::Life;
use crate::mirror::Doubt;
use crate::session::RouterCounters;

/// What an agent has done so far and sees now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentStats {
    /// The present life of the engine; 0 before it has been seen.
    pub incarnation: u64,
    /// Encoded length of all messages handed to the transport, over all routers.
    pub bytes_sent: u64,
    /// Messages sent.
    pub messages_sent: u64,
    /// Deltas sent.
    pub deltas_sent: u64,
    /// Baselines sent, whatever their number of parts.
    pub baselines_sent: u64,
    /// Jumps in the engine's sequence numbers, in the present life.
    pub gaps: u64,
    /// Jumps that the engine could not replay, in the present life.
    pub holes: u64,
    /// Pages in the mirrors of all ranks.
    pub mirror_pages: u64,
    /// Blocks held over all ranks, in the key space of the first router that has one.
    pub mirror_blocks: u64,
    /// A mirror may lack pages that the engine holds.
    pub incomplete: bool,
    /// By rank.
    pub ranks: Vec<RankStats>,
    /// By router, in the order of the configuration.
    pub routers: Vec<RouterStats>,
}

/// One rank's events and mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RankStats {
    /// Batches applied.
    pub batches: u64,
    /// Replays asked for.
    pub replays: u64,
    /// Batches that could not be decoded.
    pub undecodable_batches: u64,
    /// Pages in the mirror.
    pub pages: u64,
    /// Tokens that the engine has cached, on whichever tier.
    pub cached_tokens: u64,
    /// Tokens removed from the last tier that had them.
    pub evicted_tokens_total: u64,
    /// Pages that were left out because their parent was not known.
    pub unknown_parent_pages: u64,
    /// Why the mirror may lack pages.
    pub doubt: Option<Doubt>,
}

/// The way to one router.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouterStats {
    /// Its address.
    pub url: String,
    /// A session is open.
    pub connected: bool,
    /// What is really reported in it.
    pub level: Option<Level>,
    /// Sessions opened.
    pub sessions: u64,
    /// Encoded length of the messages sent.
    pub bytes_sent: u64,
    /// Messages sent.
    pub messages_sent: u64,
    /// Deltas sent.
    pub deltas_sent: u64,
    /// Baselines sent.
    pub baselines_sent: u64,
    /// Baselines that it has acknowledged.
    pub baselines_in_force: u64,
    /// Baselines it asked for.
    pub resyncs: u64,
    /// Ranks that went on after a reconnect without a baseline.
    pub resumed: u64,
    /// Times it was too far behind and got a baseline instead.
    pub overflows: u64,
    /// Comparisons with its claims whose difference was found and told.
    pub reconciliations: u64,
    /// Blocks held, in its key space.
    pub blocks: u64,
}

pub(crate) fn collect(life: Option<&Arc<Life>>, routers: &[(String, Arc<RouterCounters>)]) -> AgentStats {
    let mut stats = AgentStats::default();
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    for (url, counters) in routers {
        stats.routers.push(RouterStats {
            url: url.clone(),
            connected: counters.connected.load(Ordering::Relaxed),
            level: *lock(&counters.level),
            sessions: read(&counters.sessions),
            bytes_sent: read(&counters.bytes),
            messages_sent: read(&counters.messages),
            deltas_sent: read(&counters.deltas),
            baselines_sent: read(&counters.baselines),
            baselines_in_force: read(&counters.baselines_in_force),
            resyncs: read(&counters.resyncs),
            resumed: read(&counters.resumed),
            overflows: read(&counters.overflows),
            reconciliations: read(&counters.reconciliations),
            blocks: 0,
        });
    }
    if let Some(life) = life {
        stats.incarnation = life.incarnation;
        for rank in life.ranks.iter() {
            let mut cache = lock(&rank.cache);
            for (index, router) in stats.routers.iter_mut().enumerate() {
                router.blocks += cache.views(index).iter().map(|view| view.len() as u64).sum::<u64>();
            }
            let seen = cache.mirror().stats();
            stats.gaps += read(&rank.counters.gaps);
            stats.holes += read(&rank.counters.holes);
            stats.ranks.push(RankStats {
                batches: read(&rank.counters.batches),
                replays: read(&rank.counters.replays),
                undecodable_batches: read(&rank.counters.undecodable),
                pages: cache.mirror().len() as u64,
                cached_tokens: seen.cached_tokens,
                evicted_tokens_total: seen.evicted_tokens_total,
                unknown_parent_pages: seen.unknown_parent_pages,
                doubt: cache.mirror().doubt(),
            });
        }
    }
    stats.bytes_sent = stats.routers.iter().map(|router| router.bytes_sent).sum();
    stats.messages_sent = stats.routers.iter().map(|router| router.messages_sent).sum();
    stats.deltas_sent = stats.routers.iter().map(|router| router.deltas_sent).sum();
    stats.baselines_sent = stats.routers.iter().map(|router| router.baselines_sent).sum();
    stats.mirror_blocks =
        stats.routers.iter().map(|router| router.blocks).find(|blocks| *blocks > 0).unwrap_or(0);
    stats.mirror_pages = stats.ranks.iter().map(|rank| rank.pages).sum();
    stats.incomplete = stats.ranks.iter().any(|rank| rank.doubt.is_some());
    stats
}
