"""Watching a plugin while it is called: what it raises, and whether it touches global generators."""

from __future__ import annotations

import dataclasses
import random
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_env.errors import ContractError
from rlhf_env.testing.remedies import own_generator
from rlhf_env.time_limit import TimeIsOver, at_most
from rlhf_env.types import Episode


def broken(rule: str, expected: str, came: str, *episodes: Episode) -> ContractError:
    shown = "; ".join(
        f"prompt {episode.prompt.text[:60]!a}, response {episode.response[:60]!a}"
        f"{'...' if len(episode.response) > 60 else ''} ({len(episode.response)} characters, {episode.finish_reason})"
        for episode in episodes[:3]
    )
    more = f" and {len(episodes) - 3} more" if len(episodes) > 3 else ""
    return ContractError(rule, f"expected {expected}, got {came}, for {shown}{more}")


def raised(error: BaseException) -> str:
    """What a plugin raised, and where in its own file: "ZeroDivisionError: division by zero (polite.py, line 12)"."""
    own = _own_lines(error)
    place = f" ({Path(own[-1][0]).name}, line {own[-1][1]})" if own else ""
    return f"{type(error).__name__}: {error}{place}"


def wrongly_called(error: BaseException) -> bool:
    """Whether it is about the arguments that a method takes: no line of the plugin was reached."""
    return isinstance(error, TypeError) and "argument" in str(error) and not _own_lines(error)


def _own_lines(error: BaseException) -> list[tuple[str, int]]:
    """File and line of the frames in the file in which the plugin was entered: what it calls of others is not for its
    author to mend."""
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not frame.f_globals.get("__name__", "").startswith("rlhf_env.")
    ]
    return [(file, line) for file, line in frames if file == frames[0][0]]


@contextmanager
def global_randomness_untouched(who: str) -> Iterator[None]:
    """Raise when the block drew from (or seeded) a global generator; leave the generators as they were."""
    torch: Any = sys.modules.get("torch")
    python, numpy = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002  # that nobody uses it
    torch_state = torch.get_rng_state() if torch else None
    yield
    drew = [
        name
        for name, same in (
            ("random", random.getstate() == python),
            ("numpy.random", not difference(np.random.get_state(legacy=False), numpy)),  # noqa: NPY002
            ("torch", torch is None or bool((torch.get_rng_state() == torch_state).all())),
        )
        if not same
    ]
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
    if torch is not None:
        torch.set_rng_state(torch_state)
    if drew:
        used = f"{who} used the global generator of {' and '.join(drew)}"
        raise ContractError("global random state", used, own_generator(who, drew))


@contextmanager
def computing_at_most(seconds: float, rule: str, who: str) -> Iterator[None]:
    """Raise ContractError where the block takes more processor time, as a loop without an end does."""
    try:
        with at_most(seconds, of_processor=True):
            yield
    except TimeIsOver:
        raise ContractError(
            rule, f"{who} still computes after {seconds:g} s", "a loop without an end? Every text is to have an answer"
        ) from None


def difference(one: Any, other: Any, place: str = "") -> str:
    """Where two nested structures of tensors, arrays and plain values first differ in a bit; "" if they do not."""
    if one is other:
        return ""
    if dataclasses.is_dataclass(one):
        one, other = vars(one), vars(other)
    if isinstance(one, Mapping):
        if one.keys() != other.keys():
            return f"{place or 'its keys'}: {sorted(map(str, one))} and {sorted(map(str, other))}"
        found = (difference(one[key], other[key], f"{place}/{key}") for key in one)
        return next(filter(None, found), "")
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return f"{place}: {len(one)} and {len(other)} entries"
        found = (difference(a, b, f"{place}/{i}") for i, (a, b) in enumerate(zip(one, other, strict=True)))
        return next(filter(None, found), "")
    if hasattr(one, "detach"):
        one, other = one.detach().cpu().numpy(), other.detach().cpu().numpy()
    if isinstance(one, np.ndarray):
        alike = isinstance(other, np.ndarray) and one.dtype == other.dtype and one.shape == other.shape
        same = alike and one.tobytes() == other.tobytes()
        return "" if same else f"{place}: {_of_arrays(one, other)}"
    return "" if repr(one) == repr(other) else f"{place}: {one!r} and {other!r}"


def _of_arrays(one: Any, other: Any) -> str:
    """Where two arrays differ first: all their numbers would fill the screen."""
    if not isinstance(other, np.ndarray) or one.dtype != other.dtype or one.shape != other.shape:
        return " and ".join(
            f"{it.dtype}{list(it.shape)}" if isinstance(it, np.ndarray) else repr(it) for it in (one, other)
        )
    if not one.shape:
        return f"{one} and {other}"
    unequal = np.argwhere(~((one == other) | ((one != one) & (other != other))))
    if not len(unequal):
        return f"{one.dtype}{list(one.shape)} that differ in the sign of a zero or in what is no number"
    first = tuple(int(place) for place in unequal[0])
    return f"{one[first]} and {other[first]} at {list(first)}, one of {len(unequal)} that differ of {one.size}"
