"""A temperature of writing: what is stated, who learns from it, that evaluations know nothing of it, and resuming."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from rlhf_agents.best_of_n import BestOfN
from rlhf_agents.options import Options
from rlhf_agents.ppo import PPO
from rlhf_agents.reference import Reference
from rlhf_agents.reinforce import Reinforce
from rlhf_agents.rloo import RLOO
from rlhf_agents.temperature import Temperature

from rlhf_env.errors import ConfigError
from rlhf_env.learning.engine import Optimization

from .conftest import Enumerated, build_world, stir

FREE: dict[str, Any] = {"importance_cap": 1e9}


def reinforce(setup: Any) -> Reinforce:
    return Reinforce(setup, Reinforce.Config(baseline="none", **FREE))


def hot(setup: Any, agent: Any = None, **settings: Any) -> Temperature:
    given = {"start": 2.0, "schedule": "constant", **settings}
    return Temperature(setup, Temperature.Config(**given), agent or reinforce(setup))


def test_what_a_text_states_is_the_temperature_it_was_written_at(make_world: Any) -> None:
    world = make_world(rows=16)
    agent, policy = hot(world.setup), world.setup.policy
    rollout = world.rollout(agent, seed=2)
    own = policy.evaluate(rollout.tokens, rollout.mask, rollout.actions).logprobs
    policy.sampling = replace(policy.sampling, temperature=2.0)
    heated = policy.evaluate(rollout.tokens, rollout.mask, rollout.actions).logprobs
    torch.testing.assert_close(rollout.logprobs, heated.detach(), rtol=0, atol=1e-10)
    assert (rollout.logprobs - own).abs().max() > 0.05


def test_its_course_goes_over_the_budget(make_world: Any) -> None:
    world = make_world(rows=4)
    agent = hot(world.setup, start=3.0, end=1.0, schedule="linear")
    seen = []
    for world.setup.engine.progress in (0.0, 0.5, 1.0):
        seen.append(agent.update(world.rollout(agent))["temperature/factor"])
    assert seen == [3.0, 2.0, 1.0]


def test_evaluations_are_written_at_the_policys_own_temperature(make_world: Any) -> None:
    """They act without `begin`; and so does whoever acts after an update."""
    world = make_world(rows=4)
    agent = hot(world.setup)
    observation, _ = world.env.reset(seed=0, options={})
    policy = world.setup.policy
    for _ in range(2):
        policy.reseed(5)
        expected = policy.write(observation, world.setup.action_length)
        policy.reseed(5)
        decision = agent.act(observation)
        assert decision.tokens.tobytes() == expected.tokens.tobytes()
        assert decision.logprobs.tobytes() == expected.logprobs.tobytes()
        agent.update(world.rollout(agent))
    policy.reseed(5)
    expected = policy.write(observation, world.setup.action_length)
    agent.begin()
    policy.reseed(5)
    assert agent.act(observation).logprobs.tobytes() != expected.logprobs.tobytes()


def all_texts(temperature: float) -> Any:
    """A world of 31 texts, and they as a policy at another temperature states them, with the reward of its KL."""
    world = build_world(kl=0.3, length=2, rows=1)
    policy = world.setup.policy
    stir(policy, seed=1)
    usual = policy.sampling
    policy.sampling = replace(usual, temperature=temperature)
    written = Enumerated.of(world)
    policy.sampling = usual
    return world, written


@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_as_the_policy_it_has_the_policys_own_gradient(gradient_of: Any, temperature: float) -> None:
    """Exactly, over all texts: the ratio corrects for the writer, and the KL penalty is the policy's."""
    world, written = all_texts(temperature)
    agent = hot(world.setup, start=temperature)
    exact = Enumerated.of(world).exact_gradient()

    class Whole:
        """The update of the wrapper; the optimizer and policy of the agent inside."""

        def __getattr__(self, name: str) -> Any:
            return getattr(agent if name in ("update", "state_dict", "load_state_dict") else agent.agent, name)

    mean = written.expected_gradient(lambda rollout: gradient_of(Whole(), replace(rollout, stated=True)))
    torch.testing.assert_close(mean, exact, rtol=0, atol=1e-12)
    naive = written.expected_gradient(lambda rollout: gradient_of(agent.agent, replace(rollout, stated=True)))
    assert (naive - exact).norm() > 1e-3 * exact.norm(), "without the wrapper, the KL penalty is the writer's"


def test_as_the_writer_it_has_the_gradient_of_the_writers_objective(gradient_of: Any) -> None:
    world, written = all_texts(2.0)
    setup = world.setup
    agent = hot(setup, learns_as="writer")
    usual = setup.policy.sampling
    setup.policy.sampling = replace(usual, temperature=2.0)
    exact = written.exact_gradient()
    setup.policy.sampling = usual
    own = Enumerated.of(world).exact_gradient()

    def gradient(rollout: Any) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        step = agent.agent.optimizer.step

        def look() -> float:
            seen.append(torch.cat([p.grad.flatten() for p in setup.policy.parameters()]))
            for parameter in setup.policy.parameters():
                parameter.grad = None
            return 1.0

        agent.agent.optimizer.step = look
        agent.update(replace(rollout, stated=True))
        agent.agent.optimizer.step = step
        return seen[0]

    torch.testing.assert_close(written.expected_gradient(gradient), exact, rtol=0, atol=1e-12)
    assert (own - exact).norm() > 0.05 * exact.norm()
    assert setup.policy.sampling == usual


@pytest.mark.parametrize("learns_as", ["policy", "writer"])
@pytest.mark.parametrize("kind", [RLOO, PPO])
def test_it_resumes(assert_resumes: Any, learns_as: Any, kind: Any) -> None:
    optimization = Optimization(lr=1e-2)
    assert_resumes(
        lambda setup: hot(setup, kind(setup, kind.Config(optimization=optimization)), learns_as=learns_as), rows=8
    )


def test_who_has_no_writer_or_no_ratio_is_refused(make_world: Any) -> None:
    setup = make_world(rows=8).setup
    for inside, said in [
        (Reference(setup, Reference.Config()), "Reference has writers of its own"),
        (BestOfN(setup, BestOfN.Config(n=2)), "BestOfN has writers of its own"),
        (Options(setup, Options.Config()), "Options has"),
    ]:
        with pytest.raises(ConfigError, match=said):
            hot(setup, inside)
    with pytest.raises(ConfigError, match="start must be above 0, got 0"):
        Temperature.Config(start=0.0)
