"""The demo's *gold* reward: upbeat, human-like small talk. Not quality.

It stands in for the person whose taste the demo learns from preferences. It measures that a reply is friendly, reads
like something a person would have typed, and takes its turn in the conversation. It cannot tell a relevant reply from
an irrelevant one, it does not know what is true, and one good sentence said to everybody scores well every time: show
distinct replies beside it.

    gold =  2.0 clip(sentiment, -0.6, 0.6)        VADER's compound score, cut where more praise is only louder praise
          + 0.5 [exactly one of prompt and reply asks]      a question is answered, a statement is asked about
          - 1.5 max(0, |mu - typical| - 0.5)      fluency, two-sided: mu is the mean log-probability of a token of the
                                                  reply under an independent language model; far below what people
                                                  write is word salad, far above is a platitude
          - 4.0 max(0, repetition - 0.1)          share of words and of word pairs that were there already
          - 2.0 copying                           share of the reply's word triples that stand in the prompt
          - 0.5 max(0, 4 - words)
          - 1.0 [the reply never ended]

The form and the constants come from a trial of what a small policy finds when it climbs each term alone: without the
cut it shouts "great great great", without the upper side of fluency it says "That's so cool!" to everybody, and with a
full point for turn-taking nine replies in ten end in a question.

Sentiment is that of Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media
Text" (2014), as published in the package `vaderSentiment`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from rlhf_env.errors import MissingExtra
from rlhf_env.types import Episode, Float, Prompt, Tokenizer

_Item = TypeVar("_Item")


class Fluency(Protocol):
    """How probable replies are under a language model that the policy was not made from."""

    def __call__(self, prompts: Sequence[str], replies: Sequence[str], /) -> Float:
        """float64[B]: mean log-probability (nats) of a token of the reply, given the prompt; 0.0 for an empty reply."""


@dataclass(frozen=True)
class Upbeat:
    """The gold reward above.

    `judge` is a transformers causal language model (a shipped one, a folder, a hub name), or any `Fluency`.
    `typical` is the mean log-probability that this judge gives to people's replies (the median over held-out ones): it
    belongs to the judge and must be measured again for another one.
    """

    judge: str | Path | Fluency = "rlhf-env/chitchat-judge"
    typical: float = -3.18

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        """float64[B]."""
        total: Float = np.sum(list(self.parts(episodes).values()), axis=0)
        return total

    def parts(self, episodes: Sequence[Episode], /) -> dict[str, Float]:
        """The weighted terms by name, float64[B] each: what `__call__` sums, and what a report shows."""
        prompts = [_without_markers(episode.prompt.text) for episode in episodes]
        replies = [_without_markers(episode.response) for episode in episodes]
        mu = self._fluency([episode.prompt.text for episode in episodes], replies)
        pairs = list(zip(prompts, replies, strict=True))
        return {
            "sentiment": 2.0 * np.clip(_each(_sentiment, replies), -0.6, 0.6),
            "turn": 0.5 * _each(lambda pair: ("?" in pair[0]) != ("?" in pair[1]), pairs),
            "fluency": -1.5 * np.maximum(0.0, np.abs(mu - self.typical) - 0.5),
            "repetition": -4.0 * np.maximum(0.0, _each(_repetition, replies) - 0.1),
            "copying": -2.0 * _each(lambda pair: _copying(*pair), pairs),
            "short": -0.5 * np.maximum(0.0, 4.0 - _each(lambda reply: len(_words(reply)), replies)),
            "unfinished": -1.0 * _each(lambda episode: episode.finish_reason not in ("stop", "task"), episodes),
        }

    @property
    def _fluency(self) -> Fluency:
        return _language_model(str(self.judge)) if isinstance(self.judge, str | Path) else self.judge


def _each(measure: Callable[[_Item], float], items: Sequence[_Item]) -> Float:
    return np.array([measure(item) for item in items], dtype=np.float64)


def _without_markers(text: str) -> str:
    """Without special tokens such as `<|turn|>`."""
    return re.sub(r"<\|\w+\|>", " ", text).strip()


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _repetition(reply: str) -> float:
    """Share of words and word pairs that are not the first of their kind, in [0, 1)."""
    words = _words(reply)
    grams = _ngrams(words, 1) + _ngrams(words, 2)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def _copying(prompt: str, reply: str) -> float:
    """Share of the reply's word triples that the prompt contains; of a shorter reply, whether it contains it whole."""
    words = _words(reply)
    n = min(3, len(words))
    if n == 0:
        return 0.0
    known = set(_ngrams(_words(prompt), n))
    triples = _ngrams(words, n)
    return sum(triple in known for triple in triples) / len(triples)


def _sentiment(reply: str) -> float:
    """VADER's compound score in [-1, 1]."""
    return float(_vader().polarity_scores(reply)["compound"])


@cache
def _vader() -> Any:
    try:
        module = importlib.import_module("vaderSentiment.vaderSentiment")
    except ImportError as missing:
        raise MissingExtra("vaderSentiment (the sentiment part of the gold reward)", "demo") from missing
    return module.SentimentIntensityAnalyzer()


@cache
def _language_model(name: str) -> Fluency:
    """A language model as `Fluency`; loaded once, and in float64 so that batch mates change nothing visible."""
    import torch

    from rlhf_env.envs.tokenizers import load_tokenizer
    from rlhf_env.policies import LanguageModel

    model = LanguageModel.from_pretrained(name, dtype=torch.float64).frozen_copy()
    tokenizer = load_tokenizer(name)

    def fluency(prompts: Sequence[str], replies: Sequence[str], /) -> Float:
        texts = [_demonstration(tokenizer, prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)]
        said = [i for i, text in enumerate(texts) if len(text.response_ids)]
        means = np.zeros(len(texts))
        means[said] = [values.mean() for values in model.response_logprobs([texts[i] for i in said])]
        return means.round(10)

    return fluency


def _demonstration(tokenizer: Tokenizer, prompt: str, reply: str) -> Episode:
    # Without a prompt, the reply opens a text: what stands before it is the end of the one before.
    asked = np.array(tokenizer.encode(prompt) or [tokenizer.end_id], dtype=np.int64)
    said = np.array(tokenizer.encode(reply), dtype=np.int64)
    return Episode(Prompt("", prompt), asked, reply, said, "stop", np.ones(len(said), dtype=np.bool_))
