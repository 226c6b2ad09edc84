//! Who may be sent to a target at all, and who waits.
//!
//! [`Limits`] bound what is in flight; [`Router::route`](crate::Router::route) then answers
//! [`RouteError::AtBound`](crate::RouteError::AtBound) where only room is missing. Whoever wants to wait keeps a [`FairQueue`], has
//! itself told when room may have come ([`Router::on_room`](crate::Router::on_room)), and decides anew for whomever the queue names:
//! what was best when a request came is not what is best when a target frees up.

mod drain_rate;
mod fair_queue;
mod occupancy;

pub use drain_rate::DrainRate;
pub use fair_queue::{FairQueue, Offer, QueueSettings, Taken, Ticket};
pub use occupancy::Limits;
pub(crate) use occupancy::{Entered, Occupancy, count_below};
