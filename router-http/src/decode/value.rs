//! Values that are read without an intermediate tree: borrowed text, and token ids out of any nesting the APIs allow.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, SeqAccess, Visitor};

/// Text, borrowed from the body unless it has escapes.
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

/// A list of token ids, or several.
pub(super) struct Ids {
    pub(super) first: Vec<u32>,
    pub(super) several: bool,
}

/// Text or token ids, or a list of either.
pub(super) struct Prompts<'a> {
    pub(super) first: TextOrIds<'a>,
    pub(super) several: bool,
}

/// One prompt.
pub(super) enum TextOrIds<'a> {
    Text(Cow<'a, str>),
    Ids(Vec<u32>),
}

struct TextVisitor;

/// What an element of a list may be.
enum Element<'a> {
    Text(Cow<'a, str>),
    Id(u32),
    Ids(Vec<u32>),
}

struct ElementVisitor;
struct PromptsVisitor;

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor).map(Text)
    }
}

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Ids {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let prompts = deserializer.deserialize_any(PromptsVisitor)?;
        match prompts.first {
            TextOrIds::Ids(first) => Ok(Self { first, several: prompts.several }),
            TextOrIds::Text(_) => Err(D::Error::custom("text where token ids belong")),
        }
    }
}

impl<'a> From<TextOrIds<'a>> for Prompts<'a> {
    fn from(first: TextOrIds<'a>) -> Self {
        Self { first, several: false }
    }
}

impl<'de> Deserialize<'de> for Prompts<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PromptsVisitor)
    }
}

impl<'de> Visitor<'de> for PromptsVisitor {
    type Value = Prompts<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(TextOrIds::Text(Cow::Borrowed(text)).into())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(TextOrIds::Text(Cow::Owned(text.to_owned())).into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        // The first element says what kind of list it is.
        let first = match list.next_element::<Element<'de>>()? {
            None => TextOrIds::Ids(Vec::new()),
            Some(Element::Id(first)) => {
                let mut ids = Vec::with_capacity(list.size_hint().unwrap_or(0).min(1 << 16) + 1);
                ids.push(first);
                while let Some(id) = list.next_element()? {
                    ids.push(id);
                }
                return Ok(TextOrIds::Ids(ids).into());
            }
            Some(Element::Text(text)) => TextOrIds::Text(text),
            Some(Element::Ids(ids)) => TextOrIds::Ids(ids),
        };
        let mut several = false;
        while list.next_element::<IgnoredAny>()?.is_some() {
            several = true;
        }
        Ok(Prompts { first, several })
    }
}

impl<'de> Deserialize<'de> for Element<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ElementVisitor)
    }
}

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Element<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a token id, or a list of token ids")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Element::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Element::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Element::Text(Cow::Borrowed("")))
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<Self::Value, E> {
        u32::try_from(id).map(Element::Id).map_err(|_| E::custom("a token id has 32 bits"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut ids = Vec::new();
        while let Some(id) = list.next_element()? {
            ids.push(id);
        }
        Ok(Element::Ids(ids))
    }
}
