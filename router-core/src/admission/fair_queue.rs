//! A bounded queue of requests that wait for room: fair between tenants, by priority within one, and the longest cached prefix first
//! among equals.
//!
//! Tenants share by start-time fair queueing (Goyal, Vin, Cheng: *Start-time Fair Queuing*, SIGCOMM 1996): each has a tag, the
//! virtual time at which its next request starts; the smallest tag is served, and grows by the request's cost over the tenant's
//! weight. A tenant that was idle begins at the present virtual time, so that nobody saves up.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use crate::time::Time;

/// Bounds of a queue.
#[derive(Clone, Debug)]
pub struct QueueSettings {
    /// Requests that wait at most.
    pub capacity: usize,
    /// Requests among which the longest match is looked for, from the one that has waited longest on.
    pub window: usize,
    /// Times that a request is passed over for one with a longer match, at most,
    pub most_passed: u32,
    /// and time after which it is passed over no more.
    pub most_patience: Duration,
    /// Share of tenants relative to others; 1 for those that are not named.
    pub weights: HashMap<Box<str>, f64>,
}

/// A place in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

/// What becomes of a request that wants to wait.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Offer<T> {
    /// It waits.
    Queued(Ticket),
    /// It waits, in place of another one.
    Displaced {
        /// Its place.
        ticket: Ticket,
        /// The one that has to go.
        other: T,
    },
    /// There is no room for it.
    Refused(T),
}

/// See the module.
#[derive(Debug)]
pub struct FairQueue<T> {
    settings: QueueSettings,
    tenants: HashMap<Box<str>, Tenant<T>>,
    places: HashMap<Ticket, Place>,
    /// Start tag of what was served last.
    virtual_time: f64,
    next: u64,
}

#[derive(Debug)]
struct Tenant<T> {
    weight: f64,
    /// Start tag of its next request.
    tag: f64,
    waiting: usize,
    /// Of each priority, in the order of arrival; none is empty.
    classes: BTreeMap<Reverse<i32>, VecDeque<Entry<T>>>,
}

#[derive(Debug)]
struct Entry<T> {
    ticket: Ticket,
    since: Time,
    cost: f64,
    passed: u32,
    item: T,
}

#[derive(Debug)]
struct Place {
    tenant: Box<str>,
    priority: i32,
}

/// A request whose turn it is. It can be [put back](FairQueue::put_back).
#[derive(Debug)]
pub struct Taken<T> {
    entry: Entry<T>,
    place: Place,
}

impl Default for QueueSettings {
    /// 1,024 requests, the longest match among 16, passed over 16 times or for 5 s at most, and equal shares.
    fn default() -> Self {
        Self {
            capacity: 1024,
            window: 16,
            most_passed: 16,
            most_patience: Duration::from_secs(5),
            weights: HashMap::new(),
        }
    }
}

impl<T> FairQueue<T> {
    /// An empty queue.
    pub fn new(settings: QueueSettings) -> Self {
        Self { settings, tenants: HashMap::new(), places: HashMap::new(), virtual_time: 0.0, next: 0 }
    }

    /// Requests that wait.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Nobody waits.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Lets a request wait. A full queue makes room for a tenant that has less than its share of it, and for a higher priority of the
    /// same tenant; the youngest of the lowest priority goes. `cost`: work that it stands for, in whatever unit all have.
    pub fn offer(&mut self, tenant: &str, priority: i32, cost: u64, now: Time, item: T) -> Offer<T> {
        let other = if self.len() < self.settings.capacity {
            None
        } else {
            match self.displace(tenant, priority) {
                Some(other) => Some(other),
                None => return Offer::Refused(item),
            }
        };
        let ticket = Ticket(self.next);
        self.next += 1;
        let cost = cost.max(1) as f64;
        let entry = Entry { ticket, since: now, cost, passed: 0, item };
        self.insert(tenant, priority, entry, VecDeque::push_back);
        match other {
            None => Offer::Queued(ticket),
            Some(other) => Offer::Displaced { ticket, other },
        }
    }

    /// Takes the request whose turn it is, of those that can go now. `matched`: tokens that a target with room has cached of
    /// its prompt, or `None` if there is none for it.
    pub fn take(&mut self, now: Time, mut matched: impl FnMut(&T) -> Option<u64>) -> Option<Taken<T>> {
        let mut order: Vec<(f64, Box<str>)> = self
            .tenants
            .iter()
            .filter(|(_, tenant)| tenant.waiting > 0)
            .map(|(name, tenant)| (tenant.tag, name.clone()))
            .collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
        for (_, name) in order {
            let Some(tenant) = self.tenants.get_mut(&name) else { continue };
            let classes = tenant.classes.iter().map(|(priority, class)| (*priority, class));
            let found = classes
                .filter_map(|(priority, class)| {
                    self.settings.choose(class, now, &mut matched).map(|at| (priority, at))
                })
                .next();
            let Some((priority, at)) = found else { continue };
            self.virtual_time = self.virtual_time.max(tenant.tag);
            let class = tenant.classes.get_mut(&priority)?;
            class.iter_mut().take(at).for_each(|entry| entry.passed = entry.passed.saturating_add(1));
            let ticket = class[at].ticket;
            tenant.tag += class[at].cost / tenant.weight;
            return self.remove_entry(ticket).map(|(entry, place)| Taken { entry, place });
        }
        None
    }

    /// Lets a request wait on that was taken and could not go after all, as the first of its kind.
    pub fn put_back(&mut self, taken: Taken<T>) {
        let Taken { entry, place } = taken;
        let cost = entry.cost;
        let tenant = self.insert(&place.tenant, place.priority, entry, VecDeque::push_front);
        tenant.tag -= cost / tenant.weight;
    }

    /// Gives up a place. `None` if it has been taken, or displaced.
    pub fn remove(&mut self, ticket: Ticket) -> Option<T> {
        self.remove_entry(ticket).map(|(entry, _)| entry.item)
    }

    fn insert(
        &mut self,
        tenant: &str,
        priority: i32,
        entry: Entry<T>,
        push: impl FnOnce(&mut VecDeque<Entry<T>>, Entry<T>),
    ) -> &mut Tenant<T> {
        self.forget_idle();
        let virtual_time = self.virtual_time;
        let weight = self.settings.weight(tenant);
        let known = self.tenants.entry(tenant.into()).or_insert_with(|| Tenant {
            weight,
            tag: virtual_time,
            waiting: 0,
            classes: BTreeMap::new(),
        });
        if known.waiting == 0 {
            known.tag = known.tag.max(virtual_time);
        }
        known.waiting += 1;
        self.places.insert(entry.ticket, Place { tenant: tenant.into(), priority });
        push(known.classes.entry(Reverse(priority)).or_default(), entry);
        known
    }

    fn remove_entry(&mut self, ticket: Ticket) -> Option<(Entry<T>, Place)> {
        let place = self.places.remove(&ticket)?;
        let tenant = self.tenants.get_mut(&place.tenant)?;
        let class = tenant.classes.get_mut(&Reverse(place.priority))?;
        let at = class.iter().position(|entry| entry.ticket == ticket)?;
        let entry = class.remove(at)?;
        if class.is_empty() {
            tenant.classes.remove(&Reverse(place.priority));
        }
        tenant.waiting -= 1;
        Some((entry, place))
    }

    /// Takes out whom a newcomer may displace.
    fn displace(&mut self, tenant: &str, priority: i32) -> Option<T> {
        let weight = self.settings.weight(tenant);
        let own = self.tenants.get(tenant).map_or(0, |tenant| tenant.waiting);
        // With the newcomer, relative to its weight.
        let wanted = (own + 1) as f64 / weight;
        let share = |tenant: &Tenant<T>| tenant.waiting as f64 / tenant.weight;
        let (largest, its) = self
            .tenants
            .iter()
            .max_by(|a, b| share(a.1).total_cmp(&share(b.1)).then_with(|| a.0.cmp(b.0)))?;
        let victim = if &**largest != tenant && share(its) > wanted {
            its.last_of_lowest()
        } else {
            let own = self.tenants.get(tenant)?;
            own.last_of_lowest().filter(|(lowest, _)| *lowest < priority)
        };
        self.remove(victim?.1)
    }

    /// A tenant whose tag the others have passed is as good as new.
    fn forget_idle(&mut self) {
        if self.tenants.len() > 2 * self.settings.capacity.max(1) {
            let now = self.virtual_time;
            self.tenants.retain(|_, tenant| tenant.waiting > 0 || tenant.tag > now);
            // The rest have had more than their share just now, and are let off: names can be made up without end.
            if self.tenants.len() > 2 * self.settings.capacity.max(1) {
                self.tenants.retain(|_, tenant| tenant.waiting > 0);
            }
        }
    }
}

impl<T> Taken<T> {
    /// The place that it has given up.
    pub fn ticket(&self) -> Ticket {
        self.entry.ticket
    }

    /// Since when it has waited.
    pub fn since(&self) -> Time {
        self.entry.since
    }

    /// The request.
    pub fn item(&self) -> &T {
        &self.entry.item
    }

    /// The request.
    pub fn into_item(self) -> T {
        self.entry.item
    }
}

impl<T> Tenant<T> {
    /// The youngest request of the lowest priority.
    fn last_of_lowest(&self) -> Option<(i32, Ticket)> {
        let (Reverse(priority), class) = self.classes.last_key_value()?;
        Some((*priority, class.back()?.ticket))
    }
}

impl QueueSettings {
    fn weight(&self, tenant: &str) -> f64 {
        self.weights.get(tenant).copied().filter(|weight| *weight > 0.0).unwrap_or(1.0)
    }

    /// Whose turn it is among requests of one tenant and priority.
    fn choose<T>(
        &self,
        class: &VecDeque<Entry<T>>,
        now: Time,
        matched: &mut impl FnMut(&T) -> Option<u64>,
    ) -> Option<usize> {
        let mut best: Option<(usize, u64)> = None;
        let mut looked_at = 0;
        for (at, entry) in class.iter().enumerate() {
            let Some(tokens) = matched(&entry.item) else { continue };
            if entry.passed >= self.most_passed || now.since(entry.since) >= self.most_patience {
                // Whoever came before it has been passed over at least as often.
                return Some(at);
            }
            if best.is_none_or(|(_, most)| tokens > most) {
                best = Some((at, tokens));
            }
            looked_at += 1;
            if looked_at == self.window {
                break;
            }
        }
        best.map(|(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn queue<T>(capacity: usize, weights: &[(&str, f64)]) -> FairQueue<T> {
        let weights = weights.iter().map(|(name, weight)| ((*name).into(), *weight)).collect();
        FairQueue::new(QueueSettings { capacity, weights, ..QueueSettings::default() })
    }

    fn at(millis: u64) -> Time {
        Time::from_micros(millis * 1_000)
    }

    fn all<T>(queue: &mut FairQueue<T>) -> Vec<T> {
        std::iter::from_fn(|| queue.take(at(0), |_| Some(0)).map(Taken::into_item)).collect()
    }

    #[test]
    fn equals_go_in_the_order_of_arrival_and_a_higher_priority_goes_first() {
        let mut queue = queue(9, &[]);
        for (priority, item) in [(0, 'c'), (0, 'd'), (7, 'a'), (-1, 'e'), (7, 'b')] {
            let _ = queue.offer("", priority, 1, at(0), item);
        }
        assert_eq!(all(&mut queue), ['a', 'b', 'c', 'd', 'e']);
        assert!(queue.is_empty());
    }

    #[test]
    fn tenants_share_by_their_weights_whoever_came_first() {
        let mut queue = queue(1_000, &[("heavy", 3.0)]);
        for _ in 0..400 {
            let _ = queue.offer("light", 0, 100, at(0), "light");
        }
        for _ in 0..400 {
            let _ = queue.offer("heavy", 0, 100, at(0), "heavy");
        }
        let heavy =
            (0..200).filter(|_| queue.take(at(0), |_| Some(0)).is_some_and(|taken| *taken.item() == "heavy"));
        assert_eq!(heavy.count(), 150);
    }

    #[test]
    fn whoever_was_idle_has_saved_nothing_up() {
        let mut queue = queue(1_000, &[]);
        for _ in 0..100 {
            let _ = queue.offer("busy", 0, 10, at(0), "busy");
        }
        for _ in 0..50 {
            queue.take(at(0), |_| Some(0));
        }
        for _ in 0..10 {
            let _ = queue.offer("late", 0, 10, at(0), "late");
        }
        let late = (0..10).filter(|_| queue.take(at(0), |_| Some(0)).is_some_and(|t| *t.item() == "late"));
        assert_eq!(late.count(), 5);
    }

    #[test]
    fn the_longest_match_goes_first_but_nobody_is_passed_over_for_ever() {
        let mut queue = queue(1_000, &[]);
        let _ = queue.offer("", 0, 1, at(0), 0_u64);
        let _ = queue.offer("", 0, 1, at(0), 5);
        let mut rounds = 0;
        assert_eq!(queue.take(at(0), |item| Some(*item)).map(Taken::into_item), Some(5));
        loop {
            let _ = queue.offer("", 0, 1, at(0), 9);
            rounds += 1;
            if queue.take(at(0), |item| Some(*item)).map(Taken::into_item) == Some(0) {
                break;
            }
        }
        assert_eq!(rounds, 16);
        all(&mut queue);
        let _ = queue.offer("", 0, 1, at(0), 0);
        let _ = queue.offer("", 0, 1, at(0), 9);
        assert_eq!(
            queue.take(at(5_000), |item| Some(*item)).map(Taken::into_item),
            Some(0),
            "out of patience"
        );
    }

    #[test]
    fn whoever_cannot_go_holds_nobody_up() {
        let mut queue = queue(9, &[]);
        for item in ["a", "b"] {
            let _ = queue.offer("first", 0, 1, at(0), item);
        }
        let _ = queue.offer("second", 0, 1, at(0), "c");
        let taken = queue.take(at(0), |item| (*item == "b").then_some(0));
        assert_eq!(taken.map(Taken::into_item), Some("b"));
        assert!(queue.take(at(0), |item| (*item == "b").then_some(0)).is_none());
        let taken = queue.take(at(0), |item| (*item == "c").then_some(0)).unwrap();
        queue.put_back(taken);
        assert_eq!(queue.len(), 2);
        // It has not been charged for what it did not get.
        assert_eq!(all(&mut queue), ["c", "a"]);
    }

    #[test]
    fn a_full_queue_is_shared_too() {
        let mut queue = queue(4, &[]);
        let tickets: Vec<_> = (0..4).map(|item| queue.offer("greedy", 0, 1, at(0), item)).collect();
        assert!(tickets.iter().all(|offer| matches!(offer, Offer::Queued(_))));
        assert_eq!(queue.offer("greedy", 0, 1, at(0), 4), Offer::Refused(4));
        assert!(matches!(queue.offer("greedy", 1, 1, at(0), 5), Offer::Displaced { other: 3, .. }));
        assert!(matches!(queue.offer("modest", 0, 1, at(0), 6), Offer::Displaced { other: 2, .. }));
        assert!(matches!(queue.offer("modest", 0, 1, at(0), 7), Offer::Displaced { other: 1, .. }));
        assert_eq!(queue.offer("modest", 0, 1, at(0), 8), Offer::Refused(8), "each has two");
        assert_eq!(queue.len(), 4);
    }

    #[test]
    fn names_without_end_do_not_fill_the_memory() {
        let mut queue = queue(8, &[]);
        for name in 0..10_000 {
            let _ = queue.offer(&name.to_string(), 0, 1_000_000, at(0), name);
            queue.take(at(0), |_| Some(0));
        }
        assert!(queue.tenants.len() <= 17, "{}", queue.tenants.len());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Offer { tenant: u8, priority: i32, cost: u64 },
        Take { blocked: u8 },
        Remove { nth: usize },
        PutBack,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..4_u8, -2..3_i32, 0..50_u64)
                .prop_map(|(tenant, priority, cost)| Step::Offer { tenant, priority, cost }),
            3 => (0..5_u8).prop_map(|blocked| Step::Take { blocked }),
            1 => (0..20_usize).prop_map(|nth| Step::Remove { nth }),
            1 => Just(Step::PutBack),
        ]
    }

    proptest! {
        #[test]
        fn every_request_leaves_once_and_never_are_there_too_many(
            steps in proptest::collection::vec(step(), 1..200),
        ) {
            let mut queue = queue(10, &[("1", 2.0)]);
            let (mut inside, mut tickets) = (HashSet::new(), Vec::new());
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Offer { tenant, priority, cost } => {
                        match queue.offer(&tenant.to_string(), priority, cost, at(0), (number, tenant)) {
                            Offer::Queued(ticket) => {
                                tickets.push(ticket);
                                inside.insert(number);
                            }
                            Offer::Displaced { ticket, other } => {
                                tickets.push(ticket);
                                prop_assert!(inside.remove(&other.0));
                                inside.insert(number);
                            }
                            Offer::Refused(item) => prop_assert_eq!(item.0, number),
                        }
                    }
                    Step::Take { blocked } => {
                        let taken = queue.take(at(0), |(_, tenant)| (*tenant != blocked).then_some(0));
                        if let Some(taken) = taken {
                            prop_assert!(taken.item().1 != blocked);
                            prop_assert!(inside.remove(&taken.item().0));
                        }
                    }
                    Step::Remove { nth } if nth < tickets.len() => {
                        if let Some(item) = queue.remove(tickets[nth]) {
                            prop_assert!(inside.remove(&item.0));
                        }
                        prop_assert!(queue.remove(tickets[nth]).is_none());
                    }
                    Step::Remove { .. } => {}
                    Step::PutBack => {
                        if let Some(taken) = queue.take(at(0), |_| Some(0)) {
                            queue.put_back(taken);
                        }
                    }
                }
                prop_assert_eq!(queue.len(), inside.len());
                prop_assert!(queue.len() <= 10);
            }
            let rest: HashSet<usize> = all(&mut queue).into_iter().map(|(number, _)| number).collect();
            prop_assert_eq!(rest, inside);
        }
    }
}
