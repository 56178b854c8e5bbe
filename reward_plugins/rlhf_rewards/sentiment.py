"""How positive a response sounds, by a word list.

VADER's compound score (Hutto and Gilbert 2014, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social
Media Text"), from the package `vaderSentiment`. English only. A policy that optimises nothing else learns to
write "I love that! It's great!" within a minute: combine it with a KL penalty.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np

from rlhf_env.errors import MissingExtra, Problem
from rlhf_env.settings import settings
from rlhf_env.types import Episode, Float


@settings(kw_only=False)
class Sentiment:
    """VADER's compound score of the response, in [-1, 1]; 0 for a neutral or an empty response."""

    low: ClassVar[float] = -1.0
    high: ClassVar[float] = 1.0

    def problems(self) -> Iterator[Problem]:
        _analyzer()  # a missing package is found when the run is set up, not at its first score
        return iter(())

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        """float64[B]."""
        score = _analyzer().polarity_scores
        return np.array([score(episode.response)["compound"] for episode in episodes], dtype=np.float64)


@cache
def _analyzer() -> Any:
    try:
        module = importlib.import_module("vaderSentiment.vaderSentiment")
    except ImportError as missing:
        raise MissingExtra("vaderSentiment (the word list of the sentiment reward)", "demo") from missing
    return module.SentimentIntensityAnalyzer()
