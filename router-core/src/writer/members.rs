//! Fleet updates: workers come, go, change and drain.

use std::sync::Arc;

use super::State;
use crate::fleet::{WorkerId, WorkerState};
use crate::load::LoadCounters;
use crate::notice::{EventKind, Notice, SessionEnd};
use crate::time::Time;
use crate::update::{FleetError, FleetUpdate};

impl State {
    pub(super) fn apply_fleet(&mut self, update: FleetUpdate, now: Time) {
        match update {
            FleetUpdate::Add { url, done } => {
                let added = self.roster.add(url);
                if let Ok(worker) = added {
                    self.happened(worker, None, now, EventKind::WorkerAdded, Arc::from("registered"));
                }
                self.when_published(move || done.call(added));
            }
            FleetUpdate::Remove { worker, done } => {
                let removed = self.remove(worker, now);
                match removed {
                    Ok(loads) => self.when_none_is_older(move || {
                        done.call(Ok(loads.iter().map(|load| load.in_flight()).sum()));
                    }),
                    Err(error) => self.when_published(move || done.call(Err(error))),
                }
            }
            FleetUpdate::Profile { worker, profile, done } => {
                let changed = self.roster.set_profile(worker, *profile);
                let result = changed.as_ref().map(drop).map_err(FleetError::clone);
                self.when_published(move || done.call(result));
            }
            FleetUpdate::Declare { worker, declaration, done } => {
                let member = self.roster.get_mut(worker).ok_or(FleetError::UnknownWorker(worker));
                let result = member.map(|member| member.declared = declaration);
                self.when_published(move || done.call(result));
            }
            FleetUpdate::Health { worker, reachable, reason } => {
                self.change_state(worker, now, |member| {
                    if reachable && !member.reachable {
                        member.ranks.iter().for_each(|rank| rank.load.health().came_back(now));
                    }
                    member.reachable = reachable;
                    member.reason = reason;
                });
            }
            FleetUpdate::Counted { target, counts, at } => self.apply_asked_counts(target, counts, at),
            FleetUpdate::Drain { worker, on, done } => {
                let result = self.drain(worker, on, now);
                match on && result.is_ok() {
                    true => self.when_none_is_older(move || done.call(result)),
                    false => self.when_published(move || done.call(result)),
                }
            }
            FleetUpdate::Void { worker, reason } => {
                // An agent that reports exactly has said so itself, and earlier.
                if self.roster.get(worker).is_some_and(|member| !member.reports_exactly()) {
                    self.void_worker(worker, now, &reason);
                }
            }
            FleetUpdate::Flushed { worker, reason, done } => {
                self.flush_worker(worker, now, &reason);
                self.when_published(move || done.call(()));
            }
            FleetUpdate::Pause { worker, on, reason, done } => {
                self.change_state(worker, now, |member| {
                    // What is said again is no news, and hides no other reason.
                    if std::mem::replace(&mut member.paused, on) != on {
                        member.reason = reason;
                    }
                });
                self.when_published(move || done.call(()));
            }
            FleetUpdate::Consider { agent, done } => done.call(self.consider(&agent)),
            FleetUpdate::Join { agent, session, level, at, done } => {
                let joined = self.join(&agent, session, level, at);
                self.when_published(move || done.call(joined));
            }
            FleetUpdate::Policy(policy) => {
                self.policy = policy;
                self.dirty = true;
            }
        }
    }

    /// Returns what counts the requests in flight to it.
    fn remove(&mut self, worker: WorkerId, now: Time) -> Result<Vec<Arc<LoadCounters>>, FleetError> {
        let member = self.roster.remove(worker)?;
        let loads = member.ranks.into_iter().map(|rank| rank.load).collect();
        let (url, detail) = (member.url, Arc::from("removed"));
        self.notices.push(Notice::Happened {
            at: now,
            kind: EventKind::WorkerRemoved,
            url,
            rank: None,
            detail,
        });
        if let Some(session) = member.session.filter(|session| session.open) {
            let why = SessionEnd::WorkerRemoved;
            self.notices.push(Notice::SessionEnded { session: session.id, why });
        }
        Ok(loads)
    }

    fn drain(&mut self, worker: WorkerId, on: bool, now: Time) -> Result<(), FleetError> {
        let member = self.roster.get_mut(worker).ok_or(FleetError::UnknownWorker(worker))?;
        let was = std::mem::replace(&mut member.draining, on);
        if on && !was {
            self.happened(worker, None, now, EventKind::DrainStarted, Arc::from("no new requests"));
        } else if was && !on {
            self.happened(worker, None, now, EventKind::WorkerState, Arc::from("undrained"));
        }
        Ok(())
    }

    /// Changes a worker and says so if its state is another one then.
    pub(super) fn change_state(
        &mut self,
        worker: WorkerId,
        now: Time,
        change: impl FnOnce(&mut super::member::Member),
    ) {
        let Some(member) = self.roster.get_mut(worker) else { return };
        let before = (member.state(), member.reason.clone());
        change(member);
        let (state, reason) = (member.state(), member.reason.clone());
        if (state, &reason) != (before.0, &before.1) {
            self.dirty = true;
        }
        if state != before.0 {
            let detail = match state {
                WorkerState::Ready => "ready".into(),
                _ => format!("{state}: {reason}").into(),
            };
            self.happened(worker, None, now, EventKind::WorkerState, detail);
        }
    }
}
