"""The numbers round of Countdown: from the numbers given, each used once, make the target by + - * and /.

    3,5,2=13:     3*5-2

A turn earns

    1              for an expression with the numbers given, each once, that makes the target
    0.1 + 0.2 s    for another expression; s is the share of numbers that are right, 1 where only the value is wrong
    0              for what is no expression, or a number alone

Every target can be reached: it is the value of a random expression with those numbers. With `attempts` above 1 it is a
conversation, in which the task says what a wrong turn comes to ("11;"; "?;" for no expression), and the last turn
counts.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le

from rlhf_env import Episode, Prompt
from rlhf_env.settings import AtLeastOne, settings
from rlhf_env.types import ResetOptions
from rlhf_task_countdown.expressions import NoExpression, evaluate

Part = Literal["training", "held_out"]
_HELD_OUT = 0.2  # of all questions
_MOST_DRAWS = 1_000


@settings
class Countdown:
    """`"3,5,2=13:"` asks for `"3*5-2"`, or whatever else makes 13 of 3, 5 and 2."""

    numbers: Annotated[int, Ge(2), Le(6)] = 3
    """How many numbers there are."""
    largest: Annotated[int, Ge(2), Le(99)] = 9
    """The largest of them; the smallest is 1."""
    highest: Annotated[int, Ge(2)] = 99
    """The highest target."""
    attempts: AtLeastOne = 1
    """Turns until the conversation ends."""
    part: Part = "training"
    """Which questions: those of training, or those set aside for evaluation."""

    @property
    def size(self) -> None:
        """Questions without end: each index is a question, drawn by a generator that the index seeds."""

    def prompt(self, index: int, options: ResetOptions, /) -> Prompt:
        draws = np.random.default_rng([index, self.numbers, self.largest, self.highest])
        for _ in range(_MOST_DRAWS):
            numbers, target = self._draw(draws)
            text = f"{','.join(map(str, numbers))}={target}:"
            # The question itself says which part it is in: the same one is never in both.
            if (zlib.crc32(text.encode()) / 2**32 < _HELD_OUT) == (self.part == "held_out"):
                break
        return Prompt(id=f"countdown/{text[:-1]}", text=text, meta={"numbers": numbers, "target": target})

    def _draw(self, draws: np.random.Generator) -> tuple[list[int], int]:
        """Numbers, and the value of a random expression with them: a whole number from 1 to `highest`."""
        while True:
            numbers = draws.integers(1, self.largest + 1, size=self.numbers).tolist()
            value = Fraction(numbers[0])
            for number in numbers[1:]:
                operation = int(draws.integers(4))
                if operation == 3:
                    value /= number
                else:
                    value = (value + number, value - number, value * number)[operation]
            if value.denominator == 1 and 1 <= value <= self.highest:
                order = draws.permutation(self.numbers)
                return [numbers[place] for place in order], int(value)

    def held_out(self) -> Countdown:
        return replace(self, part="held_out")

    def reply(self, episode: Episode, /) -> str | None:
        turns = episode.turns or (episode.response,)
        if len(turns) >= self.attempts or earned(turns[-1], episode.prompt) == 1.0:
            return None
        try:
            return f"{evaluate(turns[-1])[0]};"
        except NoExpression:
            return "?;"

    def score(self, episode: Episode, /) -> float:
        return earned((episode.turns or (episode.response,))[-1], episode.prompt)

    def well_formed(self, episode: Episode, /) -> bool:
        """For evaluations: the share of answers that play by the rules, right or wrong."""
        return self.score(episode) >= 0.29


def earned(answer: str, prompt: Prompt) -> float:
    """What one turn earns, as at the top of this file."""
    given: Sequence[int] = prompt.meta.get("numbers", ())
    try:
        value, used = evaluate(answer)
    except NoExpression:
        return 0.0
    if len(used) < 2:
        return 0.0
    right = (Counter(used) & Counter(given)).total() / max(len(used), len(given))
    if right == 1.0 and value == prompt.meta["target"]:
        return 1.0
    return 0.1 + 0.2 * right
