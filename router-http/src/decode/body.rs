//! The careful reader of a JSON body: one walk that knows of everything that is wrong where it stands.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::error::Category;

use super::chat::Chat;
use super::value::{Ids, Prompts, Text, TextOrIds};
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
    pub(super) tools: Option<serde_json::Value>,
    /// The rank by the field's older name.
    pub(super) older_rank: Option<u32>,
}

impl<'a> Parts<'a> {
    pub(super) fn of_kind(kind: RouteKind) -> Self {
        let facts = Facts::of_kind(kind);
        Self { facts, text: None, ids: None, messages: None, tools: None, older_rank: None }
    }

    /// All together; `None` if there are token ids where text belongs.
    pub(super) fn facts(self) -> Option<Facts<'a>> {
        let mut facts = self.facts;
        facts.rank = facts.rank.or(self.older_rank);
        let of_text = self.text.as_ref().is_some_and(|prompts| prompts.several);
        facts.several = self.ids.as_ref().map_or(of_text, |ids| ids.several);
        facts.prompt = match (self.text.map(|prompts| prompts.first), self.ids, self.messages) {
            (Some(TextOrIds::Ids(_)), ..) if facts.kind == RouteKind::Generate => return None,
            // Token ids beside messages take the place of the rendered chat.
            (_, Some(ids), _) => Prompt::Tokens(ids.first),
            (Some(TextOrIds::Ids(ids)), ..) => Prompt::Tokens(ids),
            (Some(TextOrIds::Text(text)), ..) => Prompt::Text(text),
            (_, _, Some(chat)) => Prompt::Text(Cow::Owned(chat.render(self.tools.as_ref()))),
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
        use RouteKind::{Chat as ChatRoute, Completions, Generate};
        let mut parts = Parts::of_kind(self.kind);
        while let Some(key) = map.next_key::<Text<'de>>()? {
            self.place.set(None);
            match (self.kind, &*key.0) {
                (Generate, "text") => {
                    parts.text = self.take::<Option<Prompts<'de>>, _>(
                        &mut map,
                        "text",
                        "a string or a list of strings",
                    )?
                }
                (Generate | ChatRoute, "input_ids") => {
                    parts.ids = self.take::<Option<Ids>, _>(
                        &mut map,
                        "input_ids",
                        "a list of token ids, or a list of such lists",
                    )?
                }
                (Completions, "prompt") => {
                    parts.text =
                        self.take(&mut map, "prompt", "a string, a list of token ids, or a list of either")?
                }
                (ChatRoute, "messages") => {
                    parts.messages = self.take::<Option<Chat>, _>(
                        &mut map,
                        "messages",
                        "a list of messages, each an object with a string `role`",
                    )?
                }
                (ChatRoute, "tools") => {
                    parts.tools = self.take::<Option<serde_json::Value>, _>(&mut map, "tools", "JSON")?
                }
                (Completions | ChatRoute, "model") => {
                    parts.facts.model =
                        self.take::<Option<Text<'de>>, _>(&mut map, "model", "a string")?.map(|model| model.0)
                }
                (_, "routed_dp_rank") => {
                    parts.facts.rank = self.take(&mut map, "routed_dp_rank", "a number of a dp rank")?
                }
                (_, "data_parallel_rank") => {
                    parts.older_rank = self.take(&mut map, "data_parallel_rank", "a number of a dp rank")?
                }
                (_, "lora_path") => parts.facts.salts[0] = self.salt(&mut map, "lora_path")?,
                (_, "cache_salt") => parts.facts.salts[1] = self.salt(&mut map, "cache_salt")?,
                (_, "extra_key") => parts.facts.salts[2] = self.salt(&mut map, "extra_key")?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        self.place.set(None);
        parts.facts().ok_or_else(|| {
            self.place.set(Some(("text", "a string or a list of strings")));
            A::Error::custom("token ids where text belongs")
        })
    }
}

impl Walk<'_> {
    /// The value of a field; an error inside it is about that field.
    fn take<'de, T: serde::Deserialize<'de>, A: MapAccess<'de>>(
        &self,
        map: &mut A,
        field: &'static str,
        expected: &'static str,
    ) -> Result<T, A::Error> {
        self.place.set(Some((field, expected)));
        map.next_value()
    }

    /// A field that separates caches; of a list the first, as of the prompts it belongs to.
    fn salt<'de, A: MapAccess<'de>>(
        &self,
        map: &mut A,
        field: &'static str,
    ) -> Result<Cow<'de, str>, A::Error> {
        let salt = self.take::<Option<Prompts<'de>>, _>(map, field, "a string")?;
        Ok(match salt.map(|salts| salts.first) {
            Some(TextOrIds::Text(salt)) => salt,
            _ => Cow::Borrowed(""),
        })
    }
}
