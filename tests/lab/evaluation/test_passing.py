"""pass@k is what enumeration says, its interval counts prompts, and an evaluation may draw otherwise than training."""

from __future__ import annotations

import json
import math
import tomllib
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_env.envs.success import Success
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.lab.evaluation.against_reference import evaluate_run
from rlhf_env.lab.evaluation.evaluator import Evaluator
from rlhf_env.lab.evaluation.passing import share_passed
from rlhf_env.lab.evaluation.runs import run
from rlhf_env.lab.statistics import pass_at_k
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.workplace import Workplace, build
from rlhf_env.policies import Sampling
from rlhf_env.policies.decoding import draw

PROMPTS, SAMPLES = 6, 5


def workplace(**evaluation: Any) -> Workplace:
    table = {
        "task": {"name": "echo", "length": 3},
        "policy": {"model": "tiny", "tokenizer": "alphabet:ab=", "dtype": "float64"},
        "environment": {"num_envs": 8, "max_new_tokens": 4, "max_prompt_tokens": 4},
        "rewards": {"task": 1.0, "kl": 0.1},
        "agent": {"name": "grpo", "group_size": 4},
        "evaluation": {"prompts": PROMPTS, **evaluation},
    }
    return build(Experiment.from_table(table))


# ---------------------------------------------------------------- the estimator


def test_it_is_the_share_of_all_draws_that_hold_a_success() -> None:
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                drawn = list(combinations([True] * c + [False] * (n - c), k))
                assert pass_at_k(n, c, k) == float(Fraction(sum(map(any, drawn)), len(drawn)))


def test_it_is_unbiased_and_exact_for_many_answers() -> None:
    n, k, p = 12, 5, 0.2
    chances = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    expected = sum(chance * pass_at_k(n, c, k) for c, chance in enumerate(chances))
    assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-14)
    assert pass_at_k(100_000, 1, 1) == 1e-5
    assert pass_at_k(2_000, 3, 1_000) == float(1 - Fraction(1000 * 999 * 998, 2000 * 1999 * 1998)), (
        "where products of float64 would have rounded a thousand times"
    )


@pytest.mark.parametrize("numbers", [(3, 4, 1), (3, 1, 4), (3, 1, 0), (3, -1, 1)], ids=str)
def test_numbers_that_do_not_fit_together(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(DataError, match="do not fit together"):
        pass_at_k(*numbers)


def test_the_interval_counts_prompts() -> None:
    few = share_passed({"a": 1.0, "b": 0.0, "c": 0.0, "d": 1.0})
    assert few is not None and (few.low, few.high) == pytest.approx((0.1500, 0.8500), abs=1e-4)  # Wilson's of 2 in 4
    between = share_passed({"a": 0.5, "b": 0.25, "c": 0.75})
    assert between is not None and between.value == 0.5
    assert between.low is not None and between.high is not None
    assert 0.0 <= between.low < 0.5 < between.high <= 1.0
    alike = share_passed({"a": 1.0, "b": 1.0})
    assert alike is not None and alike.low is not None and alike.low < 0.5, "two prompts are not proof"
    assert share_passed({}) is None


def test_what_a_success_is() -> None:
    values = np.array([0.0, 0.5, 1.0, np.nan])
    assert Success.read("task >= 1") == Success("task", ">=", 1.0)
    for words, solved in {
        "task >= 0.5": [0, 1, 1],
        "task>0.5": [0, 0, 1],
        "task == 0": [1, 0, 0],
        "task < .5": [1, 0, 0],
        "task <= 5e-1": [1, 1, 0],
    }.items():
        found = Success.read(words).of(values)
        assert found[:3].tolist() == solved and np.isnan(found[3]), words
    assert Success.read(" my part ").of(np.array([0.0, 1.0])).tolist() == [0.0, 1.0]
    with pytest.raises(ConfigError, match=r"not 0 or 1 for every answer \(0.5 is among its values\): say what"):
        Success.read("task").of(values)


# ---------------------------------------------------------------- evaluations


def test_answers_to_one_prompt_stand_side_by_side() -> None:
    place = workplace(samples=SAMPLES, pass_at=[1, 3], success="task >= 0.25")
    evaluator = Evaluator.of(place)
    rollout, _ = evaluator.texts(place.agent)
    asked = [episode.prompt.id for episode in rollout.episodes]
    assert len(set(asked)) > 1 and asked == [asked[i - i % SAMPLES] for i in range(PROMPTS * SAMPLES)]
    assert len({episode.response for episode in rollout.episodes[:SAMPLES]}) > 1
    solved: dict[str, list[bool]] = {}
    for episode, score in zip(rollout.episodes, rollout.scores, strict=True):
        solved.setdefault(episode.prompt.text, []).append(score.raw["part/task"] >= 0.25)
    metrics = evaluator().metrics
    for k in (1, 3):
        by_hand = [pass_at_k(len(row), sum(row), k) for row in solved.values()]
        assert metrics[f"pass_at_{k}"] == pytest.approx(np.mean(by_hand), abs=1e-15)
        assert metrics[f"pass_at_{k}_low"] <= metrics[f"pass_at_{k}"] <= metrics[f"pass_at_{k}_high"]
    assert metrics["pass_at_1"] < metrics["pass_at_3"]


def test_one_answer_is_the_evaluation_as_it_was() -> None:
    plain, one = (
        Evaluator.of(workplace(**more))() for more in ({}, {"samples": 1, "pass_at": [1], "success": "task >= 0.5"})
    )
    metrics = {name: value for name, value in one.metrics.items() if not name.startswith("pass_at")}
    assert metrics != one.metrics and metrics == dict(plain.metrics) and one.samples == plain.samples


def test_a_run_goes_on_where_an_answer_is_neither_right_nor_wrong() -> None:
    with pytest.warns(RuntimeWarning, match=r"pass@1 is not measured: .* say what a success is"):
        metrics = Evaluator.of(workplace(pass_at=[1], samples=SAMPLES))().metrics
    assert "pass_at_1" not in metrics and "objective" in metrics


def test_greedy_is_the_likeliest_token_and_the_lowest_of_equals() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0], [-5.0, -torch.inf, -4.0, -4.0]])
    tokens, logprobs = draw(logits, np.array([0.99, 0.5, 0.0]), Sampling(top_k=1, temperature=0.3))
    assert tokens.tolist() == [1, 0, 2] and logprobs.tolist() == [0.0, 0.0, 0.0]


def test_an_evaluation_that_draws_otherwise() -> None:
    usual, greedy = workplace(), workplace(decoding={"top_k": 1})
    evaluator = Evaluator.of(greedy)
    before = greedy.setup.policy.sampling_state()
    rollout, _ = evaluator.texts(greedy.agent)
    by_prompt: dict[str, set[str]] = {}
    for episode in rollout.episodes:
        by_prompt.setdefault(episode.prompt.text, set()).add(episode.response)
    assert all(len(answers) == 1 for answers in by_prompt.values())
    # KL is that of what was drawn: the reference, the same model, would have drawn it with its own probability.
    own = [row.sum() for row in greedy.setup.reference.response_logprobs(list(rollout.episodes))]
    metrics = evaluator().metrics
    assert metrics["kl"] == pytest.approx(-np.mean(own), abs=1e-10) and metrics["kl"] > 0.1
    assert "entropy" not in metrics and "kl_exact" not in metrics
    assert Evaluator.of(usual)().metrics["kl"] == pytest.approx(0.0, abs=1e-10)
    for policy in (greedy.setup.policy, greedy.setup.reference):
        assert policy.sampling == Sampling(), "training draws as before"
    assert greedy.setup.policy.sampling_state() == before
    hot = workplace(decoding={"temperature": 2.0})
    assert hot.evaluation_sampling == Sampling(temperature=2.0) and Evaluator.of(hot)().metrics["kl"] > 0.01


def test_an_agent_with_writers_of_its_own_draws_as_in_training() -> None:
    place = workplace(decoding={"temperature": 0.5})
    table = place.experiment.with_agent("options")
    place = build(table)
    with pytest.raises(ConfigError, match="are not its policy's alone"):
        Evaluator.of(place).texts(place.agent)


def test_settings_that_are_not_used_are_not_in_the_file() -> None:
    text = workplace().experiment.to_toml()
    assert not [name for name in ("samples", "decoding", "pass_at", "success") if name in text]
    used = workplace(samples=3, pass_at=[2], success="task > 0", decoding={"top_p": 0.9}).experiment
    assert Experiment.from_table(tomllib.loads(used.to_toml())) == used


def test_a_run_by_command(tmp_path: Path) -> None:
    table = json.loads(json.dumps({"agent": {"name": "reference"}, "evaluation": {"prompts": PROMPTS}}))
    table |= {"task": {"name": "echo", "length": 2}, "policy": {"model": "tiny", "tokenizer": "alphabet:ab="}}
    table |= {"environment": {"num_envs": 8, "max_new_tokens": 4, "max_prompt_tokens": 4}, "rewards": {"task": 1.0}}
    run(table, tmp_path / "run")
    evaluate_run(tmp_path / "run").save(tmp_path / "plain.json")
    plain = json.loads((tmp_path / "plain.json").read_text())
    assert not {"samples", "decoding", "pass_at", "success"} & plain.keys()
    found = evaluate_run(tmp_path / "run", samples=4, pass_at=(1, 4), success="task >= 0.5", decoding={"top_p": 0.9})
    assert [it.k for it in found.pass_at] == [1, 4] and found.decoding == "at temperature 1, top_p 0.9"
    assert "k3" not in found.kl, "a truncated distribution cannot draw what the reference can"
    assert all(it.agent == it.reference and it.difference.value == 0.0 for it in found.pass_at)
    measures = {it.name for it in found.measures}
    assert "entropy, nats a token" not in measures and not {name for name in measures if name.startswith("pass_at")}
    found.save(tmp_path / "asked.json")
    asked = json.loads((tmp_path / "asked.json").read_text())
    assert (asked["samples"], asked["success"], len(asked["pass_at"])) == (4, "task >= 0.5", 2)
    greedy = evaluate_run(tmp_path / "run", decoding={"top_k": 1})
    assert (greedy.samples, greedy.decoding) == (1, "greedily")
