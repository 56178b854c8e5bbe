"""Prompts by spread: what is known of them, how they are drawn, the weights that correct for it, and resuming."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rlhf_agents.dpo import DPO
from rlhf_agents.grpo import GRPO
from rlhf_agents.prompt_sampling import PromptSampling
from rlhf_agents.rloo import RLOO

from rlhf_env.errors import ConfigError
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.sources import EnvSource
from rlhf_env.types import Score

TASK = {"name": "prompts", "prompts": ["a=", "b=", "ab=", "ba="]}
REWARD = {"name": "echo", "length": 1, "alphabet": "ab"}


def rloo(setup: Any) -> RLOO:
    return RLOO(setup, RLOO.Config(group_size=2, optimization=Optimization(lr=1e-2)))


def sampling(setup: Any, agent: Any = None, **settings: Any) -> PromptSampling:
    return PromptSampling(setup, PromptSampling.Config(**settings), agent or rloo(setup))


@pytest.fixture
def world(make_world: Any) -> Any:
    """Eight rows, four groups, four prompts."""
    return make_world(rows=8, task=FourWords(), kl=0.0)


class FourWords:
    """Four prompts; the share of a's."""

    size = 4

    def prompt(self, index: int, _options: Any, /) -> Any:
        from rlhf_env.types import Prompt

        return Prompt(f"word/{index}", ["a=", "b=", "ab=", "ba="][index])

    def score(self, episode: Any, /) -> float:
        return episode.response.count("a") / 6


def earned(rollout: Any, *rewards: float) -> Any:
    scores = tuple(Score(raw={"task": reward}, weights={"task": 1.0}) for reward in rewards)
    return replace(rollout, scores=scores)


def test_a_spread_is_that_of_the_rewards_earlier_ones_counting_less(world: Any) -> None:
    agent = sampling(world.setup, explore=0.0, memory=0.5)
    rollout = world.rollout(agent)
    agent._asked = [0, 1, 2, 3]
    assert agent.spreads.tolist() == [1.0] * 4 and agent.probabilities.tolist() == [0.25] * 4
    agent.update(earned(rollout, 0.0, 1.0, 0.3, 0.3, 0.1, 0.1, 2.0, 3.0))
    assert agent.spreads == pytest.approx([0.5, 0.0, 0.0, 0.5])
    agent.update(earned(rollout, 0.0, 0.0, 0.3, 0.3, 0.1, 0.9, 2.0, 3.0))
    # Prompt 0: half of (0, 1), half of (0, 0): 1 with probability 1/4. Prompt 2: half of 0.1, half of (0.1, 0.9).
    assert agent.spreads == pytest.approx([(1 / 4 * 3 / 4) ** 0.5, 0.0, np.std([0.1, 0.1, 0.1, 0.9]), 0.5])
    assert agent.probabilities == pytest.approx(agent.spreads / agent.spreads.sum())
    mixed = sampling(world.setup, explore=0.4)
    mixed.load_state_dict(agent.state_dict())
    assert mixed.probabilities == pytest.approx(0.6 * agent.probabilities + 0.1)


def test_a_prompt_that_was_not_asked_counts_as_the_one_with_the_largest_spread(world: Any) -> None:
    agent = sampling(world.setup)
    agent._asked = [0, 1, 1, 0]
    agent.update(earned(world.rollout(rloo(world.setup)), 0.0, 1.0, 0.3, 0.3, 0.3, 0.3, 0.0, 1.0))
    assert agent.spreads == pytest.approx([0.5, 0.0, 0.5, 0.5])


def test_the_rollout_has_the_prompts_that_were_drawn(world: Any) -> None:
    agent = sampling(world.setup, explore=0.0)
    agent._answers[:], agent._square[3] = 8, 1.0  # only answers to the last differ
    source = EnvSource(world.env, seed=0, spending=world.setup.spending)
    assert Counter(episode.prompt.id for episode in source.next(agent).episodes) == {"word/3": 8}
    agent._square[:] = 1.0
    assert Counter(episode.prompt.id for episode in source.next(agent).episodes) == {f"word/{i}": 2 for i in range(4)}
    assert source.state_dict()["place"] == 0  # the source's own order is not used up
    assert source.next(rloo(world.setup)).episodes and source.state_dict()["place"] == 4


def test_weights_make_the_drawn_prompts_those_of_the_uniform_objective(world: Any, gradient_of: Any) -> None:
    """Exactly: the mean over what may be drawn of the weighted gradient is the mean over prompts of the plain one."""
    agent = sampling(world.setup, correction=1.0, explore=0.2)
    rollout = world.rollout(agent, seed=3)
    agent._answers[:], agent._square[:] = 8, [0.0, 1.0, 4.0, 0.25]
    groups = [rollout.select(rollout.group == number) for number in range(4)]
    plain = [gradient_of(agent.agent, group) for group in groups]
    mean, raw = torch.zeros(()), torch.zeros(())
    for number, (group, likely) in enumerate(zip(groups, agent.probabilities, strict=True)):
        agent._asked = [number]
        alone = replace(group, group=torch.zeros(2, dtype=torch.int64))
        mean = mean + likely * gradient_of(agent.agent, agent.weighted(alone))
        raw = raw + likely * plain[number]
    expected = sum(plain, torch.zeros(())) / 4
    torch.testing.assert_close(mean, expected, rtol=0, atol=1e-12)
    assert (raw - expected).norm() > 0.05 * expected.norm()
    agent._asked = [3, 1, 1, 2]
    expected = 1.0 / (4 * agent.probabilities[np.repeat(agent._asked, 2)])
    assert agent.weighted(rollout).row_weights.tolist() == pytest.approx(expected.tolist())
    assert sampling(world.setup).weighted(rollout) is rollout


@pytest.mark.parametrize("correction", [0.0, 1.0])
def test_it_resumes(assert_resumes: Any, correction: float) -> None:
    assert_resumes(lambda setup: sampling(setup, correction=correction), task=FourWords(), rows=8)


def test_what_it_cannot_do_is_said(make_world: Any) -> None:
    setup = make_world(rows=8, task={"name": "mixture", "tasks": [{"name": "echo", "length": 1}]}).setup
    with pytest.raises(ConfigError, match="prompts must say how many to draw from: this task has prompts without end"):
        sampling(setup)
    assert sampling(setup, prompts=20).size == 20
    with pytest.raises(ConfigError, match="correction is by weights of rows, and DPO takes none"):
        sampling(setup, DPO(setup, DPO.Config()), prompts=20, correction=0.5)
    with pytest.raises(ConfigError, match="explore must be above 0 with a correction"):
        PromptSampling.Config(correction=1.0, explore=0.0)
    assert sampling(setup, GRPO(setup, GRPO.Config()), prompts=20).begin()["group_size"] == 4
