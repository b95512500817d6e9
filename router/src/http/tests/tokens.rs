//! Text to tokens and back.

use serde_json::json;

use super::*;

async fn text_of(body: Value) -> Reply {
    greedy().post("/detokenize", &body).await
}

#[tokio::test]
async fn what_was_tokenized_is_detokenized_to_the_same_text() {
    let server = greedy();
    for text in [
        "",
        "def f(x):\n  return",
        "héllo ☕ 日本 👩‍👩‍👧",
        "<|im_start|>user<|im_end|>",
    ] {
        let tokens = server
            .post("/tokenize", &json!({"inputs": text}))
            .await
            .json();
        let ids: Vec<Value> = tokens
            .as_array()
            .unwrap()
            .iter()
            .map(|token| token["id"].clone())
            .collect();
        let reply = server.post("/detokenize", &json!({"tokens": ids})).await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.json(), json!({"text": text}));
    }
}

#[tokio::test]
async fn special_tokens_are_left_out_on_request() {
    let body = json!({"tokens": [1, 91, 2], "skip_special_tokens": true});
    assert_eq!(text_of(body).await.json(), json!({"text": "x"}));
}

#[tokio::test]
async fn a_token_outside_the_vocabulary_is_named() {
    for id in [2048, 1_u64 << 40] {
        let reply = text_of(json!({"tokens": [1, id]})).await;
        assert_eq!(reply.status, 422);
        let message = format!(
            "Input validation error: `tokens` names a token outside the vocabulary of 2048. Given: {id}"
        );
        assert_eq!(
            reply.json(),
            json!({"error": message, "error_type": "validation"})
        );
    }
    assert_eq!(text_of(json!({"tokens": [-1]})).await.status, 422);
    assert_eq!(text_of(json!({"inputs": "x"})).await.status, 422);
}
