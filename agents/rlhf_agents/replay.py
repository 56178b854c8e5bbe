"""Experience replay (Lin 1992), uniform or prioritised (Schaul et al. 2016, arXiv 1511.05952), around an agent.

The agent inside writes and learns as ever. Each rollout is then kept, and after each update the agent learns from
texts of earlier rollouts once more: no text is written for it, no reward asked. It costs gradient steps and
`gradient_tokens`, which the budget counts.

    [agent]
    name = "replay"
    priority = "advantage"
    agent = { name = "grpo", group_size = 8, lr = 1e-3 }

What is drawn are groups, the answers to one prompt of one rollout, and never parts of them. Old texts are corrected by
the agent's own probability ratio to the policy that wrote them, truncated where the agent says (`importance_cap`,
`clip`). Unequal probabilities of drawing are corrected by the weights of Schaul et al., section 3.4, whose exponent
rises from `beta_start` to 1 over the budget. The KL penalty in an old text's reward is that of the policy that learns.

What is exact of this, and what is biased by how much, docs/mechanisms.md says.

When: texts or rewards cost more than gradient steps (a large writer, a paid judge). When not: writing is cheap; new
texts teach more than old ones.

Left out: priorities that are renewed by the losses of the last visit (they follow from rewards and ages here, which
cost nothing to know), sum trees (a buffer has hundreds of groups, not millions), replay of single tokens or rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from rlhf_env.errors import ConfigError, Problem
from rlhf_env.learning.agent import Agent, Around, Metrics, Setup
from rlhf_env.learning.functional import (
    with_kl_of,
    with_reference_logprobs,
)
from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.stored_rollouts import bytes_of, rollout_from_state, rollout_state, to_keep
from rlhf_env.learning.unequal_draws import draw_probabilities, drawing_weights, stratified_draws
from rlhf_env.settings import AtLeastOne, Share, fault, settings
from rlhf_env.types import Float, State

Priority = Literal["uniform", "advantage", "reward", "staleness"]


@dataclass(frozen=True)
class Kept:
    """One rollout in the buffer; `written`: the number of updates before it."""

    rollout: Rollout
    written: int

    @cached_property
    def state(self) -> State:
        return {"rollout": rollout_state(self.rollout), "written": self.written}

    @cached_property
    def size(self) -> int:
        return bytes_of(self.state["rollout"])

    @cached_property
    def groups(self) -> list[Rollout]:
        numbers = dict.fromkeys(self.rollout.group.tolist())
        return [self.rollout.select(self.rollout.group == number) for number in numbers]

    @cached_property
    def returns(self) -> list[Float]:
        """Of the answers of each group that have a score."""
        return [group.returns()[group.scored].numpy() for group in self.groups]


def group_probabilities(returns: Sequence[Float], ages: Sequence[int], priority: Priority, alpha: float) -> Float:
    """float64[N]: how likely each of N groups is drawn; `returns` of those answers of each that have a score.

    P(i) is in proportion to p_i^alpha (Schaul et al. 2016, eq. 1), where p is

    - "advantage": the mean |advantage| of the group, plus 1 % of that of all groups, so that each may be drawn. An
      advantage is a return minus the group's mean; of a group of one, minus the mean of all in the buffer;
    - "reward": 1 / rank by mean return, the best first; equals share the mean of their ranks;
    - "staleness": 1 / age in updates: the newest most often.
    """
    if priority == "uniform":
        return draw_probabilities(np.ones(len(ages)), alpha)
    if priority == "staleness":
        return draw_probabilities(1.0 / np.maximum(np.array(ages, dtype=np.float64), 1.0), alpha)
    everything = np.concatenate(returns)
    middle = float(everything.mean()) if len(everything) else 0.0
    means = np.array([values.mean() if len(values) else middle for values in returns])
    if priority == "advantage":
        baselines = np.where(np.array([len(values) for values in returns]) > 1, means, middle)
        pairs = zip(returns, baselines, strict=True)
        spreads = np.array([np.abs(values - baseline).mean() if len(values) else 0.0 for values, baseline in pairs])
        return draw_probabilities(spreads + 0.01 * spreads.mean(), alpha)
    worse, at_most = (np.searchsorted(np.sort(means), means, side=side) for side in ("left", "right"))
    # Of k equals behind b better ones the ranks are b + 1 to b + k.
    return draw_probabilities(1.0 / (len(means) - at_most + (at_most - worse + 1) / 2), alpha)


class Replay(Around):
    """Lets `agent` learn from earlier texts again. What else it is asked (`trains`, `policy`), that one answers."""

    @settings
    class Config:
        """What is drawn, how often, and how much is kept. The agent to wrap is built first, and handed in."""

        priority: Priority = "uniform"
        """Which groups are drawn more often: those of large |advantage|, of high reward, the newest, or none."""
        alpha: Share = 0.6
        """How much the priority counts: 0 is uniform, 1 in proportion to it."""
        beta_start: Share = 0.4
        """The exponent of the weights that correct for it, at the beginning; it rises to 1 over the budget."""
        scale_by_max: bool = True
        """Divide those weights by the largest in the buffer: none makes a step larger, all make it smaller."""
        updates: AtLeastOne = 1
        """Updates on replayed texts after each one on new ones."""
        groups: AtLeastOne | None = None
        """Groups in each of them; as many as the new rollout has, if nothing is said."""
        renew_kl: bool = True
        """Charge the KL penalty for the distance of the policy that learns, and not of the one that wrote. It costs a
        forward pass of the replayed texts."""
        max_age: AtLeastOne | None = None
        """Rollouts are forgotten after this many updates."""
        max_bytes: AtLeastOne = 16 * 2**20
        """Size of the buffer, as a checkpoint holds it; the oldest rollouts go first."""

    def __init__(self, setup: Setup, config: Config, agent: Agent) -> None:
        if isinstance(agent, Around):
            raise ConfigError(
                Problem(
                    f"replay goes around the agent that learns, and {_name(agent)} wraps one: write it the other way "
                    'round, agent = { name = "replay", agent = ... } inside',
                    ("agent",),
                )
            )
        if getattr(agent, "off_policy", False) is not True:
            raise ConfigError(
                Problem(
                    f"{_name(agent)} learns wrongly from texts of an older policy: take an agent with a probability "
                    "ratio (grpo, rloo, ppo, reinforce), or to which it does not matter who wrote a text (dpo, kto, "
                    "rejection)",
                    ("agent",),
                )
            )
        if config.priority != "uniform" and getattr(agent, "weighs_rows", False) is not True:
            raise ConfigError(
                fault(
                    "priority",
                    f"{config.priority!r} is corrected by weights, and {_name(agent)} takes none: use 'uniform'",
                )
            )
        self.setup = setup
        self.config = config
        self.agent = agent
        self.kept: list[Kept] = []  # the oldest first
        self._draws = setup.stream("replay draws")
        self._updates = 0

    @property
    def bytes(self) -> int:
        """What the buffer takes in a checkpoint."""
        return sum(kept.size for kept in self.kept)

    def update(self, rollout: Rollout, /) -> Metrics:
        """The agent's update, then `updates` on replayed groups; then the rollout is kept.

        Raises ConfigError when the buffer is too small for one rollout.
        """
        metrics: Metrics = {**self.agent.update(rollout), **self._replay(len(set(rollout.group.tolist())))}
        self.keep(rollout)
        self._updates += 1
        return {
            **metrics,
            "replay/groups": float(sum(len(kept.groups) for kept in self.kept)),
            "replay/bytes": float(self.bytes),
        }

    def _replay(self, fresh: int) -> Metrics:
        """Metrics of the agent's updates on replayed texts, their mean under replay/; none from an empty buffer."""
        if not self.kept:
            return {}
        probabilities = self.probabilities()
        beta = self.config.beta_start + (1.0 - self.config.beta_start) * self.setup.engine.progress
        collected: dict[str, list[float]] = defaultdict(list)
        labels = self.setup.spending.preference_labels
        for _ in range(self.config.updates):
            drawn = stratified_draws(probabilities, self.config.groups or fresh, self._draws)
            batch = self.batch(drawn, probabilities, beta)
            for name, value in {**self.agent.update(batch), **batch.measured}.items():
                collected[name].append(value)
        self.setup.spending.preference_labels = labels  # whoever compares them again asks nobody
        said = {f"replay/{name}": sum(values) / len(values) for name, values in collected.items()}
        return said if self.config.priority == "uniform" else {**said, "replay/beta": beta}

    def probabilities(self) -> Float:
        """float64[N]: of each group in the buffer, in order, to be drawn."""
        ages = [self._updates - kept.written for kept in self.kept for _ in kept.groups]
        returns = [values for kept in self.kept for values in kept.returns]
        return group_probabilities(returns, ages, self.config.priority, self.config.alpha)

    def batch(self, drawn: list[int], probabilities: Float, beta: float) -> Rollout:
        """The groups with these numbers as one rollout; the weights of its rows correct for how they were drawn."""
        groups = [(group, kept.written) for kept in self.kept for group in kept.groups]
        parts = [groups[number][0] for number in drawn]
        if self.config.priority != "uniform":
            weights = drawing_weights(probabilities, beta, scale_by_max=self.config.scale_by_max)
            parts = [
                replace(part, weights=part.row_weights * float(weights[number]))
                for part, number in zip(parts, drawn, strict=True)
            ]
        batch = Rollout.joined(parts, pad_id=self.setup.tokenizer.pad_id)
        measured = {"age": float(np.mean([self._updates - groups[number][1] for number in drawn]))}
        kl = self.setup.reward.kl
        if self._renews_kl and kl is not None:
            batch, measured["ess"] = with_kl_of(self.setup.policy, batch, kl.name, kl.penalty.coefficient)
        return replace(batch, measured=measured)

    @property
    def _renews_kl(self) -> bool:
        kl = self.setup.reward.kl
        return self.config.renew_kl and kl is not None and kl.penalty.reference is self.setup.reference

    def keep(self, rollout: Rollout) -> None:
        """Put the rollout into the buffer, and the oldest out until everything fits."""
        if not len(rollout):
            return
        if self._renews_kl:
            rollout = with_reference_logprobs(self.setup.reference, rollout)
        kept = Kept(to_keep(rollout), self._updates)
        if kept.size > self.config.max_bytes:
            raise ConfigError(
                fault("max_bytes", f"of replay, {self.config.max_bytes:,}, hold no rollout: one has {kept.size:,} here")
            )
        oldest = -1 if self.config.max_age is None else self._updates - self.config.max_age
        self.kept = [one for one in [*self.kept, kept] if one.written > oldest]
        while self.bytes > self.config.max_bytes:
            self.kept = self.kept[1:]

    def state_dict(self) -> State:
        return {
            "agent": self.agent.state_dict(),
            "updates": self._updates,
            "draws": dict(self._draws.bit_generator.state),
            "kept": [kept.state for kept in self.kept],
        }

    def load_state_dict(self, state: State, /) -> None:
        self.agent.load_state_dict(state["agent"])
        self._updates = int(state["updates"])
        self._draws.bit_generator.state = dict(state["draws"])
        self.kept = [Kept(rollout_from_state(kept["rollout"]), int(kept["written"])) for kept in state["kept"]]


def _name(agent: Agent) -> str:
    return type(agent).__name__
