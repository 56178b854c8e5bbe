"""Sums of two numbers, of few digits or of more at each level; some of them held out."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le

from rlhf_env.envs.splits import Part, unit_interval
from rlhf_env.envs.tasks import places_of
from rlhf_env.errors import ConfigError
from rlhf_env.settings import AtLeastOne, ShareBelowOne, settings
from rlhf_env.types import Episode, Prompt, ResetOptions

_FEW = 2**20  # up to this many possible sums are listed; of more, one is drawn until it is of the right part
_MOST_DIGITS = 9


@settings(kw_only=False)
class Addition:
    """`"3+4="` asks for `"7"`. Reward: 1 / (1 + |answer - sum|); 0 for a response that is not a number.

    A number has no leading zeros, and no more digits than the largest sum. The option `level` is the number of digits
    of the largest term, and replaces `largest` (a curriculum).
    """

    largest: AtLeastOne = 9
    """The largest term; the smallest is 0."""
    part: Part = "training"
    """Which prompts: those of training, or those set aside for evaluation."""
    base: Annotated[int, Ge(1), Le(10)] = 10
    """In which numbers are written: 2 has the digits 0 and 1. In base 1 a number is as many strokes, `"11+1="`."""
    exact: bool = False
    """The reward is 1 for the sum, and 0 for all other responses."""
    held_out_fraction: ShareBelowOne = 0.25
    """The share of sums that is set aside for evaluation; 0: evaluations ask the sums of training."""

    option_names = ("level",)

    @property
    def size(self) -> int | None:
        return len(self._sums(self.largest)) if self._few(self.largest) else None

    def prompt(self, index: int, options: ResetOptions, /) -> Prompt:
        level = self._level(options["level"]) if "level" in options else None
        a, b = self._terms(index, self._largest(level))
        asked, answer = _asked(a, b, self.base), _written(a + b, self.base)
        meta = {"answer": answer} if level is None else {"answer": answer, "level": level}
        return Prompt(id=f"addition/{asked[:-1]}", text=asked, meta=meta)

    def _level(self, level: object) -> int:
        if not isinstance(level, (int, np.integer)) or not 1 <= level <= _MOST_DIGITS:
            raise ConfigError(f"level: the digits of the largest term, 1 to {_MOST_DIGITS}, got {level!r}")
        return int(level)

    def _largest(self, level: int | None) -> int:
        return self.largest if level is None else level if self.base == 1 else self.base**level - 1

    def _sums(self, largest: int) -> list[tuple[int, int]]:
        return _all_sums(largest, self.base, self.part, self.held_out_fraction)

    def _few(self, largest: int) -> bool:
        return (largest + 1) ** 2 <= _FEW

    def _terms(self, index: int, largest: int) -> tuple[int, int]:
        if self._few(largest):
            sums = self._sums(largest)
            return sums[index % len(sums)]
        stream = np.random.default_rng([index, largest])
        while True:
            a, b = (int(term) for term in stream.integers(largest + 1, size=2))
            aside = unit_interval(_asked(a, b, self.base)) < self.held_out_fraction
            if aside == (self.part == "held_out"):
                return a, b

    def held_out(self) -> Addition:
        return replace(self, part="held_out") if self.held_out_fraction else self

    def well_formed(self, episode: Episode, /) -> bool:
        answer, meta = episode.response, episode.prompt.meta
        longest = len(_written(2 * self._largest(meta.get("level")), self.base))
        if self.base == 1:
            return len(answer) <= longest and set(answer) <= {"1"}
        digits = set(answer) <= set("0123456789"[: self.base])
        return digits and 0 < len(answer) <= longest and answer == (answer.lstrip("0") or "0")

    def score(self, episode: Episode, /) -> float:
        if not self.well_formed(episode):
            return 0.0
        off = abs(_number(episode.response, self.base) - _number(episode.prompt.meta["answer"], self.base))
        return float(off == 0) if self.exact else 1.0 / (1 + off)


def _written(number: int, base: int) -> str:
    if base == 1:
        return "1" * number
    digits = ""
    while number >= base:
        number, digit = divmod(number, base)
        digits = str(digit) + digits
    return str(number) + digits


def _number(written: str, base: int) -> int:
    return len(written) if base == 1 else int(written, base)


def _asked(a: int, b: int, base: int) -> str:
    return f"{_written(a, base)}+{_written(b, base)}="


@lru_cache(maxsize=16)
def _all_sums(largest: int, base: int, part: Part, held_out_fraction: float) -> list[tuple[int, int]]:
    sums = [(a, b) for a in range(largest + 1) for b in range(largest + 1)]
    return [sums[place] for place in places_of(part, [_asked(a, b, base) for a, b in sums], held_out_fraction)]
