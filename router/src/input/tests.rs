//! What validation lets through, and in which words it refuses.

use proptest::prelude::*;

use super::*;
use crate::tokenizer::tests::compat;
use crate::types::tests::limits;
use crate::types::{Parameters, SamplingMode};

fn validator() -> Validator {
    Validator::new(compat(), limits(), 2048)
}

fn validate(prompt: Prompt, parameters: Parameters) -> Result<ValidRequest, ValidationError> {
    validator().validate_now(Request {
        prompt,
        streamed: false,
        keep_stop_text: true,
        parameters,
        grammar: None,
    })
}

fn text(text: &str) -> Prompt {
    Prompt::Text(text.to_owned())
}

fn accepted(parameters: Parameters) -> SequenceSpec {
    validate(text("x self"), parameters).unwrap().sequence(0, 7)
}

fn refused(parameters: Parameters) -> String {
    validate(text("x self"), parameters)
        .unwrap_err()
        .to_string()
}

fn given() -> Parameters {
    Parameters {
        max_new_tokens: Some(8),
        ..Parameters::default()
    }
}

#[test]
fn nothing_asked_means_greedy_up_to_the_total() {
    let spec = accepted(Parameters::default());
    assert_eq!(spec.max_new_tokens, 766);
    assert_eq!(spec.end_token_ids, [2]);
    assert!(!spec.sampling.do_sample);
    assert!(spec.read_prefix_cache);
}

#[test]
fn a_filter_alone_makes_it_sample() {
    let samples = |parameters| accepted(parameters).sampling.do_sample;
    assert!(samples(Parameters {
        top_k: Some(5),
        ..given()
    }));
    assert!(samples(Parameters {
        top_p: Some(0.5),
        ..given()
    }));
    assert!(samples(Parameters {
        temperature: Some(0.5),
        ..given()
    }));
    assert!(!samples(Parameters {
        repetition_penalty: Some(1.3),
        ..given()
    }));
    let greedy = SamplingMode::Greedy;
    assert!(!samples(Parameters {
        top_p: Some(0.5),
        mode: greedy,
        ..given()
    }));
}

#[test]
fn one_turns_top_p_and_typical_p_off() {
    let spec = accepted(Parameters {
        top_p: Some(1.0),
        typical_p: Some(1.0),
        ..given()
    });
    assert_eq!((spec.sampling.top_p, spec.sampling.typical_p), (1.0, 1.0));
    assert!(!spec.sampling.do_sample);
}

#[test]
fn a_top_k_above_the_vocabulary_is_accepted() {
    let spec = accepted(Parameters {
        top_k: Some(i64::from(i32::MAX)),
        ..given()
    });
    assert_eq!(spec.sampling.top_k, i32::MAX as u32);
}

#[test]
fn a_tiny_temperature_does_not_become_zero() {
    let spec = accepted(Parameters {
        temperature: Some(1e-300),
        ..given()
    });
    assert!(spec.sampling.temperature > 0.0);
}

#[test]
fn numbers_that_are_not_finite_are_refused_by_name() {
    for value in [f64::NAN, f64::INFINITY, 1e39, -1e39] {
        let parameters = Parameters {
            temperature: Some(value),
            ..given()
        };
        assert_eq!(refused(parameters), "`temperature` must be a finite number");
    }
}

#[test]
fn the_first_fault_is_told_in_tgis_order() {
    let all = Parameters {
        temperature: Some(-1.0),
        top_p: Some(2.0),
        top_k: Some(-5),
        max_new_tokens: Some(0),
        ..Parameters::default()
    };
    assert_eq!(
        refused(all.clone()),
        "`temperature` must be strictly positive"
    );
    let best_of = Parameters {
        best_of: Some(9),
        ..all
    };
    assert_eq!(refused(best_of), "`best_of` must be > 0 and <= 2. Given: 9");
}

#[test]
fn best_of_needs_sampling_without_a_seed() {
    let best_of = Parameters {
        best_of: Some(2),
        ..given()
    };
    assert_eq!(
        refused(best_of.clone()),
        "you must use sampling when `best_of` is > 1"
    );
    let seeded = Parameters {
        mode: SamplingMode::Sample,
        seed: Some(1),
        ..best_of
    };
    assert_eq!(refused(seeded), "`seed` must not be set when `best_of` > 1");
    let none = Parameters {
        best_of: Some(0),
        ..given()
    };
    assert_eq!(refused(none), "`best_of` must be > 0 and <= 2. Given: 0");
}

#[test]
fn token_ids_are_checked_against_the_models_vocabulary() {
    let bias = Parameters {
        logit_bias: vec![(2048, 1.0)],
        ..given()
    };
    assert_eq!(
        refused(bias),
        "`logit_bias` names a token outside the vocabulary of 2048. Given: 2048"
    );
    let stop = Parameters {
        stop_token_ids: vec![u64::MAX],
        ..given()
    };
    assert!(refused(stop).starts_with("`stop_token_ids` names a token outside"));
    let prompt = validate(Prompt::TokenIds(vec![1, 4000]), given());
    assert!(
        prompt
            .unwrap_err()
            .to_string()
            .starts_with("`prompt` names a token outside")
    );
}

#[test]
fn a_prompt_of_tokens_is_taken_as_it_is() {
    let valid = validate(Prompt::TokenIds(vec![7, 2, 7]), given()).unwrap();
    assert_eq!(&*valid.prompt_ids, [7, 2, 7]);
    assert_eq!(
        validate(Prompt::TokenIds(Vec::new()), given()).unwrap_err(),
        ValidationError::EmptyInput
    );
}

#[test]
fn a_prompt_that_is_too_long_in_bytes_is_refused_before_it_is_tokenized() {
    let error = validate(text(&"hello ".repeat(300_000)), given()).unwrap_err();
    assert!(
        matches!(error, ValidationError::InputBytes { max: 512, .. }),
        "{error}"
    );
}

#[test]
fn truncate_keeps_the_end_even_of_a_prompt_that_is_too_long() {
    let prompt = "hello ".repeat(300_000) + "x self";
    let parameters = Parameters {
        truncate: Some(2),
        ..given()
    };
    let valid = validate(text(&prompt), parameters).unwrap();
    assert_eq!(
        *valid.prompt_ids,
        compat().encode(" x self", false).unwrap()[..]
    );
}

#[test]
fn exactly_the_longest_prompt_is_accepted() {
    let prompt = |tokens: usize| text(&format!("x{}", " if".repeat(tokens - 1)));
    assert!(validate(prompt(512), given()).is_ok());
    assert_eq!(
        validate(prompt(513), given()).unwrap_err().to_string(),
        "`inputs` must have less than 512 tokens. Given: 513"
    );
}

#[test]
fn the_sum_is_checked_before_the_prompts_own_length() {
    let prompt = text(&format!("x{}", " if".repeat(899)));
    assert_eq!(
        validate(prompt, given()).unwrap_err().to_string(),
        "`inputs` tokens + `max_new_tokens` must be <= 768. Given: 900 `inputs` tokens and 8 `max_new_tokens`"
    );
}

#[test]
fn the_whole_total_may_be_asked_for_and_not_one_token_more() {
    let ask = |tokens| Parameters {
        max_new_tokens: Some(tokens),
        ..Parameters::default()
    };
    assert_eq!(accepted(ask(766)).max_new_tokens, 766);
    assert!(refused(ask(767)).ends_with("Given: 2 `inputs` tokens and 767 `max_new_tokens`"));
    assert!(refused(ask(u64::MAX)).ends_with("and 1024 `max_new_tokens`"));
}

#[test]
fn more_required_than_allowed_tokens_are_refused() {
    let parameters = Parameters {
        min_new_tokens: Some(9),
        ..given()
    };
    assert!(refused(parameters).starts_with("`min_tokens`"));
}

#[test]
fn what_streams_cannot_do_is_refused() {
    let streamed = |parameters| {
        let request = Request {
            prompt: text("a"),
            streamed: true,
            keep_stop_text: true,
            parameters,
            grammar: None,
        };
        validator().validate_now(request).unwrap_err().to_string()
    };
    let best_of = Parameters {
        best_of: Some(2),
        ..given()
    };
    assert_eq!(
        streamed(best_of),
        "`best_of` != 1 is not supported when streaming tokens"
    );
    let details = Parameters {
        prompt_logprobs: true,
        ..given()
    };
    assert_eq!(
        streamed(details),
        "`decoder_input_details` == true is not supported when streaming tokens"
    );
}

#[test]
fn prompt_logprobs_are_computed_only_where_the_server_gives_them() {
    let asked = || Parameters {
        prompt_logprobs: true,
        ..given()
    };
    assert!(!accepted(asked()).sampling.prompt_logprobs);
    let limits = Limits {
        enable_prefill_logprobs: true,
        ..limits()
    };
    let validator = Validator::new(compat(), limits, 2048);
    let request = Request {
        prompt: text("a b"),
        streamed: false,
        keep_stop_text: true,
        parameters: asked(),
        grammar: None,
    };
    let spec = validator.validate_now(request).unwrap().sequence(0, 7);
    assert!(spec.sampling.prompt_logprobs);
    assert!(!spec.read_prefix_cache);
}

#[test]
fn seeds_that_are_not_given_differ() {
    let seed = || {
        accepted(Parameters {
            mode: SamplingMode::Sample,
            ..given()
        })
        .sampling
        .seed
    };
    assert_ne!(seed(), seed());
}

proptest! {
    #[test]
    fn no_number_a_client_can_type_gets_through_out_of_range(
        floats in prop::array::uniform6(prop::option::of(prop::num::f64::ANY)),
        counts in prop::array::uniform6(prop::option::of(any::<u64>())),
        top_k in prop::option::of(any::<i64>()),
    ) {
        let [temperature, top_p, typical_p, min_p, repetition_penalty, frequency_penalty] = floats;
        let [best_of, n, max_new_tokens, min_new_tokens, truncate, top_n_tokens] = counts;
        let parameters = Parameters {
            temperature, top_p, typical_p, min_p, repetition_penalty, frequency_penalty, top_k,
            best_of, n, max_new_tokens, min_new_tokens, truncate, top_n_tokens,
            ..Parameters::default()
        };
        if let Ok(valid) = validate(text("a"), parameters) {
            let spec = valid.sequence(0, 7);
            let sampling = &spec.sampling;
            prop_assert!(sampling.temperature > 0.0 && sampling.temperature.is_finite());
            prop_assert!(sampling.top_p > 0.0 && sampling.top_p <= 1.0);
            prop_assert!(sampling.typical_p > 0.0 && sampling.typical_p <= 1.0);
            prop_assert!((0.0..=1.0).contains(&sampling.min_p));
            prop_assert!(sampling.repetition_penalty > 0.0 && sampling.repetition_penalty.is_finite());
            prop_assert!((-2.0..=2.0).contains(&sampling.frequency_penalty));
            prop_assert!(spec.max_new_tokens >= 1 && spec.prompt.len() + spec.max_new_tokens as usize <= 768);
            prop_assert!(sampling.min_new_tokens <= spec.max_new_tokens);
            prop_assert!(valid.num_sequences >= 1 && valid.num_sequences <= 2);
            prop_assert!(sampling.num_top_tokens <= 5);
        }
    }
}

#[test]
fn a_watermark_is_the_servers_where_it_is_asked_for_and_off_elsewhere() {
    let marked = Parameters {
        watermark: true,
        ..Parameters::default()
    };
    let of = |parameters| {
        let sampling = accepted(parameters).sampling;
        (sampling.watermark_gamma, sampling.watermark_delta)
    };
    assert_eq!(of(marked), (0.5, 2.0));
    assert_eq!(of(Parameters::default()).1, 0.0);
}
