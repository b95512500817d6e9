//! Between the scheduler's plain types and the generated ones. Nothing is decided here; what a shard says is checked before it
//! becomes a plain type.

use scheduler::plan;

use super::{KvCache, PrepareParameters, proto};

pub(super) fn plan_to_proto(plan: &plan::StepPlan) -> proto::StepPlan {
    proto::StepPlan {
        step_id: plan.step_id,
        forget: plan.forget.iter().map(|id| id.0).collect(),
        new_sequences: plan
            .new_sequences
            .iter()
            .map(new_sequence_to_proto)
            .collect(),
        rows: plan.rows.iter().map(row_to_proto).collect(),
    }
}

fn new_sequence_to_proto(new: &plan::NewSequence) -> proto::NewSequence {
    proto::NewSequence {
        sequence_id: new.sequence_id.0,
        token_ids: new.token_ids.clone(),
        prompt_len: new.prompt_len,
        num_computed_tokens: new.num_cached_tokens,
        sampling: Some(sampling_to_proto(&new.sampling)),
    }
}

fn row_to_proto(row: &plan::Row) -> proto::Row {
    proto::Row {
        sequence_id: row.sequence_id.0,
        num_scheduled_tokens: row.num_scheduled_tokens,
        new_block_ids: row.new_block_ids.iter().map(|id| id.0).collect(),
    }
}

fn sampling_to_proto(sampling: &plan::SamplingParameters) -> proto::SamplingParameters {
    let logit_bias = sampling.logit_bias.iter();
    proto::SamplingParameters {
        do_sample: sampling.do_sample,
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        typical_p: sampling.typical_p,
        min_p: sampling.min_p,
        seed: sampling.seed,
        repetition_penalty: sampling.repetition_penalty,
        frequency_penalty: sampling.frequency_penalty,
        presence_penalty: sampling.presence_penalty,
        logit_bias: logit_bias
            .map(|&(token_id, bias)| proto::LogitBias { token_id, bias })
            .collect(),
        min_new_tokens: sampling.min_new_tokens,
        end_token_ids: sampling.end_token_ids.clone(),
        num_top_tokens: sampling.num_top_tokens,
        prompt_logprobs: sampling.prompt_logprobs,
    }
}

/// Refuses token ids that are not in the vocabulary and errors that the contract does not name.
pub(super) fn result_from_proto(
    result: proto::StepResult,
    vocab_size: u32,
) -> Result<plan::StepResult, String> {
    let rows = result.rows.into_iter();
    Ok(plan::StepResult {
        step_id: result.step_id,
        rows: rows
            .map(|row| row_result_from_proto(row, vocab_size))
            .collect::<Result<_, _>>()?,
    })
}

fn row_result_from_proto(
    row: proto::RowResult,
    vocab_size: u32,
) -> Result<plan::RowResult, String> {
    use proto::row_result::Outcome;
    let outcome = match row.outcome {
        None => None,
        Some(Outcome::Token(token)) => Some(plan::RowOutcome::Token(token_from_proto(
            token, vocab_size,
        )?)),
        Some(Outcome::Error(error)) => match proto::RowError::try_from(error) {
            Ok(proto::RowError::Numerical) => {
                Some(plan::RowOutcome::Error(plan::RowError::Numerical))
            }
            _ => return Err(format!("row error {error} is not in the contract")),
        },
    };
    Ok(plan::RowResult {
        sequence_id: plan::SequenceId(row.sequence_id),
        outcome,
        prompt_logprobs: row.prompt_logprobs,
    })
}

fn token_from_proto(
    token: proto::SampledToken,
    vocab_size: u32,
) -> Result<plan::SampledToken, String> {
    let top_tokens: Vec<_> = token
        .top_tokens
        .iter()
        .map(|top| (top.token_id, top.logprob))
        .collect();
    let mut token_ids = top_tokens.iter().map(|top| top.0).chain([token.token_id]);
    if let Some(token_id) = token_ids.find(|&token_id| token_id >= vocab_size) {
        return Err(format!(
            "token {token_id} is outside the vocabulary of {vocab_size}"
        ));
    }
    Ok(plan::SampledToken {
        token_id: token.token_id,
        logprob: token.logprob,
        top_tokens,
    })
}

pub(super) fn prepare_to_proto(parameters: &PrepareParameters) -> proto::PrepareRequest {
    proto::PrepareRequest {
        max_batch_prefill_tokens: parameters.max_batch_prefill_tokens,
        max_batch_size: parameters.max_batch_size,
        max_total_tokens: parameters.max_total_tokens,
        max_batch_total_tokens: parameters.max_batch_total_tokens,
        block_size: parameters.block_size,
    }
}

pub(super) fn kv_cache_from_proto(response: proto::PrepareResponse) -> KvCache {
    KvCache {
        num_blocks: response.num_blocks,
        block_size: response.block_size,
        kv_cache_bytes: response.kv_cache_bytes,
    }
}
