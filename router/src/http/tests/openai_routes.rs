//! What OpenAI's clients send and TGI did not answer as they expect.

use serde_json::json;

use super::*;
use crate::generation::scripted::{admitted, token};

fn hello(extra: Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 8, "temperature": 0,
    });
    body.as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    body
}

async fn chat(extra: Value) -> Value {
    let reply = greedy().post("/v1/chat/completions", &hello(extra)).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()
}

async fn complete(body: Value) -> Value {
    let reply = greedy().post("/v1/completions", &body).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()
}

#[tokio::test]
async fn a_stop_string_is_not_shown_and_the_reason_is_stop() {
    for stop in [json!("rea"), json!(["zz", "rea"])] {
        let choice = chat(json!({"stop": stop})).await["choices"][0].clone();
        assert_eq!(choice["message"]["content"], "-- It('u");
        assert_eq!(choice["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn n_choices_are_numbered_and_all_counted() {
    let answer = chat(json!({"n": 2})).await;
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 2);
    assert_eq!(
        (&choices[0]["index"], &choices[1]["index"]),
        (&json!(0), &json!(1))
    );
    assert_eq!(answer["usage"]["completion_tokens"], 16);
    let refused = greedy()
        .post("/v1/chat/completions", &hello(json!({"n": 3})))
        .await;
    assert_eq!(refused.status, 422);
    assert!(refused.text.contains("`n` must be > 0 and <= 2. Given: 3"));
}

#[tokio::test]
async fn ids_are_unique_and_say_what_they_are_of() {
    let (one, two) = (chat(json!({})).await, chat(json!({})).await);
    assert!(one["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_ne!(one["id"], two["id"]);
    let completion = complete(json!({"prompt": "a", "max_tokens": 1})).await;
    assert!(completion["id"].as_str().unwrap().starts_with("cmpl-"));
}

#[tokio::test]
async fn null_is_absent() {
    chat(json!({
        "stream": null, "stream_options": null, "stop": null, "n": null, "tools": null, "logit_bias": null, "seed": null,
    }))
    .await;
}

#[tokio::test]
async fn max_completion_tokens_wins_over_max_tokens() {
    let answer = chat(json!({"max_completion_tokens": 3})).await;
    assert_eq!(answer["usage"]["completion_tokens"], 3);
}

#[tokio::test]
async fn an_unknown_models_name_is_echoed_and_tgi_is_the_loaded_one() {
    assert_eq!(chat(json!({"model": "other"})).await["model"], "other");
    assert_eq!(chat(json!({"model": "tgi"})).await["model"], "compat");
}

#[tokio::test]
async fn logprobs_come_with_their_alternatives() {
    let answer = chat(json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 1})).await;
    let first = &answer["choices"][0]["logprobs"]["content"][0];
    assert_eq!(first["token"], "--");
    assert_eq!(first["logprob"], -1.0);
    assert_eq!(first["top_logprobs"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn cached_prompt_tokens_are_told_where_there_are_some() {
    let server = scripted(|_| vec![admitted(8), token(5, Some(scheduler::FinishReason::Length))]);
    let usage = server
        .post("/v1/chat/completions", &hello(json!({})))
        .await
        .json()["usage"]
        .clone();
    assert_eq!(usage["prompt_tokens_details"], json!({"cached_tokens": 8}));
    assert_eq!(
        chat(json!({})).await["usage"].get("prompt_tokens_details"),
        None
    );
}

#[tokio::test]
async fn logit_bias_reaches_the_engine_and_bad_keys_are_refused() {
    let mut server = scripted(|_| vec![admitted(0)]);
    let body = hello(json!({"logit_bias": {"5": -100, "7": 1.5}, "stream": true}));
    let _running = server.open(post("/v1/chat/completions", &body)).await;
    let sampling = server.held.recv().await.unwrap().spec.sampling;
    assert_eq!(sampling.logit_bias, [(5, -100.0), (7, 1.5)]);
    let refused = server
        .post(
            "/v1/chat/completions",
            &hello(json!({"logit_bias": {"x": 1}})),
        )
        .await;
    assert_eq!(refused.status, 422);
}

#[tokio::test]
async fn prompts_may_be_tokens_and_lists_of_them() {
    let text = |answer: &Value, idx: usize| answer["choices"][idx]["text"].clone();
    let ids = compat().encode("x self", false).unwrap();
    let one = complete(json!({"prompt": ids, "max_tokens": 20, "temperature": 0})).await;
    assert_eq!(text(&one, 0), " return None if in the");
    assert_eq!(one["choices"][0]["finish_reason"], "stop");
    let two = complete(json!({"prompt": [[68], ids], "max_tokens": 3, "temperature": 0})).await;
    assert_eq!(text(&two, 1), " return None if");
    assert_eq!(two["choices"][1]["index"], 1);
}

#[tokio::test]
async fn echo_puts_the_prompt_before_the_text() {
    let body = json!({"prompt": "x self", "max_tokens": 2, "temperature": 0, "echo": true, "n": 2});
    let whole = complete(body.clone()).await;
    assert_eq!(whole["choices"][1]["text"], "x self return None");
    let mut streamed = body;
    streamed["stream"] = json!(true);
    let events = greedy().post("/v1/completions", &streamed).await.events();
    let first: Value = serde_json::from_str(&events[0]).unwrap();
    assert_eq!(first["choices"][0]["text"], "x self return");
}

#[tokio::test]
async fn completions_logprobs_have_offsets_and_leave_the_end_token_out() {
    let body = json!({"prompt": "x self", "max_tokens": 20, "temperature": 0, "logprobs": 1});
    let choice = complete(body).await["choices"][0].clone();
    let logprobs = &choice["logprobs"];
    assert_eq!(
        logprobs["tokens"],
        json!([" return", " None", " if", " in", " the"])
    );
    assert_eq!(logprobs["text_offset"], json!([0, 7, 12, 15, 18]));
    assert_eq!(logprobs["top_logprobs"][0], json!({" return": -1.0}));
}

#[tokio::test]
async fn echoed_logprobs_begin_with_the_prompt_where_the_server_gives_them() {
    let body =
        json!({"prompt": "x self", "max_tokens": 1, "temperature": 0, "logprobs": 0, "echo": true});
    assert_eq!(greedy().post("/v1/completions", &body).await.status, 422);
    let options = Options {
        limits: Limits {
            enable_prefill_logprobs: true,
            ..limits()
        },
        ..Options::default()
    };
    let answer = greedy_with(options)
        .post("/v1/completions", &body)
        .await
        .json();
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["x", " self", " return"]));
    assert_eq!(logprobs["token_logprobs"], json!([null, -2.0, -1.0]));
}

#[tokio::test]
async fn best_of_answers_the_likeliest() {
    let server = scripted(|spec| {
        let seed = spec.sampling.seed;
        let mut sampled = token(323 + seed as u32, Some(scheduler::FinishReason::Length));
        if let TokenEvent::Token { token, .. } = &mut sampled {
            token.logprob = -2.0 + seed as f32;
        }
        vec![admitted(0), sampled]
    });
    let body = json!({"prompt": "a", "max_tokens": 1, "best_of": 2, "seed": 0});
    let answer = server.post("/v1/completions", &body).await.json();
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 1);
    assert_eq!(choices[0]["text"], json!(compat().decode(&[324], true)));
    assert_eq!(answer["usage"]["completion_tokens"], 2);
}

#[tokio::test]
async fn completion_streams_have_null_reasons_no_end_text_and_usage_with_the_last_chunk() {
    let body =
        json!({"prompt": ["x self", "a"], "max_tokens": 6, "temperature": 0, "stream": true});
    let events = greedy().post("/v1/completions", &body).await.events();
    assert_eq!(events.iter().filter(|event| *event == "[DONE]").count(), 1);
    assert_eq!(events.last().unwrap(), "[DONE]");
    let chunks: Vec<Value> = events[..events.len() - 1]
        .iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect();
    let of_first: Vec<&Value> = chunks
        .iter()
        .filter(|chunk| chunk["choices"][0]["index"] == 0)
        .collect();
    assert_eq!(of_first.len(), 6);
    assert_eq!(of_first[0]["choices"][0]["finish_reason"], json!(null));
    let last = of_first[5];
    assert_eq!(last["choices"][0]["text"], "");
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert_eq!(last["usage"]["completion_tokens"], 6);
    let with_usage = chunks.iter().filter(|chunk| chunk.get("usage").is_some());
    assert_eq!(with_usage.count(), 2);
}

#[tokio::test]
async fn template_variables_and_tool_messages_reach_the_template() {
    let body = json!({
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "tool_calls": [{"id": "1", "type": "function"}]},
            {"role": "tool", "tool_call_id": "1", "content": "c"},
        ],
        "chat_template_kwargs": {"enable_thinking": false}, "max_tokens": 1,
    });
    let reply = greedy().post("/v1/chat/completions", &body).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let bad = greedy()
        .post(
            "/v1/chat/completions",
            &hello(json!({"chat_template_kwargs": 3})),
        )
        .await;
    assert_eq!(bad.status, 422);
}

#[tokio::test]
async fn hints_are_accepted_and_what_nothing_can_do_is_refused_by_its_name() {
    chat(json!({
        "store": true, "metadata": {"a": "b"}, "service_tier": "flex", "user": "u", "verbosity": "low",
        "prediction": {"type": "content", "content": "a"}, "modalities": ["text"], "prompt_cache_key": "k",
        "prompt_cache_retention": "24h", "safety_identifier": "s",
    }))
    .await;
    let sound = json!([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]);
    for (extra, named) in [
        (
            json!({"audio": {"voice": "alloy", "format": "wav"}}),
            "audio",
        ),
        (json!({"modalities": ["text", "audio"]}), "modalities"),
        (json!({"web_search_options": {}}), "web_search_options"),
        (json!({"moderation": {"model": "m"}}), "moderation"),
        (json!({"messages": sound}), "input_audio"),
    ] {
        let reply = greedy().post("/v1/chat/completions", &hello(extra)).await;
        assert_eq!(reply.status, 422, "{}", reply.text);
        assert!(reply.text.contains(named), "{}", reply.text);
    }
}

#[tokio::test]
async fn bytes_of_tokens_are_for_openais_sdk_which_reads_them() {
    let body = hello(json!({"logprobs": true, "top_logprobs": 1, "max_tokens": 1}));
    let first = |reply: Reply| reply.json()["choices"][0]["logprobs"]["content"][0].clone();
    let server = greedy();
    let mut request = post("/v1/chat/completions", &body);
    let sdk = "python".parse().unwrap();
    request.headers_mut().insert("x-stainless-lang", sdk);
    let for_sdk = first(server.send(request).await);
    assert_eq!(for_sdk["bytes"], json!("--".as_bytes()));
    assert_eq!(for_sdk["top_logprobs"][0]["bytes"], json!("--".as_bytes()));
    let for_others = first(server.post("/v1/chat/completions", &body).await);
    assert!(for_others.get("bytes").is_none());
}
