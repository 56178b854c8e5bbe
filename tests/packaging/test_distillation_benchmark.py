"""benchmarks/distillation.py trains the model as its experiment says, adapters too, and students with all weights."""

from __future__ import annotations

import sys
import weakref
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.learning.experiment import Experiment

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="a source distribution has no benchmarks")
sys.path.insert(0, str(BENCHMARKS))

EXPERIMENT = """
policy = { model = "rlhf-env/chitchat", lora = { rank = 4, alpha = 8 } }
task = { name = "chitchat" }
environment = { num_envs = 8, max_new_tokens = 8, max_prompt_tokens = 48 }
rewards = { length = { target = 5 }, kl = 0.01 }
agent = { name = "rloo", group_size = 4, lr = 0.05 }
budget = { updates = 3 }
evaluation = { prompts = 8, rewards = { length = { target = 5 } } }
"""


def test_students_of_a_model_with_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    from distillation import Trials, main

    (tmp_path / "own.toml").write_text(EXPERIMENT, encoding="utf-8")
    ran: list[Experiment] = []
    policies: list[weakref.ref[Any]] = []
    run = Trials.run

    def watched(trials: Any, table: Any) -> Any:
        found = run(trials, table)
        ran.append(found[0].experiment)
        assert [policy for policy in policies if policy() is not None] == []  # those of earlier runs were let go
        policies.append(weakref.ref(found[0].policy))
        return found

    monkeypatch.setattr(Trials, "run", watched)
    words = ("--experiment", str(tmp_path / "own.toml"), "--student", "1", "--tokens", "20", "--alone")
    monkeypatch.setattr(sys, "argv", ["distillation.py", *words])
    main()

    trained, *others = ran
    assert (trained.agent["name"], trained.budget.updates, list(trained.rewards)) == ("rloo", 3, ["length", "kl"])
    assert trained.policy.lora is not None
    assert all(other.policy.lora is None for other in others)
    heads, *rows, memory = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert memory[-1] == "GB"
    untrained, after, student, alone = [dict(zip(heads, row[-len(heads) :], strict=True)) for row in rows]
    assert (float(untrained["kept"]), float(after["kept"]), float(after["nats"])) == (0.0, 1.0, 0.0)
    assert float(untrained["nats"]) > 0.0
    sizes = [int(row["parameters"].replace(",", "")) for row in (untrained, after, student, alone)]
    assert sizes[0] == sizes[1] > sizes[2] == sizes[3]
    assert [other.agent["name"] for other in others if other.agent["name"] != "reference"] == ["distill", "rloo"]
