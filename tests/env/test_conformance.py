"""Every registered id with every built-in task: what Gymnasium and Stable-Baselines3 check, whatever the hash seed.

Run as a script, it makes the checks of one process and prints a digest of what it saw; the first test runs it under
three hash seeds.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec, registry
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv

import rlhf_env  # noqa: F401  # registers the environments
from rlhf_env import plugins
from rlhf_env.envs.text_env import TextEnv
from rlhf_env.envs.text_vector_env import TextVectorEnv

IDS = sorted(name for name in registry if name.startswith("rlhf_env/"))
LENGTH = {"length": {"target": 4}}

TOOLS = Path(__file__).parents[2] / "examples/tools"

# What each built-in task needs beyond its name, the reward it is given, and the package without which it is left out.
TASKS: dict[str, tuple[dict[str, Any], Any, str | None]] = {
    "count": ({}, None, None),
    "echo": ({}, None, None),
    "increasing": ({}, None, None),
    "enumerable": ({}, None, None),
    "addition": ({}, None, None),
    "validation": ({"task": "addition"}, None, None),
    "guess": ({}, None, None),
    "segments": ({}, None, None),
    "tools": ({"task": "addition", "tools": [f"{TOOLS / 'calculator.py'}:calculate"]}, None, None),
    "prompts": ({"prompts": ["How are you?", "Hi."]}, LENGTH, None),
    "file": ({"path": "prompts.jsonl"}, LENGTH, None),
    "mixture": ({"tasks": ["echo", "count"]}, None, None),
    "chitchat": ({}, LENGTH, "chitchat_dataset"),
    "reasoning_gym": ({"dataset": "basic_arithmetic"}, None, "reasoning_gym"),
    "textarena": ({"game": "GuessTheNumber-v0"}, None, "textarena"),
}
INSTALLED = [name for name, (_, _, package) in TASKS.items() if package is None or importlib.util.find_spec(package)]
QUICK = [name for name in INSTALLED if TASKS[name][2] is None]


def settings(name: str) -> dict[str, Any]:
    """Arguments of `gym.make`. File names in them are relative to the folder of the check."""
    parameters, reward, package = TASKS[name]
    tokenizer = {"enumerable": "alphabet:abcd?", "tools": str(TOOLS / "tokenizer")}.get(name, "bytes")
    room = {"max_prompt_tokens": 4096 if package else 512 if name == "tools" else 64, "max_new_tokens": 6}
    return {"task": {"name": name, **parameters}, "reward": reward, "tokenizer": tokenizer, **room}


def write_prompt_file() -> None:
    Path("prompts.jsonl").write_text('{"prompt": "How are you?"}\n{"prompt": "Hi."}\n', encoding="utf-8")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_prompt_file()


def played(env: Any, steps: int = 25) -> list[Any]:
    """What random play shows, as plain data: the same at any time, in any process."""
    env.action_space.seed(1)
    found: list[Any] = [env.reset(seed=2)]
    for _ in range(steps):
        found.append(env.step(env.action_space.sample()))
        if found[-1][2] or found[-1][3]:
            found.append(env.reset())
    return found


def check_everything() -> str:
    """The checkers on each pair; a digest of random play in all of them."""
    from stable_baselines3.common.env_checker import check_env as check_for_stable_baselines3

    warnings.simplefilter("error")
    seen = hashlib.sha256()
    for name in IDS:
        for task in INSTALLED:
            env = gym.make(name, **settings(task), render_mode="ansi")
            check_env(env.unwrapped)
            check_for_stable_baselines3(env.unwrapped)
            seen.update(repr(played(env)).encode())
    return seen.hexdigest()


def test_the_checkers_have_nothing_to_say_under_any_hash_seed() -> None:
    digests = set()
    for hash_seed in "01":
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(
            [sys.executable, __file__], check=False, capture_output=True, text=True, env=environment, timeout=300
        )
        assert ran.returncode == 0, f"hash seed {hash_seed}: {ran.stderr[-3000:]}"
        digests.add(ran.stdout.splitlines()[-1])  # rendering for people prints as well
    assert len(digests) == 1, "the hash seed changes what an environment does"


def test_the_table_has_every_built_in_task() -> None:
    built_in = [entry.name for entry in plugins.host() if entry.kind == "task" and entry.target.startswith("rlhf_env.")]
    assert set(TASKS) == set(built_in)


@pytest.mark.parametrize("task", INSTALLED)
@pytest.mark.parametrize("name", IDS)
def test_a_spec_survives_json_and_plays_the_same(name: str, task: str) -> None:
    env = gym.make(name, **settings(task))
    assert env.spec is not None
    text = env.spec.to_json()
    json.loads(text)
    assert repr(played(gym.make(EnvSpec.from_json(text)))) == repr(played(env))


@pytest.mark.parametrize("task", QUICK)
@pytest.mark.parametrize("name", IDS)
def test_vectors_of_each_task_are_its_singles(name: str, task: str) -> None:
    """`make_vec` without processes; those are for one task (below), they cost a second each."""
    singles = gym.make_vec(name, num_envs=2, vectorization_mode="sync", **settings(task))
    native = gym.make_vec(name, num_envs=2, vectorization_mode="vector_entry_point", **settings(task))
    assert isinstance(singles, SyncVectorEnv) and isinstance(native, TextVectorEnv)
    assert singles.action_space == native.action_space and singles.observation_space == native.observation_space
    native.action_space.seed(0)
    assert repr(singles.reset(seed=3)) == repr(native.reset(seed=3))
    for _ in range(15):
        tokens = native.action_space.sample()
        assert repr(singles.step(tokens)) == repr(native.step(tokens))


def test_every_task_at_once_in_other_processes() -> None:
    makers = [partial(TextEnv, **settings(task)) for task in QUICK if task not in ("enumerable", "tools")]
    processes, here = gym.vector.AsyncVectorEnv(makers), gym.vector.SyncVectorEnv(makers)
    try:
        here.action_space.seed(0)
        assert repr(processes.reset(seed=3)) == repr(here.reset(seed=3))
        for _ in range(15):
            tokens = here.action_space.sample()
            assert repr(processes.step(tokens)) == repr(here.step(tokens))
    finally:
        processes.close()


# ---------------------------------------------------------------- Gymnasium's wrappers

A, END = 97, 258


def test_wrappers_of_one_environment() -> None:
    wrappers = gym.wrappers
    env: Any = wrappers.RecordEpisodeStatistics(wrappers.TimeLimit(TextEnv(max_new_tokens=3), 2))
    env = wrappers.TransformReward(env, lambda reward: 10 * reward)
    env.reset(seed=0)
    assert env.step(A)[1:4] == (0.0, False, False)
    _, reward, terminated, _, info = env.step(END)
    assert (reward, terminated, info["episode"]["r"], info["episode"]["l"]) == (10 / 8, True, 1 / 8, 2)
    env.reset()
    env.step(A)
    assert env.step(A)[2:4] == (False, True)
    flat: Any = wrappers.FlattenObservation(TextEnv())
    assert flat.reset(seed=0)[0] in flat.observation_space
    normal: Any = wrappers.NormalizeReward(wrappers.OrderEnforcing(TextEnv()))
    normal.reset(seed=0)
    assert np.isfinite(normal.step(END)[1])
    only: Any = wrappers.FilterObservation(TextEnv(), ["input_ids"])
    assert list(only.reset(seed=0)[0]) == ["input_ids"]
    again: Any = wrappers.Autoreset(TextEnv())
    again.reset(seed=0)
    assert again.step(END)[2] and not again.step(END)[2]


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_wrappers_of_a_vector(mode: str) -> None:
    wrappers = gym.wrappers.vector
    envs: Any = TextVectorEnv(2, max_new_tokens=2, autoreset_mode=mode)
    envs = wrappers.ClipReward(wrappers.RecordEpisodeStatistics(envs), 0.0, 0.2)
    envs = wrappers.DictInfoToList(envs)
    envs.reset(seed=0)
    envs.step(np.array([A, A]))
    _, rewards, terminated, _, infos = envs.step(np.array([A, A + 1]))
    assert rewards.tolist() == [0.2, 0.0] and terminated.all()
    assert [info["episode"]["r"] for info in infos] == [2 / 8, 1 / 8 - 0.5]
    assert [info["episode"]["l"] for info in infos] == [2, 2]
    ended = [info.get("final_info", info) for info in infos]
    assert [info["text_episode"].response for info in ended] == ["aa", "ab"]


def test_rewards_of_a_vector_are_normalised() -> None:
    envs = gym.wrappers.vector.NormalizeReward(TextVectorEnv(4, max_new_tokens=2))
    envs.reset(seed=0)
    stream = np.random.default_rng(0)
    paid = np.array([envs.step(stream.integers(90, 100, size=4))[1] for _ in range(60)])
    assert np.isfinite(paid).all() and 0.1 < paid.std() < 10.0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as here:
        os.chdir(here)
        write_prompt_file()
        print(check_everything())
