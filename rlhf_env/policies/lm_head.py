"""Log-probabilities and entropies straight from hidden states: the logits of a batch never exist as a whole.

For `log_softmax(states @ weight.T)` autograd keeps several tensors [N, V]; with 4,096 tokens and a vocabulary of 49,152
each takes 0.8 GB. Here the head runs on some rows and some words of the vocabulary at a time, and the backward pass is
written by hand. With z the logits divided by the temperature, p = softmax(z), c the target token and H the entropy,

    d log p_c / d z_j = [j = c] - p_j        d H / d z_j = -p_j (log p_j + H)

Of every row, the sums over the words so far are relative to the largest z so far; a larger one scales them down
(Milakov and Gimelshein 2018, 1805.02867). Blocks of words, and not of rows alone, because the weight is the largest
matrix there is: each block of it is read once for many rows, and each block of its gradient is written once.

The backward pass needs z: that of the first blocks is kept, as many as fit into a fixed amount of memory, and that of
the others is computed again. Where the head does not train (below adapters), what is kept instead is
d log p_c / d state = weight_c - p weight, [N, H], which the forward pass computes while it has p: nothing is computed
again for the gradient of a log-probability.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rlhf_env.policies.forward_pass import first_layer_alone, forward_pass
from rlhf_env.policies.linear import add_weight_gradient, has_onednn, matmul, round_up
from rlhf_env.policies.untyped import AutogradContext, HFModel

# The number of logits at a time, and of those kept for the backward pass: 8 MB and 64 MB of float32.
_LOGITS_AT_ONCE = 2**21
LOGITS_KEPT = 2**24
# Rows at a time. More would leave blocks of few words, and sums over the words would be read and written too often.
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class LinearHead:
    """A head whose logits are `cap(scale * (states @ weight.T + bias))`, cap(z) = soft_cap * tanh(z / soft_cap)."""

    weight: Tensor
    """[V, H]"""
    bias: Tensor | None
    """[V]"""
    soft_cap: float | None
    """None: no cap."""
    scale: float = 1.0

    def score(self, states: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probability of `targets` int64[N] and entropy, [N] each, of the distributions at `states` [N, H].

        In the precision of the states, but at least float32. Differentiable once in states, weight and bias.
        """
        count = len(states)
        # oneDNN keeps a kernel for round numbers of rows only (see `linear`): pad with rows that nobody looks at.
        padding = round_up(count) - count if has_onednn(states) else 0
        states, targets = F.pad(states, (0, 0, 0, padding)), F.pad(targets, (0, padding))
        logprobs, entropy = _Score.apply(  # type: ignore[no-untyped-call]
            states, self.weight, self.bias, targets, temperature, self.soft_cap, self.scale
        )
        return logprobs[:count], entropy[:count]


def score_logits(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The same as `LinearHead.score`, from logits [N, V] that the model's own head has computed."""
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    distributions = scores.log_softmax(-1)
    logprobs = distributions.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    # 0 log 0 is 0: a word that never comes has log-probability -inf, and long before that a probability of 0.
    return logprobs, -(distributions.exp() * distributions.clamp(min=-1e4)).sum(-1)


def linear_head(model: HFModel) -> LinearHead | None:
    """The head of a causal LM if it is a plain `nn.Linear`; None if it is a subclass, or has an adapter or a hook.

    Scale (Cohere, Granite) and cap (Gemma) are what the configuration says; the model may do something else with its
    logits, see `gives_the_logits`.
    """
    head = model.get_output_embeddings()
    hooked = type(head) is nn.Linear and (head._forward_hooks or head._forward_pre_hooks or head._backward_hooks)
    if type(head) is not nn.Linear or hooked or "forward" in vars(head):
        return None
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None)
    if not isinstance(scale, int | float):  # MPT's may be the name of a formula
        scale = 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    soft_cap = getattr(config, "final_logit_softcapping", None)
    return LinearHead(head.weight, head.bias, None if soft_cap is None else float(soft_cap), float(scale))


@torch.no_grad()
def gives_the_logits(head: LinearHead, model: object) -> bool:
    """Whether `head` alone computes the logits of `model`; some families scale theirs afterwards, for instance.

    Found out by trying: model and head get the same two made-up states, large enough for a cap to show.
    """
    hidden = head.weight.shape[1]
    states = torch.linspace(-1.0, 1.0, hidden, dtype=torch.float64).repeat(2, 1)
    states[1] = (37.0 * states[1]).sin() * 20.0
    states = states.to(head.weight)
    token = torch.zeros(1, 1, dtype=torch.int64, device=states.device)
    asked = model, token, torch.ones_like(token), torch.zeros_like(token)
    try:
        with first_layer_alone(model):  # the others would read all their weights for nothing
            _, logits = forward_pass(*asked, select=lambda _: states)
    except Exception:  # of a family that counts its layers
        _, logits = forward_pass(*asked, select=lambda _: states)
    expected = head.scale * F.linear(states, head.weight, head.bias)
    if head.soft_cap is not None:
        expected = head.soft_cap * torch.tanh(expected / head.soft_cap)
    never = torch.isneginf(expected)  # words that a bias of -inf rules out
    if not torch.equal(never, torch.isneginf(logits)):
        return False
    logits, expected = logits.masked_fill(never, 0.0), expected.masked_fill(never, 0.0)
    # Rounding is of the size of the largest logit.
    return float((logits - expected).abs().max()) <= 8.0 * torch.finfo(logits.dtype).eps * float(expected.abs().max())


class _Score(torch.autograd.Function):
    """(log-probabilities [N], entropies [N]); see `LinearHead.score`."""

    @staticmethod
    def forward(
        ctx: AutogradContext,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        soft_cap: float | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.soft_cap, ctx.scale = temperature, soft_cap, scale
        precision = torch.promote_types(states.dtype, torch.float32)
        logprobs = torch.empty(len(states), dtype=precision, device=states.device)
        entropy, normalizer = torch.empty_like(logprobs), torch.empty_like(logprobs)
        learns, head_learns = any(ctx.needs_input_grad), any(ctx.needs_input_grad[1:3])
        # The gradient of a cap needs more than what is kept: with one, the backward pass computes everything again.
        pulls = torch.empty_like(states) if learns and soft_cap is None and not head_learns else None
        room = LOGITS_KEPT if learns and soft_cap is None and head_learns else 0
        kept = []
        for rows in _rows(len(states)):
            sums = _Sums()
            for words in _words(rows, len(weight)):
                part = weight[words]
                scores, _ = head_scores(
                    states[rows], part, None if bias is None else bias[words], temperature, soft_cap, scale
                )
                room -= scores.numel()
                if room >= 0:
                    kept.append(scores)
                exponentials = sums.add(scores, targets[rows] - words.start, in_place=room < 0)
                if pulls is not None:
                    sums.add_product(matmul(exponentials.to(weight.dtype), part.t()))
            logprobs[rows], entropy[rows], normalizer[rows] = sums.logprobs_entropy_and_normalizer()
            if pulls is not None:
                pulls[rows] = weight[targets[rows]] - sums.product / sums.total
        ctx.save_for_backward(states, weight, bias, targets, normalizer, entropy, pulls, *kept)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: AutogradContext, d_logprobs: Tensor | None, d_entropy: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        # d_x is the gradient of the loss with respect to x.
        states, weight, bias, targets, normalizer, entropy, pulls, *kept = ctx.saved_tensors
        if pulls is not None and d_entropy is None:
            factors = torch.zeros_like(entropy) if d_logprobs is None else d_logprobs * (ctx.scale / ctx.temperature)
            return (factors.unsqueeze(1) * pulls).to(states.dtype), None, None, None, None, None, None
        # Every block is written by the first rows; without any rows, nobody would write.
        made = torch.empty_like if len(states) else torch.zeros_like
        d_states, d_weight, d_bias = (
            made(tensor) if needed else None
            for tensor, needed in zip((states, weight, bias), ctx.needs_input_grad, strict=False)
        )
        for rows in _rows(len(states)):
            d_rows = torch.zeros_like(states[rows], dtype=entropy.dtype) if d_states is not None else None
            for words in _words(rows, len(weight)):
                part, slope = weight[words], None
                if kept:
                    scores = kept.pop(0) - normalizer[rows, None]
                else:
                    scores, slope = head_scores(
                        *(states[rows], part, None if bias is None else bias[words]),
                        *(ctx.temperature, ctx.soft_cap, ctx.scale),
                    )
                    scores -= normalizer[rows, None]
                probabilities = scores.exp_()
                d_scores = probabilities * (0.0 if d_logprobs is None else -d_logprobs[rows, None])
                if d_logprobs is not None:
                    column, inside = _within(targets[rows] - words.start, d_scores.shape[1])
                    d_scores.scatter_add_(1, column, (d_logprobs[rows] * inside)[:, None])
                if d_entropy is not None:
                    # p (log p + H), with 0 log 0 = 0
                    surprise = torch.special.xlogy(probabilities, probabilities) + probabilities * entropy[rows, None]
                    d_scores -= surprise * d_entropy[rows, None]
                # Back through cap, temperature and scale to the head's output, and through the matmul to its inputs.
                if slope is not None:
                    d_scores *= slope
                if ctx.scale != ctx.temperature:
                    d_scores *= ctx.scale / ctx.temperature
                d_logits = d_scores.to(weight.dtype)
                if d_rows is not None:
                    d_rows += matmul(d_logits, part.t())
                if d_weight is not None:
                    add_weight_gradient(d_weight[words], d_logits, states[rows], new=rows.start == 0)
                if d_bias is not None:
                    d_bias[words] = d_logits.sum(0) + (d_bias[words] if rows.start else 0.0)
            if d_states is not None and d_rows is not None:
                d_states[rows] = d_rows
        return d_states, d_weight, d_bias, None, None, None, None


class _Sums:
    """Sums over the words of the vocabulary, block by block, of exponentials relative to the largest score so far."""

    largest: Tensor
    """[n, 1]: the largest score so far."""
    total: Tensor
    """[n, 1]: the sum of exp(z - largest)."""
    weighted: Tensor
    """[n, 1]: the sum of exp(z - largest) (z - largest), which is not above 0."""
    target: Tensor
    """[n, 1]: the target's score, once its block has been."""
    product: Tensor
    """[n, H]: the sum of exp(z - largest) weight."""

    def __init__(self) -> None:
        self._begun = False
        self._factor: Tensor | None = None  # [n, 1], by which the newest block scaled down what was before it

    def add(self, scores: Tensor, targets: Tensor, *, in_place: bool) -> Tensor:
        """exp(z - largest) [n, words] of a block of `scores`; `targets` int64[n] are columns of it, or outside.

        `in_place`: `scores` may change.
        """
        column, inside = _within(targets, scores.shape[1])
        # Not -inf, which no number can be subtracted from: a block may hold nothing but words that never come.
        target, largest = scores.gather(1, column), scores.amax(-1, keepdim=True).clamp_(min=-1e30)
        if self._begun:
            target, largest = torch.where(inside[:, None], target, self.target), largest.maximum(self.largest)
        shifted = scores.sub_(largest) if in_place else scores - largest
        exponentials = shifted.exp()
        total = exponentials.sum(-1, keepdim=True)
        weighted = torch.linalg.vecdot(exponentials, shifted).unsqueeze(-1)
        if not bool(weighted.isfinite().all()):  # words that never come: their share is 0 log 0, which is 0
            weighted = torch.linalg.vecdot(exponentials, shifted.nan_to_num(neginf=0.0)).unsqueeze(-1)
        if self._begun:
            change = self.largest - largest
            self._factor = change.exp()
            weighted += self._factor * (self.weighted + self.total * change)
            total += self._factor * self.total
        self.target, self.largest, self.total, self.weighted = target, largest, total, weighted
        self._begun = True
        return exponentials

    def add_product(self, product: Tensor) -> None:
        """The newest block's exponentials times its weight."""
        if self._factor is None:
            self.product = product.to(self.total.dtype)
        else:
            self.product.mul_(self._factor).add_(product)

    def logprobs_entropy_and_normalizer(self) -> tuple[Tensor, Tensor, Tensor]:
        """log p of the targets, H, and log of the sum of all exp(z), [n] each.

        The entropy is a sum of terms that are not negative, however they round.
        """
        logarithm = self.total.log()
        logprobs, entropy = self.target - self.largest - logarithm, logarithm - self.weighted / self.total
        return logprobs.squeeze(1), entropy.squeeze(1), (self.largest + logarithm).squeeze(1)


def _within(targets: Tensor, words: int) -> tuple[Tensor, Tensor]:
    """Columns int64[n, 1] of a block of `words` that can be read, and whether they are the targets', bool[n]."""
    return targets.clamp(0, words - 1).unsqueeze(1), (targets >= 0) & (targets < words)


def _rows(count: int) -> Iterator[slice]:
    """Slices that cover `count` rows, of about equal size, each with at most `_ROWS_AT_ONCE` and `_LOGITS_AT_ONCE`."""
    most = min(_ROWS_AT_ONCE, _LOGITS_AT_ONCE)
    at_once = min(most, round_up(-(-count // -(-count // most)))) if count else 1
    return (slice(first, min(first + at_once, count)) for first in range(0, count, at_once))


def _words(rows: slice, vocab_size: int) -> Iterator[slice]:
    """Slices that cover the vocabulary, each with at most `_LOGITS_AT_ONCE` logits of `rows`.

    Their size is a power of 2: oneDNN keeps a kernel for each size (see `linear`), and powers of 2 are few.
    """
    at_once = 1 << ((_LOGITS_AT_ONCE // (rows.stop - rows.start)).bit_length() - 1)
    return (slice(first, min(first + at_once, vocab_size)) for first in range(0, vocab_size, at_once))


def head_scores(
    states: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, soft_cap: float | None, scale: float
) -> tuple[Tensor, Tensor | None]:
    """The logits [n, V] divided by the temperature, and the derivative of the cap [n, V] if there is a cap."""
    logits = matmul(states, weight, bias)
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if scale != 1.0:
        scores = scores.mul_(scale)
    slope = None
    if soft_cap is not None:
        capped = scores.div_(soft_cap).tanh_()
        slope = 1.0 - capped.square()
        scores = capped.mul_(soft_cap)
    return scores.div_(temperature) if temperature != 1.0 else scores, slope
