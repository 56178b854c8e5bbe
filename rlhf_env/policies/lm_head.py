"""Log-probabilities and entropies straight from hidden states: the logits of a batch never exist as a whole.

For `log_softmax(states @ weight.T)` autograd keeps several tensors [N, V]; with 4,096 tokens and a vocabulary of 49,152
each takes 0.8 GB. Here the head runs on a few rows at a time, and the backward pass is written by hand. With z the
logits divided by the temperature, p = softmax(z), c the target token and H the entropy,

    d log p_c / d z_j = [j = c] - p_j        d H / d z_j = -p_j (log p_j + H)

The backward pass needs p: the probabilities of the first rows are kept, as many as fit into a fixed amount of memory,
and those of the other rows are computed again. Where the head does not train (below adapters), what is kept instead is
d log p_c / d state = weight_c - p weight, [N, H], which the forward pass computes while it has p: no row is computed
again for the gradient of a log-probability.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rlhf_env.policies.forward_pass import forward_pass
from rlhf_env.policies.linear import add_weight_gradient, has_onednn, matmul, round_down, round_up
from rlhf_env.policies.untyped import AutogradContext, HFModel

# The number of logits at a time, and of probabilities kept for the backward pass: 16 MB and 64 MB of float32.
_LOGITS_AT_ONCE = 2**22
PROBABILITIES_KEPT = 2**24


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
    return logprobs, -(distributions.exp() * distributions).sum(-1)


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
    _, logits = forward_pass(model, token, torch.ones_like(token), torch.zeros_like(token), select=lambda _: states)
    expected = head.scale * F.linear(states, head.weight, head.bias)
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
        targets: Tensor,
        temperature: float,
        soft_cap: float | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.soft_cap, ctx.scale = temperature, soft_cap, scale
        precision = torch.promote_types(states.dtype, torch.float32)
        logprobs = torch.empty(len(states), dtype=precision, device=states.device)
        entropy = torch.empty_like(logprobs)
        # The gradient of a cap needs the logits themselves, so with one the backward pass computes them again anyway.
        learns = any(ctx.needs_input_grad) and soft_cap is None
        head_learns = any(ctx.needs_input_grad[1:3])
        pulls = torch.empty_like(states) if learns and not head_learns else None
        keep = learns and head_learns
        kept = logprobs.new_empty(PROBABILITIES_KEPT // len(weight) if keep else 0, len(weight))[: len(states)]
        for rows in _chunks(len(states), len(weight)):
            scores, _ = _scores(states[rows], weight, bias, temperature, soft_cap, scale)
            probabilities = kept[rows] if rows.stop <= len(kept) else torch.empty_like(scores)
            torch.softmax(scores, -1, out=probabilities)
            if pulls is not None:
                pulls[rows] = weight[targets[rows]] - matmul(probabilities.to(weight.dtype), weight.t())
            # log p = z - max(z) - log_normalizer, where the likeliest token has z - max(z) = 0: its probability gives
            # the normalizer without another pass over the vocabulary. All scores are now at most 0, so that the entropy
            # log_normalizer - sum(p * scores) is a sum of terms that are not negative, however they round.
            largest, likeliest = scores.max(-1, keepdim=True)
            scores -= largest
            log_normalizer = -probabilities.gather(1, likeliest).log().squeeze(1)
            logprobs[rows] = scores.gather(1, targets[rows, None]).squeeze(1) - log_normalizer
            entropy[rows] = log_normalizer - torch.linalg.vecdot(probabilities, scores)
        ctx.save_for_backward(states, weight, bias, targets, entropy, kept, pulls)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: AutogradContext, d_logprobs: Tensor | None, d_entropy: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        # d_x is the gradient of the loss with respect to x.
        states, weight, bias, targets, entropy, kept, pulls = ctx.saved_tensors
        if pulls is not None and d_entropy is None:
            factors = torch.zeros_like(entropy) if d_logprobs is None else d_logprobs * (ctx.scale / ctx.temperature)
            return (factors.unsqueeze(1) * pulls).to(states.dtype), None, None, None, None, None, None
        d_states, d_weight, d_bias = (
            torch.zeros_like(tensor) if needed else None
            for tensor, needed in zip((states, weight, bias), ctx.needs_input_grad, strict=False)
        )
        for rows in _chunks(len(states), len(weight)):
            if rows.stop <= len(kept):
                probabilities, slope = kept[rows], None
            else:
                scores, slope = _scores(states[rows], weight, bias, ctx.temperature, ctx.soft_cap, ctx.scale)
                probabilities = torch.softmax(scores, -1, out=scores)
            if d_logprobs is None:
                d_scores = torch.zeros_like(probabilities)
            else:
                d_scores = probabilities * -d_logprobs[rows, None]
                d_scores.scatter_add_(1, targets[rows, None], d_logprobs[rows, None])
            if d_entropy is not None:
                # p (log p + H), with 0 log 0 = 0
                surprise = torch.special.xlogy(probabilities, probabilities) + probabilities * entropy[rows, None]
                d_scores -= surprise * d_entropy[rows, None]
            # Back through cap, temperature and scale to the head's output, and through the matmul to its inputs.
            if slope is not None:
                d_scores *= slope
            if ctx.temperature != 1.0:
                d_scores /= ctx.temperature
            if ctx.scale != 1.0:
                d_scores *= ctx.scale
            d_logits = d_scores.to(weight.dtype)
            if d_states is not None:
                d_states[rows] = matmul(d_logits, weight.t())
            if d_weight is not None:
                add_weight_gradient(d_weight, d_logits, states[rows])
            if d_bias is not None:
                d_bias += d_logits.sum(0)
        return d_states, d_weight, d_bias, None, None, None, None


def _chunks(rows: int, vocab_size: int) -> Iterator[slice]:
    """Slices that cover `rows`, each with at most `_LOGITS_AT_ONCE` logits and at least one row."""
    at_once = max(1, round_down(_LOGITS_AT_ONCE // vocab_size))
    return (slice(first, min(first + at_once, rows)) for first in range(0, rows, at_once))


def _scores(
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
