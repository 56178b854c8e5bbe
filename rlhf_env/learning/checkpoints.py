"""Checkpoints: a directory of safetensors and JSON, whole or not there at all. No pickle.

A checkpoint is written as `.tmp-<step>-<pid>`, each file fsynced, `manifest.json` (sizes and sha256 of the others)
last; then it is renamed and its parent fsynced. A directory without a manifest that matches is not a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf_env.errors import DataError, RunFailed

FORMAT_VERSION = 1
_TENSORS, _STATE, _MANIFEST = "tensors.safetensors", "state.json", "manifest.json"


def save(parent: Path, step: int, state: Mapping[str, Any], record: Mapping[str, Any], *, keep: int = 2) -> Path:
    """Write `state` (nested dicts and lists of tensors, arrays, plain values) as checkpoint `step`; its directory.

    `record` goes into the manifest (versions, thread count, config hash). The newest `keep` checkpoints stay. Raises
    RunFailed when the disk refuses: what stood before is untouched.
    """
    parent.mkdir(parents=True, exist_ok=True)
    _sweep(parent)
    final, partial = parent / f"step-{step:08d}", parent / f".tmp-{step}-{os.getpid()}"
    tensors: dict[str, Tensor] = {}
    plain = _take_apart(state, "", tensors, {})
    try:
        partial.mkdir()
        save_file(tensors, partial / _TENSORS)
        (partial / _STATE).write_text(json.dumps(plain), encoding="utf-8")
        for name in (_TENSORS, _STATE):
            _sync(partial / name)
        files = {
            name: {"sha256": _digest(partial / name), "bytes": (partial / name).stat().st_size}
            for name in (_TENSORS, _STATE)
        }
        manifest = {"format_version": FORMAT_VERSION, "step": step, "files": files, **record}
        (partial / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _sync(partial / _MANIFEST)
        if final.exists():  # the same step saved again, by a run that was resumed from an older checkpoint
            shutil.rmtree(final)
        partial.rename(final)
        _sync(parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        needed = sum(t.numel() * t.element_size() for t in tensors.values())
        raise RunFailed(f"cannot write checkpoint {final} (about {needed:,} bytes): {error}") from error
    for old in list(_candidates(parent))[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest(parent: Path) -> Path | None:
    """The newest valid checkpoint under `parent`, or None. Damaged ones are passed over."""
    for folder in _candidates(parent):
        if not problems(folder):
            return folder
    return None


def problems(folder: Path) -> list[str]:
    """What is wrong with a checkpoint directory; empty when it is whole."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        files: dict[str, dict[str, Any]] = manifest["files"]
        version = manifest["format_version"]
    except FileNotFoundError:
        return [f"{folder} has no {_MANIFEST}"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{folder / _MANIFEST} cannot be read: {error}"]
    if version != FORMAT_VERSION:
        return [f"{folder} has checkpoint format {version}, this version reads {FORMAT_VERSION}"]
    found = []
    for name in (_TENSORS, _STATE):
        file = folder / name
        if name not in files or not file.is_file():
            found.append(f"{file} is missing")
        elif file.stat().st_size != files[name]["bytes"] or _digest(file) != files[name]["sha256"]:
            found.append(f"{file} is damaged (its content is not what the manifest says)")
    return found


def load(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(state, manifest). Raises DataError that names the file when anything is missing or damaged."""
    wrong = problems(folder)
    if wrong:
        raise DataError(*wrong)
    manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    plain = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    state: dict[str, Any] = _put_together(plain, load_file(folder / _TENSORS))
    return state, manifest


def _candidates(parent: Path) -> Iterator[Path]:
    """Checkpoint directories, newest step first."""
    return iter(sorted((p for p in parent.glob("step-*") if p.is_dir()), reverse=True))


def _sweep(parent: Path) -> None:
    """Remove what earlier, killed writers left unfinished."""
    for leftover in parent.glob(".tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _take_apart(value: Any, path: str, tensors: dict[str, Tensor], seen: dict[tuple[Any, ...], str]) -> Any:
    """The JSON form of `value`; its tensors and arrays go to `tensors`, tied ones once."""
    if isinstance(value, np.ndarray):
        return {"$array": _take_apart(torch.from_numpy(value.copy()), path, tensors, seen)["$tensor"]}
    if isinstance(value, Tensor):
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() == 0 or key not in seen:
            seen[key] = path
            tensors[path] = value.detach().cpu().contiguous().clone()
        return {"$tensor": seen[key]}
    if isinstance(value, Mapping):
        return {str(key): _take_apart(item, f"{path}/{key}", tensors, seen) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_take_apart(item, f"{path}/{i}", tensors, seen) for i, item in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint holds tensors, arrays and plain values; {path or 'the state'} is {type(value)}")


def _put_together(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if "$tensor" in value:
            return tensors[value["$tensor"]]
        if "$array" in value:
            return tensors[value["$array"]].numpy()
        return {key: _put_together(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_put_together(item, tensors) for item in value]
    return value


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
