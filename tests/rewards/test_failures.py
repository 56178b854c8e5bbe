"""What becomes of texts that a reward fails on: the run stops, they are left out, or a number stands in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_env.envs.asked_part import Failures
from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.envs.rewards import RewardMix
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.envs.tokenizers import AlphabetTokenizer
from rlhf_env.envs.toy_tasks import Count
from rlhf_env.errors import ConfigError, RewardError
from rlhf_env.learning.advantages import leave_one_out_advantages
from rlhf_env.learning.agent import Decision
from rlhf_env.learning.sources import EnvSource
from rlhf_env.learning.spending import Spending
from rlhf_env.testing import make_episode
from rlhf_env.types import Episode, Score

BATCH = [make_episode(f"q{n}", "a" * n) for n in range(1, 5)]
SKIP = Failures(on_error="skip", max_bad_fraction=0.25)
NUMBER = Failures(on_error=-3.0, max_bad_fraction=0.25)


class Fails:
    """The length of a response, in tokens without the end; fails on some lengths."""

    def __init__(self, how: str, *lengths: int) -> None:
        self.how, self.lengths, self.calls = how, lengths, 0

    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        self.calls += 1
        return [self._score(len(episode.response)) for episode in episodes]

    def _score(self, length: int) -> float:
        if length not in self.lengths:
            return float(length)
        if self.how == "raise":
            raise ZeroDivisionError("a bad day")
        if self.how == "exit":
            raise SystemExit(0)
        return float(self.how)


class FailsByToken(Fails):
    __call__ = None  # type: ignore[assignment]

    def token_rewards(self, episodes: Sequence[Episode], /) -> Any:
        return [np.full(len(it.response_ids), self._score(len(it.response))) for it in episodes]


class FailsByGroup(Fails):
    __call__ = None  # type: ignore[assignment]

    def group_rewards(self, group: Sequence[Episode], /) -> Any:
        return [self._score(len(it.response)) for it in group]


EVERY_WAY = ["raise", "exit", "nan", "inf", "-inf", "3e38", "-1e16"]


@pytest.mark.parametrize("how", EVERY_WAY)
@pytest.mark.parametrize("kind", [Fails, FailsByToken])
def test_one_row_of_four(kind: type[Fails], how: str) -> None:
    parts: Any = {"odd": (2.0, kind(how, 3)), "fine": Fails("raise")}
    with pytest.raises(RewardError, match=r"reward 'odd' .* for episode 2 of 0\.\.3 \(prompt \"made/'q3'\"\)"):
        RewardMix(parts).score(BATCH)

    skipped = RewardMix(parts, failures={"odd": SKIP}).score(BATCH)
    clean = RewardMix(parts).score([*BATCH[:2], BATCH[3]])
    assert [score.raw for score in [*skipped[:2], skipped[3]]] == [score.raw for score in clean]
    assert dict(skipped[2].raw) == dict(skipped[2].tokens) == {} and skipped[2].total == 0.0
    assert list(skipped[2].failed) == ["odd"] and not any(score.failed for score in clean)

    filled = RewardMix(parts, failures={"odd": NUMBER}).score(BATCH)
    tokens = len(BATCH[2].response_ids)
    assert filled[2].raw == {"odd": -3.0 * (tokens if kind is FailsByToken else 1), "fine": 3.0}
    assert "odd" in filled[2].failed and [score.raw for score in [*filled[:2], filled[3]]] == [s.raw for s in clean]


def test_a_group_fails_together_when_its_judge_raises_and_alone_when_a_number_is_bad() -> None:
    for how, lost in (("raise", [2, 3]), ("nan", [2])):
        mix = RewardMix(
            {"odd": FailsByGroup(how, 3)}, failures={"odd": Failures(on_error="skip", max_bad_fraction=0.5)}
        )
        scores = mix.score(BATCH, group_size=2)
        assert [i for i, score in enumerate(scores) if not score.raw] == lost


def test_more_than_the_fraction_is_too_many_and_the_fraction_is_of_the_rollout() -> None:
    odd = Fails("nan", 1, 2)
    mix = RewardMix({"odd": odd}, failures={"odd": SKIP})
    with pytest.raises(RewardError, match=r"failed for 2 of 4 episodes, and max_bad_fraction is 0\.25 .* returned nan"):
        mix.score(BATCH)
    scores = mix.score(BATCH, rows=8)  # the others are still being written
    assert [bool(score.raw) for score in scores] == [False, False, True, True]
    with pytest.raises(RewardError, match="failed for 2 of 4"):
        mix.require_few_failures(scores, BATCH)
    mix.require_few_failures([*scores, *scores[2:], *scores[2:]], [*BATCH, *BATCH])
    everything = RewardMix({"odd": odd}, failures={"odd": Failures(on_error="skip", max_bad_fraction=1.0)})
    with pytest.raises(RewardError, match="failed for 2 of 2"):
        everything.require_few_failures(everything.score(BATCH[:2]), BATCH[:2])


def test_a_tenth_of_ten_is_one() -> None:
    assert [Failures(on_error="skip").allowed(rows) for rows in (1, 9, 10, 19, 20, 30)] == [0, 0, 1, 1, 2, 3]
    assert Failures(max_bad_fraction=1.0).allowed(100) == 0, "stop allows none"


def test_it_is_found_by_asking_one_by_one_and_no_longer_than_needed() -> None:
    odd = Fails("raise", 2)
    with pytest.raises(RewardError, match="episode 1"):
        RewardMix({"odd": odd}).score(BATCH)
    assert odd.calls == 3  # all, the first, the second
    odd = Fails("raise", 1, 2, 3, 4)
    with pytest.raises(RewardError, match="failed for 2 of 4"):
        RewardMix({"odd": odd}, failures={"odd": SKIP}).score(BATCH)
    assert odd.calls == 3


def test_what_raises_for_all_together_only() -> None:
    class Crowded:
        def __call__(self, episodes: Sequence[Episode], /) -> Any:
            if len(episodes) > 1:
                raise MemoryError("too many")
            return [1.0]

    with pytest.raises(RewardError, match="raised MemoryError: too many for 4 episodes together, and for none alone"):
        RewardMix({"odd": Crowded()}).score(BATCH)
    scores = RewardMix({"odd": Crowded()}, failures={"odd": SKIP}).score(BATCH)
    assert [score.total for score in scores] == [1.0] * 4 and not any(score.failed for score in scores)


@pytest.mark.parametrize("answer", [[1.0] * 3, 1.0, "four", None, np.ones((4, 1)), [[None]] * 4, ["1"] * 4])
def test_an_answer_of_the_wrong_form_always_ends_the_run(answer: Any) -> None:
    class Odd:
        def __call__(self, episodes: Sequence[Episode], /) -> Any:
            return answer

    lenient = Failures(on_error="skip", max_bad_fraction=1.0)
    with pytest.raises(RewardError, match=r"reward 'odd' returned .*expected"):
        RewardMix({"odd": Odd()}, failures={"odd": lenient}).score(BATCH)


def test_a_tensor_on_a_graph_is_named() -> None:
    class OnAGraph:
        def __call__(self, episodes: Sequence[Episode], /) -> Any:
            return torch.ones(len(episodes), requires_grad=True)

    with pytest.raises(RewardError, match=r"reward 'odd' .*detach"):
        RewardMix({"odd": OnAGraph()}).score(BATCH)


# ---------------------------------------------------------------- in the environment and the loop


class Writer:
    """Row r writes `lengths[r]` letters; with extras, so that what is cut along with the rows shows."""

    def __init__(self, *lengths: int, group_size: int = 4) -> None:
        self.lengths, self.group_size = lengths, group_size

    def begin(self) -> dict[str, Any]:
        return {"group_size": self.group_size}

    def act(self, observation: Any, /) -> Decision:
        tokens = np.full((len(self.lengths), 5), 4, dtype=np.int64)
        for row, length in enumerate(self.lengths):
            tokens[row, :length], tokens[row, length] = 0, 2
        return Decision(tokens, np.full(tokens.shape, -0.5), {"row": np.indices(tokens.shape)[0].astype(np.float64)})


def environment(odd: Any, failures: Failures, rows: int = 4) -> TextVectorEnv:
    tokenizer = AlphabetTokenizer("a:")
    assert (tokenizer.encode("a"), tokenizer.end_id, tokenizer.vocab_size) == ([0], 2, 4)
    return TextVectorEnv(
        rows,
        task=Count("a", 4),
        reward=RewardMix({"odd": odd}, failures={"odd": failures}),
        tokenizer=tokenizer,
        max_new_tokens=5,
        action_length=5,
        autoreset_mode="Disabled",
    )


def test_a_skipped_text_is_truncated_without_a_score_and_without_memory_of_it() -> None:
    shown: list[Episode] = []

    class Remembering(Fails):
        def observe(self, episodes: Sequence[Episode], /) -> None:
            shown.extend(episodes)

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: Any, /) -> None: ...

    env = environment(Remembering("nan", 2), SKIP)
    env.reset(seed=0, options={"group_size": 4})
    _, rewards, terminated, truncated, infos = env.step(Writer(1, 2, 3, 4).act({}).tokens)
    assert rewards.tolist() == [1.0, 0.0, 3.0, 4.0]
    assert terminated.tolist() == [True, False, True, True] and truncated.tolist() == [False, True, False, False]
    assert infos["reward_failures"]["odd"].tolist() == [None, "returned nan", None, None]
    assert infos["_reward_parts"].tolist() == [True, False, True, True]
    env.settle()
    assert [len(episode.response) for episode in shown] == [1, 3, 4]


def test_a_failed_row_changes_nothing_for_the_others() -> None:
    def rollout(odd: Any, failures: Failures) -> Any:
        env = environment(odd, failures)
        return EnvSource(env, seed=0, spending=Spending()).next(Writer(1, 2, 3, 4))  # type: ignore[arg-type]

    left = rollout(Fails("nan", 2), SKIP)
    whole = rollout(Fails("raise"), Failures())
    without = whole.select([0, 2, 3])
    for name in ("tokens", "mask", "actions", "logprobs", "group", "truncated"):
        assert torch.equal(getattr(left, name), getattr(without, name)), name
    assert left.extras["row"].max() == 3.0 and torch.equal(left.extras["row"], without.extras["row"])
    assert torch.equal(left.rewards(), without.rewards()) and list(left.episodes) == list(without.episodes)
    expected = (torch.tensor([1.0, 3.0, 4.0], dtype=torch.float64) - 8 / 3) * 1.5
    assert (leave_one_out_advantages(left.returns(), left.group) - expected).abs().max() < 1e-14


def test_failures_are_counted_and_paid_for() -> None:
    spending = Spending()
    source = EnvSource(environment(Fails("nan", 2), SKIP), seed=0, spending=spending)
    assert source.next(Writer(1, 2, 3, 4)).measured["failed/odd"] == 1.0  # type: ignore[arg-type]
    assert (spending.episodes, spending.reward_calls, spending.generated_tokens) == (4, 4, 14)
    source = EnvSource(environment(Fails("nan", 2), NUMBER), seed=0, spending=spending)
    rollout = source.next(Writer(1, 2, 3, 4))  # type: ignore[arg-type]
    assert rollout.measured["failed/odd"] == 1.0 and rollout.returns().tolist() == [1.0, -3.0, 3.0, 4.0]
    source = EnvSource(environment(Fails("raise"), Failures()), seed=0, spending=spending)
    assert "failed/odd" not in source.next(Writer(1, 2, 3, 4)).measured  # type: ignore[arg-type]


def test_too_many_take_no_prompts_and_a_score_says_so_itself() -> None:
    source = EnvSource(environment(Fails("nan", 2, 3), SKIP), seed=0, spending=Spending())
    before = source.state_dict()
    with pytest.raises(RewardError, match="failed for 2 of 4"):
        source.next(Writer(1, 2, 3, 4))  # type: ignore[arg-type]
    assert source.state_dict() == before
    assert replace(Score(raw={}, weights={}), failed={"odd": "x"}).total == 0.0


# ---------------------------------------------------------------- as a file says it


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"on_error": "ignore"}, "on_error must be one of 'stop', 'skip' or a finite number, got 'ignore'"),
        ({"on_error": True}, "on_error"),
        ({"on_error": float("nan")}, "on_error"),
        ({"max_bad_fraction": 1.5}, r"max_bad_fraction must be in \[0, 1\], got 1\.5"),
        ({"timeout": 0}, "timeout must be above 0, got 0"),
        ({"timeout": "2 s"}, "timeout must be a finite number, got '2 s'"),
        ({"memory_mb": 1.5}, "memory_mb must be a whole number"),
        ({"env_vars": "KEY"}, "env_vars must be a list, each a string"),
        ({"isolate": 1}, "isolate must be true or false, got 1"),
        ({"isolate": False, "timeout": 1.0}, "timeout, memory_mb and env_vars need a process of its own"),
    ],
)
def test_wrong_settings_name_the_part(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=f"reward 'mine': {says}"):
        load_rewards({"mine": {"plugin": "repetition", **settings}}, Count("a", 4))


def test_all_wrong_settings_are_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_rewards({"mine": {"plugin": "repetition", "on_error": "x", "timeout": 0, "isolate": 1}}, Count("a", 4))
    assert len(caught.value.problems) == 3


def test_settings_reach_the_mix() -> None:
    mix = load_rewards({"repetition": {"weight": 2.0, "on_error": "skip", "max_bad_fraction": 0.5}}, Count("a", 4))
    assert mix.failures == {"repetition": Failures(on_error="skip", max_bad_fraction=0.5)}
    with pytest.raises(ConfigError, match="reward 'task': the task's own score has no setting 'target'"):
        load_rewards({"task": {"target": 3}}, Count("a", 4))
