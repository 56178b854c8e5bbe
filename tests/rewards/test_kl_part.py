"""The KL penalty of a mix is what it is, not what it is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from rlhf_rewards.kl import KL
from rlhf_rewards.length import Length

from rlhf_env.envs.isolation import Limits, isolated
from rlhf_env.envs.rewards import RewardMix
from rlhf_env.errors import ConfigError
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.workplace import build
from rlhf_env.testing import make_episode
from rlhf_env.types import Episode, Float, KLPenalty


class Half:
    """A reference that finds every token half as likely as not."""

    def response_logprobs(self, episodes: Sequence[Episode], /) -> list[Float]:
        return [np.full(len(episode.response_ids), np.log(0.5)) for episode in episodes]


@dataclass(eq=False)
class OwnKL:
    """A KL penalty of somebody else, whose reference it makes itself."""

    coefficient: float = 3.0
    reference: Half = field(default_factory=Half)
    needs_logprobs = True

    def token_rewards(self, episodes: Sequence[Episode], /) -> list[Float]:
        known = self.reference.response_logprobs(episodes)
        stated = [episode.logprobs for episode in episodes]
        return [-self.coefficient * (p - q) for p, q in zip(stated, known, strict=True) if p is not None]

    def observe(self, episodes: Sequence[Episode], /) -> None:
        self.coefficient += len(episodes)

    def state_dict(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        self.coefficient = float(state["coefficient"])


class PerToken:
    """A token reward that is no KL penalty."""

    def token_rewards(self, episodes: Sequence[Episode], /) -> list[Float]:
        return [np.ones(len(episode.response_ids)) for episode in episodes]


def test_the_kl_part_is_found_by_what_it_is() -> None:
    penalty = KL(Half())
    mix = RewardMix({"kl": (2.0, Length(target=3)), "stay": (0.1, penalty), "tokens": PerToken()})
    assert mix.kl is not None and mix.kl.penalty is penalty and mix.kl.name == "stay"
    assert mix.kl_names == ("stay",) and mix.kl.beta == 0.1
    penalty.coefficient = 3.0  # as a controller does
    assert mix.kl.beta == pytest.approx(0.3, abs=1e-15)
    assert isinstance(penalty, KLPenalty) and not isinstance(PerToken(), KLPenalty)


def test_a_part_that_is_called_kl_is_just_a_part() -> None:
    mix = RewardMix({"kl": Length(target=3)})
    assert mix.kl is None and mix.kl_names == () and mix.judges == ("kl",)


def test_two_kl_penalties_are_refused_by_name() -> None:
    with pytest.raises(ConfigError) as refused:
        RewardMix({"kl": KL(Half()), "task": Length(target=3), "own": OwnKL()})
    (problem,) = refused.value.problems
    assert problem == "rewards 'kl' and 'own' are KL penalties, and an objective has one: leave the others out"
    measured = RewardMix({"kl": KL(Half()), "own": OwnKL()}, measures=True)
    assert measured.kl is None and list(measured.parts) == ["kl", "own"]


def test_a_kl_penalty_in_a_process_of_its_own_is_still_the_kl() -> None:
    part = isolated(partial(OwnKL, 3.0), Limits(timeout=30.0))
    mix = RewardMix({"apart": (0.5, part)})
    assert mix.kl is not None and mix.kl.name == "apart" and mix.needs_logprobs
    assert mix.kl.beta == 1.5
    made = make_episode("ab", "abc")
    said = replace(made, logprobs=np.zeros(len(made.actions)))
    (score,) = mix.score([said])
    assert score.tokens["apart"] == pytest.approx([-3.0 * np.log(2.0)] * len(made.actions), abs=1e-12)
    mix.observe([said, said])  # its controller moves there, and is known here
    assert mix.kl.beta == 2.5
    mix.load_state_dict({"apart": {"coefficient": 7.0}})
    assert mix.kl.beta == 3.5
    (known,) = mix.kl.penalty.reference.response_logprobs([said])
    assert known == pytest.approx(np.full(len(made.actions), np.log(0.5)), abs=1e-12)


def experiment(rewards: dict[str, Any], agent: str = "dpo", **more: Any) -> Experiment:
    return Experiment.from_table(
        {
            "task": {"name": "echo", "length": 3},
            "policy": {"model": "tiny", "tokenizer": "alphabet:ab="},
            "environment": {"num_envs": 4, "max_new_tokens": 3, "max_prompt_tokens": 4},
            "rewards": rewards,
            "agent": {"name": agent},
            "budget": {"updates": 2},
            **more,
        }
    )


def test_a_kl_penalty_by_another_name_gives_dpo_its_beta_and_leaves_its_returns() -> None:
    workplace = build(
        experiment(
            {"task": 1.0, "stay near": {"plugin": "kl", "weight": 0.25}, "kl": {"plugin": "length", "target": 3}}
        )
    )
    assert workplace.setup.beta == 0.25
    rollout = workplace.source.next(workplace.agent)
    without = rollout.returns(without=workplace.setup.reward.kl_names)
    assert without.tolist() == (rollout.part("task") + rollout.part("kl")).tolist()
    assert rollout.measured["kl"] == pytest.approx(-float(rollout.part("stay near").mean()), abs=1e-12)
    assert "reference" in rollout.extras, "what the penalty has read is not read again"
    assert workplace.agent.update(rollout)["beta"] == 0.25


def test_dpo_finds_no_beta_in_a_part_that_is_only_called_kl() -> None:
    with pytest.raises(ConfigError, match="dpo's beta is the weight of the reward's KL penalty, which is 0 here"):
        build(experiment({"kl": {"plugin": "length", "target": 3, "weight": 0.5}}))


def test_max_kl_is_measured_by_the_penalty_whatever_its_name() -> None:
    build(experiment({"task": 1.0, "near": {"plugin": "kl"}}, max_kl=1.0))
    with pytest.raises(ConfigError, match="max_kl is measured by a KL penalty, and none is among"):
        build(experiment({"task": 1.0, "kl": {"plugin": "length", "target": 3}}, agent="ppo", max_kl=1.0))


@pytest.mark.parametrize(
    "agent",
    [{"name": "dpo", "lr": 0.05}, {"name": "kto", "lr": 0.05}, {"name": "grpo", "kl_in_loss": "k2", "lr": 0.05}],
)
def test_the_name_of_the_penalty_changes_nothing_that_is_learned(agent: dict[str, Any]) -> None:
    """With `kl` as the name of another part in one of them: a part's name decides nothing."""
    learned = []
    for near, other in (("kl", "other"), ("near", "kl")):
        rewards = {"task": 1.0, other: {"plugin": "length", "target": 2}, near: {"plugin": "kl", "weight": 2.0}}
        workplace = build(replace(experiment(rewards), agent={**agent, "lr": 0.05}))
        metrics = [workplace.agent.update(workplace.source.next(workplace.agent)) for _ in range(4)]
        learned.append(metrics)
    assert learned[0] == learned[1]
