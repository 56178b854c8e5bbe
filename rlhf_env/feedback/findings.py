"""Findings about one field: "" or False when nothing is wrong, so that a constructor can report all of them at once."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from rlhf_env.errors import DataError

_LARGEST = 2**1000  # near where an integer stops being a float


def refuse(*problems: str | bool) -> None:
    """Raise DataError with every finding; nothing happens when there is none."""
    wrong = [problem for problem in problems if isinstance(problem, str) and problem]
    if wrong:
        raise DataError(*wrong)


def text(field: str, value: object, *, empty_is_fine: bool = False) -> str:
    if not isinstance(value, str):
        return f"{field}: expected text, got {in_words(value)}"
    return "" if value or empty_is_fine else f"{field}: empty"


def number(field: str, value: object, *, zero_is_fine: bool = False) -> str:
    amount = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if isinstance(amount, int) and abs(amount) > _LARGEST:
        amount = math.inf
    if math.isfinite(amount) and (amount > 0 or (zero_is_fine and amount == 0)):
        return ""
    return f"{field}: expected a finite number {'of at least' if zero_is_fine else 'above'} 0, got {value!r}"


def whole_number(field: str, value: object, low: int, high: int) -> str:
    if type(value) is int and low <= value <= high:
        return ""
    return f"{field}: expected a whole number from {low} to {high}, got {value!r}"


def one_of(field: str, value: object, known: Sequence[object]) -> str:
    return "" if value in known else f"{field}: {value!r} is none of {', '.join(map(str, known))}"


def token_ids(field: str, value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, tuple) or not all(type(item) is int and item >= 0 for item in value):
        return f"{field}: expected a tuple of token ids (integers of at least 0)"
    return ""


def json_object(field: str, value: object) -> str:
    if not isinstance(value, Mapping):
        return f"{field}: expected an object, got {in_words(value)}"
    try:
        as_json(dict(value))
    except (TypeError, ValueError) as error:
        return f"{field}: {error}"
    return ""


def as_json(value: object, *, in_order: bool = False) -> str:
    """One spelling for one value: what digests are made of. TypeError or ValueError where JSON cannot hold it.

    `in_order`: names stay in the order in which they stand, which some readers (chat templates) write down.
    """
    return json.dumps(value, sort_keys=not in_order, separators=(",", ":"), allow_nan=False, default=dict)


def in_words(value: object) -> str:
    """What a JSON value is, in words."""
    names = {type(None): "null", dict: "an object", list: "a list", str: "text", bool: "a boolean"}
    return names.get(type(value), f"the number {value!r}" if isinstance(value, (int, float)) else type(value).__name__)
