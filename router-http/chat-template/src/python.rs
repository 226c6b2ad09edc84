//! Values written as Python writes them.

use std::borrow::Cow;
use std::fmt::Write as _;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// Options of `json.dumps`.
#[derive(Debug, Default)]
pub(crate) struct JsonStyle {
    /// Other characters are escaped.
    pub(crate) ascii: bool,
    pub(crate) indent: Option<usize>,
    /// Between items, and between key and value.
    pub(crate) separators: Option<Vec<String>>,
    pub(crate) sorted: bool,
}

/// `str(value)`. Of lists and mappings, which templates print by mistake, there is none.
pub(crate) fn text(value: &Value) -> Result<Cow<'_, str>, Error> {
    if let Some(text) = value.as_str() {
        return Ok(Cow::Borrowed(text));
    }
    match value.kind() {
        ValueKind::Undefined => Ok(Cow::Borrowed("")),
        ValueKind::None | ValueKind::Bool => Ok(Cow::Owned(value.to_string())),
        ValueKind::Number => Ok(Cow::Owned(number(value))),
        _ => Err(Error::new(ErrorKind::InvalidOperation, "lists and mappings are not printed")),
    }
}

/// `json.dumps(value)`.
pub(crate) fn json(value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let separators = match style.separators.as_deref() {
        None if style.indent.is_some() => (",", ": "),
        None => (", ", ": "),
        Some([items, keys]) => (&**items, &**keys),
        Some(_) => return Err(invalid("separators are two")),
    };
    let mut writer = Writer { out: String::new(), style, separators, depth: 0 };
    writer.value(value)?;
    Ok(writer.out)
}

fn invalid(detail: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail)
}

/// A number; of floats, `repr`.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float)
}

/// The shortest digits that say the same number, in exponents below 1e-4 and from 1e16 on.
fn float(value: f64) -> String {
    if value != 0.0 && !(1e-4..1e16).contains(&value.abs()) {
        let scientific = format!("{value:e}");
        if let Some((digits, exponent)) = scientific.split_once('e') {
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(exponent) => ('-', exponent),
                None => ('+', exponent),
            };
            return format!("{digits}e{sign}{exponent:0>2}");
        }
    }
    format!("{value:?}")
}

struct Writer<'s> {
    out: String,
    style: &'s JsonStyle,
    separators: (&'s str, &'s str),
    depth: usize,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value) -> Result<(), Error> {
        if let Some(text) = value.as_str() {
            self.string(text);
            return Ok(());
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::Seq => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.items('[', ']', &items, Self::value)?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.style.sorted {
                    keys.sort();
                }
                self.items('{', '}', &keys, |writer, key| {
                    writer.string(key.as_str().ok_or_else(|| invalid("a key is no text"))?);
                    writer.out.push_str(writer.separators.1);
                    writer.value(&value.get_item(key)?)
                })?;
            }
            // An undefined value has no JSON in Python either.
            _ => return Err(invalid("this has no JSON")),
        }
        Ok(())
    }

    fn items(
        &mut self,
        open: char,
        close: char,
        items: &[Value],
        mut write: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        self.depth += 1;
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.out.push_str(self.separators.0);
            }
            self.break_line();
            write(self, item)?;
        }
        self.depth -= 1;
        if !items.is_empty() {
            self.break_line();
        }
        self.out.push(close);
        Ok(())
    }

    fn break_line(&mut self) {
        if let Some(indent) = self.style.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * self.depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                other if other < ' ' || (self.style.ascii && other > '~') => {
                    for unit in other.encode_utf16(&mut [0; 2]) {
                        // Writing to a string does not fail.
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                other => self.out.push(other),
            }
        }
        self.out.push('"');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(serde_json::Value::from),
            any::<i64>().prop_map(serde_json::Value::from),
            any::<f64>().prop_map(serde_json::Value::from),
            any::<String>().prop_map(serde_json::Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(serde_json::Value::from),
                prop::collection::hash_map(any::<String>(), inner, 0..6)
                    .prop_map(|members| members.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_says_what_was_read(
            value in any_json(),
            indent in prop::option::of(0_usize..5),
            ascii in any::<bool>(),
            sorted in any::<bool>(),
        ) {
            let read: Value = serde_json::from_value(value.clone()).unwrap();
            let written = json(&read, &JsonStyle { ascii, indent, separators: None, sorted }).unwrap();
            prop_assert!(!ascii || written.is_ascii());
            let again: serde_json::Value = serde_json::from_str(&written).unwrap();
            prop_assert_eq!(again, value);
        }
    }

    #[test]
    fn json_is_written_as_python_does() {
        let value = serde_json::from_value::<Value>(json!({"b": [1, 2.5, {}], "a": "ü\"\n\u{1}"})).unwrap();
        let written = |style: JsonStyle| json(&value, &style).unwrap();
        assert!(written(JsonStyle::default()).contains("[1, 2.5, {}]"));
        let sorted =
            written(JsonStyle { sorted: true, indent: Some(2), ascii: true, ..JsonStyle::default() });
        assert_eq!(
            sorted,
            "{\n  \"a\": \"\\u00fc\\\"\\n\\u0001\",\n  \"b\": [\n    1,\n    2.5,\n    {}\n  ]\n}"
        );
        assert!(json(&Value::UNDEFINED, &JsonStyle::default()).is_err());
    }

    #[test]
    fn floats_are_written_as_python_does() {
        let written = [0.0, 1.0, -0.1, 1e15, 1e16, 1.5e300, 1e-4, 1.25e-5].map(float);
        assert_eq!(
            written,
            ["0.0", "1.0", "-0.1", "1000000000000000.0", "1e+16", "1.5e+300", "0.0001", "1.25e-05"]
        );
    }
}
