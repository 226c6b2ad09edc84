//! Comparisons of what a router claims with what is held: its symbols are decoded, and the difference told in sequence.
//!
//! The hashes held are copied under the cache's lock and compared without it. What changes meanwhile is told as always, and what was found
//! is told only as far as it still holds.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use router_core::key::{BlockHash, Unit};
use router_core::reconcile::{Decoder, Difference, Progress, SYMBOL_BYTES, SketchError, Symbol};

use super::convert::{self, SymbolBatch};
use super::stream::SessionError;
use super::writer::Writer;
use crate::cache::lock;
use crate::translate::{BlockView, ViewDelta, runs};

/// Bytes of a block in a baseline.
const BASELINE_BYTES: u64 = 8;

/// The comparisons of one session.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    open: HashMap<(u32, Unit), (u64, Decoder)>,
    /// Ranks that have begun with a delta to be compared, or have sent a baseline instead.
    begun: Vec<u32>,
}

impl Rounds {
    /// Whether a rank may begin with a delta rather than with a baseline: once, at the beginning of a session.
    pub(super) fn may_begin(&mut self, rank: u32, reconcile: &[u32]) -> bool {
        if self.begun.contains(&rank) {
            return false;
        }
        self.begun.push(rank);
        reconcile.contains(&rank)
    }
}

impl Writer<'_> {
    /// Looks at the symbols that have come.
    pub(super) async fn compare(&mut self) -> Result<(), SessionError> {
        let batches = std::mem::take(&mut lock(&self.desk).symbols);
        for batch in batches {
            let (rank, unit, round) = (batch.rank, batch.unit, batch.round);
            let Some(decoder) = self.decoder(&batch) else { continue };
            // Comparing a million blocks takes some ten milliseconds.
            let decoded = tokio::task::spawn_blocking(move || decode(decoder, &batch.bytes)).await;
            let Ok((decoder, progress)) = decoded else { continue };
            match progress {
                Ok(Progress::Complete(difference)) => self.settle((rank, unit), round, difference).await?,
                Ok(Progress::More { symbols }) => {
                    // As far as is known by now.
                    let cost = u64::from(symbols) * SYMBOL_BYTES as u64;
                    if cost > BASELINE_BYTES * decoder.own_len().max(1) {
                        self.give_up(rank, "a baseline is shorter");
                        continue;
                    }
                    self.rounds.open.insert((rank, unit), (round, decoder));
                    self.send(convert::more_symbols((rank, unit), round, symbols)).await?;
                }
                Err(error) => self.give_up(rank, &error.to_string()),
            }
        }
        Ok(())
    }

    /// The decoder that a batch is for; a new one for the first of a round.
    fn decoder(&mut self, batch: &SymbolBatch) -> Option<Decoder> {
        let known = self.rounds.open.remove(&(batch.rank, batch.unit));
        if batch.first > 0 {
            let known =
                known.filter(|(round, decoder)| (*round, decoder.taken()) == (batch.round, batch.first));
            return known.map(|(_, decoder)| decoder);
        }
        let state = self.life.ranks.get(batch.rank as usize)?;
        let mut cache = lock(&state.cache);
        let view = view_of(cache.views(self.index), batch.unit)?;
        let held: Vec<BlockHash> = view.hashes().filter_map(BlockHash::new).collect();
        drop(cache);
        Some(Decoder::new(batch.round, batch.blocks, held))
    }

    /// Tells what differs, after all that has changed by now.
    async fn settle(
        &mut self,
        (rank, unit): (u32, Unit),
        round: u64,
        difference: Difference,
    ) -> Result<(), SessionError> {
        self.flush(rank as usize).await?;
        let Some(message) = self.correction((rank, unit), round, &difference) else { return Ok(()) };
        self.counters.reconciliations.fetch_add(1, Ordering::Relaxed);
        self.counters.deltas.fetch_add(1, Ordering::Relaxed);
        self.send(message).await
    }

    fn correction(
        &self,
        (rank, unit): (u32, Unit),
        round: u64,
        difference: &Difference,
    ) -> Option<convert::Outgoing> {
        let state = self.life.ranks.get(rank as usize)?;
        let mut desk = lock(&self.desk);
        let outbox = desk.outboxes.get_mut(rank as usize)?;
        // A baseline says all of it.
        if outbox.owes_baseline() {
            return None;
        }
        let mut cache = lock(&state.cache);
        let incomplete = cache.mirror().doubt().is_some();
        let view = view_of(cache.views(self.index), unit)?;
        let parent = |hash: &BlockHash| view.parent_of_held(hash.get());
        let removed = difference.theirs.iter().filter(|hash| parent(hash).is_none()).map(|hash| hash.get());
        let removed = removed.collect();
        let held = difference.ours.iter().filter_map(|hash| Some((parent(hash)?, hash.get())));
        let held: Vec<_> = held.collect();
        view.count_these_as_told(held.iter().map(|(_, hash)| *hash));
        let change = ViewDelta { cleared: false, removed, stored: runs(held) };
        let seq = outbox.last_seq() + 1;
        let Some(message) = convert::reconciled((rank, unit), seq, change, incomplete, round) else {
            outbox.owe_baseline();
            return None;
        };
        let seq = outbox.next_seq();
        // What is not kept is owed as a baseline.
        outbox.keep(seq, message.len(), message.clone());
        Some(message)
    }

    fn give_up(&self, rank: u32, reason: &str) {
        tracing::info!(rank, reason, "a comparison with a router's claims is given up; it gets a baseline");
        if let Some(outbox) = lock(&self.desk).outboxes.get_mut(rank as usize) {
            outbox.owe_baseline();
        }
    }
}

pub(super) fn view_of(views: &mut [BlockView], unit: Unit) -> Option<&mut BlockView> {
    views.iter_mut().find(|view| view.space().unit() == unit)
}

fn decode(mut decoder: Decoder, bytes: &[u8]) -> (Decoder, Result<Progress, SketchError>) {
    let progress = Symbol::read(bytes).and_then(|symbols| decoder.take(&symbols));
    (decoder, progress)
}
