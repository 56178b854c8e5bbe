"""Words and runs of words, as the lexical rewards count them."""

from __future__ import annotations


def words(text: str) -> list[str]:
    """What white space separates, lower-cased. Punctuation stays on its word; a text without spaces is one word."""
    return text.lower().split()


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """Every run of `n` words, in order, repeats included. A text of fewer (but not no) words is one run by itself."""
    sequence = words(text)
    if len(sequence) < n:
        return [tuple(sequence)] if sequence else []
    return [tuple(sequence[i : i + n]) for i in range(len(sequence) - n + 1)]
