"""The shared formulas against hand tables and closed forms, float64 (N-numbers: the catalogue of known bugs)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from rlhf_env.errors import ConfigError
from rlhf_env.learning.advantages import (
    explained_variance,
    gae,
    group_advantages,
    groups_without_spread,
    leave_one_out_advantages,
    paid_to_actions,
    returns_to_go,
)
from rlhf_env.learning.functional import (
    Aggregation,
    clipped_policy_loss,
    clipped_value_loss,
    kl_estimate,
    logprobs_under,
    masked_mean,
    masked_sum,
    minibatches,
    outside_clip,
    pair_loss,
    stated_log_ratio,
    token_weights,
    truncated_importance_weights,
    unpaired_loss,
    weighted_sum,
    whiten,
)
from rlhf_env.learning.rollout import demonstrations
from rlhf_env.testing import make_episode
from rlhf_env.types import Episode, Float

GARBAGE = (1e6, math.nan, math.inf)


def f64(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def lengths_mask(*lengths: int, start: int = 0, width: int = 0) -> Tensor:
    places = torch.arange(width or max(lengths) + start)
    return torch.stack([(places >= start) & (places < start + n) for n in lengths])


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=tolerance)


# ---------------------------------------------------------------- GAE


def test_gae_of_a_hand_computed_row() -> None:
    # One reward of 1 at the end, gamma 1, lambda 1/2. delta = (0.5-0.2, 0.3-0.5, 1-0.3) = (0.3, -0.2, 0.7);
    # A3 = 0.7, A2 = -0.2 + 0.35 = 0.15, A1 = 0.3 + 0.075 = 0.375.
    advantages = gae(f64([0, 0, 1]), f64([0.2, 0.5, 0.3]), lengths_mask(3), gamma=1.0, lam=0.5)
    assert_close(advantages, f64([0.375, 0.15, 0.7]))


def test_gae_with_discount_and_prompt_and_padding() -> None:
    # N2: the row's prompt (1 token) and padding (1 token) are 0, and V after the end token is 0.
    # gamma = 0.9, lambda = 0.5: delta2 = 1 - 0.3 = 0.7; delta1 = 0.1 + 0.9 * 0.3 - 0.5 = -0.13; A1 = -0.13 + 0.45 * 0.7
    advantages = gae(f64([9, 0.1, 1, 9]), f64([9, 0.5, 0.3, 9]), lengths_mask(2, start=1, width=4), gamma=0.9, lam=0.5)
    assert_close(advantages, f64([0, 0.185, 0.7, 0]))


@pytest.mark.parametrize("garbage", GARBAGE)
def test_gae_never_reads_masked_cells(garbage: float) -> None:  # N21
    generator = torch.Generator().manual_seed(0)
    rewards, values = (torch.rand(5, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    actions = torch.rand(5, 9, generator=generator) < 0.6
    clean = gae(rewards, values, actions, gamma=0.95, lam=0.9)
    dirty = gae(
        rewards.masked_fill(~actions, garbage), values.masked_fill(~actions, garbage), actions, gamma=0.95, lam=0.9
    )
    assert torch.equal(clean, dirty)


def test_gae_of_values_beyond_the_end() -> None:
    # The reported case of N21: v = [0, 0, 100], where the last cell is padding.
    advantages = gae(f64([0, 1, 0]), f64([0, 0, 100]), lengths_mask(2, width=3), gamma=1.0, lam=0.95)
    assert_close(advantages, f64([0.95, 1.0, 0]))


def test_only_truncated_rows_bootstrap() -> None:  # N23
    rewards, values, actions = f64([0.5], [0.5]), f64([0.2], [0.2]), lengths_mask(1, 1)
    advantages = gae(
        rewards,
        values,
        actions,
        gamma=0.9,
        lam=0.5,
        truncated=torch.tensor([True, False]),
        final_values=f64(10.0, math.nan).flatten(),
    )
    assert_close(advantages, f64([0.5 + 0.9 * 10 - 0.2], [0.5 - 0.2]))


def test_truncated_rows_need_a_value() -> None:
    with pytest.raises(ConfigError, match="values of their last states"):
        gae(f64([1]), f64([0]), lengths_mask(1), gamma=1, lam=1, truncated=torch.tensor([True]))


def test_gae_extremes_are_returns_and_td_errors() -> None:
    rewards, values, actions = f64([1, 2, 3]), f64([0.3, 0.2, 0.1]), lengths_mask(3)
    assert_close(gae(rewards, values, actions, gamma=1.0, lam=1.0), f64([6, 5, 3]) - values)
    assert_close(gae(rewards, values, actions, gamma=0.5, lam=0.0), f64([1 + 0.1 - 0.3, 2 + 0.05 - 0.2, 3 - 0.1]))


def test_gae_steps_over_text_of_the_environment() -> None:
    """Two actions with the environment's words in between are neighbours in time."""
    actions = torch.tensor([[True, False, False, True]])
    spread = gae(f64([1, 7, 7, 2]), f64([0.5, 7, 7, 0.25]), actions, gamma=0.9, lam=0.8)
    dense = gae(f64([1, 2]), f64([0.5, 0.25]), lengths_mask(2), gamma=0.9, lam=0.8)
    assert_close(spread[actions], dense[0])


def test_returns_to_go() -> None:
    assert_close(returns_to_go(f64([9, 1, 2, 4]), lengths_mask(3, start=1), gamma=0.5), f64([0, 1 + 1 + 1, 2 + 2, 4]))


def test_rewards_move_to_the_action_before_them() -> None:  # N17
    rewards = f64([5, 1, 2, 3, math.nan])
    mask, actions = lengths_mask(4, width=5), torch.tensor([[False, True, False, True, False]])
    assert_close(paid_to_actions(rewards, mask, actions), f64([0, 3, 0, 3, 0]))


# ---------------------------------------------------------------- whitening and groups


def test_whitening_over_a_mask() -> None:  # N25
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(3, 7, generator=generator, dtype=torch.float64) * 5 + 3
    mask = torch.rand(3, 7, generator=generator) < 0.5
    white = whiten(values.masked_fill(~mask, math.nan), mask)
    counted = white[mask]
    assert abs(float(counted.mean())) < 1e-12
    assert abs(float(counted.square().mean()) - 1.0) < 1e-12
    assert torch.equal(white[~mask], torch.zeros_like(white[~mask]))


def test_whitening_of_equals_is_zero() -> None:
    values = torch.full((1, 7), 0.35, dtype=torch.float64)
    assert torch.equal(whiten(values, values > 0), torch.zeros_like(values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale_by_std", [True, False])
def test_equal_rewards_are_worth_exactly_nothing(dtype: torch.dtype, scale_by_std: bool) -> None:  # N27
    returns, group = torch.full((7,), 0.35, dtype=dtype), torch.zeros(7, dtype=torch.int64)
    assert torch.equal(group_advantages(returns, group, scale_by_std=scale_by_std), torch.zeros(7, dtype=torch.float64))
    assert torch.equal(leave_one_out_advantages(returns, group), torch.zeros(7, dtype=torch.float64))
    assert groups_without_spread(returns, group) == 1.0


def test_group_advantages_by_hand() -> None:
    returns, group = f64(1, 3, 10, 20).flatten(), torch.tensor([0, 0, 1, 1])
    assert_close(group_advantages(returns, group, scale_by_std=False), f64(-1, 1, -5, 5).flatten())
    # Sample deviations: sqrt(2) and sqrt(50).
    expected = f64(-1 / math.sqrt(2), 1 / math.sqrt(2), -5 / math.sqrt(50), 5 / math.sqrt(50)).flatten()
    assert_close(group_advantages(returns, group, scale_by_std=True, epsilon=0.0), expected)


def test_leave_one_out_by_hand() -> None:  # N32
    advantages = leave_one_out_advantages(f64(1, 2, 6).flatten(), torch.zeros(3, dtype=torch.int64))
    assert_close(advantages, f64(1 - 4, 2 - 3.5, 6 - 1.5).flatten())


@pytest.mark.parametrize(
    "advantages_of",
    [
        leave_one_out_advantages,
        lambda *a: group_advantages(*a, scale_by_std=True),
        lambda *a: group_advantages(*a, scale_by_std=False),
    ],
)
def test_groups_do_not_touch_each_other(advantages_of) -> None:  # type: ignore[no-untyped-def]  # N26
    generator = torch.Generator().manual_seed(2)
    returns = torch.rand(12, generator=generator, dtype=torch.float64)
    group = torch.tensor([0, 1, 2] * 4)
    before = advantages_of(returns, group)
    after = advantages_of(torch.where(group == 1, returns * 100, returns), group)
    assert torch.equal(before[group != 1], after[group != 1])
    for number in range(3):
        assert abs(float(after[group == number].sum())) < 1e-12 * 100
    assert_close(before, advantages_of(returns + 1000.0, group), 1e-10)
    order = torch.randperm(12, generator=generator)
    assert_close(advantages_of(returns[order], group[order]), before[order])  # N8


@pytest.mark.parametrize(
    "advantages_of", [leave_one_out_advantages, lambda *a, **k: group_advantages(*a, scale_by_std=True, **k)]
)
def test_rows_without_a_score_are_as_if_absent(advantages_of) -> None:  # type: ignore[no-untyped-def]  # N30
    returns, group = f64(1, 7, 2, 6).flatten(), torch.zeros(4, dtype=torch.int64)
    counted = torch.tensor([True, False, True, True])
    got = advantages_of(returns.masked_fill(~counted, math.nan), group, counted=counted)
    assert torch.equal(got[counted], advantages_of(returns[counted], group[counted]))
    assert float(got[1]) == 0.0


def test_a_group_of_one_is_worth_nothing() -> None:
    assert torch.equal(group_advantages(f64(3.0), torch.tensor([0]), scale_by_std=True), f64(0.0))


# ---------------------------------------------------------------- losses


def test_clipped_policy_loss_in_its_four_regions() -> None:
    log_ratio = torch.log(f64(1.5, 1.5, 0.5, 0.5)).flatten().requires_grad_()
    advantages = f64(2.0, -2.0, 2.0, -2.0).flatten()
    loss = clipped_policy_loss(log_ratio, advantages, 0.2)
    # min(r A, clip(r) A): (2.4, -3.0, 1.0, -1.6), negated; no gradient where the clip is the smaller.
    assert_close(loss.detach(), f64(-2.4, 3.0, -1.0, 1.6).flatten())
    loss.sum().backward()
    assert log_ratio.grad is not None
    assert_close(log_ratio.grad, f64(0.0, 3.0, -1.0, 0.0).flatten())


def test_a_wider_clip_upwards_and_none_at_all() -> None:
    log_ratio, advantages = torch.log(f64(1.25, 1.25, 0.5, 9.0)).flatten(), f64(2.0, -2.0, -2.0, 2.0).flatten()
    # Up to 1.28: the first two are inside; the third is bounded at 0.8, the last at 1.28.
    assert_close(clipped_policy_loss(log_ratio, advantages, 0.2, 0.28), f64(-2.5, 2.5, 1.6, -2.56).flatten())
    assert outside_clip(log_ratio, 0.2, 0.28).tolist() == [False, False, True, True]
    assert outside_clip(log_ratio, 0.2).tolist() == [True, True, True, True]
    assert_close(clipped_policy_loss(log_ratio, advantages, 0.0), -log_ratio.exp() * advantages)
    assert not outside_clip(log_ratio, 0.0).any()


def test_importance_is_cut_off_at_the_cap() -> None:  # N15
    """1 where the policy wrote the text; 0 <= w <= cap; no gradient beyond, whatever the sign of the advantage."""
    log_ratio = torch.log(f64(1.0, 2.9, 4.0, 4.0, 0.0)).flatten().requires_grad_()
    advantages = f64(1.0, -1.0, -1.0, 1.0, -1.0).flatten()
    loss = clipped_policy_loss(log_ratio, advantages, 0.0, cap=3.0)
    assert_close(loss.detach(), f64(-1.0, 2.9, 3.0, -3.0, 0.0).flatten())
    loss[:4].sum().backward()
    assert log_ratio.grad is not None
    assert_close(log_ratio.grad[:4], f64(-1.0, 2.9, 0.0, 0.0).flatten())
    clip_and_cap = clipped_policy_loss(torch.log(f64(9.0, 9.0).flatten()), f64(1.0, -1.0).flatten(), 0.2, cap=3.0)
    assert_close(clip_and_cap, f64(-1.2, 3.0).flatten())


def test_clipped_value_loss_and_its_gradient() -> None:  # N37
    # V_old = 0, clip 0.5, target 1: inside the clip; above it, where the error beyond the clip is ignored; below it,
    # where the true error is larger and counts; and a target below, approached too fast.
    values = f64(0.3, 0.9, -0.9, -0.8).flatten().requires_grad_()
    targets = f64(1.0, 1.0, 1.0, -1.0).flatten()
    loss = clipped_value_loss(values, torch.zeros(4, dtype=torch.float64), targets, 0.5)
    assert_close(loss.detach(), 0.5 * f64(0.49, 0.25, 3.61, 0.25).flatten())
    loss.sum().backward()
    assert values.grad is not None
    assert_close(values.grad, f64(-0.7, 0.0, -1.9, 0.0).flatten())
    assert_close(clipped_value_loss(f64(3.0), f64(0.0), f64(1.0), 0.0), f64(2.0))


def test_kl_estimates() -> None:  # N16
    generator = torch.Generator().manual_seed(3)
    p, q = (torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(0) for _ in range(2))
    exact = float((p.exp() * (p - q)).sum())
    for kind in ("k1", "k3"):  # unbiased: the average over p is the KL
        assert abs(float((p.exp() * kl_estimate(p, q, kind)).sum()) - exact) < 1e-12  # type: ignore[arg-type]
    for kind in ("k1", "k2", "k3"):
        assert torch.equal(kl_estimate(p, p, kind), torch.zeros_like(p))  # type: ignore[arg-type]
    assert (kl_estimate(p, q, "k2") >= 0).all()
    assert (kl_estimate(p, q, "k3") >= 0).all()
    assert_close(kl_estimate(f64(-1.0), f64(-3.0), "k1"), f64(2.0))
    assert_close(kl_estimate(f64(-1.0), f64(-3.0), "k3"), f64(math.exp(-2) - 1 + 2))


def test_gradients_of_kl_estimates_are_what_the_docstring_says() -> None:  # N20
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    q = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0)

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, logits)[0]

    def p() -> Tensor:
        return logits.log_softmax(0)

    drawn = p().detach().exp()
    assert_close(gradient((drawn * kl_estimate(p(), q, "k1")).sum()), torch.zeros(5, dtype=torch.float64))
    reverse = gradient((p().exp() * (p() - q)).sum())
    in_reward = gradient((drawn * kl_estimate(p(), q, "k1").detach() * p()).sum())
    assert_close(in_reward, reverse)
    assert_close(gradient((drawn * kl_estimate(p(), q, "k2")).sum()), reverse)
    forward = gradient((q.exp() * (q - p())).sum())
    assert_close(gradient((drawn * kl_estimate(p(), q, "k3")).sum()), forward)


def test_pair_loss() -> None:  # N39
    zero = f64(0.0, 0.0).flatten()
    assert_close(pair_loss(zero, zero, beta=0.3), torch.full((2,), math.log(2), dtype=torch.float64))
    better, worse = f64(1.5).flatten(), f64(-0.5).flatten()
    assert_close(pair_loss(better, worse, beta=0.1), f64(math.log1p(math.exp(-0.2))).flatten())
    smoothed = 0.9 * math.log1p(math.exp(-0.2)) + 0.1 * math.log1p(math.exp(0.2))
    assert_close(pair_loss(better, worse, beta=0.1, label_smoothing=0.1), f64(smoothed).flatten())
    assert_close(pair_loss(better, worse, beta=0.5, kind="ipo"), f64((2.0 - 1.0) ** 2).flatten())
    # Swapping the pair is negating the margin.
    assert_close(pair_loss(better, worse, beta=0.1, offset=0.7), f64(math.log1p(math.exp(-(0.2 - 0.7)))).flatten())
    assert_close(pair_loss(better, worse, beta=0.5, kind="ipo", offset=3.0), f64((2.0 - 6.0) ** 2).flatten())
    half = pair_loss(better, worse, beta=0.5, kind="ipo", offset=0.5)
    assert torch.equal(half, pair_loss(better, worse, beta=0.5, kind="ipo"))
    swapped = pair_loss(worse, better, beta=0.1)
    assert_close(swapped - pair_loss(better, worse, beta=0.1), f64(0.2).flatten())


def test_a_reference_speaks_about_actions_only() -> None:
    """Whatever it says about words of the environment, and with prompts of other lengths."""
    episodes = [make_episode("p", "abc"), replace(make_episode("pp", "ab"), actions=np.array([True, False, True]))]

    class Reference:
        def response_logprobs(self, episodes: Sequence[Episode], /) -> list[Float]:
            return [-1.0 - np.arange(len(episode.response_ids)) for episode in episodes]

    logprobs = logprobs_under(Reference(), demonstrations(episodes, pad_id=0))
    assert torch.equal(logprobs, f64([0, -1, -2, -3, -4], [0, 0, -1, 0, -3]))


def test_pairs_may_differ_in_how_sure_their_label_is() -> None:
    better, worse = f64(1.5, 0.5).flatten(), f64(-0.5, 1.0).flatten()
    each = [
        pair_loss(better[i : i + 1], worse[i : i + 1], beta=0.3, label_smoothing=s) for i, s in enumerate((0.1, 0.5))
    ]
    assert_close(pair_loss(better, worse, beta=0.3, label_smoothing=f64(0.1, 0.5).flatten()), torch.cat(each))


def test_unpaired_loss() -> None:
    """KTO's loss by hand, on both sides of the reference point; far beyond it the digits stay."""
    ratio = f64(2.0, -1.0, 2.0, 400.0).flatten().requires_grad_()
    desirable, z0 = torch.tensor([True, True, False, True]), f64(0.5).squeeze().requires_grad_()
    loss = unpaired_loss(ratio, desirable, z0, beta=0.2, desirable_weight=1.3, undesirable_weight=0.7)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    gains = [sigmoid(0.2 * 1.5), sigmoid(0.2 * -1.5), sigmoid(0.2 * -1.5)]
    hand = [1.3 * (1 - gains[0]), 1.3 * (1 - gains[1]), 0.7 * (1 - gains[2])]  # no float32 is 1.3 or 0.7
    assert_close(loss[:3].detach(), f64(*hand).flatten())
    assert abs(float(loss[3].detach()) / (1.3 * math.exp(-0.2 * 399.5)) - 1) < 1e-12
    loss.sum().backward()
    assert ratio.grad is not None
    slopes = [s * w * 0.2 * g * (1 - g) for s, w, g in zip((-1, -1, 1), (1.3, 1.3, 0.7), gains, strict=True)]
    assert_close(ratio.grad[:3], f64(*slopes).flatten())
    assert z0.grad is None  # the reference point is no way to learn


def test_log_ratios_read_actions_only() -> None:  # N15
    actions = torch.tensor([[False, True, False]])
    now = f64([0, -1, 0]).requires_grad_()
    stated = f64([math.nan, -1.5, 1e6]).requires_grad_()
    ratio = stated_log_ratio(now, stated, actions)
    assert_close(ratio.detach(), f64([0, 0.5, 0]))
    ratio.sum().backward()
    assert stated.grad is None
    assert now.grad is not None
    assert torch.equal(now.grad, f64([0, 1, 0]))


def test_importance_weights_are_bounded_and_carry_no_gradient() -> None:  # N15
    log_ratio = f64([0, 0, 0], [0.5, -0.2, 0], [2, 0.1, 0], [900, 1, 0], [-900, 0, 0]).requires_grad_()
    weights = truncated_importance_weights(log_ratio, 2.0)
    assert_close(weights, f64(1, math.exp(0.3), 2, 2, 0).flatten())
    assert not weights.requires_grad


# ---------------------------------------------------------------- sums


@pytest.mark.parametrize(
    ("aggregation", "short", "long"),
    [
        ("token-mean", 1 / 4, 1 / 4),
        ("sequence-mean", 1 / 2, 1 / 6),
        ("sequence-sum", 1 / 2, 1 / 2),
        ("dr-grpo", 1 / 10, 1 / 10),
    ],
)
def test_token_weights_of_lengths_1_and_3(aggregation: str, short: float, long: float) -> None:  # N35
    weights = token_weights(lengths_mask(1, 3), aggregation, longest=5)  # type: ignore[arg-type]
    assert_close(weights, f64([short, 0, 0], [long, long, long]))


def test_rows_without_tokens_weigh_nothing() -> None:
    assert torch.equal(token_weights(lengths_mask(0, 2), "sequence-mean"), f64([0, 0], [0.5, 0.5]))


def test_unknown_aggregation() -> None:
    with pytest.raises(ConfigError, match="aggregation must be"):
        token_weights(lengths_mask(1), "mean")  # type: ignore[arg-type]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_masked_sums_read_nothing_masked(garbage: float) -> None:
    values, mask = f64([1, 2, garbage]).requires_grad_(), lengths_mask(2, width=3)
    assert float(masked_sum(values, mask).detach()) == 3.0
    assert float(masked_mean(values, mask).detach()) == 1.5
    total = weighted_sum(values, f64([0.5, 0.25, 0]))
    assert float(total.detach()) == 1.0
    total.backward()
    assert values.grad is not None
    assert torch.equal(values.grad, f64([0.5, 0.25, 0]))
    assert float(masked_mean(values.detach(), torch.zeros_like(mask))) == 0.0


def test_explained_variance() -> None:
    targets, mask = f64([1, 2, 3, math.nan]), lengths_mask(3, width=4)
    assert explained_variance(targets, targets, mask) == 1.0
    assert explained_variance(torch.zeros_like(targets), targets, mask) == 0.0
    assert abs(explained_variance(f64([0, 2, 4, 0]), targets, mask) - 0.0) < 1e-12
    assert explained_variance(targets, torch.ones_like(targets), mask) == 0.0


def test_minibatches_cover_every_row_once_an_epoch() -> None:
    shares = list(minibatches(7, 3, 2, np.random.default_rng(0)))
    assert [len(share) for share in shares] == [3, 2, 2] * 2
    for epoch in (shares[:3], shares[3:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(7))
    assert torch.cat(shares[:3]).tolist() != torch.cat(shares[3:]).tolist()
    assert [len(share) for share in minibatches(2, 5, 1, np.random.default_rng(0))] == [1, 1]


@pytest.mark.parametrize("aggregation", ["token-mean", "sequence-mean", "sequence-sum", "dr-grpo"])
def test_a_batch_without_a_token_weighs_nothing(aggregation: Aggregation) -> None:
    weights = token_weights(torch.zeros(3, 4, dtype=torch.bool), aggregation, longest=5)
    assert torch.equal(weights, torch.zeros(3, 4, dtype=torch.float64)), "0 and not 0 / 0"
