"""Texts that a copy in 8 bits wrote teach, on average, what texts of the policy itself teach."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rlhf_agents.grpo import GRPO
from rlhf_agents.ppo import PPO
from rlhf_agents.reinforce import Reinforce
from rlhf_agents.rloo import RLOO

from rlhf_env.learning.sources import EnvSource
from rlhf_env.policies.anatomy import anatomy_of
from rlhf_env.policies.fused import FusedStep
from rlhf_env.policies.low_precision import Int8Linear, has_int8

pytestmark = pytest.mark.skipif(not has_int8(), reason="this processor has no 8-bit instructions")


def stated_by_copy(policy: Any, episodes: Any) -> list[np.ndarray]:
    """log q of every token, of the copy's own distribution after the text before it."""
    step = FusedStep(policy.model, anatomy_of(policy.model), Int8Linear)
    found = []
    for episode in episodes:
        logprobs = []
        for end in range(len(episode.prompt_ids), len(episode.ids)):
            text = torch.from_numpy(episode.ids[:end].copy())[None]
            mask, first = torch.ones_like(text, dtype=torch.bool), np.zeros(1, np.int64)
            with torch.inference_mode():
                logits = step.prefill(text, mask, step.cache(), first, 1)
            logprobs.append(float(logits[0].double().log_softmax(-1)[episode.ids[end]]))
        found.append(np.array(logprobs))
    return found


@pytest.fixture
def written_by_copy(enumerate_world: Any) -> Any:
    """`enumerate_world`, of answers that the policy's copy in 8 bits wrote."""

    def build(**world: Any) -> Any:
        enumerated = enumerate_world(**world)
        answers = enumerated.answers
        stated = stated_by_copy(enumerated.world.setup.policy, answers.episodes)
        logprobs = torch.zeros_like(answers.logprobs)
        for row, (episode, values) in enumerate(zip(answers.episodes, stated, strict=True)):
            start = len(episode.prompt_ids)
            logprobs[row, start : start + len(values)] = torch.from_numpy(values)
        assert abs(float(logprobs.sum(dim=1).exp().sum()) - 1.0) < 1e-12
        assert (logprobs - answers.logprobs).abs().max() > 1e-4  # another policy
        return replace(enumerated, answers=replace(answers, logprobs=logprobs))

    return build


# Without clip and with no cap in reach; a group's mean without the answer's own part, or shortened by a known factor.
UNCLIPPED: dict[str, Any] = {"clip": 0.0, "importance_cap": 1e9}
AGENTS: dict[str, Any] = {
    "reinforce": (lambda setup: Reinforce(setup, Reinforce.Config(importance_cap=1e9)), {"length": 2, "rows": 1}, 1.0),
    "rloo": (lambda setup: RLOO(setup, RLOO.Config(group_size=2, **UNCLIPPED)), {"length": 2, "rows": 2}, 1.0),
    # Ratios of tokens: those of one-token answers are whole.
    "grpo": (
        lambda setup: GRPO(setup, GRPO.Config(group_size=2, scale_by_std=False, **UNCLIPPED)),
        {"length": 1, "rows": 2},
        2.0,
    ),
    "ppo": (
        lambda setup: PPO(
            setup, PPO.Config(whiten_advantages=False, value_coefficient=0.0, lam=1.0, epochs=1, **UNCLIPPED)
        ),
        {"length": 1, "rows": 1},
        1.0,
    ),
}


@pytest.mark.parametrize("name", AGENTS)
def test_the_corrected_gradient_is_unbiased(written_by_copy: Any, gradient_of: Any, name: str) -> None:
    make, world, factor = AGENTS[name]
    enumerated = written_by_copy(kl=0.0, **world)
    agent = make(enumerated.world.setup)
    mean = enumerated.expected_gradient(lambda rollout: gradient_of(agent, rollout)[: size(agent)], rows=world["rows"])
    torch.testing.assert_close(factor * mean, enumerated.exact_gradient(), rtol=0, atol=1e-10)
    # Had the copy's texts been taken for the policy's own:
    uncorrected = replace(enumerated, answers=replace(enumerated.answers, logprobs=own_logprobs(enumerated)))
    wrong = sum_under(enumerated, uncorrected, agent, gradient_of, world["rows"])
    assert (factor * wrong - enumerated.exact_gradient()).abs().max() > 1e-6


def size(agent: Any) -> int:
    return sum(weight.numel() for weight in agent.policy.parameters())  # a value head comes after


def own_logprobs(enumerated: Any) -> torch.Tensor:
    policy, answers = enumerated.world.setup.policy, enumerated.answers
    return policy.evaluate(answers.tokens, answers.mask, answers.actions).logprobs.detach().double()


def sum_under(enumerated: Any, uncorrected: Any, agent: Any, gradient_of: Any, rows: int) -> torch.Tensor:
    """The mean over what the copy draws, of gradients that take its texts for the policy's."""
    by_tokens = {tuple(episode.ids): row for row, episode in enumerate(uncorrected.answers.episodes)}

    def gradient(rollout: Any) -> torch.Tensor:
        places = [by_tokens[tuple(episode.ids)] for episode in rollout.episodes]
        own = replace(rollout, logprobs=uncorrected.answers.select(places).logprobs)
        return gradient_of(agent, own)[: size(agent)]

    return enumerated.expected_gradient(gradient, rows=rows)


def test_the_kl_penalty_is_that_of_who_wrote(written_by_copy: Any, gradient_of: Any) -> None:
    """It charges log q - log reference, q the copy: the gradient is that of E[reward - beta (log q - log reference)].

    It differs from the objective's by beta times the gradient of KL(policy || copy).
    """
    enumerated = written_by_copy(kl=0.3, length=2, rows=1)
    setup, answers = enumerated.world.setup, enumerated.answers
    episodes = [
        replace(episode, logprobs=values)
        for episode, values in zip(answers.episodes, stated_by_copy(setup.policy, answers.episodes), strict=True)
    ]
    scored = replace(answers, episodes=tuple(episodes), scores=tuple(enumerated.world.env.reward.score(episodes)))
    enumerated = replace(enumerated, answers=scored)
    agent = Reinforce(setup, Reinforce.Config(importance_cap=1e9))
    mean = enumerated.expected_gradient(lambda rollout: gradient_of(agent, rollout))
    weights = list(setup.policy.parameters())
    policy, copy = enumerated.logprobs, scored.logprobs.sum(dim=1)
    between = torch.autograd.grad((policy.exp() * (policy - copy)).sum(), weights)
    apart = setup.beta * torch.cat([part.flatten() for part in between])
    torch.testing.assert_close(mean, enumerated.exact_gradient() - apart, rtol=0, atol=1e-10)
    assert 0 < apart.norm() < 0.05 * mean.norm()


def test_a_rollout_says_how_far_copy_and_policy_are_apart(make_world: Any) -> None:
    for kind in ("int8", None):
        world = make_world(rows=32, init_std=0.5, writer_dtype=kind)
        setup = world.setup
        source = EnvSource(world.env, seed=0, spending=setup.spending, policy=setup.policy)
        rollout = source.next(Reinforce(setup, Reinforce.Config()))
        if kind is None:
            assert "ess" not in rollout.measured
            continue
        measured = rollout.measured
        assert 1 / 8 < measured["ess"] < 1.0
        assert measured["ratio_p05"] < 1.0 < measured["ratio_p95"]
        assert measured["ratio_p05"] < measured["ratio_p50"] < measured["ratio_p95"]
        rows = np.unique(np.linspace(0, 31, 8).astype(int))
        exact = setup.policy.response_logprobs([rollout.episodes[row] for row in rows])
        weights = [
            np.exp(values.sum() - float(rollout.logprobs[row].sum())) for row, values in zip(rows, exact, strict=True)
        ]
        assert measured["ess"] == pytest.approx(sum(weights) ** 2 / (8 * sum(w * w for w in weights)), abs=1e-9)
