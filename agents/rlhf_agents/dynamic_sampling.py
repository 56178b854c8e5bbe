"""Dynamic sampling around any agent that compares answers (DAPO, Yu et al. 2025, arXiv 2503.14476, eq. 11).

Groups whose answers all earned the same say nothing to whoever compares them. They are left out, and more groups are
written until the agent has a whole batch of others, or `draws` rollouts have been written for it. The agent learns at
the end, from all groups that have a spread; the policy is the same for all of them. What was written for nothing is
counted: each rollout is an update of the run, with its tokens and reward calls in the budget.

    [agent]
    name = "dynamic_sampling"
    agent = { name = "grpo", group_size = 8, lr = 1e-3 }

"The same" is said of rewards without KL. With a KL penalty, groups that are left out would have had a gradient, that
towards the reference: they bias what is learned, by as much as docs/mechanisms.md says. Without one, the step has the
direction that it would have had, and is longer, as the mean is taken over fewer groups.

When: a gradient step costs more than writing, or with `draws = 1` to leave empty groups out. When not: the budget is
counted in generated tokens; it writes more for each step.

Unlike DAPO, groups beyond a whole batch are learned from as well.
"""

from __future__ import annotations

import math
from typing import Annotated

from annotated_types import Gt, Le

from rlhf_env.errors import ConfigError, Problem
from rlhf_env.learning.agent import Agent, Around, Metrics, Setup, wishes_of
from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.stored_rollouts import rollout_from_state, rollout_state, to_keep
from rlhf_env.settings import AtLeastOne, settings
from rlhf_env.types import State


class DynamicSampling(Around):
    """Gives `agent` groups with a spread alone. What else it is asked (`trains`, `policy`), that one answers."""

    @settings
    class Config:
        """When there is enough to learn from. The agent to wrap is built first, and handed in."""

        fill: Annotated[float, Gt(0), Le(1)] = 1.0
        """The agent learns as soon as it has so large a share of a rollout's groups."""
        draws: AtLeastOne = 4
        """Rollouts after which it learns from what there is; 1 only leaves groups out."""

    def __init__(self, setup: Setup, config: Config, agent: Agent) -> None:
        if getattr(agent, "reads_every_text", False) is True:
            raise ConfigError(
                Problem(
                    f"{type(agent).__name__} has to see all texts, those of groups without a spread too: write it the "
                    'other way round, agent = { name = "dynamic_sampling", agent = ... } inside',
                    ("agent",),
                )
            )
        self._size = int(wishes_of(agent).get("group_size", 1))
        if self._size < 2:
            raise ConfigError(
                Problem(
                    f"{type(agent).__name__} has one answer to a prompt here, which has no spread: take an agent that "
                    "compares answers (grpo, rloo), or set its group_size",
                    ("agent",),
                )
            )
        self.setup = setup
        self.config = config
        self.agent = agent
        self.pending: list[Rollout] = []
        self._drawn = 0  # rollouts since the agent has learned

    def with_spread(self, rollout: Rollout) -> Rollout:
        """The groups in which not all rewards, without KL, are equal."""
        returns, scored = rollout.returns(without=self.setup.reward.kl_names), rollout.scored
        rows: list[int] = []
        for number in dict.fromkeys(rollout.group.tolist()):
            own = rollout.group == number
            values = returns[own & scored]
            if len(values) and bool((values != values[0]).any()):
                rows += own.nonzero().flatten().tolist()
        return rollout.select(rows)

    def update(self, rollout: Rollout, /) -> Metrics:
        """The agent's update as soon as it has enough; until then, the groups with a spread are put aside."""
        rollout.require_finite()
        told = self.with_spread(rollout)
        if len(told):
            self.pending.append(to_keep(told))
        self._drawn += 1
        groups = sum(len(set(part.group.tolist())) for part in self.pending)
        written = len(set(rollout.group.tolist()))
        metrics: Metrics = {
            "dynamic/groups_left_out": float(written - len(set(told.group.tolist()))),
            "dynamic/groups_pending": float(groups),
        }
        enough = math.ceil(self.config.fill * self.setup.batch_size / self._size)
        if groups < enough and self._drawn < self.config.draws:
            return metrics
        parts, self.pending, self._drawn = self.pending, [], 0
        if not parts:
            return {**metrics, "steps_without_signal": 1.0}
        return {**self.agent.update(Rollout.joined(parts, pad_id=self.setup.tokenizer.pad_id)), **metrics}

    def state_dict(self) -> State:
        return {
            "agent": self.agent.state_dict(),
            "drawn": self._drawn,
            "pending": [rollout_state(rollout) for rollout in self.pending],
        }

    def load_state_dict(self, state: State, /) -> None:
        self.agent.load_state_dict(state["agent"])
        self._drawn = int(state["drawn"])
        self.pending = [rollout_from_state(rollout) for rollout in state["pending"]]
