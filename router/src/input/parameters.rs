//! Checks what a client asks for and turns it into sampling parameters. The order of the checks is TGI's, because a request with
//! two faults is answered with the first. No number gets past here that is not finite and in range as the type it becomes.

use std::hash::{BuildHasher, Hasher};

use scheduler::plan::SamplingParameters;

use super::ValidationError;
use crate::types::{Limits, Parameters, Request, SamplingMode};

const MAX_STOP_BYTES: usize = 2048;
const MAX_LOGIT_BIAS: usize = 1024;
const MAX_STOP_TOKEN_IDS: usize = 128;

/// What is known of a request without its prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckedParameters {
    /// `min_new_tokens` is still to be compared with the length.
    pub sampling: SamplingParameters,
    pub num_sequences: usize,
    pub stop: Vec<String>,
    pub end_token_ids: Vec<u32>,
    pub max_new_tokens: Option<u64>,
    pub min_new_tokens: u64,
    pub truncate: Option<usize>,
}

/// How many sequences the request needs, checked first because everything else is paid that many times.
pub fn num_sequences(request: &Request, limits: &Limits) -> Result<usize, ValidationError> {
    let max = limits.max_best_of;
    let given = request.parameters.best_of.unwrap_or(1);
    if request.streamed && given != 1 {
        return Err(ValidationError::BestOfStreamed);
    }
    if given < 1 || given > max as u64 {
        return Err(ValidationError::BestOf { max, given });
    }
    let n = request.parameters.n.unwrap_or(1);
    if n < 1 || n > max as u64 {
        return Err(ValidationError::N { max, given: n });
    }
    Ok(given.max(n) as usize)
}

/// Everything that can be checked before the prompt is looked at.
pub fn check(
    request: &Request,
    limits: &Limits,
    vocab_size: u32,
    end_token_ids: &[u32],
) -> Result<CheckedParameters, ValidationError> {
    let given = &request.parameters;
    let num_sequences = num_sequences(request, limits)?;
    if request.streamed && given.prompt_logprobs {
        return Err(ValidationError::PromptLogprobsStreamed);
    }
    let best_of = given.best_of.unwrap_or(1);
    if best_of > 1 && !asks_to_sample(given) {
        return Err(ValidationError::BestOfNeedsSampling);
    }
    let mut sampling = check_sampling(given)?;
    if given.max_new_tokens == Some(0) {
        return Err(ValidationError::MaxNewTokens);
    }
    check_stop(&given.stop, limits)?;
    if best_of > 1 && given.seed.is_some() {
        return Err(ValidationError::BestOfWithSeed);
    }
    sampling.seed = given.seed.unwrap_or_else(random_seed);
    sampling.num_top_tokens = check_top_n_tokens(given.top_n_tokens, limits)?;
    sampling.logit_bias = check_logit_bias(&given.logit_bias, vocab_size)?;
    sampling.prompt_logprobs = given.prompt_logprobs && limits.enable_prefill_logprobs;
    if given.watermark {
        sampling.watermark_gamma = limits.watermark.gamma;
        sampling.watermark_delta = limits.watermark.delta;
    }
    // A grammar that is through leaves nothing but an end token.
    let has_grammar = request.grammar.is_some() || request.prompt.tools().is_some();
    let goes_on = given.ignore_eos && !has_grammar;
    let end_token_ids = if goes_on { &[] } else { end_token_ids };
    sampling.end_token_ids = check_end_tokens(given, vocab_size, end_token_ids)?;
    Ok(CheckedParameters {
        num_sequences,
        stop: given.stop.clone(),
        end_token_ids: sampling.end_token_ids.clone(),
        max_new_tokens: given.max_new_tokens,
        min_new_tokens: given.min_new_tokens.unwrap_or(0),
        truncate: check_truncate(given.truncate, limits)?,
        sampling,
    })
}

/// TGI counts the parameters that are there, whatever their value.
fn asks_to_sample(given: &Parameters) -> bool {
    given.mode == SamplingMode::Sample
        || given.temperature.is_some()
        || given.top_k.is_some()
        || given.top_p.is_some()
        || given.typical_p.is_some()
        || given.min_p.is_some()
}

fn check_sampling(given: &Parameters) -> Result<SamplingParameters, ValidationError> {
    use ValidationError as Error;
    let positive = |value: f32| value > 0.0;
    let symmetric = |value: f32| (-2.0..=2.0).contains(&value);
    let share = |value: f32| value > 0.0 && value <= 1.0;
    let temperature = number("temperature", given.temperature, 1.0)?;
    ensure(positive(temperature), Error::Temperature)?;
    let repetition_penalty = number("repetition_penalty", given.repetition_penalty, 1.0)?;
    ensure(positive(repetition_penalty), Error::RepetitionPenalty)?;
    let frequency_penalty = number("frequency_penalty", given.frequency_penalty, 0.0)?;
    ensure(symmetric(frequency_penalty), Error::FrequencyPenalty)?;
    let presence_penalty = number("presence_penalty", given.presence_penalty, 0.0)?;
    ensure(symmetric(presence_penalty), Error::PresencePenalty)?;
    let top_p = number("top_p", given.top_p, 1.0)?;
    ensure(share(top_p), Error::TopP)?;
    let typical_p = number("typical_p", given.typical_p, 1.0)?;
    ensure(share(typical_p), Error::TypicalP)?;
    let min_p = number("min_p", given.min_p, 0.0)?;
    ensure((0.0..=1.0).contains(&min_p), Error::MinP)?;
    // 0 is "off" inside, but a client who types 0 is told; a top_k above the vocabulary is harmless.
    let top_k = given.top_k.unwrap_or(1);
    ensure(top_k > 0, Error::TopK)?;
    let top_k = given.top_k.map_or(0, |_| u32::try_from(top_k).unwrap_or(0));

    let filtered =
        temperature != 1.0 || top_k != 0 || top_p < 1.0 || typical_p < 1.0 || min_p > 0.0;
    Ok(SamplingParameters {
        do_sample: match given.mode {
            SamplingMode::Sample => true,
            SamplingMode::Greedy => false,
            SamplingMode::IfFiltered => filtered,
        },
        temperature,
        top_k,
        top_p,
        typical_p,
        min_p,
        repetition_penalty,
        frequency_penalty,
        presence_penalty,
        ..SamplingParameters::default()
    })
}

fn ensure(holds: bool, error: ValidationError) -> Result<(), ValidationError> {
    if holds { Ok(()) } else { Err(error) }
}

/// As the 32-bit number it becomes; a value that is infinite there is refused.
fn number(name: &'static str, value: Option<f64>, default: f32) -> Result<f32, ValidationError> {
    let Some(value) = value else {
        return Ok(default);
    };
    let narrow = value as f32;
    // A tiny temperature must not turn into 0.
    let narrow = if narrow == 0.0 && value > 0.0 {
        f32::MIN_POSITIVE
    } else {
        narrow
    };
    if narrow.is_finite() {
        Ok(narrow)
    } else {
        Err(ValidationError::NotFinite(name))
    }
}

fn check_stop(stop: &[String], limits: &Limits) -> Result<(), ValidationError> {
    let max = limits.max_stop_sequences;
    if stop.len() > max {
        return Err(ValidationError::StopCount {
            max,
            given: stop.len(),
        });
    }
    match stop.iter().map(String::len).max() {
        Some(given) if given > MAX_STOP_BYTES => Err(ValidationError::StopLength {
            max: MAX_STOP_BYTES,
            given,
        }),
        _ => Ok(()),
    }
}

fn check_top_n_tokens(given: Option<u64>, limits: &Limits) -> Result<u32, ValidationError> {
    let given = given.unwrap_or(0);
    let max = limits.max_top_n_tokens;
    match u32::try_from(given) {
        Ok(count) if count <= max => Ok(count),
        _ => Err(ValidationError::TopNTokens { max, given }),
    }
}

fn check_logit_bias(
    given: &[(u64, f64)],
    vocab_size: u32,
) -> Result<Vec<(u32, f32)>, ValidationError> {
    check_count("logit_bias", MAX_LOGIT_BIAS, given.len())?;
    let entry = |&(id, bias): &(u64, f64)| {
        let id = check_token_id("logit_bias", id, vocab_size)?;
        ensure((-100.0..=100.0).contains(&bias), ValidationError::LogitBias)?;
        Ok((id, bias as f32))
    };
    given.iter().map(entry).collect()
}

fn check_end_tokens(
    given: &Parameters,
    vocab_size: u32,
    of_model: &[u32],
) -> Result<Vec<u32>, ValidationError> {
    check_count(
        "stop_token_ids",
        MAX_STOP_TOKEN_IDS,
        given.stop_token_ids.len(),
    )?;
    let mut ids = of_model.to_vec();
    for id in &given.stop_token_ids {
        ids.push(check_token_id("stop_token_ids", *id, vocab_size)?);
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

fn check_count(field: &'static str, max: usize, given: usize) -> Result<(), ValidationError> {
    ensure(
        given <= max,
        ValidationError::TooManyEntries { field, max, given },
    )
}

pub(super) fn check_token_id(
    field: &'static str,
    given: u64,
    vocab_size: u32,
) -> Result<u32, ValidationError> {
    match u32::try_from(given) {
        Ok(id) if id < vocab_size => Ok(id),
        _ => Err(ValidationError::TokenId {
            field,
            vocab_size,
            given,
        }),
    }
}

fn check_truncate(given: Option<u64>, limits: &Limits) -> Result<Option<usize>, ValidationError> {
    let max = limits.max_input_tokens;
    match given {
        None => Ok(None),
        Some(given) if given == 0 || given > max as u64 => {
            Err(ValidationError::Truncate { max, given })
        }
        Some(given) => Ok(Some(given as usize)),
    }
}

/// Unpredictable enough for sampling. The standard library's hash keys come from the operating system's randomness, and differ
/// with each call.
fn random_seed() -> u64 {
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
}
