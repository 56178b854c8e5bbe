"""The numbers of a run's log as curves: kept as arrays, drawn from as many points as a screen can show."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from rlhf_env.lab.evaluation.metrics import METRICS
from rlhf_env.lab.watching.reading import is_number
from rlhf_env.learning.logged import number_called
from rlhf_env.types import Float, JsonObject, JsonView

POINTS = 240
SectionName = Literal["main", "parts", "agent", "rest"]
SECTION_NAMES: tuple[SectionName, ...] = ("main", "parts", "agent", "rest")
_FIRST = ("reward", "gold", "proxy", "kl", "length", "entropy", "cut_at_limit")
_TITLES = {
    "reward": "Reward, all parts",
    "gold": "Gold reward",
    "proxy": "Proxy reward",
    "kl": "KL to the reference",
    "length": "Length, tokens a text",
    "entropy": "Entropy, nats per token",
    "cut_at_limit": "Share of texts cut at the limit",
}
_ENDS = re.compile(r"_(std|low|high)$")
_KEPT_APART = ("spent/", "time/", "histogram/", "eval/kl_is_bound")


@dataclass
class _Points:
    row: array[int] = field(default_factory=lambda: array("q"))
    value: array[float] = field(default_factory=lambda: array("d"))


@dataclass(frozen=True)
class Line:
    """One number along a run. `mean`, `low`, `high`: of neighbouring rows, where there are more than can be drawn.

    NaN where the log says that there was no number: the line breaks there.
    """

    name: str
    key: str
    x: Float
    mean: Float
    low: Float
    high: Float
    last: float
    missing_since: int | None = None
    """The first of the last updates at which this was not a finite number; None where the last one is."""

    def as_json(self) -> JsonObject:
        ends = {"low": _short(self.low), "high": _short(self.high)} if self.has_band else {}
        last = _short(np.array([self.last]))[0]
        line = {"name": self.name, "key": self.key, "x": _short(self.x), "y": _short(self.mean), "last": last, **ends}
        return line if self.missing_since is None else {**line, "missing_since": self.missing_since}

    @property
    def has_band(self) -> bool:
        """Whether points are means of several rows that differ."""
        return not np.array_equal(self.low, self.high, equal_nan=True)

    def pieces(self) -> Iterator[slice]:
        """The points between breaks, piece by piece."""
        known = np.concatenate(([False], np.isfinite(self.mean), [False]))
        begins, ends = (np.flatnonzero(edge) for edge in (known[1:] & ~known[:-1], known[:-1] & ~known[1:]))
        return (slice(int(begin), int(end)) for begin, end in zip(begins, ends, strict=True))

    @property
    def said(self) -> str:
        """What to say of it where it is not drawn; "" where there is nothing."""
        return "" if self.missing_since is None else f"no number since update {self.missing_since:,}"


@dataclass(frozen=True)
class Panel:
    """What is drawn in one picture: a number of training and the same of evaluations, as far as there are any."""

    title: str
    meaning: str
    section: SectionName
    lines: tuple[Line, ...]

    def as_json(self) -> JsonObject:
        return {
            "title": self.title,
            "meaning": self.meaning,
            "section": self.section,
            "lines": [line.as_json() for line in self.lines],
        }


class Curves:
    """All numbers of the rows that it was given (`add`), by key."""

    def __init__(self) -> None:
        self._points: dict[str, _Points] = {}
        self._missing: dict[str, int] = {}
        self._update: array[float] = array("d")  # of each row
        self._tokens: array[float] = array("d")
        self.rows = 0
        self.last: JsonObject = {}

    def add(self, row: JsonView) -> None:
        self.last.update(row)
        tokens = row.get("spent/generated_tokens")
        self._update.append(float(row["update"]))
        self._tokens.append(float(tokens) if is_number(tokens) else math.nan)
        number, known = self.rows, self._points
        self.rows += 1
        for key, value in row.items():
            if value is None or (type(value) is float and not abs(value) < 1e300):
                self._missing.setdefault(key, int(row["update"]))
                if key in known:
                    known[key].row.append(number)
                    known[key].value.append(math.nan)
            elif (type(value) is float or type(value) is int) and key != "update" and abs(value) < 1e300:
                self._missing.pop(key, None)
                points = known.get(key)
                if points is None:
                    points = known[key] = _Points()
                points.row.append(number)
                points.value.append(value)

    def panels(self, sections: tuple[SectionName, ...], *, by: Literal["update", "tokens"] = "update") -> list[Panel]:
        """The pictures of these sections, each number of the log in one of them."""
        found = []
        for name, keys in self._named().items():
            section = _section(name, keys)
            if section in sections:
                lines = tuple(line for key in keys if (line := self._line(key, by)) is not None)
                if lines:
                    found.append(Panel(_title(name), _meaning(keys[0]), section, lines))
        order = {name: place for place, name in enumerate(_TITLES.values())}
        return sorted(found, key=lambda panel: (SECTION_NAMES.index(panel.section), order.get(panel.title, len(order))))

    def _named(self) -> dict[str, list[str]]:
        """Keys by what they are of: "rollout/kl" and "eval/kl" are one number, measured twice."""
        named: dict[str, list[str]] = {}
        for key in self._points:
            section, _, rest = key.partition("/")
            rest = "reward" if key == "eval/objective" else rest  # of training, the same is the reward
            own = rest if section in ("rollout", "eval") and not key.startswith(_KEPT_APART) else key
            base = _ENDS.sub("", key)
            if base != key and base in self._points:
                own = f"spread of {own}"
            named.setdefault(own, []).append(key)
        return {name: sorted(keys, reverse=True) for name, keys in named.items()}

    def _line(self, key: str, by: str) -> Line | None:
        points = self._points[key]
        along = np.frombuffer(self._tokens if by == "tokens" else self._update)
        x, y = along[np.frombuffer(points.row, dtype=np.int64)], np.frombuffer(points.value)
        known = np.isfinite(x)
        x, y = x[known], y[known]
        if not x.size:
            return None
        name = {"rollout": "training", "eval": "evaluation"}.get(key.partition("/")[0], "training")
        if not np.isfinite(y).any():
            return None
        last, missing = float(y[np.isfinite(y)][-1]), self._missing.get(key)
        if x.size <= POINTS:
            return Line(name, key, x.copy(), y.copy(), y.copy(), y.copy(), last, missing)
        begins = np.linspace(0, x.size, POINTS, endpoint=False).astype(np.int64)
        mean_x = np.add.reduceat(x, begins) / np.diff(np.append(begins, x.size))
        found = np.isfinite(y)
        counts = np.add.reduceat(found.astype(np.float64), begins)
        with np.errstate(invalid="ignore"):  # 0 / 0, NaN, is what a point without any number is
            mean_y = np.add.reduceat(np.where(found, y, 0.0), begins) / counts
        lowest, highest = np.fmin.reduceat(y, begins), np.fmax.reduceat(y, begins)
        return Line(name, key, mean_x, mean_y, lowest, highest, last, missing)


def _section(name: str, keys: list[str]) -> SectionName:
    if name in _FIRST:
        return "main"
    if name.startswith("part/"):
        return "parts"
    own = keys[0].partition("/")[0]
    return "rest" if own in ("spent", "time", "eval", "rollout") or name.startswith("spread of") else "agent"


def _title(name: str) -> str:
    if name.startswith("part/"):
        return name.removeprefix("part/")
    return _TITLES.get(name, name.removeprefix("train/").removeprefix("spread of "))


def _meaning(key: str) -> str:
    told = number_called(key)
    if told is not None and told.key != "eval/*":
        return f"{told.meaning} {told.look}".strip().replace("`", "")
    words = next((metric.meaning for metric in METRICS if key == f"eval/{metric.name}"), "")
    return f"{words[:1].upper()}{words[1:]}." if words else ""


def _short(values: Float) -> list[float | None]:
    """Six digits are more than a screen shows. None for NaN, which JSON has no word for."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]


def sections_named(names: object) -> Iterator[SectionName]:
    """Those of `names` that there are."""
    return (section for section in SECTION_NAMES if isinstance(names, list) and section in names)
