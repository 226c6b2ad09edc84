//! How the pieces are put together.
//!
//! # One writer, driven by you
//!
//! [`Router::new`](crate::Router::new) returns two halves. The [`Router`](crate::Router) is cloned freely and decides on any
//! thread; the [`Writer`](crate::Writer) is moved to one place and driven there: a thread that calls
//! [`wait`](crate::Writer::wait) and [`turn`](crate::Writer::turn) in a loop, as its own documentation shows, or a task that
//! calls `turn` when it has been woken and, for what is due without an update (leases, figures of a large fleet), every few
//! milliseconds. In a test, a turn is a call and nothing happens between two of them.
//!
//! The writer ends when `wait` returns `false`: every router, sender and request in flight is gone. If it ends otherwise, by
//! a panic, say so with [`Router::orphan`](crate::Router::orphan): from then on decisions go by load alone.
//!
//! # Asking, and waiting for the answer
//!
//! Changes are messages. Those that can fail carry a [`Done`](crate::Done), which is called on the writer's thread once the
//! change can be seen in a snapshot. Give it a channel's sender:
//!
//! ```
//! # use router_core::{Done, FleetUpdate, Router, Settings, Time, Update};
//! let (router, mut writer) = Router::new(Settings::new(7));
//! let (answer, answered) = std::sync::mpsc::channel();
//! let done = Done::new(move |added| drop(answer.send(added)));
//! let add = FleetUpdate::Add { url: "http://10.0.0.1:30000".into(), done };
//! router.updates().try_send(Update::Fleet(add)).expect("the queue has room");
//! writer.turn(Time::from_micros(1));
//! let worker = answered.recv().unwrap().expect("the URL is new");
//! assert_eq!(router.snapshot().fleet.workers[0].id, worker);
//! ```
//!
//! The queue is bounded. [`try_send`](crate::UpdateSender::try_send) never waits: a full queue gives the update back, counted by
//! [`refused`](crate::UpdateSender::refused). What requests in flight report may be lost that way without harm, since less is
//! then claimed, not more; a change of the fleet has to be sent again.
//!
//! # A request, from its decision to its end
//!
//! 1. Derive the key as early as possible, once: [`Router::key_space`](crate::Router::key_space), then
//!    [`key_of_tokens`](crate::key::KeySpace::key_of_tokens) or [`key_of_text`](crate::key::KeySpace::key_of_text). A
//!    [`Salt`](crate::key::Salt) keeps apart what the engine keeps apart: LoRA adapters, cache salts, extra keys.
//! 2. [`Router::route`](crate::Router::route) returns an [`InFlight`](crate::InFlight), which is counted at its target from
//!    then on. Keep it for as long as the request lives; dropping it ends the request on every path.
//! 3. When the first byte of the answer arrives, call [`first_token`](crate::InFlight::first_token). Before that, dropping
//!    means failure, and takes the claims back.
//! 4. If the answer says how much of the prompt was cached, pass it on by [`usage`](crate::InFlight::usage): that is how the
//!    router learns of evictions without agents.
//! 5. [`complete`](crate::InFlight::complete) at the end.
//!
//! # Trying elsewhere
//!
//! A failed request is routed again with its worker in [`tried`](crate::RouteRequest::tried). Drop the first `InFlight` before
//! or after, but do drop it: it is still counted.
//!
//! # Reports of your own
//!
//! Whoever knows what an engine's cache holds can say so, with or without our agent: [`FleetUpdate::Join`](crate::FleetUpdate)
//! opens a session, [`AgentReport::Baseline`](crate::AgentReport) states everything that a rank holds, each
//! [`Delta`](crate::Delta) changes it in sequence. After a gap in the numbers the rank's claims are not followed until the
//! next baseline. Read the [`Notice`](crate::Notice)s that a turn returns: they say which rank must send one.
//!
//! # A policy of your own
//!
//! A [`Policy`](crate::policy::Policy) is a pure function of what a decision may know. Put it in force with
//! [`FleetUpdate::Policy`](crate::FleetUpdate::Policy); every decision on a later snapshot uses it.
//! `examples/custom_policy.rs` is a whole one.
//!
//! # A snapshot to look at
//!
//! [`Router::snapshot`](crate::Router::snapshot) is for administration and metrics: workers, loads, claimed tokens, the size of the
//! index, all of one moment. Take it, read it, drop it. It may be kept for long and costs memory then
//! ([`limitations`](super::limitations)); never keep one in a place where it is forgotten.
//!
//! # The index by itself
//!
//! [`index::Index`](crate::index::Index) and [`index::Tree`](crate::index::Tree) need no router:
//!
//! ```
//! # use router_core::Slot;
//! # use router_core::index::{Index, Matches};
//! # use router_core::key::{KeySpace, Salt, Unit};
//! let space = KeySpace::new(Unit::Token, 16, 7)?;
//! let key = space.key_of_tokens(Salt::default(), &(0..64).collect::<Vec<u32>>());
//! let mut index = Index::default();
//! index.insert(key.hashes(), Slot::new(3));
//! let tree = index.snapshot(); // Send + Sync; readers keep it for as long as they like
//! index.clear(Slot::new(3));
//! let mut matches = Matches::default(); // one for each thread, used again
//! tree.match_prefix(key.hashes(), &mut matches);
//! assert_eq!(matches.blocks(Slot::new(3)), 4);
//! # Ok::<(), router_core::key::KeySpaceError>(())
//! ```
