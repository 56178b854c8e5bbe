"""Cached sampling: texts grow together, a token a step, and leave the batch when they are done.

In the cache the texts stand flush right: every row's next token falls into the same slot, and the slots of a row are
contiguous, so that sliding windows hold.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_env.errors import RunFailed
from rlhf_env.policies.forward_pass import forward_pass
from rlhf_env.policies.fused import FusedStep
from rlhf_env.policies.policy import Sampling, Written
from rlhf_env.policies.untyped import HFCache, HFModel
from rlhf_env.types import Bool, Float, Int

# Rows are dropped when the share still writing falls below this: dropping at every finish copies the cache too often.
LIVE_SHARE = 0.75

# A draw first finds the block of so many tokens, then the token: the running sum over the vocabulary is what costs.
BLOCK = 64


class Decoding:
    """Texts being continued, with the keys and values of what was read of them.

    `texts` int64[B, >=L] and `lengths` int64[B] hold prompt and what was written since. `rows` bool[B] says who writes;
    a row that once stopped (end token, or not asked while others went on) does not come back. `fused`: what reads one
    token more, of the model's present weights; None: the model itself.
    """

    def __init__(self, model: HFModel, texts: Int, lengths: Int, rows: Bool, fused: FusedStep | None = None) -> None:
        self.model = model
        self.fused = fused
        self.texts, self.lengths, self.live = texts.copy(), lengths.copy(), rows.copy()
        self._held = np.flatnonzero(rows)  # which texts the rows of the cache belong to, ascending
        self._cache: HFCache | None = None
        self._mask = torch.empty(0)  # bool [rows of the cache, slots], True on text, and on the slots still to come
        self._ragged = False  # whether any of it is False

    def continues(self, texts: Int, lengths: Int, rows: Bool) -> bool:
        """Whether the asked rows are what this wrote last, so that it can go on from there."""
        if len(texts) != len(self.texts) or not self.live[rows].all():
            return False
        if not np.array_equal(lengths[rows], self.lengths[rows]):
            return False
        width = min(texts.shape[1], self.texts.shape[1])
        outside = np.arange(width) >= lengths[rows, None]
        return bool(((texts[rows, :width] == self.texts[rows, :width]) | outside).all())

    @torch.inference_mode()
    def write(self, uniforms: Float, rows: Bool, sampling: Sampling, *, end_id: int, vocab_size: int) -> Written:
        """Up to k tokens for each of `rows`. `uniforms` float64[B, k] in [0, 1) decide what is drawn, one a place."""
        self.live &= rows
        tokens = np.full(uniforms.shape, vocab_size, np.int64)
        logprobs = np.zeros(uniforms.shape)
        self._widen(uniforms.shape[1])
        for place in range(uniforms.shape[1]):
            live = np.flatnonzero(self.live)
            if not len(live):
                break
            drawn, logprobs[live, place] = draw(
                self._next_logits(live, uniforms.shape[1]), uniforms[live, place], sampling
            )
            tokens[live, place] = self.texts[live, self.lengths[live]] = drawn
            self.lengths[live] += 1
            self.live[live] = drawn != end_id
        return Written(tokens, logprobs)

    def _widen(self, length: int) -> None:
        missing = int(self.lengths.max(initial=0)) + length - self.texts.shape[1]
        if missing > 0:
            self.texts = np.pad(self.texts, ((0, 0), (0, missing)))

    def _next_logits(self, live: Int, room: int) -> Tensor:
        """[len(live), V], after reading what the model has not read yet."""
        if self._cache is None:
            return self._read_prompts(room)
        if len(live) < LIVE_SHARE * len(self._held):
            self._keep(np.searchsorted(self._held, live))
        logits = self._read_last_tokens()
        if len(live) == len(self._held):
            return logits
        return logits[torch.from_numpy(np.searchsorted(self._held, live)).to(logits.device)]

    def _read_prompts(self, room: int) -> Tensor:
        from rlhf_env.policies.cache import flush_right, is_movable, roomy_cache

        lengths = self.lengths[self._held]
        width = int(lengths.max())
        prompts = np.where(np.arange(width) < lengths[:, None], self.texts[self._held, :width], -1)
        # Answers to one prompt share its keys and values: it is read once.
        distinct, copies = np.unique(prompts, axis=0, return_inverse=True)
        tokens = torch.from_numpy(distinct).to(self.model.device)
        rows = torch.from_numpy(copies.reshape(-1)).to(tokens.device)
        mask = tokens >= 0
        last = mask.sum(1) - 1
        columns = torch.arange(width, device=tokens.device) - (width - 1 - last)[:, None]  # where a slot's token is now
        positions = torch.arange(width, device=tokens.device).expand_as(tokens)

        self._cache = roomy_cache(self.model.config, width + room)
        if self.fused is not None:
            logits = self.fused.read(tokens, mask, self._cache, rows, columns[rows].clamp(min=0))
        elif is_movable(self._cache):
            # Read flush left, where no padding is ever attended to, or attends to nothing (eager attention: NaN).
            _, logits = forward_pass(
                self.model,
                tokens.clamp(min=0),
                torch.ones_like(mask),
                positions,
                select=lambda states: states[torch.arange(len(last), device=last.device), last],
                cache=self._cache,
            )
            flush_right(self._cache, rows, columns[rows].clamp(min=0))
        else:  # a recurrent state must not have read padding last
            places = columns.clamp(min=0)
            _, logits = forward_pass(
                self.model,
                tokens.gather(1, places),
                columns >= 0,
                positions.gather(1, places),
                select=lambda states: states[:, -1],
                cache=self._cache,
            )
            self._cache.reorder_cache(rows)
        self._mask = F.pad(columns[rows] >= 0, (0, room), value=True)
        self._ragged = bool((lengths != width).any())
        return logits[rows]

    def _read_last_tokens(self) -> Tensor:
        # Rows that have stopped but are not dropped yet read a token that nobody looks at, at a position that exists.
        lengths = np.where(self.live[self._held], self.lengths[self._held], 1)
        tokens = self.texts[self._held, lengths - 1]
        assert self._cache is not None
        slots = self._cache.get_seq_length() + 1
        if slots > self._mask.shape[1]:
            self._mask = F.pad(self._mask, (0, slots), value=True)
        if self.fused is not None:
            read = torch.from_numpy(np.stack([tokens, lengths - 1])).to(self.model.device)
            return self.fused(read[0], read[1], self._cache, self._mask[:, :slots] if self._ragged else None)
        _, logits = forward_pass(
            self.model,
            torch.from_numpy(tokens[:, None]).to(self.model.device),
            self._mask[:, :slots],
            torch.from_numpy(lengths[:, None] - 1).to(self.model.device),
            select=lambda states: states[:, -1],
            cache=self._cache,
        )
        return logits

    def _keep(self, places: Int) -> None:
        rows = torch.from_numpy(places).to(self.model.device)
        assert self._cache is not None
        self._cache.reorder_cache(rows)
        self._mask = self._mask[rows]
        self._held = self._held[places]


def draw(logits: Tensor, uniforms: Float, sampling: Sampling) -> tuple[Int, Float]:
    """One token a row by inverting the distribution function: ids int64[R] and their log-probabilities float64[R].

    `logits` [R, V]; `uniforms` float64[R] in [0, 1). A token of probability 0 is never drawn. RunFailed when the logits
    of a row define no distribution.
    """
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if sampling.temperature != 1.0:
        scores = scores / sampling.temperature
    ids: Tensor | None = None
    if sampling.top_k and sampling.top_k < scores.shape[1]:
        scores, ids = scores.topk(sampling.top_k)
    elif sampling.top_p < 1.0:
        scores, ids = scores.sort(descending=True)
    weights = scores.softmax(-1)
    if sampling.top_p < 1.0:
        cumulated = weights.cumsum(-1, dtype=torch.float64)
        likelier = cumulated - weights  # of all tokens before this one: exactly 0 for the first, which always stays
        weights = weights.masked_fill(likelier >= sampling.top_p * cumulated[:, -1:], 0.0)
    blocked = weights.shape[1] > 2 * BLOCK
    cumulated = (_block_sums(weights) if blocked else weights).cumsum(-1, dtype=torch.float64)
    total = cumulated[:, -1:]
    if not bool(torch.isfinite(total).all()):
        raise RunFailed("the policy's logits are not finite: it has diverged (lower the learning rate, clip gradients)")
    # u is at most 1 - 2^-53, so in float64 u * total rounds to less than total: some place exceeds it. The first place
    # that does was raised by its own weight, so that weight is not 0.
    target = torch.from_numpy(uniforms).to(total.device)[:, None] * total
    place = torch.searchsorted(cumulated, target, right=True)
    if blocked:
        place = _place_in_block(weights, place, target - F.pad(cumulated, (1, 0)).gather(-1, place))
    logprobs = torch.log(weights.gather(-1, place).double() / total)
    chosen = place if ids is None else ids.gather(-1, place)
    return chosen[:, 0].cpu().numpy(), logprobs[:, 0].cpu().numpy()


def _block_sums(weights: Tensor) -> Tensor:
    """[R, ceil(V / BLOCK)]: what every BLOCK places of `weights` [R, V] sum to; the last block may be shorter."""
    whole = weights.shape[1] // BLOCK * BLOCK
    sums = weights[:, :whole].reshape(len(weights), -1, BLOCK).sum(-1)
    if whole == weights.shape[1]:
        return sums
    return torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], dim=1)


def _place_in_block(weights: Tensor, block: Tensor, rest: Tensor) -> Tensor:
    """int64[R, 1]: the first place of each row's `block` up to which its weights sum to more than `rest` [R, 1]."""
    columns = block * BLOCK + torch.arange(BLOCK, device=block.device)
    beyond = columns >= weights.shape[1]
    inside = weights.gather(-1, columns.masked_fill(beyond, 0)).masked_fill(beyond, 0.0)
    cumulated = inside.cumsum(-1, dtype=torch.float64)
    # The block's sum was rounded otherwise: kept within what the places themselves sum to, or no place would exceed it.
    most = torch.nextafter(cumulated[:, -1:], torch.zeros_like(rest))
    return block * BLOCK + torch.searchsorted(cumulated, rest.clamp(min=0.0).minimum(most), right=True)
