"""A run resumes with a larger budget, which is said and kept; with a smaller one, or another setting, it does not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import rlhf_env
from rlhf_env.errors import ConfigError
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.spending import Budget

TOY = Experiment.from_table(
    {
        "policy": {"tokenizer": "alphabet:ab="},
        "task": {"name": "echo", "length": 2},
        "environment": {"num_envs": 8, "max_new_tokens": 4, "max_prompt_tokens": 4},
        "agent": {"name": "ppo", "lr": 1e-2},
        "budget": {"updates": 2},
        "evaluation": {"prompts": 4},
    }
)
FOUR = replace(TOY, budget=Budget(updates=4))


def test_it_goes_on_as_if_the_budget_had_been_larger_from_the_start(tmp_path: Path) -> None:
    rlhf_env.run(TOY, tmp_path / "a")
    raised = rlhf_env.run(FOUR, tmp_path / "a", resume=True)
    whole = rlhf_env.run(FOUR, tmp_path / "b")
    for (name, weights), other in zip(
        raised.policy.state_dict().items(), whole.policy.state_dict().values(), strict=True
    ):
        assert torch.equal(weights, other), name  # a constant learning rate: nothing goes by the share of the budget
    assert [row["update"] for row in raised.metrics] == [0, 1, 2, 3, 4]
    assert raised.not_exact == ("budget.updates 2 -> 4: " + raised.not_exact[0].partition(": ")[2],)
    assert "schedule" in raised.not_exact[0]
    assert whole.not_exact == ()


def test_the_folder_says_what_it_was_and_is_read_at_any_checkpoint(tmp_path: Path) -> None:
    rlhf_env.run(TOY, tmp_path)
    rlhf_env.run(FOUR, tmp_path, resume=True)
    assert "updates = 4" in (tmp_path / "experiment.toml").read_text()
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["budget_raised"][0]["changes"] == ["budget.updates 2 -> 4"]
    assert rlhf_env.load_run(tmp_path).update == 4
    with pytest.raises(ConfigError, match=r"another budget\.updates: was 4, now 2 \(a budget may be raised\)"):
        rlhf_env.run(TOY, tmp_path, resume=True)


def test_killed_before_a_checkpoint_of_the_larger_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rlhf_env.run(TOY, tmp_path)
    monkeypatch.setattr("rlhf_env.learning.loop.require_storable", _die)
    with pytest.raises(KeyboardInterrupt):
        rlhf_env.run(FOUR, tmp_path, resume=True)
    monkeypatch.undo()
    assert rlhf_env.load_run(tmp_path).update == 2, "its checkpoint is of the smaller budget"
    assert rlhf_env.run(FOUR, tmp_path, resume=True).update == 4


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (Budget(updates=1), "another budget.updates: was 2, now 1"),
        (Budget(updates=4, episodes=9), "another budget.episodes: was not set, now 9"),
    ],
)
def test_no_smaller_budget_and_no_limit_that_was_not_there(tmp_path: Path, changed: Budget, said: str) -> None:
    rlhf_env.run(TOY, tmp_path)
    before = (tmp_path / "experiment.toml").read_bytes()
    with pytest.raises(ConfigError, match=said):
        rlhf_env.run(replace(TOY, budget=changed), tmp_path, resume=True)
    assert (tmp_path / "experiment.toml").read_bytes() == before


def _die(_state: object) -> None:
    raise KeyboardInterrupt
