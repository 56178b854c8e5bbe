"""Given answers as what an agent learns from, in the place of an environment: the completions of a task's prompts.

A prompt has one if its `meta["completion"]` is a text: the column `completion` of a file, or the assistant's message at
the end of a conversation. In an experiment file nothing but `[agent] name = "sft"` is needed beside such a task.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlhf_env.envs.tokenizers import prompt_ids
from rlhf_env.errors import DataError
from rlhf_env.learning.rollout import Rollout, demonstrations
from rlhf_env.learning.sources import DataSource
from rlhf_env.types import Episode, Prompt, Task, Tokenizer, TokenScorer

_SHOWN = 20  # problems in one report


def demonstrations_of(task: Task, tokenizer: Tokenizer, *, context: int | None = None) -> list[Episode]:
    """Every prompt of the task with its completion, closed by the end token, as if the agent had written it.

    Raises DataError for a task without end; and, all of them named, for prompts without a completion and for texts of
    more than `context` tokens, the most that the model reads.
    """
    if task.size is None:
        raise DataError(
            f"the task {type(task).__name__} has prompts without end and no answers: sft needs given answers"
        )
    episodes: list[Episode] = []
    problems: list[str] = []
    for index in range(task.size):
        prompt = task.prompt(index, {})
        completion = prompt.meta.get("completion")
        if not isinstance(completion, str):
            problems.append(
                f"{prompt.id}: no completion to learn: a column 'completion', or a conversation that ends with the "
                "assistant's message"
            )
            continue
        episode = demonstration(prompt, completion, tokenizer)
        # The last token is never read: a text may be one token longer than the context.
        if context is not None and len(episode.ids) > context + 1:
            problems.append(
                f"{prompt.id}: {len(episode.ids)} tokens, the model reads {context}: shorten it, or leave it out"
            )
            continue
        episodes.append(episode)
    if problems:
        more = len(problems) - _SHOWN
        raise DataError(*problems[:_SHOWN], *([f"... and {more:,} more such prompts"] if more > 0 else []))
    return episodes


def demonstration(prompt: Prompt, completion: str, tokenizer: Tokenizer) -> Episode:
    """A given answer as a finished text: the prompt's ids, then the completion's own and the end token."""
    answer = [*tokenizer.encode(completion), tokenizer.end_id]
    return Episode(
        prompt=prompt,
        prompt_ids=np.array(prompt_ids(tokenizer, prompt), np.int64),
        response=completion,
        response_ids=np.array(answer, np.int64),
        finish_reason="stop",
        actions=np.ones(len(answer), np.bool_),
    )


def demonstration_source(episodes: Sequence[Episode], tokenizer: Tokenizer, *, rows: int, seed: int) -> DataSource:
    """Rollouts of `rows` demonstrations each, in shuffled epochs."""

    def rollout(places: Sequence[int]) -> Rollout:
        return demonstrations([episodes[i] for i in places], pad_id=tokenizer.pad_id)

    return DataSource(len(episodes), rows, rollout, seed=seed)


def mean_negative_log_likelihood(scorer: TokenScorer, episodes: Sequence[Episode]) -> tuple[float, int]:
    """(nats a token, tokens): the mean of -log p over all tokens of the answers, their end tokens included."""
    logprobs = np.concatenate(scorer.response_logprobs(episodes))
    return -float(logprobs.mean()), len(logprobs)
