"""DPO: ln 2 at the reference, which rows become pairs, and that it learns online and offline."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rlhf_agents.dpo import DPO, best_against_worst

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.functional import pair_loss
from rlhf_env.learning.rollout import Rollout, labelled_answers, preference_pairs
from rlhf_env.types import Score


def dpo(setup: Any, **settings: Any) -> DPO:
    return DPO(setup, DPO.Config(**{"optimization": Optimization(lr=3e-3), **settings}))


@pytest.fixture
def pairs(make_episode) -> Rollout:
    """Four pairs: whatever begins with 1 is preferred; lengths differ."""
    chosen = [make_episode([0, 2], [1] * (n + 1) + [4]) for n in range(4)]
    rejected = [make_episode([0, 2], [0, 3] * (n % 2 + 1)) for n in range(4)]
    return preference_pairs(chosen, rejected, pad_id=5)


@pytest.mark.parametrize("normalised", [True, False])
def test_at_the_reference_the_loss_is_ln_2(make_world, pairs: Rollout, normalised: bool) -> None:  # N39
    metrics = dpo(make_world().setup, length_normalised=normalised).update(pairs)
    assert abs(metrics["loss"] - math.log(2)) < 1e-12
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert abs(metrics[name]) < 1e-12
    assert metrics["pairs"] == 4


def test_the_loss_away_from_the_reference(make_world, pairs: Rollout) -> None:  # N39
    """By hand from response log-probabilities, after some learning; the prompt has no part in it."""
    world = make_world(kl=0.3)
    agent = dpo(world.setup, epochs=5)
    agent.update(pairs)
    ratio = np.array(
        [
            a.sum() - b.sum()
            for a, b in zip(
                agent.policy.response_logprobs(pairs.episodes),
                world.setup.reference.response_logprobs(pairs.episodes),
                strict=True,
            )
        ]
    )
    margins = 0.3 * (ratio[0::2] - ratio[1::2])
    metrics = dpo(world.setup).update(pairs)
    assert abs(metrics["loss"] - np.log1p(np.exp(-margins)).mean()) < 1e-12
    assert abs(metrics["rewards/chosen"] - 0.3 * ratio[0::2].mean()) < 1e-12
    assert abs(metrics["rewards/margins"] - margins.mean()) < 1e-12
    assert metrics["rewards/accuracies"] == (margins > 0).mean()


def log_ratios(agent: DPO, rollout: Rollout) -> np.ndarray:
    """log pi(answer) - log reference(answer) of every row, from separate passes over the texts."""
    policy, reference = (p.response_logprobs(rollout.episodes) for p in (agent.policy, agent.setup.reference))
    return np.array([a.sum() - b.sum() for a, b in zip(policy, reference, strict=True)])


@pytest.mark.parametrize("switch", ["ipo", "label_smoothing", "length_normalised"])
def test_each_switch_by_hand(make_world, pairs: Rollout, switch: str) -> None:
    """Away from the reference, the published formula in numpy: IPO eq. 17, cDPO, log-probabilities per token."""
    world = make_world(kl=0.3)
    dpo(world.setup, epochs=5).update(pairs)
    settings: Any = {"ipo": {"loss": "ipo"}, "label_smoothing": {"label_smoothing": 0.2}}.get(switch, {switch: True})
    agent = dpo(world.setup, **settings)
    ratio = log_ratios(agent, pairs)
    if switch == "length_normalised":
        ratio = ratio / [len(episode.response_ids) for episode in pairs.episodes]
    h = ratio[0::2] - ratio[1::2]
    expected = {
        "ipo": (h - 1 / (2 * 0.3)) ** 2,
        "label_smoothing": 0.8 * np.log1p(np.exp(-0.3 * h)) + 0.2 * np.log1p(np.exp(0.3 * h)),
        "length_normalised": np.log1p(np.exp(-0.3 * h)),
    }[switch]
    assert abs(h).max() > 0.1
    assert abs(agent.update(pairs)["loss"] - expected.mean()) < 1e-12


# ---------------------------------------------------------------- margins

MARGINS = [0.5, None, 3.0, 0.0]


@pytest.fixture
def margined(pairs: Rollout) -> Rollout:
    return preference_pairs(pairs.episodes[0::2], pairs.episodes[1::2], pad_id=5, margins=MARGINS)


@pytest.mark.parametrize("kind", ["offset", "log offset", "ipo"])
def test_margins_by_hand(make_world, margined: Rollout, kind: str) -> None:
    """Away from the reference, in numpy: ODPO eqs. 8 and 9, the distilled DPO's square; no margin is no offset."""
    world = make_world(kl=0.3)
    dpo(world.setup, epochs=5).update(margined)
    settings: Any = {"loss": "ipo", "margin": "offset"} if kind == "ipo" else {"margin": kind}
    agent = dpo(world.setup, **settings, margin_scale=0.7)
    assert agent.takes_margins and not dpo(world.setup).takes_margins
    ratio = log_ratios(agent, margined)
    h = ratio[0::2] - ratio[1::2]
    margin = np.array([0.5, math.nan, 3.0, 0.0])
    with np.errstate(divide="ignore"):
        offset = np.where(np.isnan(margin), 0.0, 0.7 * (np.log(margin) if kind == "log offset" else margin))
    expected = (h - offset / 0.3) ** 2 if kind == "ipo" else np.log1p(np.exp(-(0.3 * h - offset)))
    assert abs(h).max() > 0.1
    assert abs(agent.update(margined)["loss"] - expected.mean()) < 1e-12


def test_ignored_margins_change_nothing(make_world, margined: Rollout, pairs: Rollout, gradient_of) -> None:
    agent = dpo(make_world().setup)
    assert torch.equal(gradient_of(agent, margined), gradient_of(agent, pairs))


def test_the_margins_of_pairs_made_here_are_differences_in_reward(make_world, with_returns) -> None:
    """In groups of four, best against worst: 1.5 against -0.5 and 2.0 against 0.0; ties make no pair."""
    world = make_world(rows=8, kl=0.3)
    agent = dpo(world.setup, margin="offset", loss="ipo", group_size=4)
    rollout = with_returns(world.rollout(agent), [0.3, 1.5, -0.5, 1.0, 2.0, 1.0, 0.0, 0.5])
    before = log_ratios(agent, rollout)
    h = np.array([before[1] - before[2], before[4] - before[6]])
    assert abs(agent.update(rollout)["loss"] - ((h - 2.0 / 0.3) ** 2).mean()) < 1e-12


def test_the_optimum_is_where_beta_log_ratios_differ_by_the_margin(make_world, margined: Rollout) -> None:
    world = make_world(kl=0.5)
    agent = dpo(world.setup, loss="ipo", margin="offset", optimization=Optimization(lr=8e-3, schedule="linear"))
    for step in range(70):
        world.setup.engine.progress = step / 70
        metrics = agent.update(margined)
    ratio = log_ratios(agent, margined)
    np.testing.assert_allclose(0.5 * (ratio[0::2] - ratio[1::2]), [0.5, 0.0, 3.0, 0.0], atol=0.02)
    assert metrics["loss"] < 0.01


def test_micro_batches_keep_margins_with_their_pairs(make_world, margined: Rollout, gradient_of) -> None:  # N34
    settings: Any = {"margin": "offset", "loss": "ipo"}
    whole = gradient_of(dpo(make_world().setup, **settings), margined)
    split = gradient_of(dpo(make_world().setup, **settings, optimization=Optimization(micro_batch_size=2)), margined)
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-12)


# ---------------------------------------------------------------- labels in expectation


def test_expected_labels_are_satisfied_at_the_optimum_of_the_environment() -> None:
    """Over all pairs of seven answers: gradient 0 at reference * exp(reward / beta), and not with hard labels."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(0)
    reward = 3.0 * torch.rand(7, generator=generator, dtype=torch.float64)
    beta = 0.4
    first, second = torch.combinations(torch.arange(7)).T

    def gradient(logits: torch.Tensor, wrong: torch.Tensor | float) -> torch.Tensor:
        logits = logits.clone().requires_grad_()
        ratio = logits.log_softmax(0) - reference
        # Pairs as they are drawn from the policy, so that none weighs nothing.
        often = (logits.log_softmax(0)[first] + logits.log_softmax(0)[second]).exp().detach()
        better = torch.where(reward[first] > reward[second], first, second)
        worse = first + second - better
        loss = (often * pair_loss(ratio[better], ratio[worse], beta=beta, label_smoothing=wrong)).sum()
        return torch.autograd.grad(loss, logits)[0]

    better, worse = torch.maximum(reward[first], reward[second]), torch.minimum(reward[first], reward[second])
    expected_labels = torch.sigmoid(worse - better)
    optimum = reference + reward / beta
    assert gradient(optimum, expected_labels).abs().max() < 1e-14
    assert gradient(optimum, 0.0).abs().max() > 1e-3
    assert gradient(reference, expected_labels).abs().max() > 1e-3


def test_expected_labels_of_a_group(make_world, with_returns, gradient_of) -> None:
    """Best against worst, both orders weighted by hand; a tie says that both are as good, and is learned from."""
    world = make_world(rows=8, kl=0.3)
    agent = dpo(world.setup, labels="bradley-terry", group_size=4, optimization=Optimization(lr=0.1))
    agent.update(with_returns(world.rollout(agent), [1, 0, 2, 3, 3, 0, 2, 1]))
    rollout = with_returns(world.rollout(agent), [0.3, 1.5, -0.5, 1.0, 0.7, 0.7, 0.7, 0.7])
    ratio = log_ratios(agent, rollout)
    split = dpo(world.setup, labels="bradley-terry", optimization=Optimization(micro_batch_size=2))
    torch.testing.assert_close(gradient_of(split, rollout), gradient_of(agent, rollout), rtol=0, atol=1e-12)  # N34
    before = world.setup.spending.preference_labels
    metrics = agent.update(rollout)

    def order(margin: float) -> float:
        return float(np.log1p(np.exp(-0.3 * margin)))

    sure = 1 / (1 + math.exp(-2.0))  # of 1.5 against -0.5
    of_pair = sure * order(ratio[1] - ratio[2]) + (1 - sure) * order(ratio[2] - ratio[1])
    first, *_, last = sorted(range(4, 8), key=lambda row: rollout.episodes[row].ids.tolist())  # whatever their order
    of_tie = 0.5 * order(ratio[first] - ratio[last]) + 0.5 * order(ratio[last] - ratio[first])
    assert abs(of_tie - math.log(2)) > 1e-6
    assert abs(metrics["loss"] - (of_pair + of_tie) / 2) < 1e-12
    assert (metrics["pairs"], metrics["ties"]) == (2, 1)
    assert world.setup.spending.preference_labels == before + 2


def test_stored_pairs_keep_their_own_labels(make_world, pairs: Rollout, gradient_of) -> None:
    hard, soft = (dpo(make_world().setup, labels=labels) for labels in ("hard", "bradley-terry"))
    assert torch.equal(gradient_of(hard, pairs), gradient_of(soft, pairs))


@pytest.mark.parametrize(
    "settings",
    [{}, {"loss": "ipo"}, {"label_smoothing": 0.1}, {"length_normalised": True}, {"labels": "bradley-terry"}],
)
def test_micro_batches_change_nothing(make_world, pairs: Rollout, gradient_of, settings: Any) -> None:  # N34
    whole = gradient_of(dpo(make_world().setup, **settings), pairs)
    split = gradient_of(dpo(make_world().setup, **settings, optimization=Optimization(micro_batch_size=2)), pairs)
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pad", [4, 0])
def test_padding_is_known_by_length(make_world, pairs: Rollout, gradient_of, pad: int) -> None:  # N3
    """Padded with the end token or a letter; answers with and without an end token."""
    agent = dpo(make_world().setup)
    other = preference_pairs(pairs.episodes[0::2], pairs.episodes[1::2], pad_id=pad)
    assert torch.equal(gradient_of(agent, other), gradient_of(agent, pairs))


def test_padding_and_neighbours_change_nothing(make_world, pairs: Rollout, gradient_of) -> None:  # N4, N8
    agent = dpo(make_world().setup)
    noise = torch.randint(0, 6, pairs.tokens.shape, generator=torch.Generator().manual_seed(0))
    dirty = replace(pairs, tokens=torch.where(pairs.mask, pairs.tokens, noise))
    assert torch.equal(gradient_of(agent, dirty), gradient_of(agent, pairs))
    swapped = pairs.select(torch.tensor([4, 5, 6, 7, 0, 1, 2, 3]))
    torch.testing.assert_close(gradient_of(agent, swapped), gradient_of(agent, pairs), rtol=0, atol=1e-12)


def test_the_best_meets_the_worst() -> None:
    returns = torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0, 5.0, 0.0, math.inf, 1.0])
    group = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    counted = torch.tensor([True] * 7 + [False, True])
    pairs, ties = best_against_worst(returns, group, counted)
    assert pairs.tolist() == [[1, 0], [8, 6]]
    assert ties == 1


def test_pairs_are_made_without_the_kl_part_and_charged(make_world) -> None:
    world = make_world(rows=8, kl=0.1)
    agent = dpo(world.setup)
    rollout = world.rollout(agent)

    def scored(task: list[float]) -> Rollout:
        # A KL part that would reverse every comparison, were it counted.
        return replace(
            rollout,
            scores=tuple(Score(raw={"task": t, "kl": -100.0 * t}, weights={"task": 1.0, "kl": 0.1}) for t in task),
        )

    metrics = agent.update(scored([3, 1, 2, 0, 0.5, 0.5, 0.5, 0.5]))
    assert (metrics["pairs"], metrics["ties"]) == (1, 1)
    assert world.setup.spending.preference_labels == 2
    ratio = [
        a.sum() - b.sum()
        for a, b in zip(
            agent.policy.response_logprobs(rollout.episodes),
            world.setup.reference.response_logprobs(rollout.episodes),
            strict=True,
        )
    ]
    assert ratio[0] > ratio[3]

    before = agent.policy.response_logprobs(rollout.episodes)
    assert agent.update(scored([0.5] * 8)) == {"pairs": 0.0, "ties": 2.0, "steps_without_signal": 1.0}
    after = agent.policy.response_logprobs(rollout.episodes)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_stored_pairs_are_not_charged_again(make_world, pairs: Rollout) -> None:
    world = make_world()
    agent = dpo(world.setup)
    for _ in range(20):
        metrics = agent.update(pairs)
    assert metrics["rewards/accuracies"] == 1.0
    assert world.setup.spending.preference_labels == 0


def test_the_weights_of_stored_pairs(make_world, pairs: Rollout, gradient_of) -> None:
    """A weighted mean over the pairs: weight 3 is the pair three times, in micro-batches too."""
    chosen, rejected = pairs.episodes[0::2], pairs.episodes[1::2]
    weighted = preference_pairs(chosen[:2], rejected[:2], pad_id=5, weights=[0.3, 0.1])
    order = [0, 0, 0, 1]
    repeated = preference_pairs([chosen[i] for i in order], [rejected[i] for i in order], pad_id=5)
    expected = gradient_of(dpo(make_world().setup), repeated)
    for size in (0, 2):
        agent = dpo(make_world().setup, optimization=Optimization(micro_batch_size=size))
        torch.testing.assert_close(gradient_of(agent, weighted), expected, rtol=0, atol=1e-12)


def test_answers_judged_one_by_one_are_refused(make_world, pairs: Rollout) -> None:
    single = labelled_answers(pairs.episodes, [True, False] * 4, pad_id=5)
    with pytest.raises(DataError, match="judged one by one: use kto"):
        dpo(make_world().setup).update(single)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns(assert_learns, seed: int) -> None:
    assert_learns(dpo, seed)


def test_it_resumes(assert_resumes) -> None:
    assert_resumes(lambda setup: dpo(setup, epochs=2, minibatches=2))


def test_without_a_kl_part_there_is_no_beta(make_world) -> None:
    with pytest.raises(ConfigError, match="give the reward a 'kl' part"):
        dpo(make_world(kl=0.0).setup)


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError) as caught:
        DPO.Config(loss="ipo", label_smoothing=0.7, epochs=0, optimization=Optimization(micro_batch_size=3))
    assert len(caught.value.problems) == 3
    with pytest.raises(ConfigError, match="margin is for hard labels"):
        DPO.Config(margin="offset", label_smoothing=0.1)
    with pytest.raises(ConfigError, match="'log offset' belongs to the sigmoid loss"):
        DPO.Config(margin="log offset", loss="ipo")
    with pytest.raises(ConfigError, match="margin_scale scales margins, and they are ignored"):
        DPO.Config(margin_scale=2.0)
    with pytest.raises(ConfigError, match="say how sure they are"):
        DPO.Config(labels="bradley-terry", label_smoothing=0.1)


@pytest.mark.parametrize("loss", ["simpo", "orpo", "cpo"])
def test_a_loss_without_a_reference_asks_it_nothing(make_world, pairs: Rollout, loss: str) -> None:
    """Not a single pass, where no KL part does; and its number is that of the policy's log-probabilities alone."""
    world = make_world(kl=0.0)

    class Unasked:
        def response_logprobs(self, episodes: Any) -> Any:
            raise AssertionError("the reference was asked")

    agent = dpo(replace(world.setup, reference=Unasked()), loss=loss)
    logprobs = np.array([row.sum() for row in agent.policy.response_logprobs(pairs.episodes)])
    length = np.array([len(episode.response_ids) for episode in pairs.episodes])
    chosen, rejected = (logprobs[start::2] for start in (0, 1))
    average = [logprobs[start::2] / length[start::2] for start in (0, 1)]
    odds = [value - np.log1p(-np.exp(value)) for value in average]
    expected = {
        "simpo": np.log1p(np.exp(-(2.0 * (average[0] - average[1]) - 1.0))),
        "orpo": -average[0] + 0.1 * np.log1p(np.exp(-(odds[0] - odds[1]))),
        "cpo": np.log1p(np.exp(-0.1 * (chosen - rejected))) - chosen,
    }[loss]
    assert abs(agent.update(pairs)["loss"] - expected.mean()) < 1e-12
    with pytest.raises(ConfigError, match="dpo's beta is the weight of the reward's KL penalty"):
        dpo(world.setup, loss="hinge")


@pytest.mark.parametrize("loss", ["simpo", "orpo", "cpo", "hinge", "sppo", "apo-zero", "robust"])
def test_other_losses_learn_what_is_preferred(make_world, pairs: Rollout, loss: str) -> None:
    agent = dpo(make_world(kl=0.3).setup, loss=loss, epochs=30, optimization=Optimization(lr=1e-2))
    before = agent.policy.response_logprobs(pairs.episodes)
    agent.update(pairs)
    now = agent.policy.response_logprobs(pairs.episodes)
    gained = np.array([b.sum() - a.sum() for a, b in zip(before, now, strict=True)])
    assert (gained[0::2] > gained[1::2]).all()
