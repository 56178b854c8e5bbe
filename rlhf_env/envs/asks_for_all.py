"""What a reward mix asks of the processes that train one run together; `learning.processes` has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from rlhf_env.types import Episode, TokenScorer

_T = TypeVar("_T")


class AsksForAll(Protocol):
    """Several processes of which one asks the rewards: the others are told what it was answered."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that asks."""

    def from_first(self, ask: Callable[[], _T], at: str = "") -> _T:
        """What `ask` gives there; what it raises is raised in all."""

    def read_ahead(self, scorer: TokenScorer, episodes: Sequence[Episode]) -> None:
        """Read texts together, so that `scorer` knows what it will be asked about them."""

    def at(self, what: str) -> None:
        """What this process is at, for messages about those that the others wait for."""
