"""The KL penalty: it charges the agent, token by token, for its distance to the reference policy.

    raw_t = -coefficient * (log p(y_t | x, y_<t) - log p_ref(y_t | x, y_<t))

The bracket is the estimator k1 of KL(policy || reference): unbiased, and of either sign on a single token (Schulman,
"Approximating KL Divergence", 2020). As a reward, its policy gradient is that of the exact KL. The weight of this part
in the mix is beta, so `beta` belongs to the environment.

This is not a loss term. Differentiated directly, k1 has expected gradient 0, and k3 that of another divergence. Agents
with a KL term in their own loss read this part's weight as their beta.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import ClassVar

import numpy as np

from rlhf_env.errors import Problem, RewardError
from rlhf_env.settings import AtLeastOne, Positive, fault, settings
from rlhf_env.types import Episode, Float, State, TokenScorer

_LARGEST_ERROR = 0.2  # Ziegler et al. 2019 clip the proportional error to this
_REMEMBERED = 8192  # sequence KLs kept for `observe`; evaluation scores episodes that are never observed


@settings(kw_only=False, frozen=False, eq=False)
class KL:
    """-coefficient * (log p - log p_ref) for each token the agent wrote, 0 for those the environment wrote.

    The controller is that of Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences" (1909.08593,
    section 2.2), in episodes as in their code:

        e = clip(KL / target - 1, -0.2, 0.2)        coefficient <- coefficient * (1 + e * episodes / horizon)

    It moves only in `observe`, which the environment calls at a reset: all rows of a batch have the same coefficient.
    """

    reference: TokenScorer
    """The frozen policy; in a run it is lent by the environment."""
    target: Positive | None = None
    """Mean KL of a whole response, in nats, that a controller steers towards by moving `coefficient`. Without one the
    coefficient is 1 for ever, and the penalty is what the mix's weight says."""
    horizon: AtLeastOne = 10_000
    """Episodes in which a KL that is 20 % or more off moves the coefficient by about 20 %."""
    coefficient: float = field(default=1.0, init=False)
    _measured: dict[Episode, float] = field(default_factory=dict, init=False, repr=False)

    needs_logprobs: ClassVar[bool] = True

    def problems(self) -> Iterator[Problem]:
        if not callable(getattr(self.reference, "response_logprobs", None)):
            yield fault("reference", f"has no response_logprobs(episodes): pass a policy, got {self.reference!r}")

    def token_rewards(self, episodes: Sequence[Episode], /) -> list[Float]:
        """B arrays, float64[T_b], in nats; their sum over a response estimates -coefficient * KL."""
        differences = self._differences(episodes)
        if self.target is not None:
            self._remember(episodes, differences)
        return [0.0 - self.coefficient * values for values in differences]  # 0.0 - x: no penalty is 0.0, not -0.0

    def observe(self, episodes: Sequence[Episode], /) -> None:
        """One move of the controller by the mean KL of these episodes (measured when they were scored)."""
        if self.target is None or not episodes:
            return
        unmeasured = [episode for episode in episodes if episode not in self._measured]
        if unmeasured:
            self._remember(unmeasured, self._differences(unmeasured))
        measured = float(np.mean([self._measured[episode] for episode in episodes]))
        for episode in episodes:
            self._measured.pop(episode, None)
        error = float(np.clip(measured / self.target - 1.0, -_LARGEST_ERROR, _LARGEST_ERROR))
        # A batch longer than the horizon must not turn the penalty into a bonus: one move changes it by at most 20 %.
        self.coefficient *= 1.0 + error * min(len(episodes) / self.horizon, 1.0)

    def state_dict(self) -> State:
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: State, /) -> None:
        self.coefficient = float(state["coefficient"])
        self._measured.clear()

    def _differences(self, episodes: Sequence[Episode]) -> list[Float]:
        """log p - log p_ref where the agent wrote the token, 0 elsewhere."""
        if not episodes:
            return []
        references = self.reference.response_logprobs(episodes)
        if len(references) != len(episodes):
            raise RewardError(f"the KL reference returned {len(references)} rows for {len(episodes)} episodes")
        return [_difference(episode, given) for episode, given in zip(episodes, references, strict=True)]

    def _remember(self, episodes: Sequence[Episode], differences: Sequence[Float]) -> None:
        self._measured.update(zip(episodes, (float(values.sum()) for values in differences), strict=True))
        for oldest in list(self._measured)[: max(0, len(self._measured) - max(_REMEMBERED, len(episodes)))]:
            del self._measured[oldest]


def _difference(episode: Episode, reference: Float) -> Float:
    if episode.logprobs is None:
        raise RewardError(
            f"the episode of prompt {episode.prompt.id!r} has no logprobs: the KL penalty needs the policy's "
            "log-probability of each token (the environment asks for them when a part has needs_logprobs)"
        )
    shape, expected = np.shape(reference), episode.response_ids.shape
    if shape != expected:
        raise RewardError(f"the KL reference returned shape {shape} for a response of shape {expected}")
    difference: Float = np.zeros(len(episode.response_ids))
    actions = episode.actions
    difference[actions] = episode.logprobs[actions] - np.asarray(reference, dtype=np.float64)[actions]
    return difference
