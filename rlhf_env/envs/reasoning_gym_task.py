"""A bridge to reasoning-gym (Apache-2.0): a hundred generators of problems, each with its own scoring of answers.

Some of its data sets draw from Python sets, whose order changes with the hash seed of the process. Their problems are
made in a child process with a fixed hash seed, so that an index means the same question in every process; so are those
of a data set with settings of its own, which nobody has compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import re
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from reasoning_gym.composite import DatasetSpec
from reasoning_gym.factory import CURRICULA, DATASETS, create_curriculum, create_dataset
from reasoning_gym.utils import extract_answer

from rlhf_env.envs.global_generators import lent_generators
from rlhf_env.envs.splits import Part, unit_interval
from rlhf_env.errors import ConfigError, DataError, Problem, RewardError, did_you_mean
from rlhf_env.settings import fault, settings
from rlhf_env.types import Episode, JsonObject, JsonView, Prompt, ResetOptions

_NOT_A_NUMBER = re.compile(r"\bnan\b", re.IGNORECASE)
_SET_ASIDE = 0.25
# Data sets of reasoning-gym 0.1.25 whose questions or answers change with the hash seed (`make same-questions` compares
# all data sets, and their levels, in processes with different hash seeds).
UNSTEADY = frozenset(
    {"isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder"}
) | {
    "intermediate_integration"  # from level 3 on
}
# Texts without meaning, to see whether a data set pays for anything.
_JUNK = ("x", "No idea. " * 50, ".")
_CRUMB = 0.01  # what a dozen of the data sets pay for any text that is not empty
_TRIES = 200  # attempts to find a problem of the right part: some generators have very few different problems


@settings(kw_only=False)
class ReasoningGym:
    """Problems of one reasoning-gym data set; the score is the data set's own `score_answer`, in [0, 1].

    The answer is the content of the last `<answer>...</answer>`, or else the whole response without surrounding space.
    An empty response is not an answer; `<answer></answer>` is the empty answer, which a few problems of `ab` ask for.
    Two data sets are scored here and not by their own function, which gives 1.0 to wrong answers:
    `game_of_life_halting` to any text, `coin_flip` to "0" if the probability begins with 0. A data set that pays a text
    without meaning something is warned of when it first scores (0.01 is the
    library's way); one that pays it in full is refused.

    The prompt is the bare question; a model's system prompt may say how to answer. About a quarter of all questions, by
    a hash of their text, is held out for evaluation.

    `prompt.meta` holds `answer` (the oracle's; None for problems with many), `level`, and the whole problem as `entry`.
    """

    dataset: str
    """A name of reasoning-gym's, "leg_counting"."""
    settings: JsonView = field(default_factory=dict)
    """Settings of the data set's own configuration, {"min_animals": 2}."""
    level: int | None = None
    """Difficulty from 0 up, in the steps of the data set's curriculum (its last one, where it has no more); the reset
    option `level` replaces it. None is the data set's defaults, and so are those without curriculum."""
    seed: int = 0
    """Another seed gives other problems."""
    part: Part = "training"
    """Which prompts: those of training, or those set aside for evaluation."""

    def problems(self) -> Iterator[Problem]:
        if self.dataset not in DATASETS:
            yield fault(
                "dataset", f"{self.dataset!r} is not one of reasoning_gym's{did_you_mean(self.dataset, DATASETS)}"
            )
        else:
            _ = self._problems(self.level)

    @property
    def option_names(self) -> tuple[str, ...]:
        return ("level",) if self.dataset in CURRICULA else ()

    @property
    def size(self) -> None:
        return None

    def prompt(self, index: int, options: ResetOptions, /) -> Prompt:
        level = options.get("level", self.level)
        problems = self._problems(level)
        stream = np.random.default_rng(index)
        for _ in range(_TRIES):
            number = int(stream.integers(problems.size))
            entry = problems[number]
            question = str(entry["question"])
            if (unit_interval(question) < _SET_ASIDE) == (self.part == "held_out"):
                meta = {"answer": entry["answer"], "level": level, "entry": entry}
                # Other settings, or another version of the library, ask other questions under this number: their
                # digests differ.
                digest = hashlib.sha256(question.encode("utf-8", "surrogatepass")).hexdigest()[:8]
                return Prompt(id=f"{self.dataset}/{self.seed}/{level}/{number}/{digest}", text=question, meta=meta)
        raise DataError(
            f"reasoning_gym {self.dataset!r} (level {level}): none of {_TRIES} problems is for "
            f"{'evaluation' if self.part == 'held_out' else 'training'}: it has too few different problems"
        )

    def held_out(self) -> ReasoningGym:
        """Questions that training never asks."""
        return replace(self, part="held_out")

    def score(self, episode: Episode, /) -> float:
        entry, level = episode.prompt.meta["entry"], episode.prompt.meta["level"]
        tagged = extract_answer(episode.response)
        answer = episode.response.strip() if tagged is None else tagged
        if tagged is None and not answer:
            return 0.0
        self._look_for_free_points(entry, level)
        return self._scored(answer, entry, level)

    def _scored(self, answer: str, entry: JsonObject, level: object) -> float:
        dataset = str(entry.get("metadata", {}).get("source_dataset", self.dataset))  # of a composite, the part
        if dataset in _SCORED_HERE:
            return _SCORED_HERE[dataset](answer, str(entry["answer"]))
        if _NOT_A_NUMBER.search(answer) and not _NOT_A_NUMBER.search(str(entry["answer"])):
            return 0.0  # some scorers compare numbers in a way that gives NaN the best score
        try:
            with _quietly(0):
                score = float(self._problems(level).dataset.score_answer(answer, entry))
        except Exception:  # the parsers of some data sets raise on text that is not an answer
            return 0.0
        return score if np.isfinite(score) else 0.0

    def _look_for_free_points(self, entry: JsonObject, level: object) -> None:
        """Once per task: what is a text without meaning paid?

        Raises RewardError where that is as much as for a right answer.
        """
        if "_looked" in self.__dict__:
            return
        paid = [self._scored(text, entry, level) for text in _JUNK if text != str(entry["answer"])]
        if min(paid) >= 1.0:
            raise RewardError(
                f"reasoning_gym {self.dataset!r} pays {min(paid):g} to any text, as {_JUNK[0]!r}: there is nothing to "
                "learn from its score: use another data set, or a reward of your own"
            )
        self.__dict__["_looked"] = True
        if max(paid) > _CRUMB:
            warnings.warn(
                f"reasoning_gym {self.dataset!r} pays {max(paid):g} to a text without meaning, as "
                f"{_JUNK[paid.index(max(paid))][:20]!r}: its scores do not begin at 0",
                RuntimeWarning,
                stacklevel=3,
            )

    @cached_property
    def _levels(self) -> dict[int | None, _Problems]:
        return {}

    def _problems(self, level: object) -> _Problems:
        """The generator of a level, made once. Raises ConfigError for settings that reasoning-gym refuses."""
        if level is not None and (not isinstance(level, (int, np.integer)) or isinstance(level, bool) or level < 0):
            raise ConfigError(fault("level", f"must be a whole number from 0 up, got {level!r}"))
        if level is not None and self.dataset not in CURRICULA:
            raise ConfigError(
                Problem(f"reasoning_gym {self.dataset!r} has no curriculum: leave its level out", ("level",))
            )
        level = None if level is None else int(level)
        if level not in self._levels:
            try:
                with _quietly(self.seed):
                    self._levels[level] = _Problems(self._generator(level), self._elsewhere(level))
            except Exception as error:  # each configuration has checks of its own
                at = "" if level is None else f" at level {level}"
                raise ConfigError(f"reasoning_gym {self.dataset!r}{at}: {type(error).__name__}: {error}") from error
        return self._levels[level]

    def _generator(self, level: int | None) -> Any:
        settings = {**self.settings, "seed": self.seed}
        if self.dataset == "composite":  # its parts come as plain data from the settings file
            settings["datasets"] = [
                DatasetSpec(**{"weight": 1.0, "config": {}, **dict(part)}) for part in settings.get("datasets", ())
            ]
        if level is None:
            return create_dataset(self.dataset, **settings)
        curriculum = create_curriculum(self.dataset)
        for name, attribute in curriculum.attributes.items():
            curriculum.set_attr_level(name, min(int(level), len(attribute.levels) - 1))
        return DATASETS[self.dataset][0](curriculum.generate_configuration(settings))

    def _elsewhere(self, level: int | None) -> _SteadyProcess | None:
        """The child process that makes the problems, if they may depend on the hash seed of the process; else None."""
        parts = [dict(part) for part in self.settings.get("datasets", ())] if self.dataset == "composite" else []
        names = [self.dataset, *(str(part.get("name")) for part in parts)]
        compared = all(not part.get("config") for part in parts) if parts else not self.settings
        if sys.flags.hash_randomization and (not compared or UNSTEADY.intersection(names)):
            return _SteadyProcess(self.dataset, dict(self.settings), self.seed, level)
        return None

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.dataset, self.settings, self.level, self.seed, self.part)  # generators are made anew


class _Problems:
    """A data set and its number of problems. Nearly all data sets make a problem from any number on the spot."""

    _MANY = 2**31

    def __init__(self, dataset: Any, elsewhere: _SteadyProcess | None = None) -> None:
        self.dataset = dataset
        self._elsewhere = elsewhere
        try:
            self.size = self._MANY
            self[self._MANY - 1]
        except IndexError:
            self.size = len(dataset)

    def __getitem__(self, number: int) -> JsonObject:
        if self._elsewhere is not None:
            return self._elsewhere[number]
        with _quietly(number):
            entry: JsonObject = self.dataset[number]
        return entry


class _SteadyProcess:
    """Problems made in a child process whose hash seed is 0. The child starts at the first question and ends with us.

    Both sides are this program, so they exchange pickles. After a fork, the new process starts a child of its own: two
    processes on one pipe would read each other's problems.
    """

    def __init__(self, *problems: Any) -> None:
        self._problems = problems  # data set, settings, seed, level
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def __getitem__(self, number: int) -> JsonObject:
        with self._lock:
            child = self._running()
            assert child.stdin is not None and child.stdout is not None
            try:
                pickle.dump(number, child.stdin)
                child.stdin.flush()
                answer = pickle.load(child.stdout)
            except (OSError, EOFError) as error:
                raise DataError(
                    f"reasoning_gym {self._problems[0]!r}: the process that makes its problems is gone (status "
                    f"{child.poll()}): start again"
                ) from error
        if isinstance(answer, Exception):
            raise answer
        entry: JsonObject = answer
        return entry

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._owner != os.getpid():
            self._child = subprocess.Popen(
                [sys.executable, "-c", "from rlhf_env.envs.reasoning_gym_task import serve_problems; serve_problems()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )
            self._owner = os.getpid()
            assert self._child.stdin is not None
            pickle.dump(self._problems, self._child.stdin)
            weakref.finalize(self, _end, self._child, self._owner)
        return self._child


def _end(child: subprocess.Popen[bytes], owner: int) -> None:
    """Close the pipe; the child then ends by itself."""
    if owner == os.getpid() and child.stdin is not None and child.stdout is not None:
        child.stdin.close()
        child.stdout.close()
        child.wait()


def serve_problems() -> None:
    """The child's side: problems by number, until the pipe closes. What the library prints goes to stderr."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    dataset, settings, seed, level = pickle.load(requests)
    problems = ReasoningGym(dataset, settings, None, seed)._problems(level)
    while True:
        try:
            number = pickle.load(requests)
        except (EOFError, KeyboardInterrupt):
            return
        try:
            answer: Any = problems[number]
        except Exception as error:
            answer = error
        pickle.dump(answer, answers)
        answers.flush()


def _halting(answer: str, right: str) -> float:
    """1 if the answer is the right one of "true" and "false". The library's function reads every text as true."""
    return float(answer.strip().lower() == right.lower())


def _probability(answer: str, right: str) -> float:
    """1 if the answer, a fraction or a decimal, is within 1e-4 of the probability, and within a hundredth of it.

    The library compares digits from the left, up to the end of the shorter text, so that "0" earns 1.0 whenever the
    probability begins with 0.
    """
    try:
        expected = Fraction(right)
        off = abs(Fraction(answer.replace(",", "")) - expected)
        return float(off <= min(Fraction(1, 10_000), expected / 100))  # of 3e-5, 0 is no estimate
    except (ValueError, ZeroDivisionError):
        return 0.0


_SCORED_HERE: dict[str, Callable[[str, str], float]] = {"coin_flip": _probability, "game_of_life_halting": _halting}


@contextmanager
def _quietly(seed: int) -> Iterator[None]:
    """Without warnings (some data sets divide by zero on purpose) and prints, with seeded global random generators."""
    with warnings.catch_warnings(), lent_generators(seed), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
