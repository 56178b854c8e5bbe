"""A reward in a process of its own: the same scores, limits that hold, and a new process for one that is gone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rlhf_rewards.length import Length

from rlhf_env import plugins
from rlhf_env.envs import isolated_process
from rlhf_env.envs.asked_part import Failures
from rlhf_env.envs.isolation import Limits, isolated
from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.envs.rewards import RewardMix
from rlhf_env.envs.toy_tasks import Count
from rlhf_env.errors import ConfigError, RewardError
from rlhf_env.testing import check_reward, make_episode
from rlhf_env.types import Episode

TASK = Count("a", 4)

# A module as a user would have it beside a script. What the reward does stands in the prompt's metadata.
SOURCE = """
import os, re, resource, signal, sys
from pathlib import Path

import numpy as np

print("imported by", os.getpid(), file=open(Path(__file__).parent / "imported", "a"))

class Odd:
    low, high = -1.0, 2
    seen = 0

    def __call__(self, episodes):
        return [self.score(it) for it in episodes] if "one" in episodes[0].prompt.meta else self.all(episodes)

    def score(self, episode):
        if episode.prompt.meta["one"] == "hangs":  # in a regular expression, which holds the interpreter until its end
            return float(bool(re.match("(a+)+$", "a" * 40 + "b")))
        return 0.5

    def all(self, episodes):
        match episodes[0].prompt.meta["do"]:
            case "fractions": return np.array([1 / 3, -0.0, 5e-324])
            case "seen": return [float(self.seen)] * len(episodes)
            case "raise": raise ZeroDivisionError("a bad day")
            case "die": os.kill(os.getpid(), signal.SIGKILL)
            case "exit": sys.exit(7)
            case "grab": return [float(len(bytearray(1 << 40)))] * len(episodes)
            case "scalar": return 1.0
            case "text": return "text"
            case "none": return None
            case "short": return [1.0]
            case "deep": return np.ones((3, 1))
            case "words": return ["a"] * len(episodes)
            case "complex": return np.array([1j] * len(episodes))
            case "shout": print("what it prints", flush=True); return [1.0] * len(episodes)
            case "torch": return [float("torch" in sys.modules)] * len(episodes)
            case "limits":
                each = (resource.RLIMIT_AS, resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)
                return [float(resource.getrlimit(it)[0]) for it in each]
            case name: return [float(len(os.environ.get(name, "")))] * len(episodes)

    def observe(self, episodes):
        self.seen += len(episodes)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]

class ByToken:
    needs_logprobs = True

    def token_rewards(self, episodes):
        return [np.arange(len(episode.response_ids)) / 3 for episode in episodes]

class ByGroup:
    def group_rewards(self, group):
        return np.arange(len(group)) / 3

class TooMuch:
    def __init__(self):
        raise RuntimeError("not today")
"""


def batch(do: str) -> list[Episode]:
    return [make_episode("q", "a" * n, meta={"do": do}) for n in range(3)]


def ask(mix: RewardMix, do: str) -> list[float]:
    return [score.raw["odd"] for score in mix.score(batch(do))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("user")
    (place / "users_rewards.py").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        patch.setenv("CANARY_TOKEN", "canary")
        patch.setenv("CANARY_KEY", "key")
        for name in ("Odd", "ByToken", "ByGroup", "TooMuch"):
            plugins.register_reward(f"users_{name.lower()}", f"users_rewards:{name}")
        yield place


@pytest.fixture(scope="module")
def odd(place: Path) -> RewardMix:
    """One for all tests: whatever they do to it, it is there again for the next."""
    return load_rewards({"odd": {"plugin": "users_odd", "memory_mb": 2048, "env_vars": ["CANARY_KEY"]}}, TASK)


def test_the_same_bits_come_back_and_the_run_imports_nothing(odd: RewardMix, place: Path) -> None:
    assert np.array(ask(odd, "fractions")).tobytes() == np.array([1 / 3, -0.0, 5e-324]).tobytes()
    part: Any = odd.parts["odd"]
    assert (part.low, part.high) == (-1.0, 2.0) and not odd.needs_logprobs and not odd.scores_groups
    imported = {int(line.split()[-1]) for line in (place / "imported").read_text().splitlines()}
    assert part.pid in imported and os.getpid() not in imported


@pytest.mark.usefixtures("place")
def test_token_and_group_rewards_stay_what_they_are() -> None:
    by_token = load_rewards({"odd": {"plugin": "users_bytoken", "isolate": True}}, TASK)
    assert by_token.needs_logprobs
    for score, episode in zip(by_token.score(batch("")), batch(""), strict=True):
        assert score.tokens["odd"].tolist() == [n / 3 for n in range(len(episode.response_ids))]
    by_group = load_rewards({"odd": {"plugin": "users_bygroup", "isolate": True}}, TASK)
    assert by_group.scores_groups
    assert [it.total for it in by_group.score(batch("")[:2] * 2, group_size=2)] == [0.0, 1 / 3] * 2


def test_it_keeps_the_contract_of_rewards_and_ends_with_whoever_has_it() -> None:
    part: Any = isolated(partial(Length, 3), Limits())
    check_reward(part, longest=100)
    pid = part.pid
    del part
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_tasks_own_score_may_be_apart() -> None:
    apart, here = load_rewards({"task": {"timeout": 5.0}}, TASK), load_rewards(None, TASK)
    assert [it.total for it in apart.score(batch(""))] == [it.total for it in here.score(batch(""))]


def test_memory_outlives_the_process(odd: RewardMix) -> None:
    part: Any = odd.parts["odd"]
    odd.observe(batch(""))
    assert odd.state_dict() == {"odd": {"seen": 3}}
    first = part.pid
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert ask(odd, "seen") == [3.0] * 3 and part.pid != first
    odd.load_state_dict({"odd": {"seen": 7}})
    assert ask(odd, "seen") == [7.0] * 3


@pytest.mark.usefixtures("place")
def test_one_that_hangs_is_killed_and_replaced_and_only_its_text_skipped() -> None:
    hangs = [make_episode("q", "a", meta={"one": how}) for how in ("", "hangs", "")]
    table = {"plugin": "users_odd", "timeout": 1.0}
    stops = load_rewards({"odd": table}, TASK)
    part: Any = stops.parts["odd"]
    first = part.pid
    began = time.monotonic()
    with pytest.raises(RewardError, match=rf"reward 'odd' gave no answer within 1 s: its process {first} was kill"):
        stops.score(hangs)
    assert time.monotonic() - began < 60, "it hangs for longer"
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    skips = RewardMix(stops.parts, failures={"odd": Failures(on_error="skip", max_bad_fraction=0.5)})
    scores = skips.score(hangs)
    assert [score.raw for score in scores] == [{"odd": 0.5}, {}, {"odd": 0.5}] and part.pid != first
    assert scores[1].failed["odd"].startswith("gave no answer within 1 s")


@pytest.mark.parametrize(
    ("do", "says"),
    [
        (
            "raise",
            r" raised ZeroDivisionError: a bad day \(.*users_rewards\.py, line \d+\) for episode 0 of 0\.\.2 \(prompt ",
        ),
        ("die", r" died: its process \d+ was killed by SIGKILL, when it was to score 3 episodes"),
        ("exit", r" died: its process \d+ ended with status 7"),
        ("grab", r" raised MemoryError"),
        ("scalar", r" returned shape \(\), expected \(3,\)"),
        ("text", r" returned <U4 values"),
        ("none", r" returned object values"),
        ("short", r" returned shape \(1,\), expected \(3,\)"),
        ("deep", r" returned shape \(3, 1\), expected \(3,\)"),
        ("words", r" returned <U1 values"),
        ("complex", r": its answer, list, is not made of numbers"),
    ],
)
def test_whatever_it_does_has_its_name(odd: RewardMix, do: str, says: str) -> None:
    with pytest.raises(RewardError, match=f"reward 'odd'{says}"):
        ask(odd, do)


def test_what_it_prints_is_no_answer(odd: RewardMix) -> None:
    assert ask(odd, "shout") == [1.0] * 3


def test_it_sees_no_secrets_but_those_it_is_given(odd: RewardMix) -> None:
    assert ask(odd, "CANARY_TOKEN") == [0.0] * 3
    assert ask(odd, "CANARY_KEY") == [3.0] * 3
    assert ask(odd, "PATH") == [float(len(os.environ["PATH"]))] * 3


def test_its_limits_are_set_and_torch_is_not_loaded(odd: RewardMix) -> None:
    assert ask(odd, "limits") == [2048 << 20, isolated_process._OPEN_FILES, 0]
    assert ask(odd, "torch") == [0.0] * 3


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"length": {"isolate": True, "targte": 3}}, "reward 'length': no setting 'targte': did you mean 'target'"),
        ({"kl": {"isolate": True}}, r"reward 'kl': the setting 'reference' is required .*lent the tokenizer"),
        ({"users_toomuch": {"isolate": True}}, "reward 'users_toomuch': RuntimeError: not today"),
    ],
    ids=["setting", "lent", "raises"],
)
def test_one_that_cannot_be_made_says_why(table: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_rewards(table, TASK)


def test_one_that_cannot_be_sent_says_why() -> None:
    def local(prompts: list[str], completions: list[str]) -> list[float]:
        return [0.0] * len(prompts)

    plugins.register_reward("users_local", local)
    with pytest.raises(ConfigError, match="reward 'users_local': cannot run in a process of its own"):
        load_rewards({"users_local": {"isolate": True}}, TASK)
