"""Checkpoints: directories of safetensors and JSON that are either complete or do not exist. No pickle.

A checkpoint is written as `.tmp-<step>-<pid>`, and each file is fsynced. `manifest.json` comes last: it has the sizes
and sha256 of the other files, and a sha256 of its own content. Then the directory is renamed and its parent fsynced. A
directory whose manifest is missing, or does not match, is not a checkpoint.

The format is version 2. Version 1 had one random stream for all rows, and a manifest without a checksum of its own. It
cannot be converted, because the state of a random stream per row cannot be derived from it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf_env.errors import DataError, DiskRefused
from rlhf_env.types import JsonObject

FORMAT_VERSION = 2
_TENSORS, _STATE, _MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_CONTENT = (_TENSORS, _STATE)
_GONE = "{} is gone: where its run trains, it has a newer one by now, which the same command reads"
_FOLDER = re.compile(r"step-(\d+)(\.replaced)?")


def save(parent: Path, step: int, state: Mapping[str, object], record: Mapping[str, object], *, keep: int = 2) -> Path:
    """Write `state` (nested dicts and lists of tensors, arrays, plain values) as checkpoint `step`; its directory.

    `record` goes into the manifest (versions, thread count, config hash). Of the checkpoints up to this step, the
    newest `keep` are kept. (Checkpoints of later steps are damaged, or the run would have been resumed from them.)
    Raises DiskRefused when the disk is full; earlier checkpoints are untouched then.
    """
    final, partial = parent / f"step-{step:08d}", parent / f".tmp-{step}-{os.getpid()}"
    replaced = parent / f"{final.name}.replaced"
    tensors: dict[str, Tensor] = {}
    plain = _take_apart(state, "", functools.partial(_put_away, tensors), {})
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        partial.mkdir()
        save_file(tensors, partial / _TENSORS)
        (partial / _STATE).write_text(json.dumps(plain), encoding="utf-8")
        for name in _CONTENT:
            _sync(partial / name)
        files = {
            name: {"sha256": _digest(partial / name), "bytes": (partial / name).stat().st_size} for name in _CONTENT
        }
        manifest = {"format_version": FORMAT_VERSION, "step": step, "files": files, **record}
        sealed = {**manifest, "sha256": _seal(manifest)}
        (partial / _MANIFEST).write_text(json.dumps(sealed, indent=1), encoding="utf-8")
        _sync(partial / _MANIFEST)
        if final.exists():  # the same step again: the earlier one is valid until the new one is in place
            shutil.rmtree(replaced, ignore_errors=True)
            final.rename(replaced)
        partial.rename(final)
        _sync(parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        needed = sum(t.numel() * t.element_size() for t in tensors.values())
        raise DiskRefused(
            f"cannot write checkpoint {final} (about {needed:,} bytes): {error}. Earlier checkpoints are whole: make "
            "room, then resume with --resume"
        ) from error
    shutil.rmtree(replaced, ignore_errors=True)
    for old in list(_candidates(parent, up_to=step))[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def require_storable(state: Mapping[str, object]) -> None:
    """Raises DataError, naming the place, for a state of which `save` could not keep everything."""
    _take_apart(state, "", lambda _tensor, path: path, {})


def latest(parent: Path) -> Path | None:
    """The newest valid checkpoint under `parent`, or None. Damaged ones are skipped."""
    return survey(parent)[0]


def survey(parent: Path) -> tuple[Path | None, dict[Path, list[str]]]:
    """The newest valid checkpoint under `parent`, if there is one, and the problems of every newer one.

    The run may be training: what it has replaced while this looked at it is no damage, and is looked for anew.
    """
    damaged: dict[Path, list[str]] = {}
    for folder in (listed := list(_candidates(parent))):
        defects = problems(folder)
        if not defects:
            return folder, damaged
        damaged[folder] = defects
    return (None, damaged) if list(_candidates(parent)) == listed else survey(parent)


def newest(*parents: Path) -> tuple[Path, JsonObject, JsonObject] | None:
    """(folder, state, manifest) of the newest valid checkpoint under the first of `parents` that has one.

    A run that trains may remove it before it is read; then it has a newer one. Raises DataError as `load` does.
    """
    before = None
    while (found := next(filter(None, map(latest, parents)), None)) is not None:
        try:
            return found, *load(found)
        except DataError:
            if found == before:
                raise
            before = found
    return None


def sealed(parent: Path) -> Iterator[tuple[Path, JsonObject]]:
    """Checkpoints whose manifest is whole, with it, the newest first. The other files are not looked at, which takes
    long.
    """
    for folder in _candidates(parent):
        try:
            manifest = manifest_of(folder)
            unsealed = {key: value for key, value in manifest.items() if key != "sha256"}
            if manifest["format_version"] == FORMAT_VERSION and manifest["sha256"] == _seal(unsealed):
                yield folder, manifest
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue


def set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint so that it no longer counts as one; returns its new path."""
    return folder.rename(folder.with_name(f"{folder.name}.set-aside-{os.getpid()}"))


def problems(folder: Path) -> list[str]:
    """The problems of a checkpoint directory, in words; none if it is complete and undamaged."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        version = manifest["format_version"]
    except FileNotFoundError:
        return [f"{folder} has no {_MANIFEST}"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{folder / _MANIFEST} cannot be read: {error}"]
    if version != FORMAT_VERSION:
        return [_other_format(folder, manifest)]
    if manifest.pop("sha256", None) != _seal(manifest):
        return [f"{folder / _MANIFEST} is damaged (its content has changed since it was written)"]
    try:
        stated = {name: (manifest["files"][name]["bytes"], manifest["files"][name]["sha256"]) for name in _CONTENT}
    except (KeyError, TypeError) as error:
        return [f"{folder / _MANIFEST} does not list the checkpoint's files: {error!r}"]
    defects = []
    for name, (size, digest) in stated.items():
        file = folder / name
        try:
            if file.stat().st_size != size or _digest(file) != digest:
                defects.append(f"{file} is damaged (its content differs from what the manifest says)")
        except FileNotFoundError:
            defects.append(f"{file} is missing")
        except OSError as error:
            defects.append(f"{file} cannot be read: {error.strerror or error}")
    return defects


def manifest_of(folder: Path) -> JsonObject:
    """The manifest of a valid checkpoint. Raises DataError where it is there no more."""
    try:
        content: dict[str, object] = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(_GONE.format(folder)) from error
    return content


def load(folder: Path) -> tuple[JsonObject, JsonObject]:
    """(state, manifest). Raises DataError, naming the file, when anything is missing or damaged."""
    defects = problems(folder)
    if defects:
        raise DataError(*(defects if folder.is_dir() else [_GONE.format(folder)]))
    try:
        plain = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        state: dict[str, object] = _put_together(plain, load_file(folder / _TENSORS))
    except FileNotFoundError as error:
        raise DataError(_GONE.format(folder)) from error
    except (ValueError, KeyError, SafetensorError) as error:  # undamaged, but not written by `save`
        raise DataError(f"{folder} does not hold a checkpoint's state: {error!r}") from error
    return state, manifest_of(folder)


def _other_format(folder: Path, manifest: Mapping[str, object]) -> str:
    version, versions = manifest["format_version"], manifest.get("versions")
    maker = versions.get("rlhf-env") if isinstance(versions, Mapping) else None
    newer = isinstance(version, int) and version > FORMAT_VERSION
    remedy = "use that version or a later one" if newer else "finish the run with that version, or start it anew"
    return (
        f"{folder} has checkpoint format {version}, this version of rlhf-env reads {FORMAT_VERSION}: it was made by "
        f"rlhf-env {maker or 'of another version'}; {remedy}"
    )


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of names, types, shapes and bits: equal weights have equal fingerprints, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _candidates(parent: Path, up_to: int | None = None) -> Iterator[Path]:
    """Checkpoint directories, newest step first; one that was being replaced comes after its replacement.

    Symbolic links are left out: they lead out of the run's folder, and `save` makes none.
    """
    steps = [(int(m[1]), m[2] is None, p) for p in parent.glob("step-*") if (m := _FOLDER.fullmatch(p.name))]
    for step, _, folder in sorted(steps, reverse=True):
        if folder.is_dir() and not folder.is_symlink() and (up_to is None or step <= up_to):
            yield folder


def _sweep(parent: Path) -> None:
    """Remove the unfinished directories of writers that were killed."""
    for leftover in parent.glob(".tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _take_apart(value: Any, path: str, put: Callable[[Tensor, str], str], seen: dict[tuple[object, ...], str]) -> Any:
    """The JSON form of `value`. Its tensors and arrays go to `put`, which names them; tied tensors go there once.

    `path` is where `value` stands in the state; `seen` maps the memory of a tensor to the name under which it was
    saved.
    """
    if isinstance(value, np.ndarray):
        # Not looked up in `seen`: the copy's memory is freed, and the next copy may get the same address.
        return {"$array": put(torch.from_numpy(value.copy()), path)}
    if isinstance(value, Tensor):
        address = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() == 0 or address not in seen:
            seen[address] = put(value, path)
        return {"$tensor": seen[address]}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, (str, int)) or isinstance(key, bool):
                raise DataError(
                    f"a checkpoint's tables have strings and whole numbers for keys; {path or 'the state'} has {key!r}"
                )
        if any(not isinstance(key, str) or key.startswith("$") for key in value):  # a torch optimizer's have numbers
            pairs = [[key, _take_apart(item, f"{path}/{key}", put, seen)] for key, item in value.items()]
            return {"$pairs": pairs}
        return {key: _take_apart(item, f"{path}/{key}", put, seen) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_take_apart(item, f"{path}/{i}", put, seen) for i, item in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise DataError(
        "a checkpoint holds tensors, arrays and plain values (numbers, texts, None, lists and tables of them); "
        f"{path[1:].replace('/', '.') or 'the state'} is a {type(value).__module__}.{type(value).__qualname__}: "
        "let state_dict() give what is in it"
    )


def _put_away(tensors: dict[str, Tensor], tensor: Tensor, path: str) -> str:
    """Put the tensor into `tensors`; its name there is its path, numbered if taken ({"a/b": x, "a": {"b": y}})."""
    name = path if path not in tensors else f"{path}#{len(tensors)}"
    tensors[name] = tensor.detach().cpu().contiguous().clone()
    return name


def _put_together(value: object, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if "$tensor" in value:
            return tensors[value["$tensor"]]
        if "$array" in value:
            return tensors[value["$array"]].numpy()
        if "$pairs" in value:
            return {key: _put_together(item, tensors) for key, item in value["$pairs"]}
        return {key: _put_together(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_put_together(item, tensors) for item in value]
    return value


def _seal(manifest: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
