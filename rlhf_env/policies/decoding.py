"""Sampling with a key/value cache: prefill reads the prompts once, then every decode step writes a token per row.

Observations are padded on the right, the cache on the left ("." is padding, "|" the end of the prompts):

    observation   a b c .        cache   a b c | d e f
                  p q . .                . p q | r s t

So the next token of every row falls into one and the same slot, which costs one write per layer and step; and the last
k slots of a row are its last k tokens, as sliding-window attention wants it. Rows whose text has ended leave the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_env.errors import RunFailed
from rlhf_env.policies.forward_pass import forward_pass
from rlhf_env.policies.fused import FusedStep
from rlhf_env.policies.policy import Sampling, Written
from rlhf_env.policies.precision import has_float64
from rlhf_env.policies.untyped import HFCache, HFModel
from rlhf_env.types import Bool, Float, Int, Stops

# Rows that have ended are dropped from the cache when less than this share of its rows still write. Dropping copies the
# cache: done at every end token, it would cost more than the rows that are dragged along.
LIVE_SHARE = 0.75

# `draw` first finds the block of this many tokens that holds the drawn one, then the token in it: what costs is the
# cumulative sum, and it then runs over V / 64 block sums and 64 tokens instead of over V tokens.
BLOCK = 64

DIVERGED = "the policy's logits are not finite: it has diverged (lower the learning rate, clip gradients)"


class Decoding:
    """Texts that are being written, and the key/value cache of what the model has read of them.

    `texts` int64[B, L or more] and `lengths` int64[B] hold the prompts and everything written since. `rows` bool[B]
    says which rows write. A row that has stopped (by an end token, or because a call did not ask for it) never writes
    again. `fused` does prefill and decode with the model's present weights; if it is None, the model's own code does.
    `whole`: there is no cache, and every step reads all texts from their first token on. That is right for every causal
    language model, but a text of n tokens costs n^2 / 2 tokens of reading.
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
    ) -> None:
        self.model = model
        self.fused, self.whole = fused, whole
        self.texts, self.lengths, self.live = texts.copy(), lengths.copy(), rows.copy()
        self._cached_rows = np.flatnonzero(rows)  # int64[R], ascending: row r of the cache belongs to text [r] of these
        self._cache: HFCache | None = None
        self._mask = torch.empty(0)  # bool[R, slots], True on text, and on the slots that are still empty
        self._has_padding = False  # whether `_mask` is False anywhere

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
        self._widen(uniforms.shape[1])
        for step in range(uniforms.shape[1]):
            live = np.flatnonzero(self.live)
            if not len(live):
                break
            drawn, logprobs[live, step] = draw(
                self._next_logits(live, uniforms.shape[1]), uniforms[live, step], sampling
            )
            tokens[live, step] = self.texts[live, self.lengths[live]] = drawn
            self.lengths[live] += 1
            self.live[live] = ~np.isin(drawn, end_ids) if len(end_ids) > 1 else drawn != end_ids[0]
            if stops is not None:
                states[live] = stops.after(states[live], drawn)
                self.live[live] &= ~stops.completed(states[live])
        return Written(tokens, logprobs)

    def _widen(self, length: int) -> None:
        """Make room in `texts` for `length` tokens after the longest text."""
        missing = int(self.lengths.max(initial=0)) + length - self.texts.shape[1]
        if missing > 0:
            self.texts = np.pad(self.texts, ((0, 0), (0, missing)))

    def _next_logits(self, live: Int, room: int) -> Tensor:
        """Logits [len(live), V] of the next token of the rows `live`, after the model has read their newest tokens.

        `room`: how many tokens may still be written; prefill allocates slots for them.
        """
        if self.whole:
            return self._read_whole(live)
        if self._cache is None:
            return self._prefill(room)
        # `_cached_rows` is ascending, so that searchsorted gives the row of the cache that belongs to each live text.
        if len(live) < LIVE_SHARE * len(self._cached_rows):
            self._keep_in_cache(np.searchsorted(self._cached_rows, live))
        logits = self._decode()
        if len(live) == len(self._cached_rows):
            return logits
        return logits[torch.from_numpy(np.searchsorted(self._cached_rows, live)).to(logits.device)]

    def _read_whole(self, live: Int) -> Tensor:
        """Logits [len(live), V] after the whole texts of `live`, read with the padding on the right and no cache."""
        lengths = self.lengths[live]
        width = int(lengths.max())
        texts = np.where(np.arange(width) < lengths[:, None], self.texts[live, :width], 0)
        tokens = torch.from_numpy(texts).to(self.model.device)
        rows, last = torch.arange(len(live), device=tokens.device), torch.from_numpy(lengths - 1).to(tokens.device)
        # What is causal never looks at the padding, so that the mask may say that all of it is text.
        _, logits = forward_pass(
            self.model,
            tokens,
            torch.ones_like(tokens, dtype=torch.bool),
            torch.arange(width, device=tokens.device).expand_as(tokens),
            select=lambda states: states[rows, last],
        )
        return logits

    def _prefill(self, room: int) -> Tensor:
        """Fill the cache with the prompts; logits [R, V] of the first token of every row."""
        from rlhf_env.policies.cache import has_slots, preallocated_cache, rearrange

        lengths = self.lengths[self._cached_rows]
        width = int(lengths.max())
        prompts = np.where(np.arange(width) < lengths[:, None], self.texts[self._cached_rows, :width], -1)
        # Of equal prompts (the group of answers to one prompt) the model reads one, and all rows copy its keys and
        # values: `tokens` [D, width] are the D distinct prompts, right-padded, and `rows` [R] the prompt of each row.
        distinct, distinct_of_row = np.unique(prompts, axis=0, return_inverse=True)
        tokens = torch.from_numpy(distinct).to(self.model.device)
        rows = torch.from_numpy(distinct_of_row.reshape(-1)).to(tokens.device)
        mask = tokens >= 0
        last = mask.sum(1) - 1
        # From right padding to left padding: a prompt of length n has width - n slots of padding before it, so slot s
        # gets the token in column s - (width - n). A negative column is padding; it is read as column 0 and masked.
        columns = torch.arange(width, device=tokens.device) - (width - 1 - last)[:, None]
        positions = torch.arange(width, device=tokens.device).expand_as(tokens)

        self._cache = preallocated_cache(self.model.config, width + room)
        if self.fused is not None:
            logits = self.fused.prefill(tokens, mask, self._cache, rows, columns[rows].clamp(min=0))
        elif has_slots(self._cache):
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
            rearrange(self._cache, rows, columns[rows].clamp(min=0))
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
            self._cache.reorder_cache(rows)
        self._mask = F.pad(columns[rows] >= 0, (0, room), value=True)
        self._has_padding = bool((lengths != width).any())
        return logits[rows]

    def _decode(self) -> Tensor:
        """Read the newest token of every row of the cache; logits [R, V] of the next one."""
        # Rows that have stopped but are still in the cache read their first token again, at position 0, which is always
        # within the model's context. Nobody looks at their logits.
        lengths = np.where(self.live[self._cached_rows], self.lengths[self._cached_rows], 1)
        tokens = self.texts[self._cached_rows, lengths - 1]
        assert self._cache is not None
        slots = self._cache.get_seq_length() + 1
        if slots > self._mask.shape[1]:
            self._mask = F.pad(self._mask, (0, slots), value=True)
        if self.fused is not None:
            # Tokens and positions in one transfer to the device.
            ids = torch.from_numpy(np.stack([tokens, lengths - 1])).to(self.model.device)
            return self.fused(ids[0], ids[1], self._cache, self._mask[:, :slots] if self._has_padding else None)
        _, logits = forward_pass(
            self.model,
            torch.from_numpy(tokens[:, None]).to(self.model.device),
            self._mask[:, :slots],
            torch.from_numpy(lengths[:, None] - 1).to(self.model.device),
            select=lambda states: states[:, -1],
            cache=self._cache,
        )
        return logits

    def _keep_in_cache(self, kept: Int) -> None:
        """Drop all rows of the cache but `kept`, int64, ascending."""
        rows = torch.from_numpy(kept).to(self.model.device)
        assert self._cache is not None
        self._cache.reorder_cache(rows)
        self._mask = self._mask[rows]
        self._cached_rows = self._cached_rows[kept]


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
