"""An objective of a library, as the referee sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from rlhf_env.lab.studies.referee.measuring import Measurable

LoadModule = Callable[[str], Any]
"""Gives a module of a library, by its name."""
Penalty = Literal["in reward", "in loss", "none"]


@dataclass(frozen=True, kw_only=True)
class Differs:
    """A line that makes a library's gradient another one than that of our second derivation."""

    line: str
    """A part of the line, as it stands in the library's source."""
    module: str
    """The module that it stands in."""
    why: str
    explained: Measurable | None = None
    """Our derivation with what that line says: the two have to agree then."""


@dataclass(frozen=True, kw_only=True)
class LibraryObjective:
    """One objective: whose, how it is called, where the KL penalty goes, and what it should be the same as."""

    maker: str
    name: str
    theirs: Measurable
    second: Measurable | None = None
    """Derived anew by us; none for our own."""
    penalty: Penalty = "in reward"
    ours: str = ""
    """What we have like it: a name in docs/losses.md, or of a row of `rlhf-env lab exact`."""
    differs: Differs | None = None
    wrong: float = 0.0
    """Of pairs: the share of labels that are wrong, of a loss that is told so."""

    @property
    def full_name(self) -> str:
        return f"{self.maker}: {self.name}"
