"""The demo's *gold* reward: upbeat, human-like small talk. It does not measure quality.

It plays the person whose taste the demo learns from preferences. It measures whether a reply is friendly, reads like
something that a person would type, and takes its turn in the conversation. It cannot tell a relevant reply from an
irrelevant one or a true one from a false one, and one good sentence scores well for every prompt: look at the number of
distinct replies as well.

    gold =  2.0 clip(sentiment, -0.6, 0.6)        VADER's compound score, cut where more praise is only louder praise
          + 0.5 [exactly one of prompt and reply asks]      a question is answered, a statement is asked about
          - 1.5 max(0, |mu - typical| - 0.5)      fluency, two-sided: mu is the mean log-probability of a token of the
                                                  reply under an independent language model; far below what people
                                                  write is word salad, far above is a platitude
          - 4.0 max(0, repetition - 0.1)          share of words and word pairs that are repeats
          - 2.0 copying                           share of the reply's word triples that are in the prompt
          - 0.5 max(0, 4 - words)
          - 1.0 [the reply never ended]

The form and the constants come from trials in which a small policy optimised each term alone. Without the cut it writes
"great great great"; without the upper side of fluency it says "That's so cool!" to everybody; and with a full point for
turn-taking, nine replies in ten end in a question.

Sentiment is VADER's (Hutto and Gilbert 2014, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social
Media Text"), as published in the package `vaderSentiment`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from rlhf_env.envs.tokenizers import prompt_ids
from rlhf_env.errors import MissingExtra
from rlhf_env.settings import settings
from rlhf_env.text_measures import ngrams, repeated_share
from rlhf_env.types import Episode, Float, Prompt, Tokenizer

_Item = TypeVar("_Item")


class Fluency(Protocol):
    """The likelihood of replies under a language model that is independent of the policy."""

    def __call__(self, prompts: Sequence[str], replies: Sequence[str], /) -> Float:
        """float64[B]: mean log-probability (nats) of a token of the reply, given the prompt; 0.0 for an empty reply."""


@settings(kw_only=False)
class Upbeat:
    """The gold reward above."""

    judge: str | Path | Fluency = "rlhf-env/chitchat-judge"
    """A transformers causal language model (a shipped one, a folder, a hub name), or any `Fluency`."""
    typical: float = -3.18
    """The mean log-probability that this judge gives to people's replies (the median over held-out ones): it belongs to
    the judge and must be measured again for another one."""
    device: str = "cpu"
    """Where the judge computes, as in [policy] (in a run: where the policy does, if there is float64 there)."""

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        """float64[B]."""
        total: Float = np.sum(list(self.parts(episodes).values()), axis=0)
        return total

    def parts(self, episodes: Sequence[Episode], /) -> dict[str, Float]:
        """The weighted terms by name, float64[B] each; they sum to the reward, and a report shows them."""
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
            "unfinished": -1.0
            * _each(lambda episode: episode.finish_reason not in ("stop", "stop_string", "task"), episodes),
        }

    @property
    def _fluency(self) -> Fluency:
        return _language_model(str(self.judge), self.device) if isinstance(self.judge, str | Path) else self.judge


def _each(measure: Callable[[_Item], float], items: Sequence[_Item]) -> Float:
    return np.array([measure(item) for item in items], dtype=np.float64)


def _without_markers(text: str) -> str:
    """The text without special tokens such as `<|turn|>`."""
    return re.sub(r"<\|\w+\|>", " ", text).strip()


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def _repetition(reply: str) -> float:
    """Share of words and word pairs that are not the first of their kind, in [0, 1)."""
    return repeated_share(_words(reply))


def _copying(prompt: str, reply: str) -> float:
    """Share of the reply's word triples that the prompt contains; for a shorter reply, whether it contains it whole."""
    words = _words(reply)
    n = min(3, len(words))
    if n == 0:
        return 0.0
    known = set(ngrams(_words(prompt), n))
    triples = ngrams(words, n)
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
def _language_model(name: str, device: str) -> Fluency:
    """A language model as `Fluency`, loaded once; in float64, so that batch mates change no visible digit."""
    import torch

    from rlhf_env.envs.tokenizers import load_tokenizer
    from rlhf_env.learning.devices import find_device, placed
    from rlhf_env.learning.run_models import model_folder
    from rlhf_env.policies import LanguageModel
    from rlhf_env.policies.precision import has_float64

    place = find_device(device)
    model = LanguageModel.from_pretrained(model_folder(name), dtype=torch.float64).frozen_copy()
    model = placed(model, place if has_float64(torch.device(place)) else "cpu")
    tokenizer = load_tokenizer(name)

    def fluency(prompts: Sequence[str], replies: Sequence[str], /) -> Float:
        texts = [_demonstration(tokenizer, prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)]
        not_empty = [i for i, text in enumerate(texts) if len(text.response_ids)]
        means = np.zeros(len(texts))
        means[not_empty] = [values.mean() for values in model.response_logprobs([texts[i] for i in not_empty])]
        return means.round(10)

    return fluency


def _demonstration(tokenizer: Tokenizer, prompt: str, reply: str) -> Episode:
    # Without a prompt the reply begins a text, and the token before it is the end token of the text before.
    asked = np.array(prompt_ids(tokenizer, Prompt("", prompt)) if prompt else [tokenizer.end_id], dtype=np.int64)
    reply_ids = np.array(tokenizer.encode(reply), dtype=np.int64)
    return Episode(Prompt("", prompt), asked, reply, reply_ids, "stop", np.ones(len(reply_ids), dtype=np.bool_))
