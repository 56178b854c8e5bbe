"""Sampling: prefill reads the prompts once, then every decode step writes a token per row.

Where more rows are asked for than may be written at once, new ones begin as others end. What a row writes depends on
its prompt and its own random numbers alone, so it makes no difference when it begins.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_env.errors import RunFailed
from rlhf_env.policies.fused import FusedStep
from rlhf_env.policies.policy import Sampling, Written
from rlhf_env.policies.precision import has_float64
from rlhf_env.policies.readers import CacheReader, FusedReader, Reader, WholeReader
from rlhf_env.policies.untyped import HFModel
from rlhf_env.types import Bool, Float, Int, Stops

# New texts are read, several in one prefill, when this share of the rows written at once is free.
FREE_SHARE = 0.25

# `draw` first finds the block of this many tokens that holds the drawn one, then the token in it: what costs is the
# cumulative sum, and it then runs over V / 64 block sums and 64 tokens instead of over V tokens.
BLOCK = 64

DIVERGED = "the policy's logits are not finite: it has diverged (lower the learning rate, clip gradients)"


class Decoding:
    """Texts that are being written, and what the model has read of them.

    `texts` int64[B, L or more] and `lengths` int64[B] hold the prompts and everything written since. `rows` bool[B]
    says which rows write, at most `rows_at_once` of them at a time. A row that has stopped (by an end token, or because
    a call did not ask for it) never writes again. `fused` does prefill and decode with the model's present weights; if
    it is None, the model's own code does. `whole`: there is no cache, see `WholeReader`.
    """

    def __init__(
        self,
        model: HFModel,
        texts: Int,
        lengths: Int,
        rows: Bool,
        fused: FusedStep | None = None,
        *,
        whole: bool = False,
        rows_at_once: int | None = None,
    ) -> None:
        self.fused = fused
        self.texts, self.lengths, self.live = texts.copy(), lengths.copy(), rows.copy()
        self.rows_at_once = min(rows_at_once or len(rows), max(1, int(rows.sum())))
        self._waiting = np.flatnonzero(rows)  # int64: rows that have not begun, ascending
        self._reader: Reader
        if fused is not None:
            self._reader = FusedReader(model, fused)
        else:
            self._reader = WholeReader(model) if whole else CacheReader(model)
        # Rows that are written after others have gone cannot be continued: nobody keeps what was read of the others.
        self.can_be_continued = len(self._waiting) <= self.rows_at_once

    def continues(self, texts: Int, lengths: Int, rows: Bool) -> bool:
        """Whether the texts of `rows` are exactly those written here, so that the cache can be used again."""
        if len(texts) != len(self.texts) or not self.live[rows].all():
            return False
        if not np.array_equal(lengths[rows], self.lengths[rows]):
            return False
        width = min(texts.shape[1], self.texts.shape[1])
        outside = np.arange(width) >= lengths[rows, None]
        return bool(((texts[rows, :width] == self.texts[rows, :width]) | outside).all())

    @torch.inference_mode()
    def write(
        self,
        uniforms: Float,
        rows: Bool,
        sampling: Sampling,
        *,
        end_ids: Sequence[int],
        vocab_size: int,
        stops: Stops | None = None,
        stop_states: Int | None = None,
    ) -> Written:
        """Up to k tokens for each of `rows`; `uniforms` float64[B, k] in [0, 1) decide what is drawn at each step.

        `stop_states` int64[B]: how far the texts are in the `stops`, as in `Observation`.
        """
        states = np.zeros(len(rows), np.int64) if stop_states is None else stop_states.copy()
        self.live &= rows
        tokens = np.full(uniforms.shape, vocab_size, np.int64)
        logprobs = np.zeros(uniforms.shape)
        counts = np.zeros(len(rows), np.int64)  # tokens written in this call
        length = uniforms.shape[1]
        self._widen(length)

        def take(some: Int, logits: Tensor) -> None:
            """Draw the next token of each of the rows `some`."""
            steps = counts[some]
            drawn, logprobs[some, steps] = draw(logits, uniforms[some, steps], sampling)
            tokens[some, steps] = self.texts[some, self.lengths[some]] = drawn
            self.lengths[some] += 1
            counts[some] += 1
            self.live[some] = ~np.isin(drawn, end_ids) if len(end_ids) > 1 else drawn != end_ids[0]
            if stops is not None:
                states[some] = stops.after(states[some], drawn)
                self.live[some] &= ~stops.completed(states[some])

        writing = self._writing(counts, length)
        while len(writing) or len(self._waiting):
            new = self._next_to_begin(len(writing))
            if len(new):
                take(new, self._reader.begin(self.texts, self.lengths, new, writing, length))
                writing = self._writing(counts, length)
            if len(writing):
                take(writing, self._reader.next(self.texts, self.lengths, writing))
            writing = self._writing(counts, length)
        return Written(tokens, logprobs)

    def _writing(self, counts: Int, length: int) -> Int:
        """The rows that have begun and are to write more in this call, ascending."""
        writing = self.live & (counts < length)
        writing[self._waiting] = False
        rows: Int = np.flatnonzero(writing)
        return rows

    def _next_to_begin(self, writing: int) -> Int:
        """The waiting rows whose turn it is while `writing` rows write, ascending; they wait no more.

        Equal prompts that are neighbours (a group) begin together, so that the model reads their prompt once; a group
        that is larger than what may be written at once begins in parts.
        """
        free = self.rows_at_once - writing
        enough = free >= FREE_SHARE * self.rows_at_once and self._reader.takes_more
        if not len(self._waiting) or not (writing == 0 or enough):
            return self._waiting[:0]
        count = min(free, len(self._waiting))
        if count < len(self._waiting) and self._equal(count - 1, count):
            whole = count
            while whole and self._equal(whole - 1, count):
                whole -= 1
            if whole or writing:
                count = whole
        new, self._waiting = self._waiting[:count], self._waiting[count:]
        return new

    def _equal(self, one: int, other: int) -> bool:
        """Whether two waiting rows have the same prompt."""
        first, second = self._waiting[one], self._waiting[other]
        length = self.lengths[first]
        same = np.array_equal(self.texts[first, :length], self.texts[second, :length])
        return bool(length == self.lengths[second]) and same

    def _widen(self, length: int) -> None:
        """Make room in `texts` for `length` tokens after the longest text."""
        missing = int(self.lengths.max(initial=0)) + length - self.texts.shape[1]
        if missing > 0:
            self.texts = np.pad(self.texts, ((0, 0), (0, missing)))


def draw(logits: Tensor, uniforms: Float, sampling: Sampling) -> tuple[Int, Float]:
    """One token per row by inverting the cumulative distribution: ids int64[R], their log-probabilities float64[R].

    `logits` [R, V]; `uniforms` float64[R] in [0, 1). The drawn token is the first whose cumulative probability exceeds
    the row's uniform number; a token of probability 0 is never drawn. RunFailed when logits are not finite.
    """
    # Where the device has no float64, the processor draws: a float32 sum would draw another token here and there.
    logits = logits if has_float64(logits.device) else logits.cpu()
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if sampling.temperature != 1.0:
        scores = scores / sampling.temperature
    if sampling.greedy:
        if not bool(torch.isfinite(scores.logsumexp(-1)).all()):
            raise RunFailed(DIVERGED)
        return scores.argmax(-1).cpu().numpy(), np.zeros(len(scores))  # of equal scores, argmax gives the first
    ids: Tensor | None = None  # the token ids of the columns of `scores`, where these are not in the order of the ids
    if sampling.top_k and sampling.top_k < scores.shape[1]:
        scores, ids = scores.topk(sampling.top_k)
    elif sampling.top_p < 1.0:
        scores, ids = scores.sort(descending=True)
    weights = scores.softmax(-1)
    if sampling.top_p < 1.0:
        # Columns are in the order of falling probability. A token stays if those before it sum to less than top_p; for
        # the first that sum is exactly 0, so that it always stays.
        cumulative = weights.cumsum(-1, dtype=torch.float64)
        before = cumulative - weights
        weights = weights.masked_fill(before >= sampling.top_p * cumulative[:, -1:], 0.0)
    blocked = weights.shape[1] > 2 * BLOCK
    cumulative = (_block_sums(weights) if blocked else weights).cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    if not bool(torch.isfinite(total).all()):
        raise RunFailed(DIVERGED)
    # The drawn column is the first whose cumulative weight exceeds target = u * total. There is one: u is at most
    # 1 - 2^-53, so in float64 u * total rounds to less than total. Its weight is not 0: otherwise the column before it
    # would exceed the target already.
    target = torch.from_numpy(uniforms).to(total.device)[:, None] * total
    column = torch.searchsorted(cumulative, target, right=True)
    if blocked:  # so far `column` counts blocks: search in the block for what the blocks before it leave of the target
        column = _column_in_block(weights, column, target - F.pad(cumulative, (1, 0)).gather(-1, column))
    logprobs = torch.log(weights.gather(-1, column).double() / total)
    tokens = column if ids is None else ids.gather(-1, column)
    return tokens[:, 0].cpu().numpy(), logprobs[:, 0].cpu().numpy()


def _block_sums(weights: Tensor) -> Tensor:
    """The sums of every BLOCK columns of `weights` [R, V], [R, ceil(V / BLOCK)]; the last block may be shorter."""
    whole = weights.shape[1] // BLOCK * BLOCK
    sums = weights[:, :whole].reshape(len(weights), -1, BLOCK).sum(-1)
    if whole == weights.shape[1]:
        return sums
    return torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], dim=1)


def _column_in_block(weights: Tensor, block: Tensor, target: Tensor) -> Tensor:
    """int64[R, 1]: the first column of each row's `block` whose cumulative weight within the block exceeds `target`.

    `weights` [R, V], `block` int64[R, 1], `target` [R, 1].
    """
    columns = block * BLOCK + torch.arange(BLOCK, device=block.device)
    beyond = columns >= weights.shape[1]
    inside = weights.gather(-1, columns.masked_fill(beyond, 0)).masked_fill(beyond, 0.0)
    cumulative = inside.cumsum(-1, dtype=torch.float64)
    # `_block_sums` adds in another order and rounds differently, so the target may lie a little above what the columns
    # sum to here. Keep it below that sum, so that some column exceeds it.
    most = torch.nextafter(cumulative[:, -1:], torch.zeros_like(target))
    return block * BLOCK + torch.searchsorted(cumulative, target.clamp(min=0.0).minimum(most), right=True)
