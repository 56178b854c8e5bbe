"""Stop strings: a text ends with the token in which it first holds one of them.

A stop string may be completed in the middle of a token or span several, and one of its characters may itself be spread
over tokens. So bytes are matched, by an automaton that reads the bytes of each token (Aho and Corasick 1975): a text
stands in one state, a token leads to the next, and nothing is decoded on the way. Where a token leads from a state is
computed for the whole vocabulary when the state is first met; from then on, a token of every row is one look-up.

Whoever writes texts stops where the environment ends them: both read the same automaton.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rlhf_env.envs.token_bytes import special_tokens, token_bytes
from rlhf_env.errors import ConfigError, DataError, Problem
from rlhf_env.types import Bool, Int, Observation, Stops, Tokenizer

MOST_STRINGS = 32
LONGEST_STRING = 200  # characters; with 4 bytes each, all strings have fewer states than an int16 counts

_Row = npt.NDArray[np.int16]


class StopStrings:
    """Finds the first token in which a text holds one of `strings`, for the texts of one tokenizer.

    A text begins in state 0. A state in which a stop string is complete is never left again. Tokens that are not of the
    vocabulary, and those that no text shows (end tokens, padding), lead nowhere.
    """

    def __init__(self, strings: Sequence[str], tokenizer: Tokenizer) -> None:
        require_stop_strings(strings, tokenizer)
        self.strings = tuple(strings)
        self._next_state, self._complete = _automaton([text.encode() for text in self.strings])
        pieces = token_bytes(tokenizer)
        lengths = np.array([*map(len, pieces), 0])  # the last: "nothing here"
        self._bytes = np.frombuffer(b"".join(pieces) + b"\0", np.uint8)
        # Longest first, so that the tokens with more than j bytes are the first `_longer[j]`.
        self._order = np.argsort(-lengths, kind="stable")
        self._starts = (lengths.cumsum() - lengths)[self._order]
        self._longer = [int((lengths > place).sum()) for place in range(int(lengths.max(initial=0)))]
        self._nothing = len(pieces)
        self._table: _Row = np.zeros((0, len(lengths)), np.int16)  # a row for each state that was met
        self._row_of_state: Int = np.full(len(self._complete), -1)

    def after(self, states: Int, tokens: Int, /) -> Int:
        """int64[N]: the state of each text after one token more."""
        rows = self._row_of_state[states]
        if (rows < 0).any():
            for state in np.unique(states[rows < 0]).tolist():
                self._row_of_state[state] = len(self._table)
                self._table = np.concatenate([self._table, self._tokens_from(state)[None]])
            rows = self._row_of_state[states]
        return self._table[rows, np.minimum(tokens, self._nothing)].astype(np.int64)

    def completed(self, states: Int, /) -> Bool:
        """bool[N]: whether a stop string is complete."""
        return self._complete[states]

    def cut(self, text: str, /) -> str:
        """The text up to the stop string that is complete first; of several, up to the longest."""
        found = [(start + len(stop), start) for stop in self.strings if (start := text.find(stop)) >= 0]
        return text[: min(found)[1]] if found else text

    def settled(self, text: str) -> str:
        """The text without an end that may become a stop string: what can be shown while the text is being written."""
        begun = [n for stop in self.strings for n in range(1, len(stop)) if text.endswith(stop[:n])]
        return text[: len(text) - max(begun, default=0)]

    def _tokens_from(self, state: int) -> _Row:
        """int16[V + 1]: the state to which each token leads from this one."""
        states = np.full(len(self._order), state, np.int16)
        for place, longer in enumerate(self._longer):
            states[:longer] = self._next_state[states[:longer], self._bytes[self._starts[:longer] + place]]
        found = np.empty_like(states)
        found[self._order] = states
        return found


def completions(stops: Stops, states: Int, tokens: Int, said: Bool) -> tuple[Int, Bool]:
    """Read the tokens int64[B, k] that are `said` bool[B, k], from `states` int64[B].

    The states afterwards; and bool[B, k], True at the token that completes a stop string, at most one in each row.
    """
    states, completing = states.copy(), np.zeros(tokens.shape, dtype=np.bool_)
    for column in range(tokens.shape[1]):
        rows = np.flatnonzero(said[:, column] & ~stops.completed(states))
        if rows.size:
            states[rows] = stops.after(states[rows], tokens[rows, column])
            completing[rows, column] = stops.completed(states[rows])
    return states, completing


def cut_after(observation: Observation, tokens: Int, nothing: int) -> Int:
    """Tokens int64[B, k] that continue an observation's texts, `nothing` behind that which completes a stop string."""
    if (stops := observation.get("stops")) is None:
        return tokens
    states = observation.get("stop_states")
    states = np.zeros(len(tokens), np.int64) if states is None else states
    completing = completions(stops, states, tokens, tokens < nothing)[1]
    return np.where(completing.cumsum(axis=1) - completing > 0, nothing, tokens)


def stop_string_problems(strings: Sequence[str]) -> list[str]:
    """What is wrong with stop strings, whatever the tokenizer."""
    if isinstance(strings, str) or not isinstance(strings, Sequence):
        return [f'is a list of strings, such as ["\\nUser:"], got {strings!r}']
    problems = [f"has {len(strings)} strings, and at most {MOST_STRINGS} are looked for"] * (
        len(strings) > MOST_STRINGS
    )
    for text in strings:
        if not isinstance(text, str) or not text:
            problems.append(f"is a list of strings with a character or more, got {text!r} among them")
        elif len(text) > LONGEST_STRING:
            problems.append(
                f"has a string of {len(text)} characters, and the longest has {LONGEST_STRING}: {text[:40]!r}..."
            )
        elif "\ufffd" in text or any("\ud800" <= character <= "\udfff" for character in text):
            problems.append(
                f"has {text!r}, with a character that stands for what is no text: U+FFFD or a lone surrogate"
            )
    return problems


def require_stop_strings(strings: Sequence[str], tokenizer: Tokenizer) -> None:
    """Raises ConfigError with all that is wrong with them, those that no text of the tokenizer holds included."""
    problems = stop_string_problems(strings)
    for text in () if problems else strings:
        hidden = [token for token in special_tokens(tokenizer) if token in text]
        if hidden:
            problems.append(
                f"has {text!r}, and no text shows the special token {hidden[0]!r}: to end texts with that token, name "
                "it among the end tokens (eos_token_id in the model's generation_config.json)"
            )
            continue
        try:
            tokenizer.encode(text)
        except DataError as error:
            problems.append(f"has {text!r}, which no text can hold: {error}")
    if problems:
        raise ConfigError(*(Problem(f"stop {problem}", ("stop",)) for problem in problems))


def _automaton(patterns: Sequence[bytes]) -> tuple[_Row, Bool]:
    """The states after each byte, int16[S, 256], and the states in which a pattern is complete, bool[S].

    A state is the longest end of the text that begins a pattern; state 0 is none.
    """
    children: list[dict[int, int]] = [{}]
    complete = [False]
    for pattern in patterns:
        state = 0
        for byte in pattern:
            if byte not in children[state]:
                children[state][byte] = len(children)
                children.append({})
                complete.append(False)
            state = children[state][byte]
        complete[state] = True
    after = np.zeros((len(children), 256), np.int16)
    shorter = [0] * len(children)  # the state of the longest proper end that begins a pattern, too
    waiting = deque([0])
    while waiting:  # by length, so that the shorter states are known
        state = waiting.popleft()
        complete[state] |= complete[shorter[state]]
        if state:
            after[state] = after[shorter[state]]
        for byte, child in children[state].items():
            shorter[child] = int(after[state, byte])
            after[state, byte] = child
            waiting.append(child)
    flags = np.array(complete, dtype=np.bool_)
    after[flags] = np.flatnonzero(flags)[:, None]
    return after, flags
