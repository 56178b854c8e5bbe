"""What a run reads beside its model: its record keeps the sha256, so that a run which resumes with another says so.

A run goes on all the same: people add lines to a file of prompts, and mend them. But it does not end in the bits of a
run that was never stopped, and whoever reads its results should know why.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

_MODELS = ("config.json", "reward_model.json", "reward_ensemble.json")  # one of these makes a folder a model's
_OF_MODELS = (".json", ".jinja", ".safetensors")
_SQLITE = b"SQLite format 3\0"  # changes while it is read: it says nothing about the votes in it


def data_among(paths: Iterable[str]) -> dict[str, str]:
    """sha256 by absolute path of the files among some paths, and of the files of models among them."""
    return {str(file): found for path in paths for file in _files(Path(path)) if (found := _sha256(file))}


def changed_data(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The files of both that have another content now; those that only one knows belong to another setting."""
    return [file for file, sha256 in before.items() if now.get(file, sha256) != sha256]


def _files(path: Path) -> Iterator[Path]:
    path = path.absolute()
    if path.is_file():
        yield path
    elif any((path / name).is_file() for name in _MODELS):
        yield from sorted(file for file in path.iterdir() if file.suffix in _OF_MODELS and file.is_file())


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            if opened.read(len(_SQLITE)) == _SQLITE:
                return ""
            opened.seek(0)
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:  # what needs it will say so
        return ""
