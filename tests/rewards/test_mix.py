"""The mix: an exact ledger, and a part that answers wrongly is named before anything is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_env.envs.asked_part import Failures
from rlhf_env.envs.rewards import RewardMix
from rlhf_env.errors import ConfigError, RewardError
from rlhf_env.testing import make_episode
from rlhf_env.types import Episode, Prompt, Score

BATCH = [make_episode("p", response) for response in ("a", "bb", "ccc")]
finite = st.floats(-1e6, 1e6)


@dataclass
class Answers:
    """A reward that says what it is told."""

    answer: Any

    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        return self.answer


@dataclass
class AnswersPerToken:
    answer: Any

    def token_rewards(self, episodes: Sequence[Episode], /) -> Any:
        return self.answer


@dataclass
class AnswersPerGroup:
    answer: Any

    def group_rewards(self, group: Sequence[Episode], /) -> Any:
        return self.answer


class LengthOfTheFirst:
    def group_rewards(self, group: Sequence[Episode], /) -> Any:
        return np.full(len(group), float(len(group[0].response)))


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=6), st.lists(finite, min_size=2, max_size=2))
def test_the_total_is_the_weighted_sum_in_order_to_the_bit(
    parts: list[tuple[float, float]], tokens: list[float]
) -> None:
    mix = RewardMix(
        {f"part {i}": (weight, Answers([raw])) for i, (weight, raw) in enumerate(parts)}
        | {"tokens": (0.3, AnswersPerToken([np.array(tokens)]))}
    )
    (score,) = mix.score(BATCH[:1])
    total = 0.0
    for weight, raw in parts:
        total += weight * raw
    total += 0.3 * float(np.array(tokens).sum())
    assert score.total == total
    assert list(score.raw) == [*(f"part {i}" for i in range(len(parts))), "tokens"]


def test_a_mix_by_hand() -> None:
    mix = RewardMix({"one": Answers([1, 2, 3]), "half": (0.5, Answers(np.array([1.0, 0.0, -1.0], dtype=np.float32)))})
    assert [score.total for score in mix.score(BATCH)] == [1.5, 2.0, 2.5]
    assert mix.weights == {"one": 1.0, "half": 0.5}
    assert not mix.needs_logprobs and not mix.scores_groups
    assert Score(raw={}, weights={}).total == 0.0


def test_a_weight_of_zero_is_kept_in_the_ledger() -> None:
    (score,) = RewardMix({"seen": (0.0, Answers([7.0])), "paid": (2.0, Answers([1.5]))}).score(BATCH[:1])
    assert score.raw == {"seen": 7.0, "paid": 1.5} and score.total == 3.0


def test_groups_are_neighbours() -> None:
    mix = RewardMix({"group": LengthOfTheFirst()})
    assert mix.scores_groups
    assert [score.total for score in mix.score(BATCH + BATCH[:1], group_size=2)] == [1.0, 1.0, 3.0, 3.0]
    assert [score.total for score in mix.score(BATCH)] == [1.0, 2.0, 3.0]


@dataclass
class Asked:
    """The letters of each response (a token: each time); remembers what it was asked about."""

    needs_logprobs: bool = False
    log: list[list[str]] = field(default_factory=list)

    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        self.log.append([it.response for it in episodes])
        return [float("nan") if it.response == "bad" else float(len(it.response)) for it in episodes]


class AskedPerToken(Asked):
    __call__ = None  # type: ignore[assignment]

    def token_rewards(self, episodes: Sequence[Episode], /) -> Any:
        lengths = Asked.__call__(self, episodes)
        return [np.full(len(it.response_ids), n) for it, n in zip(episodes, lengths, strict=True)]


class AskedPerGroup(Asked):
    __call__ = None  # type: ignore[assignment]

    def group_rewards(self, group: Sequence[Episode], /) -> Any:
        return Asked.__call__(self, group)


def answers(*responses: str) -> list[Episode]:
    """To one prompt, as rows of a group are."""
    prompt = Prompt("p", "p", {"columns": np.zeros(3)})  # which no `==` can compare
    return [replace(make_episode("p", response), prompt=prompt) for response in responses]


def test_identical_texts_are_scored_once_and_each_row_gets_the_score() -> None:
    episode, token, group = Asked(), AskedPerToken(), AskedPerGroup()
    batch = answers("b", "aaa", "b", "", "aaa", "b")
    scores = RewardMix({"episode": episode, "token": token, "group": group}).score(batch, group_size=3)
    assert episode.log == token.log == [["b", "aaa", ""]]
    assert group.log == [["b", "aaa", "b"], ["", "aaa", "b"]], "a member of a group counts as often as it is there"
    for score, it in zip(scores, batch, strict=True):
        length = len(it.response)
        assert dict(score.raw) == {"episode": length, "token": length * len(it.response_ids), "group": length}
        assert score.tokens["token"].tolist() == [length] * len(it.response_ids)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": Prompt("p", "p")},
        {"finish_reason": "length"},
        {"response_ids": np.array([99, 98])},
        {"actions": np.array([False, True])},
    ],
    ids=lambda change: next(iter(change)),
)
def test_texts_that_differ_in_anything_are_two(change: dict[str, Any]) -> None:
    (one,) = answers("b")
    for other, times in ((replace(one), 1), (replace(one, **change), 2)):
        part = Asked()
        RewardMix({"part": part}).score([one, other])
        assert part.log == [["b"] * times]


def test_log_probabilities_make_a_difference_to_who_reads_them() -> None:
    (one,) = answers("b")
    batch = [replace(one, logprobs=np.array(logprobs)) for logprobs in ([-1.0, -2.0], [-1.0, -2.5], [-1.0, -2.0])]
    reads, does_not = Asked(needs_logprobs=True), Asked()
    RewardMix({"reads": reads, "does not": does_not}).score(batch)
    assert (reads.log, does_not.log) == ([["b", "b"]], [["b"]])


def test_a_text_that_fails_fails_in_every_row_that_holds_it() -> None:
    batch = answers("b", "bad", "aa", "bad")
    for most, allowed in ((0.5, True), (0.25, False)):
        part = Asked()
        mix = RewardMix({"part": part}, failures={"part": Failures(on_error="skip", max_bad_fraction=most)})
        if allowed:
            assert [dict(score.raw) for score in mix.score(batch)] == [{"part": 1.0}, {}, {"part": 2.0}, {}]
        else:
            with pytest.raises(RewardError, match="failed for 2 of 4"):
                mix.score(batch)
        assert part.log == [["b", "bad", "aa"]]


def test_who_raises_is_asked_about_each_text_once_more() -> None:
    class Raises(Asked):
        def __call__(self, episodes: Sequence[Episode], /) -> Any:
            scores = Asked.__call__(self, episodes)
            if any(np.isnan(scores)):
                raise ZeroDivisionError("a bad day")
            return scores

    part = Raises()
    mix = RewardMix({"part": part}, failures={"part": Failures(on_error="skip", max_bad_fraction=0.5)})
    scores = mix.score(answers("b", "bad", "b", "bad"))
    assert [dict(score.raw) for score in scores] == [{"part": 1.0}, {}, {"part": 1.0}, {}]
    assert part.log == [["b", "bad"], ["b"], ["bad"]]


class _OnAGraph:
    """What a tensor that requires grad does when numpy asks for its values."""

    def __array__(self, *_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")


WRONG = [
    ([1.0, 2.0], r"shape \(2,\), expected \(3,\): one float per episode"),
    (1.0, r"shape \(\), expected \(3,\)"),
    (np.ones((3, 1)), r"shape \(3, 1\), expected \(3,\)"),
    ([1.0, float("nan"), 0.0], r"returned nan for episode 1 of 0\.\.2 \(prompt "),
    ([float("inf"), 0.0, float("-inf")], r"returned inf for episode 0 of 0\.\.2"),
    ([0.0, 3e38, 0.0], r"returned 3e\+38 \(beyond 1e\+15\) for episode 1"),
    (["a", "b", "c"], "expected one float per episode"),
    ("abc", "expected one float per episode"),
    (None, "returned object values, expected one float per episode"),
    ([1.0, {}, 2.0], "returned object values"),
    ([1 + 2j, 0, 0], "returned complex128 values"),
    ([[1.0], [2.0, 3.0], []], "raised ValueError"),
    (_OnAGraph(), "requires grad"),
]


@pytest.mark.parametrize(("answer", "says"), WRONG)
def test_a_wrong_answer_names_the_part(answer: Any, says: str) -> None:
    for part in (Answers(answer), AnswersPerGroup(answer)):
        with pytest.raises(RewardError, match=f"reward 'odd' .*{says}"):
            RewardMix({"fine": Answers([0, 0, 0]), "odd": part}).score(BATCH, group_size=3)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (None, "raised TypeError"),
        ([np.zeros(2), np.zeros(3)], "returned 2 rows for 3 episodes"),
        ([np.zeros(2), np.zeros(3), np.zeros(3)], r"shape \(3,\), expected \(4,\): one float per token"),
        ([np.zeros(2), np.zeros(3), np.full(4, np.nan)], "returned nan at token 0 for episode 2"),
        ([0.0, 0.0, 0.0], r"shape \(\), expected \(2,\)"),
        ([np.zeros(2), np.zeros(3), [1.0, [2.0]]], "raised ValueError"),
        ([np.zeros(2), np.zeros(3), _OnAGraph()], "requires grad"),
    ],
)
def test_wrong_token_rewards_name_the_part(answer: Any, says: str) -> None:
    with pytest.raises(RewardError, match=f"reward 'odd' .*{says}"):
        RewardMix({"odd": AnswersPerToken(answer)}).score(BATCH)


def test_a_reward_that_raises_is_named() -> None:
    class Raises:
        def __call__(self, episodes: Sequence[Episode], /) -> Any:
            raise ZeroDivisionError("division by zero")

    with pytest.raises(RewardError, match="reward 'odd' raised ZeroDivisionError: division by zero") as caught:
        RewardMix({"odd": Raises()}).score(BATCH)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({}, "at least one part"),
        ({"odd": 3}, "reward 'odd' is no reward: 3"),
        ({"odd": Answers}, "reward 'odd' is no reward"),
        ({"odd": ("1", Answers([0]))}, "reward 'odd': weight '1' is not a finite number"),
        ({"odd": (True, Answers([0]))}, "weight True"),
        ({"odd": (float("nan"), Answers([0]))}, "weight nan"),
        ({"odd": (1.0, Answers([0]), 2)}, "a tuple of 3"),
    ],
)
def test_parts_that_are_none(parts: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RewardMix(parts)


def test_parts_that_remember_are_shown_episodes_and_keep_state() -> None:
    class Counts:
        seen = 0

        def __call__(self, episodes: Sequence[Episode], /) -> Any:
            return [float(self.seen)] * len(episodes)

        def observe(self, episodes: Sequence[Episode], /) -> None:
            self.seen += len(episodes)

        def state_dict(self) -> dict[str, Any]:
            return {"seen": self.seen}

        def load_state_dict(self, state: Any, /) -> None:
            self.seen = state["seen"]

    counts = Counts()
    mix = RewardMix({"counts": counts, "fine": Answers([0, 0, 0])})
    mix.observe(BATCH)
    assert mix.state_dict() == {"counts": {"seen": 3}}
    mix.load_state_dict({"counts": {"seen": 9}})
    assert [score.total for score in mix.score(BATCH)] == [9.0] * 3


@pytest.mark.parametrize(
    ("has", "lacks"),
    [
        (["observe"], "has observe and no state_dict and no load_state_dict"),
        (["observe", "state_dict"], "has observe and state_dict and no load_state_dict"),
        (["state_dict", "load_state_dict"], "has state_dict and load_state_dict and no observe"),
    ],
)
def test_half_a_memory_is_refused_and_not_taken_for_none(has: list[str], lacks: str) -> None:
    half = type("Half", (Answers,), {name: lambda self, *_: {} for name in has})
    with pytest.raises(ConfigError, match=f"reward 'half': Half {lacks}: a reward that remembers has"):
        RewardMix({"half": half([0.0])})


def test_a_torch_module_has_a_state_and_no_memory() -> None:
    class Scores(torch.nn.Module):
        def forward(self, episodes: Sequence[Episode]) -> Any:
            return [1.0] * len(episodes)

    assert [score.total for score in RewardMix({"module": Scores()}).score(BATCH)] == [1.0] * 3
