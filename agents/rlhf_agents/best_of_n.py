"""Best of n: write n answers and give the one with the highest reward. It does not train; every answer costs n samples.

The reward for this choice is the environment's, without the KL part and other parts that need log-probabilities, and
without parts that compare a group: those do not judge an answer by its text alone. The discarded samples are counted in
the run's spending.

The agent states the policy's log-probability of the answer. That is *not* the probability with which best-of-n gives
it: its distribution favours high rewards, and its KL to the policy is at most log n - (n - 1) / n (Beirami et al. 2024,
arXiv 2401.01879), which `kl_bound` states. The environment's `kl` part therefore understates the distance.

    answer = the y_i of the highest reward, of y_1 ... y_n ~ pi
    KL(best of n || pi) <= log n - (n - 1) / n

When: as a strong baseline without training, and to see how much a reward has left to give. When not: a reply must be
cheap; each costs n.

The candidates are scored before the environment sees them, with the prompts that `collect` puts into the observation.
(If you call `act` without them, rewards that read a prompt's metadata find none.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rlhf_env.envs.endings import finished_episodes
from rlhf_env.envs.rewards import RewardMix
from rlhf_env.errors import ConfigError
from rlhf_env.learning.agent import Decision, Metrics, Setup
from rlhf_env.learning.rollout import Rollout
from rlhf_env.settings import AtLeastOne, settings
from rlhf_env.types import GroupReward, Int, Observation, Prompt, ResetOptions, State


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
                f"best_of_n compares whole answers, and an action here is {setup.action_length} of up to "
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

    def begin(self) -> ResetOptions:
        return {}

    def act(self, observation: Observation, /) -> Decision:
        n = self.config.n
        many: Observation = {
            "input_ids": np.repeat(observation["input_ids"], n, axis=0),
            "attention_mask": np.repeat(observation["attention_mask"], n, axis=0),
        }
        if (stops := observation.get("stops")) is not None:
            many |= {"stops": stops, "stop_states": np.repeat(observation["stop_states"], n)}
        written = self.policy.write(many, self.setup.action_length)
        lent: Sequence[Prompt | None] = observation.get("prompts") or [None] * len(observation["input_ids"])
        asked = [ids[mask.astype(bool)] for ids, mask in zip(many["input_ids"], many["attention_mask"], strict=True)]
        prompts = [prompt or self._read(asked[i * n]) for i, prompt in enumerate(lent) for _ in range(n)]
        tokenizer, nothing = self.setup.tokenizer, self.policy.vocab_size
        candidates = list(finished_episodes(prompts, asked, written.tokens, tokenizer, nothing=nothing, stops=stops))
        # An answer whose reward failed is given only if the rewards of all n failed.
        totals = np.array([it.total if it.raw else -math.inf for it in self.reward.score(candidates)]).reshape(-1, n)
        best = np.arange(len(totals)) * n + totals.argmax(axis=1)
        lengths = (written.tokens < self.policy.vocab_size).sum(axis=1)
        # The loop counts the answer that is given; the other samples are counted here.
        self.setup.spending.add(
            generated_tokens=int(lengths.sum() - lengths[best].sum()), reward_calls=len(candidates) - len(best)
        )
        return Decision(written.tokens[best], written.logprobs[best])

    def _read(self, prompt_ids: Int) -> Prompt:
        text = self.setup.tokenizer.decode(prompt_ids.tolist())
        return Prompt(id=f"best_of_n/{text}", text=text)

    def update(self, rollout: Rollout, /) -> Metrics:
        rollout.require_finite()
        return {"kl_bound": self.kl_bound}

    def state_dict(self) -> State:
        return {"sampling": self.policy.sampling_state()}

    def load_state_dict(self, state: State, /) -> None:
        self.policy.load_sampling_state(state["sampling"])


def _judging_parts(reward: RewardMix) -> RewardMix:
    """The parts of a mix that judge an answer by its text alone. ConfigError when there are none."""
    parts = {
        name: (reward.weights[name], part)
        for name, part in reward.parts.items()
        if name not in reward.kl_names and not reward.reads_logprobs(name) and not isinstance(part, GroupReward)
    }
    if not parts:
        raise ConfigError(
            f"best_of_n cannot compare answers: none of the reward's parts ({', '.join(reward.parts)}) judges "
            "one answer by its text alone; add one that does"
        )
    of_tasks = {name: weights for name, weights in reward.of_tasks.items() if name in parts}
    mix = RewardMix(parts, failures=reward.failures, of_tasks=of_tasks)
    mix.for_all = reward.for_all  # of several processes, one asks
    return mix
