"""The two tables of losses in the enumerable world, and the page that is made of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlhf_env.lab.studies.exact.estimators import ESTIMATORS, Batches, example, measure
from rlhf_env.lab.studies.exact.losses import (
    end_of_pair_loss,
    follow,
    home_of,
    measure_pair_loss,
    measure_token_loss,
    pair_losses,
    penalty_ends,
    token_losses,
)
from rlhf_env.lab.studies.exact.losses_page import agents_of, losses_page
from rlhf_env.lab.studies.exact.world import Objective, response_logprobs, token_logprobs
from rlhf_env.learning.agent import Setup
from rlhf_env.learning.losses.declaring import NamedTokenLoss, Pairs, load_pair_loss, load_token_loss

from .test_exact_agents import expected_gradient

PAGE = Path(__file__).resolve().parents[3] / "docs" / "losses.md"
TOKEN_LOSSES = {loss.name: loss for loss in token_losses()}
PAIR_LOSSES = {loss.name: loss for loss in pair_losses()}


def small() -> tuple[Objective, Tensor]:
    return example(2, 2, 0.5, 0)


def test_every_loss_that_is_asked_for_is_there() -> None:
    assert TOKEN_LOSSES.keys() == {
        *("clip", "dapo", "dr-grpo", "gspo", "cispo", "sapo", "clip-cov", "reinforce++", "maxrl"),
    }
    assert PAIR_LOSSES.keys() == {
        *("sigmoid", "ipo", "hinge", "robust", "apo-zero", "apo-down", "sppo", "simpo", "orpo", "cpo"),
    }


def as_trained(loss: NamedTokenLoss, size: int) -> dict[str, Any]:
    table: dict[str, Any] = {"name": home_of(loss), "loss": loss.name, "group_size": size}
    return {**table, "baseline": "none"} if table["name"] == "reinforce" else table


@pytest.mark.parametrize("name", sorted(TOKEN_LOSSES.keys() - {"maxrl", "clip-cov"}))
@pytest.mark.parametrize("size", [2, 3])
def test_the_rows_of_token_losses_are_about_the_agents(name: str, size: int) -> None:
    """What the agent's own code makes of every batch, weighted by how likely it is."""
    loss = TOKEN_LOSSES[name]
    found, _, policy, objective = expected_gradient(as_trained(loss, size), size)
    measured = measure_token_loss(objective, policy.logits, loss, Batches.of(policy.tree, size))
    torch.testing.assert_close(found, measured.mean, rtol=0, atol=1e-12)


class EachInTurn:
    """A stream whose permutation begins with candidate number `turn`, modulo how many there are."""

    def __init__(self, turn: int) -> None:
        self.turn = turn

    def permutation(self, count: int) -> Any:
        return np.roll(np.arange(count), -(self.turn % count))


def test_what_is_left_out_at_random_is_averaged_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's own code, once for each of the 12 = lcm(1, 2, 3, 4) draws that are equally likely for any count."""
    table = {"name": "grpo", "loss": {"name": "clip-cov", "lowest": 0.01}, "group_size": 2}
    streams, total = Setup.stream, torch.zeros(3, 3, dtype=torch.float64)
    for turn in range(12):

        def stream(setup: Setup, purpose: str, turn: int = turn) -> Any:
            return EachInTurn(turn) if purpose == "grpo left out" else streams(setup, purpose)

        monkeypatch.setattr(Setup, "stream", stream)
        found, _, policy, objective = expected_gradient(table, 2)
        total += found / 12
    batches = Batches.of(policy.tree, 2)
    loss = load_token_loss(table["loss"])  # type: ignore[arg-type]
    torch.testing.assert_close(
        total, measure_token_loss(objective, policy.logits, loss, batches).mean, rtol=0, atol=1e-12
    )
    nothing = load_token_loss({"name": "clip", "aggregation": "token-mean"})
    whole = measure_token_loss(objective, policy.logits, nothing, batches).mean
    assert float((total - whole).norm()) > 0.1 * float(whole.norm())
    never = load_token_loss({"name": "clip-cov", "lowest": 100.0, "highest": 200.0})
    torch.testing.assert_close(measure_token_loss(objective, policy.logits, never, batches).mean, whole)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_maxrl_is_the_likelihood_of_success_to_a_finite_order(size: int) -> None:
    """Rewards of 0 and 1, no penalty to speak of: the gradient of the first G - 1 terms of log p (by hand)."""
    objective, logits = small()
    success = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    objective = Objective(objective.tree, success, objective.reference, 1e-9)
    measured = measure_token_loss(objective, logits, TOKEN_LOSSES["maxrl"], Batches.of(objective.tree, size))
    given = logits.clone().requires_grad_()
    chance = objective.expected_reward(given)
    terms: Tensor = -sum((1.0 - chance) ** k / k for k in range(1, size))  # type: ignore[assignment]
    (expected,) = torch.autograd.grad(terms, given)
    torch.testing.assert_close(measured.mean, expected, rtol=0, atol=1e-8)


def test_dr_grpo_is_the_policy_gradient_but_for_a_factor() -> None:
    objective, logits = small()
    for size in (2, 3):
        measured = measure_token_loss(objective, logits, TOKEN_LOSSES["dr-grpo"], Batches.of(objective.tree, size))
        torch.testing.assert_close(
            measured.mean, objective.gradient(logits) * (size - 1) / size / 2, rtol=0, atol=1e-12
        )


def test_unclipped_ratios_correct_for_who_wrote_the_texts() -> None:
    """Texts of the reference: with a ratio of whole answers the expected gradient would be exact; of one-token answers
    that of each token is, so `cispo` without bounds is unbiased there but for its baseline, and `clip` is not."""
    objective, logits = example(3, 1, 0.5, 2)
    logits = objective.reference + 5.0 * (logits - objective.reference)
    bare = Objective(objective.tree, objective.reward, objective.reference, 1e-9)
    batches = Batches.of(bare.tree, 2)

    def found(name: str, **settings: Any) -> Tensor:
        loss = load_token_loss({"name": name, "advantages": "group", "aggregation": "sequence-sum", **settings})
        return measure_token_loss(bare, logits, loss, batches, writer=bare.reference).mean

    # A baseline that includes the answer itself: by hand, over all pairs that the reference writes.
    mu, pi = (response_logprobs(bare.tree, one) for one in (bare.reference, logits))
    score = torch.autograd.functional.jacobian(lambda x: response_logprobs(bare.tree, x), logits)
    expected = torch.zeros_like(logits)
    for i, j in itertools.product(range(4), repeat=2):
        gap = (bare.reward[i] - bare.reward[j]) / 2
        pull = (pi[i] - mu[i]).exp() * gap * score[i] - (pi[j] - mu[j]).exp() * gap * score[j]
        expected += (mu[i] + mu[j]).exp() * pull / 2
    torch.testing.assert_close(found("cispo", cap=1e6), expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(found("clip", clip=0.0, importance_cap=1e6), expected, rtol=0, atol=1e-8)
    assert float((found("clip") - expected).norm()) > 0.1 * float(expected.norm())
    assert float((token_logprobs(bare.tree, logits) - token_logprobs(bare.tree, bare.reference)).abs().max()) > 0.5


@pytest.mark.parametrize("name", ["clip", "cispo", "maxrl", "reinforce++"])
def test_with_the_penalty_in_the_reward_token_losses_end_at_the_optimum(name: str) -> None:
    objective, _ = small()
    batches, loss = Batches.of(objective.tree, 2), TOKEN_LOSSES[name]
    end = follow(objective, lambda logits: measure_token_loss(objective, logits, loss, batches).mean)
    assert objective.shortfall(end) < 0.01


def test_the_places_of_the_penalty_end_where_their_gradient_is_zero() -> None:
    ends = penalty_ends(0.5, 0)
    assert ends["k1 in reward"] < 1e-6
    assert abs(ends["k2 in loss"] - ends["k3-corrected in loss"]) < 1e-4  # of texts of its own, the same gradient
    assert 0.01 < ends["k2 in loss"] < ends["k3 in loss"]
    objective, logits = small()
    rloo = next(each for each in ESTIMATORS if each.name == "RLOO")
    found = measure(objective, logits, rloo, Batches.of(objective.tree, 2))
    torch.testing.assert_close(found["k2 in loss"].mean, found["k3-corrected in loss"].mean, rtol=0, atol=1e-12)


# ---------------------------------------------------------------- pairs


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_the_gradient_of_pairs_is_that_of_their_expected_loss(name: str) -> None:
    """By differentiating the expectation itself, with how likely a pair is held still."""
    objective, logits = small()
    loss = PAIR_LOSSES[name]
    measured = measure_pair_loss(objective, logits, loss)
    fixed = response_logprobs(objective.tree, logits)
    reference = response_logprobs(objective.tree, objective.reference)
    given = logits.clone().requires_grad_()
    now, length = response_logprobs(objective.tree, given), objective.tree.mask.sum(1)
    wrong = 0.1 if name == "robust" else 0.0
    total, mass = torch.zeros((), dtype=torch.float64), 0.0
    for i, j in itertools.permutations(range(7), 2):
        right = torch.sigmoid(objective.reward[i] - objective.reward[j])
        chance = (fixed[i] + fixed[j]).exp() * ((1 - wrong) * right + wrong * (1 - right))
        a, b = (now[k] - reference[k] if loss.declared.reference else now[k] for k in (i, j))
        pair = Pairs(
            chosen=a[None], rejected=b[None], chosen_tokens=length[i : i + 1], rejected_tokens=length[j : j + 1],
            beta=0.5, wrong=wrong,
        )  # fmt: skip
        total = total + chance * loss(pair).sum()
        mass += float(chance)
    (expected,) = torch.autograd.grad(-total / mass, given)
    torch.testing.assert_close(measured.mean, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["sigmoid", "robust"])
def test_losses_that_read_labels_as_chances_end_at_the_optimum(name: str) -> None:
    """Rafailov et al. 2023, sec. 4; and rDPO does so though a tenth of its labels are wrong."""
    objective, _ = small()
    assert objective.shortfall(end_of_pair_loss(objective, load_pair_loss(name))) < 1e-6


@pytest.mark.parametrize("name", ["ipo", "sppo", "hinge", "simpo"])
def test_the_others_end_elsewhere(name: str) -> None:
    objective, _ = small()
    assert objective.shortfall(end_of_pair_loss(objective, PAIR_LOSSES[name])) > 0.1


def test_where_ipo_ends_by_hand() -> None:
    """(h - 1 / (2 beta))^2 in expectation over labels: h = (p - 1 / 2) / beta for every pair, were tables free."""
    objective, _ = small()
    end = end_of_pair_loss(objective, PAIR_LOSSES["ipo"])
    ratio = response_logprobs(objective.tree, end) - response_logprobs(objective.tree, objective.reference)
    wins = torch.sigmoid(objective.reward[:, None] - objective.reward)
    fixed = response_logprobs(objective.tree, objective.reference).exp()
    # Weighted by how often a pair is drawn, an answer's ratio is its win rate against the reference, plus a constant.
    residual = ratio[:, None] - ratio - (wins - 0.5) / 0.5
    off_diagonal = fixed[:, None] * fixed * (1.0 - torch.eye(7, dtype=torch.float64))
    pull = (off_diagonal * residual).sum(1)
    assert float(pull.abs().max()) < 1e-7


# ---------------------------------------------------------------- the page


def test_the_page_is_what_the_declarations_and_the_measurements_say() -> None:
    objective, logits = example(4, 3, 0.5, 0)
    made = losses_page(objective, logits, Batches.of(objective.tree, 2), 0)
    assert PAGE.read_text() == made, "rlhf-env lab exact --markdown > docs/losses.md"


def test_who_takes_which_loss() -> None:
    assert agents_of("token loss", "gspo") == ["grpo", "ppo", "reinforce", "rloo"]
    assert agents_of("token loss", "maxrl") == agents_of("token loss", "dr-grpo") == ["grpo"]
    assert agents_of("token loss", "reinforce++") == ["grpo", "reinforce", "rloo"]
    assert agents_of("pair loss", "simpo") == ["dpo"]


@pytest.mark.parametrize("table", [TOKEN_LOSSES, PAIR_LOSSES], ids=["tokens", "pairs"])
def test_every_loss_names_its_paper_and_equation_in_its_docstring_too(table: dict[str, Any]) -> None:
    for loss in table.values():
        said: Callable[..., Any] = loss.function
        number = loss.declared.paper.split("arXiv ")[1].split(";")[0]
        assert number in (said.__doc__ or ""), loss.name
        assert loss.declared.equation and loss.declared.purpose, loss.name
        first = loss.declared.equation.split()[0].rstrip(";")
        assert f"eq. {first}" in _joined(said) or f"eqs. {first}" in _joined(said) or "sec." in loss.declared.equation


def _joined(function: Callable[..., Any]) -> str:
    return " ".join((function.__doc__ or "").split())
