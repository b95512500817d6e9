//! The road of a request over a scripted engine.

use tokio::sync::mpsc;

use super::scripted::{Greedy, Held, admitted, engine, token};
use super::*;
use crate::output::Finish;
use crate::tokenizer::tests::compat;
use crate::types::tests::limits;
use crate::types::{Parameters, SamplingMode, Tenant};

fn request(text: &str, parameters: Parameters) -> Request {
    Request {
        prompt: Prompt::Text(text.to_owned()),
        streamed: false,
        keep_stop_text: true,
        parameters,
        grammar: None,
    }
}

fn tokens(max_new_tokens: u64) -> Parameters {
    Parameters {
        max_new_tokens: Some(max_new_tokens),
        ..Parameters::default()
    }
}

fn greedy() -> Generator {
    let model = Greedy::compat();
    let (handle, _) = engine(move |spec| model.events(spec));
    Generator::new(handle, compat(), limits(), 2048)
}

/// An engine that admits sequences, gives them one token, and then leaves them open.
fn open_ended() -> (Generator, mpsc::Receiver<Held>) {
    let (handle, held) = engine(|_| vec![admitted(0), token(323, None)]);
    (Generator::new(handle, compat(), limits(), 2048), held)
}

/// The text of every sequence, and how it ended.
async fn run(generator: &Generator, request: Request) -> Vec<(String, Option<Finish>)> {
    let mut stream = generator
        .generate(&Tenant::default(), request)
        .await
        .unwrap();
    let mut texts = vec![(String::new(), None); stream.seeds.len()];
    while let Some(progress) = stream.next().await {
        let (idx, progress) = progress.unwrap();
        if let Progress::Text(delta) = progress {
            texts[idx].0.push_str(&delta.text);
            texts[idx].1 = delta.finish;
        }
    }
    texts
}

#[tokio::test]
async fn a_prompt_becomes_text_up_to_the_end_token() {
    let texts = run(&greedy(), request("x self", tokens(20))).await;
    assert_eq!(
        texts,
        [(" return None if in the".to_owned(), Some(Finish::EndToken))]
    );
}

#[tokio::test]
async fn n_sequences_are_answered_each_with_the_next_seed() {
    let parameters = Parameters {
        n: Some(2),
        mode: SamplingMode::Sample,
        seed: Some(u64::MAX),
        ..tokens(3)
    };
    let generator = greedy();
    let stream = generator
        .generate(&Tenant::default(), request("x self", parameters.clone()))
        .await
        .unwrap();
    assert_eq!(stream.seeds, [Some(u64::MAX), Some(0)]);
    drop(stream);
    let texts = run(&generator, request("x self", parameters)).await;
    assert_eq!(texts.len(), 2);
    assert_eq!(texts[0], texts[1]);
}

#[tokio::test]
async fn dropping_the_stream_cancels_the_sequence_and_returns_its_permit() {
    let (generator, mut held) = open_ended();
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(
            generator
                .generate(&Tenant::default(), request("a", tokens(9)))
                .await
                .unwrap(),
        );
    }
    let refused = generator
        .generate(&Tenant::default(), request("a", tokens(9)))
        .await;
    assert!(matches!(refused, Err(GenerateError::Overloaded)));
    drop(streams);
    for _ in 0..4 {
        held.recv().await.unwrap().events.closed().await;
    }
    assert!(
        generator
            .generate(&Tenant::default(), request("a", tokens(9)))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_stop_string_cancels_its_sequence_while_the_stream_is_still_held() {
    let (generator, mut held) = open_ended();
    let parameters = Parameters {
        stop: vec!["etu".to_owned()],
        ..tokens(9)
    };
    let mut stream = generator
        .generate(&Tenant::default(), request("a", parameters))
        .await
        .unwrap();
    let mut text = String::new();
    while let Some(progress) = stream.next().await {
        if let (_, Progress::Text(delta)) = progress.unwrap() {
            text.push_str(&delta.text);
        }
    }
    assert_eq!(text, " retu");
    held.recv().await.unwrap().events.closed().await;
    drop(stream);
}

#[tokio::test]
async fn a_refused_request_gives_its_permit_back() {
    let generator = greedy();
    for _ in 0..9 {
        let refused = generator
            .generate(&Tenant::default(), request("", tokens(1)))
            .await;
        assert!(matches!(refused, Err(GenerateError::Validation(_))));
    }
    assert!(
        generator
            .generate(&Tenant::default(), request("a", tokens(1)))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn an_error_of_one_sequence_ends_the_request_and_cancels_the_others() {
    let (handle, mut held) = engine(|spec| match spec.sampling.seed {
        1 => vec![admitted(0)],
        _ => vec![TokenEvent::Failed(EngineError::Numerical)],
    });
    let generator = Generator::new(handle, compat(), limits(), 2048);
    let parameters = Parameters {
        n: Some(2),
        seed: Some(1),
        mode: SamplingMode::Sample,
        ..tokens(3)
    };
    let mut stream = generator
        .generate(&Tenant::default(), request("a", parameters))
        .await
        .unwrap();
    let mut last = None;
    while let Some(progress) = stream.next().await {
        last = Some(progress);
    }
    assert!(matches!(
        last,
        Some(Err(GenerateError::Engine(EngineError::Numerical)))
    ));
    held.recv().await.unwrap().events.closed().await;
}

#[tokio::test]
async fn an_engine_that_dies_is_an_incomplete_generation() {
    let (generator, mut held) = open_ended();
    let mut stream = generator
        .generate(&Tenant::default(), request("a", tokens(9)))
        .await
        .unwrap();
    drop(held.recv().await.unwrap());
    let mut last = None;
    while let Some(progress) = stream.next().await {
        last = Some(progress);
    }
    assert!(matches!(last, Some(Err(GenerateError::Incomplete))));
}

#[tokio::test]
async fn the_engine_gets_what_the_client_asked_for() {
    let (generator, mut held) = open_ended();
    let parameters = Parameters {
        ignore_eos: true,
        stop_token_ids: vec![7],
        min_new_tokens: Some(2),
        presence_penalty: Some(0.5),
        logit_bias: vec![(5, -100.0)],
        top_n_tokens: Some(2),
        ..tokens(9)
    };
    let _stream = generator
        .generate(&Tenant::default(), request("a", parameters))
        .await
        .unwrap();
    let spec = held.recv().await.unwrap().spec;
    assert_eq!(spec.prompt, [68]);
    assert_eq!(spec.max_new_tokens, 9);
    assert_eq!(spec.end_token_ids, [7]);
    assert_eq!(spec.sampling.min_new_tokens, 2);
    assert_eq!(spec.sampling.presence_penalty, 0.5);
    assert_eq!(spec.sampling.logit_bias, [(5, -100.0)]);
    assert_eq!(spec.sampling.num_top_tokens, 2);
    assert!(!spec.sampling.do_sample);
}

#[test]
fn a_length_that_the_engine_cannot_hold_is_a_validation_error() {
    let error = GenerateError::from(EngineError::TooLong {
        tokens: 9,
        capacity: 8,
    });
    assert!(matches!(error, GenerateError::Validation(_)));
}
