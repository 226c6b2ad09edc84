//! What an engine says of how it renders chats.

use std::sync::Arc;

use serde_json::Value;

use super::TemplateError;

/// How an engine says that it renders chats.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatSetup {
    /// Path or name of the model.
    pub model: String,
    /// The template that the server was given: a file, or a name.
    pub argument: Option<String>,
    /// Which of several templates of the model it uses.
    pub named: Option<String>,
    /// Why its chats are not rendered by a template of the model, if that is said.
    pub why_not: Option<Arc<str>>,
}

/// Parsers of tool calls that stand for an encoding of their own (SGLang 0.5.23, `chat_encoding.py`, and what `serving_chat.py` does to
/// requests by them).
const ENCODING_PARSERS: [&str; 6] =
    ["deepseekv41", "deepseekv4", "deepseekv32", "kimi_k3", "muse", "mistral"];

/// Parsers of reasoning that change what a template is given.
const CHANGING_PARSERS: [&str; 1] = ["hunyuan"];

/// Parts of names of models that SGLang has conversations of its own for (`conversation.py`, its matching functions).
const CONVERSATIONS: [&str; 12] = [
    "points",
    "moss",
    "internvl",
    "janus",
    "vicuna",
    "llava",
    "vl2",
    "minicpm-",
    "phi-4-multimodal",
    "ocr",
    "unlimited",
    "whisper",
];

impl ChatSetup {
    /// Reads it from the answer of `/server_info`.
    pub(crate) fn read(answer: &Value) -> Self {
        let text = |name: &str| answer.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let owned = |name: &str| text(name).map(str::to_owned);
        Self {
            model: owned("model_path").unwrap_or_default(),
            argument: owned("chat_template"),
            named: owned("hf_chat_template_name"),
            why_not: why_not(answer, text),
        }
    }

    /// `have_file`: the agent was given a template.
    pub(super) fn check(&self, have_file: bool) -> Result<(), TemplateError> {
        let why = |reason: &str| Err(TemplateError::Setup(reason.into()));
        if let Some(reason) = &self.why_not {
            return Err(TemplateError::Setup(reason.clone()));
        }
        match &self.argument {
            Some(argument) if !argument.ends_with(".jinja") => {
                why("the server was given a conversation as --chat-template")
            }
            Some(_) if !have_file => why(
                "the server was given a file as --chat-template: give it to the agent, too, with --chat-template",
            ),
            _ => Ok(()),
        }
    }

    /// A template from a file, as the server takes it.
    pub(super) fn as_given(&self, text: String) -> String {
        match self.argument {
            Some(_) => text.trim_matches('\n').replace("\\n", "\n"),
            None => text,
        }
    }
}

fn why_not<'a>(answer: &Value, text: impl Fn(&str) -> Option<&'a str>) -> Option<Arc<str>> {
    if let Some(frontend) = text("frontend").filter(|frontend| *frontend != "python") {
        return Some(format!("its front end is {frontend:?}, which renders by itself").into());
    }
    if answer.get("skip_tokenizer_init").and_then(Value::as_bool) == Some(true) {
        return Some("it runs without a tokenizer (--skip-tokenizer-init)".into());
    }
    if let Some(mode) = text("tokenizer_mode").filter(|mode| !["auto", "slow", "fast"].contains(mode)) {
        return Some(format!("it runs with --tokenizer-mode {mode}").into());
    }
    if answer.get("default_chat_template_kwargs").is_some_and(|kwargs| !kwargs.is_null()) {
        return Some("it gives templates variables of its own (--default-chat-template-kwargs)".into());
    }
    let parsers = [("tool_call_parser", &ENCODING_PARSERS[..]), ("reasoning_parser", &CHANGING_PARSERS[..])];
    for (name, special) in parsers {
        if let Some(parser) = text(name).filter(|parser| special.contains(parser)) {
            return Some(format!("its {name} is {parser}, with which it renders in a way of its own").into());
        }
    }
    let path = text("model_path").unwrap_or_default().to_lowercase();
    let found = CONVERSATIONS.iter().find(|part| path.contains(**part));
    found.map(|part| format!("SGLang has conversations of its own for models named like {part:?}").into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn servers_that_render_otherwise_are_found_out() {
        let refused = |answer: Value, have_file: bool| {
            ChatSetup::read(&answer).check(have_file).err().map(|error| error.to_string()).unwrap_or_default()
        };
        for plain in [
            json!({}),
            json!({"frontend": "python", "model_path": "/m/llama", "tool_call_parser": "llama3", "chat_template": null,
                "tokenizer_mode": "auto", "skip_tokenizer_init": false, "default_chat_template_kwargs": null}),
        ] {
            assert_eq!(refused(plain, false), "");
        }
        for (answer, word) in [
            (json!({"frontend": "rust"}), "rust"),
            (json!({"skip_tokenizer_init": true}), "skip-tokenizer-init"),
            (json!({"tokenizer_mode": "mistral"}), "mistral"),
            (json!({"default_chat_template_kwargs": {"enable_thinking": false}}), "variables"),
            (json!({"tool_call_parser": "kimi_k3"}), "kimi_k3"),
            (json!({"reasoning_parser": "hunyuan"}), "hunyuan"),
            (json!({"model_path": "org/Vicuna-7b"}), "vicuna"),
            (json!({"chat_template": "chatml"}), "conversation"),
            (json!({"chat_template": "/t.json"}), "conversation"),
        ] {
            assert!(refused(answer.clone(), true).contains(word), "{answer}");
        }
        let given = json!({"chat_template": "/t.jinja"});
        assert!(refused(given.clone(), false).contains("--chat-template"));
        assert_eq!(refused(given.clone(), true), "");
        assert_eq!(ChatSetup::read(&given).as_given("\n{{ 'a\\nb' }}\n".to_owned()), "{{ 'a\nb' }}");
    }
}
