"""B texts side by side in rows of one array: where a row begins, where its next token goes, where it is full.

A row holds a prompt, then a response, then padding. One action appends up to k tokens to every row that writes, all
rows at once, because this runs at every token of every text. So places are counted in the *flat* array, in which row b
of width L is the places b * L to b * L + L - 1, and `put` fills any number of them in one call:

    begin    0      L      2L        (never moves)
    next     where the next token of each row goes; next - begin is the length of its text
    limit    one past the last place that its response may fill

    row 0    p p p r r . . .         next = 5, limit = 7, if the prompt has 3 tokens and a response may have 4
    row 1    p p r . . . . .         next = L + 3, limit = L + 6
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rlhf_env.envs.stop_strings import StopStrings, completions
from rlhf_env.types import Bool, FinishReason, Float, Int


class TextBuffer:
    """The token ids of B texts, and what is known of each token.

    `ids` int64[B, L]; `on_text` int8[B, L], 1 where there is text; `actions` bool[B, L], True where the agent wrote the
    token, if it is of a response; `logprobs` float64[B, L], what the agent stated of it; `stop_states` int64[B], how
    far the agent's present turn is in the `stops`, and `turn_start` int64[B], where in the row it begins.
    """

    def __init__(
        self,
        rows: int,
        width: int,
        *,
        vocab_size: int,
        end_ids: Sequence[int],
        pad_id: int,
        stops: StopStrings | None = None,
    ) -> None:
        self.ids: Int = np.full((rows, width), pad_id, dtype=np.int64)
        self.on_text: npt.NDArray[np.int8] = np.zeros((rows, width), dtype=np.int8)
        self.actions: Bool = np.zeros((rows, width), dtype=np.bool_)
        self.logprobs: Float = np.zeros((rows, width), dtype=np.float64)
        self.prompt_length: Int = np.zeros(rows, dtype=np.int64)
        self.stop_states: Int = np.zeros(rows, dtype=np.int64)
        self.turn_start: Int = np.zeros(rows, dtype=np.int64)
        self._stops = stops
        self._vocab_size, self._pad_id = vocab_size, pad_id
        self._begin: Int = np.arange(rows) * width
        self._next: Int = self._begin.copy()
        self._limit: Int = self._begin.copy()
        # As arrays, because numpy takes twice as long to calculate with a Python number.
        self._one: Int = np.array(1)
        self._end_ids: Int = np.array(end_ids) if len(end_ids) > 1 else np.array(end_ids[0])

    def start(self, rows: Int, prompts: Sequence[Int], room: int) -> None:
        """Begin `rows` anew with their prompts, and `room` places for each response."""
        self.ids[rows] = self._pad_id
        self.on_text[rows] = 0
        for row, prompt in zip(rows.tolist(), prompts, strict=True):
            self.ids[row, : len(prompt)] = prompt
            self.on_text[row, : len(prompt)] = 1
            self.prompt_length[row] = len(prompt)
        self._next[rows] = self._begin[rows] + self.prompt_length[rows]
        self._limit[rows] = self._next[rows] + room
        self.actions[rows] = True  # until somebody else writes there
        self.logprobs[rows] = 0.0
        self.stop_states[rows] = 0
        self.turn_start[rows] = self.prompt_length[rows]

    def append(self, rows: Int, tokens: Int, logprobs: Float | None) -> list[tuple[int, FinishReason]]:
        """Write one action's tokens, up to an end token, a stop string or the limit of each row.

        `tokens`, `logprobs`: [len(rows)] of an action of one token, else [len(rows), k], where the value V means
        "nothing here". Returns the rows that can write no more, and why.
        """
        places = self._next[rows]
        # One end token is compared in a third of the time that looking it up among several takes.
        ends = np.isin(tokens, self._end_ids) if self._end_ids.ndim else tokens == self._end_ids
        if tokens.ndim == 1:
            ids, stated, following = tokens, logprobs, places + self._one
            if self._stops is not None:
                states = self._stops.after(self.stop_states[rows], tokens)
                self.stop_states[rows] = states
                ends = ends | self._stops.completed(states)
        else:
            says = tokens < self._vocab_size
            # The j-th token that a row says goes j places after its next one: "nothing here" takes no place. Of the
            # row [V, a, V, b] the running count of tokens said is [0, 1, 1, 2], and a and b go to next and next + 1.
            after = places[:, None] + says.cumsum(axis=1) - 1
            # `ends.cumsum - ends` counts the end tokens *before* each: what comes after one is not written, nor is what
            # has no room.
            said = says & (ends.cumsum(axis=1) - ends == 0) & (after < self._limit[rows, None])
            if self._stops is not None:
                self.stop_states[rows], completing = completions(self._stops, self.stop_states[rows], tokens, said)
                said &= completing.cumsum(axis=1) - completing == 0
                ends = ends | completing
            # A mask of [rows, k] picks row by row, so ids, places and log-probabilities come out in one order.
            ids, following, places = tokens[said], places + said.sum(axis=1), after[said]
            stated = None if logprobs is None else logprobs[said]
            ends = (ends & said).any(axis=1)
        self.ids.put(places, ids)
        self.on_text.put(places, 1)
        if stated is not None:
            self.logprobs.put(places, stated)
        self._next[rows] = following
        over = ends | (following == self._limit[rows])
        if not anywhere(over):
            return []
        rows, ended = rows[over].tolist(), ends[over].tolist()
        by_string = [False] * len(rows) if self._stops is None else self._stops.completed(self.stop_states[rows])
        reasons: list[FinishReason] = [
            "stop_string" if string else "stop" if stopped else "length"
            for stopped, string in zip(ended, by_string, strict=True)
        ]
        return list(zip(rows, reasons, strict=True))

    def insert(self, row: int, ids: Sequence[int]) -> bool:
        """Write what the agent did not choose; False, and nothing is written, where no token would fit after it."""
        if self._next[row] + len(ids) >= self._limit[row]:
            return False
        start = self.length(row)
        end = start + len(ids)
        self.ids[row, start:end] = ids
        self.on_text[row, start:end] = 1
        self.actions[row, start:end] = False
        self.stop_states[row] = 0
        self.turn_start[row] = end
        self._next[row] += len(ids)
        return True

    def length(self, row: int) -> int:
        """Tokens of prompt and response."""
        return int(self._next[row] - self._begin[row])

    def room(self, row: int) -> int:
        """Tokens that the response may still have."""
        return int(self._limit[row] - self._next[row])

    def response(self, row: int) -> Int:
        """int64[T], a copy: the response so far."""
        return self.ids[row, self.prompt_length[row] : self.length(row)].copy()


def anywhere(flags: Bool) -> bool:
    """`flags.any()` in a tenth of its time: this runs at every token."""
    return b"\x01" in flags.tobytes()
