"""Potential-based shaping over all texts of a small world: the optimum and the expected policy gradient stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rlhf_agents.reinforce import Reinforce
from rlhf_agents.rloo import RLOO
from rlhf_rewards.kl import KL
from rlhf_rewards.shaping import PotentialShaping

from rlhf_env.envs.rewards import RewardMix
from rlhf_env.types import Float

from .conftest import Enumerated, build_world, stir


class Forward:
    """Pays each step by the potential it reaches, and takes nothing back: no potential-based shaping."""

    def __init__(self, shaped: PotentialShaping) -> None:
        self._shaped = shaped

    def token_rewards(self, episodes: Any, /) -> list[Float]:
        differences = self._shaped.token_rewards(episodes)
        return [np.maximum(row, 0.0) for row in differences]


@pytest.fixture
def small(tmp_path: Any) -> Any:
    """A world with all its texts, and rewards beside the task's: none, potential-based, and one that is not."""
    file = tmp_path / "mine.py"
    values = "{'': 0.3, 'a': 1.5, 'b': 4.0, ':': 0.2}"
    file.write_text(f"def phi(completions, **columns):\n    return [{values}.get(it, 0.9) for it in completions]\n")
    world = build_world(kl=0.3, length=2, rows=1)
    stir(world.setup.policy, seed=1)
    enumerated = Enumerated.of(world)
    phi = PotentialShaping({"function": f"{file}:phi"}, tokenizer=world.env.tokenizer)
    parts: dict[str, Any] = {"task": world.env.reward.parts["task"], "kl": (0.3, KL(world.setup.reference))}
    mixes = {
        "none": RewardMix(parts),
        "potential": RewardMix({**parts, "shaping": phi}),
        "forward": RewardMix({**parts, "shaping": Forward(phi)}),
    }
    episodes = enumerated.answers.episodes
    scored = {name: replace(enumerated.answers, scores=tuple(mix.score(episodes))) for name, mix in mixes.items()}
    return world, enumerated, scored


def expected(world: Any, enumerated: Any, answers: Any, agent: Any, gradient_of: Any, rows: int = 1) -> torch.Tensor:
    mean: torch.Tensor = replace(enumerated, answers=answers).expected_gradient(
        lambda rollout: gradient_of(agent, replace(rollout, stated=True)), rows=rows
    )
    return mean


def test_the_expected_policy_gradient_stays(small: Any, gradient_of: Any) -> None:
    """Token by token, where shaping changes every credit; and another shaping turns it."""
    world, enumerated, scored = small
    agent = Reinforce(world.setup, Reinforce.Config(baseline="none", reward_to_go=True))
    exact = enumerated.exact_gradient()
    means = {name: expected(world, enumerated, scored[name], agent, gradient_of) for name in scored}
    torch.testing.assert_close(means["none"], exact, rtol=0, atol=1e-12)
    torch.testing.assert_close(means["potential"], exact, rtol=0, atol=1e-12)
    assert (means["forward"] - exact).norm() > 0.1 * exact.norm()
    single = [gradient_of(agent, replace(scored[name].select([7]), stated=True)) for name in ("none", "potential")]
    assert (single[0] - single[1]).norm() > 0.1 * single[0].norm(), "of a single text it is another one"


def test_the_optimum_stays(small: Any) -> None:
    """All texts are worth less by the same number, so that every policy is, and the best text is the best."""
    _, _, scored = small
    plain, shaped, forward = (scored[name].returns(without=("kl",)) for name in ("none", "potential", "forward"))
    torch.testing.assert_close(shaped - plain, torch.full_like(plain, -0.3), rtol=0, atol=1e-12)
    assert shaped.argmax() == plain.argmax() != forward.argmax()


def test_whole_answers_are_compared_as_without(small: Any, gradient_of: Any) -> None:
    _, _, scored = small
    agent = RLOO(build_world(kl=0.3, length=2, rows=2).setup, RLOO.Config(group_size=2))
    rows = [5, 9]
    pairs = [
        replace(scored[name].select(rows), group=torch.zeros(2, dtype=torch.int64), stated=True)
        for name in ("none", "potential")
    ]
    gradients = [gradient_of(agent, pair) for pair in pairs]
    assert gradients[0].norm() > 0.01
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)
