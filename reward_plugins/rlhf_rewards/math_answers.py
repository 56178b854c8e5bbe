"""Whether the last mathematical expression of a response is the right answer, by math-verify: LaTeX, or plain text.

    [rewards.math]          # of a task with a column `answer`: "1/2", "$\\frac{1}{2}$", "x = 3"

math-verify parses both with sympy, which may take for ever on what a model writes. So it works in a process of its own,
and a response that takes longer than `seconds` is wrong: nothing was verified.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import field
from decimal import Decimal, InvalidOperation
from functools import cached_property
from typing import Any

import numpy as np

from rlhf_env.envs.isolation import IsolatedCalls, Limits, RewardFailed, isolated_calls
from rlhf_env.errors import MissingExtra, Problem, RewardError
from rlhf_env.settings import AtLeastOne, Name, Positive, settings
from rlhf_env.types import Episode, Float, TrainerState


@settings(frozen=False, eq=False)
class MathAnswers:
    """1 where the response's answer equals the right one, as mathematics, else 0."""

    column: Name = "answer"
    """The task's column with the right answer."""
    seconds: Positive = 5.0
    """For one response."""
    memory_mb: AtLeastOne = 4_096
    """Mebibytes of address space that verifying may take."""
    _late: list[float] = field(default_factory=list, init=False, repr=False)

    low, high = 0.0, 1.0  # what no score leaves
    connections = 1  # asked while texts are written: another process works

    def problems(self) -> Iterator[Problem]:
        if importlib.util.find_spec("math_verify") is None:
            raise MissingExtra("math-verify (needed by the reward 'math')", "math")
        yield from ()

    @cached_property
    def _verifier(self) -> IsolatedCalls:
        return isolated_calls(Verifier, Limits(timeout=self.seconds, memory_mb=self.memory_mb))

    def hang_up(self) -> None:
        """End the call in another thread."""
        self._verifier.hang_up()

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        """float64[B]. Raises RewardError for a right answer that is missing, or none."""
        return np.array([self._is_right(it) for it in episodes], dtype=np.float64)

    def _is_right(self, episode: Episode) -> bool:
        if self.column not in episode.prompt.meta:
            has = ", ".join(sorted(map(str, episode.prompt.meta))) or "none"
            raise RewardError(
                f"column {self.column!r}: prompt {episode.prompt.id!r} has none of that name: it has {has}"
            )
        right = str(episode.prompt.meta[self.column])
        try:
            verdict = self._verifier.call((right, episode.response))
        except RewardFailed as error:  # too long, too much memory, or an exception of the parser's: not verified
            self._late.append(float(error.lost))
            return False
        self._late.append(0.0)
        if verdict == "no answer":
            raise RewardError(
                f"column {self.column!r}: {right[:60]!r}, of prompt {episode.prompt.id!r}, is no mathematics"
            )
        return bool(verdict == "right")

    def follow(self, _state: TrainerState, /) -> None: ...

    def take_logged(self) -> Mapping[str, Sequence[float]]:
        """1 for each response since the last time that took too long, 0 for the others."""
        late, self._late[:] = list(self._late), []
        return {"math/too_long": late} if late else {}


class Verifier:
    """math-verify, in the process where it works; its own limits of time need signals, and ours does not."""

    def __init__(self) -> None:
        import math_verify

        logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it says of each text that nobody limits its time
        self._math_verify: Any = math_verify
        self._known: dict[str, Any] = {}

    def call(self, asked: tuple[str, str]) -> str:
        """ "right", "wrong", or "no answer" where the right one is none."""
        right, response = asked
        if right not in self._known:
            if len(self._known) > 10_000:
                self._known.clear()
            self._known[right] = next(filter(None, map(self._parsed, _readings(right))), [])
        if not self._known[right]:
            return "no answer"
        said = self._parsed(response)
        right_answer = self._known[right]
        more = _places_below(right_answer)
        same = self._math_verify.verify(
            right_answer, said, float_rounding=6 + more, numeric_precision=15 + more, timeout_seconds=None
        )
        return "right" if same else "wrong"

    def _parsed(self, text: str) -> Any:
        return self._math_verify.parse(text, parsing_timeout=None)


def _readings(answer: str) -> tuple[str, str]:
    """A right answer as math-verify may read it, the better way first.

    Outside of dollars, math-verify reads text and takes one number of it: 2 of "2\\pi", 3 of "3\\sqrt{2}"
    (findings/trl_accuracy_reward_takes_a_number_for_the_solution.sh). Words and dollars say that it is text.
    """
    with suppress(InvalidOperation):  # where it is a number: of 1e-07, LaTeX's e would be Euler's
        number = Decimal(answer)
        if number.is_finite() and abs(number.adjusted()) < 400:
            answer = f"{number:f}"
    delimited = any(mark in answer for mark in ("$", r"\(", r"\[", r"\boxed", "#"))
    outside = re.sub(r"\{[^{}]*\}", "", answer)  # the words in \text{ or } are LaTeX
    if delimited or any(word.isalpha() and len(word) > 1 for word in outside.split()):
        return answer, f"${answer}$"
    return f"${answer}$", answer


def _places_below(answers: Sequence[Any]) -> int:
    """How many decimal places more than usual tell these answers from others: 0 unless a number in them is below 0.001.

    math-verify compares decimal PLACES (6, or 15 of exact numbers), so any two smaller numbers are equal to it:
    findings/trl_accuracy_reward_pays_any_small_number.sh.
    """
    numbers = [part for it in answers for part in (it, *getattr(it, "args", ())) if _is_answer(it, part)]
    sizes = [abs(number).evalf(15) for number in numbers]
    below = [-Decimal(str(size)).adjusted() for size in sizes if size.is_finite and size > 0]
    return max([0, *(it - 3 for it in below)])


def _is_answer(it: Any, part: Any) -> bool:
    """Whether `part` is the answer itself, or one of several; the factors of a number are neither."""
    return bool(getattr(part, "is_number", False)) and (part is it or not getattr(it, "is_number", False))
