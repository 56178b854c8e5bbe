"""Log-probabilities and entropies straight from states: the logits of a batch never exist as a whole.

What autograd keeps of `log_softmax(states @ weight.T)` is several tensors [N, V]; at 4,096 places and a vocabulary of
49,152 each is 0.8 GB. Here the head runs over a few rows at a time, and its backward is written by hand: with z the
logits at the temperature, p = softmax(z) and H the entropy,

    d log p_c / d z_j = [j = c] - p_j        d H / d z_j = -p_j (log p_j + H)

The probabilities of the first rows, as many as fit, are kept for it; those of the others are made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rlhf_env.policies.forward_pass import forward_pass
from rlhf_env.policies.linear import has_onednn, image, round_down, round_up, weight_gradient
from rlhf_env.policies.untyped import AutogradContext, HFModel

# Logits at once, and probabilities kept for the backward pass: 16 MB and 64 MB of float32.
_LOGITS_AT_ONCE = 2**22
PROBABILITIES_KEPT = 2**24


@dataclass(frozen=True)
class LinearHead:
    """A head that is `cap(states @ weight.T + bias)`, cap(z) = soft_cap * tanh(z / soft_cap).

    `weight` [V, H]; `bias` [V], if there is one; without a `soft_cap` nothing is capped.
    """

    weight: Tensor
    bias: Tensor | None
    soft_cap: float | None

    def score(self, states: Tensor, chosen: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probability of `chosen` int64[N] and entropy, [N] each, of the distributions at `states` [N, H].

        In the precision of the states, but at least float32. Differentiable once in states, weight and bias.
        """
        count = len(states)
        spare = round_up(count) - count if has_onednn(states) else 0
        states, chosen = F.pad(states, (0, 0, 0, spare)), F.pad(chosen, (0, spare))
        logprobs, entropy = _Score.apply(  # type: ignore[no-untyped-call]
            states, self.weight, self.bias, chosen, temperature, self.soft_cap
        )
        return logprobs[:count], entropy[:count]


def score_logits(logits: Tensor, chosen: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """As `LinearHead.score`, from logits [N, V] that a model's own head has made."""
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    distributions = scores.log_softmax(-1)
    logprobs = distributions.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    return logprobs, -(distributions.exp() * distributions).sum(-1)


def linear_head(model: HFModel) -> LinearHead | None:
    """The head of a causal LM, where it is a plain `nn.Linear` that somebody may read past; otherwise None.

    An adapter, a hook or a subclass makes it another head.
    """
    head = model.get_output_embeddings()
    hooked = type(head) is nn.Linear and (head._forward_hooks or head._forward_pre_hooks or head._backward_hooks)
    if type(head) is not nn.Linear or hooked or "forward" in vars(head):
        return None
    soft_cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return LinearHead(head.weight, head.bias, None if soft_cap is None else float(soft_cap))


@torch.no_grad()
def is_all_there_is(head: LinearHead, model: object) -> bool:
    """Whether the logits of `model` are those of `head`: some families scale theirs, or do what nobody has foreseen.

    Asked of the model itself, with two states made up, large enough for a cap to show.
    """
    hidden = head.weight.shape[1]
    states = torch.linspace(-1.0, 1.0, hidden, dtype=torch.float64).repeat(2, 1)
    states[1] = (37.0 * states[1]).sin() * 20.0
    states = states.to(head.weight)
    token = torch.zeros(1, 1, dtype=torch.int64, device=states.device)
    _, logits = forward_pass(model, token, torch.ones_like(token), torch.zeros_like(token), select=lambda _: states)
    expected = F.linear(states, head.weight, head.bias)
    if head.soft_cap is not None:
        expected = head.soft_cap * torch.tanh(expected / head.soft_cap)
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
        chosen: Tensor,
        temperature: float,
        soft_cap: float | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.soft_cap = temperature, soft_cap
        precision = torch.promote_types(states.dtype, torch.float32)
        logprobs = torch.empty(len(states), dtype=precision, device=states.device)
        entropy = torch.empty_like(logprobs)
        # A cap's slope needs the logits, so that there is nothing to gain from keeping what comes after them.
        keeps = any(ctx.needs_input_grad) and soft_cap is None
        kept = logprobs.new_empty(PROBABILITIES_KEPT // len(weight) if keeps else 0, len(weight))[: len(states)]
        for rows in _chunks(len(states), len(weight)):
            scores, _ = _scores(states[rows], weight, bias, temperature, soft_cap)
            own = kept[rows] if rows.stop <= len(kept) else torch.empty_like(scores)
            torch.softmax(scores, -1, out=own)
            largest, where = scores.max(-1, keepdim=True)
            scores -= largest  # all of them at most 0, and with them no rounding makes an entropy negative
            log_normalizer = -own.gather(1, where).log().squeeze(1)
            logprobs[rows] = scores.gather(1, chosen[rows, None]).squeeze(1) - log_normalizer
            entropy[rows] = log_normalizer - torch.linalg.vecdot(own, scores)
        ctx.save_for_backward(states, weight, bias, chosen, entropy, kept)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: AutogradContext, to_logprobs: Tensor | None, to_entropy: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        states, weight, bias, chosen, entropy, kept = ctx.saved_tensors
        to_states, to_weight, to_bias = (
            torch.zeros_like(tensor) if needed else None
            for tensor, needed in zip((states, weight, bias), ctx.needs_input_grad, strict=False)
        )
        for rows in _chunks(len(states), len(weight)):
            if rows.stop <= len(kept):
                probabilities, slope = kept[rows], None
            else:
                scores, slope = _scores(states[rows], weight, bias, ctx.temperature, ctx.soft_cap)
                probabilities = torch.softmax(scores, -1, out=scores)
            if to_logprobs is None:
                to_scores = torch.zeros_like(probabilities)
            else:
                to_scores = probabilities * -to_logprobs[rows, None]
                to_scores.scatter_add_(1, chosen[rows, None], to_logprobs[rows, None])
            if to_entropy is not None:
                surprise = torch.special.xlogy(probabilities, probabilities) + probabilities * entropy[rows, None]
                to_scores -= surprise * to_entropy[rows, None]
            if slope is not None:
                to_scores *= slope
            if ctx.temperature != 1.0:
                to_scores /= ctx.temperature
            to_logits = to_scores.to(weight.dtype)
            if to_states is not None:
                to_states[rows] = image(to_logits, weight.t())
            if to_weight is not None:
                to_weight += weight_gradient(to_logits, states[rows])
            if to_bias is not None:
                to_bias += to_logits.sum(0)
        return to_states, to_weight, to_bias, None, None, None


def _chunks(rows: int, vocab_size: int) -> Iterator[slice]:
    """Slices that cover `rows`, each of no more logits than `_LOGITS_AT_ONCE`, but of one row at least."""
    at_once = max(1, round_down(_LOGITS_AT_ONCE // vocab_size))
    return (slice(first, min(first + at_once, rows)) for first in range(0, rows, at_once))


def _scores(
    states: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, soft_cap: float | None
) -> tuple[Tensor, Tensor | None]:
    """The logits [n, V] at the temperature, and the slope of the cap there [n, V], if there is one."""
    logits = image(states, weight, bias)
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    slope = None
    if soft_cap is not None:
        capped = scores.div_(soft_cap).tanh_()
        slope = 1.0 - capped.square()
        scores = capped.mul_(soft_cap)
    return scores.div_(temperature) if temperature != 1.0 else scores, slope
