//! When a run over HTTP sent what where, and what the lab comes to with the same requests at the same times.
//!
//! A rule that does not look at prefixes sends every later request elsewhere when two of them change places, so that two runs of it,
//! however alike, cannot be compared. On the same arrivals they can: what is left is the engines, the clients, and the router.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::lab::{Outcome, Request};
use crate::metrics::Metrics;
use crate::stats::Distribution;
use crate::workload::Traffic;

/// One seed's run over HTTP as it was sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    /// The seed.
    pub seed: u64,
    /// In the order of [`Traffic::requests`].
    pub arrivals: Vec<Arrival>,
    /// The lab on these, by whose choices; none of a router or of engines that the lab has not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replays: Vec<Replay>,
}

/// One request on its way.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arrival {
    /// Its session.
    pub session: u32,
    /// The session's turn that it is of, from 0.
    pub turn: u32,
    /// When it was sent, in seconds since the run began.
    pub at_s: f64,
    /// The engine that it went to; absent where nobody says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<usize>,
}

/// Who decides in the lab where a recorded request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choices {
    /// The lab's router, as always.
    Own,
    /// It goes where it went; the lab's router is asked all the same.
    Recorded,
}

/// The lab on recorded arrivals, beside the run that they are of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Replay {
    /// Who decided.
    pub choices: Choices,
    /// Requests, those of the warm-up too.
    pub requests: usize,
    /// Of these, those whose engine was recorded.
    pub known: usize,
    /// Of recorded choices those that the lab's router would have made otherwise. Of its own ones nothing: engines are alike, and which of
    /// them comes first is chance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<usize>,
    /// Requests that were sent later than recorded: a turn waits for the answer before it.
    pub held: usize,
    /// Requests of which both found the same cached tokens.
    pub alike: usize,
    /// By how much first tokens came later over HTTP, in seconds, of the requests that have one in both.
    pub later_s: Distribution,
    /// What the lab came to.
    pub metrics: Metrics,
}

impl Recording {
    /// Of requests in the traffic's order: when each was sent, and to which engine if that is known.
    pub fn new(
        seed: u64,
        traffic: &Traffic,
        sent: impl IntoIterator<Item = (Duration, Option<usize>)>,
    ) -> Self {
        let turns = traffic.turn_of();
        let of = traffic.session_of.iter().zip(turns).zip(sent);
        let arrivals = of.map(|((session, turn), (at, engine))| Arrival {
            session: *session,
            turn,
            at_s: at.as_secs_f64(),
            engine,
        });
        Self { seed, arrivals: arrivals.collect(), replays: Vec::new() }
    }

    /// When each was sent.
    pub fn times(&self) -> Vec<Duration> {
        self.arrivals.iter().map(|arrival| Duration::from_secs_f64(arrival.at_s)).collect()
    }

    /// Where each has to go, where that is to be as recorded.
    pub fn engines(&self, choices: Choices) -> Vec<Option<usize>> {
        match choices {
            Choices::Own => Vec::new(),
            Choices::Recorded => self.arrivals.iter().map(|arrival| arrival.engine).collect(),
        }
    }

    /// What the lab made of these arrivals, beside what came of them over HTTP.
    pub fn beside(&self, http: &[Request], lab: &Outcome, choices: Choices, metrics: Metrics) -> Replay {
        let pairs = || http.iter().zip(&lab.requests);
        let later = pairs().filter_map(|(http, lab)| {
            Some((http.first? - http.sent).as_secs_f64() - (lab.first? - lab.sent).as_secs_f64())
        });
        let late = |(at, own): &(Duration, &Request)| own.sent > *at;
        Replay {
            choices,
            requests: self.arrivals.len(),
            known: self.arrivals.iter().filter(|arrival| arrival.engine.is_some()).count(),
            elsewhere: (choices == Choices::Recorded).then_some(lab.overruled),
            held: self.times().into_iter().zip(&lab.requests).filter(late).count(),
            alike: pairs().filter(|(http, lab)| http.cached_tokens == lab.cached_tokens).count(),
            later_s: Distribution::of(later.collect()),
            metrics,
        }
    }
}

#[cfg(test)]
mod tests {
    use router_core::policy::CacheAwareSettings;
    use sglang_sim::Timing;

    use super::*;
    use crate::lab::{Contestant, Kind, Setting, contestants, replay, run};
    use crate::workload::{Pattern, draft};

    fn setting() -> Setting {
        Setting::undisturbed(4, 100_000)
    }

    fn traffic(pattern: Pattern) -> Traffic {
        draft(pattern, 150, 7).at_load(0.4, setting().workers, &Timing::default())
    }

    fn contestant(name: &str) -> Contestant {
        contestants(CacheAwareSettings::default()).into_iter().find(|of| of.name == name).unwrap()
    }

    fn recording(traffic: &Traffic, outcome: &Outcome) -> Recording {
        let sent = outcome.requests.iter().map(|request| (request.sent, Some(request.engine)));
        Recording::new(1, traffic, sent)
    }

    fn repeated(traffic: &Traffic, of: &Recording, contestant: &Contestant, choices: Choices) -> Outcome {
        let traffic = traffic.sent_at(&of.times());
        replay(&setting(), &traffic, contestant, &of.engines(choices)).unwrap()
    }

    #[test]
    fn a_run_on_its_own_arrivals_is_the_same_run() {
        for pattern in [Pattern::Agents, Pattern::Branching] {
            let traffic = traffic(pattern);
            for contestant in contestants(CacheAwareSettings::default()) {
                let outcome = run(&setting(), &traffic, &contestant).unwrap();
                let recording = recording(&traffic, &outcome);
                let routers = contestant.kind == Kind::Router;
                for choices in
                    [Choices::Own, Choices::Recorded].into_iter().filter(|of| routers || *of == Choices::Own)
                {
                    let again = repeated(&traffic, &recording, &contestant, choices);
                    assert_eq!(again.requests, outcome.requests, "{}, {choices:?}", contestant.name);
                    let replay = recording.beside(&outcome.requests, &again, choices, Metrics::default());
                    let all = traffic.requests.len();
                    assert_eq!((replay.requests, replay.known, replay.alike), (all, all, all));
                    assert_eq!((replay.elsewhere.unwrap_or(0), replay.held), (0, 0), "{}", contestant.name);
                    assert_eq!(replay.later_s, Distribution::default());
                }
            }
        }
    }

    #[test]
    fn requests_are_sent_when_the_recording_says() {
        let (traffic, router) = (traffic(Pattern::SystemPrompts), contestant("round_robin"));
        let outcome = run(&setting(), &traffic, &router).unwrap();
        let mut recording = recording(&traffic, &outcome);
        let (moved, later) = (traffic.requests.len() / 2, 3.25);
        recording.arrivals[moved].at_s += later;
        let again = repeated(&traffic, &recording, &router, Choices::Own);
        for (place, (request, before)) in again.requests.iter().zip(&outcome.requests).enumerate() {
            let later = if place == moved { Duration::from_secs_f64(later) } else { Duration::ZERO };
            assert_eq!(request.sent, before.sent + later, "{place}");
        }
        let again = repeated(&traffic, &recording, &router, Choices::Recorded);
        let turns = again.overruled;
        assert!(turns > 0 && turns < traffic.requests.len() / 2, "those between have moved by one: {turns}");
    }

    #[test]
    fn a_turn_waits_for_the_answer_before_it() {
        let (traffic, router) = (traffic(Pattern::Chat), contestant("round_robin"));
        let outcome = run(&setting(), &traffic, &router).unwrap();
        let mut recording = recording(&traffic, &outcome);
        let session = traffic.sessions.iter().find(|session| session.turns.len() > 1).unwrap();
        let [first, second] = [0, 1].map(|turn| session.turns[turn].requests[0] as usize);
        assert_eq!((recording.arrivals[first].turn, recording.arrivals[second].turn), (0, 1));
        recording.arrivals[second].at_s = recording.arrivals[first].at_s + 1e-6;
        let again = repeated(&traffic, &recording, &router, Choices::Own);
        assert_eq!(Some(again.requests[second].sent), again.requests[first].done);
        assert_eq!(recording.beside(&outcome.requests, &again, Choices::Own, Metrics::default()).held, 1);
    }

    #[test]
    fn recorded_choices_are_taken_and_the_rule_is_asked_all_the_same() {
        let (traffic, router) = (traffic(Pattern::Agents), contestant("round_robin"));
        let outcome = run(&setting(), &traffic, &router).unwrap();
        let mut recording = recording(&traffic, &outcome);
        recording.arrivals.iter_mut().for_each(|arrival| arrival.engine = Some(2));
        let again = repeated(&traffic, &recording, &router, Choices::Recorded);
        assert!(again.requests.iter().all(|request| request.engine == 2));
        let replay = recording.beside(&again.requests, &again, Choices::Recorded, Metrics::default());
        let (others, elsewhere) = (replay.known - replay.known.div_ceil(4), replay.elsewhere.unwrap());
        assert!(elsewhere.abs_diff(others) <= 1, "three of four turns are others': {elsewhere}");
    }

    #[test]
    fn times_come_back_from_a_document_as_they_were() {
        let traffic = traffic(Pattern::NoSharing);
        let times: Vec<Duration> =
            (0..traffic.requests.len() as u64).map(|n| Duration::from_nanos(n * 7_919_191_919 + 1)).collect();
        let recording = Recording::new(1, &traffic, times.iter().map(|at| (*at, None)));
        let text = serde_json::to_string(&recording).unwrap();
        let read: Recording = serde_json::from_str(&text).unwrap();
        assert_eq!(read, recording);
        assert_eq!(read.times(), times);
    }
}
