"""Every logged number has a meaning, on the page and on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import rlhf_env
from rlhf_env.errors import ConfigError
from rlhf_env.lab.evaluation.explained import (
    SECTIONS,
    logged_numbers,
    meaning_of_number,
    numbers_matching,
    numbers_page,
)

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"
EXPERIMENT = """
budget = { updates = 2 }
policy = { tokenizer = "alphabet:ab" }
environment = { num_envs = 8, max_new_tokens = 3, max_prompt_tokens = 4 }
evaluation = { prompts = 2, every = 1, rewards = { length = { target = 2 } } }
task = { name = "prompts", prompts = ["a", "b"] }
rewards = { length = { target = 1 }, kl = 0.1 }
agent = { name = "grpo", group_size = 4 }
"""


@pytest.mark.skipif(not PAGE.exists(), reason="docs/ is not here")
def test_the_page_is_what_the_declarations_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == numbers_page(), "rlhf-env metrics --markdown > docs/metrics.md"


def test_a_run_logs_nothing_that_is_not_explained(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(EXPERIMENT, encoding="utf-8")
    rlhf_env.run(tmp_path / "run.toml", tmp_path / "run")
    keys = {key for line in (tmp_path / "run" / "metrics.jsonl").open(encoding="utf-8") for key in json.loads(line)}
    assert {"rollout/kl", "eval/gold", "eval/part/length", "spent/seconds"} <= keys
    assert [key for key in keys if meaning_of_number(key) is None] == []


def test_a_key_comes_before_a_pattern() -> None:
    assert "standard deviation" in str(meaning_of_number("rollout/part/mine_std")).lower()
    assert str(meaning_of_number("rollout/part/mine")).startswith("Logged(key='rollout/part/*'")
    assert meaning_of_number("replay/age") in logged_numbers() and meaning_of_number("train/nothing") is None


def test_keys_are_found_by_name_and_by_pattern() -> None:
    assert [entry.key for entry in numbers_matching("train/lr")] == ["train/lr"]
    assert {entry.key.partition("/")[0] for entry in numbers_matching("spent/*")} == {"spent"}
    assert {entry.key.partition("/")[0] for entry in logged_numbers()} == {*SECTIONS}
    with pytest.raises(ConfigError, match="did you mean 'train/approx_kl'"):
        numbers_matching("train/aprox_kl")
