"""Divergences between what two policies would write next, over the whole vocabulary.

A policy gives `NextTokens`: hidden states and the head that makes logits of them, so that the logits of a batch never
exist as a whole. The divergence and its gradient are computed together, some rows at a time. With z the logits of the
student divided by the temperature, p = softmax(z), q the teacher's distribution and m = beta q + (1 - beta) p,

    forward   KL(q || p)                                d / d z_j = p_j - q_j
    reverse   KL(p || q)                                d / d z_j = p_j (log p_j - log q_j - KL(p || q))
    jsd       beta KL(q || m) + (1 - beta) KL(p || m)   d / d z_j = (1 - beta) p_j (log p_j - log m_j - KL(p || m))

The last is the generalised Jensen-Shannon divergence of Agarwal et al. 2024 (2306.13649, eq. 1). In its gradient, what
p_j does to m cancels against the derivative of p_j log p_j.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf_env.errors import ConfigError
from rlhf_env.policies.linear import add_weight_gradient, matmul, round_up
from rlhf_env.policies.lm_head import LinearHead, head_scores
from rlhf_env.policies.untyped import AutogradContext

TokenDivergence = Literal["forward", "reverse", "jsd"]

# Logits at a time, of the student and as many of the teacher: 16 MB of float32 each, and a few tensors like them.
_LOGITS_AT_ONCE = 2**22
_ROWS_AT_ONCE = 1024
_NEVER = -1e4  # log-probability of a token that is ruled out: 0 log 0 is 0


@dataclass(frozen=True, eq=False)
class NextTokens:
    """The distributions of the next token at N places of texts: softmax(logits / temperature)."""

    states: Tensor
    """[N, H]; without a head the logits themselves, [N, V]."""
    head: LinearHead | None
    """What makes logits of states."""
    temperature: float

    @property
    def vocab_size(self) -> int:
        return self.states.shape[1] if self.head is None else len(self.head.weight)

    def softened(self, temperature: float) -> NextTokens:
        """The same logits, divided by `temperature` once more."""
        return NextTokens(self.states, self.head, self.temperature * temperature)

    def kept(self, top_k: int, top_p: float) -> Tensor:
        """[N]: how likely the tokens are together that `Sampling` keeps, 1 where it keeps all. Without gradients."""
        words, found = self.vocab_size, []
        for rows in _rows(len(self.states), words):
            probs = _scores(self, rows, words)[0].softmax(-1)
            probs = probs.topk(top_k).values if 0 < top_k < words else probs.sort(descending=True).values
            total = probs.cumsum(-1, dtype=torch.promote_types(probs.dtype, torch.float32))
            found.append(probs.masked_fill(total - probs >= top_p * total[:, -1:], 0.0).sum(-1))
        return torch.cat(found) if found else torch.zeros(0)


@dataclass(frozen=True, eq=False)
class StatesRead:
    """What a model made of texts, of which it read `width` columns."""

    width: int
    head: LinearHead | None
    scored: Tensor
    """[N, H]: the states where the distribution of the next token is asked for; without a head, logits [N, V]."""
    states: Callable[[], Tensor]
    """[B, width, H]"""


def weighted_divergence(
    student: NextTokens, teacher: NextTokens, weights: Tensor, kind: TokenDivergence, beta: float = 0.5
) -> tuple[Tensor, Tensor]:
    """(scalar, [N]): the sum of weights [N] times divergences, and the divergences, in nats.

    The scalar is differentiable once, in the student's states and head; the divergences are not. Where one vocabulary
    is larger (models fill theirs up to a round number), both are cut to what they have in common, and renormalised.
    Raises ConfigError for another number of places.
    """
    if len(student.states) != len(teacher.states) or len(weights) != len(student.states):
        raise ConfigError(
            f"student, teacher and weights speak about {len(student.states)}, {len(teacher.states)} and {len(weights)} "
            "tokens: they are to be the same"
        )
    head = student.head
    weight, bias = (None, None) if head is None else (head.weight, head.bias)
    total, divergences = _WeightedDivergence.apply(  # type: ignore[no-untyped-call]
        student.states, weight, bias, student, teacher, weights.detach(), kind, float(beta)
    )
    return total, divergences


def token_divergence(logp: Tensor, logq: Tensor, kind: TokenDivergence, beta: float) -> tuple[Tensor, Tensor]:
    """([n], [n, V]): divergences of rows of log-probabilities [n, V] of student and teacher, and d / d z of each."""
    p = logp.exp()
    if kind == "forward":
        q = logq.exp()
        return (q * (logq - logp)).sum(-1), p - q
    if kind == "reverse":
        ratio = logp - logq
        divergence = (p * ratio).sum(-1)
        return divergence, p * (ratio - divergence[:, None])
    mixed = torch.logaddexp(logq + math.log(beta), logp + math.log1p(-beta))
    ratio = logp - mixed
    own = (p * ratio).sum(-1)
    divergence = beta * (logq.exp() * (logq - mixed)).sum(-1) + (1.0 - beta) * own
    return divergence, (1.0 - beta) * p * (ratio - own[:, None])


class _WeightedDivergence(torch.autograd.Function):
    """(weighted sum, divergences [N]); see `weighted_divergence`.

    The forward pass computes the gradients, too: what the sum is multiplied with later scales them all alike.
    """

    @staticmethod
    def forward(
        ctx: AutogradContext,
        states: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        student: NextTokens,
        teacher: NextTokens,
        weights: Tensor,
        kind: TokenDivergence,
        beta: float,
    ) -> tuple[Tensor, Tensor]:
        precision = torch.promote_types(states.dtype, torch.float32)
        divergences = torch.zeros(len(states), dtype=precision, device=states.device)
        # Tokens beyond `common` get no gradient.
        common = min(student.vocab_size, teacher.vocab_size)
        whole = common == student.vocab_size and len(states) > 0
        made = torch.empty_like if whole else torch.zeros_like
        d_states = torch.zeros_like(states) if ctx.needs_input_grad[0] else None
        d_weight = made(weight) if weight is not None and ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for rows in _rows(len(states), common):
            scores, slope = _scores(student, rows, common)
            logp = scores.log_softmax(-1).clamp_(min=_NEVER)
            logq = _scores(teacher, rows, common)[0].log_softmax(-1).clamp_(min=_NEVER).to(logp.dtype)
            divergences[rows], d_scores = token_divergence(logp, logq, kind, beta)
            if d_states is None and d_weight is None and d_bias is None:
                continue
            d_scores = d_scores * weights[rows, None].to(d_scores.dtype)
            if slope is not None:
                d_scores *= slope
            scale = 1.0 if student.head is None else student.head.scale
            d_logits = d_scores.mul_(scale / student.temperature).to(states.dtype)
            if weight is None:
                if d_states is not None:
                    d_states[rows, :common] = d_logits
                continue
            if d_states is not None:
                d_states[rows] = matmul(d_logits, weight[:common].t())
            if d_weight is not None:
                add_weight_gradient(d_weight[:common], d_logits, states[rows], new=rows.start == 0)
            if d_bias is not None:
                d_bias[:common] += d_logits.sum(0)
        ctx.save_for_backward(d_states, d_weight, d_bias)
        ctx.mark_non_differentiable(divergences)
        kept = weights != 0
        return (divergences.masked_fill(~kept, 0.0) * weights).sum(), divergences

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, d_total: Tensor, _d_divergences: Tensor | None) -> tuple[Tensor | None, ...]:
        scaled = (None if it is None else it * d_total.to(it.dtype) for it in ctx.saved_tensors)
        return (*scaled, None, None, None, None, None)


def _scores(source: NextTokens, rows: slice, words: int) -> tuple[Tensor, Tensor | None]:
    """Logits [n, words] of some rows over the temperature, in float32 at least, and the derivative of a cap."""
    head, states = source.head, source.states[rows].detach()
    if head is None:
        return states[:, :words].to(torch.promote_types(states.dtype, torch.float32)) / source.temperature, None
    bias = None if head.bias is None else head.bias[:words].detach()
    return head_scores(states, head.weight[:words].detach(), bias, source.temperature, head.soft_cap, head.scale)


def _rows(count: int, words: int) -> Iterator[slice]:
    """Slices that cover `count` rows, of about equal size, each with `_LOGITS_AT_ONCE` logits or fewer."""
    most = max(1, min(_ROWS_AT_ONCE, _LOGITS_AT_ONCE // words))
    at_once = min(most, round_up(-(-count // -(-count // most)))) if count else 1
    return (slice(first, min(first + at_once, count)) for first in range(0, count, at_once))
