"""What a figure is drawn of, and what a kind of figure is: an entry of the table of charts."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_env.lab.benchmark.comparison import Conclusions
from rlhf_env.lab.benchmark.results import Results
from rlhf_env.lab.drawing import AgentStyle, Picture
from rlhf_env.shown_text import for_page


@dataclass(frozen=True)
class Subject:
    """What a chart is drawn of: the results of a `task`, or of all of them together (empty)."""

    results: Results
    conclusions: Conclusions
    task: str
    styles: Mapping[str, AgentStyle]
    section: str

    def picture(self, name: str, words: str, paint: Callable[[Any], None], *, width: int = 430, height: int) -> Picture:
        """`words` are for readers who cannot see it; `paint` draws on a figure of `width` x `height` points."""
        slug = slugs(self.results.tasks)[self.task] if self.task else "all-tasks"
        return Picture(f"{slug}--{name}", self.section, self.task, for_page(words), width, height, paint)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A kind of figure: an entry of `CHARTS` is all that one takes. It has a section of the page."""

    name: str
    """The id of the section."""
    title: str
    """The heading of the section."""
    link: str = ""
    """Its name in the page's list of sections; empty: the title."""
    caption: str = ""
    draw: Callable[[Subject], Iterator[Picture]]
    """Its pictures, none where the results do not have the data."""
    all_tasks: bool = False
    """Drawn once for all tasks together, instead of once for each."""
    within: bool = False
    """Its pictures stand in a section that the page has anyway, below a table of the same name."""
    half: bool = False
    """Half as wide as the page: two such sections in a row stand side by side."""
    small: bool = False
    """Many small pictures in a row."""


def slugs(names: Sequence[str]) -> dict[str, str]:
    """A distinct, harmless file name for each name."""
    slug_of: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")[:60] or "unnamed"
        numbered = (plain if number == 0 else f"{plain}-{number}" for number in itertools.count())
        slug_of[name] = next(slug for slug in numbered if slug not in slug_of.values())
    return slug_of
