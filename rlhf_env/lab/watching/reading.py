"""Small files of a run, read while others may be writing them: what cannot be read is not there."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeGuard

from rlhf_env.types import JsonObject


def json_in(file: Path) -> Any:
    """None where it cannot be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8", errors="surrogatepass"))
    except (OSError, ValueError, RecursionError):
        return None


def object_in(file: Path) -> JsonObject:
    found = json_in(file)
    return found if isinstance(found, dict) else {}


def is_number(value: object) -> TypeGuard[float]:
    """Finite, and no boolean."""
    return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)  # type: ignore[arg-type]


def state_of(file: Path) -> tuple[int, int] | None:
    """What changes when the file is written; None where there is none."""
    try:
        about = file.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size
