//! A result that contradicts its plan is refused as a whole.

use super::{config, id, invariants, spec, tokens};
use crate::plan::{StepPlan, StepResult};
use crate::{ProtocolError, Scheduler};

/// 1 has sampled; 2 is at the first chunk of its prompt.
fn mixed() -> (Scheduler, StepPlan) {
    let mut scheduler = Scheduler::new(config());
    scheduler.must_add(1, spec(0..4, 9));
    scheduler.must_add(2, spec(0..20, 9));
    let plan = scheduler.must_schedule();
    (scheduler, plan)
}

/// The error, after checking that the right answer is still accepted.
fn refusal(sampled: &[(u64, u32)]) -> ProtocolError {
    let (mut scheduler, plan) = mixed();
    let error = scheduler.apply(tokens(&plan, sampled)).unwrap_err();
    invariants::check(&scheduler);
    assert_eq!(scheduler.must_apply(tokens(&plan, &[(1, 7)])).len(), 1);
    error
}

#[test]
fn a_missing_token_is_refused() {
    let expected = ProtocolError::MissingToken {
        step_id: 1,
        sequence_id: id(1),
    };
    assert_eq!(refusal(&[]), expected);
    assert_eq!(
        expected.to_string(),
        "result of step 1: sequence 1 sampled no token"
    );
}

#[test]
fn a_token_before_the_end_of_the_known_ones_is_refused() {
    let expected = ProtocolError::UnexpectedToken {
        step_id: 1,
        sequence_id: id(2),
    };
    assert_eq!(refusal(&[(1, 7), (2, 7)]), expected);
}

#[test]
fn a_row_that_is_not_in_the_plan_is_refused() {
    let unexpected = |sequence_id| ProtocolError::UnexpectedRow {
        step_id: 1,
        sequence_id: id(sequence_id),
    };
    assert_eq!(refusal(&[(1, 7), (3, 7)]), unexpected(3));
    assert_eq!(refusal(&[(1, 7), (1, 7)]), unexpected(1));
}

#[test]
fn rows_in_another_order_are_refused() {
    let mut scheduler = Scheduler::new(config());
    scheduler.must_add(1, spec(0..4, 9));
    scheduler.must_add(2, spec(0..4, 9));
    let plan = scheduler.must_schedule();
    assert!(scheduler.apply(tokens(&plan, &[(2, 7), (1, 7)])).is_err());
    assert_eq!(
        scheduler.must_apply(tokens(&plan, &[(1, 7), (2, 7)])).len(),
        2
    );
}

#[test]
fn results_out_of_step_order_are_refused() {
    let (mut scheduler, first) = mixed();
    let second = scheduler.must_schedule();
    let error = scheduler.apply(tokens(&second, &[(1, 7), (2, 7)]));
    let expected = ProtocolError::UnexpectedStep {
        step_id: 2,
        expected: Some(1),
    };
    assert_eq!(error, Err(expected));
    assert_eq!(expected.to_string(), "result of step 2, but step 1 is next");
    scheduler.must_apply(tokens(&first, &[(1, 7)]));
}

#[test]
fn a_result_without_a_plan_is_refused() {
    let mut scheduler = Scheduler::new(config());
    let error = scheduler.apply(StepResult {
        step_id: 5,
        rows: Vec::new(),
    });
    let expected = ProtocolError::UnexpectedStep {
        step_id: 5,
        expected: None,
    };
    assert_eq!(error, Err(expected));
}

#[test]
fn more_prompt_logprobs_than_prompt_tokens_are_refused() {
    let (mut scheduler, plan) = mixed();
    let mut result = tokens(&plan, &[(1, 7)]);
    result.rows[0].prompt_logprobs = vec![-1.0; 4];
    let expected = ProtocolError::TooManyPromptLogprobs {
        step_id: 1,
        sequence_id: id(1),
    };
    assert_eq!(scheduler.apply(result.clone()), Err(expected));
    result.rows[0].prompt_logprobs.pop();
    assert_eq!(scheduler.must_apply(result).len(), 2);
}

#[test]
fn a_sequence_that_is_gone_may_answer_anything() {
    let (mut scheduler, plan) = mixed();
    scheduler.cancel(id(1));
    scheduler.cancel(id(2));
    assert_eq!(scheduler.must_apply(tokens(&plan, &[(2, 7)])), []);
}
