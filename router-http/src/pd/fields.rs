//! What ties the two halves of a generation together: fields put into the body that each worker gets.
//!
//! They come after all others, where they win over any of the same name (Python's readers of JSON take the last; a stricter one
//! refuses the request); everything else stays byte for byte. So a client cannot name a bootstrap server of its own.

use std::fmt::{self, Write as _};

use bytes::Bytes;
use http::{HeaderMap, Uri};
use router_core::InFlight;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// What both workers must be told alike.
#[derive(Debug)]
pub(super) struct Pairing {
    /// As JSON.
    host: String,
    port: u16,
    rooms: Vec<u64>,
    /// The request has several prompts, so that lists are wanted.
    lists: bool,
    /// For prefill workers with several.
    prefill_rank: Option<u32>,
}

/// Rooms are less than this: 63 bits, with some space for the rank that is told by the remainder.
const ROOMS: u64 = (1 << 63) - (1 << 32);

impl Pairing {
    /// With new rooms. `prompts`: how many the request has, if not one.
    pub(super) fn new(prefill: &InFlight, prompts: Option<usize>, rng: &mut fastrand::Rng) -> Self {
        let worker = prefill.worker();
        let (dp_size, rank) = (u64::from(worker.profile.dp_size.max(1)), prefill.target().rank);
        // An address of IPv6 stays in brackets: SGLang's prefill server puts a colon and the port behind it.
        let host = worker.url.parse::<Uri>().ok();
        let host = host.as_ref().and_then(Uri::host).unwrap_or_default();
        // Where nothing else says it, SGLang takes the rank from the room: room modulo ranks.
        let room = |rng: &mut fastrand::Rng| {
            let drawn = rng.u64(dp_size..ROOMS);
            drawn - drawn % dp_size + u64::from(rank)
        };
        Self {
            host: serde_json::Value::from(host).to_string(),
            port: worker.bootstrap_port,
            rooms: (0..prompts.unwrap_or(1)).map(|_| room(rng)).collect(),
            lists: prompts.is_some(),
            prefill_rank: (dp_size > 1).then_some(rank),
        }
    }

    /// The body for one of the two. `asked_rank`: the client named a dp rank, which must not reach a worker it is not meant for.
    pub(super) fn put_into(&self, body: &Bytes, target: &InFlight, asked_rank: bool) -> Bytes {
        let Some(object) = body.trim_ascii_end().strip_suffix(b"}") else { return body.clone() };
        let mut fields = String::with_capacity(192);
        if object.trim_ascii() != b"{" {
            fields.push(',');
        }
        let ranked = asked_rank || target.worker().profile.dp_size > 1;
        // Writing to a string cannot fail.
        let _ = self.write(&mut fields, ranked.then_some(target.target().rank));
        [object, fields.as_bytes()].concat().into()
    }

    fn write(&self, fields: &mut String, rank: Option<u32>) -> fmt::Result {
        let (host, port) = (&self.host, self.port);
        match self.lists {
            false => {
                let room = self.rooms[0];
                write!(
                    fields,
                    "\"bootstrap_host\":{host},\"bootstrap_port\":{port},\"bootstrap_room\":{room}"
                )?;
            }
            true => {
                let list = |write: &dyn Fn(&u64) -> String| {
                    self.rooms.iter().map(write).collect::<Vec<_>>().join(",")
                };
                let hosts = list(&|_| host.clone());
                let ports = list(&|_| port.to_string());
                let rooms = list(&u64::to_string);
                write!(
                    fields,
                    "\"bootstrap_host\":[{hosts}],\"bootstrap_port\":[{ports}],\"bootstrap_room\":[{rooms}]"
                )?;
            }
        }
        if let Some(rank) = rank {
            write!(fields, ",\"routed_dp_rank\":{rank}")?;
        }
        if let Some(rank) = self.prefill_rank {
            write!(fields, ",\"disagg_prefill_dp_rank\":{rank}")?;
        }
        fields.write_char('}')
    }
}

/// Removes the headers that would win over the fields, or over one of the two ranks.
pub(super) fn strip_headers(headers: &mut HeaderMap) {
    for name in [
        "x-data-parallel-rank",
        "x-override-routed-dp-rank",
        "x-override-bootstrap-host",
        "x-override-bootstrap-port",
        "x-override-bootstrap-room",
        "x-override-disagg-prefill-dp-rank",
    ] {
        headers.remove(name);
    }
}

/// How many prompts a body has whose `text`, `prompt` or `input_ids` is a list of them.
pub(super) fn prompts(body: &[u8]) -> Option<usize> {
    serde_json::Deserializer::from_slice(body).deserialize_map(Longest).ok().filter(|prompts| *prompts > 0)
}

/// The longest list among the fields that prompts come by.
struct Longest;

/// The length of a list; zero for anything else.
#[derive(Default)]
struct Length(usize);

impl<'de> Visitor<'de> for Longest {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<usize, A::Error> {
        let mut longest = 0;
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            match &*key {
                "text" | "prompt" | "input_ids" => longest = longest.max(map.next_value::<Length>()?.0),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(longest)
    }
}

impl<'de> serde::Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self(0))
    }
}

impl<'de> Visitor<'de> for Length {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a prompt or a list of prompts")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self, A::Error> {
        let mut length = 0;
        while list.next_element::<IgnoredAny>()?.is_some() {
            length += 1;
        }
        Ok(Self(length))
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use router_core::{
        Done, FleetUpdate, RouteRequest, Router, Settings, Time, Update, WorkerProfile, Writer,
    };

    use super::*;

    /// A request in flight at rank 1 of a worker with so many ranks.
    fn in_flight(url: &str, dp_size: u32) -> (InFlight, Writer) {
        let (router, mut writer) = Router::new(Settings::new(7));
        let send = |update| router.updates().try_send(Update::Fleet(update)).unwrap();
        send(FleetUpdate::Add { url: url.into(), done: Done::ignore() });
        writer.turn(Time::from_micros(1));
        let worker = router.snapshot().fleet.workers[0].id;
        let profile = WorkerProfile { dp_size, bootstrap_port: Some(9001), ..WorkerProfile::default() };
        send(FleetUpdate::Profile { worker, profile: profile.into(), done: Done::ignore() });
        send(FleetUpdate::Health { worker, reachable: true, reason: "".into() });
        writer.turn(Time::from_micros(2));
        let request = RouteRequest { rank: (dp_size > 1).then_some(1), ..RouteRequest::default() };
        let routed = router.route(&request, Time::from_micros(3), &mut fastrand::Rng::with_seed(1));
        (routed.unwrap(), writer)
    }

    fn fields(body: &str, prompts: Option<usize>, dp_size: u32, asked: bool) -> serde_json::Value {
        let (target, _writer) = in_flight("http://[::1]:30000/base", dp_size);
        let pairing = Pairing::new(&target, prompts, &mut fastrand::Rng::with_seed(1));
        let edited = pairing.put_into(&Bytes::copy_from_slice(body.as_bytes()), &target, asked);
        let kept = body.trim_end().strip_suffix('}').unwrap_or(body);
        assert!(edited.starts_with(kept.as_bytes()), "{edited:?}");
        serde_json::from_slice(&edited).unwrap()
    }

    #[test]
    fn the_fields_stand_behind_all_others_and_win() {
        assert!(fields("{ }", None, 1, false)["bootstrap_room"].is_u64());
        let fields = fields("{\"text\":\"a}\", \"bootstrap_room\":1 } \n", None, 1, false);
        assert_eq!((&fields["text"], &fields["bootstrap_host"]), (&"a}".into(), &"[::1]".into()));
        assert_eq!(fields["bootstrap_port"], 9001);
        assert!(fields["bootstrap_room"].as_u64().unwrap() > 1);
        assert!(fields.get("routed_dp_rank").is_none() && fields.get("disagg_prefill_dp_rank").is_none());
    }

    #[test]
    fn ranks_are_named_where_there_are_several_or_one_was_asked_for() {
        for dp_size in [2, 3, 8] {
            let fields = fields("{}", Some(40), dp_size, false);
            assert_eq!(
                (&fields["routed_dp_rank"], &fields["disagg_prefill_dp_rank"]),
                (&1.into(), &1.into())
            );
            let rooms = fields["bootstrap_room"].as_array().unwrap();
            assert_eq!(rooms.len(), 40);
            assert!(rooms.iter().all(|room| room.as_u64().unwrap() % u64::from(dp_size) == 1));
            assert_eq!(fields["bootstrap_host"].as_array().unwrap().len(), 40);
        }
        assert_eq!(fields("{\"routed_dp_rank\":5}", None, 1, true)["routed_dp_rank"], 0);
    }

    #[test]
    fn prompts_are_counted_where_they_come() {
        assert_eq!(prompts(br#"{"x":[1,2,3],"text":["a","b"],"input_ids":null}"#), Some(2));
        assert_eq!(prompts(br#"{"input_ids":[[1,2],[3],[4]]}"#), Some(3));
        assert_eq!(prompts(br#"{"prompt":"a"}"#), None);
        assert_eq!(prompts(b"[]"), None);
    }

    #[test]
    fn headers_that_would_win_are_removed() {
        let mut headers = HeaderMap::new();
        for name in ["x-data-parallel-rank", "x-override-bootstrap-room", "x-override-priority"] {
            headers.insert(name, http::HeaderValue::from_static("1"));
        }
        strip_headers(&mut headers);
        assert_eq!(headers.keys().map(http::HeaderName::as_str).collect::<Vec<_>>(), ["x-override-priority"]);
    }
}
