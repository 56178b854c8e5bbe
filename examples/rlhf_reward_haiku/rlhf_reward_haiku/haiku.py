"""Is it a haiku? Three lines of 5, 7 and 5 syllables.

    score = 1 - (sum of |syllables of line i - wanted of line i|) / (5 + 7 + 5), at least 0

A line that is missing has no syllables, and each syllable of a fourth line counts as one too many.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
from annotated_types import MinLen

from rlhf_env import Episode
from rlhf_env.settings import AtLeastOne, settings


@settings(kw_only=False)
class Haiku:
    """The score above, in [0, 1]."""

    form: Annotated[Sequence[AtLeastOne], MinLen(1)] = (5, 7, 5)
    """The number of syllables wanted in each line."""

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    def __call__(self, episodes: Sequence[Episode], /) -> npt.NDArray[np.float64]:
        return np.array([self._score(episode.response) for episode in episodes], dtype=np.float64)

    def _score(self, poem: str) -> float:
        counts = [syllables(line) for line in poem.splitlines() if line.strip()]
        off = sum(abs(count - wanted) for count, wanted in zip_longest(counts, self.form, fillvalue=0))
        return max(0.0, 1.0 - off / sum(self.form))


def syllables(line: str) -> int:
    """Syllables of an English line, by a rule of thumb.

    A word has as many as it has groups of neighbouring vowels, of which a silent final "e" ("home", but not "table" or
    "be") is none, and at least one. It is right for most short words and wrong for some ("quiet", "something").
    """
    return sum(_syllables_of_word(word) for word in re.findall(r"[a-z]+", line.lower().replace("'", "")))


def _syllables_of_word(word: str) -> int:
    groups = len(re.findall(r"[aeiouy]+", word))
    silent_e = re.search(r"[^aeiouy]e$", word) and not re.search(r"[^aeiouy]le$", word)
    return max(1, groups - bool(silent_e))
