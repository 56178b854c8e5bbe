"""Tasks by progress or temperature: the shares, that rollouts have them and evaluations do not, and resuming."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rlhf_agents.rloo import RLOO
from rlhf_agents.task_sampling import TaskSampling

from rlhf_env.envs.tasks import load_task
from rlhf_env.envs.validation_task import Validation
from rlhf_env.errors import ConfigError
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.learning_progress import ProgressSettings
from rlhf_env.learning.sources import EnvSource
from rlhf_env.types import Score

MIXTURE = {
    "name": "mixture",
    "tasks": {
        "one": {"name": "echo", "length": 1, "alphabet": "ab"},
        "two": {"name": "echo", "length": 2, "alphabet": "ab"},
        "off": {"name": "echo", "length": 3, "alphabet": "ab"},
    },
    "weights": {"one": 0.8, "two": 0.2, "off": 0.0},
}


def sampling(setup: Any, by: Any = "progress", part: str = "task", **progress: Any) -> TaskSampling:
    inner = RLOO(setup, RLOO.Config(group_size=2, optimization=Optimization(lr=1e-2)))
    config = TaskSampling.Config(by=by, part=part, progress=ProgressSettings(**progress))
    return TaskSampling(setup, config, inner)


def scored(rollout: Any, **means: float) -> Any:
    """As if the texts of each task had earned this, on average."""
    scores, signs = [], Counter[str]()
    for episode in rollout.episodes:
        label = episode.prompt.meta["task"]
        signs[label] += 1
        scores.append(Score(raw={"task": means[label]}, weights={"task": 1.0}))
    return replace(rollout, scores=tuple(scores))


def test_a_temperature_flattens_the_shares(make_world: Any) -> None:
    setup = make_world(rows=8, task=MIXTURE).setup
    assert sampling(setup, by="temperature").shares == pytest.approx([0.8, 0.2, 0.0])
    powers = np.array([0.8, 0.2]) ** 0.25
    flat = sampling(setup, by="temperature", temperature=4.0).shares
    assert flat == pytest.approx([*(powers / powers.sum()), 0.0])
    assert flat[1] > 0.4


def test_progress_is_the_change_of_scores(make_world: Any) -> None:
    world = make_world(rows=32, task=MIXTURE)
    agent = sampling(world.setup, explore=0.2, fast=0.5, slow=0.75)
    assert agent.shares == pytest.approx([0.5, 0.5, 0.0])
    rollout = world.rollout(agent)
    assert {episode.prompt.meta["task"] for episode in rollout.episodes} == {"one", "two"}
    agent.update(scored(rollout, one=0.4, two=0.1))
    assert agent.shares == pytest.approx([0.5, 0.5, 0.0])  # nothing has changed yet
    metrics = agent.update(scored(rollout, one=0.8, two=0.1))
    assert metrics["tasks/one/score"] == pytest.approx(0.8) and metrics["tasks/two/share"] == pytest.approx(0.5)
    assert agent.shares == pytest.approx([0.8 + 0.1, 0.1, 0.0])  # all of it, but for exploration
    agent.update(scored(rollout, one=0.8, two=0.0))  # fast - slow: one 0.7 - 0.575, two 0.05 - 0.075
    shares = np.array([0.125, 0.025]) / 0.15
    assert agent.shares == pytest.approx([*(0.8 * shares + 0.1), 0.0])


def test_given_shares_are_those_of_training(make_world: Any) -> None:
    world = make_world(rows=16, task=MIXTURE)
    inner = RLOO(world.setup, RLOO.Config(group_size=2))
    alone = TaskSampling(world.setup, TaskSampling.Config(by="shares", shares={"off": 2.0}), inner)
    assert alone.shares.tolist() == [0.0, 0.0, 1.0]
    assert {episode.prompt.meta["task"] for episode in world.rollout(alone).episodes} == {"off"}
    both = TaskSampling(world.setup, TaskSampling.Config(by="shares", shares={"one": 1.0, "off": 3.0}), inner)
    assert both.shares.tolist() == [0.25, 0.0, 0.75]
    with pytest.raises(ConfigError, match="shares names no task of the mixture with 'of': did you mean 'off'"):
        TaskSampling(world.setup, TaskSampling.Config(by="shares", shares={"of": 1.0}), inner)
    for wrong in ({"by": "shares"}, {"shares": {"one": 1.0}}):
        with pytest.raises(ConfigError, match='shares and by = "shares" go together'):
            TaskSampling.Config(**wrong)
    with pytest.raises(ConfigError, match="shares must not all be 0"):
        TaskSampling.Config(by="shares", shares={"one": 0.0})


def test_rollouts_have_these_shares(make_world: Any) -> None:
    world = make_world(rows=32, task=MIXTURE)
    agent = sampling(world.setup, explore=0.0)
    agent._progress._rollouts[:], agent._progress._fast[1] = 1, 1.0
    source = EnvSource(world.env, seed=0, spending=world.setup.spending)
    assert {episode.prompt.meta["task"] for episode in source.next(agent).episodes} == {"two"}
    counted = Counter(e.prompt.meta["task"] for _ in range(4) for e in source.next(agent.agent).episodes)
    assert counted["one"] > counted["two"] > 0  # whoever does not ask gets the mixture's own


@pytest.mark.parametrize("by", ["progress", "temperature"])
def test_it_resumes(assert_resumes: Any, by: Any) -> None:
    assert_resumes(lambda setup: sampling(setup, by=by, temperature=2.0), task=MIXTURE, rows=8)


def test_what_it_needs_is_said(make_world: Any) -> None:
    setup = make_world(rows=8).setup
    with pytest.raises(ConfigError, match=r"the task Count has no tasks to choose from: task_sampling needs"):
        sampling(setup)
    held = make_world(rows=8, task=Validation(load_task(MIXTURE))).setup
    assert sampling(held).labels == ("one", "two", "off")
    with pytest.raises(ConfigError, match="part must be one of the reward's"):
        sampling(held, part="upbeat")
    with pytest.raises(ConfigError, match=r"fast must be below slow = 0\.5, got 0\.7"):
        sampling(held, fast=0.7, slow=0.5)
