"""A row's text does not depend on its batch mates: the same prompts and streams in rollouts of 1, 3 and 8 rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rlhf_rewards.kl import KL

from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.learning.agent import Decision
from rlhf_env.learning.collect import collect
from rlhf_env.policies import LanguageModel, tiny_language_model
from rlhf_env.policies.streams import RowStreams
from rlhf_env.types import Float, Int, Observation

# Of 2 to 9 tokens, so that every row of every batch is padded otherwise.
PROMPTS = ["ab"[: 1 + row % 2] * (1 + row // 2) + ":" for row in range(8)]
LIMIT = 24
SYMBOLS = "abcdefghijklmn:"


class RowsFrom(RowStreams):
    """Those that the rows from number `first` on have: row 0 draws what row `first` of a wider batch draws."""

    def __init__(self, seed: int, first: int) -> None:
        super().__init__(seed)
        self.first = first

    def next(self, rows: int, length: int) -> Float:
        return super().next(self.first + rows, length)[self.first :]

    def take(self, counts: Any) -> None:
        super().take(np.concatenate([np.zeros(self.first, np.int64), counts]))


class Writes:
    """The policy, as most agents let it write."""

    def __init__(self, policy: LanguageModel, length: int) -> None:
        self.policy, self.length = policy, length

    def begin(self) -> dict[str, Any]:
        return {}

    def act(self, observation: Observation, /) -> Decision:
        return Decision.of(self.policy.write(observation, self.length))


def texts_of(policy: LanguageModel, rows: int, action_length: int) -> list[tuple[Int, Float, float]]:
    """Of each prompt: ids and stated log-probabilities of the response, its return; from batches of `rows` rows."""
    found: list[tuple[Int, Float, float]] = []
    reference = tiny_language_model("gpt2", vocab_size=len(SYMBOLS) + 2, end_id=len(SYMBOLS), seed=9, init_std=0.3)
    while len(found) < len(PROMPTS):
        first = min(len(found), len(PROMPTS) - rows)
        env = TextVectorEnv(
            rows,
            task={"name": "prompts", "prompts": PROMPTS},
            reward={"kl": (0.1, KL(reference))},
            tokenizer=f"alphabet:{SYMBOLS}",
            max_new_tokens=LIMIT,
            max_prompt_tokens=12,
            action_length=action_length,
            autoreset_mode="Disabled",
        )
        policy._streams = RowsFrom(7, first)
        rollout = collect(env, Writes(policy, action_length), {"indices": range(first, first + rows)}, seed=0)  # type: ignore[arg-type]
        assert [it.prompt.text for it in rollout.episodes] == PROMPTS[first : first + rows]
        for row in range(len(found) - first, rows):
            actions = rollout.actions[row]
            paid = float(rollout.returns()[row])
            found.append((rollout.tokens[row][actions].numpy(), rollout.logprobs[row][actions].numpy(), paid))
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("action_length", [1, 5, LIMIT])
def test_a_row_writes_the_same_in_any_company(family: Any, action_length: int) -> None:
    """Rows end in different steps, are dropped from the batch, and some are cut at the limit."""
    policy = tiny_language_model(
        family, vocab_size=len(SYMBOLS) + 2, end_id=len(SYMBOLS), pad_id=len(SYMBOLS) + 1, seed=4, init_std=0.15
    )
    alone = texts_of(policy, 1, LIMIT)
    lengths = [len(tokens) for tokens, _, _ in alone]
    assert len(set(lengths)) >= 4 and min(lengths) < LIMIT // 2 and max(lengths) == LIMIT
    for rows in (1, 3, 8):
        for (tokens, logprobs, paid), one in zip(alone, texts_of(policy, rows, action_length), strict=True):
            assert tokens.tolist() == one[0].tolist()
            np.testing.assert_allclose(logprobs, one[1], rtol=0, atol=1e-10)
            assert abs(paid - one[2]) <= 1e-10
