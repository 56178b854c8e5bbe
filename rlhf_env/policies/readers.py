"""How a model reads texts that are being written: with our own code and cache, with its own, or whole at every step.

A reader is given all texts, `texts` int64[B, L or more] and `lengths` int64[B], and the numbers of those that it is to
read, int64. It answers with the logits of their next tokens.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_env.policies.forward_pass import forward_pass
from rlhf_env.policies.fused import FusedStep
from rlhf_env.policies.untyped import HFCache, HFModel
from rlhf_env.types import Int

# Rows that have ended are dropped from the cache of transformers when less than this share of its rows still write.
# Dropping copies that cache: done at every end token, it would cost more than the rows that are dragged along.
LIVE_SHARE = 0.75


class Reader(Protocol):
    """What reads texts."""

    takes_more: bool
    """Whether it takes in new texts while others are being written."""

    def begin(self, texts: Int, lengths: Int, rows: Int, others: Int, room: int) -> Tensor:
        """Logits [R', V] after the new texts `rows`; `room`: how many tokens may be written after each.

        Of those that have begun before, all but the texts `others`, ascending, have ended.
        """

    def next(self, texts: Int, lengths: Int, rows: Int) -> Tensor:
        """Logits [R, V] after the newest tokens of the texts `rows`, ascending, which have begun. Others have ended."""


class WholeReader:
    """Reads all texts from their first token on at every step: right for every causal language model, but a text of n
    tokens costs n^2 / 2 tokens of reading."""

    takes_more = True

    def __init__(self, model: HFModel) -> None:
        self.model = model

    def begin(self, texts: Int, lengths: Int, rows: Int, others: Int, room: int) -> Tensor:
        return self.next(texts, lengths, rows)

    def next(self, texts: Int, lengths: Int, rows: Int) -> Tensor:
        lengths = lengths[rows]
        width = int(lengths.max())
        texts = np.where(np.arange(width) < lengths[:, None], texts[rows, :width], 0)
        tokens = torch.from_numpy(texts).to(self.model.device)
        row, last = torch.arange(len(rows), device=tokens.device), torch.from_numpy(lengths - 1).to(tokens.device)
        # What is causal never looks at the padding, so that the mask may say that all of it is text.
        _, logits = forward_pass(
            self.model,
            tokens,
            torch.ones_like(tokens, dtype=torch.bool),
            torch.arange(width, device=tokens.device).expand_as(tokens),
            select=lambda states: states[row, last],
        )
        return logits


class FusedReader:
    """Reads with `FusedStep`, with the weights that the model had when that was made."""

    takes_more = True

    def __init__(self, model: HFModel, fused: FusedStep) -> None:
        self.model, self.fused = model, fused
        self._cache = fused.cache()
        self._rows: Int = np.zeros(0, np.int64)  # int64[R]: the text in each place of the cache

    def begin(self, texts: Int, lengths: Int, rows: Int, others: Int, room: int) -> Tensor:
        self._keep(others, len(others))
        width = int(lengths[rows].max())
        prompts = np.where(np.arange(width) < lengths[rows, None], texts[rows, :width], -1)
        # Of equal prompts (the group of answers to one prompt) the model reads one.
        distinct, distinct_of_row = np.unique(prompts, axis=0, return_inverse=True)
        distinct_of_row = distinct_of_row.reshape(-1)
        tokens = torch.from_numpy(distinct).to(self.model.device)
        logits = self.fused.prefill(tokens, tokens >= 0, self._cache, distinct_of_row, room)
        self._rows = np.append(self._rows, rows)
        return logits[torch.from_numpy(distinct_of_row).to(logits.device)]

    def next(self, texts: Int, lengths: Int, rows: Int) -> Tensor:
        if places_for(len(rows)) < len(self._rows):
            self._keep(rows, places_for(len(rows)))
        all_live_in_order = np.array_equal(rows, self._rows)
        positions = lengths[self._rows] - 1
        if not all_live_in_order:
            # Texts that have ended but are still in the cache read their first token again, at position 0, which is
            # always within the model's context. Nobody looks at their logits.
            positions[~np.isin(self._rows, rows)] = 0
        # Tokens and positions in one transfer to the device.
        ids = torch.from_numpy(np.stack([texts[self._rows, positions], positions])).to(self.model.device)
        logits = self.fused(ids[0], ids[1], self._cache)
        if all_live_in_order:
            return logits
        place_of = np.zeros(len(texts), np.int64)
        place_of[self._rows] = np.arange(len(self._rows))
        return logits[torch.from_numpy(place_of[rows]).to(logits.device)]

    def _keep(self, rows: Int, places: int) -> None:
        """Free all places but those of the texts `rows`, and of some others if more `places` are to remain."""
        if places < len(self._rows):
            live = np.isin(self._rows, rows)
            spare = places - len(rows)
            kept = np.sort(np.append(np.flatnonzero(live), np.flatnonzero(~live)[:spare]))
            self._rows = self._rows[self._cache.keep(kept)]


def places_for(rows: int) -> int:
    """The smallest number, of four from each power of 2 to the next, that is at least `rows`.

    Matrix products of every new number of rows cost something once, so that there should not be too many.
    """
    step = 1 << max(0, (rows - 1).bit_length() - 3)
    return -(-rows // step) * step


class CacheReader:
    """Reads with the model's own code and the cache of transformers.

    Observations are padded on the right, the cache on the left ("." is padding, "|" the end of the prompts):

        observation   a b c .        cache   a b c | d e f
                      p q . .                . p q | r s t

    So the next token of every row falls into one and the same slot, as transformers wants it. New texts begin a new
    cache, so that they can begin only when all others have ended.
    """

    takes_more = False

    def __init__(self, model: HFModel) -> None:
        self.model = model
        self._cache: HFCache | None = None
        self._rows: Int = np.zeros(0, np.int64)  # int64[R], ascending: row r of the cache belongs to text [r] of these
        self._mask = torch.empty(0)  # bool[R, slots], True on text, and on the slots that are still empty

    def begin(self, texts: Int, lengths: Int, rows: Int, others: Int, room: int) -> Tensor:
        from rlhf_env.policies.cache import has_slots, preallocated_cache, rearrange

        self._rows = rows
        lengths = lengths[rows]
        width = int(lengths.max())
        prompts = np.where(np.arange(width) < lengths[:, None], texts[rows, :width], -1)
        # Of equal prompts (the group of answers to one prompt) the model reads one, and all rows copy its keys and
        # values: `tokens` [D, width] are the D distinct prompts, right-padded, and `prompt` [R] that of each row.
        distinct, distinct_of_row = np.unique(prompts, axis=0, return_inverse=True)
        tokens = torch.from_numpy(distinct).to(self.model.device)
        prompt = torch.from_numpy(distinct_of_row.reshape(-1)).to(tokens.device)
        mask = tokens >= 0
        last = mask.sum(1) - 1
        # From right padding to left padding: a prompt of length n has width - n slots of padding before it, so slot s
        # gets the token in column s - (width - n). A negative column is padding; it is read as column 0 and masked.
        columns = torch.arange(width, device=tokens.device) - (width - 1 - last)[:, None]
        positions = torch.arange(width, device=tokens.device).expand_as(tokens)

        self._cache = preallocated_cache(self.model.config, width + room)
        if has_slots(self._cache):
            # Read with the padding on the right, where the causal mask hides it from every token. On the left it would
            # attend to nothing, which is NaN in eager attention. Afterwards the tokens move to their slots.
            _, logits = forward_pass(
                self.model,
                tokens.clamp(min=0),
                torch.ones_like(mask),
                positions,
                select=lambda states: states[torch.arange(len(last), device=last.device), last],
                cache=self._cache,
            )
            rearrange(self._cache, prompt, columns[prompt].clamp(min=0))
        else:
            # A recurrent state cannot be rearranged, and must not have read padding last: read left-padded.
            left_padded = columns.clamp(min=0)
            _, logits = forward_pass(
                self.model,
                tokens.gather(1, left_padded),
                columns >= 0,
                positions.gather(1, left_padded),
                select=lambda states: states[:, -1],
                cache=self._cache,
            )
            self._cache.reorder_cache(prompt)
        self._mask = F.pad(columns[prompt] >= 0, (0, room), value=True)
        return logits[prompt]

    def next(self, texts: Int, lengths: Int, rows: Int) -> Tensor:
        # `_rows` is ascending, so that searchsorted gives the row of the cache that belongs to each live text.
        if len(rows) < LIVE_SHARE * len(self._rows):
            self._keep(np.searchsorted(self._rows, rows))
        # Rows that have stopped but are still in the cache read their first token again, at position 0, which is always
        # within the model's context. Nobody looks at their logits.
        positions = np.where(np.isin(self._rows, rows), lengths[self._rows] - 1, 0)
        assert self._cache is not None
        slots = self._cache.get_seq_length() + 1
        if slots > self._mask.shape[1]:
            self._mask = F.pad(self._mask, (0, slots), value=True)
        _, logits = forward_pass(
            self.model,
            torch.from_numpy(texts[self._rows, positions][:, None]).to(self.model.device),
            self._mask[:, :slots],
            torch.from_numpy(positions[:, None]).to(self.model.device),
            select=lambda states: states[:, -1],
            cache=self._cache,
        )
        if len(rows) == len(self._rows):
            return logits
        return logits[torch.from_numpy(np.searchsorted(self._rows, rows)).to(logits.device)]

    def _keep(self, kept: Int) -> None:
        """Drop all rows of the cache but `kept`, int64, ascending."""
        rows = torch.from_numpy(kept).to(self.model.device)
        assert self._cache is not None
        self._cache.reorder_cache(rows)
        self._mask = self._mask[rows]
        self._rows = self._rows[kept]
