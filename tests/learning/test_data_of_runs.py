"""A run whose files of prompts or rewards changed goes on, and says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import rlhf_env

TOML = """
task = {{ name = "file", path = "questions.jsonl" }}
policy = {{ tokenizer = "alphabet:ab" }}
environment = {{ num_envs = 4, max_new_tokens = 4, max_prompt_tokens = 4 }}
rewards = {{ diversity = 1.0 }}
agent = {{ name = "grpo", group_size = 2 }}
budget = {{ updates = {updates} }}
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    (tmp_path / "questions.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    file = tmp_path / "toy.toml"
    file.write_text(TOML.format(updates=1))
    return file


def _resumed(experiment: Path) -> rlhf_env.Run:
    file = experiment.with_name("more.toml")
    file.write_text(experiment.read_text().replace("updates = 1", "updates = 2"))
    return rlhf_env.run(file, experiment.with_name("run"), resume=True)


def test_a_run_says_that_its_prompts_changed(experiment: Path) -> None:
    rlhf_env.run(experiment, experiment.with_name("run"))
    record = experiment.with_name("run") / "record.json"
    before = json.loads(record.read_text())["data"]
    assert list(before) == ["questions.jsonl"], "relative: folders move"
    experiment.with_name("questions.jsonl").write_text('{"prompt": "a"}\n{"prompt": "ab"}\n')
    resumed = _resumed(experiment)
    assert resumed.update == 2
    assert any("questions.jsonl changed" in said for said in resumed.not_exact), resumed.not_exact
    after = json.loads(record.read_text())
    assert after["data_before"] == [before] and after["data"] != before


def test_a_run_says_nothing_of_files_that_are_as_they_were(experiment: Path) -> None:
    rlhf_env.run(experiment, experiment.with_name("run"))
    resumed = _resumed(experiment)
    assert not any("changed" in said for said in resumed.not_exact)
    assert "data_before" not in json.loads((experiment.with_name("run") / "record.json").read_text())
