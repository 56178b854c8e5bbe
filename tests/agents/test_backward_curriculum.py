"""A backward curriculum: when the prefix becomes shorter, that nothing is learned from it, and that it pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from rlhf_agents.backward_curriculum import BackwardCurriculum
from rlhf_agents.grpo import GRPO
from rlhf_agents.ppo import PPO
from rlhf_agents.prompt_sampling import PromptSampling
from rlhf_agents.rloo import RLOO

from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.errors import ConfigError
from rlhf_env.lab.evaluation.evaluator import Evaluator
from rlhf_env.learning.engine import Engine, Optimization
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.workplace import build
from rlhf_env.types import Episode, Prompt, Score

from .conftest import World


@dataclass(frozen=True)
class Needle:
    """Reward 1 for one answer, and nothing for nearly right."""

    answer: str = "abba"

    size = 1

    def prompt(self, _index: int, _options: Any, /) -> Prompt:
        return Prompt("needle", "=", {"completion": self.answer})

    def score(self, episode: Episode, /) -> float:
        return float(episode.response == episode.prompt.meta.get("completion", self.answer))


def backward(setup: Any, agent: Any = None, **settings: Any) -> BackwardCurriculum:
    agent = agent or RLOO(setup, RLOO.Config(group_size=2, optimization=Optimization(lr=1e-2)))
    return BackwardCurriculum(setup, BackwardCurriculum.Config(**settings), agent)


def scored(rollout: Rollout, scores: Sequence[float | None]) -> Rollout:
    given = [
        Score(raw={}, weights={}) if score is None else Score(raw={"task": score}, weights={"task": 1.0})
        for score in scores
    ]
    return replace(rollout, scores=tuple(given))


@pytest.fixture
def world(make_world: Any) -> World:
    made: World = make_world(rows=8, task=Needle(), kl=0.1)
    return made


def given(rollout: Rollout) -> list[int]:
    """Of each text, the tokens of the answer that stood there."""
    return [int(episode.actions.argmax()) for episode in rollout.episodes]


# ---------------------------------------------------------------- when it becomes shorter


def test_success_over_a_window_takes_the_next_part_of_the_prefix_away(world: World) -> None:
    agent = backward(world.setup, stages=4, threshold=0.75, window=8, patience=2)
    seen = []
    for scores in ([1.0] * 8, [1.0] * 8, [1.0] * 8, [0.0] * 4 + [1.0] * 4, [1.0] * 8, [1.0] * 6 + [0.0] * 2):
        rollout = world.rollout(agent)
        metrics = agent.update(scored(rollout, scores))
        seen.append((set(given(rollout)), metrics["backward/stage"], metrics["backward/success"]))
    three, two = {3}, {2}
    assert seen == [(three, 1, 1.0), (three, 1, 1.0), (two, 2, 1.0), (two, 2, 0.5), (two, 2, 1.0), (two, 2, 0.75)]
    assert set(given(world.rollout(agent))) == {1}
    assert metrics["backward/prefix_tokens"] == 2.0


def test_at_the_last_stage_there_is_no_prefix_and_nothing_after_it(world: World) -> None:
    agent = backward(world.setup, stages=2, threshold=0.0, window=1)
    for expected in (2, 0, 0):
        rollout = world.rollout(agent)
        assert given(rollout) == [expected] * 8
        agent.update(rollout)
    assert agent.stage == 2


def test_texts_without_a_score_and_of_other_stages_do_not_count(world: World) -> None:
    agent = backward(world.setup, stages=4, threshold=0.6, window=4, whole=0.5)
    agent.begin()
    agent._stages[:] = [1, 4, 1, 4]
    metrics = agent.update(scored(world.rollout(backward(world.setup)), [1.0, None, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]))
    assert metrics["backward/success"] == pytest.approx(1 / 3) and agent.stage == 1


def test_some_groups_begin_earlier_or_without_a_prefix(make_world: Any) -> None:
    world = make_world(rows=400, task=Needle())
    agent = backward(world.setup, stages=4, earlier=0.25, whole=0.5)
    assert agent.begin()["prefix"]["column"] == "completion"
    agent.stage = 3
    shares = agent.begin()["prefix"]["shares"]
    counts = {share: shares.count(share) / 200 for share in (0.75, 0.5, 0.25, 0.0)}
    assert counts == pytest.approx({0.75: 0.125, 0.5: 0.125, 0.25: 0.25, 0.0: 0.5}, abs=0.08)
    assert set(given(world.rollout(agent))) == {3, 2, 1, 0}
    agent.stage = 4
    assert set(agent.begin()["prefix"]["shares"]) == {0.0}


# ---------------------------------------------------------------- what is learned


def test_the_prefix_is_context_and_nobodys_choice(world: World, gradient_of: Any) -> None:
    """The gradient is that of the rest of the answer after a prompt that the prefix belongs to."""
    agent = backward(world.setup, stages=2)
    rollout = world.rollout(agent, seed=3)
    assert given(rollout) == [2] * 8 and not rollout.actions[:, 1:3].any()
    assert rollout.tokens[:, :3].tolist() == [[3, 0, 1]] * 8
    moved = [
        replace(
            episode,
            prompt_ids=episode.ids[:3],
            response_ids=episode.response_ids[2:],
            actions=episode.actions[2:],
            logprobs=None if episode.logprobs is None else episode.logprobs[2:],
        )
        for episode in rollout.episodes
    ]
    scores = [
        replace(score, tokens={name: values[2:] for name, values in score.tokens.items()}) for score in rollout.scores
    ]
    as_prompt = Rollout.from_episodes(moved, scores, pad_id=5, group_size=2)
    rollout = scored(rollout, [1.0, 0.0] * 4)
    expected = gradient_of(agent.agent, scored(as_prompt, [1.0, 0.0] * 4))
    assert expected.norm() > 1e-3
    torch.testing.assert_close(gradient_of(agent.agent, rollout), expected, rtol=0, atol=1e-12)


def test_evaluations_begin_with_the_prompt(tmp_path: Any) -> None:
    file = tmp_path / "needle.jsonl"
    file.write_text('{"prompt": "=", "completion": "abba"}\n')
    table = {
        "task": {"name": "file", "path": str(file)},
        "policy": {"tokenizer": "alphabet:ab="},
        "environment": {"num_envs": 4, "max_new_tokens": 5, "max_prompt_tokens": 1},
        "rewards": {"task": {"plugin": "length", "target": 4}},
        "agent": {"name": "backward_curriculum", "agent": {"name": "rloo", "group_size": 2}},
        "budget": {"updates": 1},
        "evaluation": {"prompts": 8},
    }
    workplace = build(Experiment.from_table(table))
    assert given(workplace.source.next(workplace.agent)) == [3] * 4
    before = workplace.agent.state_dict()
    plain = build(Experiment.from_table({**table, "agent": {"name": "rloo", "group_size": 2}}))
    assert Evaluator.of(workplace)().samples == Evaluator.of(plain)().samples
    assert workplace.agent.state_dict()["stages"] == before["stages"]


def test_it_finds_what_its_agent_alone_does_not(make_world: Any) -> None:
    """One answer of six symbols out of 5^6, at the same number of updates."""
    reached = {}
    for name in ("alone", "backward"):
        world = make_world(rows=32, task=Needle("abaabb"), length=6, kl=0.0)
        inside = GRPO(world.setup, GRPO.Config(group_size=8, optimization=Optimization(lr=1e-2)))
        agent = inside if name == "alone" else backward(world.setup, inside, stages=6, threshold=0.5, window=32)
        world.learn(agent, 60)
        reached[name] = world.mean_score(inside, batches=2)
    assert reached["alone"] == 0.0 and reached["backward"] > 0.7


@pytest.mark.parametrize("inner", [RLOO, PPO])
def test_it_resumes(assert_resumes: Any, inner: Any) -> None:
    optimization = Optimization(lr=1e-2)
    settings: dict[str, Any] = {
        "stages": 3,
        "threshold": 0.0,
        "window": 12,
        "patience": 2,
        "earlier": 0.3,
        "whole": 0.3,
    }
    assert_resumes(
        lambda setup: backward(setup, inner(setup, inner.Config(optimization=optimization)), **settings),
        task=Needle(),
        rows=8,
    )


def test_it_goes_around_who_chooses_prompts(world: World) -> None:
    inside = PromptSampling(world.setup, PromptSampling.Config(), RLOO(world.setup, RLOO.Config(group_size=2)))
    wishes = backward(world.setup, inside).begin()
    assert wishes["indices"] == [0] * 4 and wishes["prefix"]["shares"] == [0.75] * 4


def test_what_it_cannot_do_is_said(make_world: Any, world: World) -> None:
    setup = world.setup
    for settings, said in [
        ({"column": "answer"}, "column 'answer' holds no demonstrated answer in the first 1 prompts"),
        ({"part": "length"}, r"part must be one of the reward's \(task, kl\), got 'length'"),
        ({"earlier": 0.5, "whole": 0.5}, "earlier and whole must leave some groups to the stage itself"),
        ({"stages": 0}, "stages must be at least 1, got 0"),
    ]:
        with pytest.raises(ConfigError, match=said):
            backward(setup, **settings)
    with pytest.raises(ConfigError, match="another backward_curriculum is inside of this one"):
        backward(setup, backward(setup))
    with pytest.raises(ConfigError, match="in a conversation the agent speaks first"):
        backward(replace(setup, task=TextVectorEnv(1, task="guess").task))
    with pytest.raises(ConfigError, match="a run without a task has no answers"):
        backward(replace(setup, task=None, engine=Engine()))
