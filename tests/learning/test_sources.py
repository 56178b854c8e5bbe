"""Where rollouts come from, and what is measured of them on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rlhf_rewards.kl import KL

from rlhf_env.envs.asked_part import Failures
from rlhf_env.envs.rewards import RewardMix
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.errors import ConfigError, RewardError
from rlhf_env.learning.functional import logprobs_under
from rlhf_env.learning.loop import train
from rlhf_env.learning.rollout import Rollout, demonstrations
from rlhf_env.learning.sources import DataSource, EnvSource, Shuffled
from rlhf_env.learning.spending import Spending
from rlhf_env.learning.workplace import build
from rlhf_env.testing import make_episode
from rlhf_env.types import Episode, Float

from .scripted import LIMIT, TEXTS, Scripted, echo_env

# ---------------------------------------------------------------- sources


@pytest.mark.parametrize("size", [1, 7, 10])
def test_shuffled_epochs_are_permutations(size: int) -> None:
    source = Shuffled(size, seed=3)
    drawn = [index for _ in range(6) for index in source.take(size // 2 + 1)]
    epochs = [drawn[start : start + size] for start in range(0, len(drawn) - size + 1, size)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    if size > 1:
        assert epochs[0] != epochs[1]
        assert Shuffled(size, seed=4).take(size) != epochs[0]


@pytest.mark.parametrize("size", [None, 1, 7])
def test_shuffled_goes_on_from_its_place_alone(size: int | None) -> None:
    uncut = Shuffled(size, seed=3).take(30)
    for place in range(30):
        resumed = Shuffled(size, seed=3)
        resumed.place = place
        assert resumed.take(30 - place) == uncut[place:]


def test_an_unbounded_source_gives_new_indices_that_fit_a_seed() -> None:
    drawn = Shuffled(None, seed=3).take(1000)
    assert len(set(drawn)) == 1000
    assert all(0 <= index < 2**31 for index in drawn)


def test_a_rollout_costs_what_it_costs() -> None:
    spending = Spending()
    source = EnvSource(echo_env(LIMIT), seed=0, spending=spending)
    source.next(Scripted(TEXTS, LIMIT))
    assert (spending.episodes, spending.generated_tokens, spending.reward_calls) == (4, 3 + 1 + 5 + 5, 4)


class Begins(Scripted):
    """Asks for other options each time, as a curriculum may."""

    calls = 0

    def begin(self) -> dict[str, Any]:
        self.calls += 1
        return {"group_size": 2}


def test_an_agent_begins_once_a_rollout() -> None:
    agent = Begins(TEXTS, LIMIT)
    source = EnvSource(echo_env(LIMIT), seed=0, spending=Spending())
    assert source.next(agent).group.tolist() == [0, 0, 1, 1]
    source.next(agent)
    assert agent.calls == 2


class Breaks:
    """A reward that fails once."""

    broken = True

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        if self.broken:
            self.broken = False
            raise OSError("the judge does not answer")
        return np.zeros(len(episodes))


def test_prompts_of_a_failed_rollout_are_taken_again() -> None:
    env, sound = echo_env(LIMIT, task=Breaks()), echo_env(LIMIT)
    spending = Spending()
    source, other = EnvSource(env, seed=0, spending=spending), EnvSource(sound, seed=0, spending=Spending())
    with pytest.raises(RewardError, match="the judge does not answer"):
        source.next(Scripted(TEXTS, LIMIT))
    assert spending == Spending()
    ids = [[e.prompt.id for e in s.next(Scripted(TEXTS, LIMIT)).episodes] for s in (source, other)]
    assert ids[0] == ids[1]


class Remembers:
    """Counts the episodes it was shown."""

    seen = 0

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        return np.zeros(len(episodes))

    def observe(self, episodes: Sequence[Episode], /) -> None:
        self.seen += len(episodes)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Any, /) -> None:
        self.seen = state["seen"]


def test_a_source_holds_what_rewards_remember_of_its_last_rollout() -> None:
    env = echo_env(LIMIT, task=Remembers())
    source = EnvSource(env, seed=0, spending=Spending())
    source.next(Scripted(TEXTS, LIMIT))
    assert source.state_dict() == {"place": 4, "rewards": {"task": {"seen": 4}}}
    source.next(Scripted(TEXTS, LIMIT))
    assert source.state_dict() == {"place": 8, "rewards": {"task": {"seen": 8}}}


def test_stored_data_comes_in_shuffled_epochs_and_goes_on_where_it_was() -> None:
    episodes = [make_episode("Say it.", str(i)) for i in range(5)]

    def source() -> DataSource:
        return DataSource(5, 2, lambda rows: demonstrations([episodes[i] for i in rows], pad_id=256), seed=1)

    agent, uncut = Scripted([], 1), source()
    said = [[e.response for e in uncut.next(agent).episodes] for _ in range(5)]
    assert sorted(word for batch in said for word in batch) == sorted("01234" * 2)
    resumed = source()
    resumed.load_state_dict({"place": 4})
    assert [[e.response for e in resumed.next(agent).episodes] for _ in range(3)] == said[2:]
    assert (
        len(DataSource(5, 64, lambda rows: demonstrations([episodes[i] for i in rows], pad_id=256), seed=1).next(agent))
        == 5
    )
    with pytest.raises(ConfigError, match="no data"):
        DataSource(0, 2, lambda _rows: demonstrations([], pad_id=0), seed=0)


# ---------------------------------------------------------------- the KL of a rollout


class Sometimes(KL):
    """Fails on one text of a batch."""

    def token_rewards(self, episodes: Sequence[Episode], /) -> list[Float]:
        return [
            np.full(len(it.response_ids), np.nan) if it is episodes[0] else np.zeros(len(it.response_ids))
            for it in episodes
        ]


def test_the_kl_of_a_rollout_is_unscaled_wherever_the_controller_goes(toy: Any) -> None:
    """It moves by up to 20 % between the scoring of a rollout and the first look at its row."""
    kl = {"weight": 0.1, "target": 1e-6, "horizon": 1}
    experiment = toy("ppo", updates=3, rewards={"task": 1.0, "kl": kl})
    experiment = replace(
        experiment, agent={**experiment.agent, "lr": 0.05}, policy=replace(experiment.policy, dtype="float64")
    )
    workplace = build(experiment)
    part = workplace.env.reward.parts["kl"]
    exact, coefficients = [], []
    update = workplace.agent.update

    def look(rollout: Rollout) -> Any:
        reference = workplace.setup.reference.response_logprobs(rollout.episodes)
        exact.append(float(rollout.logprobs.sum(dim=1).mean()) - float(np.mean([row.sum() for row in reference])))
        coefficients.append(part.coefficient)
        return update(rollout)

    workplace.agent.update = look  # type: ignore[method-assign]
    setup = workplace.setup
    rows = train(
        workplace.agent, workplace.source, experiment.budget, spending=setup.spending, engine=setup.engine
    ).rows
    assert [row["rollout/kl"] for row in rows] == pytest.approx(exact, abs=1e-10)
    assert abs(exact[-1]) > 0.01
    assert len(set(coefficients)) > 1, "the controller moves"


@pytest.mark.parametrize("agent", [{"name": "dpo"}, {"name": "kto"}, {"name": "grpo", "kl_in_loss": "k3"}], ids=str)
def test_texts_that_kl_has_read_are_not_read_again(toy: Any, agent: Any) -> None:
    """The reference is asked about a rollout once, by the part `kl`, whose controller moves right after.

    KTO asks about prompts with other answers too.
    """
    kl = {"weight": 0.1, "target": 1e-6, "horizon": 1}
    experiment = toy("dpo", rewards={"task": 1.0, "kl": kl})
    experiment = replace(
        experiment,
        agent={"group_size": 4, "lr": 0.05, **agent},
        policy=replace(experiment.policy, dtype="float64"),
    )
    workplace = build(experiment)
    reference, asked = workplace.setup.reference, []
    read = reference.response_logprobs
    reference.response_logprobs = lambda said: asked.extend(said) or read(said)
    for _ in range(3):
        asked.clear()
        rollout = workplace.source.next(workplace.agent)
        assert 0 < len(asked) <= len(rollout)
        known = rollout.extras["reference"]
        assert (known - logprobs_under(reference, rollout)).abs().max() < 1e-12
        asked.clear()
        workplace.agent.update(rollout)
        mismatched_too = len(rollout) if agent["name"] == "kto" else 0
        assert len(asked) <= mismatched_too
    assert workplace.env.reward.parts["kl"].coefficient != 1.0


@pytest.mark.parametrize(
    ("kl", "known"),
    [
        (lambda reference: KL(reference), True),
        (lambda reference: KL(reference.frozen_copy()), False),  # of somebody else
        (lambda reference: Sometimes(reference), False),  # a number stands in for what it did not score
    ],
    ids=["read", "another", "failed"],
)
def test_what_another_reference_says_is_not_taken_for_it(toy: Any, kl: Any, known: bool) -> None:
    workplace = build(toy("dpo"))
    reference = workplace.setup.reference
    mix = RewardMix({"kl": (0.1, kl(reference))}, failures={"kl": Failures(on_error=-1.0, max_bad_fraction=0.5)})
    env = TextVectorEnv(
        8,
        task=workplace.env.task,
        reward=mix,
        tokenizer=workplace.env.tokenizer,
        max_new_tokens=4,
        max_prompt_tokens=3,
        action_length=4,
        autoreset_mode="Disabled",
    )
    source = EnvSource(env, seed=0, spending=Spending(), reference=reference)
    assert ("reference" in source.next(workplace.agent).extras) == known
