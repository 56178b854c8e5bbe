"""A bridge to reasoning-gym (Apache-2.0): a hundred generators of problems, each scoring answers in its own way."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from reasoning_gym.composite import DatasetSpec
from reasoning_gym.factory import CURRICULA, DATASETS, create_curriculum, create_dataset
from reasoning_gym.utils import extract_answer

from rlhf_env.envs.global_generators import lent_generators
from rlhf_env.envs.splits import Part, unit_interval
from rlhf_env.errors import ConfigError, DataError, did_you_mean
from rlhf_env.types import Episode, Options, Prompt

_NOT_A_NUMBER = re.compile(r"\bnan\b", re.IGNORECASE)
_SET_ASIDE = 0.25
_TRIES = 200  # problems looked at for one of the right part: a generator may know very few different ones


@dataclass(frozen=True)
class ReasoningGym:
    """Problems of one reasoning-gym data set; the score is its own `score_answer` of the answer, in [0, 1].

    The answer is what stands in the last `<answer>...</answer>`, or else the whole response without surrounding space.
    The prompt is the question as it is: how to answer can be said in a model's system prompt. About a quarter of all
    questions, by a hash of their text, is set aside for evaluation.

    `prompt.meta` holds `answer` (the oracle's; None for problems with many), `level` and `entry`, the whole problem.

    Args:
        dataset: a name of reasoning-gym's, "leg_counting".
        settings: of the data set's own configuration, {"min_animals": 2}.
        level: difficulty from 0 up, in the steps of the data set's curriculum (its last one, where it has no more);
            the reset option `level` replaces it. None is the data set's defaults, and so are those without curriculum.
        seed: another one, other problems.
    """

    dataset: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    level: int | None = None
    seed: int = 0
    part: Part = "training"

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            raise ConfigError(f"reasoning_gym has no dataset {self.dataset!r}{did_you_mean(self.dataset, DATASETS)}")
        _ = self._problems(self.level)

    @property
    def option_names(self) -> tuple[str, ...]:
        return ("level",) if self.dataset in CURRICULA else ()

    @property
    def size(self) -> None:
        return None

    def prompt(self, index: int, options: Options, /) -> Prompt:
        level = options.get("level", self.level)
        problems = self._problems(level)
        stream = np.random.default_rng(index)
        for _ in range(_TRIES):
            number = int(stream.integers(problems.size))
            entry = problems[number]
            question = str(entry["question"])
            if (unit_interval(question) < _SET_ASIDE) == (self.part == "held_out"):
                meta = {"answer": entry["answer"], "level": level, "entry": entry}
                return Prompt(id=f"{self.dataset}/{self.seed}/{level}/{number}", text=question, meta=meta)
        raise DataError(
            f"reasoning_gym {self.dataset!r} (level {level}): none of {_TRIES} problems is for "
            f"{'evaluation' if self.part == 'held_out' else 'training'}: it has too few different ones"
        )

    def held_out(self) -> ReasoningGym:
        """Questions that training never asks."""
        return replace(self, part="held_out")

    def score(self, episode: Episode, /) -> float:
        entry, level = episode.prompt.meta["entry"], episode.prompt.meta["level"]
        answer = extract_answer(episode.response) or episode.response.strip()
        if _NOT_A_NUMBER.search(answer) and not _NOT_A_NUMBER.search(str(entry["answer"])):
            return 0.0  # some scorers compare numbers in a way that takes this one for the best of all
        try:
            with _quietly(0):
                score = float(self._problems(level).dataset.score_answer(answer, entry))
        except Exception:  # the parsers of some data sets raise at text that is no answer at all
            return 0.0
        return score if np.isfinite(score) else 0.0

    @cached_property
    def _levels(self) -> dict[int | None, _Problems]:
        return {}

    def _problems(self, level: Any) -> _Problems:
        """The generator at a level, made once. Raises ConfigError for settings that it refuses."""
        if level is not None and (not isinstance(level, (int, np.integer)) or isinstance(level, bool) or level < 0):
            raise ConfigError(f"level: a whole number from 0 up, got {level!r}")
        if level is not None and self.dataset not in CURRICULA:
            raise ConfigError(f"reasoning_gym {self.dataset!r} has no curriculum: leave its level out")
        level = None if level is None else int(level)
        if level not in self._levels:
            try:
                with _quietly(self.seed):
                    self._levels[level] = _Problems(self._generator(level))
            except Exception as error:  # each configuration has checks of its own
                at = "" if level is None else f" at level {level}"
                raise ConfigError(f"reasoning_gym {self.dataset!r}{at}: {type(error).__name__}: {error}") from error
        return self._levels[level]

    def _generator(self, level: int | None) -> Any:
        settings = {**self.settings, "seed": self.seed}
        if self.dataset == "composite":  # from plain data, as a file of settings holds it
            settings["datasets"] = [
                DatasetSpec(**{"weight": 1.0, "config": {}, **dict(part)}) for part in settings.get("datasets", ())
            ]
        if level is None:
            return create_dataset(self.dataset, **settings)
        curriculum = create_curriculum(self.dataset)
        for name, attribute in curriculum.attributes.items():
            curriculum.set_attr_level(name, min(int(level), len(attribute.levels) - 1))
        return DATASETS[self.dataset][0](curriculum.generate_configuration(settings))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.dataset, self.settings, self.level, self.seed, self.part)  # generators are made anew


class _Problems:
    """A data set, and how many problems can be asked of it: nearly all make them from any number on the spot."""

    _MANY = 2**31

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        try:
            self.size = self._MANY
            self[self._MANY - 1]
        except IndexError:
            self.size = len(dataset)

    def __getitem__(self, number: int) -> dict[str, Any]:
        with _quietly(number):
            entry: dict[str, Any] = self.dataset[number]
        return entry


@contextmanager
def _quietly(seed: int) -> Iterator[None]:
    """For generators that divide by zero and look at the result, and for those that draw from global generators."""
    with warnings.catch_warnings(), lent_generators(seed):
        warnings.simplefilter("ignore")
        yield
