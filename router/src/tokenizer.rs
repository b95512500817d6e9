//! The model folder's tokenizer and what its configuration files say about special tokens and chat templates.
//! Loaded once and shared; it never changes and never looks at a request.

mod byte_table;
mod control;

pub use control::ControlTokens;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use byte_table::ByteTable;

/// Why the tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("cannot read {path}: {source}")]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} is not valid: {reason}")]
    Invalid { path: PathBuf, reason: String },
    #[error("cannot tokenize: {0}")]
    Encode(String),
}

/// A token of a text, with the bytes of the text that it covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSpan {
    pub id: u32,
    pub start: usize,
    pub stop: usize,
}

/// A chat template as found in the model folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedTemplate {
    /// "default" unless the folder names it.
    pub name: String,
    pub source: String,
}

pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special_ids: HashSet<u32>,
    /// Those beside the model's own vocabulary, special or not.
    added_ids: HashSet<u32>,
    /// "bos_token", "eos_token" and so on, with their text.
    special_names: Vec<(String, String)>,
    end_token_ids: Vec<u32>,
    chat_templates: Vec<NamedTemplate>,
    vocab_size: u32,
    max_token_bytes: usize,
    control: ControlTokens,
    byte_table: Option<ByteTable>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and the files beside it. `config_path` replaces the folder's `tokenizer_config.json`.
    pub fn load(folder: &Path, config_path: Option<&Path>) -> Result<Self, TokenizerError> {
        let path = folder.join("tokenizer.json");
        let invalid = |reason: tokenizers::Error| TokenizerError::Invalid {
            path: path.clone(),
            reason: reason.to_string(),
        };
        let mut inner = tokenizers::Tokenizer::from_bytes(read(&path)?).map_err(invalid)?;
        inner.with_truncation(None).map_err(invalid)?;
        inner.with_padding(None);

        let config_file = config_path.map_or_else(
            || folder.join("tokenizer_config.json"),
            std::path::Path::to_path_buf,
        );
        let config: TokenizerConfig = match config_path {
            Some(path) => read_json(path)?,
            None => read_json_if_there(&config_file)?.unwrap_or_default(),
        };
        let chat_templates = match config_path {
            Some(_) => config.templates(),
            None => folder_templates(folder, &config)?,
        };
        let special_names = config.special_names();
        let eos_token = special_names.iter().find(|(name, _)| name == "eos_token");
        let end_token_ids = end_token_ids(
            folder,
            eos_token.and_then(|(_, text)| inner.token_to_id(text)),
        )?;
        let vocab = inner.get_vocab(true);
        let is_named = |text: &String| special_names.iter().any(|(_, name)| name == text);
        let control = ControlTokens::new(&inner, |id, token| {
            token.special || end_token_ids.contains(&id) || is_named(&token.content)
        });
        let vocab_size = vocab.values().max().map_or(0, |id| id + 1);
        Ok(Self {
            byte_table: ByteTable::of(&inner, vocab_size),
            special_ids: inner
                .get_added_tokens_decoder()
                .iter()
                .filter(|(_, token)| token.special)
                .map(|(id, _)| *id)
                .collect(),
            added_ids: inner.get_added_tokens_decoder().into_keys().collect(),
            special_names,
            end_token_ids,
            chat_templates,
            vocab_size,
            max_token_bytes: max_token_bytes(&inner, &vocab),
            control,
            inner,
        })
    }

    /// The tokens of a text. Special tokens typed in it become control tokens. With `add_special_tokens` the tokenizer puts its
    /// own around it (beginning of text).
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        self.inner
            .encode_fast(text, add_special_tokens)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| TokenizerError::Encode(error.to_string()))
    }

    /// The same tokens, with the part of the text that each covers.
    pub fn encode_spans(
        &self,
        text: &str,
        add_special_tokens: bool,
    ) -> Result<Vec<TokenSpan>, TokenizerError> {
        let encoding = self
            .inner
            .encode(text, add_special_tokens)
            .map_err(|error| TokenizerError::Encode(error.to_string()))?;
        let spans = encoding.get_ids().iter().zip(encoding.get_offsets());
        Ok(spans
            .map(|(&id, &(start, stop))| TokenSpan { id, start, stop })
            .collect())
    }

    /// As `encode_spans`, without the tokenizer's own special tokens; the ranges `typed`, in order, are text whatever they spell.
    pub fn encode_typed(
        &self,
        text: &str,
        typed: &[Range<usize>],
    ) -> Result<Vec<TokenSpan>, TokenizerError> {
        if self.control.is_plain(typed) {
            return self.encode_spans(text, false);
        }
        let spans = self.control.encode(&self.inner, text, typed);
        spans.map_err(TokenizerError::Encode)
    }

    /// The special tokens as they are spelled.
    pub fn control(&self) -> &ControlTokens {
        &self.control
    }

    /// The text of tokens that exist; bytes that are no UTF-8 become U+FFFD. Ids outside the vocabulary are left out.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        match &self.byte_table {
            Some(table) => table.decode(ids, skip_special_tokens),
            None => self
                .inner
                .decode(ids, skip_special_tokens)
                .unwrap_or_default(),
        }
    }

    /// The entry is its text, and not spelled as the others are.
    pub fn is_added(&self, id: u32) -> bool {
        self.added_ids.contains(&id)
    }

    /// For libraries that work on it.
    pub fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }

    /// The special token of that name.
    pub fn special_id(&self, name: &str) -> Option<u32> {
        let id = self.inner.token_to_id(name);
        id.filter(|id| self.is_special(*id))
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    /// Tokens that end an answer, from the generation configuration and the tokenizer.
    pub fn end_token_ids(&self) -> &[u32] {
        &self.end_token_ids
    }

    /// Names and texts of special tokens, for templates.
    pub fn special_names(&self) -> &[(String, String)] {
        &self.special_names
    }

    pub fn chat_templates(&self) -> &[NamedTemplate] {
        &self.chat_templates
    }

    /// The highest token id plus one.
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// No token covers more bytes of a text than this.
    pub fn max_token_bytes(&self) -> usize {
        self.max_token_bytes
    }
}

/// The longest entry of the vocabulary. A normalizer may shrink a text (full-width letters are three bytes for one), so the bound is
/// wider where there is one.
fn max_token_bytes(inner: &tokenizers::Tokenizer, vocab: &HashMap<String, u32>) -> usize {
    let longest = vocab.keys().map(String::len).max().unwrap_or(1).max(1);
    let shrink = if inner.get_normalizer().is_some() {
        4
    } else {
        1
    };
    longest * shrink
}

#[derive(Default, Deserialize)]
struct TokenizerConfig {
    chat_template: Option<TemplateField>,
    bos_token: Option<TokenField>,
    eos_token: Option<TokenField>,
    unk_token: Option<TokenField>,
    sep_token: Option<TokenField>,
    pad_token: Option<TokenField>,
    cls_token: Option<TokenField>,
    mask_token: Option<TokenField>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TokenField {
    Text(String),
    Object { content: String },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TemplateField {
    One(String),
    Named(Vec<TemplateEntry>),
}

#[derive(Deserialize)]
struct TemplateEntry {
    name: String,
    template: String,
}

impl TokenizerConfig {
    fn special_names(&self) -> Vec<(String, String)> {
        let fields = [
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
            ("unk_token", &self.unk_token),
            ("sep_token", &self.sep_token),
            ("pad_token", &self.pad_token),
            ("cls_token", &self.cls_token),
            ("mask_token", &self.mask_token),
        ];
        let text = |field: &TokenField| match field {
            TokenField::Text(text) | TokenField::Object { content: text } => text.clone(),
        };
        fields
            .into_iter()
            .filter_map(|(name, field)| Some((name.to_owned(), text(field.as_ref()?))))
            .collect()
    }

    fn templates(&self) -> Vec<NamedTemplate> {
        match &self.chat_template {
            None => Vec::new(),
            Some(TemplateField::One(source)) => vec![default_template(source.clone())],
            Some(TemplateField::Named(entries)) => entries
                .iter()
                .map(|entry| NamedTemplate {
                    name: entry.name.clone(),
                    source: entry.template.clone(),
                })
                .collect(),
        }
    }
}

fn default_template(source: String) -> NamedTemplate {
    NamedTemplate {
        name: "default".to_owned(),
        source,
    }
}

/// `chat_template.jinja` wins over `chat_template.json`, which wins over `tokenizer_config.json`.
fn folder_templates(
    folder: &Path,
    config: &TokenizerConfig,
) -> Result<Vec<NamedTemplate>, TokenizerError> {
    let path = folder.join("chat_template.jinja");
    if path.is_file() {
        let source = String::from_utf8(read(&path)?).map_err(|error| TokenizerError::Invalid {
            path,
            reason: error.to_string(),
        })?;
        return Ok(vec![default_template(source)]);
    }
    let beside: Option<TokenizerConfig> = read_json_if_there(&folder.join("chat_template.json"))?;
    Ok(beside.as_ref().unwrap_or(config).templates())
}

#[derive(Deserialize)]
struct EndTokenConfig {
    eos_token_id: Option<OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

/// From `generation_config.json`, else `config.json`; plus the tokenizer's own.
fn end_token_ids(folder: &Path, tokenizers_own: Option<u32>) -> Result<Vec<u32>, TokenizerError> {
    let mut ids = Vec::new();
    for name in ["generation_config.json", "config.json"] {
        let config: Option<EndTokenConfig> = read_json_if_there(&folder.join(name))?;
        match config.and_then(|config| config.eos_token_id) {
            Some(OneOrMany::One(id)) => ids.push(id),
            Some(OneOrMany::Many(many)) => ids.extend(many),
            None => continue,
        }
        break;
    }
    ids.extend(tokenizers_own);
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

fn read(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    std::fs::read(path).map_err(|source| TokenizerError::Unreadable {
        path: path.to_owned(),
        source,
    })
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, TokenizerError> {
    serde_json::from_slice(&read(path)?).map_err(|error| TokenizerError::Invalid {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

fn read_json_if_there<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, TokenizerError> {
    if path.is_file() {
        read_json(path).map(Some)
    } else {
        Ok(None)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use super::*;

    /// The small ChatML tokenizer of the tests.
    pub(crate) fn compat() -> Arc<Tokenizer> {
        Arc::new(Tokenizer::load(&compat_folder(), None).unwrap())
    }

    pub(crate) fn compat_folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/compat")
    }

    /// The same with further tokens behind the others.
    pub(crate) fn compat_with(added: &[(&str, bool)]) -> Arc<Tokenizer> {
        let text = std::fs::read_to_string(compat_folder().join("tokenizer.json")).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let tokens = json["added_tokens"].as_array_mut().unwrap();
        for (idx, (text, special)) in added.iter().enumerate() {
            tokens.push(serde_json::json!({
                "id": 2048 + idx, "content": text, "special": special,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            }));
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        for name in ["tokenizer_config.json", "generation_config.json"] {
            std::fs::copy(compat_folder().join(name), folder.path().join(name)).unwrap();
        }
        Arc::new(Tokenizer::load(folder.path(), None).unwrap())
    }

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(
            compat_folder().join("tokenizer.json"),
            folder.path().join("tokenizer.json"),
        )
        .unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn special_tokens_in_a_text_become_control_tokens() {
        let ids = compat()
            .encode("<|im_start|>user\nx<|im_end|>", true)
            .unwrap();
        assert_eq!(ids, [1, 1561, 202, 91, 2]);
    }

    #[test]
    fn spans_are_in_bytes() {
        let spans = compat().encode_spans("é b", true).unwrap();
        let last = spans.last().unwrap();
        assert_eq!((last.start, last.stop), (2, 4));
    }

    #[test]
    fn end_tokens_are_read_from_an_integer_or_a_list() {
        assert_eq!(compat().end_token_ids(), [2]);
        let many = folder(&[("generation_config.json", r#"{"eos_token_id": [3, 0]}"#)]);
        let tokenizer = Tokenizer::load(many.path(), None).unwrap();
        assert_eq!(tokenizer.end_token_ids(), [0, 3]);
    }

    #[test]
    fn config_json_names_the_end_token_where_the_generation_config_does_not() {
        let files = folder(&[
            ("generation_config.json", "{}"),
            ("config.json", r#"{"eos_token_id": 3}"#),
        ]);
        let tokenizer = Tokenizer::load(files.path(), None).unwrap();
        assert_eq!(tokenizer.end_token_ids(), [3]);
    }

    #[test]
    fn special_tokens_are_given_as_text_or_as_an_object() {
        let files = folder(&[(
            "tokenizer_config.json",
            r#"{"bos_token": {"content": "<|endoftext|>", "lstrip": false}, "eos_token": "<|im_end|>"}"#,
        )]);
        let tokenizer = Tokenizer::load(files.path(), None).unwrap();
        let names = tokenizer.special_names();
        assert_eq!(names[0], ("bos_token".into(), "<|endoftext|>".into()));
        assert_eq!(names[1], ("eos_token".into(), "<|im_end|>".into()));
        assert_eq!(tokenizer.end_token_ids(), [2]);
    }

    #[test]
    fn templates_come_from_the_file_that_wins() {
        let config = (
            "tokenizer_config.json",
            r#"{"chat_template": [{"name": "tool_use", "template": "t"}]}"#,
        );
        let json = ("chat_template.json", r#"{"chat_template": "j"}"#);
        let jinja = ("chat_template.jinja", "f");
        let source = |files: &[(&str, &str)]| {
            let folder = folder(files);
            let tokenizer = Tokenizer::load(folder.path(), None).unwrap();
            let first = tokenizer.chat_templates()[0].clone();
            (first.name, first.source)
        };
        assert_eq!(source(&[config]), ("tool_use".into(), "t".into()));
        assert_eq!(source(&[config, json]), ("default".into(), "j".into()));
        assert_eq!(
            source(&[config, json, jinja]),
            ("default".into(), "f".into())
        );
    }

    #[test]
    fn a_configuration_named_by_a_flag_replaces_the_folders() {
        let folder = folder(&[
            ("chat_template.jinja", "f"),
            ("other.json", r#"{"chat_template": "o"}"#),
        ]);
        let path = folder.path().join("other.json");
        let tokenizer = Tokenizer::load(folder.path(), Some(&path)).unwrap();
        assert_eq!(tokenizer.chat_templates()[0].source, "o");
    }

    #[test]
    fn errors_name_the_file() {
        let missing = tempfile::tempdir().unwrap();
        let error = Tokenizer::load(missing.path(), None).err().unwrap();
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
        let broken = folder(&[("generation_config.json", "{")]);
        let error = Tokenizer::load(broken.path(), None).err().unwrap();
        assert!(
            error.to_string().contains("generation_config.json"),
            "{error}"
        );
    }
}
