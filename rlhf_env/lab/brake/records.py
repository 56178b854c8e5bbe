"""What a run left: the rows that its owner would have seen, and beside them what gold was.

Records of this study are files that each run writes once. Those of the over-optimisation study (`--study`) are read
from its cells, which measure gold at every evaluation too; of single texts it is not known there, so nobody can be
asked.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from rlhf_env.errors import ConfigError, DataError, RunFailed
from rlhf_env.learning.loop import Row
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.types import Float, JsonObject
from rlhf_env.whole_files import write_json

NOISE = 0.1  # standard deviations of gold: what two evaluations of one policy differ by (192 texts each)
ENOUGH = 0.9


@dataclass(frozen=True)
class RecordedRun(ABC):
    """A run that leaves a record: a job, told by its fields."""

    design: str
    seed: int

    @property
    @abstractmethod
    def title(self) -> str:
        """Its name in words."""

    @abstractmethod
    def made(self) -> JsonObject:
        """Run, and return what is kept: `way`, `rows`, and `gold` float64[E, N] of the texts of each evaluation."""

    @property
    def key(self) -> str:
        words = self.title.replace(" · ", "--").replace(": ", "-").replace(", ", "-").replace(" %", "")
        return words.replace(" ", "-")

    def result_file(self, folder: Path) -> Path:
        return folder / "records" / f"{self.key}.json"

    def leaves(self, folder: Path) -> list[Path]:
        return [self.result_file(folder)]

    def reads(self, _folder: Path) -> list[str | Path]:
        return []

    def failed(self, _folder: Path, why: str) -> None:
        raise RunFailed(f"{self.title}: {why}")

    def work(self, folder: Path, _on_update: object) -> None:
        self.result_file(folder).parent.mkdir(parents=True, exist_ok=True)
        write_json(self.result_file(folder), {**asdict(self), **self.made()})


@dataclass(frozen=True, eq=False)
class SavedRun:
    """What one run left. `rows` are what its owner would have seen."""

    name: str
    group: str
    """Its design and way: what the bar is told of as well."""
    seed: int
    rows: Sequence[Row]
    texts: Float | None
    """float64[E, N]: gold of the texts of each evaluation, in standard deviations of the reference's; None: unknown."""
    gold: Float
    """float64[E]: mean gold at each evaluation."""

    @cached_property
    def evaluated(self) -> list[int]:
        """The places in `rows` of the evaluations."""
        return [place for place, row in enumerate(self.rows) if "eval/objective" in row]

    @property
    def peak(self) -> float:
        """The highest gold of the run, above where it began."""
        return float(self.gold.max() - self.gold[0])

    def kept(self, evaluation: int) -> float:
        """Which share of the peak this evaluation has: 1 at the peak, 0 where the run began.

        What lies within `NOISE` of the peak is at the peak.
        """
        gain = float(self.gold[evaluation] - self.gold[0])
        return 1.0 - max(0.0, self.peak - gain - NOISE) / max(self.peak, NOISE)

    @property
    def needs_brake(self) -> bool:
        """Whether its end has less than 90 % of its peak."""
        return self.kept(len(self.gold) - 1) < ENOUGH


def read_records(files: Sequence[Path]) -> list[SavedRun]:
    """In the order of the files. Raises DataError."""
    found = []
    for file in files:
        try:
            plain = json.loads(file.read_text(encoding="utf-8"))
            texts = np.asarray(plain["gold"], dtype=np.float64)
            name, group = file.stem, f"{plain['design']} · {plain['way']}"
            found.append(SavedRun(name, group, int(plain["seed"]), plain["rows"], texts, texts.mean(axis=1)))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file} is no record of a run: {error}; remove it, and it is made again") from error
    return found


def read_study(folder: Path) -> list[SavedRun]:
    """The runs of an over-optimisation study that were finished. Raises ConfigError where there are none."""
    found = []
    for file in sorted((folder / "cells").glob("*/*/seed-*/metrics.jsonl")):
        proxy, agent, seed = (part.name for part in (file.parents[2], file.parents[1], file.parent))
        rows = read_metrics(file.parent)
        measured = [row for row in rows if "eval/gold" in row]
        if len(measured) < 3:
            continue
        gold = np.array([float(row["eval/gold"]) for row in measured]) / float(measured[0]["eval/gold_std"])
        seen = [{key: value for key, value in row.items() if not key.startswith("eval/gold")} for row in rows]
        found.append(SavedRun(f"{proxy}--{agent}--{seed}", f"{proxy} · {agent}", int(seed[5:]), seen, None, gold))
    if not found:
        raise ConfigError(f"{folder} holds no finished runs of an over-optimisation study: name a folder of one")
    return found
