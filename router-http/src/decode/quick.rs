//! The facts of a body of the usual shape, found without reading what routing does not need.

use std::borrow::Cow;

use serde::Deserialize;

use super::body::Parts;
use super::chat::{Input, System};
use super::field::Field;
use super::ids;
use super::scan::Members;
use super::text::utf8;
use super::value::{Ids, Name, Prompts, TextOrIds};
use super::{Facts, RouteKind};

/// The facts, or `None` where anything is unusual or wrong: then the careful reader says what they are, or what is wrong.
pub(super) fn read(kind: RouteKind, body: &[u8]) -> Option<Facts<'_>> {
    let mut members = Members::of(body)?;
    let mut parts = Parts::of_kind(kind);
    while let Some(key) = members.key()? {
        let (facts, members) = (&mut parts.facts, &mut members);
        match Field::of(kind, &key) {
            Field::Text | Field::Prompt => parts.text = prompts(members)?,
            Field::Ids => parts.ids = id_lists(members)?,
            Field::Messages => parts.messages = careful(members.value()?)?,
            Field::Input => parts.messages = careful::<Option<Input>>(members.value()?)?.map(|input| input.0),
            Field::System => {
                parts.system = careful::<Option<System>>(members.value()?)?.map(|system| system.0)
            }
            Field::Instructions => parts.instructions = optional_string(members)?,
            Field::Tools => parts.tools = careful(members.value()?)?,
            Field::Instances => parts.set_instances(careful(members.value()?)?),
            Field::Model => facts.model = optional_string(members)?,
            Field::Rank => facts.rank = careful(members.value()?)?,
            Field::OlderRank => parts.older_rank = careful(members.value()?)?,
            Field::Salt(place) => facts.salts[place] = salt(members)?,
            Field::Rid => facts.names.rid = name(members)?,
            Field::Session => facts.names.session = name(members)?,
            Field::SessionId => facts.names.session_id = name(members)?,
            Field::PreviousResponse => facts.names.previous_response = name(members)?,
            Field::Stream => parts.streams = members.value()? == b"true",
            Field::StreamOptions => {
                members.value()?;
                parts.says_what_streams_tell = true;
            }
            Field::Other => {
                members.value()?;
            }
        }
    }
    parts.facts()
}

/// The model that any other body names, if it is an object that does.
pub(super) fn model(body: &[u8]) -> Option<Cow<'_, str>> {
    let mut members = Members::of(body)?;
    while let Some(key) = members.key()? {
        if *key == *b"model" {
            return members.string()?;
        }
        members.value()?;
    }
    None
}

/// A value that is read in full.
fn careful<'a, T: Deserialize<'a>>(value: &'a [u8]) -> Option<T> {
    serde_json::from_slice(value).ok()
}

fn optional_string<'a>(members: &mut Members<'a>) -> Option<Option<Cow<'a, str>>> {
    match members.string()? {
        Some(text) => Some(Some(text)),
        None => (members.value()? == b"null").then_some(None),
    }
}

fn name<'a>(members: &mut Members<'a>) -> Option<Option<Cow<'a, str>>> {
    match members.string()? {
        Some(name) => Some(Some(name)),
        None => careful::<Name<'_>>(members.value()?).map(|name| name.0),
    }
}

fn prompts<'a>(members: &mut Members<'a>) -> Option<Option<Prompts<'a>>> {
    if let Some(text) = members.text()? {
        return Some(Some(TextOrIds::Text(text).into()));
    }
    match members.numbers(ids::prompt) {
        Some(ids) => Some(Some(TextOrIds::Ids(ids).into())),
        None => careful(members.value()?),
    }
}

fn id_lists(members: &mut Members<'_>) -> Option<Option<Ids>> {
    match members.numbers(ids::prompt) {
        Some(first) => Some(Some(Ids { first, several: false })),
        None => careful(members.value()?),
    }
}

fn salt<'a>(members: &mut Members<'a>) -> Option<Cow<'a, str>> {
    if let Some(salt) = members.string()? {
        return Some(salt);
    }
    let salts = careful::<Option<Prompts<'_>>>(members.value()?)?;
    Some(match salts.map(|salts| salts.first) {
        Some(TextOrIds::Text(salt)) => utf8(salt)?,
        _ => Cow::Borrowed(""),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::body;
    use super::*;

    /// Members that bodies are put together from, right and wrong ones.
    const MEMBERS: [&str; 54] = [
        r#""text":"a\nb""#,
        r#""text":"a b""#,
        r#""text":["a","b"]"#,
        r#""text":null"#,
        r#""text":5"#,
        r#""text":[1]"#,
        r#""input_ids":[1, 22,333 ,4444444444]"#,
        r#""input_ids":[12345678,1,0,99]"#,
        r#""input_ids":[[1,2],[3]]"#,
        r#""input_ids":[]"#,
        r#""input_ids":null"#,
        r#""prompt":"p""#,
        r#""prompt":[7,8]"#,
        r#""prompt":[[7],[8]]"#,
        r#""messages":[{"role":"user","content":"hi"}]"#,
        r#""messages":"no""#,
        r#""tools":[{"b":1,"a":2}]"#,
        r#""model":"m""#,
        r#""model":null"#,
        r#""model":3"#,
        r#""routed_dp_rank":3"#,
        r#""routed_dp_rank":null"#,
        r#""routed_dp_rank":-1"#,
        r#""data_parallel_rank":1"#,
        r#""lora_path":["l","k"]"#,
        r#""cache_salt":"c""#,
        r#""extra_key":null"#,
        r#""x":{"text":"no","y":["]"]}"#,
        r#""te\u0078t":"escaped""#,
        r#""input":"hi""#,
        r#""input":[{"role":"user","content":"hi"},{"type":"function_call","name":"f"}]"#,
        r#""input":7"#,
        r#""instructions":"be \u0041 good""#,
        r#""instructions":["no"]"#,
        r#""system":"s""#,
        r#""system":[{"type":"text","text":"s"}]"#,
        r#""system":null"#,
        r#""instances":[{"text":"a\n","x":1},{"text":"b"}]"#,
        r#""instances":[{"text":"","input_ids":[1,2]}]"#,
        r#""instances":[]"#,
        r#""instances":["no"]"#,
        r#""rid":"r-1""#,
        r#""rid":["a","b"]"#,
        r#""rid":5"#,
        r#""request_id":"resp_\u0031""#,
        r#""session_params":{"rid":"x","id":"s1"}"#,
        r#""session_params":{"id":{"id":"deep"}}"#,
        r#""session_id":"s2""#,
        r#""previous_response_id":"resp_0""#,
        r#""previous_response_id":null"#,
        r#""stream":true"#,
        r#""stream": false"#,
        r#""stream":"true""#,
        r#""stream_options":{"include_usage":false}"#,
    ];

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

        // Whatever it reads is what the careful reader reads; whatever is wrong, it leaves.
        #[test]
        fn it_reads_what_the_careful_reader_reads(
            kind in prop::sample::select(RouteKind::GENERATIONS.to_vec()),
            members in prop::collection::vec(prop::sample::select(MEMBERS.to_vec()), 0..6),
            white in prop::bool::ANY,
        ) {
            let body = format!("{{{}}}", members.join(if white { " ,\n" } else { "," }));
            match (read(kind, body.as_bytes()), body::read(kind, body.as_bytes())) {
                (Some(quick), Ok(careful)) => prop_assert_eq!(quick, careful),
                (Some(_), Err(error)) => prop_assert!(false, "{error}: {body}"),
                (None, Ok(_)) => prop_assert!(false, "this is usual: {body}"),
                (None, Err(_)) => {}
            }
        }
    }
}
