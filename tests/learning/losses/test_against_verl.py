"""Losses against verl's own functions on the same tensors, in float64, where verl is installed (tried with 0.9.1).

verl draws from torch's global generator which tokens Clip-Cov leaves out; here both leave out all candidates.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl is none of what the tests need")

from verl.trainer.ppo import core_algos as algorithms
from verl.workers.config import ActorConfig, PolicyLossConfig

from rlhf_env.learning.advantages import group_advantages, leave_one_out_advantages
from rlhf_env.learning.functional import token_weights, weighted_sum, whiten
from rlhf_env.learning.losses.declaring import TokenBatch, load_token_loss

ROWS, TOKENS = 6, 7
Texts = dict[str, Tensor]


@pytest.fixture
def texts() -> Texts:
    stream = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=stream, dtype=torch.float64)

    mask = torch.arange(TOKENS) < torch.tensor([7, 1, 4, 5, 2, 6])[:, None]
    logprobs = -normal(ROWS, TOKENS).abs() - 0.1
    old = logprobs + 0.5 * normal(ROWS, TOKENS)
    return {"mask": mask, "logprobs": logprobs, "old": old, "returns": normal(ROWS), "group": torch.arange(ROWS) // 3}


def tokens_of(texts: Texts, logprobs: Tensor, advantages: Tensor, left_out: Tensor | None = None) -> TokenBatch:
    log_ratio = (logprobs - texts["old"]).masked_fill(~texts["mask"], 0.0)
    return TokenBatch(
        logprobs=logprobs, log_ratio=log_ratio, advantages=advantages, actions=texts["mask"], left_out=left_out
    )


def config(**settings: Any) -> Any:
    policy = settings.pop("policy_loss", {})
    return ActorConfig(
        strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, policy_loss=PolicyLossConfig(**policy), **settings
    )


def assert_like_theirs(texts: Texts, case: str, advantages: Tensor | None = None) -> None:
    """Value and gradient, of a group's advantages if no others are given."""
    spec, theirs, settings, mode = CASES[case]
    loss = load_token_loss(spec)
    if advantages is None:
        advantages = group_advantages(texts["returns"], texts["group"], scale_by_std=True)[:, None].expand(ROWS, TOKENS)
    ours, given = (texts["logprobs"].clone().requires_grad_() for _ in range(2))
    left_out = None
    if loss.draws:
        left_out, count = loss.candidates(tokens_of(texts, texts["logprobs"], advantages))
        assert 0 < int(left_out.sum()) <= count, "so that nothing is drawn"
    assert loss.declared.aggregation is not None
    weights = token_weights(texts["mask"], loss.declared.aggregation, longest=TOKENS)
    value = weighted_sum(loss(tokens_of(texts, ours, advantages, left_out)), weights)
    function = algorithms.get_policy_loss_fn(theirs)
    mask = texts["mask"].double()
    expected, _ = function(texts["old"], given, advantages, mask, loss_agg_mode=mode, config=config(**settings))
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-8)  # they add 1e-8 to lengths
    gradients = [torch.autograd.grad(one, by)[0] for one, by in ((value, ours), (expected, given))]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-8)


CASES: dict[str, tuple[Any, str, dict[str, Any], str]] = {
    "clip": (
        {"name": "clip", "aggregation": "token-mean", "importance_cap": 1.5},
        "vanilla",
        {"clip_ratio": 0.2, "clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "clip_ratio_c": 1.5},
        "token-mean",
    ),
    "dapo": (
        {"name": "dapo", "importance_cap": 3.0},
        "vanilla",
        {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "clip_ratio_c": 3.0},
        "token-mean",
    ),
    "gspo": (
        {"name": "gspo", "clip": 0.03, "clip_high": 0.04},
        "gspo",
        {"clip_ratio_low": 0.03, "clip_ratio_high": 0.04},
        "seq-mean-token-mean",
    ),
    "cispo": (
        {"name": "cispo", "floor": 0.8, "cap": 1.28},
        "cispo",
        {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28},
        "token-mean",
    ),
    "sapo": (
        {"name": "sapo", "positive_temperature": 0.8, "negative_temperature": 1.6},
        "sapo",
        {"tau_pos": 0.8, "tau_neg": 1.6},
        "seq-mean-token-mean",
    ),
    "clip-cov": (
        {"name": "clip-cov", "share": 1.0, "lowest": 0.1, "highest": 5.0, "importance_cap": 1e9},
        "clip_cov",
        {
            "clip_ratio_low": 0.2,
            "clip_ratio_high": 0.2,
            "policy_loss": {"clip_cov_ratio": 1.0, "clip_cov_lb": 0.1, "clip_cov_ub": 5.0},
        },
        "token-mean",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_token_losses_and_their_gradients_are_those_of_verl(texts: Texts, case: str) -> None:
    assert_like_theirs(texts, case)


def test_gspo_with_advantages_of_tokens_is_the_form_of_eq_13(texts: Texts) -> None:
    stream = torch.Generator().manual_seed(3)
    advantages = torch.randn(ROWS, TOKENS, generator=stream, dtype=torch.float64)
    assert_like_theirs(texts, "gspo", advantages)


def test_advantages_scaled_over_the_batch_are_those_of_verl_but_for_its_sample_variance(texts: Texts) -> None:
    """With the group's mean for a baseline, and of returns to go; a factor of sqrt(n / (n - 1)) for n tokens."""
    mask = texts["mask"].double()
    last = texts["mask"].sum(1) - 1
    paid = torch.zeros(ROWS, TOKENS, dtype=torch.float64)
    paid[torch.arange(ROWS), last] = texts["returns"]
    count = float(mask.sum())
    theirs, _ = algorithms.compute_reinforce_plus_plus_baseline_outcome_advantage(paid, mask, texts["group"].tolist())
    centred = group_advantages(texts["returns"], texts["group"], scale_by_std=False)
    ours = whiten(centred[:, None].expand(ROWS, TOKENS), texts["mask"])
    torch.testing.assert_close(ours, theirs * (count / (count - 1)) ** 0.5, rtol=1e-7, atol=1e-7)
    theirs, _ = algorithms.compute_reinforce_plus_plus_outcome_advantage(paid, mask, config=SimpleNamespace(gamma=1.0))
    ours = whiten(texts["returns"][:, None].expand(ROWS, TOKENS), texts["mask"])
    torch.testing.assert_close(ours, theirs * (count / (count - 1)) ** 0.5, rtol=1e-7, atol=1e-7)
    left_out = leave_one_out_advantages(texts["returns"], texts["group"])
    same = whiten(left_out[:, None].expand(ROWS, TOKENS), texts["mask"])
    centred_again = whiten(centred[:, None].expand(ROWS, TOKENS), texts["mask"])
    torch.testing.assert_close(same, centred_again, rtol=0, atol=1e-12)  # so that rloo's is grpo's
