//! Files of a model: its chat template, special tokens and architecture.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{ChatSetup, SpecialTokens, TemplateError};

/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// A template by itself; it goes before one in the tokenizer's configuration.
const TEMPLATE: &str = "chat_template.jinja";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const CONFIG: &str = "config.json";

/// Special tokens by which a template may call them.
const TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Parts of names of architectures whose chats SGLang encodes without a template of the model, or changes before it renders them
/// (0.5.23, `chat_encoding.py`, `python_chat_template.py` and `serving_chat.py`).
const ENCODED: [&str; 7] =
    ["DeepseekV4", "KimiK3", "InklingFor", "GlmMoeDsa", "Glm5Next", "MiniMaxM3", "HunYuan"];

/// Types of models of which that is so, for chats by one API at least: with `gpt_oss` SGLang speaks Harmony on `/v1/responses`, and of `beam`
/// it changes the tools there (`serving_responses.py`).
const KINDS: [&str; 4] = ["deepseek_v41", "minimax_m3_vl", "gpt_oss", "beam"];

/// Members of a configuration that only models have that take more than text.
const MEDIA: [&str; 4] = ["vision_config", "audio_config", "vision_tower", "thinker_config"];

pub(super) fn directory(tokenizer: &Path) -> PathBuf {
    match tokenizer.parent() {
        Some(parent) if !tokenizer.is_dir() => parent.to_owned(),
        _ => tokenizer.to_owned(),
    }
}

/// Refuses models that SGLang renders in a way of its own.
pub(super) fn check_model(setup: &ChatSetup, directory: &Path) -> Result<(), TemplateError> {
    let own = Path::new(&setup.model).join(CONFIG);
    let path = if own.is_file() { own } else { directory.join(CONFIG) };
    let config = json(&path)?.ok_or_else(|| TemplateError::File {
        path: path.clone(),
        problem:
            "there is none, and so it is not known whether the model's chats are rendered by its template"
                .to_owned(),
    })?;
    let names = config["architectures"].as_array().into_iter().flatten().filter_map(Value::as_str);
    for name in names {
        if ENCODED.iter().any(|part| name.contains(part)) {
            return Err(TemplateError::Model(format!("the model's architecture is {name}")));
        }
    }
    let kind = config["model_type"].as_str().unwrap_or_default();
    if KINDS.contains(&kind) {
        return Err(TemplateError::Model(format!("the model's type is {kind}")));
    }
    let media = MEDIA.iter().any(|member| config.get(*member).is_some_and(|value| !value.is_null()));
    if media { Err(TemplateError::Media) } else { Ok(()) }
}

/// The tokenizer's configuration; empty if there is none.
pub(super) fn tokenizer_config(directory: &Path) -> Result<Value, TemplateError> {
    Ok(json(&directory.join(TOKENIZER_CONFIG))?.unwrap_or(Value::Null))
}

/// The template that the model comes with.
pub(super) fn source(directory: &Path, config: &Value, named: Option<&str>) -> Result<String, TemplateError> {
    let path = directory.join(TEMPLATE);
    let further = directory.join("additional_chat_templates");
    if let Some(text) = read(&path)? {
        // Beside others it is called "default", and stands first.
        return match named {
            Some(named) if further.is_dir() && named != "default" => {
                text_of(&further.join(format!("{named}.jinja")), || TemplateError::Named(named.to_owned()))
            }
            _ => Ok(text),
        };
    }
    match &config["chat_template"] {
        Value::String(text) => Ok(text.clone()),
        Value::Array(several) => {
            let is_meant = |entry: &&Value| named.is_none_or(|named| entry["name"] == named);
            let found = several.iter().find(is_meant).and_then(|entry| entry["template"].as_str());
            found
                .map(str::to_owned)
                .ok_or_else(|| TemplateError::Named(named.unwrap_or("default").to_owned()))
        }
        _ => Err(TemplateError::None(directory.to_owned())),
    }
}

/// The special tokens that a template may name.
pub(super) fn special_tokens(directory: &Path, config: &Value) -> Result<SpecialTokens, TemplateError> {
    // The library reads the older file only where the configuration does not list all added tokens.
    let map = match config.get("added_tokens_decoder") {
        Some(_) => Value::Null,
        None => json(&directory.join(SPECIAL_TOKENS))?.unwrap_or(Value::Null),
    };
    let content = |token: &Value| token.as_str().or(token["content"].as_str()).map(str::to_owned);
    // Where both speak of a token, it has the last word.
    let found = |name: &str| content(&map[name]).or_else(|| content(&config[name]));
    Ok(TOKENS.iter().filter_map(|name| Some(((*name).to_owned(), found(name)?))).collect())
}

/// The text of a file that must be there.
pub(super) fn text(path: &Path) -> Result<String, TemplateError> {
    text_of(path, || TemplateError::File {
        path: path.to_owned(),
        problem: "there is no such file".to_owned(),
    })
}

fn text_of(path: &Path, none: impl FnOnce() -> TemplateError) -> Result<String, TemplateError> {
    read(path)?.ok_or_else(none)
}

fn json(path: &Path) -> Result<Option<Value>, TemplateError> {
    let broken = |error: serde_json::Error| TemplateError::File {
        path: path.to_owned(),
        problem: format!("it is not JSON: {error}"),
    };
    read(path)?.map(|text| serde_json::from_str(&text).map_err(broken)).transpose()
}

/// `None` if there is no such file.
fn read(path: &Path) -> Result<Option<String>, TemplateError> {
    let failed = |problem: String| TemplateError::File { path: path.to_owned(), problem };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(failed(error.to_string())),
    };
    let mut text = String::new();
    let length = file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text);
    let length = length.map_err(|error| failed(error.to_string()))?;
    if length as u64 > MAX_FILE_BYTES {
        return Err(failed(format!("it has more than {MAX_FILE_BYTES} bytes")));
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    struct Model(tempfile::TempDir);

    impl Model {
        fn with(files: &[(&str, Value)]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            for (name, content) in files {
                let path = directory.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                let text = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
                fs::write(path, text).unwrap();
            }
            Self(directory)
        }

        fn source(&self, named: Option<&str>) -> Result<String, String> {
            let config = tokenizer_config(self.0.path()).map_err(|error| error.to_string())?;
            source(self.0.path(), &config, named).map_err(|error| error.to_string())
        }
    }

    #[test]
    fn templates_are_found_where_the_library_looks() {
        let file = ("chat_template.jinja", json!("file"));
        let string = ("tokenizer_config.json", json!({"chat_template": "string"}));
        let several = json!([{"name": "a", "template": "A"}, {"name": "b", "template": "B"}]);
        let several = ("tokenizer_config.json", json!({"chat_template": several}));
        assert_eq!(Model::with(&[file.clone(), string.clone()]).source(None).unwrap(), "file");
        assert_eq!(Model::with(&[string]).source(Some("x")).unwrap(), "string");
        let several = Model::with(&[several]);
        assert_eq!(
            (several.source(None).unwrap(), several.source(Some("b")).unwrap()),
            ("A".into(), "B".into())
        );
        assert!(several.source(Some("c")).unwrap_err().contains("\"c\""));
        let further = Model::with(&[file, ("additional_chat_templates/b.jinja", json!("more"))]);
        assert_eq!(
            (further.source(None).unwrap(), further.source(Some("b")).unwrap()),
            ("file".into(), "more".into())
        );
        assert!(Model::with(&[]).source(None).unwrap_err().contains("no chat template"));
        assert!(
            Model::with(&[("tokenizer_config.json", json!("{"))]).source(None).unwrap_err().contains("JSON")
        );
    }

    #[test]
    fn special_tokens_are_read_in_either_form() {
        let config =
            json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}, "pad_token": null});
        let model = Model::with(&[("special_tokens_map.json", json!({"bos_token": {"content": "<b>"}}))]);
        let tokens = special_tokens(model.0.path(), &config).unwrap();
        assert_eq!(
            tokens.into_iter().collect::<Vec<_>>(),
            [("bos_token".to_owned(), "<b>".to_owned()), ("eos_token".to_owned(), "</s>".to_owned())]
        );
    }

    #[test]
    fn the_older_file_counts_only_where_added_tokens_are_not_listed() {
        let model = Model::with(&[("special_tokens_map.json", json!({"bos_token": "<b>"}))]);
        let bos = |config: Value| special_tokens(model.0.path(), &config).unwrap()["bos_token"].clone();
        assert_eq!(bos(json!({"bos_token": "<s>"})), "<b>");
        assert_eq!(bos(json!({"bos_token": "<s>", "added_tokens_decoder": {}})), "<s>");
    }

    #[test]
    fn models_that_are_rendered_otherwise_are_found_out() {
        let refused = |config: Option<Value>| {
            let files: Vec<_> = config.into_iter().map(|config| ("config.json", config)).collect();
            let model = Model::with(&files);
            let checked = check_model(&ChatSetup::default(), model.0.path());
            checked.err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(refused(Some(json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))), "");
        assert!(refused(None).contains("config.json"));
        assert!(refused(Some(json!({"architectures": ["DeepseekV4ForCausalLM"]}))).contains("DeepseekV4"));
        for kind in ["minimax_m3_vl", "gpt_oss"] {
            assert!(refused(Some(json!({"model_type": kind}))).contains(kind));
        }
        assert!(refused(Some(json!({"vision_config": {}}))).contains("more than text"));
    }
}
