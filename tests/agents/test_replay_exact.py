"""What replay does to the policy gradient, summed over all buffers and draws: what is unbiased, and other biases.

The buffer has two or three rollouts that an older policy wrote, of one group each; one group is drawn. The policy that
learns has moved on since, and both are away from their reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations_with_replacement, product
from math import factorial, prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rlhf_agents.reinforce import Reinforce
from rlhf_agents.replay import Replay, group_probabilities
from rlhf_agents.rloo import RLOO

from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.unequal_draws import drawing_weights

PRIORITIES = ("uniform", "advantage", "reward", "staleness")
FREE: dict[str, Any] = {"importance_cap": 1e9}  # no ratio reaches it


def reinforce(setup: Any, **settings: Any) -> Reinforce:
    return Reinforce(setup, Reinforce.Config(baseline="none", **{**FREE, **settings}))


def rloo(setup: Any, **settings: Any) -> RLOO:
    return RLOO(setup, RLOO.Config(group_size=2, clip=0.0, **{**FREE, **settings}))


def groups_of(answers: Rollout, size: int) -> Iterator[tuple[float, Rollout]]:
    """Each set of `size` answers as a group, with the probability that its writer draws it."""
    likely = answers.logprobs.sum(dim=1).exp().tolist()
    for indices in combinations_with_replacement(range(len(likely)), size):
        orders = factorial(size) / prod(factorial(indices.count(i)) for i in set(indices))
        group = replace(answers.select(list(indices)), group=torch.zeros(size, dtype=torch.int64), stated=True)
        yield orders * prod(likely[i] for i in indices), group


def whole_way(agent: Replay, enumerated: Any, gradient_of: Any) -> torch.Tensor:
    """The mean gradient of one replayed group, by the agent's own buffer, draws and weights (to the power 1)."""
    mean = torch.zeros(())
    for (p, older), (q, newer) in product(groups_of(enumerated.answers, 1), repeat=2):
        agent.kept, agent._updates = [], 0
        for rollout in (older, newer):
            agent.keep(rollout)
            agent._updates += 1
        probabilities = agent.probabilities()
        assert len(probabilities) == 2 and abs(probabilities.sum() - 1.0) < 1e-12
        for drawn, likely in enumerate(probabilities):
            mean = mean + p * q * likely * gradient_of(agent.agent, agent.batch([drawn], probabilities, 1.0))
    return mean


def moments(agent: Replay, enumerated: Any, gradient_of: Any, *, size: int, beta: float) -> tuple[torch.Tensor, float]:
    """The same from a buffer of three (two of groups of two), and the trace of the covariance.

    A group's weight scales its gradient (a test of its own): it is computed once for each group.
    """
    drawn, gradients = list(groups_of(enumerated.answers, size)), []
    for _, rollout in drawn:
        agent.kept = []
        agent.keep(rollout)
        gradients.append(gradient_of(agent.agent, agent.batch([0], np.ones(1), beta)))
    returns = [group.returns().numpy() for _, group in drawn]
    buffered, config = 4 - size, agent.config
    scales = np.zeros(len(drawn)), np.zeros(len(drawn))  # sums of likely * w and of likely * w^2
    for buffer in product(range(len(drawn)), repeat=buffered):
        ages = list(range(buffered, 0, -1))
        probabilities = group_probabilities([returns[i] for i in buffer], ages, config.priority, config.alpha)
        weights = np.ones(buffered)
        if config.priority != "uniform":
            weights = drawing_weights(probabilities, beta, scale_by_max=config.scale_by_max)
        for place, index in enumerate(buffer):
            likely = prod(drawn[i][0] for i in buffer) * probabilities[place]
            scales[0][index] += likely * weights[place]
            scales[1][index] += likely * weights[place] ** 2
    mean = sum((float(scale) * gradient for scale, gradient in zip(scales[0], gradients, strict=True)), torch.zeros(()))
    square = sum(float(scale) * float(g @ g) for scale, g in zip(scales[1], gradients, strict=True))
    return mean, square - float(mean @ mean)


@pytest.mark.parametrize("priority", ["uniform", "reward"])
def test_what_is_kept_drawn_and_weighted_is_unbiased(enumerate_world: Any, gradient_of: Any, priority: Any) -> None:
    enumerated = enumerate_world(kl=0.3, length=1, rows=1, moved_on=True)
    setup, exact = enumerated.world.setup, enumerated.exact_gradient()
    agent = Replay(setup, Replay.Config(priority=priority, alpha=1.0, scale_by_max=False), reinforce(setup))
    assert exact.norm() > 0.1
    torch.testing.assert_close(whole_way(agent, enumerated, gradient_of), exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("priority", PRIORITIES)
@pytest.mark.parametrize(("inner", "size"), [(reinforce, 1), (rloo, 2)], ids=["reinforce", "rloo"])
def test_corrected_replay_is_unbiased(
    enumerate_world: Any, gradient_of: Any, priority: Any, inner: Callable[..., Any], size: int
) -> None:
    enumerated = enumerate_world(kl=0.3, length=1, rows=size, moved_on=True)
    setup = enumerated.world.setup
    agent = Replay(setup, Replay.Config(priority=priority, alpha=1.0, scale_by_max=False), inner(setup))
    mean, _ = moments(agent, enumerated, gradient_of, size=size, beta=1.0)
    torch.testing.assert_close(mean, enumerated.exact_gradient(), rtol=0, atol=1e-12)


def test_answers_of_several_tokens_and_the_kl_of_who_learns(enumerate_world: Any, gradient_of: Any) -> None:
    enumerated = enumerate_world(kl=0.3, length=2, rows=1, moved_on=True)
    setup, exact = enumerated.world.setup, enumerated.exact_gradient()

    def mean(**settings: Any) -> torch.Tensor:
        agent = Replay(setup, Replay.Config(**settings), reinforce(setup))
        total = torch.zeros(())
        for likely, rollout in groups_of(enumerated.answers, 1):
            agent.kept = []
            agent.keep(rollout)
            total = total + likely * gradient_of(agent.agent, agent.batch([0], agent.probabilities(), 1.0))
        return total

    torch.testing.assert_close(mean(), exact, rtol=0, atol=1e-12)
    assert (mean(renew_kl=False) - exact).norm() > 1e-3 * exact.norm()


# ---------------------------------------------------------------- the table of docs/mechanisms.md

# Settings of the buffer, of the agent, and the exponent of the weights.
OWN = "no replay: the policy's own text"
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    OWN: ({}, {}, 1.0),
    "uniform": ({}, {}, 1.0),
    "uniform, the writer's KL (`renew_kl = false`)": ({"renew_kl": False}, {}, 1.0),
    "uniform, ratios up to 1 (`importance_cap = 1`)": ({}, {"importance_cap": 1.0}, 1.0),
    "advantage, weights to the power 1": ({"priority": "advantage", "scale_by_max": False}, {}, 1.0),
    "advantage, to the power 0.4": ({"priority": "advantage", "scale_by_max": False}, {}, 0.4),
    "advantage, no weights": ({"priority": "advantage", "scale_by_max": False}, {}, 0.0),
    "advantage, over the largest (`scale_by_max`)": ({"priority": "advantage"}, {}, 1.0),
    "reward, to the power 1": ({"priority": "reward", "scale_by_max": False}, {}, 1.0),
    "reward, no weights": ({"priority": "reward", "scale_by_max": False}, {}, 0.0),
    "reward, over the largest (`scale_by_max`)": ({"priority": "reward"}, {}, 1.0),
    "staleness, to the power 1": ({"priority": "staleness", "scale_by_max": False}, {}, 1.0),
    "staleness, no weights": ({"priority": "staleness", "scale_by_max": False}, {}, 0.0),
}


def measured(name: str, enumerated: Any, gradient_of: Any) -> list[str]:
    buffer, settings, beta = ROWS[name]
    setup = enumerated.world.setup
    agent = Replay(setup, Replay.Config(**buffer), reinforce(setup, **settings))
    if name == OWN:
        enumerated = type(enumerated).of(enumerated.world)
    mean, variance = moments(agent, enumerated, gradient_of, size=1, beta=beta)
    return against(enumerated.exact_gradient(), mean, variance)


def against(exact: torch.Tensor, mean: torch.Tensor, variance: float) -> list[str]:
    """Bias and noise in parts of the exact gradient's length, and the cosine of the angle to it."""
    length = float(exact.norm())
    bias = float((mean - exact).norm()) / length
    cosine = float(mean @ exact / (mean.norm() * exact.norm()))
    return ["0" if bias < 1e-12 else f"{bias:.3f}", f"{cosine:.4f}", f"{variance**0.5 / length:.2f}"]


def test_the_table_of_biases_says_what_is_measured(enumerate_world: Any, gradient_of: Any) -> None:
    enumerated = enumerate_world(kl=0.3, length=1, rows=1, moved_on=True)
    rows = {name: measured(name, enumerated, gradient_of) for name in ROWS}
    require_on_page([f"| {name} | {' | '.join(numbers)} |" for name, numbers in rows.items()])


def require_on_page(rows: list[str]) -> None:
    """Each row stands in docs/mechanisms.md, where the docs are beside the tests."""
    page = Path(__file__).parents[2] / "docs" / "mechanisms.md"
    if not page.exists():
        pytest.skip("no docs here: these are copied tests")
    missing = [row for row in rows if row not in page.read_text(encoding="utf-8")]
    assert not missing, "docs/mechanisms.md lacks:\n" + "\n".join(missing)
