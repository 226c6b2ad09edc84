//! Templates rendered here and by SGLang's own code over Hugging Face's: the same text. `fixtures/README.md` says how that was made.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::BTreeMap;
use std::path::Path;

use chat_template::{ChatTemplate, RenderError, Source};
use serde::Deserialize;
use serde_json::value::RawValue;

#[derive(Deserialize)]
struct Fixtures {
    special_tokens: BTreeMap<String, BTreeMap<String, String>>,
    /// As they are sent: the order of members counts.
    bodies: Vec<Box<RawValue>>,
    cases: Vec<Case>,
}

/// Those of APIs other than that of chats.
#[derive(Deserialize)]
struct OtherApis {
    bodies: BTreeMap<String, Vec<Box<RawValue>>>,
    cases: Vec<OtherCase>,
}

#[derive(Deserialize)]
struct OtherCase {
    api: String,
    #[serde(flatten)]
    case: Case,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    body: usize,
    /// `None` where it fails there.
    rendered: Option<String>,
}

fn file(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

fn fixtures() -> Fixtures {
    serde_json::from_str(&file("rendered.json")).unwrap()
}

fn template(fixtures: &Fixtures, name: &str) -> ChatTemplate {
    let source = file(&format!("{name}.jinja"));
    let special_tokens = fixtures.special_tokens[name].clone();
    ChatTemplate::compile(Source { source, special_tokens, leading: String::new() }).unwrap()
}

#[test]
fn chats_come_out_as_the_engine_renders_them() {
    let fixtures = fixtures();
    let mut rendered = 0;
    for case in &fixtures.cases {
        let body = fixtures.bodies[case.body].get();
        let got = template(&fixtures, &case.template).render(body.as_bytes());
        match (&case.rendered, got) {
            (_, Err(RenderError::Time)) => assert_eq!(case.template, "time"),
            (Some(expected), Ok(got)) => {
                assert_eq!(&got, expected, "{}: {body}", case.template);
                rendered += 1;
            }
            (None, Err(_)) => {}
            (expected, got) => panic!("{}: {body}\nexpected {expected:?}\ngot {got:?}", case.template),
        }
    }
    assert!(rendered > 100, "{rendered}");
}

#[test]
fn other_apis_come_out_as_the_engine_renders_them() {
    let fixtures = fixtures();
    let others: OtherApis = serde_json::from_str(&file("other_apis.json")).unwrap();
    let mut rendered: BTreeMap<&str, usize> = BTreeMap::new();
    for OtherCase { api, case } in &others.cases {
        let body = others.bodies[api][case.body].get();
        let template = template(&fixtures, &case.template);
        let got = match &**api {
            "responses" => template.render_responses(body.as_bytes()),
            "messages" => template.render_messages(body.as_bytes()),
            "ollama" => template.render_ollama(body.as_bytes()),
            other => panic!("{other}"),
        };
        match (&case.rendered, got) {
            (Some(_), Err(RenderError::Time)) => assert_eq!(case.template, "time"),
            (Some(expected), Ok(got)) => {
                assert_eq!(&got, expected, "{api}, {}: {body}", case.template);
                *rendered.entry(api).or_default() += 1;
            }
            (None, Err(_)) => {}
            (expected, got) => {
                panic!("{api}, {}: {body}\nexpected {expected:?}\ngot {got:?}", case.template)
            }
        }
    }
    assert!(
        rendered["responses"] > 190 && rendered["messages"] > 40 && rendered["ollama"] > 15,
        "{rendered:?}"
    );
}

#[test]
fn what_the_tokenizer_adds_by_itself_is_left_out() {
    let fixtures = fixtures();
    let special_tokens = fixtures.special_tokens["llama"].clone();
    let source = file("llama.jinja");
    let of = |leading: &str| {
        let (source, special_tokens) = (source.clone(), special_tokens.clone());
        ChatTemplate::compile(Source { source, special_tokens, leading: leading.to_owned() }).unwrap()
    };
    let body = br#"{"messages":[{"role":"user","content":"a"}]}"#;
    let (whole, rest) = (of(""), of("<|begin_of_text|>"));
    assert_eq!(whole.render(body).unwrap(), format!("<|begin_of_text|>{}", rest.render(body).unwrap()));
    assert_eq!(of("<bos>").render(body), Err(RenderError::Leading));
}

#[test]
fn what_is_not_known_to_come_out_alike_is_not_rendered() {
    let fixtures = fixtures();
    let template = template(&fixtures, "parts");
    let reason = |body: &str| template.render(body.as_bytes()).unwrap_err();
    let user = |content: &str| format!(r#"{{"messages":[{{"role":"user","content":{content}}}]}}"#);
    let image = r#"[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"u"}}]"#;
    assert_eq!(reason(&user(image)), RenderError::Parts);
    for fields in [
        r#""reasoning":{"effort":"low"}"#,
        r#""chat_template_kwargs":{"chat_template":"x"}"#,
        r#""chat_template_kwargs":{"add_generation_prompt":false}"#,
        r#""tools":[{"function":{"name":"f"},"defer_loading":true}]"#,
        r#""tools":[{"function":{"name":"f","parameters":{"anyOf":[{"type":["string","int"]}]}}}]"#,
    ] {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"a"}}],{fields}}}"#);
        assert_eq!(reason(&body), RenderError::Fields, "{fields}");
    }
    let prefix = r#"{"messages":[{"role":"assistant","content":"a","prefix":true}]}"#;
    assert_eq!(reason(prefix), RenderError::Fields);
    for body in [
        "",
        "{}",
        r#"{"messages":[]}"#,
        r#"{"messages":"a"}"#,
        r#"{"messages":[{"role":"stranger","content":"a"}]}"#,
        r#"{"messages":[{"role":"user"}]}"#,
        r#"{"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"no"}}]},{"role":"user","content":"a"}]}"#,
        r#"{"messages":[{"role":"user","content":"a"}],"tools":[{"function":{}}]}"#,
        r#"{"messages":[{"role":"user","content":"a"}],"tool_choice":"perhaps"}"#,
        r#"{"messages":[{"role":"user","content":"a"}],"reasoning_effort":"much"}"#,
        r#"{"messages":[{"role":"user","content":"a"}],"chat_template_kwargs":[1]}"#,
    ] {
        assert_eq!(reason(body), RenderError::Form, "{body}");
    }
}

#[test]
fn templates_are_bounded() {
    let compile = |source: &str| {
        ChatTemplate::compile(Source { source: source.to_owned(), ..Source::default() }).map(|_| ())
    };
    let error = compile("{% for %}").unwrap_err().to_string();
    assert!(error.contains("cannot be read"), "{error}");
    let large = "x".repeat(chat_template::MAX_SOURCE_BYTES + 1);
    assert!(compile(&large).unwrap_err().to_string().contains("too large"));
}
