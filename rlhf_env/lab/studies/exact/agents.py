"""Agents on the `enumerable` task, through the real environment and the real loop, against the exact optimum.

Where the KL penalty is in the reward, the optimum pi* ~ reference * exp(reward / beta) is where every response has the
same return, reward - beta * log(pi* / reference). There, no response is better than another: whatever an agent compares
returns with, and however it scales the difference or weighs tokens, nothing is left to learn. So agents whose gradient
is biased (GRPO's, PPO's: `rlhf_env.lab.studies.exact.estimators`) end in the same place as those whose gradient is not:
those of `AGENTS`.

The others end elsewhere, and `tests/lab/studies/test_exact_agents.py` says where:

- `rejection` goes to pi* too, but knows ranks only: its steps do not shrink on the way, and it circles pi*;
- `dpo` and `kto`, online, are told which response is better and never by how much. Labels that never err hold nothing
  back: they go to the single best response, whatever beta is. (Of labels that err as Bradley and Terry say, `dpo`'s
  loss has its minimum at pi*.) With the loss "ipo", `dpo` goes to reference * exp(win rate against itself / beta);
- `grpo` with `kl_in_loss` goes where that term balances its own gradient, in which a group's mean takes the share 1/G
  off the reward and not off the penalty;
- `options` writes with several tables, so it has no one policy that could be compared state by state; its gradient is
  the objective's (`tests/agents/test_options.py`);
- `best_of_n` does not learn: it writes `rlhf_env.lab.studies.exact.world.best_of_n` of its policy.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from rlhf_env.envs.toy_tasks import Enumerable
from rlhf_env.errors import ConfigError
from rlhf_env.lab.studies.exact.world import Objective
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.workplace import Workplace, build
from rlhf_env.policies.tabular import TabularPolicy
from rlhf_env.types import JsonView

_BOLD = {"lr": 0.1, "schedule": "linear", "max_grad_norm": 0.0}  # the logits of a table have far to go
AGENTS: Mapping[str, JsonView] = {
    "reinforce": {"name": "reinforce", **_BOLD},
    "rloo": {"name": "rloo", **_BOLD},
    "grpo": {"name": "grpo", **_BOLD},
    "grpo, as Dr. GRPO": {"name": "grpo", "scale_by_std": False, "aggregation": "dr-grpo", **_BOLD},
    "ppo": {"name": "ppo", **_BOLD},
    "ppo, unwhitened": {"name": "ppo", "whiten_advantages": False, **_BOLD},
    "sb3": {"name": "sb3", "learning_rate": 0.05, "schedule": "linear"},
}
"""Agents that end at the optimum, with settings that are bold enough for a table."""

WITHIN = 0.01


def enumerable_experiment(agent: Mapping[str, object], seed: int) -> Experiment:
    """Four symbols and the end, at most three: 85 responses. The seed draws rewards, reference and samples."""
    return Experiment.from_table(
        {
            "name": "exact",
            "seed": seed,
            "task": {"name": "enumerable", "seed": seed},
            "policy": {"model": "table", "tokenizer": "alphabet:abcd", "dtype": "float64"},
            "environment": {"num_envs": 128, "max_new_tokens": 3, "max_prompt_tokens": 1},
            "rewards": {"task": 1.0, "kl": 1.0},
            "agent": dict(agent),
            "budget": {"updates": 100},
        }
    )


@dataclass(frozen=True, eq=False)
class Trained:
    """A workplace whose agent has spent its budget, and the objective that it worked on."""

    workplace: Workplace
    objective: Objective

    @property
    def policy(self) -> TabularPolicy:
        return _table(self.workplace.setup.policy)

    @property
    def shortfall(self) -> float:
        """(J* - J) / (J* - J(reference))."""
        return self.objective.shortfall(self.policy.logits)


def train_exactly(experiment: Experiment) -> Trained:
    """Train the agent of an experiment on the task `enumerable` with a table for a policy."""
    workplace = build(experiment)
    task, setup = workplace.env.task, workplace.setup
    if not isinstance(task, Enumerable):
        raise ConfigError(f"the optimum is known for the task 'enumerable', not for {type(task).__name__}")
    objective = Objective.of_task(task, _table(setup.reference), setup.beta)
    workplace.train()
    return Trained(workplace, objective)


def _table(policy: object) -> TabularPolicy:
    if not isinstance(policy, TabularPolicy):
        raise ConfigError('the optimum is known for a table of logits: [policy] model = "table"')
    return policy


@dataclass(frozen=True)
class Reached:
    """How far one agent is from the optimum at the end, in each seed: shares of the way from the reference to it."""

    agent: str
    shortfalls: Sequence[float]

    @property
    def hits(self) -> int:
        return sum(shortfall <= WITHIN for shortfall in self.shortfalls)


def reach(seeds: int) -> Iterator[Reached]:
    """Train each of `AGENTS` with seeds 0, 1, ..., one agent after the other."""
    for name, agent in AGENTS.items():
        yield Reached(name, [train_exactly(enumerable_experiment(agent, seed)).shortfall for seed in range(seeds)])


def reached_table(found: Sequence[Reached]) -> Table:
    """One row an agent: how many seeds came within 1 %, the median seed and the worst."""
    table = Table(
        title="What is left of the way from the reference (100 %) to the exact optimum (0 %)",
        caption="dpo, kto, rejection and best_of_n end elsewhere, by design: see rlhf_env.lab.studies.exact.agents.",
        title_justify="left",
        caption_justify="left",
    )
    for heading in ("Agent", "Within 1 %", "Left, median", "Left, worst"):
        table.add_column(heading, justify="left" if heading == "Agent" else "right")
    for one in found:
        left = [statistics.median(one.shortfalls), max(one.shortfalls)]
        table.add_row(
            one.agent, f"{one.hits} of {len(one.shortfalls)}", *[f"{100 * shortfall:.2f} %" for shortfall in left]
        )
    return table
