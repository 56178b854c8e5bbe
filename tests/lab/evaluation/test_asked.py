"""What is said of the prompts that an evaluation asked: "held out" of those alone that training does not use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_env.lab.benchmark.results import Cell, Results
from rlhf_env.lab.benchmark.summary import asked_words
from rlhf_env.lab.evaluation.asked import PromptsAsked
from rlhf_env.lab.evaluation.evaluator import Evaluator
from rlhf_env.lab.evaluation.preparing import prepare
from rlhf_env.lab.statistics import by_unit, student_mean

SIXTY = {"name": "prompts", "prompts": [f"{number:02}" for number in range(60)]}
TWICE = {"name": "prompts", "prompts": ["ab", "ba"] * 5}


def asked(task: dict[str, Any], prompts: int = 128, **more: Any) -> PromptsAsked:
    table = {
        "task": task,
        "policy": {"tokenizer": "alphabet:ab=0123456789:"},
        "environment": {"num_envs": 4, "max_new_tokens": 2, "max_prompt_tokens": 8},
        "rewards": {"length": {"target": 1}, "kl": 0.1},
        "agent": {"name": "reinforce"},
        "evaluation": {"prompts": prompts},
        **more,
    }
    return Evaluator.of(prepare(table)).asked


@pytest.mark.parametrize(
    ("task", "prompts", "words"),
    [
        (SIXTY, 128, "60 prompts that training uses too, 128 replies"),
        (SIXTY, 3, "3 prompts that training uses too"),
        (SIXTY, 1, "1 prompt that training uses too"),
        ({**SIXTY, "held_out_fraction": 0.3}, 5, "5 held-out prompts"),
        (TWICE, 10, "2 prompts that training uses too, 10 replies"),
        ({"name": "count"}, 128, "1 prompt that training uses too, 128 replies"),
        ({"name": "echo", "length": 3, "alphabet": "ab"}, 1, "1 held-out prompt"),
        ({"name": "mixture", "tasks": [SIXTY, TWICE]}, 40, "prompts that training uses too"),
    ],
    ids=str,
)
def test_prompts_are_called_what_they_are(task: dict[str, Any], prompts: int, words: str) -> None:
    assert words in str(asked(task, prompts))


def test_stored_pairs_are_what_their_agent_trains_on(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{number:02}", "chosen": "a", "rejected": "b"} for number in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    offline: dict[str, Any] = {"preferences": str(file), "agent": {"name": "dpo"}, "budget": {"updates": 1}}
    assert str(asked(SIXTY, 60, **offline)) == "60 prompts, 20 of which training uses too"
    assert str(asked(TWICE, 2, **offline)) == "2 held-out prompts"
    table = {"task": SIXTY, "policy": {"tokenizer": "alphabet:ab0123456789"}, "rewards": {"kl": 1.0}, **offline}
    workplace = prepare(table)
    file.unlink()
    assert Evaluator.of(workplace).asked.kind == "prompts (training may use them too)"


def test_intervals_count_prompts_and_not_draws() -> None:
    """Three prompts, of which each is asked a hundred times: the spread is that of three numbers."""
    draws = np.random.default_rng(0)
    values = np.repeat([1.0, 2.0, 6.0], 100) + draws.normal(0.0, 1e-6, 300)
    prompts = [prompt for prompt in "abc" for _ in range(100)]
    found = student_mean(values, prompts)
    wide = 4.302652729911275 * np.std([1.0, 2.0, 6.0], ddof=1) / np.sqrt(3)
    assert found.value == pytest.approx(3.0, abs=1e-6)
    assert (found.low, found.high) == pytest.approx((3.0 - wide, 3.0 + wide), abs=1e-5)
    assert by_unit(values, prompts) == pytest.approx([1.0, 2.0, 6.0], abs=1e-6)
    alone = student_mean(values, ["a"] * 300)  # of one prompt, the interval speaks of its own replies
    assert alone == student_mean(values)
    assert student_mean(values, [str(row) for row in range(300)]) == alone
    uneven = np.array([1.0, 3.0, 2.0, 2.0, 8.0])  # of a, a, b, b, c: deviations from 3.2 add up to -2.4, -2.4 and 4.8
    assert by_unit(uneven, list("aabbc")) == pytest.approx([3.2 - 2.4 * 3 / 5, 3.2 - 2.4 * 3 / 5, 3.2 + 4.8 * 3 / 5])


def test_a_report_says_it_of_all_runs() -> None:
    def results(*evaluations: dict[str, float], tasks: str = "xxx") -> Results:
        cells = [Cell(task, "ppo", 0, "finished", evaluation=it) for task, it in zip(tasks, evaluations, strict=False)]
        return Results(Path("b"), "b", tuple(cells))

    held, used = ({"prompts": 4.0, "prompts_in_training": count} for count in (0.0, 4.0))
    assert asked_words(results(held, held)) == "on prompts none of them has seen"
    assert asked_words(results(used)) == "on prompts that training uses too"
    assert asked_words(results({"gold": 1.0})) == "on the same prompts for all"  # of a version that did not say
    both = asked_words(results(held, used, tasks="xy"))
    assert both == "on held-out prompts (x); prompts that training uses too (y)"
