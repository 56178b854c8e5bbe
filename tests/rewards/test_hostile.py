"""Plugins that do to the process, to the episodes and to their own answers what they should not."""

from __future__ import annotations

import os
import random
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rlhf_rewards.kl import KL

from rlhf_env.envs.asked_part import Failures
from rlhf_env.envs.circuit_breaker import CircuitBreaker, spread_out
from rlhf_env.envs.contained import is_of_this_package
from rlhf_env.envs.isolation import Limits, RewardFailed, isolated
from rlhf_env.envs.mixture import Mixture
from rlhf_env.envs.reward_tables import TaskReward
from rlhf_env.envs.rewards import RewardMix
from rlhf_env.envs.tasks import load_task
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.envs.validation_task import Validation
from rlhf_env.errors import PluginError, RewardError
from rlhf_env.plugins import Entry, call_with
from rlhf_env.testing import make_episode
from rlhf_env.types import Episode, Prompt

BATCH = [make_episode(f"q{row % 5}", "a" * row) for row in range(1, 129)]
ALL_MAY_FAIL = Failures(on_error="skip", max_bad_fraction=1.0)


class Does:
    """Scores 1, and does something on the way."""

    def __init__(self, what: Callable[[Sequence[Episode]], object]) -> None:
        self.what, self.asked = what, 0

    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        self.asked += 1
        count = len(episodes)
        self.what(episodes)
        return [1.0] * count


def change_settings(_: Sequence[Episode]) -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_grad_enabled(not torch.is_grad_enabled())


def seed_all(_: Sequence[Episode]) -> None:
    random.seed(0), np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002


def standing() -> tuple[object, ...]:
    numpy = np.random.get_state()  # noqa: NPY002
    settings = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    return Path.cwd(), settings, random.getstate(), numpy[1].tobytes(), torch.get_rng_state().numpy().tobytes()  # type: ignore[index]


@pytest.mark.parametrize(
    ("does", "says"),
    [
        (lambda _: os.chdir("/"), "reward 'odd' changed the working directory: put back"),
        (change_settings, "torch's default dtype and torch's number of threads and whether torch records gradients"),
        (seed_all, "Python's global random generator and the state of numpy's .* and the state of torch's"),
        (lambda _: random.random(), "the state of Python's global random generator: put back"),
    ],
    ids=["chdir", "settings", "seeds", "draws"],
)
def test_what_a_reward_changes_of_the_process_is_put_back_and_said(
    does: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # What ran before in this process may have left them just as the reward seeds them, which would be no change.
    random.random()
    np.random.random()  # noqa: NPY002
    torch.rand(1)
    before = standing()
    with pytest.warns(RuntimeWarning, match=says):
        RewardMix({"odd": Does(does)}).score(BATCH[:2])
    assert standing() == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RewardMix({"quiet": Does(lambda _: None)}).score(BATCH[:2])


def test_who_is_imported_or_made_leaves_the_folder_and_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "moves_away.py").write_text("import os\nos.chdir('/')\nvalue = 3\n")
    (tmp_path / "leaves_early.py").write_text("raise SystemExit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.warns(RuntimeWarning, match="reward 'mine' of me .* changed the working directory"):
        assert Entry("reward", "mine", "moves_away:value", "me").load() == 3
    with pytest.raises(PluginError, match="cannot be imported: SystemExit: 0"):
        Entry("reward", "mine", "leaves_early:value", "me").load()
    with pytest.raises(PluginError, match="reward 'mine': it would end the program while it is made"):
        call_with(lambda: sys.exit(3), {}, {}, "reward 'mine'")
    with pytest.raises(PluginError, match="reward 'mine': ZeroDivisionError: integer division"):
        call_with(lambda: 1 // 0, {}, {}, "reward 'mine'")
    assert Path.cwd() == tmp_path


def test_episodes_can_be_read_and_not_written() -> None:
    env = TextVectorEnv(2, task="count", reward={"kl": 0.0, "odd": Does(lambda _: None)}, autoreset_mode="Disabled",
                        provided={"reference": Zero()}, max_new_tokens=4, action_length=4)  # fmt: skip
    env.reset(seed=0)
    tokens = np.full((2, 4), ord("a"))
    _, _, _, _, infos = env.step({"tokens": tokens, "probs": np.ones((2, 4))})
    episode = infos["text_episode"][0]
    for name in ("prompt_ids", "response_ids", "actions", "logprobs"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(episode, name)[0] = 0
    mine = np.arange(3)
    Episode(episode.prompt, mine, "", mine, "stop", mine > 0)
    mine[0] = 7  # an array of one's own stays one's own


class Zero:
    def response_logprobs(self, episodes: Sequence[Episode], /) -> Any:
        return [np.zeros(len(it.response_ids)) for it in episodes]


@pytest.mark.parametrize(
    "does",
    [
        lambda episodes: episodes.clear(),
        lambda episodes: episodes.reverse(),
        lambda episodes: episodes[0].prompt.meta.clear(),
        lambda episodes: [it.prompt.meta["answer"].append("x") for it in episodes],
    ],
)
def test_the_next_part_reads_what_the_task_said(does: Any) -> None:
    read: list[Any] = []
    batch = [make_episode("q", text, meta={"answer": ["right"]}) for text in ("a", "b")]
    mix = RewardMix({"writes": Does(does), "reads": Does(lambda episodes: read.extend(episodes))})
    for _ in range(2):
        mix.score(batch)
    assert [(it.response, it.prompt.meta) for it in read] == [
        ("a", {"answer": ["right"]}),
        ("b", {"answer": ["right"]}),
    ] * 2


def test_an_answer_that_is_changed_later_stays_what_it_was() -> None:
    whole, tokens = np.ones(2), [np.ones(len(it.response_ids)) for it in BATCH[:2]]

    class Keeps:
        def __call__(self, episodes: Sequence[Episode], /) -> Any:
            return whole

    class KeepsTokens:
        def token_rewards(self, episodes: Sequence[Episode], /) -> Any:
            return tokens

    scores = RewardMix({"whole": Keeps(), "tokens": KeepsTokens()}).score(BATCH[:2])
    whole[:], tokens[0][:] = -1.0, -1.0
    assert [score.total for score in scores] == [3.0, 4.0] and scores[0].tokens["tokens"].tolist() == [1.0, 1.0]


# ---------------------------------------------------------------- the circuit breaker


class Fails:
    """Fails at texts of more than `most` letters, while it is `ill`."""

    def __init__(self, most: int = 0, error: type[BaseException] = ValueError) -> None:
        self.most, self.error, self.asked, self.ill = most, error, 0, True

    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        self.asked += 1
        if self.ill and any(len(it.response) > self.most for it in episodes):
            raise self.error("always")
        return [float(len(it.response)) for it in episodes]


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_who_always_fails_is_not_asked_for_everybody(error: type[BaseException]) -> None:
    for question in (len(BATCH), 1):  # all at once; one after the other, as in the token view
        odd = Fails(error=error)
        mix = RewardMix({"odd": odd}, failures={"odd": ALL_MAY_FAIL})
        for start in range(0, len(BATCH), question):
            scores = mix.score(BATCH[start : start + question], rows=len(BATCH))
        assert odd.asked <= 25 and list(scores[-1].failed) == ["odd"] and not scores[-1].raw
        with pytest.raises(RewardError, match="reward 'odd' failed for 1 of 1"):
            mix.require_few_failures(scores[-1:], BATCH[-1:])
        odd.ill = False  # the next rollout asks again
        assert [score.total for score in mix.score(BATCH[:3])] == [1.0, 2.0, 3.0]


def test_who_costs_a_process_each_time_is_asked_even_less() -> None:
    odd = Fails(error=partial(RewardFailed, lost=True))  # type: ignore[arg-type]
    scores = RewardMix({"odd": odd}, failures={"odd": ALL_MAY_FAIL}).score(BATCH)
    assert odd.asked <= 15 and all("odd" in score.failed for score in scores)


def test_who_fails_at_some_is_asked_for_everybody() -> None:
    odd = Fails(most=40)
    scores = RewardMix({"odd": odd}, failures={"odd": ALL_MAY_FAIL}).score(BATCH)
    assert [bool(score.raw) for score in scores] == [row <= 40 for row in range(1, 129)] and odd.asked == 129


def test_a_breaker_lets_one_in_sixteen_through() -> None:
    breaker = CircuitBreaker()
    for _ in range(16):
        assert breaker.lets_through()
        breaker.failed(1, "raised", lost=False)
    assert [breaker.lets_through() for _ in range(32)] == ([False] * 15 + [True]) * 2
    for count in (1, 2, 3, 7, 16, 128):
        assert sorted(spread_out(count)) == list(range(count))
    first = sorted(list(spread_out(128))[:16])
    assert max(np.diff(first)) <= 16, "no prompt of a rollout has all the first"


# ---------------------------------------------------------------- in a process of its own


@dataclass(frozen=True)
class Prints:
    lines: int = 0
    then: str = ""

    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        for line in range(self.lines):
            print("flood", line, "." * 100)
        os.write(2, b"flood from C\n" * self.lines)
        if self.then == "dies":
            print("the last word", flush=True)
            os._exit(7)
        return [1.0] * len(episodes)


def test_what_it_prints_is_bounded_and_the_last_of_it_is_in_the_error(capfd: pytest.CaptureFixture[str]) -> None:
    mix = RewardMix({"odd": isolated(partial(Prints, 2_000), Limits(timeout=60.0))})
    assert [score.total for score in mix.score(BATCH[:2])] == [1.0, 1.0]
    dies = RewardMix({"odd": isolated(partial(Prints, 1, "dies"), Limits(timeout=60.0))})
    with pytest.raises(RewardError, match="ended with status 7, and printed last: the last word"):
        dies.score(BATCH[:1])
    printed = capfd.readouterr()
    assert not printed.out and len(printed.err) < 10_000


class Scribbles:
    """A task of somebody else, which scores its texts and writes beside its prompts."""

    size = 8

    def prompt(self, index: int, options: Any, /) -> Prompt:
        return Prompt(str(index), "q", {"answers": []})

    def score(self, episode: Episode, /) -> float:
        episode.prompt.meta["answers"].append(episode.response)
        return 1.0


class Stranger:
    """A reference of somebody else."""

    def response_logprobs(self, episodes: Sequence[Episode], /) -> list[Any]:
        return [np.zeros(len(it.response_ids)) for it in episodes]


@pytest.mark.parametrize("task", [Scribbles(), Validation(Scribbles())], ids=["itself", "within one of ours"])
def test_the_task_of_somebody_else_is_lent_copies(task: Any) -> None:
    episode = make_episode("q", "a", meta={"answers": []})
    RewardMix({"task": TaskReward(task)}).score([episode])
    assert episode.prompt.meta["answers"] == []


def test_what_is_all_ours_is_told_from_what_holds_something_of_others() -> None:
    """Ours is lent the episodes themselves: copies took longer than many a reward."""
    assert is_of_this_package(TaskReward(load_task({"name": "validation", "task": "echo"})))
    assert is_of_this_package(TaskReward(Mixture(["echo", "count"])))
    assert not is_of_this_package(TaskReward(Mixture(["echo", Scribbles()])))
    assert not is_of_this_package(KL(Stranger()))
