"""Every field of the messages arrives, under its own name."""

from text_gen_server.pb import shard_pb2 as pb
from text_gen_server.plan import NewSequence, Row, RowError, RowResult, SampledToken, SamplingParameters, StepPlan, StepResult
from text_gen_server.wire import message_from_result, plan_from_message

# Numbers that a float32 holds exactly, and none twice.
SAMPLING = {
    "do_sample": True,
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.25,
    "typical_p": 0.75,
    "min_p": 0.125,
    "seed": 2**64 - 1,
    "repetition_penalty": 1.5,
    "frequency_penalty": -0.5,
    "presence_penalty": 2.5,
    "min_new_tokens": 4,
    "end_token_ids": (5, 6),
    "num_top_tokens": 7,
    "prompt_logprobs": True,
    "watermark_gamma": 0.375,
    "watermark_delta": 3.5,
}


def test_a_plan_arrives_as_it_was_sent() -> None:
    bias = [pb.LogitBias(token_id=8, bias=-1.5)]
    message = pb.StepPlan(
        step_id=9,
        forget=[10, 11],
        new_sequences=[
            pb.NewSequence(
                sequence_id=12,
                token_ids=[13, 14, 15],
                prompt_len=2,
                num_computed_tokens=1,
                sampling=pb.SamplingParameters(**SAMPLING, logit_bias=bias),
            )
        ],
        rows=[pb.Row(sequence_id=12, num_scheduled_tokens=16, new_block_ids=[17, 18], masked=True)],
        masks=[pb.TokenMask(sequence_id=12, allowed=b"\x01\x00\x00\x80")],
    )
    sequence = NewSequence(
        sequence_id=12,
        token_ids=(13, 14, 15),
        prompt_len=2,
        num_computed_tokens=1,
        sampling=SamplingParameters(**SAMPLING, logit_bias=((8, -1.5),)),
    )
    row = Row(sequence_id=12, num_scheduled_tokens=16, new_block_ids=(17, 18), masked=True)
    received = plan_from_message(pb.StepPlan.FromString(message.SerializeToString()))
    masks = ((12, b"\x01\x00\x00\x80"),)
    assert received == StepPlan(step_id=9, forget=(10, 11), new_sequences=(sequence,), rows=(row,), masks=masks)


def test_a_token_whose_numbers_are_all_0_is_still_a_token() -> None:
    message = message_from_result(StepResult(6, (RowResult(0, SampledToken(0, 0.0)),)), compute_us=7)
    (row,) = pb.StepResult.FromString(message.SerializeToString()).rows
    assert row.WhichOneof("outcome") == "token"


def test_a_result_arrives_as_it_was_sent() -> None:
    rows = (
        RowResult(1, SampledToken(2, -0.5, ((2, -0.5), (3, -1.5))), (-2.5,)),
        RowResult(4, RowError.NUMERICAL),
        RowResult(5, None, (-3.5, -4.5)),
    )
    message = message_from_result(StepResult(6, rows), compute_us=7)
    assert (message.step_id, message.compute_us) == (6, 7)
    first, second, third = message.rows
    assert (first.sequence_id, first.token.token_id, first.token.logprob) == (1, 2, -0.5)
    assert [(top.token_id, top.logprob) for top in first.token.top_tokens] == [(2, -0.5), (3, -1.5)]
    assert list(first.prompt_logprobs) == [-2.5]
    assert (second.sequence_id, second.WhichOneof("outcome"), second.error) == (4, "error", pb.RowError.ROW_ERROR_NUMERICAL)
    assert (third.sequence_id, third.WhichOneof("outcome"), list(third.prompt_logprobs)) == (5, None, [-3.5, -4.5])
