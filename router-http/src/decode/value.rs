//! Values that are read without an intermediate tree: borrowed text, and token ids out of any nesting the APIs allow.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

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
    Text(Cow<'a, [u8]>),
    Ids(Vec<u32>),
}

/// A name: a string, or the string `id` of an object. Anything else is none, and no error: it is the worker's to judge.
#[derive(Default)]
pub(super) struct Name<'a>(pub(super) Option<Cow<'a, str>>);

/// Vertex AI's prompts.
pub(super) struct Instances<'a> {
    pub(super) first: Option<TextOrIds<'a>>,
    pub(super) several: bool,
}

struct TextVisitor;
struct NameVisitor;
struct InstancesVisitor;

/// The first of several prompts that are each an object.
#[derive(serde::Deserialize)]
struct Instance<'a> {
    #[serde(borrow, default)]
    text: Option<Text<'a>>,
    #[serde(default)]
    input_ids: Option<Vec<u32>>,
}

/// What an element of a list may be.
enum Element<'a> {
    Text(Cow<'a, str>),
    Id(u32),
    Ids(Vec<u32>),
}

struct ElementVisitor;
struct PromptsVisitor;

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
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

impl<'a> TextOrIds<'a> {
    fn of(text: Cow<'a, str>) -> Self {
        Self::Text(match text {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        })
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
        Ok(TextOrIds::Text(Cow::Borrowed(text.as_bytes())).into())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(TextOrIds::Text(Cow::Owned(text.as_bytes().to_vec())).into())
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
            Some(Element::Text(text)) => TextOrIds::of(text),
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

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NameVisitor).map(Name)
    }
}

impl<'de> Visitor<'de> for NameVisitor {
    type Value = Option<Cow<'de, str>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Some(Cow::Borrowed(text)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(Cow::Owned(text.to_owned())))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut id = None;
        while let Some(key) = map.next_key::<Text<'de>>()? {
            match &*key.0 {
                // What an id of another shape has inside is no name.
                "id" => id = map.next_value::<Name<'de>>()?.0,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(id)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }
}

impl<'de> Deserialize<'de> for Instances<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(InstancesVisitor)
    }
}

impl<'de> Visitor<'de> for InstancesVisitor {
    type Value = Instances<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let first = list.next_element::<Instance<'de>>()?;
        let mut several = false;
        while list.next_element::<IgnoredAny>()?.is_some() {
            several = true;
        }
        // SGLang takes the first of the two that is not empty.
        let first = first.and_then(|instance| match (instance.text, instance.input_ids) {
            (Some(text), _) if !text.0.is_empty() => Some(TextOrIds::of(text.0)),
            (_, ids) => ids.map(TextOrIds::Ids),
        });
        Ok(Instances { first, several })
    }
}
