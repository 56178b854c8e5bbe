"""A curriculum: when the level rises, that it pays where nothing else learns, and that only rollouts know of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from typing import Any

import pytest
import torch
from rlhf_agents.curriculum import Curriculum
from rlhf_agents.grpo import GRPO
from rlhf_agents.options import Options
from rlhf_agents.ppo import PPO
from rlhf_agents.reference import Reference

from rlhf_env import plugins
from rlhf_env.envs.toy_tasks import Guess
from rlhf_env.errors import ConfigError
from rlhf_env.lab.evaluation.evaluator import Evaluator
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.learning_progress import ProgressSettings
from rlhf_env.learning.loop import train
from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.spending import Budget
from rlhf_env.learning.workplace import build
from rlhf_env.types import Episode, Prompt, Score

ECHO = {"name": "echo", "length": 4}


@dataclass(frozen=True)
class Lock:
    """Reward 1 for an answer that begins with the first `level` symbols of `code`, else 0: nothing for nearly right."""

    code: str = "babbaab"

    size = 1
    option_names = ("level",)

    def prompt(self, _index: int, options: Any, /) -> Prompt:
        level = options.get("level", len(self.code))
        if not 1 <= level <= len(self.code):
            raise ConfigError(f"level: 1 to {len(self.code)}, got {level}")
        return Prompt("lock", "=", {"level": level})

    def score(self, episode: Episode, /) -> float:
        level = episode.prompt.meta["level"]
        return float(episode.response[:level] == self.code[:level])


def curriculum(setup: Any, agent: Any = None, **settings: Any) -> Curriculum:
    agent = PPO(setup, PPO.Config(optimization=Optimization(lr=3e-3))) if agent is None else agent
    return Curriculum(setup, Curriculum.Config(**{"levels": (1, 2, 3), **settings}), agent)


class Idle:
    """Learns nothing, so that what the curriculum does can be seen alone."""

    trains = False
    kl_bound = 0.25

    def begin(self) -> dict[str, Any]:
        return {"group_size": 2}

    def update(self, _rollout: Rollout, /) -> dict[str, float]:
        return {"idle": 1.0}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, _state: Any, /) -> None: ...


def scored(rollout: Rollout, scores: Sequence[float | None]) -> Rollout:
    """Rows with these task rewards; None was cut from outside."""
    given = [
        Score(raw={}, weights={}) if score is None else Score(raw={"task": score}, weights={"task": 0.5})
        for score in scores
    ]
    return replace(rollout.select(list(range(len(scores)))), scores=tuple(given))


def levels_of(rollout: Rollout) -> set[int]:
    """Of echo: the symbols before "=" ."""
    return {len(episode.prompt_ids) - 1 for episode in rollout.episodes}


# ---------------------------------------------------------------- when the level rises


@pytest.fixture
def feed(make_world):
    """`feed(agent, [1.0, 0.0, ...])`: an update on rows with these task rewards; level and success of its metrics."""
    world = make_world(task=ECHO, rows=8)
    rollout = world.rollout(Reference(world.setup, Reference.Config()))

    def update(agent: Curriculum, scores: Sequence[float | None]) -> tuple[float, float | None]:
        agent.begin()
        metrics = agent.update(scored(rollout, scores))
        return metrics["curriculum/level"], metrics.get("curriculum/success")

    update.setup = world.setup  # type: ignore[attr-defined]
    update.rollout = rollout  # type: ignore[attr-defined]
    return update


def test_success_over_a_full_window_raises_the_level(feed) -> None:
    agent = curriculum(feed.setup, Idle(), threshold=0.75, window=4)
    assert feed(agent, [1.0, 1.0, 1.0]) == (1.0, 1.0)  # only three episodes have been seen
    assert feed(agent, [0.0, 0.0, 1.0]) == (1.0, 0.5)  # 1, 0, 0, 1 are the last four
    assert feed(agent, [1.0, 1.0]) == (1.0, 0.75)
    assert agent.begin()["level"] == 2
    assert feed(agent, [0.0]) == (2.0, 0.0)  # what was achieved at level 1 is forgotten
    assert feed(agent, [1.0] * 4) == (2.0, 1.0)
    assert feed(agent, [1.0] * 4) == (3.0, 1.0)
    assert feed(agent, [1.0] * 4) == (3.0, 1.0)  # there is no higher one


def test_patience_wants_it_several_times_in_a_row(feed) -> None:
    agent = curriculum(feed.setup, Idle(), threshold=0.5, window=2, patience=2)
    for scores in ([1.0, 1.0], [0.0, 0.0], [1.0, 1.0]):
        assert feed(agent, scores)[0] == 1.0
    assert feed(agent, [0.0, 1.0])[0] == 1.0
    assert feed(agent, [1.0, 1.0])[0] == 2.0
    assert feed(agent, [1.0, 1.0])[0] == 2.0
    assert feed(agent, [1.0, 1.0])[0] == 3.0


def test_texts_that_were_cut_off_count_for_nothing(feed) -> None:
    agent = curriculum(feed.setup, Idle(), threshold=0.9, window=2)
    assert feed(agent, [None, 1.0, None]) == (1.0, 1.0)
    assert feed(agent, [None, None]) == (1.0, 1.0)
    assert feed(agent, [1.0, None])[0] == 1.0
    assert agent.begin()["level"] == 2


def test_by_budget_each_level_has_its_share(feed) -> None:
    def levels(agent: Curriculum) -> list[int]:
        seen = []
        for progress in (0.0, 0.3, 0.34, 0.5, 0.6, 0.67, 0.99):
            feed.setup.engine.progress = progress
            seen.append(agent.begin()["level"])
        return seen

    assert levels(curriculum(feed.setup, Idle(), by="budget")) == [1, 1, 2, 2, 2, 3, 3]
    assert levels(curriculum(feed.setup, Idle(), by="budget", starts=(0.0, 0.5, 0.6))) == [1, 1, 1, 2, 3, 3, 3]


def test_by_updates_levels_begin_where_told(feed) -> None:
    agent = curriculum(feed.setup, Idle(), by="updates", starts=(0, 1, 3))
    assert [feed(agent, [0.0, 1.0]) for _ in range(5)] == [(level, 0.5) for level in (1.0, 2.0, 2.0, 3.0, 3.0)]


def self_paced(setup: Any, **progress: Any) -> Curriculum:
    return curriculum(setup, Idle(), by="progress", progress=ProgressSettings(**progress))


def test_by_progress_the_level_whose_scores_change_comes_most_often(feed) -> None:
    """Level 2 is fed as if it was being learned, level 1 as learned, level 3 as hopeless; a share is dealt out."""
    agent = self_paced(feed.setup, explore=0.3)
    asked = []
    for turn in range(200):
        level = agent.begin()["level"]
        assert agent.begin()["level"] == level  # whoever resets twice is at the same level
        worth = {1: 1.0, 2: turn / 200, 3: 0.0}[level]
        assert feed(agent, [worth] * 4) == (level, pytest.approx(worth))
        asked.append(level)
    counts = {level: asked[20:].count(level) / 180 for level in (1, 2, 3)}
    # Expected 0.1, 0.8, 0.1, but for the first moves of the averages; five standard errors are 0.15.
    assert counts[2] > 0.65 and min(counts.values()) > 0.02
    metrics = agent.update(scored(feed.rollout, [None]))
    shares = {level: metrics[f"curriculum/share_of_level_{level}"] for level in (1, 2, 3)}
    assert shares == pytest.approx({1: 0.1, 2: 0.8, 3: 0.1})


def test_levels_by_progress_come_from_a_stream_of_their_own(feed) -> None:
    def levels(setup: Any) -> list[float]:
        agent = self_paced(setup, explore=1.0)
        return [feed(agent, [0.5])[0] for _ in range(40)]

    assert levels(feed.setup) == levels(feed.setup)
    assert levels(feed.setup) != levels(replace(feed.setup, seed=1))
    assert set(levels(feed.setup)) == {1.0, 2.0, 3.0}


# ---------------------------------------------------------------- the agent inside


def test_the_agent_inside_answers_for_the_rest(feed) -> None:
    agent = curriculum(feed.setup, Idle())
    assert agent.begin() == {"group_size": 2, "level": 1}
    assert agent.trains is False and agent.kl_bound == 0.25
    assert copy.deepcopy(agent).kl_bound == 0.25
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        _ = agent.nothing_of_that_name


def test_it_learns_exactly_what_the_agent_inside_would(make_world, gradient_of) -> None:
    world = make_world(task=ECHO)
    agent = curriculum(world.setup)
    rollout = world.rollout(agent, seed=3)
    assert levels_of(rollout) == {1}
    assert torch.equal(gradient_of(agent, rollout), gradient_of(agent.agent, rollout))


@pytest.mark.parametrize(
    "inner",
    [
        lambda setup: PPO(setup, PPO.Config(optimization=Optimization(lr=1e-2))),
        lambda setup: GRPO(setup, GRPO.Config(optimization=Optimization(lr=1e-2))),
        lambda setup: Options(setup, Options.Config(optimization=Optimization(lr=1e-2))),
    ],
    ids=["ppo", "grpo", "options"],
)
def test_it_resumes(assert_resumes, inner: Any) -> None:
    """The cut is where the level has just risen, with half a window behind it."""
    settings: dict[str, Any] = {"levels": (1, 2, 3, 4), "threshold": 0.0, "window": 12, "patience": 2}
    assert_resumes(lambda setup: curriculum(setup, inner(setup), **settings), task=ECHO, rows=8)


def test_by_progress_it_resumes(assert_resumes) -> None:
    """Averages, and the draws of levels: the levels after the cut are the same."""

    def make(setup: Any) -> Curriculum:
        inner = GRPO(setup, GRPO.Config(optimization=Optimization(lr=1e-2)))
        return curriculum(setup, inner, levels=(1, 2, 3, 4), by="progress")

    assert_resumes(make, task=ECHO, rows=8)


def test_every_counter_is_in_the_state(feed) -> None:
    settings: dict[str, Any] = {"threshold": 0.5, "window": 4, "patience": 2}
    agent = curriculum(feed.setup, Idle(), **settings)
    for scores in ([1.0] * 4, [1.0] * 4, [1.0] * 4, [0.0]):
        feed(agent, scores)
    fresh = curriculum(feed.setup, Idle(), **settings)
    fresh.load_state_dict(agent.state_dict())
    for scores in ([1.0], [0.0, 1.0], [1.0]):
        assert feed(fresh, scores) == feed(agent, scores)
    assert fresh.begin()["level"] == agent.begin()["level"] == 3

    timed = curriculum(feed.setup, Idle(), by="updates", starts=(0, 1, 2))
    feed(timed, [1.0])
    fresh = curriculum(feed.setup, Idle(), by="updates", starts=(0, 1, 2))
    fresh.load_state_dict(timed.state_dict())
    assert fresh.begin()["level"] == 2

    paced = self_paced(feed.setup)
    for turn in range(7):
        feed(paced, [0.1 * turn])
    fresh = self_paced(replace(feed.setup, seed=5))
    fresh.load_state_dict(paced.state_dict())
    for turn in range(20):
        assert feed(fresh, [0.01 * turn]) == feed(paced, [0.01 * turn])


# ---------------------------------------------------------------- in an experiment


def experiment(agent: dict[str, Any], **changes: Any) -> Experiment:
    table: dict[str, Any] = {
        "task": ECHO,
        "policy": {"tokenizer": "alphabet:ab="},
        "environment": {"num_envs": 8, "max_new_tokens": 5, "max_prompt_tokens": 6},
        "rewards": {"task": 1.0},
        "budget": {"updates": 2},
        "evaluation": {"prompts": 16},
    }
    return Experiment.from_table({**table, **changes, "agent": agent})


def test_a_file_names_the_agent_inside(tmp_path) -> None:
    file = tmp_path / "experiment.toml"
    written = experiment({"name": "curriculum", "levels": [1, 3], "agent": {"name": "grpo", "lr": 0.5}}).to_toml()
    file.write_text(written)
    agent: Any = build(Experiment.load(file)).agent
    assert isinstance(agent, Curriculum) and isinstance(agent.agent, GRPO)
    assert agent.config.levels == (1, 3)
    assert agent.agent.config.optimization.lr == 0.5
    inner: Any = build(experiment({"name": "curriculum", "levels": [1], "agent": "reference"})).agent
    assert isinstance(inner.agent, Reference)


@pytest.mark.parametrize(
    ("agent", "problems"),
    [
        ({"levels": [1]}, ["[agent] curriculum wraps another agent"]),
        ({"levels": [1], "agent": {"lr": 1.0}}, ["[agent] curriculum: agent needs a name"]),
        ({"levels": [1], "agent": {"name": "pppo"}}, ["unknown agent 'pppo': did you mean 'ppo'?"]),
        (
            {"level": [1], "agent": {"name": "ppo", "lamda": 1}},
            [
                "[agent] curriculum: no setting 'level': did you mean 'levels'?",
                "[agent] curriculum: the setting 'levels' is required",
                "[agent] curriculum: agent ppo: no setting 'lamda': did you mean 'lam'?",
            ],
        ),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(agent: dict[str, Any], problems: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        build(experiment({"name": "curriculum", **agent}, policy={"model": "/no/such/folder"}))
    assert len(caught.value.problems) == len(problems)
    for problem, expected in zip(caught.value.problems, problems, strict=True):
        assert problem.startswith(expected)


def test_only_a_wrapper_takes_an_agent() -> None:
    with pytest.raises(ConfigError, match="ppo: no setting 'agent'"):
        build(experiment({"name": "ppo", "agent": {"name": "grpo"}}))


def test_the_evaluator_measures_at_the_tasks_own_level() -> None:
    """Whatever level training is at: the same prompts as for everybody, and the training goes on undisturbed."""
    workplace = build(experiment({"name": "curriculum", "levels": [1, 2], "agent": "reference"}))
    other = build(experiment({"name": "reference"}))
    assert levels_of(workplace.source.next(workplace.agent)) == {1}
    before = workplace.agent.state_dict()
    samples = Evaluator.of(workplace)().samples
    assert {len(str(sample["prompt"])) for sample in samples} == {5}
    assert samples == Evaluator.of(other)().samples
    assert workplace.agent.state_dict() == before
    assert levels_of(workplace.source.next(workplace.agent)) == {1}


@pytest.mark.parametrize("seed", [0, 2, 3])  # on 1 and 5 ppo comes upon the code by chance
def test_it_gets_where_its_agent_alone_does_not(seed: int, monkeypatch) -> None:
    """Seven symbols, rewarded together or not at all. At the same budget the curriculum is above 0.8, ppo at 0."""
    host = plugins.PluginHost(entry_points(group=plugins.GROUP))
    host.add("task", "lock", Lock)
    monkeypatch.setattr(plugins, "host", lambda: host)
    ppo = {"name": "ppo", "lr": 0.1}
    reached = {}
    for agent in (ppo, {"name": "curriculum", "levels": [*range(1, 8)], "threshold": 0.5, "window": 64, "agent": ppo}):
        workplace = build(
            experiment(
                agent,
                seed=seed,
                task={"name": "lock"},
                policy={"model": "table", "tokenizer": "alphabet:ab="},
                environment={"num_envs": 64, "max_new_tokens": 7, "max_prompt_tokens": 1},
                evaluation={"prompts": 64},
            )
        )
        setup = workplace.setup
        train(workplace.agent, workplace.source, Budget(updates=65), spending=setup.spending, engine=setup.engine)
        reached[agent["name"]] = Evaluator.of(workplace)().metrics["objective"]
    assert reached["ppo"] < 0.05
    assert reached["curriculum"] > 0.8


# ---------------------------------------------------------------- what is refused


def test_it_refuses_a_task_without_levels(make_world) -> None:
    with pytest.raises(ConfigError, match="the task Count has no levels"):
        curriculum(make_world().setup)
    with pytest.raises(ConfigError, match="a run without a task has no levels"):
        curriculum(replace(make_world(task=ECHO).setup, task=None))


def test_it_refuses_a_level_that_the_task_does_not_have(make_world) -> None:
    with pytest.raises(ConfigError, match="level: the number of symbols to echo"):
        curriculum(make_world(task=ECHO).setup, levels=(0, 1))
    guess = replace(make_world().setup, task=Guess(alphabet="ab"))
    with pytest.raises(ConfigError, match="letters in play, 1 to 2, got 3"):
        curriculum(guess)
    assert curriculum(guess, levels=(1, 2)).begin()["level"] == 1


def test_it_refuses_to_judge_by_a_part_that_is_not_there(make_world) -> None:
    with pytest.raises(ConfigError, match=r"part must be one of the reward's .task, kl., got 'taste'"):
        curriculum(make_world(task=ECHO).setup, part="taste")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"levels": ()}, "levels must have one or more entries"),
        ({"levels": (1, 1)}, "levels must be whole numbers that rise"),
        ({"levels": (1, 2.5)}, r"levels\[1\] must be a whole number"),
        ({"window": 0}, "window must be at least 1"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"threshold": float("nan")}, "threshold must be a finite number"),
        ({"by": "luck"}, "by must be one of 'success', 'budget', 'updates', 'progress'"),
        ({"starts": (0, 0.1, 0.2)}, "starts are for by = budget and by = updates, not success"),
        ({"by": "progress", "starts": (0, 1, 2)}, "starts are for by = budget and by = updates, not progress"),
        ({"by": "updates"}, "starts must be one number for each of the 3 levels"),
        ({"by": "updates", "starts": (0, 4)}, "starts must be one number for each of the 3 levels"),
        ({"by": "updates", "starts": (1, 2, 3)}, "0 first and rising"),
        ({"by": "budget", "starts": (0, 0.5, 0.5)}, "0 first and rising"),
        ({"by": "budget", "starts": (0, 10, 20)}, "shares of the budget, below 1"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        Curriculum.Config(**{"levels": (1, 2, 3), **settings})
    assert len(caught.value.problems) == 1
