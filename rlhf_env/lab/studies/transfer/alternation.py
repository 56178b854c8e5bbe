"""A reward that any model can write for and a rule can check: vowels and consonants in turn, as in "banana"."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

_VOWELS = frozenset("aeiou")
_LEAST = 3  # neighbours: a text of fewer earns less


def alternation(completions: Sequence[str], **columns: object) -> list[float]:
    """The share of neighbouring characters of which one is a vowel and one a consonant, of three at least."""
    return [_share(text.lower()) for text in completions]


def _share(text: str) -> float:
    pairs = [(a, b) for a, b in pairwise(text) if a.isalpha() and b.isalpha()]
    return sum((a in _VOWELS) != (b in _VOWELS) for a, b in pairs) / max(len(text) - 1, _LEAST)
