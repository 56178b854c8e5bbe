"""Shaped: numbers by hand, a ledger that adds up to the bit, and what evaluations and views do not see."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.envs.rewards import RewardMix
from rlhf_env.envs.shaping import RunningMoments, Shaped, Total
from rlhf_env.envs.tasks import load_task
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.errors import ConfigError
from rlhf_env.learning.advantages import group_advantages
from rlhf_env.testing import make_episode
from rlhf_env.types import Episode, Float, Prompt, Score, TrainerState

BATCH = [make_episode("p", "x" * size) for size in range(4)]
EPSILON = 1e-6


@dataclass
class Says:
    """A reward that says these numbers, None among them, whatever the texts are."""

    numbers: Sequence[float | None]

    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        return [self.numbers[len(episode.response)] for episode in episodes]


@dataclass
class Distance:
    """A KL penalty of 1 nat a token."""

    reference: Any = None
    coefficient: float = 1.0

    def token_rewards(self, episodes: Sequence[Episode], /) -> list[Float]:
        return [np.full(len(episode.response_ids), -1.0) for episode in episodes]


def mixed(shaping: dict[str, Shaped], weight: float = 1.0, **numbers: Sequence[float | None]) -> RewardMix:
    parts: dict[str, Any] = {name: (weight, Says(said)) for name, said in numbers.items()}
    return RewardMix(parts | {"total": Total()} if "total" in shaping else parts, shaping=shaping)


def added_up(score: Score) -> float:
    total = 0.0
    for name in score.raw:
        total += score.weights[name] * score.raw[name]
    return total


def at(progress: float) -> TrainerState:
    return TrainerState(progress=progress)


# ---------------------------------------------------------------- by hand


def test_what_is_clipped_off_is_a_line_of_the_ledger() -> None:
    scores = mixed({"a": Shaped(clip=(-1.0, 2.0))}, 0.5, a=[3.0, -3.0, 1.0, 2.0], b=[1.0, 1.0, 1.0, 1.0]).score(BATCH)
    assert [score.raw for score in scores] == [
        {"a": 3.0, "a/shaping": -1.0, "b": 1.0},
        {"a": -3.0, "a/shaping": 2.0, "b": 1.0},
        {"a": 1.0, "a/shaping": 0.0, "b": 1.0},
        {"a": 2.0, "a/shaping": 0.0, "b": 1.0},
    ]
    assert scores[0].weights == {"a": 0.5, "a/shaping": 0.5, "b": 0.5}
    assert [score.total for score in scores] == [1.5, 0.0, 1.0, 1.5]


def test_each_reward_normalised_before_the_sum() -> None:
    """GDPO (2601.05242, eq. 4 and 5): right [1, 0, 1, 0] and form [1, 1, 0, 1], of one group, weights 2 and 2."""
    each = {"right": Shaped(normalise="group"), "form": Shaped(normalise="group")}
    scores = mixed(each, 2.0, right=[1, 0, 1, 0], form=[1, 1, 0, 1]).score(BATCH, group_size=4)
    right, form = 0.5 / (math.sqrt(1 / 3) + EPSILON), 0.25 / (0.5 + EPSILON)  # deviations of samples: n - 1
    expected = [2 * (right + form), 2 * (form - right), 2 * (right - 3 * form), 2 * (form - right)]
    assert [score.total for score in scores] == pytest.approx(expected, abs=1e-12)
    group = torch.zeros(4, dtype=torch.int64)
    returns = torch.tensor([score.total for score in scores], dtype=torch.float64)
    # Its mean is 0: what grpo makes of it without a division of its own is that sum.
    assert group_advantages(returns, group, scale_by_std=False).tolist() == pytest.approx(expected, abs=1e-12)


def test_the_sum_alone_cannot_tell_one_reward_from_two() -> None:
    """Section 3 of the paper: a group that differs in both rewards, and one that differs in one of them."""
    group = torch.zeros(2, dtype=torch.int64)
    after, before = [], []
    for form in ([1.0, 1.0], [0.0, 1.0]):
        each = {"right": Shaped(normalise="group"), "form": Shaped(normalise="group")}
        plain = RewardMix({"right": Says([0.0, 1.0]), "form": Says(form)}).score(BATCH[:2], 2)
        shaped = mixed(each, right=[0.0, 1.0], form=form).score(BATCH[:2], 2)
        for scores, found, scaled in ((plain, after, True), (shaped, before, False)):
            returns = torch.tensor([score.total for score in scores], dtype=torch.float64)
            found.append(group_advantages(returns, group, scale_by_std=scaled)[1].item())
    assert after[1] == pytest.approx(after[0], abs=1e-6)
    assert before[1] == pytest.approx(2 * before[0], abs=1e-12)


def test_equal_scores_of_a_group_are_exactly_nothing() -> None:
    scores = mixed({"a": Shaped(normalise="group")}, 0.3, a=[0.1, 0.1, 0.1, 0.7]).score(BATCH, group_size=2)
    assert [score.total for score in scores[:2]] == [0.0, 0.0]
    assert scores[2].total == pytest.approx(-scores[3].total, abs=1e-15) and scores[2].total < 0.0


def test_groups_are_normalised_each_for_itself_and_without_whom_a_part_abstained_from() -> None:
    mix = mixed({"a": Shaped(normalise="group")}, a=[1.0, None, 3.0, 7.0], b=[0.0, 0.0, 0.0, 0.0])
    scores = mix.score([*BATCH, *BATCH], group_size=4)
    std = math.sqrt(((1 - 11 / 3) ** 2 + (3 - 11 / 3) ** 2 + (7 - 11 / 3) ** 2) / 2)
    expected = [(value - 11 / 3) / (std + EPSILON) for value in (1.0, 3.0, 7.0)]
    assert [score.total for score in scores] == pytest.approx([expected[0], 0.0, *expected[1:]] * 2, abs=1e-12)
    assert scores[1].abstained == ("a",) and "a/shaping" not in scores[1].raw


def test_running_moments_are_those_of_all_texts_before() -> None:
    mix = mixed({"a": Shaped(normalise="running")}, a=[0.0, 2.0, 4.0, 10.0])
    first = mix.score(BATCH)
    assert [score.total for score in first] == [0.0, 2.0, 4.0, 10.0], "nothing is known in the first rollout"
    mix.observe(BATCH[:2], first[:2])  # 0 and 2: mean 1, deviation 1
    second = mix.score(BATCH)
    assert [score.total for score in second] == [-1.0, 1.0, 3.0, 9.0]
    assert mix.score(BATCH[3:])[0] == second[3], "batch mates change nothing"
    mix.observe(BATCH[2:3], second[2:3])  # 0, 2 and 4: what was said counts, not what was paid
    spread = math.sqrt(8 / 3)
    assert [score.total for score in mix.score(BATCH)] == pytest.approx([-2 / spread, 0.0, 2 / spread, 8 / spread])


@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=5), min_size=1, max_size=5))
def test_moments_of_batches_are_those_of_all_numbers(batches: list[list[float]]) -> None:
    moments = RunningMoments()
    for batch in batches:
        moments.add(np.array(batch))
    every = np.concatenate([np.array(batch) for batch in batches])
    assert moments.count == len(every)
    assert moments.mean == pytest.approx(every.mean(), abs=1e-9)
    assert moments.squares == pytest.approx(np.square(every - every.mean()).sum(), abs=1e-6, rel=1e-9)


def test_each_task_has_its_own_scale() -> None:
    """Task a says 0 and 2 (mean 1, deviation 1), task b 10 and 30 (mean 20, deviation 10)."""
    texts = [make_episode("p", "x" * size, meta={"task": "ab"[size // 2]}) for size in range(4)]
    mix = mixed({"a": Shaped(normalise="running", by_task=True)}, a=[0.0, 2.0, 10.0, 30.0])
    mix.observe(texts, mix.score(texts))
    assert [score.total for score in mix.score(texts)] == [-1.0, 1.0, -1.0, 1.0]
    other = [make_episode("p", "xxx", meta={"task": "c"})]
    assert mix.score(other)[0].total == 30.0, "nothing is known of another task"
    together = mixed({"a": Shaped(normalise="running")}, a=[0.0, 2.0, 10.0, 30.0])
    together.observe(texts, together.score(texts))
    assert together.score(texts)[1].total < 0.0


def test_a_condition_pays_the_part_where_another_says_so() -> None:
    mix = mixed({"short": Shaped(only_if="right >= 1")}, short=[-1.0, -2.0, -3.0, -4.0], right=[1.0, 0.0, None, 2.0])
    scores = mix.score(BATCH)
    assert [score.total for score in scores] == [0.0, 0.0, 0.0, -2.0]
    assert [score.raw["short"] for score in scores] == [-1.0, -2.0, -3.0, -4.0]


def test_a_schedule_is_the_weight_in_training_alone() -> None:
    shaping = {
        "a": Shaped(schedule=[(0.0, 1.0), (0.5, 0.0), (0.75, 4.0)]),
        "kl": Shaped(schedule=[(0.0, 0.0), (1.0, 0.2)]),
    }
    mix = RewardMix({"a": (7.0, Says([1.0] * 4)), "kl": (0.2, Distance())}, shaping=shaping)
    assert mix.kl is not None
    seen = []
    for progress in (0.0, 0.25, 0.5, 0.625, 1.0):
        mix.follow(at(progress))
        score = mix.score(BATCH[:1])[0]
        seen += [score.weights["a"], score.weights["kl"], mix.kl.beta]
        assert list(score.raw) == ["a", "kl"], "a weight that changes needs no line"
        assert score.total == added_up(score)
    expected = [1.0, 0.0, 0.0, 0.5, 0.05, 0.05, 0.0, 0.1, 0.1, 2.0, 0.125, 0.125, 4.0, 0.2, 0.2]
    assert seen == pytest.approx(expected, abs=1e-15)
    assert mix.weights == {"a": 7.0, "kl": 0.2}


def test_a_weight_is_steered_until_the_mean_is_there() -> None:
    mix = mixed({"a": Shaped(target=-1.0, horizon=8, most=1.5)}, a=[-3.0, -1.0, 0.0, 0.0])
    assert mix.score(BATCH)[0].weights["a"] == 1.0
    mix.observe(BATCH[:2], mix.score(BATCH[:2]))  # two texts, 1 below on average: + 2 / 8
    assert mix.score(BATCH)[0].weights["a"] == 1.25
    mix.observe(BATCH[2:], mix.score(BATCH[2:]))  # two texts, 1 above
    assert mix.score(BATCH)[0].weights["a"] == 1.0
    for _ in range(9):
        mix.observe(BATCH[:1], mix.score(BATCH[:1]))
    assert mix.score(BATCH)[0].weights["a"] == 1.5
    for _ in range(20):
        mix.observe(BATCH[2:], mix.score(BATCH[2:]))
    assert mix.score(BATCH)[0].weights["a"] == 0.0 and mix.weights == {"a": 1.0}


def test_the_sum_is_normalised_without_the_kl_penalty() -> None:
    shaping = {"total": Shaped(normalise="group"), "a": Shaped(clip=(0.0, 2.0))}
    parts: dict[str, Any] = {"total": Total(), "a": (2.0, Says([0.0, 9.0, 1.0, 0.0])), "b": Says([1.0, 0.0, 0.0, 3.0])}
    mix = RewardMix({**parts, "kl": (0.5, Distance())}, shaping=shaping)
    scores = mix.score(BATCH, group_size=2)  # sums 1, 4 | 2, 3
    told = 0.5 / (math.sqrt(0.5) + EPSILON), 1.5 / (math.sqrt(4.5) + EPSILON)
    nats = [-0.5 * len(episode.response_ids) for episode in BATCH]
    assert [score.total for score in scores] == pytest.approx(
        [nats[0] - told[1], nats[1] + told[1], nats[2] - told[0], nats[3] + told[0]], abs=1e-12
    )
    assert list(scores[0].raw) == ["total", "total/shaping", "a", "a/shaping", "b", "kl"]


# ---------------------------------------------------------------- invariances


shapes = st.sampled_from(
    [
        Shaped(normalise="group"),
        Shaped(normalise="running", clip=(-0.5, 0.5)),
        Shaped(clip=(-1.0, 1.0)),
        Shaped(only_if="c >= 0", normalise="group"),
        Shaped(schedule=[(0.0, 0.1), (1.0, 3.0)], clip=(-1.0, 3.0)),
    ]
)
numbers = st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4)


@given(shapes, shapes, numbers, numbers, numbers, st.floats(-10, 10), st.floats(0, 1))
def test_the_ledger_adds_up_to_the_bit_whatever_the_shaping(
    a: Shaped,
    b: Shaped,
    said: list[float],
    also: list[float],
    more: list[float],
    weight: float,
    progress: float,
) -> None:
    mix = mixed({"a": a, "b": b, "total": Shaped(clip=(-3.0, 2.0))}, weight, a=said, b=also, c=more)
    mix.follow(at(progress))
    mix.observe(BATCH, mix.score(BATCH, 2))
    for score in mix.score(BATCH, 2):
        assert score.total == added_up(score)
        assert [name for name in score.raw if "/" not in name] == ["a", "b", "c", "total"]
        size = sum(abs(score.weights[name] * value) for name, value in score.raw.items())
        assert -3.0 - 1e-9 * size <= score.total <= 2.0 + 1e-9 * size


class Words:
    size = 5

    def prompt(self, index: int, _options: Any, /) -> Prompt:
        return Prompt(id=f"{index}", text="ab" * (1 + index % 2))


class Places:
    """Which letters stand where."""

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        return np.array([math.sin(int.from_bytes(it.response_ids.tobytes()[::8], "big")) for it in episodes])


def written(length: int) -> list[Score]:
    """Three rollouts of four rows in groups of two, `length` tokens a step, of the same random texts."""
    shaping = {
        "a": Shaped(normalise="running", clip=(-1.0, 1.0)),
        "b": Shaped(normalise="group"),
        "c": Shaped(target=0.2, horizon=3),
        "total": Shaped(normalise="running"),
    }
    parts = {"a": Places(), "b": (0.5, Places()), "c": Places(), "total": Total()}
    mix = RewardMix(parts, shaping=shaping)
    env = TextVectorEnv(
        4, task=Words(), reward=mix, tokenizer="alphabet:ab", max_new_tokens=4, max_prompt_tokens=4,
        action_length=length, autoreset_mode="Disabled",
    )  # fmt: skip
    texts, found = np.random.default_rng(0).choice(3, size=(3, 4, 4)), []  # 2 ends a text
    for rollout in range(3):
        env.reset(seed=rollout, options={"group_size": 2})
        for start in range(0, 4, length):
            action = texts[rollout][:, start : start + length]
            _, rewards, _, _, infos = env.step(action[:, 0] if length == 1 else action)
            for row in np.flatnonzero(infos.get("_score", np.zeros(4, dtype=bool))):
                assert rewards[row] == infos["score"][row].total
                found.append((rollout, int(row), infos["score"][row]))
    return [score for *_, score in sorted(found, key=lambda it: it[:2])]


def test_every_view_pays_the_same() -> None:
    whole = written(4)
    assert len(whole) == 12
    assert written(1) == whole and written(2) == whole
    assert whole[0].raw["a/shaping"] != 0.0 or whole[8].raw["a/shaping"] != 0.0
    assert whole[8].weights["c"] != 1.0


def test_texts_that_are_scored_while_others_are_written_are_paid_the_same() -> None:
    shaping = {"a": Shaped(normalise="group"), "total": Shaped(clip=(-0.5, 0.5))}
    mix = mixed(shaping, a=[0.3, 0.9, 0.1, 0.2], b=[1.0, 0.0, 0.5, 0.0])
    with mix.scoring() as scoring:
        scoring.begin(BATCH[2:], 2, rows=4, places=[2, 3])
        scoring.begin(BATCH[:2], 2, rows=4, places=[0, 1])
        found = scoring.finish()
    assert [*found[2:], *found[:2]] == mix.score(BATCH, 2)


def test_what_was_learned_is_in_the_state() -> None:
    def made() -> RewardMix:
        shaping = {
            "a": Shaped(normalise="running", by_task=True),
            "b": Shaped(target=1.0, horizon=10),
        }
        return mixed(shaping, a=[0.1, 0.2, 0.4, 0.8], b=[0.3, 0.0, 0.0, 0.0])

    texts = [replace(it, prompt=replace(it.prompt, meta={"task": str(i % 2)})) for i, it in enumerate(BATCH)]
    one, other = made(), made()
    one.observe(texts, one.score(texts))
    assert one.score(texts) != other.score(texts)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert one.score(texts) == other.score(texts)
    assert RewardMix({"a": Says([0.0])}).state_dict() == {}, "as checkpoints of older versions have it"


# ---------------------------------------------------------------- tables


def test_a_part_without_a_weight_has_that_of_the_end_of_its_schedule() -> None:
    table = {"shaping": {"schedule": [[0, 1], [0.5, 0.25]]}}
    spec: dict[str, Any] = {
        "task": table,
        "length": {"target": 2, "weight": 3, **table},
        "missing_end": {"weight": 2.0},
    }
    mix = load_rewards(spec, load_task("echo"))
    assert mix.weights == {"task": 0.25, "length": 3.0, "missing_end": 2.0}
    assert mix.weights_now == {"task": 1.0, "length": 1.0}


def test_normalising_within_groups_of_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"reward 'a': normalise = \"group\" is of answers to one prompt"):
        mixed({"a": Shaped(normalise="group")}, a=[1.0]).score(BATCH[:1])
