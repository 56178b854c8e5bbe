"""Best of n: write n answers, give the one that the reward likes best. No training; the cost is paid at every answer.

Answers are compared by the environment's reward without the KL part, without parts that need log-probabilities and
without parts that compare a group: those are about how the answer was found, or about its neighbours. The samples
thrown away are charged to the run's spending.

The agent states the policy's own log-probability of the answer that it gives. That is *not* how likely best-of-n
gives it: its distribution favours high rewards, and its KL to the policy is at most log n - (n - 1) / n (Beirami et
al. 2024, arXiv 2401.01879), stated as `kl_bound`. The environment's `kl` part therefore understates the distance.

The candidates are scored before the environment sees them, with the prompts that `collect` lends (by hand, without it,
a reward that reads a prompt's metadata finds none).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_env.envs.rewards import RewardMix
from rlhf_env.errors import ConfigError
from rlhf_env.learning.agent import Decision, Metrics, Setup
from rlhf_env.learning.rollout import Rollout
from rlhf_env.settings import AtLeastOne, settings
from rlhf_env.types import Episode, GroupReward, Int, Observation, Prompt


class BestOfN:
    """Gives the best of `n` answers by reward."""

    trains = False

    @settings
    class Config:
        """How much is written."""

        n: AtLeastOne = 4
        """Answers written for each that is given."""

    def __init__(self, setup: Setup, config: Config) -> None:
        if setup.action_length != setup.max_new_tokens:
            raise ConfigError(
                f"best_of_n chooses among whole answers, and an action here is {setup.action_length} of up to "
                f"{setup.max_new_tokens} tokens: use the view rlhf_env/Response-v0 (action_length = max_new_tokens)"
            )
        self.setup = setup
        self.config = config
        self.policy = setup.policy
        self.reward = _judging_parts(setup.reward)

    @property
    def kl_bound(self) -> float:
        """Upper bound of KL(best-of-n || policy), in nats."""
        n = self.config.n
        return math.log(n) - (n - 1) / n

    def begin(self) -> dict[str, Any]:
        return {}

    def act(self, observation: Observation, /) -> Decision:
        n = self.config.n
        many: Observation = {
            "input_ids": np.repeat(observation["input_ids"], n, axis=0),
            "attention_mask": np.repeat(observation["attention_mask"], n, axis=0),
        }
        written = self.policy.write(many, self.setup.action_length)
        lent: Sequence[Prompt | None] = observation.get("prompts") or [None] * len(observation["input_ids"])
        prompts = [prompt for prompt in lent for _ in range(n)]
        candidates = [
            self._episode(prompt, ids[mask.astype(bool)], tokens[tokens < self.policy.vocab_size])
            for prompt, ids, mask, tokens in zip(
                prompts, many["input_ids"], many["attention_mask"], written.tokens, strict=True
            )
        ]
        # One that could not be scored is given only where none of its rivals could.
        totals = np.array([it.total if it.raw else -math.inf for it in self.reward.score(candidates)]).reshape(-1, n)
        best = np.arange(len(totals)) * n + totals.argmax(axis=1)
        lengths = (written.tokens < self.policy.vocab_size).sum(axis=1)
        # The environment's loop counts the answer that is given; the others are counted here.
        self.setup.spending.add(
            generated_tokens=int(lengths.sum() - lengths[best].sum()), reward_calls=len(candidates) - len(best)
        )
        return Decision(written.tokens[best], written.logprobs[best])

    def _episode(self, prompt: Prompt | None, prompt_ids: Int, response_ids: Int) -> Episode:
        tokenizer = self.setup.tokenizer
        stopped = len(response_ids) > 0 and response_ids[-1] == tokenizer.end_id
        if prompt is None:
            text = tokenizer.decode(prompt_ids.tolist())
            prompt = Prompt(id=f"best_of_n/{text}", text=text)
        return Episode(
            prompt=prompt,
            prompt_ids=prompt_ids,
            response=tokenizer.decode(response_ids[: len(response_ids) - stopped].tolist()),
            response_ids=response_ids,
            finish_reason="stop" if stopped else "length",
            actions=np.ones(len(response_ids), dtype=np.bool_),
        )

    def update(self, _rollout: Rollout, /) -> Metrics:
        return {"kl_bound": self.kl_bound}

    def state_dict(self) -> dict[str, Any]:
        return {"sampling": self.policy.sampling_state()}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.policy.load_sampling_state(state["sampling"])


def _judging_parts(reward: RewardMix) -> RewardMix:
    """The parts of a mix that can judge an answer by itself. ConfigError when there are none."""
    parts = {
        name: (reward.weights[name], part)
        for name, part in reward.parts.items()
        if name != "kl" and not getattr(part, "needs_logprobs", False) and not isinstance(part, GroupReward)
    }
    if not parts:
        raise ConfigError(
            f"best_of_n has nothing to choose by: none of the reward's parts ({', '.join(reward.parts)}) judges "
            "one answer by its text alone; add one that does"
        )
    return RewardMix(parts, failures=reward.failures)
