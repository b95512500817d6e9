//! The routes of clouds that hold the body of another route.

use serde_json::json;

use super::*;
use crate::engine::EngineError;
use crate::generation::scripted::admitted;

fn chat(extra: Value) -> Value {
    let mut body =
        json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 2, "temperature": 0});
    let extra = extra.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(extra);
    body
}

async fn predict(server: &Server, instances: Value) -> Reply {
    server
        .post("/vertex", &json!({"instances": instances}))
        .await
}

#[tokio::test]
async fn an_invocation_with_a_prompt_is_a_completion() {
    let server = greedy();
    let body = json!({"prompt": "x self", "max_tokens": 1, "temperature": 0, "inputs": null});
    let answer = server.post("/invocations", &body).await.json();
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["choices"][0]["text"], " return");
    let body = json!({"prompt": "x self", "max_tokens": 1, "stream": true});
    let events = server.post("/invocations", &body).await.events();
    assert_eq!(events.last().unwrap(), "[DONE]");
}

#[tokio::test]
async fn what_is_wrong_with_an_invocation_is_told_by_the_field() {
    let server = greedy();
    for (body, field) in [
        (json!({"inputs": 3, "messages": []}), "expected a string"),
        (json!({"messages": 3}), "expected a sequence"),
        (json!({}), "one of `inputs`, `messages` and `prompt`"),
        (json!([]), "expected an object"),
    ] {
        let reply = server.post("/invocations", &body).await;
        assert_eq!(reply.status, 422, "{body}");
        assert!(reply.text.contains(field), "{}", reply.text);
    }
}

#[tokio::test]
async fn predictions_come_in_the_order_of_their_instances() {
    let greedily =
        |inputs| json!({"inputs": inputs, "parameters": {"max_new_tokens": 1, "do_sample": false}});
    let instances = json!([greedily("x self"), chat(json!({})), greedily("x return")]);
    let reply = predict(&greedy(), instances).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let predictions = reply.json()["predictions"].clone();
    assert_eq!(predictions.as_array().unwrap().len(), 3);
    assert_eq!(predictions[0], " return");
    assert_eq!(predictions[2], " None");
}

#[tokio::test]
async fn an_instance_samples_unless_it_says_otherwise() {
    let do_sample = |instance: Value| async move {
        let mut server = scripted(|_| vec![admitted(0)]);
        let body = json!({"instances": [instance]});
        let waiting = server.router.clone().oneshot(post("/vertex", &body));
        tokio::select! {
            _ = waiting => panic!("there is no answer yet"),
            held = server.held.recv() => held.unwrap().spec.sampling.do_sample,
        }
    };
    assert!(do_sample(json!({"inputs": "a"})).await);
    assert!(do_sample(json!({"inputs": "a", "parameters": {}})).await);
    assert!(!do_sample(json!({"inputs": "a", "parameters": {"do_sample": false}})).await);
}

#[tokio::test]
async fn a_wrong_instance_is_answered_with_its_own_error() {
    let server = greedy();
    let mut overlong = Vec::new();
    for _ in 0..=limits().max_concurrent_requests {
        overlong.push(chat(json!({})));
    }
    for (instances, error) in [
        (
            json!([]),
            "`instances` must have > 0 and <= 4 entries. Given: 0",
        ),
        (
            json!(overlong),
            "`instances` must have > 0 and <= 4 entries. Given: 5",
        ),
        (
            json!([{"inputs": "a"}, {"inputs": ""}]),
            "`inputs` cannot be empty",
        ),
        (json!([chat(json!({"n": 2}))]), "`n` must be 1"),
    ] {
        let reply = predict(&server, instances).await;
        assert_eq!(reply.status, 422);
        let body = reply.json();
        assert_eq!(body["error_type"], "validation");
        assert!(body["error"].as_str().unwrap().contains(error), "{body}");
    }
    let lost = scripted(|_| vec![TokenEvent::Failed(EngineError::ShardLost("gone".into()))]);
    assert_eq!(predict(&lost, json!([{"inputs": "a"}])).await.status, 503);
}

#[tokio::test]
async fn a_failed_instance_cancels_the_others() {
    let mut server = scripted(|_| vec![admitted(0)]);
    let mut held = std::mem::replace(&mut server.held, mpsc::channel(1).1);
    let instances = json!([{"inputs": "a"}, {"inputs": "b"}]);
    // Both run before one fails, whichever came first.
    let failing = async {
        let (first, second) = (held.recv().await.unwrap(), held.recv().await.unwrap());
        let failure = TokenEvent::Failed(EngineError::Numerical);
        first.events.send(failure).await.unwrap();
        second.events.closed().await;
    };
    let (reply, ()) = tokio::join!(predict(&server, instances), failing);
    assert_eq!(reply.status, 424);
}
