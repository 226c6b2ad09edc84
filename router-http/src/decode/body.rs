//! The careful reader of a JSON body: one walk that knows of everything that is wrong where it stands.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::error::Category;

use super::chat::{Chat, Input, System};
use super::field::Field;
use super::text::utf8;
use super::value::{Ids, Instances, Name, Prompts, Text, TextOrIds};
use super::{Facts, Prompt, RouteKind};

/// A body that cannot be routed. Shows no value of it.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON, or not an object.
    #[error("the request body is not a JSON object: malformed at line {line}, column {column}")]
    Malformed {
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
    },
    /// A field has a type that the API does not give it.
    #[error("`{field}` must be {expected} (line {line}, column {column} of the request body)")]
    WrongType {
        /// The field.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
    },
    /// `X-Data-Parallel-Rank` is no number.
    #[error("the header X-Data-Parallel-Rank must be a number")]
    RankHeader,
}

/// Field under way, with what it must be, so that an error can name it.
type Place = Cell<Option<(&'static str, &'static str)>>;

/// What a body says, before it is known which of it is the prompt.
pub(super) struct Parts<'a> {
    pub(super) facts: Facts<'a>,
    pub(super) text: Option<Prompts<'a>>,
    pub(super) ids: Option<Ids>,
    pub(super) messages: Option<Chat>,
    /// Stands before the chat.
    pub(super) system: Option<Chat>,
    /// Stands before the chat or the text.
    pub(super) instructions: Option<Cow<'a, str>>,
    pub(super) tools: Option<serde_json::Value>,
    /// The rank by the field's older name.
    pub(super) older_rank: Option<u32>,
    pub(super) streams: bool,
    pub(super) says_what_streams_tell: bool,
}

impl<'a> Parts<'a> {
    pub(super) fn of_kind(kind: RouteKind) -> Self {
        Self {
            facts: Facts::of_kind(kind),
            text: None,
            ids: None,
            messages: None,
            system: None,
            instructions: None,
            tools: None,
            older_rank: None,
            streams: false,
            says_what_streams_tell: false,
        }
    }

    pub(super) fn set_instances(&mut self, instances: Option<Instances<'a>>) {
        let several = instances.as_ref().is_some_and(|instances| instances.several);
        self.text = instances.and_then(|instances| instances.first).map(|first| Prompts { first, several });
    }

    /// All together; `None` if there are token ids where text belongs.
    pub(super) fn facts(self) -> Option<Facts<'a>> {
        let kind = self.facts.kind;
        let mut facts = self.facts;
        facts.rank = facts.rank.or(self.older_rank);
        facts.quiet_stream = self.streams && !self.says_what_streams_tell;
        let of_text = self.text.as_ref().is_some_and(|prompts| prompts.several);
        facts.several = self.ids.as_ref().map_or(of_text, |ids| ids.several);
        let text = self.text.map(|prompts| prompts.first);
        if kind == RouteKind::Generate && matches!(text, Some(TextOrIds::Ids(_))) {
            return None;
        }
        // What an earlier turn left at a worker comes before what is written here: the prompt is not known.
        if facts.names.session.is_some() || facts.names.previous_response.is_some() {
            return Some(facts);
        }
        facts.prompt = match (text, self.ids, self.messages) {
            // Token ids beside messages take the place of the rendered chat.
            (_, Some(ids), _) => Prompt::Tokens(ids.first),
            (Some(TextOrIds::Ids(ids)), ..) => Prompt::Tokens(ids),
            (Some(TextOrIds::Text(text)), ..) => Prompt::Text(match self.instructions {
                // As SGLang puts the two together for Ollama's clients.
                Some(system) if !system.is_empty() => {
                    Cow::Owned([system.as_bytes(), b"\n\n", &text].concat())
                }
                _ => text,
            }),
            (_, _, Some(chat)) => {
                let instructions = self.instructions.map(|text| Chat::of_text("system", text.into_owned()));
                let first = instructions.or(self.system);
                let chat = match first {
                    Some(first) => first.then(chat),
                    None => chat,
                };
                Prompt::Text(Cow::Owned(chat.render(self.tools.as_ref()).into_bytes()))
            }
            _ => Prompt::None,
        };
        Some(facts)
    }
}

/// Reads the facts from a body.
pub(super) fn read(kind: RouteKind, body: &[u8]) -> Result<Facts<'_>, DecodeError> {
    let place = Place::default();
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let facts = Walk { kind, place: &place }.deserialize(&mut deserializer);
    let facts = facts.and_then(|facts| deserializer.end().map(|()| facts));
    facts.map_err(|error| {
        let (line, column) = (error.line(), error.column());
        match (error.classify(), place.get()) {
            (Category::Data, Some((field, expected))) => {
                DecodeError::WrongType { field, expected, line, column }
            }
            _ => DecodeError::Malformed { line, column },
        }
    })
}

struct Walk<'p> {
    kind: RouteKind,
    place: &'p Place,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = Facts<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Facts<'de>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = Facts<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Facts<'de>, A::Error> {
        let mut parts = Parts::of_kind(self.kind);
        while let Some(key) = map.next_key::<Text<'de>>()? {
            let field = Field::of(self.kind, key.0.as_bytes());
            self.place.set(field.place(self.kind));
            let map = &mut map;
            match field {
                Field::Text | Field::Prompt => parts.text = map.next_value()?,
                Field::Ids => parts.ids = map.next_value()?,
                Field::Messages => parts.messages = map.next_value()?,
                Field::Input => parts.messages = map.next_value::<Option<Input>>()?.map(|input| input.0),
                Field::System => parts.system = map.next_value::<Option<System>>()?.map(|system| system.0),
                Field::Instructions => parts.instructions = optional_text(map)?,
                Field::Tools => parts.tools = map.next_value()?,
                Field::Instances => parts.set_instances(map.next_value()?),
                Field::Model => parts.facts.model = optional_text(map)?,
                Field::Rank => parts.facts.rank = map.next_value()?,
                Field::OlderRank => parts.older_rank = map.next_value()?,
                Field::Salt(place) => parts.facts.salts[place] = salt(map)?,
                Field::Rid => parts.facts.names.rid = name(map)?,
                Field::Session => parts.facts.names.session = name(map)?,
                Field::SessionId => parts.facts.names.session_id = name(map)?,
                Field::PreviousResponse => parts.facts.names.previous_response = name(map)?,
                Field::Stream => parts.streams = map.next_value::<Value>()? == Value::Bool(true),
                Field::StreamOptions => {
                    map.next_value::<IgnoredAny>()?;
                    parts.says_what_streams_tell = true;
                }
                Field::Other => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        self.place.set(None);
        parts.facts().ok_or_else(|| {
            self.place.set(Some(("text", "a string or a list of strings")));
            A::Error::custom("token ids where text belongs")
        })
    }
}

fn optional_text<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<Cow<'de, str>>, A::Error> {
    Ok(map.next_value::<Option<Text<'de>>>()?.map(|text| text.0))
}

fn name<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<Cow<'de, str>>, A::Error> {
    Ok(map.next_value::<Name<'de>>()?.0)
}

/// A member that separates caches; of a list the first, as of the prompts it belongs to.
fn salt<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Cow<'de, str>, A::Error> {
    let salt = map.next_value::<Option<Prompts<'de>>>()?;
    Ok(match salt.map(|salts| salts.first) {
        // Read as text, it is some.
        Some(TextOrIds::Text(salt)) => utf8(salt).unwrap_or_default(),
        _ => Cow::Borrowed(""),
    })
}
