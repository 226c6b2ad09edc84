//! The Jinja of Hugging Face's `apply_chat_template`, as far as minijinja differs from it.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};

use crate::RenderError;
use crate::python;

/// Most steps of one rendering; what is made costs too, a step for every 64 bytes. A chat of a thousand messages takes some hundred
/// thousand.
const FUEL: u64 = 1_000_000;

/// Most levels of recursion: a rendering must not use up the stack of the thread that it runs on.
const RECURSION: usize = 150;

/// Details of errors by which their cause is known again.
const RAISED: &str = "raise_exception";
const TIME: &str = "strftime_now";
const NOT_JINJAS: &str = "Jinja's own filter does not do this";

pub(crate) fn environment() -> Environment<'static> {
    let mut environment = of_jinja();
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", |_: Value| -> Result<Value, Error> { Err(failed(RAISED)) });
    environment.add_function("strftime_now", |_: Value| -> Result<Value, Error> { Err(failed(TIME)) });
    environment
}

/// Without what the library adds.
pub(crate) fn of_jinja() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(syntax());
    environment.set_recursion_limit(RECURSION);
    environment.set_fuel(Some(FUEL));
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(|output, _, value| {
        output.write_str(&python::text(value)?)?;
        Ok(())
    });
    environment.add_filter("tojson", tojson_of_jinja);
    environment.add_filter("string", |value: Value| python::text(&value).map(|text| text.into_owned()));
    // In Python whatever has a length and can be indexed is a sequence, and texts and mappings can be iterated over.
    environment.add_test("sequence", |value: Value| is_container(&value));
    environment.add_test("iterable", |value: Value| {
        is_container(&value) || matches!(value.kind(), ValueKind::Iterable | ValueKind::Undefined)
    });
    environment
}

/// Line breaks after statements and white space before them are none of the text.
fn syntax() -> SyntaxConfig {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    syntax.expect("the usual delimiters do not contradict each other")
}

fn is_container(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map)
}

fn failed(detail: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail)
}

/// Hugging Face's `tojson`: Python's `json.dumps` without escapes for HTML.
fn tojson(value: Value, options: Kwargs) -> Result<String, Error> {
    let style = python::JsonStyle {
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        indent: options.get::<Option<usize>>("indent")?,
        separators: options.get::<Option<Vec<String>>>("separators")?,
        sorted: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    python::json(&value, &style)
}

/// Jinja's own has but one option. It escapes more; nobody looks at that.
fn tojson_of_jinja(value: Value, options: Kwargs) -> Result<String, Error> {
    if value.is_undefined() || options.args().any(|option| option != "indent") {
        return Err(failed(NOT_JINJAS));
    }
    tojson(value, options)
}

/// Whether Jinja fails, too: for want of what the library adds, functions and variables.
pub(crate) fn fails_in_jinja(error: &Error) -> bool {
    // It takes no undefined value for an operand, and only that is certain of what stands beside it.
    let is_operand = |detail: &str| {
        detail.starts_with("tried to use") && detail.split(' ').any(|word| word == "undefined")
    };
    causes(error).any(|cause| match cause.detail() {
        _ if cause.kind() == ErrorKind::UnknownFunction => true,
        Some(detail) => detail == NOT_JINJAS || is_operand(detail),
        None => false,
    })
}

/// Why a rendering failed.
pub(crate) fn reason(error: &Error) -> RenderError {
    let known = |error: &Error| match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => Some(RenderError::Fuel),
        (_, Some(RAISED)) => Some(RenderError::Refused),
        (_, Some(TIME)) => Some(RenderError::Time),
        _ => None,
    };
    causes(error).find_map(known).unwrap_or(RenderError::Failed)
}

/// An error, and what it came from.
fn causes(error: &Error) -> impl Iterator<Item = &Error> {
    std::iter::successors(Some(error), |error| {
        std::error::Error::source(*error).and_then(|source| source.downcast_ref::<Error>())
    })
}

/// Templates mark what an assistant generated for training; for rendering the marks mean nothing.
pub(crate) fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, statement) = rest.split_at(at);
        out.push_str(before);
        let Some(end) = statement.find("%}") else {
            rest = statement;
            break;
        };
        let (statement, after) = statement.split_at(end + 2);
        let inner = statement[2..end].trim_matches(['-', '+']).trim();
        match inner {
            "generation" => out.push_str(&statement.replacen(inner, "if true", 1)),
            "endgeneration" => out.push_str(&statement.replacen(inner, "endif", 1)),
            _ => out.push_str(statement),
        }
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, RenderError> {
        let environment = environment();
        let template = environment.template_from_str(source).unwrap();
        let x: Value = serde_json::from_str(r#"{"b": [1, 2.5], "a": "ü<"}"#).unwrap();
        template.render(Value::from_pairs([("x", x)])).map_err(|error| reason(&error))
    }

    #[test]
    fn causes_of_failures_are_known_again() {
        assert_eq!(render("{{ raise_exception('a' ~ x.a) }}"), Err(RenderError::Refused));
        assert_eq!(
            render("{% macro m() %}{{ raise_exception('a') }}{% endmacro %}{{ m() }}"),
            Err(RenderError::Refused)
        );
        assert_eq!(
            render("{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}"),
            Err(RenderError::Time)
        );
        assert_eq!(render("{{ x.nothing.more }}"), Err(RenderError::Failed));
        let endless =
            "{% macro m(n) %}{% for i in range(90000) %}{{ n }}{% endfor %}{% endmacro %}{{ m(m(m(1))) }}";
        assert_eq!(render(endless), Err(RenderError::Fuel));
        let doubling = format!("{{% set s = 'x' %}}{}{{{{ s|length }}}}", "{% set s = s ~ s %}".repeat(40));
        assert_eq!(render(&doubling), Err(RenderError::Fuel));
    }

    #[test]
    fn recursion_ends() {
        assert_eq!(render("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"), Err(RenderError::Failed));
    }

    #[test]
    fn marks_of_generation_are_passed_over() {
        let source = "a\n{%- generation -%} b {% endgeneration %}\nc{{ '{% generation' }}";
        assert_eq!(
            without_generation_marks(source),
            "a\n{%- if true -%} b {% endif %}\nc{{ '{% generation' }}"
        );
        assert_eq!(without_generation_marks("{% x"), "{% x");
    }

    #[test]
    fn containers_are_not_printed() {
        assert_eq!(render("{{ x }}"), Err(RenderError::Failed));
        assert_eq!(render("{{ x | string }}"), Err(RenderError::Failed));
        assert_eq!(render("{{ true }}{{ none }}{{ 1e16 }}{{ 2.0|string }}").unwrap(), "TrueNone1e+162.0");
    }
}
