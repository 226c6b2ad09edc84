//! Server-sent events out of chunks that end anywhere, and what a router's clients read in them.

use serde::{Deserialize, Serialize};

/// The route that requests are sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Api {
    /// SGLang's own, `/generate`, with `input_ids`.
    Generate,
    /// `/v1/completions`, with the prompt as token ids.
    Completions,
}

/// What engines say of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    /// Times the engine put it back.
    pub(super) retractions: u64,
}

/// Events of one answer.
#[derive(Debug)]
pub(super) struct Events {
    api: Api,
    pending: Vec<u8>,
    /// The last event that is not the end's mark.
    last: Vec<u8>,
    text: String,
    pub(super) usage: Option<Usage>,
    /// A token has come.
    pub(super) begun: bool,
    /// The stream said that it was complete.
    pub(super) ended: bool,
    /// An event said that the request failed.
    pub(super) failed: bool,
}

/// An event that is not what the API says.
#[derive(Debug, thiserror::Error)]
#[error("an event is not what this route's are")]
pub(super) struct NotAnEvent;

#[derive(Serialize)]
struct Generate<'a> {
    input_ids: &'a [u32],
    sampling_params: Sampling,
    stream: bool,
}

#[derive(Serialize)]
struct Sampling {
    max_new_tokens: usize,
    temperature: f64,
    ignore_eos: bool,
}

#[derive(Serialize)]
struct Complete<'a> {
    model: &'a str,
    prompt: &'a [u32],
    max_tokens: usize,
    temperature: f64,
    ignore_eos: bool,
    stream: bool,
    stream_options: StreamOptions,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Deserialize)]
struct Native {
    #[serde(default)]
    output_ids: Vec<u32>,
    meta_info: Meta,
}

#[derive(Deserialize)]
struct Meta {
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: usize,
    #[serde(default)]
    cached_tokens: u64,
    #[serde(default)]
    num_retractions: u64,
}

#[derive(Deserialize)]
struct Completion {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<CompletionUsage>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    text: String,
}

#[derive(Deserialize)]
struct CompletionUsage {
    prompt_tokens: u64,
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: u64,
}

impl Api {
    /// Its path.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Generate => "/generate",
            Self::Completions => "/v1/completions",
        }
    }

    /// A request for so many tokens.
    pub(super) fn body(self, model: &str, prompt: &[u32], output_tokens: usize) -> String {
        let body = match self {
            Self::Generate => serde_json::to_string(&Generate {
                input_ids: prompt,
                sampling_params: Sampling {
                    max_new_tokens: output_tokens,
                    temperature: 0.0,
                    ignore_eos: true,
                },
                stream: true,
            }),
            Self::Completions => serde_json::to_string(&Complete {
                model,
                prompt,
                max_tokens: output_tokens,
                temperature: 0.0,
                ignore_eos: true,
                stream: true,
                stream_options: StreamOptions { include_usage: true },
            }),
        };
        body.expect("numbers and text are JSON")
    }
}

impl Events {
    pub(super) fn of(api: Api) -> Self {
        Self {
            api,
            pending: Vec::new(),
            last: Vec::new(),
            text: String::new(),
            usage: None,
            begun: false,
            ended: false,
            failed: false,
        }
    }

    /// Takes in what has come.
    pub(super) fn push(&mut self, chunk: &[u8]) -> Result<(), NotAnEvent> {
        self.pending.extend_from_slice(chunk);
        let mut from = 0;
        while let Some(end) = memchr::memmem::find(&self.pending[from..], b"\n\n") {
            let event = self.pending[from..from + end].to_vec();
            from += end + 2;
            self.take(&event)?;
        }
        self.pending.drain(..from);
        Ok(())
    }

    /// The ids of what was generated; nothing where the answer does not tell.
    pub(super) fn output(&self) -> Vec<u32> {
        match self.api {
            Api::Generate => {
                let last: Option<Native> = serde_json::from_slice(&self.last).ok();
                // Servers may send each event's own tokens alone; what came before is not kept.
                let all = last.filter(|last| last.output_ids.len() == last.meta_info.completion_tokens);
                all.map(|last| last.output_ids).unwrap_or_default()
            }
            // Only the simulator's words name their tokens.
            Api::Completions => {
                let ids = self.text.split_whitespace().map(|word| word.strip_prefix('w')?.parse().ok());
                ids.collect::<Option<Vec<u32>>>().unwrap_or_default()
            }
        }
    }

    fn take(&mut self, event: &[u8]) -> Result<(), NotAnEvent> {
        // Comments, which keep connections alive, and blank lines before an event say nothing.
        let Some(data) = event.trim_ascii().strip_prefix(b"data:") else { return Ok(()) };
        let data = data.trim_ascii();
        if data == b"[DONE]" {
            self.ended = true;
        } else if data.starts_with(b"{\"error\"") {
            self.failed = true;
        } else {
            match self.api {
                Api::Generate => self.native(data)?,
                Api::Completions => self.completion(data)?,
            }
        }
        Ok(())
    }

    fn native(&mut self, data: &[u8]) -> Result<(), NotAnEvent> {
        if !self.begun {
            let Native { meta_info, .. } = serde_json::from_slice(data).map_err(|_| NotAnEvent)?;
            self.usage = Some(meta_info.usage());
            self.begun = true;
        }
        self.last = data.to_vec();
        Ok(())
    }

    fn completion(&mut self, data: &[u8]) -> Result<(), NotAnEvent> {
        let event: Completion = serde_json::from_slice(data).map_err(|_| NotAnEvent)?;
        if let Some(choice) = event.choices.first() {
            self.begun |= !choice.text.is_empty();
            self.text.push_str(&choice.text);
        }
        if let Some(usage) = event.usage {
            let cached_tokens = usage.prompt_tokens_details.map_or(0, |details| details.cached_tokens);
            self.usage = Some(Usage { prompt_tokens: usage.prompt_tokens, cached_tokens, retractions: 0 });
        }
        Ok(())
    }

    /// Times that the engine put the request back, as of its last event.
    pub(super) fn retractions(&self) -> u64 {
        let last: Option<Native> = serde_json::from_slice(&self.last).ok();
        last.map_or(0, |last| last.meta_info.num_retractions)
    }
}

impl Meta {
    fn usage(&self) -> Usage {
        let Self { prompt_tokens, cached_tokens, num_retractions: retractions, .. } = *self;
        Usage { prompt_tokens, cached_tokens, retractions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_across_chunks() {
        let mut events = Events::of(Api::Generate);
        let whole = concat!(
            ": keep-alive\n\n",
            r#"data: {"text":" w7","output_ids":[7],"meta_info":{"prompt_tokens":9,"completion_tokens":1,"cached_tokens":4}}"#,
            "\n\n",
            r#"data: {"text":" w7 w8","output_ids":[7,8],"meta_info":{"prompt_tokens":9,"completion_tokens":2,"cached_tokens":4}}"#,
            "\n\ndata: [DONE]\n\n"
        );
        let (mut begun_at, bytes) = (None, whole.as_bytes());
        for (at, byte) in bytes.chunks(7).enumerate() {
            events.push(byte).unwrap();
            if events.begun {
                begun_at.get_or_insert(at);
            }
        }
        assert!(begun_at < Some(bytes.len() / 7 - 10), "the first token is seen when it comes: {begun_at:?}");
        assert_eq!(events.usage, Some(Usage { prompt_tokens: 9, cached_tokens: 4, retractions: 0 }));
        assert_eq!(events.output(), [7, 8]);
        assert!(events.ended && !events.failed);
    }

    #[test]
    fn completions_tell_their_usage_last() {
        let mut events = Events::of(Api::Completions);
        events.push(b"data: {\"choices\":[{\"text\":\" w5\"}]}\n\ndata: {\"choices\":[{\"text\":\" w6\"}],\"usage\":null}\n\n").unwrap();
        assert!(events.begun && events.usage.is_none() && !events.ended);
        let usage =
            r#"data: {"choices":[],"usage":{"prompt_tokens":3,"prompt_tokens_details":{"cached_tokens":2}}}"#;
        events.push(format!("{usage}\n\ndata: [DONE]\n\n").as_bytes()).unwrap();
        assert_eq!(events.usage.map(|usage| usage.cached_tokens), Some(2));
        assert_eq!(events.output(), [5, 6]);
    }

    #[test]
    fn what_is_no_answer_is_told_apart() {
        let mut events = Events::of(Api::Generate);
        events.push(b"data: {\"error\":{\"message\":\"gone\"}}\n\n").unwrap();
        assert!(events.failed && !events.begun);
        assert!(Events::of(Api::Generate).push(b"data: {\"hello\":1}\n\n").is_err());
        let deltas = r#"data: {"output_ids":[8],"meta_info":{"prompt_tokens":9,"completion_tokens":2}}"#;
        events.push(format!("{deltas}\n\n").as_bytes()).unwrap();
        assert_eq!(events.output(), [0_u32; 0], "one event's tokens are not the answer");
    }
}
