"""Which prompt comes next in a row: shuffled epochs, a pure function of the row's seed and how many it has had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import numpy as np

from rlhf_env.errors import EnvironmentMisuse
from rlhf_env.types import Int

Seeds = int | Sequence[int | None] | None

_PROMPT_ORDER = 1  # the purpose of the one random stream a row has: (seed, purpose, epoch)


class PromptOrder:
    """The seed of each row, and its count of prompts so far."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._seeds: list[int] = []
        self._count: Int = np.zeros(rows, dtype=np.int64)
        self._orders: dict[tuple[int, int], Int] = {}

    @property
    def seeded(self) -> bool:
        return bool(self._seeds)

    def seed(self, seed: Seeds, rows: Int) -> None:
        """Begin `rows` anew: with one seed, row b has seed + b; None takes one from the operating system."""
        if seed is None:
            seeds = _in_a_row(_fresh(), self._rows)
        elif isinstance(seed, (int, np.integer)):
            seeds = _in_a_row(int(seed), self._rows)
        else:
            seeds = list(seed)
        if not self._seeds:
            self._seeds = [0] * self._rows
        for row in rows:
            given = seeds[row]
            self._seeds[row] = _fresh() if given is None else int(given)
            self._count[row] = 0

    def advance(self, rows: Int) -> None:
        """These rows have their prompt."""
        self._count[rows] += 1

    def next_index(self, row: int, leader: int, size: int | None) -> int:
        """Of the `size` prompts of a task (None: without end). The stream is that of `leader`, the first row of the
        group, so a group shares its prompts."""
        seed, count = self._seeds[leader], int(self._count[row])
        if size is None:
            return int(np.random.default_rng([seed, _PROMPT_ORDER, count]).integers(2**31))
        if size == 1:
            return 0
        epoch, place = divmod(count, size)
        key = (seed, epoch)
        if key not in self._orders:
            self._orders = {known: order for known, order in self._orders.items() if known[1] >= epoch - 1}
            self._orders[key] = np.random.default_rng([seed, _PROMPT_ORDER, epoch]).permutation(size)
        return int(self._orders[key][place])


def require_seeds(seed: object, rows: int) -> None:
    """Raises EnvironmentMisuse for what is no seed, and for a list of them that is not one a row."""
    several = isinstance(seed, (Sequence, np.ndarray)) and not is_index(seed)
    seeds: Sequence[object] = list(seed) if several else [seed]  # type: ignore[call-overload]
    if several and len(seeds) != rows:
        raise EnvironmentMisuse(f"{len(seeds)} seeds for {rows} rows")
    if not all(each is None or is_index(each) for each in seeds):
        raise EnvironmentMisuse(f"a seed is None or a whole number of at least 0 (or a list, one a row), got {seed!r}")


def is_index(value: object) -> TypeGuard[int]:
    """Whether it is a whole number of at least 0, of Python's or numpy's."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= 0)


def _fresh() -> int:
    return int(np.random.SeedSequence().generate_state(1)[0])


def _in_a_row(first: int, count: int) -> list[int | None]:
    return [first + row for row in range(count)]
