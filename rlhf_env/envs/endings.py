"""What a text says, without what ended it: an end token, or a stop string and what its last token holds behind it.

The token ids of a text keep all of it: that is what was written, and what is learned from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from rlhf_env.envs.stop_strings import completions
from rlhf_env.envs.tokenizers import end_ids
from rlhf_env.types import Bool, Episode, FinishReason, Int, Prompt, Stops, Tokenizer


def without_stop_string(text: str, last_turn: str, stops: Stops) -> str:
    """A text whose last turn is closed by a stop string, without it and what follows it."""
    return text.removesuffix(last_turn[len(stops.cut(last_turn)) :])


def turns_of(said: Int, tokenizer: Tokenizer, stops: Stops | None = None) -> tuple[str, ...]:
    """What an agent said with the tokens int64[T], turn by turn: an end token or a stop string closes one.

    The last may be open.
    """
    ends = end_ids(tokenizer)
    turns: list[list[int]] = [[]]
    closed = [False]  # by a stop string
    begin: Int = np.zeros(1, dtype=np.int64)
    state = begin
    for token in said.tolist():
        if token not in ends:
            turns[-1].append(token)
            if stops is not None:
                state = stops.after(state, np.array([token]))
                closed[-1] = bool(stops.completed(state)[0])
        if closed[-1] or token in ends:
            turns.append([])
            closed.append(False)
            state = begin
    if not turns[-1]:
        turns.pop()
    texts = [tokenizer.decode(turn) for turn in turns]
    return tuple(
        stops.cut(text) if stops is not None and by_string else text
        for text, by_string in zip(texts, closed, strict=False)
    )


def finished_episodes(
    prompts: Sequence[Prompt],
    asked: Sequence[Int],
    tokens: Int,
    tokenizer: Tokenizer,
    *,
    nothing: int,
    stops: Stops | None = None,
) -> Iterator[Episode]:
    """What a policy wrote in one go after the ids `asked`, as rewards see it.

    `tokens` int64[B, k] hold `nothing` where a text has ended.
    """
    ends, written = end_ids(tokenizer), tokens < nothing
    by_string: Bool = np.zeros(len(tokens), dtype=np.bool_)
    if stops is not None:
        by_string = stops.completed(completions(stops, np.zeros(len(tokens), dtype=np.int64), tokens, written)[0])
    for prompt, before, row, mask, stopped in zip(prompts, asked, tokens, written, by_string.tolist(), strict=True):
        ids = row[mask]
        ended = len(ids) > 0 and ids[-1] in ends
        text = tokenizer.decode(ids[: len(ids) - ended].tolist())
        reason: FinishReason = "stop_string" if stopped else "stop" if ended else "length"
        yield Episode(
            prompt=prompt,
            prompt_ids=before,
            response=stops.cut(text) if stops is not None and stopped else text,
            response_ids=ids,
            finish_reason=reason,
            actions=np.ones(len(ids), dtype=np.bool_),
        )
