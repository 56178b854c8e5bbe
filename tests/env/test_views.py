"""One machine, many views: the same tokens give the same bytes, whoever looks and however much is written at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_env import plugins
from rlhf_env.envs.text_env import TextEnv
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.types import Episode, Float, Prompt, ResetOptions

# Alphabet "ab": a is 0, b is 1, the end token 2, pad 3; 4 in an action means "nothing here".
END, NOTHING, LIMIT, ROWS = 2, 4, 4, 3


class Talk:
    """Five prompts; answers "b" once to whoever ends the first turn with "a"."""

    size = 5

    def prompt(self, index: int, _options: ResetOptions, /) -> Prompt:
        return Prompt(id=f"talk/{index}", text="ab" * (1 + index % 2) + "a" * index)

    def reply(self, episode: Episode, /) -> str | None:
        turns = int((episode.response_ids == END).sum())
        return "b" if turns == 1 and episode.response.endswith("a") else None


class Weighing:
    """A score and token rewards that show every difference: irrational weights of token, place and probability."""

    needs_logprobs = True

    def token_rewards(self, episodes: Sequence[Episode], /) -> list[Float]:
        rewards = []
        for episode in episodes:
            assert episode.logprobs is not None
            places = np.arange(1, len(episode.response_ids) + 1)
            rewards.append(np.sqrt(places + episode.response_ids / math.pi) * np.where(episode.actions, 1.0, 0.1))
            rewards[-1] += episode.logprobs
        return rewards


class ShareOfA:
    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        return np.array([math.sin(len(episode.prompt_ids)) + episode.response.count("a") / 7 for episode in episodes])


class Third:
    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        return np.full(len(episodes), 1 / 3)


SETTINGS: dict[str, Any] = {
    "task": Talk(),
    "tokenizer": "alphabet:ab",
    "max_new_tokens": LIMIT,
    "max_prompt_tokens": 8,
}


def rewards(with_probs: bool) -> dict[str, Any]:
    parts: dict[str, Any] = {"share": (0.7, ShareOfA())}
    if with_probs:
        parts["weighing"] = (-0.3, Weighing())
    return parts


def action(tokens: Any, with_probs: bool) -> Any:
    """An action whose probabilities depend on the tokens alone."""
    tokens = np.asarray(tokens)
    return {"tokens": tokens, "probs": 1.0 / (2.0 + tokens)} if with_probs else tokens


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Equal down to types, dtypes and bytes."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), where
        if one.dtype == object:
            for a, b in zip(one, other, strict=True):
                assert_same(a, b, where)
        else:
            assert one.tobytes() == other.tobytes(), (where, one, other)
    else:
        assert one == other, where


# ---------------------------------------------------------------- a vector of singles and the native vector


@given(data=st.data(), seed=st.integers(0, 2**20), with_probs=st.booleans(), length=st.integers(1, LIMIT))
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP], ids=lambda mode: mode.name)
def test_native_equals_a_vector_of_singles(
    mode: AutoresetMode, data: st.DataObject, seed: int, with_probs: bool, length: int
) -> None:
    token = st.integers(0, 3 if length == 1 else NOTHING)
    row = token if length == 1 else st.lists(token, min_size=length, max_size=length)
    steps = data.draw(st.lists(st.lists(row, min_size=ROWS, max_size=ROWS), min_size=1, max_size=12))
    arguments = {**SETTINGS, "reward": rewards(with_probs), "action_length": length}
    singles = SyncVectorEnv([lambda: TextEnv(**arguments)] * ROWS, autoreset_mode=mode)
    native = TextVectorEnv(ROWS, **arguments, autoreset_mode=mode)
    assert singles.single_action_space == native.single_action_space
    assert singles.observation_space == native.observation_space
    for one, other in zip(singles.reset(seed=seed), native.reset(seed=seed), strict=True):
        assert_same(one, other, "reset")
    for number, tokens in enumerate(steps):
        answers = [envs.step(action(tokens, with_probs)) for envs in (singles, native)]
        for name, one, other in zip(("obs", "rewards", "terminated", "truncated", "infos"), *answers, strict=True):
            assert_same(one, other, f"step {number}, {name}")


# ---------------------------------------------------------------- one token, a segment, a whole response at a time

Harvest = list[list[tuple[Episode, float, dict[str, float], bytes]]]


class Script:
    """What one row wants to say, text after text, turn after turn: handed out in pieces of any size."""

    def __init__(self, tokens: Sequence[int], end: int) -> None:
        self.tokens, self.end = list(tokens), end

    def next_piece(self, room: int, length: int, nothing: int) -> list[int]:
        """At most `length` tokens of this turn, filled up with "nothing here"; past its end a script ends its texts."""
        piece: list[int] = []
        while len(piece) < min(room, length) and (not piece or piece[-1] != self.end):
            piece.append(self.tokens.pop(0) if self.tokens else self.end)
        return piece + [nothing] * (length - len(piece))


def from_single(env: Any, scripts: Sequence[Sequence[int]], texts: int, seed: int) -> Harvest:
    machine, found = env.unwrapped._machine, []
    length, words = machine.action_length, machine.tokenizer
    for row, tokens in enumerate(scripts):
        script = Script(tokens, words.end_id)
        found.append([])
        for text in range(texts):
            observation, _ = env.reset(seed=seed + row if text == 0 else None)
            full, terminated = observation["attention_mask"].sum() + machine.max_new_tokens, False
            while not terminated:
                piece = script.next_piece(full - observation["attention_mask"].sum(), length, words.vocab_size)
                observation, reward, terminated, _, info = env.step(action(piece if length > 1 else piece[0], True))
            parts = info["reward_parts"]
            found[-1].append((info["text_episode"], reward, parts, observation["input_ids"].tobytes()))
    return found


def from_vector(envs: Any, scripts: Sequence[Sequence[int]], texts: int, seed: int, machine: TextVectorEnv) -> Harvest:
    """Of all rows. `machine` has the settings of `envs`, which may be in other processes."""
    mode, length, words = envs.metadata["autoreset_mode"], machine.action_length, machine.tokenizer
    queues = [Script(tokens, words.end_id) for tokens in scripts]
    found: Harvest = [[] for _ in queues]
    observation, _ = envs.reset(seed=seed)
    full = observation["attention_mask"].sum(axis=1) + machine.max_new_tokens
    resting = np.zeros(ROWS, dtype=np.bool_)  # NEXT_STEP: the next action of these rows is ignored
    while min(map(len, found)) < texts:
        room = full - observation["attention_mask"].sum(axis=1)
        tokens = np.array(
            [
                [0] * length if resting[row] else queue.next_piece(room[row], length, words.vocab_size)
                for row, queue in enumerate(queues)
            ]
        )
        observation, paid, terminated, _, infos = envs.step(action(tokens if length > 1 else tokens[:, 0], True))
        last, final = observation["input_ids"], infos
        if mode is AutoresetMode.SAME_STEP and terminated.any():
            last = {row: infos["final_obs"][row]["input_ids"] for row in np.flatnonzero(terminated)}
            final = infos["final_info"]
        for row in map(int, np.flatnonzero(terminated)):
            parts = {k: float(v[row]) for k, v in final["reward_parts"].items() if not k.startswith("_")}
            found[row].append((final["text_episode"][row], float(paid[row]), parts, last[row].tobytes()))
        started = resting if mode is AutoresetMode.NEXT_STEP else terminated
        resting = terminated if mode is AutoresetMode.NEXT_STEP else resting
        if mode is AutoresetMode.DISABLED and terminated.any():
            observation, _ = envs.reset(options={"reset_mask": terminated})
        full = np.where(started, observation["attention_mask"].sum(axis=1) + machine.max_new_tokens, full)
    return [row[:texts] for row in found]


class Views:
    """Every view of one machine; those in other processes are started once and serve all examples."""

    def __init__(self, settings: dict[str, Any], lengths: Sequence[int | None], in_processes: Sequence[int | None]):
        self.views: dict[str, tuple[Any, TextVectorEnv | None]] = {}
        for length in lengths:
            arguments = {**settings, "action_length": length}
            machine = TextVectorEnv(**arguments)
            self.views[f"single, {length}"] = gym.make("rlhf_env/Token-v0", **arguments), None
            for mode in AutoresetMode:
                for how in ("sync", "async") if length in in_processes else ("sync",):
                    made = gym.make_vec(
                        "rlhf_env/Token-v0",
                        ROWS,
                        vectorization_mode=how,
                        vector_kwargs={"autoreset_mode": mode},
                        **arguments,
                    )
                    self.views[f"{how}, {length}, {mode}"] = made, machine
                native = gym.make_vec(
                    "rlhf_env/Response-v0",
                    ROWS,
                    vectorization_mode="vector_entry_point",
                    autoreset_mode=mode,
                    **arguments,
                )
                self.views[f"native, {length}, {mode}"] = native, machine

    def assert_same(self, scripts: Sequence[Sequence[int]], seed: int, texts: int = 2) -> Harvest:
        expected: Harvest | None = None
        for view, (env, machine) in self.views.items():
            if machine is None:
                found = from_single(env, scripts, texts, seed)
            else:
                found = from_vector(env, scripts, texts, seed, machine)
            expected = found if expected is None else expected
            assert found == expected, view
        assert expected is not None
        return expected

    def close(self) -> None:
        for env, _ in self.views.values():
            env.close()


@pytest.fixture(scope="module")
def talking() -> Iterator[Views]:
    views = Views({**SETTINGS, "reward": rewards(True)}, (1, 3, None), (1, 3, None))
    assert len(views.views) == 3 * (1 + 3 * 3)
    yield views
    views.close()


@settings(max_examples=25)
@given(
    scripts=st.lists(st.lists(st.integers(0, 3), max_size=2 * LIMIT), min_size=ROWS, max_size=ROWS),
    seed=st.integers(0, 2**20),
)
def test_the_same_tokens_are_the_same_episodes_in_every_view(
    talking: Views, scripts: list[list[int]], seed: int
) -> None:
    talking.assert_same(scripts, seed)


TOOLS = Path(__file__).parents[2] / "examples/tools"

# What is said in each built-in task (of those without another package), as its symbols; "|" is the end token.
BUILT_IN: dict[str, tuple[dict[str, Any], str]] = {
    "addition": ({}, "123|"),
    "count": ({}, "aab|"),
    "echo": ({"length": 2}, "aabb|"),
    "increasing": ({"length": 2}, "3579|"),
    "enumerable": ({}, "abcd|"),
    "guess": ({"alphabet": "abc"}, "abc|||"),
    "prompts": ({"prompts": ["How are you?", "Hi.", "b"]}, "ab|"),
    "file": ({"path": "prompts.jsonl"}, "ab|"),
    "mixture": ({"tasks": ["echo", "guess"], "weights": [0.4, 0.6]}, "abd|||"),
    "segments": ({}, "abcdef|"),
    "tools": ({"task": "addition", "tools": [f"{TOOLS / 'calculator.py'}:calculate"]}, "123|"),
    "validation": ({"task": {"name": "echo", "length": 2}}, "aabb|"),
}
TOKENIZERS = {"enumerable": "alphabet:abcd", "tools": str(TOOLS / "tokenizer")}


@pytest.fixture(scope="module", params=list(BUILT_IN))
def built_in(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Views, str]]:
    parameters, symbols = BUILT_IN[request.param]
    if request.param == "file":
        file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
        file.write_text('{"prompt": "How are you?"}\n{"prompt": "Hi."}\n', encoding="utf-8")
        parameters = {"path": str(file)}
    arguments = {
        "task": {"name": request.param, **parameters},
        "tokenizer": TOKENIZERS.get(request.param, "bytes"),
        "max_new_tokens": 7,
        "max_prompt_tokens": 512 if request.param == "tools" else 32,
    }
    score: Any = (0.7, ShareOfA()) if request.param in ("prompts", "file") else 0.7
    reward = {"share" if isinstance(score, tuple) else "task": score, "weighing": (-0.3, Weighing())}
    views = Views({**arguments, "reward": reward}, (1, 3, None), (3,))
    yield views, symbols
    views.close()


@settings(max_examples=5)
@given(data=st.data(), seed=st.integers(0, 2**20))
def test_each_built_in_task_is_the_same_in_every_view(
    built_in: tuple[Views, str], data: st.DataObject, seed: int
) -> None:
    views, symbols = built_in
    words = views.views["single, 1"][0].unwrapped.tokenizer
    ids = [words.end_id if symbol == "|" else words.encode(symbol)[0] for symbol in symbols]
    row = st.lists(st.sampled_from(ids), min_size=4, max_size=12)
    views.assert_same(data.draw(st.lists(row, min_size=ROWS, max_size=ROWS)), seed)


def test_the_table_has_every_built_in_task_that_needs_no_other_package() -> None:
    own = [entry for entry in plugins.host() if entry.kind == "task" and entry.target.startswith("rlhf_env.")]
    assert set(BUILT_IN) == {entry.name for entry in own if not entry.needs}


# ---------------------------------------------------------------- the ledger


@given(scripts=st.lists(st.lists(st.integers(0, 3), max_size=LIMIT), min_size=ROWS, max_size=ROWS))
def test_the_ledger_adds_up_exactly(scripts: list[list[int]]) -> None:
    parts = {**rewards(True), "third": (0.1, Third())}
    env = TextEnv(**SETTINGS, reward=parts, action_length=None)
    for seed, tokens in enumerate(scripts):
        env.reset(seed=seed)
        script, terminated = Script(tokens, END), False
        while not terminated:
            _, reward, terminated, _, info = env.step(action(script.next_piece(1, LIMIT, NOTHING), True))
        total = 0.0
        for name, raw in info["reward_parts"].items():
            total += info["reward_weights"][name] * raw
        assert total == reward  # to the bit
        tokens_paid = info["token_rewards"]["weighing"]
        assert tokens_paid.shape == (LIMIT,)
        assert not tokens_paid[info["response_length"] :].any()
        assert info["reward_parts"]["weighing"] == float(tokens_paid[: info["response_length"]].sum())


# ---------------------------------------------------------------- autoreset, by hand


def test_next_step_ignores_the_action_of_a_row_that_ended() -> None:
    envs = TextVectorEnv(2, max_new_tokens=2, reward=rewards(False))
    envs.reset(seed=0)
    assert envs.step(np.array([258, 97]))[2].tolist() == [True, False]
    observation, paid, terminated, _, infos = envs.step(np.array([-5, 258]))  # row 0 only starts anew
    assert paid[0] == 0.0 and terminated.tolist() == [False, True]
    assert observation["attention_mask"].sum(axis=1).tolist() == [2, 4]
    assert infos["_prompt"].tolist() == [True, False]


def test_same_step_gives_the_last_observation_beside_the_first() -> None:
    envs = TextVectorEnv(2, max_new_tokens=2, autoreset_mode="SameStep")
    envs.reset(seed=0)
    observation, _, terminated, _, infos = envs.step(np.array([258, 97]))
    assert terminated.tolist() == [True, False]
    assert observation["attention_mask"].sum(axis=1).tolist() == [2, 3]
    assert infos["final_obs"][0]["attention_mask"].sum() == 3 and infos["final_obs"][1] is None
    assert infos["final_info"]["text_episode"][0].finish_reason == "stop"
    assert "text_episode" not in infos


def test_disabled_keeps_a_row_ended_until_it_is_reset() -> None:
    envs = TextVectorEnv(2, max_new_tokens=3, autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=0)
    _, paid, _, _, infos = envs.step(np.array([97, 258]))
    assert infos["_text_episode"].tolist() == [False, True] and paid.tolist() == [0.0, 0.0]
    observation, paid, terminated, _, infos = envs.step(np.array([97, 10**9]))
    assert terminated.tolist() == [False, True] and paid.tolist() == [0.0, 0.0] and infos == {}
    assert observation["input_ids"][1, 3] == 256
    options = {"reset_mask": np.array([False, True])}
    observation, infos = envs.reset(options=options)
    assert list(options) == ["reset_mask"]
    assert infos["_prompt"].tolist() == [False, True]
    assert observation["attention_mask"].sum(axis=1).tolist() == [4, 2]
    _, paid, terminated, _, _ = envs.step(np.array([97, 97]))
    assert terminated.tolist() == [True, False] and paid.tolist() == [3 / 8, 0.0]


# ---------------------------------------------------------------- truncation, length


def test_the_length_limit_terminates_and_is_scored() -> None:
    env = TextEnv(max_new_tokens=2)
    env.reset(seed=0)
    env.step(97)
    _, reward, terminated, truncated, info = env.step(97)
    assert (reward, terminated, truncated, info["finish_reason"]) == (2 / 8, True, False, "length")


def test_max_episode_steps_truncates_without_a_score() -> None:
    envs = TextVectorEnv(2, max_new_tokens=4, max_episode_steps=2, autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=0)
    envs.step(np.array([97, 97]))
    _, paid, terminated, truncated, infos = envs.step(np.array([97, 258]))
    assert paid.tolist() == [0.0, 1 / 8]
    assert terminated.tolist() == [False, True] and truncated.tolist() == [True, True]
    assert infos["finish_reason"].tolist() == ["truncated", "stop"]
    assert infos["text_episode"][0].response == "aa"
    assert infos["_reward_parts"].tolist() == [False, True]
