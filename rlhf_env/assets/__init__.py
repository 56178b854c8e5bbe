"""Small models that ship with the package: `rlhf-env/chitchat` (the demo's base) and `rlhf-env/chitchat-judge`."""

from __future__ import annotations

import os
from pathlib import Path

_OWNER = "rlhf-env/"


def resolve(name: str) -> str:
    """The folder of a shipped model; any other name or path as it is."""
    if not name.startswith(_OWNER):
        return name
    folder = Path(__file__).parent / name.removeprefix(_OWNER)
    return str(folder) if folder.is_dir() else name


def cache_folder() -> Path:
    """Where what takes long to make is kept between runs: $RLHF_ENV_CACHE, else ~/.cache/rlhf-env."""
    return Path(os.environ.get("RLHF_ENV_CACHE") or Path.home() / ".cache" / "rlhf-env")
