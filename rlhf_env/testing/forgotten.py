"""What an agent's checkpoint leaves out: where a fresh agent that has loaded the state differs from the first one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_env.testing.observing import difference

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_DEEPEST = 3
_LENT = ("setup", "config", "engine", "reference", "tokenizer", "task", "reward", "env")  # by the run: not the agent's


@dataclass(frozen=True)
class Forgotten:
    """An attribute in which two agents differ that ought to be in one state."""

    place: str
    what: str
    kept_by: str
    """What a state would hold of it, as Python."""


def differing_attributes(one: object, other: object) -> list[Forgotten]:
    """It looks into what agents consist of, and passes over objects that it does not know."""
    return list(_differing(one, other, "self", 0))


def remedy_for_state(forgotten: list[Forgotten]) -> str:
    """How to mend a state that leaves those out."""
    if not forgotten:
        return (
            "let state_dict() hold all that act() and update() depend on - the policy's weights and sampling_state(), "
            "the optimizer's state_dict(), generators, counters - and load_state_dict() put it back"
        )
    said = ", ".join(f"{it.place} ({it.what})" for it in forgotten)
    ways = ", ".join(dict.fromkeys(it.kept_by for it in forgotten))
    differs = "differs" if len(forgotten) == 1 else "differ"
    return f"after load_state_dict(), {said} still {differs}: put {ways} into state_dict(), and load it back"


def _differing(one: object, other: object, place: str, depth: int) -> Iterator[Forgotten]:
    twins = _parts(other)
    for name, value in _parts(one).items():
        if name in _LENT or name not in twins:
            continue
        where = f"{place}.{name}"
        try:
            kept = _kept(value, where)
            found = [(what, expression) for what, expression, of in kept if difference(of(value), of(twins[name]))]
        except Exception:  # a plugin's own objects may refuse anything: they are passed over
            continue
        yield from (Forgotten(where, what, expression) for what, expression in found)
        if not kept and depth < _DEEPEST:
            yield from _differing(value, twins[name], where, depth + 1)


def _parts(of: object) -> Mapping[str, Any]:
    found = getattr(of, "__dict__", {})
    return found if isinstance(found, dict) else {}


_Kept = tuple[str, str, Callable[[Any], Any]]


def _kept(value: Any, where: str) -> list[_Kept]:
    """What a thing is, what a state keeps of it, and how to get that; nothing where one has to look inside."""
    import torch

    def state_of(it: Any) -> Any:
        return it.state_dict()

    if isinstance(value, torch.optim.Optimizer):
        # Torch goes on in the tensors that it loads, so they have to be copies.
        return [(f"a torch optimizer, {type(value).__name__}", f"copy.deepcopy({where}.state_dict())", state_of)]
    if isinstance(value, np.random.Generator):
        return [
            ("a random generator", f"dict({where}.bit_generator.state)", lambda it: it.bit_generator.state),
        ]
    if isinstance(value, random.Random):
        return [("a random generator", f"{where}.getstate()", lambda it: it.getstate())]
    if isinstance(value, torch.Generator):
        return [("a random generator", f"{where}.get_state()", lambda it: it.get_state())]
    if callable(getattr(value, "state_dict", None)):
        found: list[_Kept] = [(type(value).__name__, f"{where}.state_dict()", state_of)]
        if callable(getattr(value, "sampling_state", None)):
            found.append(("where its sampling is", f"{where}.sampling_state()", lambda it: it.sampling_state()))
        return found
    if isinstance(value, (*_PLAIN, np.ndarray, torch.Tensor, list, tuple, dict)):
        return [(type(value).__name__, where, lambda it: it)]
    if isinstance(value, (set, frozenset)):
        return [(type(value).__name__, f"sorted({where})", lambda it: sorted(map(repr, it)))]
    return []
