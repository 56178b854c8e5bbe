"""DPO: ln 2 at the reference, which rows become pairs, and that it learns online and offline."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rlhf_agents.dpo import DPO, best_against_worst
from rlhf_agents.random import Random
from rlhf_agents.reference import Reference

from rlhf_env.envs.rewards import Score
from rlhf_env.errors import ConfigError
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.rollout import Rollout, preference_pairs


def dpo(setup: Any, **settings: Any) -> DPO:
    return DPO(setup, DPO.Config(**{"optimization": Optimization(lr=3e-3), **settings}))


@pytest.fixture
def pairs(make_episode) -> Rollout:
    """Four pairs: whatever begins with 1 is preferred; lengths differ."""
    chosen = [make_episode([0, 2], [1] * (n + 1) + [4]) for n in range(4)]
    rejected = [make_episode([0, 2], [0, 3] * (n % 2 + 1)) for n in range(4)]
    return preference_pairs(chosen, rejected, pad_id=5)


@pytest.mark.parametrize("normalised", [True, False])
def test_at_the_reference_the_loss_is_ln_2(make_world, pairs: Rollout, normalised: bool) -> None:  # N39
    metrics = dpo(make_world().setup, length_normalised=normalised).update(pairs)
    assert abs(metrics["loss"] - math.log(2)) < 1e-12
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert abs(metrics[name]) < 1e-12
    assert metrics["pairs"] == 4


def test_the_loss_away_from_the_reference(make_world, pairs: Rollout) -> None:
    """By hand from response log-probabilities, after some learning; the prompt has no part in it."""
    world = make_world(kl=0.3)
    agent = dpo(world.setup, epochs=5)
    agent.update(pairs)
    ratio = np.array(
        [
            a.sum() - b.sum()
            for a, b in zip(
                agent.policy.response_logprobs(pairs.episodes),
                world.setup.reference.response_logprobs(pairs.episodes),
                strict=True,
            )
        ]
    )
    margins = 0.3 * (ratio[0::2] - ratio[1::2])
    metrics = dpo(world.setup).update(pairs)
    assert abs(metrics["loss"] - np.log1p(np.exp(-margins)).mean()) < 1e-12
    assert abs(metrics["rewards/chosen"] - 0.3 * ratio[0::2].mean()) < 1e-12
    assert abs(metrics["rewards/margins"] - margins.mean()) < 1e-12
    assert metrics["rewards/accuracies"] == (margins > 0).mean()


@pytest.mark.parametrize("settings", [{}, {"loss": "ipo"}, {"label_smoothing": 0.1}, {"length_normalised": True}])
def test_micro_batches_change_nothing(make_world, pairs: Rollout, gradient_of, settings: Any) -> None:  # N34
    whole = gradient_of(dpo(make_world().setup, **settings), pairs)
    split = gradient_of(dpo(make_world().setup, **settings, optimization=Optimization(micro_batch_size=2)), pairs)
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-12)


def test_padding_and_neighbours_change_nothing(make_world, pairs: Rollout, gradient_of) -> None:  # N4
    agent = dpo(make_world().setup)
    noise = torch.randint(0, 6, pairs.tokens.shape, generator=torch.Generator().manual_seed(0))
    dirty = replace(pairs, tokens=torch.where(pairs.mask, pairs.tokens, noise))
    assert torch.equal(gradient_of(agent, dirty), gradient_of(agent, pairs))
    swapped = pairs.select(torch.tensor([4, 5, 6, 7, 0, 1, 2, 3]))
    torch.testing.assert_close(gradient_of(agent, swapped), gradient_of(agent, pairs), rtol=0, atol=1e-12)


def test_the_best_meets_the_worst() -> None:
    returns = torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0, 5.0, 0.0, math.inf, 1.0])
    group = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    counted = torch.tensor([True] * 7 + [False, True])
    pairs, ties = best_against_worst(returns, group, counted)
    assert pairs.tolist() == [[1, 0], [8, 6]]
    assert ties == 1


def test_pairs_are_made_without_the_kl_part_and_charged(make_world) -> None:
    world = make_world(rows=8, kl=0.1)
    agent = dpo(world.setup)
    rollout = world.rollout(agent)

    def scored(task: list[float]) -> Rollout:
        # A KL part that would reverse every comparison, were it counted.
        return replace(
            rollout,
            scores=tuple(Score(raw={"task": t, "kl": -100.0 * t}, weights={"task": 1.0, "kl": 0.1}) for t in task),
        )

    metrics = agent.update(scored([3, 1, 2, 0, 0.5, 0.5, 0.5, 0.5]))
    assert (metrics["pairs"], metrics["ties"]) == (1, 1)
    assert world.setup.spending.preference_labels == 2
    ratio = [
        a.sum() - b.sum()
        for a, b in zip(
            agent.policy.response_logprobs(rollout.episodes),
            world.setup.reference.response_logprobs(rollout.episodes),
            strict=True,
        )
    ]
    assert ratio[0] > ratio[3]

    before = agent.policy.response_logprobs(rollout.episodes)
    assert agent.update(scored([0.5] * 8)) == {"pairs": 0.0, "ties": 2.0}
    after = agent.policy.response_logprobs(rollout.episodes)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_stored_pairs_are_not_charged_again(make_world, pairs: Rollout) -> None:
    world = make_world()
    agent = dpo(world.setup)
    for _ in range(20):
        metrics = agent.update(pairs)
    assert metrics["rewards/accuracies"] == 1.0
    assert world.setup.spending.preference_labels == 0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns(make_world, seed: int) -> None:
    """Beats both controls by 0.6 (of a reward in [-1, 1]) after 25 updates."""
    world = make_world(seed=seed)
    controls = max(world.mean_score(kind(world.setup, kind.Config())) for kind in (Random, Reference))
    agent = dpo(world.setup)
    world.learn(agent, 25)
    assert world.mean_score(agent) > controls + 0.6


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns_token_by_token(make_world, seed: int) -> None:
    """In the token view, 8 bold updates beat the reference by 0.4."""
    world = make_world(seed=seed, whole_responses=False)
    reference = world.mean_score(Reference(world.setup, Reference.Config()), batches=2)
    agent = dpo(world.setup, optimization=Optimization(lr=1e-2))
    world.learn(agent, 8)
    assert world.mean_score(agent, batches=2) > reference + 0.4


def test_it_resumes(assert_resumes) -> None:
    assert_resumes(lambda setup: dpo(setup, epochs=2, minibatches=2))


def test_without_a_kl_part_there_is_no_beta(make_world) -> None:
    with pytest.raises(ConfigError, match="give the reward a 'kl' part"):
        dpo(make_world(kl=0.0).setup)


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError) as caught:
        DPO.Config(loss="ipo", label_smoothing=0.7, epochs=0, optimization=Optimization(micro_batch_size=3))
    assert len(caught.value.problems) == 4
