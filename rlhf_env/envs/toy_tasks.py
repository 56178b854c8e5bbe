"""Toy tasks with known answers, for tests, first experiments and exact mathematics."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Annotated

import numpy as np
from annotated_types import Len

from rlhf_env.envs.splits import Part, unit_interval
from rlhf_env.envs.tasks import places_of
from rlhf_env.errors import ConfigError, Problem
from rlhf_env.settings import AtLeastOne, Name, fault, settings
from rlhf_env.types import Episode, Float, Prompt, ResetOptions

_SET_ASIDE = 0.25  # the share of prompts that is held out for evaluation
_FEW = 1024  # up to this many possible words are listed; more are drawn until one fits


def _repeated(name: str, symbols: str) -> Iterator[Problem]:
    if len(set(symbols)) != len(symbols):
        yield fault(name, f"must be different symbols, got {symbols!r}")


@settings(kw_only=False)
class Count:
    """Write one letter many times.

    Reward: (number of `letter`s in the response) / `target`, at most 1, minus the share of other characters. Any policy
    has a gradient here from the first update on, as the default task of an environment should have.
    """

    letter: Annotated[str, Len(1, 1)] = "a"
    """The letter to write."""
    target: AtLeastOne = 8
    """How many of them earn all of the reward."""
    exact: bool = False
    """The reward is 1 for `target` letters and nothing else, and 0 for all other responses. It is sparse: a policy has
    to come upon the one response by chance before there is anything to learn from."""

    @property
    def size(self) -> int:
        return 1

    def prompt(self, _index: int, _options: ResetOptions, /) -> Prompt:
        return Prompt(id=f"count/{self.letter}", text=f"{self.letter}:", meta={"letter": self.letter})

    def score(self, episode: Episode, /) -> float:
        if self.exact:
            return float(episode.response == self.letter * self.target)
        hits = episode.response.count(self.letter)
        others = len(episode.response) - hits
        return min(hits / self.target, 1.0) - others / max(len(episode.response), 1)


@settings(kw_only=False)
class Echo:
    """Repeat the prompt. Reward: the number of positions with the right character, over the longer text's length.

    Prompts are `length` symbols of `alphabet` followed by "=". The option `level` replaces `length` (a curriculum).
    About a quarter of all words of each length is held out for evaluation.
    """

    length: AtLeastOne = 3
    """Symbols of a prompt."""
    alphabet: Name = "ab"
    """The symbols that prompts are made of."""
    part: Part = "training"
    """Which prompts: those of training, or those set aside for evaluation."""

    option_names = ("level",)

    @property
    def size(self) -> None:
        return None

    def prompt(self, index: int, options: ResetOptions, /) -> Prompt:
        length = options.get("level", self.length)
        if not isinstance(length, (int, np.integer)) or length < 1:
            raise ConfigError(f"level: the number of symbols to echo, at least 1, got {length!r}")
        word = self._word(np.random.default_rng([index, int(length)]), int(length))
        return Prompt(id=f"echo/{word}", text=word + "=", meta={"answer": word})

    def _word(self, stream: np.random.Generator, length: int) -> str:
        symbols = "".join(sorted(set(self.alphabet)))
        if len(symbols) ** length <= _FEW:
            words = _few_words(symbols, length, self.part)
            return words[stream.integers(len(words))]
        while True:
            word = "".join(symbols[i] for i in stream.integers(len(symbols), size=length))
            if (unit_interval(word) < _SET_ASIDE) == (self.part == "held_out"):
                return word

    def held_out(self) -> Echo:
        """Words that training never asks for. (If there is only one word, it is in both parts.)"""
        return replace(self, part="held_out")

    def score(self, episode: Episode, /) -> float:
        answer, response = str(episode.prompt.meta["answer"]), episode.response
        longest = max(len(answer), len(response))
        return sum(a == b for a, b in zip(answer, response, strict=False)) / longest

    def well_formed(self, episode: Episode, /) -> bool:
        """Whether the response is a word over the alphabet."""
        return bool(episode.response) and set(episode.response) <= set(self.alphabet)


@lru_cache(maxsize=64)
def _few_words(symbols: str, length: int, part: Part) -> list[str]:
    words = ["".join(letters) for letters in itertools.product(symbols, repeat=length)]
    return [words[place] for place in places_of(part, words, _SET_ASIDE)]


@settings(kw_only=False)
class Increasing:
    """Continue an increasing sequence: `"3<"` may be answered by `"4578"`. `alphabet` may hold letters as well.

    Reward: the number of symbols up to the first that is not above its predecessor, at most `length`, divided by
    `length` or by the response's length, whichever is larger. Every prompt leaves room for `length` larger symbols.
    """

    length: AtLeastOne = 4
    """Rising symbols that earn all of the reward."""
    alphabet: Name = "0123456789"
    """Different symbols, in rising order."""
    part: Part = "training"
    """Which prompts: those of training, or those set aside for evaluation."""

    def problems(self) -> Iterator[Problem]:
        yield from _repeated("alphabet", self.alphabet)
        if self.length >= len(self.alphabet):
            yield fault("length", f"must be below the {len(self.alphabet)} symbols of the alphabet, got {self.length}")

    @cached_property
    def _starts(self) -> str:
        starts = self.alphabet[: -self.length]
        return "".join(starts[place] for place in places_of(self.part, starts, _SET_ASIDE))

    @property
    def size(self) -> int:
        return len(self._starts)

    def prompt(self, index: int, _options: ResetOptions, /) -> Prompt:
        start = self._starts[index % self.size]
        return Prompt(id=f"increasing/{start}", text=f"{start}<", meta={"start": start})

    def held_out(self) -> Increasing:
        aside = replace(self, part="held_out")
        return aside if aside.size < len(self.alphabet) - self.length else self

    def score(self, episode: Episode, /) -> float:
        ranks = [self.alphabet.find(symbol) for symbol in str(episode.prompt.meta["start"]) + episode.response]
        increases = sum(1 for _ in itertools.takewhile(lambda pair: pair[1] > pair[0], itertools.pairwise(ranks)))
        return min(increases, self.length) / max(self.length, len(episode.response))


@settings(kw_only=False)
class Enumerable:
    """One prompt with so few possible responses that every expectation over them can be computed exactly.

    With the tokenizer `"alphabet:<symbols>"` and `max_new_tokens=longest` there are 1 + S + S^2 + ... responses of at
    most `longest` symbols: 85 by default. `rewards` is the table of their rewards, drawn from `seed`.
    """

    symbols: Name = "abcd"
    """Different symbols that responses are made of."""
    longest: AtLeastOne = 3
    """Symbols of the longest response."""
    seed: int = 0
    """What the worth of the responses is drawn from."""

    def problems(self) -> Iterator[Problem]:
        yield from _repeated("symbols", self.symbols)

    @cached_property
    def responses(self) -> tuple[str, ...]:
        """All responses, by length (the empty one first), and those of one length in the order of the symbols."""
        return tuple(
            "".join(letters)
            for length in range(self.longest + 1)
            for letters in itertools.product(self.symbols, repeat=length)
        )

    @cached_property
    def rewards(self) -> Float:
        """float64[N]: the reward of each of `responses`, standard normal."""
        return np.random.default_rng(self.seed).standard_normal(len(self.responses))

    @cached_property
    def _reward_of(self) -> dict[str, float]:
        return dict(zip(self.responses, self.rewards.tolist(), strict=True))

    @property
    def size(self) -> int:
        return 1

    def prompt(self, _index: int, _options: ResetOptions, /) -> Prompt:
        return Prompt(id="enumerable", text=self.symbols[0])

    def score(self, episode: Episode, /) -> float:
        """The table's entry; 0 for a text that is not in the table (other tokenizers can write such texts)."""
        return self._reward_of.get(episode.response, 0.0)


@settings(kw_only=False)
class Guess:
    """Find the secret letter in a conversation: the task answers a wrong guess by ">" (the secret is above) or "<".

        ?   d|   >   f|   <   e|            (the agent's turns end with its end token, here "|")

    A turn that is not a single letter is answered by "!" and counts as a guess. Reward: 1 if the first guess is right,
    1 - 1/turns if the second is, and so on; 0 if none is. Binary search is optimal: with the default seven letters and
    three turns it earns (1 + 2 * 2/3 + 4 * 1/3) / 7 = 11/21. The option `level` is the number of letters in play.
    """

    alphabet: Name = "abcdefg"
    """Different letters in rising order, one of which is the secret."""
    turns: AtLeastOne = 3
    """How many guesses there are."""

    option_names = ("level",)

    def problems(self) -> Iterator[Problem]:
        if list(self.alphabet) != sorted(set(self.alphabet)):
            yield fault("alphabet", f"must be different letters in rising order, got {self.alphabet!r}")

    @property
    def size(self) -> int:
        return len(self.alphabet)

    def prompt(self, index: int, options: ResetOptions, /) -> Prompt:
        letters = options.get("level", len(self.alphabet))
        if not isinstance(letters, (int, np.integer)) or not 1 <= letters <= len(self.alphabet):
            raise ConfigError(f"level: the number of letters in play, 1 to {len(self.alphabet)}, got {letters!r}")
        secret = self.alphabet[index % int(letters)]
        return Prompt(id=f"guess/{secret}", text="?", meta={"secret": secret})

    def reply(self, episode: Episode, /) -> str | None:
        secret, guesses = episode.prompt.meta["secret"], episode.turns or (episode.response,)
        if guesses[-1] == secret or len(guesses) >= self.turns:
            return None
        if not self._is_guess(guesses[-1]):
            return "!"
        return ">" if secret > guesses[-1] else "<"

    def well_formed(self, episode: Episode, /) -> bool:
        """Whether every turn is a single letter of the alphabet."""
        return all(map(self._is_guess, episode.turns or (episode.response,)))

    def _is_guess(self, turn: str) -> bool:
        return len(turn) == 1 and turn in self.alphabet

    def score(self, episode: Episode, /) -> float:
        guesses = (episode.turns or (episode.response,))[: self.turns]
        secret = episode.prompt.meta["secret"]
        return 1.0 - guesses.index(secret) / self.turns if secret in guesses else 0.0
