"""Checkpoints: whole or not there at all; what goes in comes out bit for bit."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_env.errors import DataError, RunFailed
from rlhf_env.learning import checkpoints

PACKAGES = [Path(__file__).parents[2] / folder for folder in ("rlhf_env", "agents", "reward_plugins")]


def assert_same(one: Any, other: Any) -> None:
    """Equal in every bit, dtype and shape; tables in any order."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
    elif isinstance(one, np.ndarray):
        assert isinstance(other, np.ndarray)
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    elif isinstance(one, float) and math.isnan(one):
        assert math.isnan(other)
    else:
        assert type(one) is type(other)
        assert one == other


def saved_and_loaded(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    loaded, _ = checkpoints.load(checkpoints.save(folder, 1, state, {}))
    return loaded


# ---------------------------------------------------------------- what goes in comes out

PHILOX = np.random.Generator(np.random.Philox(3)).bit_generator.state
AWKWARD: dict[str, dict[str, Any]] = {
    "dtypes": {
        name: torch.tensor([1.0, -0.0, math.nan, math.inf]).to(getattr(torch, name))
        for name in ("float64", "float32", "bfloat16", "float16")
    },
    "integers and booleans": {"ids": torch.arange(3), "mask": torch.tensor([[True, False]]), "scalar": torch.tensor(7)},
    "empty tensors": {"a": torch.zeros(0), "b": torch.zeros(0, 3), "c": torch.zeros(2, 0, dtype=torch.int64)},
    "views": {"columns": torch.arange(6.0).reshape(2, 3).T, "part": torch.arange(6.0)[2:4]},
    "arrays": {
        "f": np.array([0.1, np.nan]),
        "i": np.arange(4)[::-1],
        "b": np.array([[True]]),
        "zero-dim": np.array(2.5),
    },
    "many arrays of one shape": {str(i): np.full(16, float(i)) for i in range(40)},
    "generators": {"pcg": np.random.default_rng(5).bit_generator.state, "philox": PHILOX},
    "a Mersenne twister": dict(np.random.MT19937(1).state),
    "plain": {
        "none": None,
        "true": True,
        "n": -(2**200),
        "text": "emoji 😀, NUL \0, lone \ud83d",
        "list": [1, [2.5, None]],
    },
    "floats": {"inf": math.inf, "-inf": -math.inf, "nan": math.nan, "tiny": 5e-324, "third": 1 / 3, "minus zero": -0.0},
    "nothing": {"empty": {}, "list": []},
    "paths that collide": {"a/b": torch.tensor([1.0]), "a": {"b": torch.tensor([2.0])}, "": torch.tensor([3.0])},
}


@pytest.mark.parametrize("state", AWKWARD.values(), ids=AWKWARD)
def test_a_state_comes_back_bit_for_bit(tmp_path: Path, state: dict[str, Any]) -> None:
    assert_same(saved_and_loaded(tmp_path, state), {**state})


def test_a_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    stream = np.random.default_rng(11)
    stream.random(7)
    state = saved_and_loaded(tmp_path, {"stream": dict(stream.bit_generator.state)})
    other = np.random.default_rng(0)
    other.bit_generator.state = state["stream"]
    assert other.random(5).tolist() == stream.random(5).tolist()


def test_tied_tensors_stay_tied_and_are_written_once(tmp_path: Path) -> None:
    shared = torch.arange(1000.0)
    folder = checkpoints.save(tmp_path, 1, {"in": shared, "deep": [{"out": shared}], "other": shared.clone()}, {})
    state, _ = checkpoints.load(folder)
    assert state["in"] is state["deep"][0]["out"]
    assert state["other"] is not state["in"]
    assert (folder / "tensors.safetensors").stat().st_size < 3 * shared.nbytes


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"agent": {"inner": [object()]}}, r"agent\.inner\.0 is a builtins\.object: let state_dict"),
        ({"x": {1, 2}}, r"x is a builtins\.set"),
        ({"x": {(1, 2): "a"}}, r"/x has \(1, 2\)"),
        ({"x": {True: "a"}}, "/x has True"),
    ],
)
def test_what_would_come_back_as_something_else_is_refused(tmp_path: Path, content: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=f"a checkpoint.*{said}"):
        checkpoints.save(tmp_path, 1, content, {})
    assert checkpoints.latest(tmp_path) is None
    with pytest.raises(DataError, match=f"a checkpoint.*{said}"):
        checkpoints.require_storable(content)


def test_the_state_of_any_optimizer_of_torch_comes_back(tmp_path: Path) -> None:
    """Its tables have numbers for keys, which JSON has not."""
    weights = torch.nn.Parameter(torch.arange(4.0))
    optimizer = torch.optim.AdamW([weights], amsgrad=True)
    weights.square().sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "$odd": {"$tensor": 3, 7: None}}
    back, _ = checkpoints.load(checkpoints.save(tmp_path, 1, state, {}))
    assert back["$odd"] == state["$odd"]
    assert back["optimizer"]["state"].keys() == {0}
    again = torch.optim.AdamW([torch.nn.Parameter(torch.arange(4.0))], amsgrad=True)
    again.load_state_dict(back["optimizer"])
    for name, value in optimizer.state[weights].items():
        assert torch.equal(again.state_dict()["state"][0][name], value), name


# ---------------------------------------------------------------- damage

STATE = {"weights": torch.arange(64.0), "place": 3}


def flip_a_bit(file: Path, place: int = -1) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 0b1000
    file.write_bytes(bytes(content))


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, Path.unlink], ids=["flipped", "truncated", "missing"])
@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_refused_by_name_and_passed_over(tmp_path: Path, name: str, damage: Any) -> None:
    older = checkpoints.save(tmp_path, 1, STATE, {})
    newer = checkpoints.save(tmp_path, 2, STATE, {})
    assert checkpoints.latest(tmp_path) == newer
    damage(newer / name)
    with pytest.raises(DataError, match=re.escape(str(newer))) as refused:
        checkpoints.load(newer)
    assert name in str(refused.value)
    assert checkpoints.latest(tmp_path) == older


@pytest.mark.parametrize("seed", range(5))
def test_any_flipped_bit_is_noticed(tmp_path: Path, seed: int) -> None:
    folder = checkpoints.save(tmp_path, 1, STATE, {})
    stream = np.random.default_rng(seed)
    for name in ("tensors.safetensors", "state.json", "manifest.json"):
        file = folder / name
        before = file.read_bytes()
        for place in stream.integers(len(before), size=10):
            flip_a_bit(file, int(place))
            assert checkpoints.problems(folder), (name, place)
            file.write_bytes(before)
    assert not checkpoints.problems(folder)


@pytest.mark.parametrize("files", [{}, [], "tensors.safetensors", {"tensors.safetensors": 3, "state.json": {}}])
def test_a_manifest_of_another_shape_is_refused(tmp_path: Path, files: Any) -> None:
    folder = checkpoints.save(tmp_path, 1, STATE, {})
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "files": files}))
    with pytest.raises(DataError, match=r"manifest\.json"):
        checkpoints.load(folder)


def test_another_format_version_is_refused_with_both_numbers(tmp_path: Path) -> None:
    folder = checkpoints.save(tmp_path, 1, STATE, {})
    manifest = json.loads((folder / "manifest.json").read_text())
    for version, remedy in ((3, "use that version or a later one"), (1, "finish the run with that version")):
        (folder / "manifest.json").write_text(json.dumps({**manifest, "format_version": version}))
        with pytest.raises(DataError, match=f"format {version}, this version of rlhf-env reads 2.*{remedy}"):
            checkpoints.load(folder)
    assert checkpoints.latest(tmp_path) is None


# ---------------------------------------------------------------- saving


class Killed(BaseException):
    """Stands for kill -9: nothing in the code may catch it."""


def count_calls_until(monkeypatch: pytest.MonkeyPatch, end: int | None, error: BaseException) -> list[str]:
    """Log every fsync and rename; the call number `end` raises instead of happening."""
    log: list[str] = []

    def watched(name: str, call: Any) -> Any:
        def instead(*args: Any, **kwargs: Any) -> Any:
            log.append(name)
            if len(log) - 1 == end:
                raise error
            return call(*args, **kwargs)

        return instead

    monkeypatch.setattr(os, "fsync", watched("fsync", os.fsync))
    monkeypatch.setattr(Path, "rename", watched("rename", Path.rename))
    monkeypatch.setattr(checkpoints.shutil, "rmtree", watched("rmtree", checkpoints.shutil.rmtree))
    return log


@pytest.mark.parametrize("step", [1, 2, 3], ids=["the same step", "one that was there", "a new step"])
def test_killed_anywhere_in_a_save_a_valid_checkpoint_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """At every fsync, rename and removal; then the next save works and leaves nothing behind."""

    def prepare(folder: Path) -> None:
        for earlier in range(1, max(step, 2)):
            checkpoints.save(folder, earlier, {"made": "before"}, {})
        if step == 2:
            checkpoints.save(folder, 2, {"made": "before"}, {})

    prepare(tmp_path / "counted")
    with monkeypatch.context() as patch:
        log = count_calls_until(patch, None, Killed())
        checkpoints.save(tmp_path / "counted", step, {"made": "after"}, {})
    assert log.count("fsync") == 4
    for end in range(len(log)):
        folder = tmp_path / f"killed-{end}"
        prepare(folder)
        with monkeypatch.context() as patch:
            count_calls_until(patch, end, Killed())
            with pytest.raises(Killed):
                checkpoints.save(folder, step, {"made": "after"}, {})
        left = checkpoints.latest(folder)
        assert left is not None, f"nothing is left after being killed at call {end}: {log[end]}"
        state, _ = checkpoints.load(left)
        assert state["made"] in ("before", "after")
        stands = checkpoints.save(folder, step, {"made": "again"}, {})
        assert checkpoints.latest(folder) == stands
        assert checkpoints.load(stands)[0] == {"made": "again"}
        assert not [path.name for path in folder.iterdir() if not re.fullmatch(r"step-\d{8}", path.name)]


@pytest.mark.parametrize("end", range(5))
def test_a_disk_that_refuses_costs_only_the_new_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: int
) -> None:
    older = checkpoints.save(tmp_path, 1, STATE, {})
    with monkeypatch.context() as patch, pytest.raises(RunFailed, match="No space left") as refused:
        count_calls_until(patch, end, OSError(28, "No space left on device"))
        checkpoints.save(tmp_path, 2, STATE, {})
    assert "step-00000002 (about 256 bytes)" in str(refused.value)
    assert refused.value.exit_code == 3
    assert not checkpoints.problems(older)
    assert not list(tmp_path.glob(".tmp-*"))


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    leftover = tmp_path / ".tmp-7-4711"
    leftover.mkdir()
    (leftover / "state.json").write_text("{")
    checkpoints.save(tmp_path, 1, STATE, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_keep(tmp_path: Path) -> None:
    for step in (9, 10, 11):
        checkpoints.save(tmp_path, step, {"step": step}, {}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000011"]


def test_a_damaged_later_checkpoint_does_not_push_out_the_good_ones(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, 10, STATE, {})
    flip_a_bit(checkpoints.save(tmp_path, 20, STATE, {}) / "state.json")
    for step in (11, 12):  # resumed from 10
        checkpoints.save(tmp_path, step, STATE, {}, keep=2)
    flip_a_bit(tmp_path / "step-00000012" / "state.json")
    assert checkpoints.latest(tmp_path) == tmp_path / "step-00000011"


@pytest.mark.parametrize("gone", ["before it is looked at", "before it is read"])
def test_what_a_run_that_trains_replaces_meanwhile_is_followed_by_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    checkpoints.save(tmp_path, 1, {"step": 1}, {}, keep=1)
    asked = "problems" if gone == "before it is looked at" else "load"
    before = getattr(checkpoints, asked)

    def trained_on(folder: Path) -> Any:
        monkeypatch.setattr(checkpoints, asked, before)
        checkpoints.save(tmp_path, 2, {"step": 2}, {}, keep=1)
        assert not folder.exists()
        return before(folder)

    monkeypatch.setattr(checkpoints, asked, trained_on)
    found = checkpoints.newest(tmp_path / "none", tmp_path)
    assert found is not None
    folder, state, manifest = found
    assert (folder.name, state, manifest["step"]) == ("step-00000002", {"step": 2}, 2)


def test_a_checkpoint_that_is_gone_is_called_so(tmp_path: Path) -> None:
    for read in (checkpoints.load, checkpoints.manifest_of):
        with pytest.raises(DataError, match=r"step-00000001 is gone: where its run trains, it has a newer one"):
            read(tmp_path / "step-00000001")


def test_no_pickle_anywhere_in_the_packages() -> None:
    """S1. Comments and prose may name it, code may not use it.

    Only what speaks to a child process of ours may: nothing there comes from a file, or from a child that runs plugins.
    (The child of reasoning_gym_task.py runs the library that the run itself imports.)
    """
    children = {"isolation.py", "isolated_process.py", "reward_tables.py", "reasoning_gym_task.py", "ahead_writer.py"}
    unsafe = re.compile(
        r"^\s*(import|from)\s+(pickle|dill|cloudpickle|joblib)\b|\btorch\.(load|save)\(|\bpickle\.\w+\("
    )
    found = [
        f"{file}:{number}"
        for package in PACKAGES
        for file in package.rglob("*.py")
        if file.name not in children
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if unsafe.search(line)
    ]
    assert not found
    assert unsafe.search("    state = torch.load(path)")
