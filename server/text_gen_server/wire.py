"""Translates between the messages of `proto/shard.proto` and the plain data of `plan.py`. Checks nothing, decides nothing."""

from text_gen_server.pb import shard_pb2 as pb
from text_gen_server.plan import NewSequence, Row, RowError, RowResult, SampledToken, SamplingParameters, StepPlan, StepResult


def plan_from_message(message: pb.StepPlan) -> StepPlan:
    return StepPlan(
        step_id=message.step_id,
        forget=tuple(message.forget),
        new_sequences=tuple(_new_sequence(new) for new in message.new_sequences),
        rows=tuple(
            Row(
                sequence_id=row.sequence_id,
                num_scheduled_tokens=row.num_scheduled_tokens,
                new_block_ids=tuple(block_ids) if (block_ids := row.new_block_ids) else (),
                masked=row.masked,
            )
            for row in message.rows
        ),
        masks=tuple((mask.sequence_id, mask.allowed) for mask in message.masks),
    )


def masks_from_message(message: pb.StepMasks) -> dict[int, bytes]:
    """{sequence id: allowed tokens, as in `StepPlan.masks`}"""
    return {mask.sequence_id: mask.allowed for mask in message.masks}


def message_from_result(result: StepResult, compute_us: int) -> pb.StepResult:
    message = pb.StepResult(step_id=result.step_id, compute_us=compute_us)
    add = message.rows.add
    for row in result.rows:
        _fill_row(add(), row)  # in its place: a message that is put into another one is copied
    return message


def _new_sequence(message: pb.NewSequence) -> NewSequence:
    return NewSequence(
        sequence_id=message.sequence_id,
        token_ids=tuple(message.token_ids),
        prompt_len=message.prompt_len,
        num_computed_tokens=message.num_computed_tokens,
        sampling=_sampling_parameters(message.sampling),
    )


def _sampling_parameters(message: pb.SamplingParameters) -> SamplingParameters:
    return SamplingParameters(
        do_sample=message.do_sample,
        temperature=message.temperature,
        top_k=message.top_k,
        top_p=message.top_p,
        typical_p=message.typical_p,
        min_p=message.min_p,
        seed=message.seed,
        repetition_penalty=message.repetition_penalty,
        frequency_penalty=message.frequency_penalty,
        presence_penalty=message.presence_penalty,
        logit_bias=tuple((entry.token_id, entry.bias) for entry in message.logit_bias),
        min_new_tokens=message.min_new_tokens,
        end_token_ids=tuple(message.end_token_ids),
        num_top_tokens=message.num_top_tokens,
        prompt_logprobs=message.prompt_logprobs,
        watermark_gamma=message.watermark_gamma,
        watermark_delta=message.watermark_delta,
    )


def _fill_row(message: pb.RowResult, row: RowResult) -> None:
    message.sequence_id = row.sequence_id
    if row.prompt_logprobs:
        message.prompt_logprobs.extend(row.prompt_logprobs)
    outcome = row.outcome
    if isinstance(outcome, SampledToken):
        token = message.token
        token.token_id = outcome.token_id
        token.logprob = outcome.logprob
        for token_id, logprob in outcome.top_tokens:
            token.top_tokens.add(token_id=token_id, logprob=logprob)
    elif outcome is RowError.NUMERICAL:
        message.error = pb.RowError.ROW_ERROR_NUMERICAL
