//! What is control and what only looks like it, for tokenizers of several kinds.

use proptest::prelude::*;
use serde_json::json;

use crate::tokenizer::tests::{compat, compat_folder};
use crate::tokenizer::{TokenSpan, Tokenizer};

/// Tokenizers whose special tokens live in different places.
fn kinds() -> Vec<Tokenizer> {
    let added = json!([
        {"id": 0, "content": "<s>", "special": true, "normalized": true, "single_word": false, "lstrip": false, "rstrip": false},
        {"id": 1, "content": "</s>", "special": true, "normalized": false, "single_word": false, "lstrip": true, "rstrip": true},
        {"id": 2, "content": "<unk>", "special": true, "normalized": false, "single_word": false, "lstrip": false, "rstrip": false},
        {"id": 3, "content": "<call>", "special": false, "normalized": false, "single_word": false, "lstrip": false, "rstrip": false},
    ]);
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true});
    let letters = "▁<>/|scalunkhi n0159abe";
    let pieces: Vec<_> = ["<s>", "</s>", "<unk>", "<call>"]
        .into_iter()
        .map(|special| json!([special, 0.0]))
        .chain(
            letters
                .chars()
                .map(|letter| json!([letter.to_string(), -2.0])),
        )
        .chain([json!(["▁a", -1.0]), json!(["un", -1.5])])
        .collect();
    let unigram = json!({"type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": false});
    let words: Vec<String> = pieces
        .iter()
        .map(|piece| piece[0].as_str().unwrap().to_owned())
        .collect();
    let vocab: serde_json::Map<_, _> = words
        .iter()
        .cloned()
        .chain(["</".to_owned(), "s>".to_owned()])
        .zip(0..)
        .map(|(word, id)| (word, json!(id)))
        .collect();
    let bpe = json!({
        "type": "BPE", "unk_token": "<unk>", "vocab": vocab, "fuse_unk": true,
        "merges": [["u", "n"], ["<", "/"], ["s", ">"], ["</", "s>"], ["▁", "a"]],
    });
    let normalizer =
        json!({"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]});
    [(unigram, json!(null)), (bpe, normalizer)]
        .into_iter()
        .map(|(model, normalizer)| {
            let definition = json!({
                "version": "1.0", "added_tokens": added, "normalizer": normalizer, "pre_tokenizer": metaspace,
                "post_processor": null, "decoder": null, "model": model,
            });
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("tokenizer.json"), definition.to_string()).unwrap();
            Tokenizer::load(folder.path(), None).unwrap()
        })
        .chain([Tokenizer::load(&compat_folder(), None).unwrap()])
        .collect()
}

fn through_aliases(tokenizer: &Tokenizer, text: &str) -> Vec<TokenSpan> {
    let spans = tokenizer.control.encode(&tokenizer.inner, text, &[]);
    spans.unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn nothing_changes_for_a_text_in_which_all_is_control(
        parts in prop::collection::vec(
            prop_oneof![
                "[ a-z<>/|\n0-9]{0,8}", "\\PC{0,5}",
                prop::sample::select(vec!["<s>", "</s>", "<unk>", "<call>", "<|im_start|>", "<|im_end|>", " ", "\n"]).prop_map(str::to_owned),
            ],
            0..12,
        ),
    ) {
        thread_local!(static KINDS: Vec<Tokenizer> = kinds());
        let text = parts.concat();
        KINDS.with(|kinds| for tokenizer in kinds {
            let expected = tokenizer.encode_spans(&text, false).unwrap();
            assert_eq!(through_aliases(tokenizer, &text), expected, "{text:?}");
        });
    }
}

#[test]
fn what_was_typed_is_text_and_the_same_beside_it_is_control() {
    for (tokenizer, special, id) in kinds()
        .iter()
        .zip(["</s>", "</s>", "<|im_end|>"])
        .zip([1, 1, 2])
        .map(|((t, s), i)| (t, s, i))
    {
        let text = format!("a{special}b{special}");
        let typed = 1..1 + special.len();
        let spans = tokenizer.encode_typed(&text, &[typed]).unwrap();
        let control: Vec<&TokenSpan> = spans.iter().filter(|span| span.id == id).collect();
        assert_eq!(control.len(), 1, "{text}");
        assert_eq!(
            (control[0].start, control[0].stop),
            (2 + special.len(), text.len())
        );
        let all = tokenizer
            .encode_typed(&text, std::slice::from_ref(&(0..text.len())))
            .unwrap();
        assert!(all.iter().all(|span| span.id != id), "{text}");
    }
}

#[test]
fn typed_text_has_all_its_letters_as_tokens() {
    let tokenizer = compat();
    let text = "<|im_start|>x <|im_end|> y<|im_end|>";
    let spans = tokenizer
        .encode_typed(text, std::slice::from_ref(&(14..24)))
        .unwrap();
    let ids: Vec<u32> = spans.iter().map(|span| span.id).collect();
    assert_eq!(tokenizer.decode(&ids, false), text);
    assert_eq!((ids[0], ids.iter().filter(|id| **id == 2).count()), (1, 1));
    assert_eq!(tokenizer.decode(&ids, true), "x <|im_end|> y");
}

#[test]
fn another_spelling_that_a_normalizer_turns_into_a_special_token_is_text_in_chats() {
    let kinds = kinds();
    let lowers_case = &kinds[1];
    for spelling in ["<S>", "＜s＞"] {
        let control = lowers_case.encode_spans(spelling, false).unwrap();
        assert_eq!(control[0].id, 0, "the attack is possible");
        let spans = lowers_case.encode_typed(spelling, &[]).unwrap();
        assert!(spans.iter().all(|span| span.id != 0), "{spelling}");
    }
    let spans = lowers_case.encode_typed("<s>", &[]).unwrap();
    assert_eq!(spans[0].id, 0);
}
