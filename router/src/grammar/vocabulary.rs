//! The bytes of every token, in the form in which the grammar library walks them.
//!
//! Written here because the library's own adapter needs another release of `tokenizers`, and takes added tokens such as `<tool_call>`
//! for control tokens even where the tokenizer says that they are text.

use std::sync::Arc;

use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use serde_json::Value;

use super::GrammarError;
use crate::tokenizer::Tokenizer;

/// How the vocabulary's entries stand for bytes.
#[derive(Debug, PartialEq, Eq)]
enum Spelling {
    /// A character for each byte (GPT-2's table).
    ByteLevel,
    /// Text, with a character in place of the space; some spell a byte as `<0x0A>`.
    Text { space: char },
}

/// The tokens of a model with `vocab_size` of them. Ids without an entry are control tokens that no grammar allows.
pub(super) fn token_environment(
    tokenizer: &Tokenizer,
    vocab_size: u32,
) -> Result<TokEnv, GrammarError> {
    let unsupported = |reason: &str| Err(GrammarError::Unsupported(reason.to_owned()));
    let Some(&end_token_id) = tokenizer.end_token_ids().first() else {
        return unsupported("it has no end token");
    };
    let Some(spelling) = spelling(tokenizer) else {
        return unsupported("its tokenizer does not say which bytes a token stands for");
    };
    let words: Vec<Vec<u8>> = (0..vocab_size)
        .map(|id| token_bytes(tokenizer, id, &spelling))
        .collect();
    let info = TokRxInfo::new(vocab_size, end_token_id);
    let trie = TokTrie::from(&info, &words).with_eos_tokens(tokenizer.end_token_ids());
    // "Approximate": which of several spellings of a text comes is left to the model, never forced.
    Ok(Arc::new(ApproximateTokEnv::new(trie)))
}

fn token_bytes(tokenizer: &Tokenizer, id: u32, spelling: &Spelling) -> Vec<u8> {
    let control = |name: &str| [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat();
    let Some(entry) = tokenizer.inner().id_to_token(id) else {
        return control(&format!("<[{id}]>"));
    };
    if tokenizer.is_special(id) || tokenizer.end_token_ids().contains(&id) {
        return control(&entry);
    }
    if tokenizer.is_added(id) {
        return entry.into_bytes();
    }
    match spelling {
        Spelling::ByteLevel => entry.chars().map(byte_of).collect::<Option<Vec<u8>>>(),
        Spelling::Text { space } => {
            Some(spelled_byte(&entry).unwrap_or_else(|| entry.replace(*space, " ").into_bytes()))
        }
    }
    .unwrap_or_else(|| control(&format!("<[{id}]>")))
}

/// `<0x0A>` is the byte 10.
fn spelled_byte(entry: &str) -> Option<Vec<u8>> {
    let digits = entry.strip_prefix("<0x")?.strip_suffix('>')?;
    let byte = u8::from_str_radix(digits, 16).ok()?;
    (digits.len() == 2).then(|| vec![byte])
}

/// GPT-2's table: printable characters of Latin-1 are themselves, the other bytes follow from U+0100 on, in order.
fn byte_of(character: char) -> Option<u8> {
    let is_itself = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let code = u32::from(character);
    match u8::try_from(code) {
        Ok(byte) => Some(byte).filter(is_itself),
        Err(_) => {
            let moved = code.checked_sub(0x100)? as usize;
            (0..=u8::MAX).filter(|byte| !is_itself(byte)).nth(moved)
        }
    }
}

fn spelling(tokenizer: &Tokenizer) -> Option<Spelling> {
    let decoder = serde_json::to_value(tokenizer.inner().get_decoder()?).ok()?;
    let nested = decoder["decoders"].as_array();
    let decoders: Vec<&Value> = nested.map_or_else(|| vec![&decoder], |list| list.iter().collect());
    let of_kind = |kind: &str| decoders.iter().find(|decoder| decoder["type"] == kind);
    if of_kind("ByteLevel").is_some() {
        return Some(Spelling::ByteLevel);
    }
    let replaced = of_kind("Replace")
        .filter(|replace| replace["content"] == " ")
        .and_then(|replace| replace["pattern"]["String"].as_str());
    let metaspace = of_kind("Metaspace").and_then(|metaspace| metaspace["replacement"].as_str());
    match replaced.or(metaspace).and_then(|text| text.chars().next()) {
        Some(space) => Some(Spelling::Text { space }),
        None => of_kind("ByteFallback").map(|_| Spelling::Text { space: ' ' }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::compat;

    #[test]
    fn every_byte_has_a_character_and_back() {
        let mut found: Vec<u8> = (0..0x180)
            .filter_map(char::from_u32)
            .filter_map(byte_of)
            .collect();
        found.sort_unstable();
        assert_eq!(found, (0..=255).collect::<Vec<u8>>());
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
        assert_eq!(byte_of('漢'), None);
    }

    #[test]
    fn the_bytes_of_tokens_are_the_bytes_of_the_text() {
        let tokenizer = compat();
        let environment = token_environment(&tokenizer, 2048).unwrap();
        let text = "def f(x):\n\treturn x + 1  # é 漢 🙂";
        let ids = tokenizer.encode(text, false).unwrap();
        let trie = environment.tok_trie();
        assert_eq!(trie.decode_raw(&ids), text.as_bytes());
        assert_eq!(trie.eos_tokens(), tokenizer.end_token_ids());
        assert!(trie.is_special_token(tokenizer.end_token_ids()[0]));
    }

    #[test]
    fn ids_that_only_the_model_has_are_control_tokens() {
        let environment = token_environment(&compat(), 2100).unwrap();
        assert!(environment.tok_trie().is_special_token(2099));
    }

    #[test]
    fn bytes_that_are_spelled_out_are_bytes() {
        assert_eq!(spelled_byte("<0x0A>"), Some(vec![10]));
        assert_eq!(spelled_byte("<0xA>"), None);
        assert_eq!(spelled_byte("0x0A"), None);
    }
}
