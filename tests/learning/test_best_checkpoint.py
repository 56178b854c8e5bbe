"""The best agent on the way is kept beside the last, and a killed run keeps the same one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import rlhf_env
from rlhf_env.errors import ConfigError
from rlhf_env.learning import checkpoints
from rlhf_env.learning.experiment import Experiment


def experiment(updates: int = 8, **evaluation: Any) -> Experiment:
    return Experiment.from_table(
        {
            "policy": {"tokenizer": "alphabet:ab="},
            "task": {"name": "echo", "length": 2},
            "environment": {"num_envs": 8, "max_new_tokens": 4, "max_prompt_tokens": 4},
            "agent": {"name": "ppo", "lr": 0.1},  # so much that it gets better and worse
            "budget": {"updates": updates},
            "evaluation": {"prompts": 8, "every": 1, **evaluation},
            "checkpoint_every": 3,
        }
    )


def evaluations(rows: list[Mapping[str, Any]], measure: str) -> dict[int, float]:
    return {row["update"]: row[f"eval/{measure}"] for row in rows if row["update"] > 0}


@pytest.mark.parametrize(("measure", "pick"), [("objective", max), ("cut_at_limit", min)])
def test_it_is_the_agent_of_the_best_evaluation(tmp_path: Path, measure: str, pick: Any) -> None:
    finished = rlhf_env.run(experiment(best=measure), tmp_path)
    measured = evaluations(finished.metrics, measure)
    best = next(update for update, value in measured.items() if value == pick(measured.values()))
    assert len(set(measured.values())) > 1
    kept = rlhf_env.load_run(tmp_path, "best")
    assert kept.update == best
    assert kept.evaluation.metrics[measure] == measured[best]
    assert rlhf_env.load_run(tmp_path).update == 8
    assert [folder.name for folder in (tmp_path / "best").iterdir()] == [f"step-{best:08d}"]


def test_a_run_that_was_cut_and_resumed_keeps_the_same(tmp_path: Path) -> None:
    whole = rlhf_env.run(experiment(), tmp_path / "whole")
    rlhf_env.run(experiment(updates=4), tmp_path / "cut")
    resumed = rlhf_env.run(experiment(), tmp_path / "cut", resume=True)
    assert evaluations(resumed.metrics, "objective") == evaluations(whole.metrics, "objective")
    (a,), (b,) = ([*(tmp_path / run / "best").iterdir()] for run in ("whole", "cut"))
    assert a.name == b.name
    assert checkpoints.fingerprint(checkpoints.load(a)[0]["agent"]["policy"]) == checkpoints.fingerprint(
        checkpoints.load(b)[0]["agent"]["policy"]
    )


def test_without_evaluations_on_the_way_the_best_is_the_last(tmp_path: Path) -> None:
    rlhf_env.run(experiment(updates=2, every=0), tmp_path)
    assert not (tmp_path / "best").exists()
    assert rlhf_env.load_run(tmp_path, "best").update == 2


def test_a_measure_that_nobody_measures_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="best = 'objektive' is no measure: did you mean 'objective'"):
        rlhf_env.run(experiment(best="objektive"), tmp_path)
