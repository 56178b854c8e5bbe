"""Rejection-sampling fine-tuning: write several answers, imitate the best (RAFT, Dong et al. 2023, arXiv 2304.06767).

Of the answers to a prompt, the `keep` best by return are demonstrations for a supervised step (`sft`, with its
dropout). The others are thrown away, but counted in the budget. Only ranks matter: it ignores how much better an answer
is, and learns nothing *against* a bad one. Imitation does not depend on who wrote a text, so old texts need no
correction.

    loss = mean of -log pi(token) over the tokens of the answers that were kept

Where it converges: without a `kl` part, the policy concentrates on the best answers it finds, until it writes nothing
else. With one, answers are ranked by their total return, r - beta * log(pi / reference). At the optimum of the
objective, pi* ~ reference * exp(r / beta), all returns are equal, so none is kept. But ranks, and therefore gradients,
do not shrink near it: the policy circles pi* at a distance that depends on the learning rate.

When: as a first step from a model that sometimes answers well, or where only ranks can be trusted. When not: bad
answers should become less likely, which it never learns directly.

Left out: ranking across prompts, rounds of data kept on disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from rlhf_agents.sft import SFT
from rlhf_env.errors import DataError, Problem
from rlhf_env.learning.advantages import groups_without_spread, rows_of_groups
from rlhf_env.learning.agent import Decision, Metrics, Setup
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.functional import minibatches, over_steps
from rlhf_env.learning.ranges import Choice, Multiple, Ranges
from rlhf_env.learning.rollout import Rollout
from rlhf_env.settings import AtLeastOne, fault, settings
from rlhf_env.types import Observation, ResetOptions, State


def best_of_groups(returns: Tensor, group: Tensor, keep: int, *, counted: Tensor | None = None) -> Tensor:
    """int64[N]: the rows of each group that are as good as its `keep`-th best, and better than its worst.

    Ties at the border are all kept, so the order of rows decides nothing; a group of equals keeps none. `returns` [B];
    `group` int64[B]; rows that are not `counted` (bool[B]; no score) stay out.
    """
    kept = [torch.zeros(0, dtype=torch.int64, device=group.device)]
    for rows in rows_of_groups(group, counted):
        if len(rows):
            values = returns[rows]
            border = values.topk(min(keep, len(rows))).values[-1]
            kept.append(rows[(values >= border) & (values > values.min())])
    return torch.cat(kept)


class Rejection:
    """Imitates the best of its own answers."""

    trains = True
    off_policy = True  # the loss is of the text, whoever wrote it

    @settings
    class Config:
        """How many answers are written, and how many of them are imitated."""

        ranges: ClassVar[Ranges] = {"lr": Multiple(0.25, 4.0), "epochs": Choice(1, 2, 4)}

        group_size: Annotated[int, Ge(2)] = 4
        """Answers to a prompt; it must divide the environment's rows."""
        keep: AtLeastOne = 1
        """How many of them are imitated, fewer than `group_size`."""
        epochs: AtLeastOne = 1
        """Passes over the answers that were kept."""
        minibatches: AtLeastOne = 1
        """Gradient steps per pass."""
        optimization: Optimization = Optimization(lr=5e-4)
        """Learning rate, gradient clipping and so on."""

        def problems(self) -> Iterator[Problem]:
            if self.group_size <= self.keep:
                yield fault("keep", f"must be less than group_size {self.group_size}, got {self.keep}")

    def __init__(self, setup: Setup, config: Config) -> None:
        setup.require_groups(config.group_size)
        self.setup = setup
        self.config = config
        self.policy = setup.policy
        self.imitation = SFT(setup, SFT.Config(optimization=config.optimization))
        self.optimizer = self.imitation.optimizer
        self._order = setup.stream("rejection minibatches")

    def begin(self) -> ResetOptions:
        return {"group_size": self.config.group_size}

    def act(self, observation: Observation, /) -> Decision:
        return self.imitation.act(observation)

    def update(self, rollout: Rollout, /) -> Metrics:
        """`epochs` passes of supervised steps over the kept answers; if none is kept, nothing changes.

        Raises DataError if no text has a score, unless all of them were cut from outside.
        """
        rollout.require_finite()
        if not (rollout.scored | rollout.truncated).any():
            raise DataError("rejection ranks texts by reward, and these have none: learn from demonstrations with sft")
        returns = rollout.returns()
        kept = best_of_groups(returns, rollout.group, self.config.keep, counted=rollout.scored)
        kept = kept[rollout.actions[kept].any(dim=1)]  # where the agent wrote nothing, there is nothing to imitate
        counts = {
            "kept": float(len(kept)),
            "rows_without_score": float((~rollout.scored).sum()),
            "groups_without_spread": groups_without_spread(returns, rollout.group, counted=rollout.scored),
        }
        if not len(kept):
            return {**counts, "steps_without_signal": 1.0}
        best = rollout.select(kept)
        steps = [
            self.imitation.update(best.select(rows))
            for rows in minibatches(len(best), self.config.minibatches, self.config.epochs, self._order)
        ]
        means = over_steps([{name: step[name] for name in ("loss", "grad_norm")} for step in steps])
        return {**means, **counts, "kept_reward": float(returns[kept].mean()), "lr": self.optimizer.lr}

    def state_dict(self) -> State:
        return {"imitation": self.imitation.state_dict(), "order": dict(self._order.bit_generator.state)}

    def load_state_dict(self, state: State, /) -> None:
        self.imitation.load_state_dict(state["imitation"])
        self._order.bit_generator.state = dict(state["order"])
