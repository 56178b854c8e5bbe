"""Rejection-sampling fine-tuning: what is kept, what is paid, where it ends, and that it learns and resumes."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from rlhf_agents.rejection import Rejection, best_of_groups
from torch import Tensor

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.loop import train
from rlhf_env.learning.rollout import demonstrations
from rlhf_env.learning.sources import EnvSource
from rlhf_env.learning.spending import Budget


def rejection(setup: Any, **settings: Any) -> Rejection:
    return Rejection(setup, Rejection.Config(**{"optimization": Optimization(lr=3e-3), **settings}))


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (1, [[1], [5, 7], [9]]),
        (2, [[1, 3], [5, 7], [9]]),  # two share the second group's first place; one of the third stands out
        (3, [[1, 2, 3], [4, 5, 7], [9]]),  # the worst never stays
    ],
)
def test_the_best_of_each_group_are_kept(keep: int, kept: list[list[int]]) -> None:  # N26
    returns = torch.tensor([1.0, 4, 2, 3, 7, 8, 6, 8, 0, 5, 0, 0, 0.35, 0.35, 0.35, 0.35], dtype=torch.float64)
    group = torch.arange(16) // 4
    rows = [row for rows in kept for row in rows]  # the fourth group, of equals, keeps none (N27)
    assert best_of_groups(returns, group, keep).tolist() == rows
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    shuffled = best_of_groups(returns[order], group[order], keep)
    assert sorted(order[shuffled].tolist()) == rows  # N8


def test_rows_without_a_score_are_as_if_absent() -> None:  # N30
    returns, group = torch.tensor([9.0, 1, 2, 3, 9, 9]), torch.tensor([0, 0, 0, 1, 1, 2])
    counted = torch.tensor([False, True, True, True, False, False])
    assert best_of_groups(returns, group, 1, counted=counted).tolist() == [2]


@pytest.mark.parametrize("whole_responses", [True, False])
def test_the_step_imitates_the_best(make_world, gradient_of, with_returns, whole_responses: bool) -> None:
    """The mean over the kept answers' tokens of -log pi, and nothing of the others."""
    world = make_world(rows=8, whole_responses=whole_responses)
    agent = rejection(world.setup, keep=2)
    rollout = with_returns(world.rollout(agent), [0, 3, 1, 2, 5, 5, 5, 5])
    logprobs = agent.policy.evaluate(rollout.tokens, rollout.mask, rollout.actions).logprobs
    loss = -(logprobs[1].sum() + logprobs[3].sum()) / rollout.actions[[1, 3]].sum()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(agent.policy.parameters()))])
    torch.testing.assert_close(gradient_of(agent, rollout), expected, rtol=0, atol=1e-12)
    metrics = agent.update(rollout)
    assert abs(metrics["loss"] - float(loss.detach())) < 1e-12
    assert (metrics["kept"], metrics["kept_reward"], metrics["groups_without_spread"]) == (2.0, 2.5, 0.5)


def test_answers_are_ranked_by_all_of_their_return(make_world, gradient_of) -> None:
    """The KL part, larger than the task's here, decides."""
    world = make_world(rows=8, kl=2.0)
    agent = rejection(world.setup)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():  # off the reference, where rounding alone would rank the answers
        for p in agent.policy.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=noise, dtype=p.dtype))
    rollout = world.rollout(agent)
    best = (rollout.part("task") + 2.0 * rollout.part("kl")).reshape(2, 4).argmax(dim=1) + torch.tensor([0, 4])
    assert best.tolist() != (rollout.part("task").reshape(2, 4).argmax(dim=1) + torch.tensor([0, 4])).tolist()
    before = agent.policy.response_logprobs(rollout.episodes)
    rejection(world.setup, optimization=Optimization(lr=1e-4)).update(rollout)
    after = agent.policy.response_logprobs(rollout.episodes)
    assert all(after[i].sum() > before[i].sum() for i in best)


def test_equal_rewards_change_nothing(make_world, with_returns) -> None:  # N27, F26
    world = make_world(rows=14)
    agent = rejection(world.setup, group_size=7)
    world.learn(agent, 2)  # a step on nothing would show now, for AdamW has momentum
    before = [p.clone() for p in agent.policy.parameters()]
    spent = world.setup.spending.gradient_steps
    rollout = with_returns(world.rollout(agent), [0.35] * 7 + [0.1] * 7)
    assert agent.update(rollout) == {
        "kept": 0.0,
        "rows_without_score": 0.0,
        "groups_without_spread": 1.0,
        "steps_without_signal": 1.0,
    }
    assert all(torch.equal(a, b) for a, b in zip(agent.policy.parameters(), before, strict=True))
    assert world.setup.spending.gradient_steps == spent


def test_the_layout_of_a_batch_changes_nothing(assert_layout_changes_nothing, with_returns) -> None:
    assert_layout_changes_nothing(
        lambda setup, **how: rejection(setup, keep=3, **how),
        lambda rollout: with_returns(rollout, [0, 1, 2, 3, 0, 1, 2, 2]),
    )


def test_answers_thrown_away_are_paid_for(make_world) -> None:
    world = make_world(rows=8)
    agent, spending = rejection(world.setup, epochs=2, minibatches=2), world.setup.spending
    source = EnvSource(world.env, seed=0, spending=spending)
    done = train(agent, source, Budget(episodes=24), spending=spending, engine=world.setup.engine)
    assert (spending.episodes, spending.reward_calls) == (24, 24)
    assert spending.generated_tokens == round(sum(row["rollout/length"] * 8 for row in done.rows))
    assert all(2 <= row["train/kept"] < 8 for row in done.rows)  # how many: ties at the reference are of rounding
    assert spending.gradient_steps == 12


def expected_steps(beta: float, rate: float, steps: int) -> Tensor:
    """[steps, 4]: a policy over four answers, moved by the expected step over all pairs of answers, again and again."""
    pairs, group = torch.tensor(list(product(range(4), repeat=2))), torch.arange(16).repeat_interleave(2)
    logits, passed = REFERENCE.log(), []
    for _ in range(steps):
        logprobs = logits.log_softmax(0)
        returns = REWARD - beta * (logprobs - REFERENCE.log())
        kept = best_of_groups(returns[pairs.flatten()], group, 1)
        likely = logprobs.exp()[pairs].prod(dim=1)[group[kept]]
        imitated = torch.zeros(4, dtype=torch.float64).index_add(0, pairs.flatten()[kept], likely)
        logits = logits + rate * (imitated - imitated.sum() * logprobs.exp())  # sum of imitated_y grad log pi(y)
        passed.append(logits.softmax(0))
    return torch.stack(passed)


REWARD = torch.tensor([1.0, 0.5, 0.0, -1.0], dtype=torch.float64)
REFERENCE = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)


def test_without_kl_it_ends_with_the_best_answer_alone() -> None:
    assert expected_steps(beta=0.0, rate=0.5, steps=600)[-1, 0] > 0.95


@pytest.mark.parametrize("rate", [0.4, 0.1])
def test_with_kl_it_circles_the_optimum_of_the_objective(rate: float) -> None:
    optimum = (REFERENCE.log() + REWARD / 0.5).softmax(0)
    distance = (expected_steps(beta=0.5, rate=rate, steps=1000)[700:] - optimum).abs().max(dim=1).values
    assert float(distance.max()) < 0.15 * rate
    assert float(distance.max()) > 0.05 * rate  # and it does not come to rest


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns(assert_learns, seed: int) -> None:
    assert_learns(rejection, seed, updates=40)


def test_it_resumes(assert_resumes) -> None:
    assert_resumes(lambda setup: rejection(setup, epochs=2, minibatches=2), dropout=0.1)


def test_what_it_cannot_do_is_refused(make_world, make_episode) -> None:  # N28
    with pytest.raises(ConfigError, match="at least 2"):
        rejection(make_world().setup, group_size=1, keep=1)
    with pytest.raises(ConfigError, match="does not divide"):
        rejection(make_world().setup, group_size=5)
    with pytest.raises(DataError, match="learn from demonstrations with sft"):
        rejection(make_world().setup).update(demonstrations([make_episode([0, 2], [1, 4])], pad_id=5))
    with pytest.raises(ConfigError) as caught:
        Rejection.Config(keep=4, epochs=0, minibatches=0)
    assert len(caught.value.problems) == 3
