"""KTO: its loss at and away from the reference, who is judged desirable, its reference point, and that it learns."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rlhf_agents.kto import KTO, above_the_mean, mismatched

from rlhf_env.errors import ConfigError
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.functional import logprobs_under
from rlhf_env.learning.rollout import Rollout, labelled_answers, preference_pairs
from rlhf_env.types import Episode, Score

SAID = [[1, 4], [0, 3, 4], [1, 1, 4], [0, 4], [1, 1, 1, 4], [2, 0, 4]]
GOOD = [True, False, True, False, True, False]


def kto(setup: Any, **settings: Any) -> KTO:
    return KTO(setup, KTO.Config(**{"optimization": Optimization(lr=3e-3), **settings}))


@pytest.fixture
def labelled(make_episode) -> Rollout:
    """Six answers, three of them desirable, to prompts of two lengths."""
    episodes = [make_episode([0, 2] if row % 2 else [1, 0, 2], said) for row, said in enumerate(SAID)]
    return labelled_answers(episodes, GOOD, pad_id=5)


@pytest.fixture
def crossed(make_episode, labelled: Rollout) -> list[Episode]:
    """The prompt of row i with the answer of row i + 1 mod m."""
    prompts = [episode.prompt_ids.tolist() for episode in labelled.episodes]
    return [make_episode(prompt, SAID[(row + 1) % 6]) for row, prompt in enumerate(prompts)]


@pytest.fixture
def strayed(make_world, crossed: list[Episode]) -> KTO:
    """An agent whose policy has left the reference, towards mismatched answers: its reference point is above 0."""
    agent = kto(make_world(kl=0.3).setup, optimization=Optimization(lr=3e-2))
    for _ in range(5):
        agent.update(labelled_answers(crossed, [True] * 6, pad_id=5))
    return agent


def log_ratios(agent: KTO, episodes: Any) -> np.ndarray:
    """log pi(answer) - log reference(answer) of each text, from separate passes over them."""
    policy, reference = (p.response_logprobs(episodes) for p in (agent.policy, agent.setup.reference))
    return np.array([a.sum() - b.sum() for a, b in zip(policy, reference, strict=True)])


def gradient_by_hand(agent: KTO, rollout: Rollout, z0: float, weights: tuple[float, float] = (1.0, 1.0)) -> Any:
    """The mean of lambda - v over the rows and its gradient, z0 a plain number (sec. 4.1, written once more)."""
    logprobs = agent.policy.evaluate(rollout.tokens, rollout.mask, rollout.actions).logprobs.sum(1)
    reference = [values.sum() for values in agent.setup.reference.response_logprobs(rollout.episodes)]
    beta, terms = agent.setup.beta, []
    for row, good in enumerate(GOOD):
        r = logprobs[row] - reference[row]
        terms.append(
            weights[0] * (1 - torch.sigmoid(beta * (r - z0)))
            if good
            else weights[1] * (1 - torch.sigmoid(beta * (z0 - r)))
        )
    loss = torch.stack(terms).mean()
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(agent.policy.parameters()))])
    return float(loss.detach()), gradient


def test_at_the_reference_half_of_the_weights_is_lost(make_world, labelled: Rollout, gradient_of) -> None:
    """r = z0 = 0, so that v = lambda / 2."""
    agent = kto(make_world().setup, desirable_weight=1.5, undesirable_weight=0.5)
    _, expected = gradient_by_hand(agent, labelled, 0.0, (1.5, 0.5))
    torch.testing.assert_close(gradient_of(agent, labelled), expected, rtol=0, atol=1e-12)
    metrics = agent.update(labelled)
    assert abs(metrics["loss"] - (3 * 1.5 / 2 + 3 * 0.5 / 2) / 6) < 1e-12
    assert metrics["reference_point"] < 1e-12
    assert (metrics["desirable"], metrics["undesirable"], metrics["not_judged"]) == (3, 3, 0)


def test_the_loss_away_from_the_reference(strayed: KTO, labelled: Rollout, crossed: Any, gradient_of) -> None:
    """z0 is the mean log-ratio of mismatched pairs, and nothing flows back through it."""
    z0 = log_ratios(strayed, crossed).mean()
    assert z0 > 0.1
    loss, expected = gradient_by_hand(strayed, labelled, z0)
    torch.testing.assert_close(gradient_of(strayed, labelled), expected, rtol=0, atol=1e-12)
    distance = log_ratios(strayed, labelled.episodes) - z0
    metrics = strayed.update(labelled)
    assert abs(metrics["reference_point"] - z0) < 1e-12
    assert abs(metrics["loss"] - loss) < 1e-12
    assert metrics["right_side"] == ((distance > 0) == np.array(GOOD)).mean()


def test_what_a_stored_row_says_of_the_reference_is_not_computed_again(
    strayed: KTO, labelled: Rollout, crossed: Any, gradient_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference reads the mismatched pairs alone, which each batch makes anew."""
    reference, asked = strayed.setup.reference, []
    knows = labelled.with_extras(reference=logprobs_under(reference, labelled))
    expected = gradient_of(strayed, labelled)
    response_logprobs = reference.response_logprobs
    monkeypatch.setattr(reference, "response_logprobs", lambda said: asked.extend(said) or response_logprobs(said))
    torch.testing.assert_close(gradient_of(strayed, knows), expected, rtol=0, atol=1e-12)
    assert [it.ids.tolist() for it in asked] == [it.ids.tolist() for it in crossed]
    assert (gradient_of(strayed, knows.with_extras(reference=knows.logprobs)) - expected).abs().max() > 1e-4


def test_the_reference_point_is_never_below_zero(make_world, labelled: Rollout, crossed: Any) -> None:
    agent = kto(make_world().setup, optimization=Optimization(lr=3e-2))
    for _ in range(3):
        agent.update(labelled_answers(crossed, [False] * 6, pad_id=5))
    assert log_ratios(agent, crossed).mean() < -0.1
    assert agent.update(labelled)["reference_point"] == 0.0


def test_who_is_judged_desirable() -> None:
    returns = torch.tensor([1.0, 2.0, 6.0, 0.35, 0.35, 0.35, math.inf, 1.0, 3.0])
    group = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    counted = torch.tensor([True] * 6 + [False, True, True])
    assert above_the_mean(returns, group, counted).tolist() == [-1, -1, 1, 0, 0, 0, 0, -1, 1]
    alone = torch.arange(9)
    mean_of_counted = above_the_mean(returns, alone, counted)  # 14.05 / 8
    assert mean_of_counted.tolist() == [-1, 1, 1, -1, -1, -1, 0, -1, 1]
    exactly = above_the_mean(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3, dtype=torch.int64), counted[:3])
    assert exactly.tolist() == [-1, 0, 1]


def test_prompts_meet_the_answers_of_the_next_group(make_episode) -> None:
    """Answers 10 g + k of group g to the prompt [g]; groups of 2, 1 and 2 rows."""
    rows = [(0, 0), (0, 1), (1, 10), (2, 20), (2, 21)]
    rollout = labelled_answers([make_episode([g], [said]) for g, said in rows], [True] * 5, pad_id=5)
    by_group = Rollout(**{**vars(rollout), "group": torch.tensor([g for g, _ in rows])})
    met = [(int(e.prompt_ids[0]), int(e.response_ids[0])) for e in mismatched(by_group, pad_id=5).episodes]
    assert met == [(0, 10), (0, 10), (1, 20), (2, 0), (2, 1)]
    single = by_group.select([0, 1])
    assert [int(e.response_ids[0]) for e in mismatched(single, pad_id=5).episodes] == [1, 0]


def test_pairs_are_judged_half_by_half(make_world, labelled: Rollout, gradient_of) -> None:
    """At the reference, where z0 is 0 however rows are mismatched, a pair is two labelled answers."""
    pairs = preference_pairs(labelled.episodes[0::2], labelled.episodes[1::2], pad_id=5)
    agent = kto(make_world().setup)
    torch.testing.assert_close(gradient_of(agent, pairs), gradient_of(agent, labelled), rtol=0, atol=1e-12)
    assert agent.setup.spending.preference_labels == 0


def test_judgements_are_made_without_the_kl_part_and_charged(make_world, with_returns) -> None:
    world = make_world(rows=8)
    agent = kto(world.setup)
    rollout = with_returns(world.rollout(agent), [3, 1, 2, 0, 0.5, 0.5, 0.5, None])
    before = log_ratios(agent, rollout.episodes)
    metrics = agent.update(rollout)
    assert (metrics["desirable"], metrics["undesirable"], metrics["not_judged"]) == (2, 2, 4)
    assert world.setup.spending.preference_labels == 7
    moved = log_ratios(agent, rollout.episodes) - before
    assert moved[0] > 0 > moved[3]
    flat = with_returns(rollout, [0.35] * 8)
    weights = [p.clone() for p in agent.policy.parameters()]
    assert agent.update(flat) == {"desirable": 0.0, "undesirable": 0.0, "not_judged": 8.0, "steps_without_signal": 1.0}
    assert all(torch.equal(a, b) for a, b in zip(weights, agent.policy.parameters(), strict=True))


def test_the_kl_part_has_no_say_in_who_is_desirable(make_world, gradient_of) -> None:
    """A KL part that would turn every verdict round, were it counted."""
    world = make_world(rows=8, kl=0.1)
    agent = kto(world.setup)
    rollout, task = world.rollout(agent), [3.0, 1.0, 2.0, 0.0, 1.0, 5.0, 1.0, 1.0]
    plain, turned = (
        replace(rollout, scores=tuple(Score({"task": t, "kl": kl * t}, {"task": 1.0, "kl": 0.1}) for t in task))
        for kl in (0.0, -100.0)
    )
    assert torch.equal(gradient_of(agent, turned), gradient_of(agent, plain))


@pytest.mark.parametrize("size", [1, 4])
def test_micro_batches_change_nothing(strayed: KTO, labelled: Rollout, gradient_of, size: int) -> None:  # N34
    """Where z0 is above 0 and is taken over micro-batches too."""
    split = kto(strayed.setup, optimization=Optimization(micro_batch_size=size))
    torch.testing.assert_close(gradient_of(split, labelled), gradient_of(strayed, labelled), rtol=0, atol=1e-12)


def test_layout_changes_nothing(assert_layout_changes_nothing) -> None:  # N3, N4, N8, N34
    assert_layout_changes_nothing(kto)


@pytest.mark.parametrize("pad", [5, 4])
def test_padding_is_known_by_length(make_world, make_episode, gradient_of, pad: int) -> None:  # N3
    """With pad == end, and rows with and without an end token."""
    said = [[1, 4], [1, 1, 1, 1], [0], [4]]
    rollout = labelled_answers([make_episode([0, 2], ids) for ids in said], GOOD[:4], pad_id=pad)
    plain = labelled_answers([make_episode([0, 2], ids) for ids in said], GOOD[:4], pad_id=5)
    agent = kto(make_world().setup)
    assert torch.equal(gradient_of(agent, rollout), gradient_of(agent, plain))


def test_labels_are_learned_offline(make_world, labelled: Rollout) -> None:
    agent = kto(make_world(kl=0.3).setup)
    for _ in range(30):
        metrics = agent.update(labelled)
    assert metrics["right_side"] == 1.0
    assert agent.setup.spending.preference_labels == 0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns(assert_learns, seed: int) -> None:
    assert_learns(kto, seed)


def test_it_resumes(assert_resumes) -> None:
    assert_resumes(lambda setup: kto(setup, epochs=2, minibatches=2))


def test_what_does_not_fit_is_refused(make_world) -> None:
    with pytest.raises(ConfigError, match="give the reward a 'kl' part"):
        kto(make_world(kl=0.0).setup)
    with pytest.raises(ConfigError) as caught:
        KTO.Config(group_size=0, desirable_weight=0.0, undesirable_weight=-1.0, minibatches=0)
    assert len(caught.value.problems) == 4
