"""Where a setting may be drawn from when agents are tuned. An agent declares `ranges` beside its settings:

    @settings
    class Config:
        ranges: ClassVar[Ranges] = {"lr": Multiple(0.25, 4.0), "epochs": Choice(1, 2, 4)}

        epochs: AtLeastOne = 2
        optimization: Optimization = Optimization()

A name is a setting's, as it stands in a file: `lr`, not `optimization.lr`. An agent without ranges is not tuned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rlhf_env.errors import ConfigError, Problem
from rlhf_env.settings import Positive, fault, settings


class Range(Protocol):
    """What a setting may be."""

    def draw(self, own: Any, stream: np.random.Generator, /) -> Any:
        """A value; `own` is the one that the file has, or the default."""


Ranges = Mapping[str, Range]


@settings(kw_only=False)
class Multiple:
    """`own` times a factor that is log-uniform between `low` and `high`.

    For what has a scale that the agent cannot know, as a learning rate has one that depends on model and task.
    """

    low: Positive
    """The least factor."""
    high: Positive
    """The largest factor."""

    def problems(self) -> Iterator[Problem]:
        if not self.low < self.high:
            yield fault("high", f"must be above low, {self.low}, got {self.high}")

    def draw(self, own: Any, stream: np.random.Generator, /) -> float:
        return _short(own * math.exp(stream.uniform(math.log(self.low), math.log(self.high))))


@settings(kw_only=False)
class Uniform:
    """A number between `low` and `high`."""

    low: float
    """The least number."""
    high: float
    """The largest number."""

    def problems(self) -> Iterator[Problem]:
        if not self.low < self.high:
            yield fault("high", f"must be above low, {self.low}, got {self.high}")

    def draw(self, own: Any, stream: np.random.Generator, /) -> float:
        return _short(stream.uniform(self.low, self.high))


@dataclass(frozen=True, init=False)
class Choice:
    """One of some values, all as likely: `Choice(1, 2, 4)`."""

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        if len(values) < 2:
            raise ConfigError(f"a choice is among two values or more, got {values}")
        object.__setattr__(self, "values", values)

    def draw(self, own: Any, stream: np.random.Generator, /) -> Any:
        return self.values[stream.integers(len(self.values))]


def _short(value: float) -> float:
    """Three digits: more would be written into files and tables, and say nothing."""
    return float(f"{value:.3g}")
