"""Best of n: it chooses the best, pays for all, and says what it cannot do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from rlhf_agents.best_of_n import BestOfN
from rlhf_agents.reference import Reference

from rlhf_env.errors import ConfigError


def best_of(setup: Any, n: int = 4) -> BestOfN:
    return BestOfN(setup, BestOfN.Config(n=n))


def test_it_gives_the_best_of_its_samples_and_charges_the_rest(make_world) -> None:
    world, twin = make_world(rows=3), make_world(rows=3)
    rollout = world.rollout(best_of(world.setup, 5), seed=0)
    observation, _ = twin.env.reset(seed=0)
    many = {name: np.repeat(values, 5, axis=0) for name, values in observation.items()}
    written = twin.setup.policy.write(many, 6)  # type: ignore[arg-type]

    lengths = (written.tokens < 6).sum(axis=1)
    scores = [
        min((row == 0).sum() / 6, 1.0) - (row > 0).sum() / max(len(row), 1)
        for row in (tokens[tokens < 4] for tokens in written.tokens)
    ]
    best = np.array(scores).reshape(3, 5).max(axis=1)
    np.testing.assert_allclose(rollout.part("task").numpy(), best, atol=1e-12)
    assert world.setup.spending.generated_tokens == lengths.sum() - int(rollout.actions.sum())
    assert world.setup.spending.reward_calls == 3 * 4


def test_it_states_the_policys_own_log_probabilities(make_world) -> None:
    world = make_world()
    rollout = world.rollout(best_of(world.setup))
    for row, logprobs in enumerate(world.setup.policy.response_logprobs(rollout.episodes)):
        start = len(rollout.episodes[row].prompt_ids)
        np.testing.assert_allclose(rollout.logprobs[row, start : start + len(logprobs)], logprobs, atol=1e-10)


def test_of_one_it_is_the_policy(make_world) -> None:
    world, twin = make_world(), make_world()
    agent = best_of(world.setup, 1)
    assert world.rollout(agent).tokens.equal(twin.rollout(Reference(twin.setup, Reference.Config())).tokens)
    assert agent.kl_bound == 0.0


def test_kl_bound(make_world) -> None:
    world = make_world()
    assert best_of(world.setup).update(world.rollout(best_of(world.setup))) == {"kl_bound": math.log(4) - 3 / 4}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_beats_the_reference(make_world, seed: int) -> None:
    world = make_world(seed=seed)
    reference = world.mean_score(Reference(world.setup, Reference.Config()))
    assert world.mean_score(best_of(world.setup, 16)) > reference + 0.4


def test_it_needs_whole_answers(make_world) -> None:
    with pytest.raises(ConfigError, match="action_length = max_new_tokens"):
        best_of(make_world(whole_responses=False).setup)


def test_it_needs_something_to_choose_by(make_world) -> None:
    from dataclasses import replace

    from rlhf_env.envs.rewards import RewardMix

    setup = make_world().setup
    only_kl = RewardMix({"kl": setup.reward.parts["kl"]})
    with pytest.raises(ConfigError, match="cannot compare answers"):
        best_of(replace(setup, reward=only_kl))


def test_it_resumes(assert_resumes) -> None:
    assert_resumes(best_of)
