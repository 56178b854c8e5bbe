"""Plain data, as TOML, JSON and CSV files hold it: how much of it is read, and how.

What others wrote is read up to a size: a file that is larger is refused before it fills the memory.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import math
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_env.errors import DataError

LARGEST_FILE = 2**30  # bytes, which are read as a whole
LONGEST_LINE = 2**22  # bytes of a line, characters of a prompt
_GZIP = b"\x1f\x8b\x08"


def ending_of(path: str | Path) -> str:
    """What a file's name ends in, in small letters: ".jsonl", and so for a ".jsonl.gz"."""
    path = Path(path)
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def read_file(path: str | Path, largest: int = LARGEST_FILE) -> bytes:
    """The bytes of a file, without a byte order mark; UTF-16 that has one comes as UTF-8, and gzip unpacked.

    Raises DataError, with the file's name, when it cannot be read or is larger than `largest` bytes (unpacked).
    """
    try:
        with Path(path).open("rb") as stream:
            content = stream.read(largest + 1)
    except (OSError, ValueError) as error:  # a name with NUL in it is a ValueError
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if content.startswith(_GZIP):
        try:
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(largest + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: begins as gzip and is damaged: {error}") from error
    if len(content) > largest:
        raise DataError(f"{path} is larger than {largest:,} bytes, the most that is read: split it")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):  # as Excel's "Unicode text" and PowerShell's ">" write it
        try:
            return content.decode("utf-16").encode("utf-8")
        except UnicodeError as error:
            raise DataError(f"{path}: begins as UTF-16 and is none: save it as UTF-8") from error
    return content.removeprefix(b"\xef\xbb\xbf")


def flat(table: Mapping[str, object], above: str = "") -> dict[str, object]:
    """One level of a table with tables in it: `{"agent": {"lr": 1}}` becomes `{"agent.lr": 1}`."""
    level: dict[str, object] = {}
    for key, value in table.items():
        level |= flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return level


def strict_json(value: object, *, indent: int | None = 1) -> str:
    """JSON that every program reads: dataclasses as tables of their fields, null for what is no finite number.

    >>> strict_json({"kl": float("nan"), "places": (1, 2)}, indent=None)
    '{"kl": null, "places": [1, 2]}'
    """
    return json.dumps(_as_plain(value), indent=indent, allow_nan=False)


def _as_plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _as_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_json(text: str | bytes) -> Any:
    """Strict JSON: only finite numbers, and no field twice in one object, because nobody can tell which one is meant.

    Raises ValueError (JSONDecodeError if it is not JSON), and RecursionError if brackets are nested too deeply.
    """
    return json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_once)


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"{digits} is larger than any number of 64 bits")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        times = Counter(name for name, _ in pairs)
        twice = sorted(name for name, count in times.items() if count > 1)
        raise ValueError(f"an object has the field {', '.join(map(repr, twice))} more than once")
    return table
