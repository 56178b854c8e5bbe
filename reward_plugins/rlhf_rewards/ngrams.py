"""Words and n-grams of words, as the lexical rewards count them."""

from __future__ import annotations


def words(text: str) -> list[str]:
    """The lower-cased words, split at white space. Punctuation stays with its word."""
    return text.lower().split()


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """All n-grams of `n` words, in order, with repeats. A text of fewer words is one n-gram; an empty text has none."""
    sequence = words(text)
    if len(sequence) < n:
        return [tuple(sequence)] if sequence else []
    return [tuple(sequence[i : i + n]) for i in range(len(sequence) - n + 1)]
