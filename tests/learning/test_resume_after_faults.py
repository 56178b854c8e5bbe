"""What a broken reward, a prompt that does not fit or a policy that diverged leave of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_env import plugins
from rlhf_env.errors import DataError, RewardError, RunFailed
from rlhf_env.lab.evaluation.runs import run
from rlhf_env.learning import checkpoints
from rlhf_env.learning.loop import Row, train
from rlhf_env.learning.run_folder import RunFolder
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.learning.workplace import build
from rlhf_env.testing import make_episode
from rlhf_env.types import Episode, Float

from .resuming import assert_same_bits, run_once

# ---------------------------------------------------------------- faults of a reward


@dataclass
class Faulty:
    """The number of symbols said; from the call `at` on it breaks its contract as `how` says, until it is healed."""

    at: int | None = None
    how: str = "nan"
    calls: int = 0

    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        self.calls += 1
        scores: Float = np.array([float(len(episode.response)) for episode in episodes])
        if self.at is None or self.calls < self.at:
            return scores
        if self.how == "raises":
            raise ZeroDivisionError("division by zero")
        if self.how == "nan":
            scores[1] = np.nan
        return scores[:-1] if self.how == "wrong length" else scores


@pytest.fixture
def faulty() -> Iterator[Faulty]:
    """A reward known by the name "faulty", the same object for every run of the test."""
    reward = Faulty()
    plugins.register_reward("faulty", lambda completions: reward([_said(text) for text in completions]).tolist())
    yield reward
    plugins.host()._entries.pop(("reward", "faulty"))


def _said(text: str) -> Episode:
    return make_episode("?", text)


FAULTS = {
    "nan": r"reward 'faulty' returned nan for episode 1 of 0\.\.7",
    "wrong length": r"reward 'faulty' returned shape \(\d,\), expected \(\d,\)",
    "raises": r"reward 'faulty' raised ZeroDivisionError: division by zero",
}


@pytest.mark.parametrize("how", FAULTS)
@pytest.mark.parametrize("agent", ["ppo", "grpo"])
def test_a_reward_that_breaks_loses_nothing(how: str, agent: str, toy: Any, faulty: Faulty, tmp_path: Path) -> None:
    """F17, F18, F20: the run is saved as of its last update, and a healed one goes on as if nothing had been."""
    experiment = toy(agent, updates=4, rewards={"faulty": 1.0, "kl": {"weight": 0.1, "target": 0.01}})
    uncut = run_once(experiment, tmp_path / "uncut", evaluated=False, checkpoint_every=0)
    faulty.at, faulty.how, faulty.calls = 3, how, 0
    with pytest.raises(RewardError, match=FAULTS[how]):
        run_once(experiment, tmp_path / "broken", evaluated=False, checkpoint_every=0)
    saved = checkpoints.latest(tmp_path / "broken" / "checkpoints")
    assert saved is not None
    assert saved.name == "step-00000002"
    faulty.at = None
    resumed = run_once(experiment, tmp_path / "broken", evaluated=False, checkpoint_every=0)
    assert resumed.seen == uncut.seen[2:]
    assert_same_bits(resumed.state, uncut.state)
    assert resumed.rows == uncut.rows


def test_a_reward_that_breaks_at_once_leaves_a_run_to_go_on_with(toy: Any, faulty: Faulty, tmp_path: Path) -> None:
    experiment = toy("ppo", rewards={"faulty": 1.0})
    uncut = run_once(experiment, tmp_path / "uncut", evaluated=False)
    faulty.at, faulty.calls = 1, 0
    with pytest.raises(RewardError):
        run_once(experiment, tmp_path / "broken", evaluated=False)
    faulty.at = None
    assert_same_bits(run_once(experiment, tmp_path / "broken", evaluated=False).state, uncut.state)


def test_a_gold_reward_that_breaks_costs_one_evaluation(toy: Any, faulty: Faulty, tmp_path: Path) -> None:
    experiment = toy("ppo", updates=3)
    experiment = replace(experiment, evaluation=replace(experiment.evaluation, rewards={"faulty": 1.0}))
    uncut = run_once(experiment, tmp_path / "uncut", checkpoint_every=0)
    faulty.at, faulty.calls = 1, 0
    with pytest.raises(RewardError, match="faulty"):
        run_once(experiment, tmp_path / "broken", checkpoint_every=0)
    faulty.at = None
    resumed = run_once(experiment, tmp_path / "broken", checkpoint_every=0)
    assert len(resumed.seen) == 1
    assert_same_bits(resumed.state, uncut.state)
    assert [row["update"] for row in resumed.rows] == [1, 2, 3]
    assert resumed.rows[0::2] == uncut.rows[0::2]


def test_a_prompt_that_does_not_fit_loses_nothing(toy: Any, tmp_path: Path) -> None:
    """One of five prompts is too long for the environment: the run stops there, named, and saved."""
    prompts = ["a=", "b=", "ab=", "aaaa=", "bb="]
    experiment = toy(
        "reference", updates=9, task={"name": "prompts", "prompts": prompts}, rewards={"length": {"target": 2}}
    )
    experiment = replace(experiment, environment=replace(experiment.environment, num_envs=1))
    with pytest.raises(DataError, match=r"prompts/3.*5 tokens.*max_prompt_tokens"):
        run_once(experiment, tmp_path, evaluated=False, checkpoint_every=0)
    saved = checkpoints.latest(tmp_path / "checkpoints")
    assert saved is not None
    assert int(saved.name[-1]) == len(read_metrics(tmp_path)) < 5


def test_a_policy_that_diverged_does_not_overwrite_its_checkpoints(toy: Any, tmp_path: Path) -> None:
    experiment = toy("ppo", updates=5)

    def poison(row: Row, _share: float) -> None:
        if row["update"] == 3:
            with torch.no_grad():
                next(workplace.setup.policy.parameters()).fill_(float("nan"))

    workplace = build(experiment)
    with (
        RunFolder(tmp_path, experiment.to_toml(), tensorboard=False) as run,
        pytest.raises(RunFailed, match="diverged"),
    ):
        train(
            workplace.agent,
            workplace.source,
            experiment.budget,
            spending=workplace.setup.spending,
            engine=workplace.setup.engine,
            run=run,
            checkpoint_every=2,
            on_update=poison,
        )
    saved = checkpoints.latest(tmp_path / "checkpoints")
    assert saved is not None
    assert saved.name == "step-00000002"


def test_max_kl_ends_a_run_and_the_run_stays_ended(toy: Any, tmp_path: Path) -> None:
    experiment = replace(toy("ppo", updates=50, rewards={"task": 1.0, "kl": 0.01}), max_kl=0.5)
    experiment = replace(experiment, agent={**experiment.agent, "lr": 0.05})

    ended = run(experiment, tmp_path, resume=True)
    rows = read_metrics(tmp_path)
    assert 0 < ended.update < 50
    assert -rows[-1]["rollout/part/kl"] > 0.5
    assert all(-row["rollout/part/kl"] <= 0.5 for row in rows[1:-1])
    assert ended.reason == f"kl {-rows[-1]['rollout/part/kl']:.2f} above max_kl 0.5"
    assert rows[0]["update"] == 0
    assert {name for name in rows[0] if not name.startswith("eval/")} == {"update", "spent/generated_tokens"}
    assert run(experiment, tmp_path, resume=True).reason == ended.reason
    assert read_metrics(tmp_path) == rows
