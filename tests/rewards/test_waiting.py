"""Rewards that wait outside this process: asked while texts are written, the same answers, and nothing left behind."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_env import plugins
from rlhf_env.envs.asked_part import Failures
from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.envs.rewards import RewardMix
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.envs.tokenizers import AlphabetTokenizer
from rlhf_env.envs.toy_tasks import Count
from rlhf_env.errors import RewardError
from rlhf_env.learning.agent import Decision
from rlhf_env.learning.collect import collect
from rlhf_env.learning.rollout import Rollout
from rlhf_env.testing import make_episode
from rlhf_env.types import Episode

LETTER, END, NOTHING = 0, 2, 4  # "a", the end token, and past the vocabulary of "a:"
LONG = 120.0  # seconds: nothing takes that long unless it waits for what never comes


class Writer:
    """Row r writes `lengths[r]` letters and the end token, `action_length` tokens a step; `meanwhile` before step n."""

    def __init__(
        self,
        *lengths: int,
        action_length: int = 1,
        group_size: int = 1,
        meanwhile: Callable[[int], None] = lambda step: None,
    ) -> None:
        self.lengths, self.action_length, self.group_size = np.array(lengths), action_length, group_size
        self.meanwhile, self.steps = meanwhile, 0

    def begin(self) -> dict[str, Any]:
        self.steps = 0
        return {"group_size": self.group_size}

    def act(self, _observation: Any, /) -> Decision:
        self.steps += 1
        self.meanwhile(self.steps)
        places = np.arange(self.action_length) + (self.steps - 1) * self.action_length
        tokens = np.where(places < self.lengths[:, None], LETTER, NOTHING)
        tokens[places == self.lengths[:, None]] = END
        if self.action_length == 1:
            tokens = np.where(tokens == NOTHING, LETTER, tokens)[:, 0]  # rows that have ended ignore it
        return Decision(tokens, np.full(tokens.shape, -0.5))


class Length:
    """The letters of a response; remembers what it was asked, and does `first` before it answers."""

    def __init__(self, first: Callable[[Sequence[Episode]], Any] = lambda episodes: None) -> None:
        self.first = first
        self.asked: list[list[int]] = []

    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        self.asked.append([len(it.response) for it in episodes])
        self.first(episodes)
        return [float(len(it.response)) for it in episodes]


class LengthByToken(Length):
    __call__ = None  # type: ignore[assignment]

    def token_rewards(self, episodes: Sequence[Episode], /) -> Any:
        values = Length.__call__(self, episodes)
        return [np.full(len(it.response_ids), value) for it, value in zip(episodes, values, strict=True)]


class LengthByGroup(Length):
    __call__ = None  # type: ignore[assignment]

    def group_rewards(self, group: Sequence[Episode], /) -> Any:
        return Length.__call__(self, group)


class Waits:
    """As if another process, or a server, had to be waited for."""

    connections = 1

    def hang_up(self) -> None: ...


class Outside(Waits, Length): ...


class OutsideByToken(Waits, LengthByToken): ...


class OutsideByGroup(Waits, LengthByGroup): ...


def environment(rows: int, parts: Any, failures: Any = None, **settings: Any) -> TextVectorEnv:
    tokenizer = AlphabetTokenizer("a:")
    assert (tokenizer.encode("a"), tokenizer.end_id, tokenizer.vocab_size) == ([LETTER], END, NOTHING)
    return TextVectorEnv(
        rows,
        task=Count("a", 4),
        reward=RewardMix(parts, failures=failures),
        tokenizer=tokenizer,
        max_new_tokens=8,
        autoreset_mode="Disabled",
        **settings,
    )


def wait_for(event: threading.Event) -> None:
    if not event.wait(LONG):
        raise TimeoutError("it never came")


def reward_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("reward")]


# ---------------------------------------------------------------- at the same time


@pytest.mark.parametrize("action_length", [1, 2])
def test_a_text_that_has_ended_is_scored_while_the_others_are_written(action_length: int) -> None:
    """The reward answers about the first text only when the last step has begun: asked in turn, it never would."""
    last_step = threading.Event()
    outside = Outside(lambda _: wait_for(last_step))
    writer = Writer(
        *(1, 5),
        action_length=action_length,
        meanwhile=lambda step: last_step.set() if step == 6 // action_length else None,
    )
    rollout = collect(environment(2, {"judge": outside}, action_length=action_length), writer)
    assert rollout.returns().tolist() == [1.0, 5.0] and outside.asked == [[1], [5]]


@pytest.mark.parametrize("whole", [True, False], ids=["whole responses", "tokens"])
def test_several_are_asked_at_the_same_time_and_while_others_calculate(whole: bool) -> None:
    together = threading.Barrier(3, timeout=LONG)
    parts = {name: kind(lambda _: together.wait() and None) for name, kind in {"one": Outside, "two": Outside}.items()}
    mix = {**parts, "here": Length(lambda _: together.wait() and None)}
    env = environment(2, mix, action_length=None if whole else 1)
    rollout = collect(env, Writer(1, 3, action_length=8 if whole else 1))
    assert rollout.returns().tolist() == [3.0, 9.0]
    assert [score.total for score in env.reward.score([make_episode("q", "aa")])] == [6.0], "nor does it take a rollout"
    assert together.n_waiting == 0 and not reward_threads()


def test_a_step_pays_at_once_where_nobody_collects() -> None:
    """As Gymnasium has it, whatever the reward waits for."""
    env = environment(2, {"judge": Outside()})
    env.reset(seed=0)
    paid = [env.step(np.array(tokens))[1].tolist() for tokens in ([END, LETTER], [LETTER, END])]
    assert paid == [[0.0, 0.0], [0.0, 1.0]]
    assert env.reward.waits_outside and not environment(2, {"judge": Length()}).reward.waits_outside


@pytest.mark.parametrize("connections", [1, 3])
def test_a_reward_takes_as_many_questions_at_once_as_it_says(connections: int) -> None:
    """Three texts end in three steps; each of the first `connections` questions is answered when all have come."""
    together, most, busy = threading.Barrier(connections, timeout=LONG), 0, threading.Semaphore(0)

    def alone(_: Sequence[Episode]) -> None:
        nonlocal most
        busy.release()
        most = max(most, busy._value)
        together.wait()
        busy.acquire()

    judge = Outside(alone)
    judge.connections = connections  # type: ignore[misc]
    rollout = collect(environment(3, {"judge": judge}), Writer(0, 1, 2))
    assert rollout.returns().tolist() == [0.0, 1.0, 2.0] and most == connections


def test_one_object_in_two_parts_answers_one_question_at_a_time() -> None:
    busy = threading.Lock()

    def alone(_: Sequence[Episode]) -> None:
        assert busy.acquire(blocking=False)
        time.sleep(0.01)
        busy.release()

    judge = Outside(alone)
    (score,) = RewardMix({"one": judge, "two": (0.5, judge)}).score([make_episode("q", "aa")])
    assert score.raw == {"one": 2.0, "two": 2.0}


# ---------------------------------------------------------------- the same as one after the other


def outcome(env: TextVectorEnv, writer: Writer) -> Any:
    try:
        return collect(env, writer)
    except RewardError as error:
        return str(error)


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other), (one, other)
    if not isinstance(one, Rollout):
        assert one == other
        return
    for name in ("tokens", "mask", "actions", "logprobs", "group", "truncated"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert list(one.episodes) == list(other.episodes)
    for a, b in zip(one.scores, other.scores, strict=True):
        assert (dict(a.raw), dict(a.weights), dict(a.failed)) == (dict(b.raw), dict(b.weights), dict(b.failed))
        assert all(np.array_equal(a.tokens[name], b.tokens[name]) for name in (*a.tokens, *b.tokens))


KINDS: dict[str, Any] = {
    "episode": (Length, Outside, Failures()),
    "token": (LengthByToken, OutsideByToken, Failures(on_error="skip", max_bad_fraction=0.5)),
    "group": (LengthByGroup, OutsideByGroup, Failures(on_error=-1.0, max_bad_fraction=1.0)),
}


@pytest.mark.parametrize("bad", [(), (6,), (1, 2), range(9)], ids=["fine", "one", "two", "all"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("action_length", [1, 3, 8])
@pytest.mark.parametrize("limit", [None, 3])
def test_it_is_what_one_after_the_other_gives(
    limit: int | None, action_length: int, kind: str, bad: Sequence[int]
) -> None:
    """Scores, skipped rows, texts that are cut, messages, and what every part is asked in which order."""

    def fails(episodes: Sequence[Episode]) -> None:
        if any(len(it.response) in bad for it in episodes):
            raise ZeroDivisionError("a bad day")

    lengths = np.random.default_rng(action_length).permutation([0, 1, 1, 2, 3, 4, 4, 5, 6, 7, 7, 7])
    plain, waits, failures = KINDS[kind]
    found = []
    for judge, here, other in (
        (plain(fails), Length(), Length()),
        (waits(fails), Length(), Outside()),
        (plain(fails), Outside(), Length()),
    ):
        env = environment(
            12,
            {"judge": (0.5, judge), "here": here, "other": (2.0, other)},
            {"judge": failures},
            action_length=action_length,
            max_episode_steps=limit,
        )
        said = outcome(env, Writer(*lengths, action_length=action_length, group_size=4))
        found.append((said, judge.asked, here.asked, other.asked))
    (one, *asked), *others = found
    for another, *asked_too in others:
        assert_same(one, another)
        assert asked == asked_too or not isinstance(one, Rollout)  # after a failure, what is asked no longer matters
    if kind == "episode":
        ended = [length for length in lengths if limit is None or length < limit * action_length]
        assert isinstance(one, str) == any(length in bad for length in ended)


def test_the_first_failure_is_the_one_that_is_raised() -> None:
    """In the order of texts and parts, whichever comes to light first."""
    late = threading.Event()

    def fails(name: str, wait: bool, *lengths: int) -> Callable[[Sequence[Episode]], None]:
        def first(episodes: Sequence[Episode]) -> None:
            if len(episodes[0].response) in lengths:
                if wait:
                    wait_for(late)
                else:
                    late.set()
                raise ZeroDivisionError(f"{name} on {len(episodes[0].response)}")

        return first

    for slow, quick, said in (((1,), (3,), "slow on 1"), ((3,), (1,), "quick on 1"), ((3,), (3,), "slow on 3")):
        late.clear()
        parts = {"slow": Outside(fails("slow", True, *slow)), "quick": Length(fails("quick", False, *quick))}
        with pytest.raises(RewardError, match=f"ZeroDivisionError: {said}"):
            collect(environment(3, parts), Writer(1, 3, 5))
        assert not reward_threads()


def test_a_failure_does_not_overtake_one_that_comes_before_it() -> None:
    """The second part fails at once, the first when all texts are written; texts are handed in between the two."""
    written = threading.Event()

    def slow(_: Sequence[Episode]) -> None:
        wait_for(written)
        raise ZeroDivisionError("slow")

    def quick(_: Sequence[Episode]) -> None:
        raise ZeroDivisionError("quick")

    def meanwhile(step: int) -> None:
        while step == 3 and not env._scoring._batches[0][1]["quick"].done():  # type: ignore[union-attr]
            time.sleep(0.001)
        if step == 6:
            written.set()

    env = environment(3, {"slow": Outside(slow), "quick": Outside(quick)})
    with pytest.raises(RewardError, match="reward 'slow' raised ZeroDivisionError: slow"):
        collect(env, Writer(0, 3, 5, meanwhile=meanwhile))
    assert written.is_set()


def test_flags_and_rewards_are_in_the_end_those_of_one_after_the_other() -> None:
    """Of texts that end early, in the last step that is allowed, and not at all; in the latter step nobody ends."""
    for lengths in ((0, 2, 7), (0, 1, 7)):
        found = []
        for judge in (Length(), Outside()):
            env, writer = environment(3, {"judge": judge}, max_episode_steps=3), Writer(*lengths)
            env.reset(seed=0)
            paid = np.zeros(3)
            with env.scoring_meanwhile():
                for _ in range(3):
                    _, rewards, terminated, truncated, _ = env.step(writer.act({}).tokens)
                    paid += rewards
            assert [env.has_ended(row) for row in range(3)] == [True] * 3
            reasons = [env.latest_info(row)["finish_reason"] for row in range(3)]
            found.append((paid.tolist(), terminated.tolist(), truncated.tolist(), reasons))
        assert found[0] == found[1]
        assert found[0][0] == [0.0, float(lengths[1]), 0.0] and found[0][1] == [True, True, False]


def test_a_failure_ends_the_rollout_before_it_is_written_to_its_end() -> None:
    """At the next text that is handed in, if not before."""

    def fails(_: Sequence[Episode]) -> None:
        raise ZeroDivisionError("a bad day")

    def meanwhile(step: int) -> None:
        while step == 2 and not env._scoring._batches[0][1]["judge"].done():  # type: ignore[union-attr]
            time.sleep(0.001)

    env = environment(3, {"judge": Outside(fails)})
    writer = Writer(0, 2, 7, meanwhile=meanwhile)
    with pytest.raises(RewardError, match="reward 'judge' raised ZeroDivisionError: a bad day for episode 0"):
        collect(env, writer)
    assert writer.steps <= 3


# ---------------------------------------------------------------- nothing is left behind


def test_questions_that_wait_are_dropped() -> None:
    """Text 0 is asked about, texts 1 and 2 wait for their turn, and the agent fails."""
    asked, hung_up = threading.Event(), threading.Event()

    class Slow(Outside):
        def hang_up(self) -> None:
            hung_up.set()

    def slow(_: Sequence[Episode]) -> None:
        asked.set()
        wait_for(hung_up)

    def leave(step: int) -> None:
        if step == 5:
            wait_for(asked)
            raise ZeroDivisionError

    judge = Slow(slow)
    env = environment(4, {"judge": judge})
    with pytest.raises(ZeroDivisionError):
        collect(env, Writer(1, 2, 3, 7, meanwhile=leave))
    assert judge.asked == [[1]] and not reward_threads()
    assert collect(env, Writer(0, 0, 0, 0)).returns().tolist() == [0.0] * 4, "nothing of it is left in the environment"


class Silent(ThreadingHTTPServer):
    """Takes requests and never answers; `asked` when one is there, `requests` of them in all."""

    daemon_threads = True

    def __init__(self) -> None:
        self.asked, self.closing, self.requests = threading.Event(), threading.Event(), 0
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, *_: Any) -> None: ...


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        server.requests += 1
        server.asked.set()
        server.closing.wait(LONG)


@pytest.fixture
def silent() -> Iterator[Silent]:
    with Silent() as one:
        thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield one
        one.closing.set()
        one.shutdown()
        thread.join()


# As a user would have it beside a script: in a process of its own, which says that it has been asked.
SLEEPER = """
import os, time

class Sleeper:
    def __init__(self, file):
        self.file = file

    def __call__(self, episodes):
        if episodes[0].response == "":
            return [0.5] * len(episodes)
        with open(self.file, "a") as out:
            print(os.getpid(), file=out, flush=True)
        time.sleep(600.0)
"""


@pytest.mark.parametrize(
    ("who", "error"), [("server", KeyboardInterrupt), ("server", ZeroDivisionError), ("process", KeyboardInterrupt)]
)
def test_who_leaves_hangs_up(
    who: str, error: type[BaseException], silent: Silent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text 0 is asked about and texts 1 and 2 wait when the agent, or Ctrl-C, ends the rollout."""
    file = tmp_path / "asked"
    (tmp_path / "users_sleeper.py").write_text(SLEEPER)
    monkeypatch.syspath_prepend(tmp_path)
    plugins.register_reward("sleeper", "users_sleeper:Sleeper")
    table: dict[str, Any] = {
        "server": {"plugin": "http", "url": f"http://127.0.0.1:{silent.server_address[1]}/", "patience": 60.0},
        "process": {"plugin": "sleeper", "file": str(file), "timeout": 60.0},
    }[who]
    mix = load_rewards({"judge": table}, Count("a", 4))

    def leave(step: int) -> None:
        if step == 5:
            while not (silent.asked.is_set() or (file.exists() and file.read_text().endswith("\n"))):
                time.sleep(0.005)
            raise error

    env = environment(4, mix.parts)
    began = time.monotonic()
    with pytest.raises(error):
        collect(env, Writer(1, 2, 3, 7, meanwhile=leave))
    assert time.monotonic() - began < LONG and not reward_threads()
    assert silent.requests == (who == "server"), "who hangs up does not ask again"
    if who == "process":
        (pid,) = map(int, file.read_text().split())
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert collect(env, Writer(0, 0, 0, 0)).returns().tolist() == [0.5] * 4, "the next call has a process again"
