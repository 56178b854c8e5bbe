"""Potential-based shaping (Ng, Harada & Russell 1999, "Policy invariance under reward transformations", ICML, eq. 2).

    raw_i = gamma * Phi(s_{i+1}) - Phi(s_i)        Phi of a text that has ended is 0

s_i is the text from which the agent's i-th token is drawn, and Phi a potential of yours: a reward of unfinished texts,
which is high where much has been achieved. What is paid for a step forward is taken back for a step backward, so no
policy gains by collecting it: at `gamma` 1 the parts of a text sum to -Phi(s_0), whatever was written. The best
policies are the same, and so is the expected policy gradient (tests/agents/test_shaping.py, over all texts, to 1e-12).

    [rewards.shaping]
    potential = { function = "progress.py:progress" }    # f(prompts, completions, **columns) -> list[float]

It moves credit to the tokens that earned it, for agents that give credit to tokens: ppo, reinforce with reward_to_go.
Agents that compare whole answers to one prompt (grpo, rloo, dpo) get the same constant for each of them: nothing
changes at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np

from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.errors import ConfigError, Problem, RewardError, under
from rlhf_env.settings import Chooses, Example, Share, fault, settings
from rlhf_env.types import Episode, Float, GroupReward, JsonObject, Remembers, Reward, Tokenizer, TokenReward


@settings(kw_only=False, frozen=False, eq=False)
class PotentialShaping:
    """The token reward above; 0 for tokens that the environment wrote."""

    potential: Annotated[JsonObject, Chooses("reward"), Example({"function": "progress.py:progress"})]
    """Phi: a reward by name and settings, or `function = "FILE.py:NAME"`, which is asked about the text so far. It
    must give a number for every text, the empty one too."""
    gamma: Share = 1.0
    """The agent's discount per token (ppo's `gamma`; other agents have 1). Another one changes what is best."""
    tokenizer: Tokenizer | None = None
    """In a run it is lent by the environment."""

    def __post_init__(self) -> None:
        if self.tokenizer is None:
            raise ConfigError(fault("tokenizer", "is needed to read the text so far (in a run it is there)"))
        table = dict(self.potential)
        name = table.pop("name", None)
        if name is not None:
            table["plugin"] = name
        if not name and not table.get("function"):
            raise ConfigError(Problem('potential needs a name or function = "FILE.py:NAME"', ("potential",)))
        with under("potential"):
            self._mix = load_rewards({"potential": table}, None, {"tokenizer": self.tokenizer})
        self._phi = self._mix.parts["potential"]
        if isinstance(self._phi, (TokenReward, GroupReward, Remembers)) or not isinstance(self._phi, Reward):
            said = "must be a reward of one text by itself, without a memory, as the text so far is all that it is of"
            raise ConfigError(fault("potential", said))

    def token_rewards(self, episodes: Sequence[Episode], /) -> list[Float]:
        """B arrays, float64[T_b]."""
        rows = [np.flatnonzero(episode.actions) for episode in episodes]
        # Neighbours of a group have their first texts in common: each is asked about once.
        asked: dict[tuple[int, bytes], int] = {}
        partial: list[Episode] = []
        places: list[list[int]] = []
        for episode, steps in zip(episodes, rows, strict=True):
            own = []
            for step in steps.tolist():
                key = id(episode.prompt), episode.response_ids[:step].tobytes()
                if key not in asked:
                    asked[key] = len(partial)
                    partial.append(self._so_far(episode, step))
                own.append(asked[key])
            places.append(own)
        potentials = self._potentials(partial)
        paid = []
        for episode, steps, own in zip(episodes, rows, places, strict=True):
            values = np.append(potentials[own], 0.0)
            rewards: Float = np.zeros(len(episode.response_ids))
            rewards[steps] = self.gamma * values[1:] - values[:-1]
            paid.append(rewards)
        return paid

    def _so_far(self, episode: Episode, step: int) -> Episode:
        """The text before the response's token `step`, which has not ended."""
        assert self.tokenizer is not None  # looked at when this was made
        return replace(
            episode,
            response=self.tokenizer.decode(episode.response_ids[:step].tolist()),
            response_ids=episode.response_ids[:step],
            actions=episode.actions[:step],
            logprobs=None,
            finish_reason="truncated",
            turns=(),
        )

    def _potentials(self, partial: Sequence[Episode]) -> Float:
        scores = self._mix.score(partial) if partial else []
        for episode, score in zip(partial, scores, strict=True):
            if not score.raw:
                raise RewardError(f"the potential has no number for the text {episode.response!r}: give 0.0")
        return np.array([score.raw["potential"] for score in scores], dtype=np.float64)
