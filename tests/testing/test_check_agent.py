"""`check_agent` itself: every installed agent passes, and each broken one is caught under the rule it breaks."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_env import plugins
from rlhf_env.errors import ConfigError, ContractError, RlhfEnvError
from rlhf_env.learning.advantages import group_advantages
from rlhf_env.learning.agent import Decision, Metrics, Setup
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.rollout import Rollout
from rlhf_env.testing import check_agent
from rlhf_env.types import Observation

# ---------------------------------------------------------------- the agents there are

# Settings that an agent has no default for.
INSIDE = {"agent": {"name": "rloo", "lr": 0.01}}
SETTINGS: dict[str, dict[str, Any]] = {
    "curriculum": {"levels": [2, 4], "by": "progress", **INSIDE},
    "options": {"diversity_coefficient": 0.1},
    "distill": {"divergence": "sequence", "best_of": 8, "lr": 0.02},  # with a teacher: tests/agents/test_distill.py
    "replay": {"priority": "advantage", **INSIDE},
    "prompt_sampling": {"correction": 0.5, **INSIDE},
    "dynamic_sampling": INSIDE,
    "task_sampling": INSIDE,
    "sft+rm": {"preferences": str(Path(__file__).parents[1] / "agents" / "pairs.jsonl"), "step_tokens": 256},
    "backward_curriculum": {"stages": 2, "threshold": 0.3, **INSIDE},
    "temperature": {"start": 1.2, **INSIDE},
}


@pytest.mark.parametrize("name", plugins.host().names("agent"))
def test_every_agent_keeps_the_contract(name: str) -> None:
    left_out = check_agent({"name": name, **SETTINGS.get(name, {})})
    trains = plugins.host().load("agent", name).trains if name not in SETTINGS else True
    learning = [] if trains else ["learns: the agent says that it does not train"]
    refused = [reason for reason in left_out if reason not in learning]
    assert [reason for reason in left_out if reason in learning] == learning
    # "Each trains on Token and Response views unless it says why not."
    whole_answers = name == "best_of_n" or "best_of" in SETTINGS.get(name, {})
    assert [reason.partition(" (")[0] for reason in refused] == (["segments", "tokens"] if whole_answers else [])
    assert all("use the view" in reason for reason in refused)


# ---------------------------------------------------------------- an agent by hand, and what can go wrong with it


class Sound:
    """REINFORCE against the mean of a group: as little as an agent can be."""

    trains = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        lr: float = 0.02

    def __init__(self, setup: Setup, config: Any = None) -> None:
        self.setup = setup
        self.policy = setup.policy
        self.optimizer = setup.engine.optimizer(self.policy.parameters(), Optimization(lr=0.02))
        self.draws = setup.stream("noise")

    def begin(self) -> dict[str, Any]:
        return {"group_size": 8}

    def act(self, observation: Observation, /) -> Decision:
        return Decision.of(self.policy.write(observation, self.setup.action_length))

    def update(self, rollout: Rollout, /) -> Metrics:
        self.policy.eval()
        logprobs = self.policy.evaluate(rollout.tokens, rollout.mask, rollout.actions).logprobs
        advantages = group_advantages(rollout.returns(), rollout.group, scale_by_std=False)
        # A little noise in the step, from a stream of the agent's own: a state that forgets the stream shows.
        loss = -(advantages[:, None] * logprobs).sum() / len(rollout) * (1 + 0.01 * self.draws.random())
        self.optimizer.backward(loss)
        return {"loss": float(loss.detach()), "norm": self.optimizer.step()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "policy": self.policy.state_dict(),
            "sampling": self.policy.sampling_state(),
            "optimizer": self.optimizer.state_dict(),
            "draws": dict(self.draws.bit_generator.state),
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.policy.load_state_dict(state["policy"])
        self.policy.load_sampling_state(state["sampling"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.draws.bit_generator.state = dict(state["draws"])


class WithoutState(Sound):
    state_dict = None  # type: ignore[assignment]


class SaysNotWhetherItTrains(Sound):
    trains = None  # type: ignore[assignment]


class WithoutConfig(Sound):
    Config = None  # type: ignore[assignment,misc]


class OpenConfig(Sound):
    @dataclass
    class Config:  # type: ignore[misc]
        lr: float = 0.02


class PositionalConfig(Sound):
    @dataclass(frozen=True)
    class Config:  # type: ignore[misc]
        lr: float = 0.02


class CannotBeBuilt(Sound):
    def __init__(self, setup: Setup) -> None:
        raise KeyError("lr")


class TakesNoRollout(Sound):
    def update(self) -> Metrics:  # type: ignore[override]
        return {}


class Raises(Sound):
    def update(self, rollout: Rollout, /) -> Metrics:
        raise ZeroDivisionError("division by zero")


class BeginsWithAList(Sound):
    def begin(self) -> Any:
        return ["group_size"]


class MisspellsAnOption(Sound):
    def begin(self) -> dict[str, Any]:
        return {"group_sise": 8}


class GivesTokensAlone(Sound):
    def act(self, observation: Observation, /) -> Any:
        return super().act(observation).tokens


class GivesTensors(Sound):
    def act(self, observation: Observation, /) -> Decision:
        decision = super().act(observation)
        return replace(decision, logprobs=torch.from_numpy(decision.logprobs))  # type: ignore[arg-type]


class GivesOneNumberPerText(Sound):
    def act(self, observation: Observation, /) -> Decision:
        decision = super().act(observation)
        return replace(decision, logprobs=decision.logprobs.reshape(len(decision.logprobs), -1).sum(axis=1))


class GivesFloat32(Sound):
    def act(self, observation: Observation, /) -> Decision:
        decision = super().act(observation)
        return replace(decision, logprobs=decision.logprobs.astype(np.float32))


class OutsideTheVocabulary(Sound):
    def act(self, observation: Observation, /) -> Decision:
        decision = super().act(observation)
        return replace(decision, tokens=decision.tokens + 1)


class NotANumber(Sound):
    def act(self, observation: Observation, /) -> Decision:
        decision = super().act(observation)
        return replace(decision, logprobs=np.full_like(decision.logprobs, math.nan))


class StatesProbabilities(Sound):
    def act(self, observation: Observation, /) -> Decision:
        decision = super().act(observation)
        return replace(decision, logprobs=np.exp(decision.logprobs))


class WritesNothing(Sound):
    def act(self, observation: Observation, /) -> Decision:
        decision = super().act(observation)
        return replace(decision, tokens=np.full_like(decision.tokens, self.policy.vocab_size))


class KeepsTheGraph(Sound):
    def act(self, observation: Observation, /) -> Decision:
        decision = super().act(observation)
        return replace(decision, logprobs=torch.from_numpy(decision.logprobs).requires_grad_())  # type: ignore[arg-type]


class AnotherTemperature(Sound):
    """N10: divides the log-probabilities instead of the logits."""

    def act(self, observation: Observation, /) -> Decision:
        decision = super().act(observation)
        return replace(decision, logprobs=decision.logprobs / 1.001)


class StatesAnOldPolicy(Sound):
    """N15: what it states was right until the first update."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.writer = setup.policy.frozen_copy()

    def act(self, observation: Observation, /) -> Decision:
        return Decision.of(self.writer.write(observation, self.setup.action_length))


class BlanksTheObservation(Sound):
    def act(self, observation: Observation, /) -> Decision:
        decision = super().act(observation)
        observation["input_ids"][:] = 0
        return decision


class RewritesTheRollout(Sound):
    def update(self, rollout: Rollout, /) -> Metrics:
        metrics = super().update(rollout)
        rollout.logprobs.zero_()
        return metrics


class LivesInTheStateItWasGiven(Sound):
    """Goes on in the caller's tensors, as an optimizer does whose moments are not copied."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.seen = torch.zeros(1)

    def update(self, rollout: Rollout, /) -> Metrics:
        self.seen += len(rollout)
        return super().update(rollout)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seen": self.seen.clone()}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        super().load_state_dict(state)
        self.seen = state["seen"]


class PopsFromTheState(Sound):
    def load_state_dict(self, state: Any, /) -> None:
        super().load_state_dict(state)
        state.pop("draws")


class TrainsTheReference(Sound):
    def update(self, rollout: Rollout, /) -> Metrics:
        metrics = super().update(rollout)
        self.setup.reference.load_state_dict(self.policy.state_dict())
        return metrics


class TrainsInSecret(Sound):
    trains = False


class NotFinite(Sound):
    def update(self, rollout: Rollout, /) -> Metrics:
        return {**super().update(rollout), "explained": math.nan}


class Tensors(Sound):
    def update(self, rollout: Rollout, /) -> Any:
        return {name: torch.tensor(value) for name, value in super().update(rollout).items()}


class NoMetrics(Sound):
    def update(self, rollout: Rollout, /) -> Any:
        super().update(rollout)


class OwnDice(Sound):
    """A generator that no seed reaches."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.draws = np.random.default_rng()


class UnseededWriter(Sound):
    def act(self, observation: Observation, /) -> Decision:
        self.policy.reseed(int(np.random.default_rng().integers(2**31)))
        return super().act(observation)


class ForgetsTheStream(Sound):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "draws": dict(np.random.default_rng(0).bit_generator.state)}


class ForgetsTheMomentum(Sound):
    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        super().load_state_dict({**state, "optimizer": {}})


class ForgetsAWeight(Sound):
    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        own = self.policy.state_dict()
        name = next(name for name in own if "wpe" in name)  # positions; tied weights come twice
        super().load_state_dict({**state, "policy": {**state["policy"], name: own[name].clone()}})


class ForgetsTheSampler(Sound):
    """As `random` before it had a state: what is written after a resume was written before."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.turns = 0

    def act(self, observation: Observation, /) -> Decision:
        self.turns += 1
        self.policy.reseed(self.turns)
        return super().act(observation)


class HandsOutItsCounters(Sound):
    """A checkpoint taken before a rollout that fails would hold what the rollout did."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.counters = {"acted": 0}

    def act(self, observation: Observation, /) -> Decision:
        self.counters["acted"] += 1
        return super().act(observation)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "counters": self.counters}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        super().load_state_dict(state)
        self.counters = dict(state["counters"])


class StateOfObjects(Sound):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "optimization": Optimization()}


class SeedsPython(Sound):
    def begin(self) -> dict[str, Any]:
        random.seed(0)
        return super().begin()


class NumpyDice(Sound):
    def update(self, rollout: Rollout, /) -> Metrics:
        np.random.permutation(4)  # noqa: NPY002
        return super().update(rollout)


class TorchDropout(Sound):
    """Dropout without `engine.seeded`."""

    def update(self, rollout: Rollout, /) -> Metrics:
        torch.nn.functional.dropout(torch.ones(3))
        return super().update(rollout)


class TorchInit(Sound):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.head = torch.nn.Linear(2, 1)


class WrongSign(Sound):
    def update(self, rollout: Rollout, /) -> Metrics:
        rollout = replace(rollout, scores=[replace(s, weights={**s.weights, "task": -1.0}) for s in rollout.scores])
        return super().update(rollout)


class LearnsNothing(Sound):
    def update(self, rollout: Rollout, /) -> Metrics:
        return {"loss": 0.0}


class ImitatesTheWrongSide(Sound):
    """Learns the prompt instead of the answer: N1, N2 where it matters."""

    imitates = True

    def update(self, rollout: Rollout, /) -> Metrics:
        self.policy.eval()
        asked = rollout.mask & ~rollout.actions
        asked[:, 0] = False
        logprobs = self.policy.evaluate(rollout.tokens, rollout.mask, asked).logprobs
        self.optimizer.backward(-logprobs.mean())
        return {"norm": self.optimizer.step()}


def test_the_sound_one_passes() -> None:
    assert check_agent(lambda setup: Sound(setup)) == []


BROKEN: list[tuple[Callable[[Setup], Any], str, str]] = [
    (WithoutState, "interface", "no method state_dict"),
    (SaysNotWhetherItTrains, "interface", "trains says whether it learns"),
    (WithoutConfig, "interface", "Config must be a dataclass"),
    (OpenConfig, "interface", "must be frozen and keyword-only"),
    (PositionalConfig, "interface", "must be frozen and keyword-only"),
    (CannotBeBuilt, "raised", "the constructor raised KeyError"),
    (Raises, "raised", r"update\(\) raised ZeroDivisionError: division by zero \(test_check_agent\.py, line \d+\)"),
    (TakesNoRollout, "raised", r"To mend it: write it as `update\(self, rollout\)`"),
    (BeginsWithAList, "options", "a dict of reset options"),
    (MisspellsAnOption, "options", "did you mean 'group_size'"),
    (GivesTokensAlone, "decision", "must give a Decision, got a "),
    (GivesTensors, "decision", r"logprobs as float64 of shape \(32, 6\), got torch.float64"),
    (GivesOneNumberPerText, "decision", r"of shape \(32, 6\), got float64 of shape \(32,\)"),
    (GivesFloat32, "decision", "got float32"),
    (OutsideTheVocabulary, "decision", r"tokens are 0\.\.5"),
    (NotANumber, "decision", "logprobs that are not finite"),
    (StatesProbabilities, "decision", "at most 0"),
    (WritesNothing, "decision", "wrote nothing"),
    (KeepsTheGraph, "gradient", "detach"),
    (AnotherTemperature, "log-probabilities", "the policy's own log-probabilities, got some that are"),
    (StatesAnOldPolicy, "log-probabilities", "the policy's own log-probabilities"),
    (BlanksTheObservation, "arguments", "act.. changed the observation"),
    (RewritesTheRollout, "arguments", "update.. changed the rollout .* /logprobs"),
    (LivesInTheStateItWasGiven, "arguments", "load_state_dict.. changed: /seen"),
    (PopsFromTheState, "arguments", "load_state_dict.. changed"),
    (TrainsTheReference, "reference", "changed the reference"),
    (TrainsInSecret, "reference", "changed the policy although `trains` is False"),
    (NotFinite, "metrics", "'explained': nan"),
    (Tensors, "metrics", "'loss': tensor"),
    (NoMetrics, "metrics", "a dict of floats by name, got None"),
    (OwnDice, "determinism", "the same seed gives something else: /loss"),
    (UnseededWriter, "determinism", "the same seed gives something else: /"),
    (ForgetsTheStream, "state", "a fresh agent with the loaded state gives something else"),
    (ForgetsTheMomentum, "state", "a fresh agent with the loaded state"),
    (ForgetsAWeight, "state", "a fresh agent with the loaded state"),
    (ForgetsTheSampler, "state", "a fresh agent with the loaded state gives something else: /tokens"),
    (HandsOutItsCounters, "state", "act.. changed a state that was taken before it: /counters/acted"),
    (StateOfObjects, "state", "does not fit into a checkpoint: .*Optimization"),
    (SeedsPython, "global random state", r"begin\(\) used the global generator of random"),
    (NumpyDice, "global random state", r"update\(\) used the global generator of numpy"),
    (TorchDropout, "global random state", r"update\(\) used the global generator of torch"),
    (TorchInit, "global random state", "the constructor used the global generator of torch"),
    (WrongSign, "learns", "at least 0.5 above the reference's after 15 updates, got -"),
    (LearnsNothing, "learns", "after 15 updates"),
    (ImitatesTheWrongSide, "learns", "after 15 updates"),
]


@pytest.mark.parametrize(("broken", "rule", "says"), BROKEN, ids=[kind.__name__ for kind, _, _ in BROKEN])
def test_a_broken_agent_is_caught_under_the_rule_it_breaks(broken: Any, rule: str, says: str) -> None:
    with pytest.raises(ContractError, match=says) as caught:
        check_agent(lambda setup: broken(setup))
    assert caught.value.rule == rule
    assert isinstance(caught.value, AssertionError) and isinstance(caught.value, RlhfEnvError)


def test_each_rule_of_the_docstring_has_a_broken_agent() -> None:
    stated = (check_agent.__doc__ or "").split("The rules")[1].split("Args:")[0]
    rules = {" ".join(rule.split()) for rule in stated.split('"')[1::2]}  # a line may end inside one
    assert {rule for _, rule, _ in BROKEN} == rules


def test_the_global_generators_are_left_as_they_were() -> None:
    before = random.getstate(), torch.get_rng_state()
    for kind in (SeedsPython, TorchInit):
        with pytest.raises(ContractError):
            check_agent(lambda setup, kind=kind: kind(setup))  # type: ignore[misc]
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


# ---------------------------------------------------------------- what it is handed


def test_an_agent_that_refuses_everything_says_why() -> None:
    class Refuses(Sound):
        def __init__(self, setup: Setup) -> None:
            raise ConfigError("it wants another world")

    with pytest.raises(ConfigError, match="another world"):
        check_agent(lambda setup: Refuses(setup))


def test_settings_are_checked_and_a_class_is_not_an_agent() -> None:
    with pytest.raises(ConfigError, match="unknown agent 'rlo': did you mean 'rloo'"):
        check_agent("rlo")
    with pytest.raises(ConfigError, match="no setting 'group_sise': did you mean 'group_size'"):
        check_agent({"name": "grpo", "group_sise": 4})
    with pytest.raises(ContractError, match=r"Sound is a class: .* lambda setup: Sound\(setup, Sound\.Config"):
        check_agent(Sound)


def test_a_rate_of_ones_own_is_kept() -> None:
    with pytest.raises(ContractError, match="learns"):
        check_agent({"name": "grpo", "lr": 1e-7})
