//! What costs what, and how to measure it.
//!
//! Figures stand in `docs/performance.md`, each with the command that makes it again, measured beside the naive index and
//! beside other routers' crates in one run. None stand here: they would be another machine's.
//!
//! ```console
//! cargo xtask bench index          # every row, beside the naive index
//! cargo xtask bench index-peers    # the same work on other routers' crates
//! cargo xtask bench index-scale    # 4,096 targets, 100 M blocks
//! ```
//!
//! Memory is the clock of all of it: an index beyond some megabytes is read at the speed of cache and address misses.
//!
//! # A decision
//!
//! | step | grows with | does not grow with |
//! |---|---|---|
//! | key of the prompt | its length | – |
//! | loading the snapshot | – | anything: one wait-free read |
//! | match | runs on the prompt's path, and their holders | blocks of the prompt or of the index |
//! | candidates and policy | targets, up to 128; beyond, 64 holders and 32 drawn | the fleet beyond that |
//! | counting | – | anything: a few relaxed additions on one target's own cache line |
//!
//! The key is the larger half for long prompts. It is derived at memory speed, and only once if you keep the
//! [`PrefixKey`](crate::key::PrefixKey) for retries; cloning one is a reference.
//!
//! A match is a handful of cache misses: two a run (its entry in the table of heads, its record), and a few more where a prompt
//! parts from a run in its middle. A prompt's path has as many runs as there are places where held prompts part or end, not
//! as many as it has blocks; smaller blocks therefore cost memory and hashing, hardly any time to match.
//!
//! A decision allocates nothing once its thread's buffers have grown (`tests/allocations.rs`). A policy that does not allow
//! sampling ([`may_sample`](crate::policy::Policy::may_sample)) sees every target: then a decision grows with the fleet.
//!
//! # The writer
//!
//! | what | grows with |
//! |---|---|
//! | storing a prompt that is known | runs on its path |
//! | storing new blocks | the blocks: their hashes are written down |
//! | the first change of a page after a publication | the page: 1 KiB is copied |
//! | removing | runs below what is removed; where agents name blocks, the blocks |
//! | publishing | one pointer for each thousand pages; the fleet, where more than figures changed, or every 2 µs a target |
//! | a target whose claims become void | nothing at once; its runs are released in later turns, a bounded number in each |
//! | [`Index::clear`](crate::index::Index::clear) | the whole index: a router does not call it |
//!
//! Blocks that agents name by their hash alone have to be found by it: from the first agent on, every block is an entry of
//! one more table, which costs a cache miss a block, and memory. Without agents that table does not exist.
//!
//! [`publish_interval`](crate::Settings::publish_interval) is the trade between how soon a change is seen and how many pages are
//! copied for it. When nothing more is queued the writer publishes at once.
//!
//! # Memory
//!
//! A block's hash takes 8 bytes. Beside it the index keeps for each *run* a record of one cache line, an entry in a table and
//! the writer's links: about 100 bytes, which long runs spread over many blocks. `tests/allocations.rs` counts both
//! together, and that churn leaves nothing behind. The writer's claims (access times, sources) come on top, for each run and
//! holder.
