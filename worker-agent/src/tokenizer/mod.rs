//! The bytes that a model's tokens stand for.
//!
//! An agent never tokenizes: it turns the tokens that the engine reports back into the text that they were cut from. That is a
//! look-up of bytes, and exact for tokenizers that cut bytes and lose none, which is how those of GPT-2, Llama 3, Qwen and many
//! others work. Others normalise the text or mark where words begin, so that their tokens do not say what was asked: such a
//! tokenizer is found out when its file is read, and blocks of text are not reported.
//!
//! One kind of normalisation is let pass: composition (NFC, as Qwen's). Text that is composed already, which is nearly all there
//! is, stays as it is; a prompt that is not is reported in its composed spelling, and its own is vouched for by nobody.

mod json;

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Name of the file in a model's directory.
const FILE_NAME: &str = "tokenizer.json";
/// Largest file that is read: four times that of the largest vocabulary in use.
const MAX_FILE_BYTES: u64 = 128 << 20;
/// Most ids that a vocabulary may have.
const MAX_TOKENS: usize = 1 << 22;

/// For every token the bytes that it stands for.
#[derive(PartialEq, Eq)]
pub struct Vocabulary {
    bytes: Vec<u8>,
    /// Where the bytes of each id begin and end; no token is without bytes, and an id that is no token is.
    spans: Vec<(u32, u32)>,
    /// Special tokens that the tokenizer puts before every text by itself.
    leading: Vec<u32>,
}

/// Why tokens cannot be turned into text.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file cannot be read.
    #[error("{}: {source}; name the model's tokenizer.json, or its directory, with --tokenizer", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is larger than any tokenizer's.
    #[error("{}: it has more than {MAX_FILE_BYTES} bytes", path.display())]
    Size {
        /// The file.
        path: PathBuf,
    },
    /// The file is not a tokenizer.
    #[error("{}: it does not describe a tokenizer: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// Its tokens do not say exactly what the text was.
    #[error("{}: its tokens do not say exactly what the text was: {reason}", path.display())]
    Inexact {
        /// The file.
        path: PathBuf,
        /// What of it loses something.
        reason: Inexact,
    },
}

/// What of a tokenizer loses something of the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Inexact {
    /// Another kind of model.
    #[error("its model is {0}, not byte-level BPE")]
    Model(String),
    /// The text is changed before it is cut.
    #[error("its normalizer, {0}, changes the text")]
    Normalizer(String),
    /// The text is changed, or parts of it dropped, where it is cut into words.
    #[error("its pre-tokenizer, {0}, does not keep every byte")]
    PreTokenizer(String),
    /// A token is no bytes.
    #[error("token {0} is not written in the alphabet of bytes")]
    Token(u32),
    /// More tokens than a vocabulary may have.
    #[error("it has ids beyond {MAX_TOKENS}")]
    TooManyTokens,
}

impl Vocabulary {
    /// Reads the tokenizer of a model: its `tokenizer.json`, or that of the directory at `path`.
    ///
    /// # Errors
    /// There is none, or its tokens cannot be turned back into exactly the text that they were cut from.
    pub fn read(path: &Path) -> Result<Self, TokenizerError> {
        let path = if path.is_dir() { path.join(FILE_NAME) } else { path.to_owned() };
        let unreadable = |source| TokenizerError::Read { path: path.clone(), source };
        let mut text = Vec::new();
        let file = File::open(&path).map_err(unreadable)?;
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text).map_err(unreadable)?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(TokenizerError::Size { path });
        }
        match json::vocabulary(&text) {
            Ok(Ok(vocabulary)) => Ok(vocabulary),
            Ok(Err(reason)) => Err(TokenizerError::Inexact { path, reason }),
            Err(source) => Err(TokenizerError::Json { path, source }),
        }
    }

    /// The bytes of a token; `None` if it is none, or if they are not all of what it stands for.
    pub fn bytes(&self, token: u32) -> Option<&[u8]> {
        let (start, end) = *self.spans.get(token as usize)?;
        (start < end).then(|| &self.bytes[start as usize..end as usize])
    }

    /// The special tokens that the tokenizer puts before every text by itself.
    pub fn leading(&self) -> &[u32] {
        &self.leading
    }

    fn new(tokens: impl IntoIterator<Item = (u32, Vec<u8>)>, leading: Vec<u32>) -> Result<Self, Inexact> {
        let (mut bytes, mut spans) = (Vec::new(), Vec::new());
        for (id, token) in tokens {
            let index = id as usize;
            if index >= MAX_TOKENS {
                return Err(Inexact::TooManyTokens);
            }
            if index >= spans.len() {
                spans.resize(index + 1, (0, 0));
            }
            let start = bytes.len() as u32;
            bytes.extend_from_slice(&token);
            spans[index] = (start, bytes.len() as u32);
        }
        Ok(Self { bytes, spans, leading })
    }
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vocabulary").field("ids", &self.spans.len()).finish_non_exhaustive()
    }
}
