"""Training and held-out items, split by prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Protocol, TypeVar

from rlhf_env.errors import ConfigError
from rlhf_env.feedback.store.schema import to_bytes
from rlhf_env.types import Prompt


class OnPrompt(Protocol):
    """A preference or a judgement."""

    @property
    def prompt(self) -> Prompt: ...


P = TypeVar("P", bound=OnPrompt)


def split_by_prompt(judged: Iterable[P], held_out: float, *, salt: str = "") -> tuple[list[P], list[P]]:
    """(training, held-out), in order. Held out is where the hash of (salt, prompt text) falls below `held_out`.

    The hash makes the division stable: new preferences never move an old prompt to the other side. Prompts are compared
    by text, so that two ids of one text do not leak. `held_out` is a fraction of prompts, met in expectation.
    """
    if not 0.0 <= held_out <= 1.0:
        raise ConfigError(f"held_out: {held_out!r} is not a fraction between 0 and 1")
    parts: tuple[list[P], list[P]] = ([], [])
    for one in judged:
        parts[place_in_split(one.prompt, salt) < held_out].append(one)
    return parts


def place_in_split(prompt: Prompt, salt: str = "") -> float:
    """The prompt's place in [0, 1): it is held out at every larger share."""
    hashed = hashlib.sha256(to_bytes(f"{salt}\n{prompt.text}")).digest()
    return int.from_bytes(hashed[:6], "big") / 2**48  # 48 bits: the quotient is exact and below 1
