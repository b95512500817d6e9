//! The bytes of every token of a byte-level tokenizer, in one table: decoding is two lookups for each token, where the library makes
//! strings of strings. Must give exactly what the library gives.

use tokenizers::DecoderWrapper;

/// Tokens by id.
pub(super) struct ByteTable {
    bytes: Vec<u8>,
    /// Where the bytes of each id begin; those of the next follow. An id that does not exist has none.
    starts: Vec<u32>,
    is_special: Vec<bool>,
}

impl ByteTable {
    /// `None` where text is made of tokens in any other way than by joining their bytes.
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer, vocab_size: u32) -> Option<Self> {
        if !matches!(tokenizer.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
            return None;
        }
        let added = tokenizer.get_added_vocabulary();
        let byte_of = byte_of_letter();
        let mut table = Self {
            bytes: Vec::new(),
            starts: vec![0],
            is_special: Vec::new(),
        };
        for id in 0..vocab_size {
            let token = added.simple_id_to_token(id);
            let token = token.or_else(|| tokenizer.id_to_token(id));
            let token = token.unwrap_or_default();
            let spelled: Option<Vec<u8>> = token
                .chars()
                .map(|letter| byte_of.get(letter as usize).copied().flatten())
                .collect();
            table
                .bytes
                .extend(spelled.unwrap_or_else(|| token.as_bytes().to_vec()));
            table.starts.push(u32::try_from(table.bytes.len()).ok()?);
            table.is_special.push(added.is_special_token(&token));
        }
        Some(table)
    }

    pub(super) fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        let mut text = Vec::new();
        for &id in ids {
            let id = id as usize;
            if let (Some(&start), Some(&end), Some(&is_special)) = (
                self.starts.get(id),
                self.starts.get(id + 1),
                self.is_special.get(id),
            ) && !(skip_special_tokens && is_special)
            {
                text.extend_from_slice(&self.bytes[start as usize..end as usize]);
            }
        }
        String::from_utf8(text)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }
}

/// Byte-level vocabularies spell each byte as a letter: visible ones of Latin-1 as themselves, the others as the letters from 256 on.
fn byte_of_letter() -> Vec<Option<u8>> {
    let is_itself = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut byte_of = vec![None; 256];
    for byte in (0..=255).filter(|byte| is_itself(*byte)) {
        byte_of[usize::from(byte)] = Some(byte);
    }
    byte_of.extend((0..=255).filter(|byte| !is_itself(*byte)).map(Some));
    byte_of
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::tokenizer::tests::compat;

    #[test]
    fn every_token_alone_is_what_the_library_makes_of_it() {
        let tokenizer = compat();
        assert!(
            tokenizer.byte_table.is_some(),
            "the test needs a byte-level tokenizer"
        );
        for id in 0..tokenizer.vocab_size() + 3 {
            for skip in [false, true] {
                let expected = tokenizer.inner.decode(&[id], skip).unwrap();
                assert_eq!(tokenizer.decode(&[id], skip), expected, "{id} {skip}");
            }
        }
    }

    proptest! {
        #[test]
        fn tokens_together_are_what_the_library_makes_of_them(
            ids in prop::collection::vec(0u32..2060, 0..12),
            skip in any::<bool>(),
        ) {
            let tokenizer = compat();
            let expected = tokenizer.inner.decode(&ids, skip).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids, skip), expected);
        }
    }
}
