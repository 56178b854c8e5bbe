"""A teacher's opinion of each token: reverse KL distillation by whatever agent maximises rewards.

    raw_t = log p_teacher(y_t | x, y_<t) - log p(y_t | x, y_<t)

Summed over a text, its expectation under the policy is -KL(policy || teacher), of whole texts; and because
E[grad log p] = 0, the policy gradient of this reward is the gradient of that (as in MiniLLM, Gu et al. 2024,
2306.08543). The agent `distill` has other divergences, of the whole vocabulary at each token.

    teacher = {weight = 1.0, teacher = "runs/large"}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, cast

import numpy as np

from rlhf_env.errors import ConfigError, RewardError
from rlhf_env.learning.teachers import TeacherDtype, load_teacher
from rlhf_env.policies.policy import Policy
from rlhf_env.settings import IsPath
from rlhf_env.types import Episode, Float, Tokenizer, TokenScorer


class Teacher:
    """log p_teacher - log p for each token the agent wrote, 0 for those the environment wrote.

    Raises DataError where there is no such model, ConfigError where its tokenizer is another than the policy's.

    Args:
        teacher: a folder, that of a run (its best checkpoint, else its last), a shipped model or a hub name; its
            tokenizer is the policy's. It is frozen, and loaded once with the agent `distill` of the same teacher.
        dtype: the precision of its weights (default: the policy's).
        reference: in a run lent by the environment: the teacher computes where it does.
        tokenizer: in a run lent by the environment.
    """

    needs_logprobs: ClassVar[bool] = True

    def __init__(
        self,
        teacher: Annotated[str | Path, IsPath()] | TokenScorer,
        dtype: TeacherDtype | None = None,
        *,
        reference: TokenScorer | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.teacher = teacher
        if not isinstance(teacher, (str, Path)):
            self._scorer = teacher
            return
        if reference is None or tokenizer is None:
            raise ConfigError("a teacher that is named is loaded beside a run's policy: lend `reference`, `tokenizer`")
        self._scorer = load_teacher(str(teacher), cast(Policy, reference), tokenizer, dtype)

    def token_rewards(self, episodes: Sequence[Episode], /) -> list[Float]:
        """B arrays, float64[T_b], in nats; their sum over a response estimates -KL(policy || teacher)."""
        if not episodes:
            return []
        opinions = self._scorer.response_logprobs(episodes)
        return [_difference(episode, opinion) for episode, opinion in zip(episodes, opinions, strict=True)]

    def __repr__(self) -> str:
        return f"Teacher(teacher={self.teacher!r})"


def _difference(episode: Episode, teacher: Float) -> Float:
    if episode.logprobs is None:
        raise RewardError(
            f"the episode of prompt {episode.prompt.id!r} has no logprobs: the teacher compares with them"
        )
    difference: Float = np.zeros(len(episode.response_ids))
    actions = episode.actions
    difference[actions] = np.asarray(teacher, dtype=np.float64)[actions] - episode.logprobs[actions]
    return difference
