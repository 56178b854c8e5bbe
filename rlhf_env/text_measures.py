"""Words and runs of words (n-grams) of texts, and what is measured by them: distinctness, repetition, self-BLEU.

Runs of tokens or words are also hashed into a fixed number of bins, the same in every process.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from rlhf_env.types import Episode, Int

NgramUnit = Literal["tokens", "words"]


def words(text: str) -> list[str]:
    """What white space separates, lower-cased. Punctuation stays on its word; a text without spaces is one word."""
    return text.lower().split()


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Every run of `n` words, in order, repeats included; none of fewer words."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def hashed_ngrams(episode: Episode, shortest: int, longest: int, bins: int, unit: NgramUnit) -> Int:
    """int64[N]: the bin, 0 to `bins` - 1, of every run of `shortest` to `longest` units of a response.

    Repeats are in it as often as they are there. Units are the tokens that the agent wrote, its end token too, or the
    lower-cased words of the response. A response of fewer than `shortest` units is one run.
    """
    units = words(episode.response) if unit == "words" else [str(i) for i in episode.response_ids[episode.actions]]
    runs = [run for n in range(shortest, longest + 1) for run in ngrams(units, n)] or [tuple(units)]
    # Python's own hash of a string is another one in each process.
    keys = ("\x1f".join(run).encode("utf-8", "surrogatepass") for run in runs)
    return np.array([int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) % bins for key in keys], np.int64)


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Number of distinct n-grams over number of n-grams, in all texts together (Li et al. 2016, arXiv 1510.03055)."""
    grams = [gram for text in texts for gram in ngrams(words(text), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(text: str, n: int) -> float:
    """1 - distinct n-grams over n-grams of the text ("seq-rep-n": Welleck et al. 2020, arXiv 1908.04319).

    It is 0 if no n-gram is repeated, and for a text of fewer than `n` words.
    """
    grams = ngrams(words(text), n)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(texts: Sequence[str], longest: int = 4) -> float:
    """The mean BLEU of each text against all others: 1 if all texts are equal (Zhu et al. 2018, arXiv 1802.01886).

    BLEU as in Papineni et al. 2002: the geometric mean of the clipped n-gram precisions for 1 to `longest` words (up to
    its own length for a shorter text), times the brevity penalty against the nearest length. There is no smoothing: a
    text that shares no n-gram of `longest` words with another text scores 0. Texts without words are left out. With
    fewer than two texts left, the result is 0.
    """
    tokenized = [tokens for tokens in map(words, texts) if tokens]
    if len(tokenized) < 2:
        return 0.0
    counts = [[Counter(ngrams(tokens, n)) for tokens in tokenized] for n in range(1, longest + 1)]
    most = [_two_largest(of_n) for of_n in counts]
    lengths = Counter(map(len, tokenized))
    total = 0.0
    for i, tokens in enumerate(tokenized):
        logs = []
        for of_n, largest in zip(counts[: len(tokens)], most, strict=False):
            clipped = sum(
                min(count, largest[gram][0] if largest[gram][2] != i else largest[gram][1])
                for gram, count in of_n[i].items()
            )
            logs.append(math.log(clipped / of_n[i].total()) if clipped else -math.inf)
        others = [length for length, count in lengths.items() if count > (length == len(tokens))]
        nearest = min(others, key=lambda length: (abs(length - len(tokens)), length))
        total += math.exp(min(0.0, 1.0 - nearest / len(tokens)) + sum(logs) / len(logs))
    return total / len(tokenized)


def _two_largest(counts: Sequence[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], tuple[int, int, int]]:
    """For each n-gram: its largest count in one text, the largest in another text, and the number of the first text."""
    largest: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for i, of_text in enumerate(counts):
        for gram, count in of_text.items():
            first, second, owner = largest.get(gram, (0, 0, -1))
            largest[gram] = (count, first, i) if count > first else (first, max(second, count), owner)
    return largest


def repeated_share(words: Sequence[str], longest: int = 2) -> float:
    """The share of runs of 1 to `longest` words that are repeats of an earlier one, in [0, 1); 0 without words."""
    runs = [run for n in range(1, longest + 1) for run in ngrams(words, n)]
    return 1.0 - len(set(runs)) / len(runs) if runs else 0.0
