//! Between the scheduler's plain types and the generated ones. Nothing is decided here; what a shard says is checked before it
//! becomes a plain type.

use scheduler::plan;

use super::{KvCache, PlanMasks, PrepareParameters, proto};
use crate::types::TokenMask;

/// A plan and what is known of its masks.
pub(super) fn plan_to_proto(plan: &plan::StepPlan, masking: &PlanMasks) -> proto::RunRequest {
    let is_masked = |row: &plan::Row| row.samples && masking.is_masked(row.sequence_id);
    let rows = plan.rows.iter();
    let plan = proto::StepPlan {
        step_id: plan.step_id,
        forget: plan.forget.iter().map(|id| id.0).collect(),
        new_sequences: plan
            .new_sequences
            .iter()
            .map(new_sequence_to_proto)
            .collect(),
        rows: rows.map(|row| row_to_proto(row, is_masked(row))).collect(),
        masks: masking.known.iter().map(mask_to_proto).collect(),
    };
    proto::RunRequest {
        request: Some(proto::run_request::Request::Plan(plan)),
    }
}

/// A mask of a plan that was sent without it.
pub(super) fn late_mask_to_proto(
    step_id: u64,
    mask: &(plan::SequenceId, TokenMask),
) -> proto::RunRequest {
    let masks = proto::StepMasks {
        step_id,
        masks: vec![mask_to_proto(mask)],
    };
    proto::RunRequest {
        request: Some(proto::run_request::Request::LateMasks(masks)),
    }
}

fn mask_to_proto((sequence_id, mask): &(plan::SequenceId, TokenMask)) -> proto::TokenMask {
    let words = mask.words().iter();
    proto::TokenMask {
        sequence_id: sequence_id.0,
        allowed: words.flat_map(|word| word.to_le_bytes()).collect(),
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

fn row_to_proto(row: &plan::Row, masked: bool) -> proto::Row {
    proto::Row {
        masked,
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use plan::{BlockId, RowError, RowOutcome, SampledToken, SequenceId};
    use prost::Message;

    use super::*;

    fn plan() -> plan::StepPlan {
        plan::StepPlan {
            step_id: 7,
            forget: vec![SequenceId(1), SequenceId(u64::MAX)],
            new_sequences: vec![plan::NewSequence {
                sequence_id: SequenceId(3),
                token_ids: vec![5, 6, 7],
                prompt_len: 2,
                num_cached_tokens: 1,
                sampling: Arc::new(sampling()),
            }],
            rows: vec![plan::Row {
                sequence_id: SequenceId(3),
                num_scheduled_tokens: 2,
                new_block_ids: vec![BlockId(9), BlockId(8)],
                samples: true,
            }],
        }
    }

    /// Every field differs from its default and from its neighbours.
    fn sampling() -> plan::SamplingParameters {
        plan::SamplingParameters {
            do_sample: true,
            temperature: 0.25,
            top_k: 11,
            top_p: 0.5,
            typical_p: 0.75,
            min_p: 0.125,
            seed: u64::MAX,
            repetition_penalty: 1.5,
            frequency_penalty: -0.5,
            presence_penalty: 0.375,
            logit_bias: vec![(4, -100.0), (2, 1.0)],
            min_new_tokens: 12,
            end_token_ids: vec![0, 1],
            num_top_tokens: 13,
            prompt_logprobs: true,
        }
    }

    /// The way back, which only the shards need.
    fn plan_from_proto(plan: proto::StepPlan) -> plan::StepPlan {
        let new_sequence = |new: proto::NewSequence| plan::NewSequence {
            sequence_id: SequenceId(new.sequence_id),
            token_ids: new.token_ids,
            prompt_len: new.prompt_len,
            num_cached_tokens: new.num_computed_tokens,
            sampling: Arc::new(sampling_from_proto(new.sampling.unwrap())),
        };
        let row = |row: proto::Row| plan::Row {
            sequence_id: SequenceId(row.sequence_id),
            num_scheduled_tokens: row.num_scheduled_tokens,
            new_block_ids: row.new_block_ids.into_iter().map(BlockId).collect(),
            samples: true,
        };
        plan::StepPlan {
            step_id: plan.step_id,
            forget: plan.forget.into_iter().map(SequenceId).collect(),
            new_sequences: plan.new_sequences.into_iter().map(new_sequence).collect(),
            rows: plan.rows.into_iter().map(row).collect(),
        }
    }

    fn sampling_from_proto(sampling: proto::SamplingParameters) -> plan::SamplingParameters {
        let bias = |bias: proto::LogitBias| (bias.token_id, bias.bias);
        plan::SamplingParameters {
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
            logit_bias: sampling.logit_bias.into_iter().map(bias).collect(),
            min_new_tokens: sampling.min_new_tokens,
            end_token_ids: sampling.end_token_ids,
            num_top_tokens: sampling.num_top_tokens,
            prompt_logprobs: sampling.prompt_logprobs,
        }
    }

    fn result_with(outcome: Option<proto::row_result::Outcome>) -> proto::StepResult {
        proto::StepResult {
            step_id: 7,
            rows: vec![proto::RowResult {
                sequence_id: 3,
                outcome,
                prompt_logprobs: vec![-1.0, -2.0],
            }],
            compute_us: 5,
        }
    }

    fn token(token_id: u32, top_token_id: u32) -> Option<proto::row_result::Outcome> {
        let top_tokens = vec![proto::TopToken {
            token_id: top_token_id,
            logprob: -0.25,
        }];
        Some(proto::row_result::Outcome::Token(proto::SampledToken {
            token_id,
            logprob: -0.5,
            top_tokens,
        }))
    }

    #[test]
    fn a_plan_survives_the_wire() {
        let decoded = sent(&PlanMasks::default());
        assert!(!decoded.rows[0].masked && decoded.masks.is_empty());
        assert_eq!(plan_from_proto(decoded), plan());
    }

    fn sent(masking: &PlanMasks) -> proto::StepPlan {
        let bytes = plan_to_proto(&plan(), masking).encode_to_vec();
        let decoded = proto::RunRequest::decode(bytes.as_slice()).unwrap();
        match decoded.request {
            Some(proto::run_request::Request::Plan(plan)) => plan,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn masks_go_with_their_plan_or_after_it() {
        let mask = (SequenceId(3), TokenMask::new(&[1, 0x8000_0002]));
        let known = PlanMasks {
            known: vec![mask.clone()],
            owed: Vec::new(),
        };
        let plan = sent(&known);
        assert!(plan.rows[0].masked);
        assert_eq!(plan.masks[0].sequence_id, 3);
        assert_eq!(plan.masks[0].allowed, [1, 0, 0, 0, 2, 0, 0, 0x80]);
        let owed = PlanMasks {
            known: Vec::new(),
            owed: vec![SequenceId(3)],
        };
        let plan = sent(&owed);
        assert!(plan.rows[0].masked && plan.masks.is_empty());
        match late_mask_to_proto(7, &mask).request {
            Some(proto::run_request::Request::LateMasks(late)) => {
                assert_eq!((late.step_id, late.masks.len()), (7, 1));
                assert_eq!(late.masks[0].sequence_id, 3);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_result_survives_the_wire() {
        let bytes = result_with(token(9, 8)).encode_to_vec();
        let decoded = proto::StepResult::decode(bytes.as_slice()).unwrap();
        let row = &result_from_proto(decoded, 10).unwrap().rows[0];
        let expected = SampledToken {
            token_id: 9,
            logprob: -0.5,
            top_tokens: vec![(8, -0.25)],
        };
        assert_eq!(row.sequence_id, SequenceId(3));
        assert_eq!(row.outcome, Some(RowOutcome::Token(expected)));
        assert_eq!(row.prompt_logprobs, [-1.0, -2.0]);
    }

    #[test]
    fn a_row_may_fail_or_have_no_token_yet() {
        let numerical = proto::row_result::Outcome::Error(proto::RowError::Numerical.into());
        let failed = result_from_proto(result_with(Some(numerical)), 10).unwrap();
        let expected = Some(RowOutcome::Error(RowError::Numerical));
        assert_eq!(failed.rows[0].outcome, expected);
        let unfinished = result_from_proto(result_with(None), 10).unwrap();
        assert_eq!(unfinished.rows[0].outcome, None);
    }

    #[test]
    fn tokens_outside_the_vocabulary_are_refused() {
        for outside in [token(10, 0), token(0, 10)] {
            let message = result_from_proto(result_with(outside), 10).unwrap_err();
            assert_eq!(message, "token 10 is outside the vocabulary of 10");
        }
    }

    #[test]
    fn an_error_that_the_contract_does_not_name_is_refused() {
        for code in [0, 77] {
            let unknown = Some(proto::row_result::Outcome::Error(code));
            assert!(result_from_proto(result_with(unknown), 10).is_err());
        }
    }
}
