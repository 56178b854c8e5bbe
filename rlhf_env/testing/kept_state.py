"""What a reward keeps between two calls where no checkpoint holds it: counters and lists of its module, say."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from types import FunctionType
from typing import Any

_PLAIN = (bool, int, float, str, bytes, list, dict, set, tuple)
_Kept = dict[str, str]


def kept_by(reward: object) -> _Kept:
    """The plain data that a reward can keep between calls, by name: of its module, of its closure, and its own."""
    kept = _written("", getattr(sys.modules.get(_module_of(reward)), "__dict__", {}))
    if isinstance(reward, FunctionType):
        of_closure = inspect.getclosurevars(reward).nonlocals
        return kept | _written("", of_closure) | _written(f"{reward.__name__}.", vars(reward))
    return kept | _written(f"{type(reward).__name__}.", getattr(reward, "__dict__", {}))


def kept_since(before: _Kept, reward: object) -> list[str]:
    """The names of what changed."""
    now = kept_by(reward)
    return [name for name, content in before.items() if now.get(name) != content]


def _module_of(reward: object) -> str:
    return str(getattr(reward if isinstance(reward, FunctionType) else type(reward), "__module__", ""))


def _written(above: str, variables: Mapping[str, Any]) -> _Kept:
    found: _Kept = {}
    for name, value in list(variables.items()):
        if isinstance(value, _PLAIN) and not name.startswith("__"):
            try:
                found[f"{above}{name}"] = repr(value)
            except Exception:  # it holds what is no plain data
                continue
    return found
