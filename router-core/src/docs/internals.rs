//! How it works, for those who change it.
//!
//! # One snapshot
//!
//! ```text
//!  any thread                                                      the writer's thread
//!  ──────────                                                      ───────────────────
//!  RouteRequest ─▶ SnapshotCell ─▶ Snapshot                         queue ─▶ apply ─▶ ClaimTable ─▶ Index
//!                  (one ArcSwap)   │ fleet    workers, targets        ▲      age      times, sources   │
//!                       ▲          │ policy                           │      sweep                     │
//!                       │          │ tree ────────────┐               │      bound_index               │
//!                       │                             │               │      publish ◀─────────────────┘
//!                       │                             │               │         │ fleet + policy + tree
//!                       └─────────────────────────────┼───────────────┼─────────┘
//!  match ◀────────────────────────────────────────────┘               │
//!    │ blocks for every slot                                          │
//!    ▼                                                                │
//!  candidates ─▶ Policy::choose ─▶ InFlight ── routed, prefilled, observed, undone (bounded, never waits)
//!                                     └─▶ LoadCounters: the one thing a decision reads outside the snapshot
//! ```
//!
//! A decision loads one snapshot and nothing else but the load counters. The writer applies what is queued, ages leases and
//! silence, releases some runs of retired slots, keeps the index within its bound, and publishes if that is due.
//!
//! What is published is in force for decisions that begin from then on. Whoever drains or removes a worker wants more: that nothing is counted at
//! it any more that was decided before. A decision lets go of its snapshot after it has counted its request, so the writer keeps
//! what it replaces, and answers when nobody holds a snapshot from before the change.
//!
//! # The index
//!
//! A *run* is a stretch of consecutive blocks that nothing tells apart: no held prompt parts or ends in it, and whoever holds
//! any of it holds all of it. A run is found by the hash of its first block, because a chained hash commits to all before
//! it. So a walk needs no pointers from node to node:
//!
//! ```text
//!  key of the prompt   h0 h1 h2 … h9 │ h10 … h31 │ h32 …
//!                      │              │           └─ no run begins with h32: the walk ends
//!                      │              └─ heads(run, h10) ─▶ record: last = h31, equal: 22 blocks more
//!                      └─ heads(–, h0) ─▶ record: last = h9, equal: 10 blocks
//!
//!  holders, from the end of the path back: whoever is met for the first time at a run holds that many blocks
//! ```
//!
//! Whoever reports hashes that he did not derive cannot lead others astray: heads are found by the hash *and the run above*, so
//! that a run that hangs elsewhere is not taken for the one that is looked for; and once there are agents, the writer compares all
//! hashes of a run before it claims it for somebody else.
//!
//! Where the last hash differs, the run's own hashes are bisected: equality is monotone along a chain.
//!
//! # Words, pages, log
//!
//! ```text
//!  slabs of 4 segments of 16,384 words; an address is a 32-bit number of a word; a word is a relaxed AtomicU64
//!
//!  segment 0, of pages              segment 1, of the log                 segment 2 …
//!  ┌────────┬────────┬─────┬──────┐ ┌───────────┬──────┬────────────┬────┐
//!  │ page   │ page   │ …   │ free │ │ extent    │ dead │ extent     │ ▷  │ filled end to end
//!  │ records│ heads  │     │      │ │ h h h h h │      │ h h h ─ ─  │    │ ─ room to grow
//!  └───▲────┴───▲────┴─────┴──────┘ └─────▲─────┴──────┴─────▲──────┴────┘
//!      │        │                         │                  │
//!  Records    Heads                 record.hashes        a bitmap of holders, if there are many
//!  (Numbers:  (Numbers: page by
//!  page by     bits of a keyed tag,
//!  run / 16)   extendible hashing)
//!
//!  a record, one line of 8 words:  head │ last │ length, hashes │ form │ up to 16 slots, or a bitmap of 256
//! ```
//!
//! * A *page* is 1 KiB. The writer copies it before it changes it for the first time after a publication, so that what has
//!   been published stays as it is.
//! * The *log* holds hashes, and bitmaps that no record has room for. Its words are not changed once they are published; a run
//!   that grows writes behind what any snapshot sees. When too much of it is dead, the live part of its deadest segment is
//!   moved.
//! * `Numbers` is a list in chunks of 1,024 that its clones share until they are changed.
//!
//! A [`Tree`](crate::index::Tree) is the list of slabs, both `Numbers`, and a guard.
//!
//! # When memory is used again
//!
//! ```text
//!  Epochs     live:  (7, guard) (8, guard) (9, guard)      now = 10, being prepared
//!
//!  page P     made at 8, given up at 10      seen by snapshots 8 and 9: waits for both
//!  page Q     made at 8, given up at 9       seen by 8 only
//!  page R     made at 10, given up at 10     seen by nobody: free at once
//! ```
//!
//! Every snapshot has one guard, an `Arc` that all its copies share. At each publication the writer asks every guard whether it
//! is the last holder (`Arc::get_mut`); if so nobody reads that snapshot any more, and what it alone kept is used again. What
//! is waited for is filed under the oldest living snapshot that sees it, so that a publication looks only at what may have
//! become free. A snapshot that is held for long keeps what it sees, and nothing that came and went since.
//!
//! All words are read and written without an order of their own. They are ordered by two things only: the store and load of
//! the snapshot pointer (what was written before is seen after), and the guard's counter (what was read before the last
//! holder let go was read before the writer writes again). Were this reasoning wrong, a reader would see a wrong number;
//! there is no pointer in a word. `tests/loom.rs` tries every order of both, `tests/publication.rs` many on real threads.
//!
//! # Claims
//!
//! The index knows who holds what; the writer's claim table knows since when, by whose word, and what was predicted by which
//! decision. It keeps one entry for each run and holder, and follows every cut and join that the index makes. Eviction is
//! oldest leaf first, as in the engine; a *horizon* drops all leaves that were last used before it. A target whose claims are
//! void gets a fresh slot, which no run names, so that readers see it empty at the next publication; the runs of the old one are
//! released in later turns, and its number is used again after that.
//!
//! # What is checked, and by what
//!
//! | property | by |
//! |---|---|
//! | the index does what `NaiveIndex` does | `tests/specification.rs`; the same harness under a fuzzer, `fuzz/` |
//! | reports that cannot be stop nothing | `tests/bad_reports.rs` |
//! | claims, digests, bounds and undoing | `src/writer/claims_tests.rs` |
//! | held snapshots do not change | `tests/publication.rs`, `src/index/tests.rs` |
//! | every decision is made on one published state | `tests/decisions.rs` |
//! | nothing is counted at a worker once its drain has begun | `tests/loom.rs`, `tests/drains.rs`, `src/writer/tests/older.rs` |
//! | publication and reclamation, every order | `tests/loom.rs` |
//! | no allocation in a decision; bytes a block; no leak | `tests/allocations.rs` |
