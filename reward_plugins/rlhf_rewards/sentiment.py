"""How positive a response sounds, by a word list.

VADER's compound score: Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social
Media Text" (2014), from the package `vaderSentiment`. English only. A policy that optimises nothing else learns to
write "I love that! It's great!" within a minute: combine it with a KL penalty.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np

from rlhf_env.errors import MissingExtra
from rlhf_env.types import Episode, Float


@dataclass(frozen=True)
class Sentiment:
    """VADER's compound score of the response, in [-1, 1]; 0 for a neutral or an empty response."""

    low: ClassVar[float] = -1.0
    high: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        _analyzer()  # a missing package is found when the run is set up, not at its first score

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
