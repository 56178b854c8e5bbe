"""SFT: what it minimises, that it imitates, that it resumes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from rlhf_agents.sft import SFT

from rlhf_env.errors import DataError
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.rollout import demonstrations, preference_pairs


def sft(setup: Any, **settings: Any) -> SFT:
    return SFT(setup, SFT.Config(optimization=Optimization(**{"lr": 3e-3, **settings})))


@pytest.mark.parametrize("length", [1, 2, 5])
def test_the_loss_is_the_answer_and_nothing_else(make_world, make_episode, gradient_of, length: int) -> None:  # N1
    """Against a plain forward pass of the transformers model, prompts and lengths mixed."""
    world = make_world()
    agent = sft(world.setup)
    episodes = [make_episode([0, 2], [1] * (length - 1) + [4]), make_episode([1, 0, 2], [3, 4])]
    rollout = demonstrations(episodes, pad_id=5)

    parameters = list(agent.policy.parameters())
    terms = []
    for episode in episodes:
        ids = torch.from_numpy(episode.ids)[None]
        logprobs = agent.policy.model(ids).logits[0].log_softmax(-1)
        start = len(episode.prompt_ids)
        terms += [-logprobs[t - 1, ids[0, t]] for t in range(start, ids.shape[1])]
    expected = torch.stack(terms).mean()
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(expected, parameters)])

    torch.testing.assert_close(gradient_of(agent, rollout), gradient, rtol=0, atol=1e-12)
    metrics = agent.update(rollout)
    assert metrics["tokens"] == len(terms)
    assert abs(metrics["loss"] - float(expected.detach())) < 1e-12
    assert abs(metrics["perplexity"] - math.exp(metrics["loss"])) < 1e-12


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_micro_batches_change_nothing(make_world, make_episode, gradient_of, size: int) -> None:  # N34
    rows = [make_episode([0, 2], [1] * n + [4]) for n in (0, 5, 1, 3, 2, 4, 0, 1)]
    rollout = demonstrations(rows, pad_id=5)
    whole = gradient_of(sft(make_world().setup), rollout)
    split = gradient_of(sft(make_world().setup, micro_batch_size=size), rollout)
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("known", [True, False])
def test_texts_that_share_a_step_do_not_see_each_other(make_world, make_episode, gradient_of, known: bool) -> None:
    """The gradient of a full step is the mean of its texts' own, by tokens: in families whose layers are known, and,
    padded, in all others."""
    rows = [make_episode([0, 2], [1] * n + [4]) for n in (5, 1, 3, 0)] + [make_episode([1], [0, 3, 0, 0, 3, 2, 4])]
    together = gradient_of(sft(make_world(fused=known).setup), demonstrations(rows, pad_id=5))
    alone = [gradient_of(sft(make_world(fused=known).setup), demonstrations([row], pad_id=5)) for row in rows]
    weights = [int(row.actions.sum()) for row in rows]
    mean = sum(weight * gradient for weight, gradient in zip(weights, alone, strict=True)) / sum(weights)
    torch.testing.assert_close(together, mean, rtol=0, atol=1e-12)


def test_texts_without_an_answer_are_counted_and_weigh_nothing(make_world, make_episode, gradient_of) -> None:  # N7
    full, empty = make_episode([0, 2], [1, 4]), make_episode([0, 2], [])
    agent = sft(make_world().setup)
    alone = gradient_of(agent, demonstrations([full], pad_id=5))
    beside = gradient_of(agent, demonstrations([full, empty], pad_id=5))
    torch.testing.assert_close(beside, alone, rtol=0, atol=1e-12)
    assert agent.update(demonstrations([full, empty], pad_id=5))["skipped_texts"] == 1
    with pytest.raises(DataError, match="none of the texts has a token to learn"):
        agent.update(demonstrations([empty], pad_id=5))


def test_rejected_answers_are_not_imitated(make_world, make_episode) -> None:
    pair = preference_pairs([make_episode([0, 2], [1, 4])], [make_episode([0, 2], [0, 4])], pad_id=5)
    with pytest.raises(DataError, match="some were rejected: use dpo or kto"):
        sft(make_world().setup).update(pair)


def test_dropout_is_on_while_learning_and_draws_from_its_own_stream(make_world, make_episode) -> None:  # N12
    rollout = demonstrations([make_episode([0, 2], [1, 1, 1, 4])] * 4, pad_id=5)
    losses = []
    for disturbance in (0, 1):
        agent = sft(make_world(family="gpt2", dropout=0.3).setup)
        torch.manual_seed(disturbance)
        before = torch.random.get_rng_state()
        losses.append([agent.update(rollout)["loss"] for _ in range(2)])
        assert torch.equal(before, torch.random.get_rng_state())
        assert not agent.policy.training
    plain = sft(make_world(family="gpt2", dropout=0.0).setup).update(rollout)["loss"]
    assert losses[0] == losses[1]
    assert abs(losses[0][0] - plain) > 1e-6


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_imitates(make_world, make_episode, seed: int) -> None:
    """After a demonstration of "aaaaaa" it writes that, where the reference scores below 0."""
    world = make_world(seed=seed)
    agent = sft(world.setup, lr=1e-2)
    rollout = demonstrations([make_episode([0, 2], [0] * 6)] * 4, pad_id=5)
    for _ in range(30):
        metrics = agent.update(rollout)
    assert metrics["perplexity"] < 1.2
    assert world.mean_score(agent) > 0.8


def test_it_resumes(make_world, assert_resumes) -> None:
    assert_resumes(sft)
    assert_resumes(sft, family="gpt2", dropout=0.3)
