"""A run is compared with other models and runs: token by token where they share a tokenizer, by their words anyhow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import rlhf_env
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.lab.evaluation.against_reference import evaluate_run, evaluation_tables
from rlhf_env.lab.evaluation.another_reference import with_reference
from rlhf_env.lab.evaluation.answers import answers_of
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.run_models import model_folder
from rlhf_env.policies.tiny import tiny_language_model


def experiment(**table: Any) -> Experiment:
    content: dict[str, Any] = {
        "policy": {"tokenizer": "alphabet:ab:"},
        "task": {"name": "prompts", "prompts": ["a:", "ab:", "bb:"]},
        "environment": {"num_envs": 8, "max_new_tokens": 6},
        "rewards": {"length": {"weight": 1.0, "target": 3}, "kl": 0.1},
        "agent": {"name": "grpo", "lr": 0.1, "group_size": 4},
        "budget": {"updates": 6},
        "evaluation": {"prompts": 6, "every": 1},
    }
    return Experiment.from_table({**content, **table})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    rlhf_env.run(experiment(), folder / "first")
    policy = {"model": str(folder / "first")}
    rlhf_env.run(experiment(policy=policy, seed=1), folder / "second")  # a run that began from a run
    return folder


def test_a_run_that_began_from_a_run_is_evaluated(runs: Path) -> None:
    found = evaluate_run(runs / "second")
    assert found.reference == "" and set(found.win_rate) == {"proxy"}


def test_against_itself_as_a_model_it_wins_half_and_is_nowhere_else(runs: Path) -> None:
    itself = evaluate_run(runs / "second", reference=model_folder(str(runs / "second")))
    assert itself.win_rate["proxy"].value == 0.5
    assert itself.kl["k1"].value == pytest.approx(0.0, abs=1e-5)
    other = evaluate_run(runs / "second", reference=str(runs / "second"))
    assert replace(other, reference="") == replace(itself, reference="")


def test_the_reference_is_the_model_that_was_named(runs: Path) -> None:
    """The reference of the second run is the first: naming it changes nothing; the other way round it does."""
    usual, named = evaluate_run(runs / "second"), evaluate_run(runs / "second", reference=str(runs / "first"))
    assert replace(named, reference="") == usual
    assert (
        evaluate_run(runs / "first", reference=str(runs / "second")).measures != evaluate_run(runs / "first").measures
    )
    assert f"the reference is {named.reference[:20]}" in str(evaluation_tables(named).renderables[0].title)  # type: ignore[attr-defined]


def test_another_tokenizer_is_refused_token_by_token(runs: Path, tmp_path: Path) -> None:
    rlhf_env.run(experiment(policy={"tokenizer": "alphabet:ba:"}), tmp_path / "mirrored")
    with pytest.raises(DataError, match=r"mirrored has another tokenizer than the run's model .*: they cannot be"):
        evaluate_run(runs / "first", reference=str(tmp_path / "mirrored"))
    workplace = rlhf_env.load_run(runs / "first").workplace
    assert with_reference(workplace, str(runs / "second")).setup.policy is workplace.setup.policy


def test_a_model_answers_what_the_run_is_asked_as_the_run_does(runs: Path) -> None:
    first = str(runs / "first")
    ours, theirs = answers_of({"a": first, "b": model_folder(first)})
    assert len(ours) == 6
    assert [(prompt, response.text) for prompt, response in ours] == [
        (prompt, response.text) for prompt, response in theirs
    ]
    assert {response.author.name for _, response in theirs} == {"b"}
    best, last = (answers_of({"a": first}, checkpoint=it)[0] for it in ("best", "last"))
    at = {it: rlhf_env.load_run(first, it).update for it in ("best", "last")}  # type: ignore[arg-type]
    assert (at["best"] == at["last"]) == (best == last)


def test_files_stand_beside_runs_and_models_need_a_run(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"prompt": "a:", "response": "abab"}) + "\n")
    (own,) = answers_of({"me": str(file)})
    assert own[0][1].text == "abab"
    folder = tmp_path / "model"
    tiny_language_model(vocab_size=262, hidden_size=8, layers=1, heads=1).model.save_pretrained(folder)
    for sources in ({"a": str(folder), "me": str(file)}, {"a": "gpt2", "me": str(file)}):
        with pytest.raises(ConfigError, match="a model answers the prompts of a run, and no run is among the sources"):
            answers_of(sources)
