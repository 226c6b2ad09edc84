//! What it does not do, and what it only estimates.
//!
//! # Claims are beliefs
//!
//! * Without an agent, claims are predictions corrected by responses. Between an eviction and the first response that shows it, the
//!   router expects a hit that will not come. A misprediction costs time, never a wrong answer.
//! * What follows from one short answer assumes that the engine evicts the least recently used leaf first. Engines differ, and
//!   SGLang has other rules; where a worker's profile says so ([`evicts_lru`](crate::WorkerProfile::evicts_lru)), nothing is
//!   inferred and claims go by their bounds alone.
//! * A claim does not say on which tier of an engine the block is ([`LowerTier`](crate::LowerTier)); one on its host is priced as one on its
//!   device, although it has to be loaded.
//! * A claim is on the KV of full attention. Engines whose models have sliding windows or recurrent state need more to use a prefix
//!   ([`CacheKind`](crate::CacheKind)), and nobody tells the router where they have it: there claims promise more than is used, agent or
//!   not, and nothing is inferred. How much less is found is in [`Target::retention`](crate::Target::retention), which policies weigh.
//! * Blocks of *text* can be named only by agents that have the model's tokenizer, those of chats only if these are rendered, and
//!   those of prompts under an extra key by none: other claims live from predictions and responses even beside an exact
//!   agent. The same text under other tokens than its tokenizer's is claimed and not matched; the number of tokens in a text is an estimate that is learned from responses.
//! * Only whole blocks are known: up to one block at the end of every match is not seen, and the last token of a prompt is
//!   never expected to be cached.
//!
//! # Hashes
//!
//! A block is known by 64 bits. Two different prefixes have the same hash with a probability of about 2⁻⁶⁴ for each pair: with
//! a hundred million blocks some 3 in 10,000 that there is any such pair. The router then expects a hit where there is none. Nobody
//! can aim at it without the seed. Whoever has the seed can test whether a prompt was seen: keep it as you keep prompts, and
//! take it from the operating system's randomness.
//!
//! Agents are believed, each of its own target. What one invents makes a mess of what that target is believed to hold, and costs
//! memory; what others hold is found all the same.
//!
//! # Bounds
//!
//! * 4,096 targets ([`MAX_TARGETS`](crate::MAX_TARGETS)), workers times dp ranks, in one router. Beyond:
//!   [`FleetError::Full`](crate::FleetError::Full).
//! * Memory that the index has grown to is used again, and not given back.
//! * Words and runs have 32-bit numbers: at most 2³² words, 32 GiB, of hashes, records and tables in one index, hence
//!   [`MAX_BLOCKS`](crate::MAX_BLOCKS).
//! * One writer thread applies everything. It is the first thing that more traffic, or more events, will fill; what finds its
//!   queue full is refused and counted, and less is claimed.
//! * Publishing copies the list of targets when one of them changes state. Mere figures (claimed tokens, pressure, speed) of
//!   more than some hundred targets are therefore up to 2 µs a target old in a snapshot; live load counters never are.
//! * A fleet of more than 128 targets is sampled, unless the policy forbids it: the decision is then the best of those that
//!   hold most and some drawn by chance, not of all. [`Router::explain`](crate::Router::explain) always looks at all.
//!
//! # Snapshots that are held
//!
//! A held snapshot keeps the memory that it sees. If everything has been replaced since, that is one more copy of the index for
//! each snapshot that is held; what came and went in between is not kept. There is no bound on how many you hold.
//!
//! [`FleetUpdate::Drain`](crate::FleetUpdate::Drain) and `Remove` are answered when nobody holds a snapshot from before them. One that is held
//! delays the answer by a second at most, and not at all once 64 later ones are held, too. A decision that took longer than that, its thread
//! having had no core meanwhile, could then still be counted after the answer.
//!
//! # What it leaves to others
//!
//! * Router replicas share nothing. Each learns from its own traffic, and from the agents, which talk to all of them.
//! * Nothing is kept across a restart: it starts empty and learns.
//! * No I/O, no clock, no logging, no threads. Whoever embeds it drives the writer, passes the time and tells people.
//! * It does not retry, forward, limit or check health; it takes the results.
