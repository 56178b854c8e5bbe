"""Divergences of whole distributions: against sums over all texts, autograd on plain logits, and TRL's own function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_env.errors import ConfigError
from rlhf_env.lab.studies.exact.world import kl, response_logprobs
from rlhf_env.policies import next_tokens, tiny_language_model
from rlhf_env.policies.lm_head import LinearHead
from rlhf_env.policies.next_tokens import NextTokens, TokenDivergence, weighted_divergence
from rlhf_env.policies.tabular import TabularPolicy

KINDS: list[TokenDivergence] = ["forward", "reverse", "jsd"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plainly(student: Tensor, teacher: Tensor, kind: str, beta: float) -> Tensor:
    """[N]: by the definitions, from logits [N, V]."""
    p, q = student.softmax(-1), teacher.softmax(-1)
    if kind == "forward":
        return (q * (q / p).log()).sum(-1)
    if kind == "reverse":
        return (p * (p / q).log()).sum(-1)
    m = beta * q + (1.0 - beta) * p
    return beta * (q * (q / m).log()).sum(-1) + (1.0 - beta) * (p * (p / m).log()).sum(-1)


def tables() -> tuple[TabularPolicy, TabularPolicy]:
    student, teacher = (TabularPolicy(4, 3, init_std=1.0, seed=seed) for seed in (1, 2))
    return student, teacher


def every_text(table: TabularPolicy) -> tuple[Tensor, Tensor, Tensor]:
    """All 85 responses after the prompt: tokens, mask, and which tokens are drawn."""
    tree = table.tree
    _, token = tree.choices
    prompt = torch.tensor(table.prompt).expand(tree.responses, -1)
    drawn = torch.cat([torch.zeros_like(prompt, dtype=torch.bool), tree.mask], dim=1)
    return torch.cat([prompt, token], dim=1), drawn | torch.tensor([True, False, False, False]), drawn


def of_texts(kind: TokenDivergence, beta: float = 0.5) -> Tensor:
    """[N]: the sum of the divergences at the tokens of each text."""
    student, teacher = tables()
    texts = every_text(student)
    at_tokens = torch.zeros(texts[2].shape, dtype=torch.float64)
    _, found = weighted_divergence(
        student.next_tokens(*texts), teacher.next_tokens(*texts), torch.ones(int(texts[2].sum())), kind, beta
    )
    return at_tokens.masked_scatter(texts[2], found).sum(1)


def test_over_all_texts_they_sum_to_the_divergence_of_texts() -> None:
    student, teacher = tables()
    ours, theirs = (response_logprobs(it.tree, it.logits.detach()) for it in (student, teacher))
    assert abs(float(ours.exp().sum()) - 1.0) < 1e-12
    assert abs(float(theirs.exp() @ of_texts("forward")) - float(kl(theirs, ours))) < 1e-10
    assert abs(float(ours.exp() @ of_texts("reverse")) - float(kl(ours, theirs))) < 1e-10
    assert float(kl(ours, theirs)) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_autograds(kind: TokenDivergence, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bias, a cap, a scale and a temperature, and in blocks of a few rows."""
    monkeypatch.setattr(next_tokens, "_LOGITS_AT_ONCE", 40)  # of 7 tokens: five rows
    monkeypatch.setattr(next_tokens, "round_up", lambda rows: rows)
    weights = normal(12, seed=9).abs()
    weights[3] = 0.0
    states, weight, bias = (normal(*shape, seed=i).requires_grad_() for i, shape in enumerate([(12, 3), (7, 3), (7,)]))
    other = normal(12, 5, seed=5), LinearHead(normal(7, 5, seed=6), None, None)
    student = NextTokens(states, LinearHead(weight, bias, 3.0, 0.5), 0.7)
    loss, found = weighted_divergence(student, NextTokens(*other, 1.3), weights, kind, 0.3)
    (3.0 * loss).backward()
    given = [it.grad for it in (states, weight, bias)]

    logits = 3.0 * torch.tanh(0.5 * (states @ weight.T + bias) / 3.0) / 0.7
    expected = plainly(logits, other[0] @ other[1].weight.T / 1.3, kind, 0.3)
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-12)
    whole = 3.0 * (expected * weights).sum()
    for mine, theirs in zip(given, torch.autograd.grad(whole, [states, weight, bias]), strict=True):
        assert mine is not None
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_that_was_rounded_up_is_cut_to_the_common_one(kind: TokenDivergence) -> None:
    for mine, theirs in ((9, 7), (7, 9)):
        states, weight = normal(4, 3).requires_grad_(), normal(mine, 3, seed=1).requires_grad_()
        teacher = normal(4, theirs, seed=2)
        loss, _ = weighted_divergence(
            NextTokens(states, LinearHead(weight, None, None), 1.0), NextTokens(teacher, None, 1.0), torch.ones(4), kind
        )
        loss.backward()
        expected = plainly((states @ weight.T)[:, :7], teacher[:, :7], kind, 0.5).sum()
        assert abs(float(loss.detach() - expected.detach())) < 1e-12
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, torch.autograd.grad(expected, weight)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_it_is_trls_generalised_jsd(beta: float) -> None:
    """TRL calls the ends of beta by what they mean: forward KL at 0, reverse KL at 1."""
    gkd = pytest.importorskip("trl.experimental.gkd", reason="TRL is among what the tests need")
    student, teacher = normal(2, 5, 7).requires_grad_(), normal(2, 5, 7, seed=1)
    labels = torch.zeros(2, 5, dtype=torch.int64)
    labels[0, 3:] = -100
    theirs = gkd.GKDTrainer.generalized_jsd_loss(student, teacher, labels=labels, beta=beta, temperature=1.5)
    counts = labels != -100
    kind: TokenDivergence = "forward" if beta == 0.0 else "reverse" if beta == 1.0 else "jsd"
    weights = torch.full((8,), 1.0 / 8.0, dtype=torch.float64)
    ours, _ = weighted_divergence(
        NextTokens(student[counts], None, 1.0).softened(1.5),
        NextTokens(teacher[counts], None, 1.5),
        weights,
        kind,
        beta,
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    grads = [torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-10)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_a_models_distributions_are_those_it_scores_by(fused: bool, left: bool) -> None:
    policy: Any = tiny_language_model("llama", dtype=torch.float64, init_std=0.3, fused=fused).eval()
    tokens = torch.randint(0, policy.vocab_size, (3, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(6) < torch.tensor([6, 4, 5])[:, None]
    where = mask & (torch.arange(6) >= torch.tensor([2, 1, 4])[:, None])
    if left:
        tokens, mask, where = (it.flip(1) for it in (tokens, mask, where))
        where[:, 0] = False
        where &= torch.cat([torch.zeros(3, 1, dtype=torch.bool), mask[:, :-1]], dim=1)
    found = policy.next_tokens(tokens, mask, where)
    logits = found.states if found.head is None else found.states @ found.head.weight.T
    scored = logits.log_softmax(-1).gather(1, tokens[where][:, None]).squeeze(1)
    torch.testing.assert_close(scored, policy.evaluate(tokens, mask, where).logprobs[where], rtol=0, atol=1e-12)


def test_no_token_no_divergence_and_other_numbers_of_tokens_are_refused() -> None:
    none = NextTokens(torch.zeros(0, 3, requires_grad=True), LinearHead(torch.ones(4, 3), None, None), 1.0)
    loss, found = weighted_divergence(none, none, torch.zeros(0), "forward")
    loss.backward()
    assert float(loss.detach()) == 0.0 and not len(found)
    with pytest.raises(ConfigError, match="speak about 0, 2 and 0 tokens"):
        weighted_divergence(none, NextTokens(torch.zeros(2, 4), None, 1.0), torch.zeros(0), "forward")
