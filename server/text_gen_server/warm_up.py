"""Steps that nobody asked for: to measure the memory of the worst one, and to have done once what happens once (compilation,
loading of kernels) before a request waits for it.
"""

from dataclasses import replace

from text_gen_server.masks import WORD_BYTES
from text_gen_server.plan import NewSequence, Row, SamplingParameters, StepPlan
from text_gen_server.runner import Runner

USUAL = SamplingParameters(do_sample=True, top_p=0.9)
# Every logits processor and every filter.
EVERYTHING = SamplingParameters(
    do_sample=True,
    temperature=1.5,
    top_k=50,
    top_p=0.9,
    typical_p=0.9,
    min_p=0.01,
    repetition_penalty=1.1,
    frequency_penalty=0.1,
    presence_penalty=0.1,
    logit_bias=((0, 1.0),),
    min_new_tokens=1,
    end_token_ids=(0,),
    num_top_tokens=5,
    watermark_gamma=0.5,
    watermark_delta=1.0,
)


# With one long prompt in a step it takes the most memory, and with many short ones hardly any.
PROMPT_LOGPROBS = replace(USUAL, prompt_logprobs=True)


def run_step(
    runner: Runner,
    *,
    num_tokens: int,
    sampling: SamplingParameters,
    masked: bool = False,
    most_sequences: int | None = None,
) -> None:
    """One step of `num_tokens` tokens over as many sequences as there may be, each of which samples; leaves none behind.

    masked: every row has a mask, which allows every token
    most_sequences: fewer than there may be; what they have no place for is left out
    """
    limits = runner.limits
    num_sequences = min(most_sequences or limits.max_batch_size, num_tokens)
    mask = b"\xff" * (-(-limits.vocab_size // (8 * WORD_BYTES)) * WORD_BYTES)
    new_sequences, rows, first_block = [], [], 0
    for n in range(num_sequences):
        # The tokens are shared out evenly; the first sequences take one more of what is left over.
        length = min(num_tokens // num_sequences + (n < num_tokens % num_sequences), limits.max_total_tokens)
        blocks = tuple(range(first_block, first_block + -(-length // limits.block_size)))
        first_block += len(blocks)
        if first_block > limits.num_blocks:
            break
        new_sequences.append(NewSequence(sequence_id=n, token_ids=(0,) * length, prompt_len=length, sampling=sampling))
        rows.append(Row(sequence_id=n, num_scheduled_tokens=length, new_block_ids=blocks, masked=masked))
    masks = tuple((row.sequence_id, mask) for row in rows if masked)
    runner.step(StepPlan(step_id=0, new_sequences=tuple(new_sequences), rows=tuple(rows), masks=masks))
    runner.forget_all()
