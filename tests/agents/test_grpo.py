"""GRPO: its gradient, its groups, and that it learns and resumes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from rlhf_agents.grpo import GRPO, sequence_log_ratio

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.rollout import Rollout, demonstrations
from rlhf_env.policies import Sampling
from rlhf_env.types import Score


def grpo(setup: Any, **settings: Any) -> GRPO:
    return GRPO(setup, GRPO.Config(**{"optimization": Optimization(lr=3e-3), **settings}))


def with_returns(rollout: Rollout, returns: list[float]) -> Rollout:
    return replace(rollout, scores=tuple(Score(raw={"task": r}, weights={"task": 1.0}) for r in returns))


@pytest.mark.parametrize("importance", ["token", "sequence"])
def test_the_first_step_is_the_policy_gradient(make_world, gradient_of, importance: str) -> None:
    """1/B sum_i 1/T_i sum_t -A_i grad log pi (eq. 3 at ratio 1), at either level of importance weights."""
    world = make_world(rows=8)
    agent = grpo(world.setup, importance=importance, scale_by_std=False)
    rollout = world.rollout(agent)
    returns = rollout.returns().reshape(2, 4)
    advantages = (returns - returns.mean(1, keepdim=True)).flatten()
    logprobs = agent.policy.evaluate(rollout.tokens, rollout.mask, rollout.actions).logprobs
    loss = -(advantages * logprobs.sum(1) / rollout.actions.sum(1)).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(agent.policy.parameters()))])
    torch.testing.assert_close(gradient_of(agent, rollout), expected, rtol=0, atol=1e-12)


def test_the_kl_part_is_paid_once_in_the_reward(make_world, gradient_of) -> None:  # N32
    """After straying from the reference, the gradient is that of returns which hold the KL part, and nothing else."""
    world = make_world(rows=8, kl=0.5)
    agent = grpo(world.setup, optimization=Optimization(lr=3e-2))
    world.learn(agent, 3)
    rollout = world.rollout(agent)
    assert float(rollout.part("kl").abs().max()) > 0.1
    summed = with_returns(rollout, rollout.returns().tolist())
    assert torch.equal(gradient_of(agent, rollout), gradient_of(agent, summed))


@pytest.mark.parametrize("scale_by_std", [True, False])
def test_equal_rewards_teach_nothing(make_world, gradient_of, scale_by_std: bool) -> None:  # N27
    world = make_world(rows=8)
    agent = grpo(world.setup, scale_by_std=scale_by_std)
    rollout = with_returns(world.rollout(agent), [0.35] * 4 + [0.1] * 4)
    gradient = gradient_of(agent, rollout)
    assert torch.equal(gradient, torch.zeros_like(gradient))
    metrics = agent.update(rollout)
    assert metrics["groups_without_spread"] == 1.0
    assert metrics["policy_loss"] == 0.0


def test_rows_without_a_score_teach_nothing(make_world, gradient_of) -> None:  # N30
    world = make_world(rows=8)
    agent = grpo(world.setup, aggregation="sequence-sum")
    rollout = world.rollout(agent)
    holed = replace(rollout, scores=(Score(raw={}, weights={}), *rollout.scores[1:]))
    alone = rollout.select(torch.arange(1, 8))
    torch.testing.assert_close(gradient_of(agent, holed) * 8, gradient_of(agent, alone) * 7, rtol=0, atol=1e-12)


@pytest.mark.parametrize("aggregation", ["token-mean", "sequence-mean", "sequence-sum", "dr-grpo"])
@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_change_nothing(make_world, gradient_of, aggregation: str, size: int) -> None:  # N34
    world = make_world(rows=8)
    whole = grpo(world.setup, aggregation=aggregation)
    rollout = world.rollout(whole)
    split = grpo(make_world(rows=8).setup, aggregation=aggregation, optimization=Optimization(micro_batch_size=size))
    torch.testing.assert_close(gradient_of(split, rollout), gradient_of(whole, rollout), rtol=0, atol=1e-12)


def test_dr_grpo_divides_by_the_longest_answer_possible(make_world, gradient_of) -> None:  # N35
    world = make_world(rows=8)
    agent = grpo(world.setup, aggregation="dr-grpo")
    rollout = world.rollout(agent)
    summed = gradient_of(grpo(make_world(rows=8).setup, aggregation="sequence-sum"), rollout)
    torch.testing.assert_close(gradient_of(agent, rollout) * 6, summed, rtol=0, atol=1e-12)


def test_sequence_log_ratio() -> None:
    log_ratio = torch.tensor([[9.0, 1.0, 3.0, 9.0]], dtype=torch.float64)
    actions = torch.tensor([[False, True, True, False]])
    assert sequence_log_ratio(log_ratio, actions).tolist() == [[0.0, 2.0, 2.0, 0.0]]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_the_ratio_is_one_and_moves_with_epochs(make_world, temperature: float) -> None:  # N10, N12, N15
    world = make_world(sampling=Sampling(temperature=temperature), dropout=0.2)
    agent = grpo(world.setup, epochs=1)
    agent.policy.train()  # dropout, if an agent left it on, would show
    first = agent.update(world.rollout(agent))
    assert abs(first["approx_kl"]) < 1e-12
    assert first["clip_fraction"] == 0.0
    again = grpo(make_world().setup, epochs=4, minibatches=2, optimization=Optimization(lr=3e-2))
    assert again.update(world.rollout(again))["approx_kl"] > 1e-3


def test_layout_changes_nothing(assert_layout_changes_nothing) -> None:  # N3, N4, N8, N34
    assert_layout_changes_nothing(grpo)


# ---------------------------------------------------------------- the KL term in the loss


@pytest.mark.parametrize("kind", ["k2", "k3"])
@pytest.mark.parametrize("aggregation", ["sequence-mean", "sequence-sum"])
def test_the_kl_term_in_the_loss(make_world, gradient_of, kind: str, aggregation: str) -> None:
    """Off a strayed policy, by hand: returns without the KL part, and beta times the estimate in the loss."""
    world = make_world(rows=8, kl=0.5)
    world.learn(grpo(world.setup, optimization=Optimization(lr=3e-2)), 3)
    agent = grpo(world.setup, kl_in_loss=kind, aggregation=aggregation, scale_by_std=False)
    rollout = world.rollout(agent)
    returns = rollout.returns(without=("kl",)).reshape(2, 4)
    advantages = (returns - returns.mean(1, keepdim=True)).flatten()
    logprobs = agent.policy.evaluate(rollout.tokens, rollout.mask, rollout.actions).logprobs
    reference = world.setup.reference.evaluate(rollout.tokens, rollout.mask, rollout.actions).logprobs
    r = reference.detach() - logprobs
    estimate = r**2 / 2 if kind == "k2" else r.exp() - 1 - r
    of_row = (0.5 * estimate - advantages[:, None] * logprobs).masked_fill(~rollout.actions, 0.0).sum(1)
    loss = (of_row / rollout.actions.sum(1) if aggregation == "sequence-mean" else of_row).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(agent.policy.parameters()))])
    torch.testing.assert_close(gradient_of(agent, rollout), expected, rtol=0, atol=1e-12)

    split = grpo(
        world.setup,
        kl_in_loss=kind,
        aggregation=aggregation,
        scale_by_std=False,
        optimization=Optimization(micro_batch_size=3),
    )
    torch.testing.assert_close(gradient_of(split, rollout), expected, rtol=0, atol=1e-12)  # N34
    lengths = rollout.actions.sum(1, keepdim=True).double()
    weights = 1 / (8 * lengths) if aggregation == "sequence-mean" else 1 / 8
    penalty = 0.5 * (weights * estimate.masked_fill(~rollout.actions, 0.0)).sum()
    assert abs(agent.update(rollout)["kl_loss"] - float(penalty.detach())) < 1e-12


def test_k2_in_the_loss_is_the_gradient_of_the_objective(enumerate_world, gradient_of) -> None:
    """Of one-token answers, over all pairs: exactly the KL's, and (n - 1) / n of the reward's (its own mean)."""
    enumerated = enumerate_world(length=1, rows=2, kl=0.5)
    settings: dict[str, Any] = {"group_size": 2, "scale_by_std": False, "aggregation": "sequence-sum"}
    agent = grpo(enumerated.world.setup, kl_in_loss="k2", **settings)
    without = grpo(enumerated.world.setup, **settings)
    flat = replace(
        enumerated.answers, scores=tuple(Score({"task": 0.0}, {"task": 1.0}) for _ in enumerated.answers.scores)
    )
    setup = enumerated.world.setup
    parameters = list(setup.policy.parameters())
    kl_only = replace(enumerated, answers=flat)
    kl_gradient = kl_only.expected_gradient(lambda rollout: gradient_of(agent, rollout), rows=2)
    torch.testing.assert_close(kl_gradient, kl_only.exact_gradient(), rtol=0, atol=1e-12)
    worth = enumerated.answers.returns(without=("kl",))
    reward = -(enumerated.logprobs.exp() * worth).sum()
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(reward, parameters)])
    both = enumerated.expected_gradient(lambda rollout: gradient_of(agent, rollout), rows=2)
    torch.testing.assert_close(both - kl_gradient, exact / 2, rtol=0, atol=1e-12)
    in_reward = enumerated.expected_gradient(lambda rollout: gradient_of(without, rollout), rows=2)
    torch.testing.assert_close(2 * in_reward, enumerated.exact_gradient(), rtol=0, atol=1e-12)


def test_k1_in_the_loss_is_refused(make_world) -> None:  # N20
    with pytest.raises(ConfigError, match="expected gradient of log p is 0"):
        GRPO.Config(kl_in_loss="k1")
    with pytest.raises(ConfigError, match="kl_in_loss must be one of 'k1', 'k2', 'k3', 'k3-corrected', got 'k4'"):
        GRPO.Config(kl_in_loss="k4")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="grpo with kl_in_loss's beta is the weight of the reward's KL penalty"):
        grpo(make_world(kl=0.0).setup, kl_in_loss="k3")


# ---------------------------------------------------------------- texts of another policy


@pytest.mark.parametrize("importance", ["token", "sequence"])
def test_rollouts_of_another_policy_weigh_at_most_the_cap(make_world, gradient_of, importance: str) -> None:  # N15
    """An older policy's texts: the ratio is to what it stated, cut off at the cap, without a gradient beyond."""
    world = make_world(rows=8)
    settings: dict[str, Any] = {"scale_by_std": False, "clip": 0.0, "importance": importance}
    agent = grpo(world.setup, importance_cap=1.5, **settings)
    rollout = world.rollout(agent)
    fresh = agent.policy.evaluate(rollout.tokens, rollout.mask, rollout.actions).logprobs
    assert ((fresh - rollout.logprobs)[rollout.actions].abs() < 1e-10).all()  # w == 1 on texts of its own
    grpo(world.setup, optimization=Optimization(lr=0.01), epochs=10).update(rollout)

    returns = rollout.returns().reshape(2, 4)
    advantages = (returns - returns.mean(1, keepdim=True)).flatten()[:, None]
    logprobs = agent.policy.evaluate(rollout.tokens, rollout.mask, rollout.actions).logprobs
    lengths = rollout.actions.sum(1, keepdim=True)
    moved = (logprobs - rollout.logprobs).masked_fill(~rollout.actions, 0.0)
    if importance == "sequence":
        moved = (moved.sum(1, keepdim=True) / lengths).expand_as(moved)
    weight = moved.exp()
    assert (weight[rollout.actions] > 1.5).any()
    terms = torch.where(weight > 1.5, 1.5, weight) * advantages
    loss = -(terms.masked_fill(~rollout.actions, 0.0) / lengths).sum() / 8
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(agent.policy.parameters()))])
    torch.testing.assert_close(gradient_of(agent, rollout), expected, rtol=0, atol=1e-12)
    assert agent.update(rollout)["approx_kl"] > 1e-3  # and the log says how far the writer is


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns(assert_learns, seed: int) -> None:
    assert_learns(grpo, seed, updates=40)


def test_it_learns_with_the_kl_term_in_the_loss(assert_learns) -> None:
    assert_learns(lambda setup, **settings: grpo(setup, kl_in_loss="k3", clip_high=0.28, **settings), 0)


def test_it_resumes(assert_resumes) -> None:
    assert_resumes(lambda setup: grpo(setup, epochs=2, minibatches=2))


def test_what_compares_nothing_is_refused(make_world) -> None:  # N28
    with pytest.raises(ConfigError, match="at least 2"):
        grpo(make_world().setup, group_size=1)
    with pytest.raises(ConfigError, match="group_size must be at least 2, to compare responses"):
        make_world().setup.require_groups(1)  # what a plugin asks that declares no limit
    with pytest.raises(ConfigError, match="does not divide"):
        grpo(make_world().setup, group_size=5)
    with pytest.raises(ConfigError, match="aggregation must be"):
        GRPO.Config(aggregation="mean")  # type: ignore[arg-type]


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError) as caught:
        GRPO.Config(epochs=0, clip=-0.2, clip_high=-1.0, importance_cap=0.5, importance="word")  # type: ignore[arg-type]
    assert len(caught.value.problems) == 5
    with pytest.raises(ConfigError, match="above 1"):
        GRPO.Config(clip=0.2, clip_high=3.0)


def test_it_refuses_texts_without_stated_log_probabilities(make_world, make_episode) -> None:
    with pytest.raises(DataError, match="needs the log-probabilities of the policy that wrote"):
        grpo(make_world().setup).update(demonstrations([make_episode([0, 2], [1, 4])], pad_id=5))


# ---------------------------------------------------------------- losses of the table


@pytest.mark.parametrize(
    ("loss", "flat", "exactly"),
    [
        ("clip", {}, True),
        ("dapo", {"clip_high": 0.28, "aggregation": "token-mean"}, True),
        ("dr-grpo", {"scale_by_std": False, "aggregation": "dr-grpo"}, True),
        ("gspo", {"importance": "sequence", "clip": 3e-4, "clip_high": 4e-4}, False),
    ],
)
def test_a_loss_of_the_table_is_what_the_single_settings_make(
    make_world, gradient_of, loss: str, flat: dict[str, Any], exactly: bool
) -> None:
    """On texts that an older policy wrote, so that clips bind."""
    world = make_world(rows=8)
    writer = grpo(world.setup)
    rollout = world.rollout(writer)
    grpo(world.setup, optimization=Optimization(lr=0.01), epochs=5).update(rollout)
    found = gradient_of(grpo(world.setup, loss=loss), rollout)
    expected = gradient_of(grpo(world.setup, **flat), rollout)
    assert torch.equal(found, expected) or not exactly
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert not torch.equal(found, gradient_of(grpo(world.setup), rollout)) or loss == "clip"


def test_a_masked_answer_has_no_gradient_and_is_still_compared_with(make_world, gradient_of) -> None:
    """By hand: the group's mean is of all four, the loss of those that ended."""
    world = make_world(rows=8)
    agent = grpo(world.setup, mask_overlong=True, scale_by_std=False)
    rollout = world.rollout(agent)
    reasons = ["length" if row % 3 == 0 else "stop" for row in range(8)]
    rollout = replace(
        rollout,
        episodes=tuple(replace(it, finish_reason=reason) for it, reason in zip(rollout.episodes, reasons, strict=True)),
    )
    returns = rollout.returns().reshape(2, 4)
    advantages = (returns - returns.mean(1, keepdim=True)).flatten()
    ended = torch.tensor([reason == "stop" for reason in reasons])
    logprobs = agent.policy.evaluate(rollout.tokens, rollout.mask, rollout.actions).logprobs
    loss = -(advantages * logprobs.sum(1) / rollout.actions.sum(1))[ended].mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(agent.policy.parameters()))])
    torch.testing.assert_close(gradient_of(agent, rollout), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", ["cispo", "sapo", "reinforce++"])
def test_it_learns_with_a_loss_of_the_table(assert_learns, loss: str) -> None:
    assert_learns(lambda setup, **settings: grpo(setup, loss=loss, **settings), 0, updates=40)


def test_what_it_draws_resumes(assert_resumes) -> None:
    loss = {"name": "clip-cov", "lowest": 0.01, "share": 0.2}
    assert_resumes(lambda setup: grpo(setup, loss=loss, epochs=2, minibatches=2))
