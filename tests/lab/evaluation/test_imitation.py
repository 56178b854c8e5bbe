"""Supervised fine-tuning from a file: completions are learned, nothing is written, perplexity is measured."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rlhf_env
from rlhf_env.envs.tokenizers import AlphabetTokenizer
from rlhf_env.errors import ConfigError
from rlhf_env.lab.evaluation.preparing import prepare
from rlhf_env.learning.demonstrations import demonstrations_of
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.workplace import build
from rlhf_env.policies.language_model import LanguageModel

WORDS = ["ab", "aab", "bba", "abab", "bb", "aba", "baa", "bab", "aabb", "bbab"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [{"prompt": f"{word}=", "completion": word[::-1]} for word in WORDS]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def experiment(file: Path, **changes: Any) -> Experiment:
    return Experiment.from_table(
        {
            "policy": {"tokenizer": "alphabet:ab=", "dtype": "float64"},
            "task": {"name": "file", "path": str(file), "held_out_fraction": 0.3},
            "environment": {"num_envs": 4},
            "agent": {"name": "sft", "lr": 1e-2},
            "budget": {"epochs": 2},
            **changes,
        }
    )


def test_the_completions_are_learned_and_nothing_is_written(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: Any, **__: Any) -> None:
        raise AssertionError("it wrote a text")

    monkeypatch.setattr(LanguageModel, "write", write)
    run = rlhf_env.run(experiment(file, budget={"epochs": 30}, evaluation={"every": 5}))
    first, last = run.metrics[0], run.metrics[-1]
    assert last["train/loss"] < 0.5 < first["eval/loss"]
    assert last["spent/generated_tokens"] == last["spent/episodes"] == 0
    assert min(row["eval/loss"] for row in run.metrics if "eval/loss" in row) < first["eval/loss"]


def test_after_prompts_of_any_length_it_can_be_asked_what_it_writes(file: Path, tmp_path: Path) -> None:
    from rlhf_env.lab.evaluation.answers import answers_of_run

    limits = {"num_envs": 4, "max_prompt_tokens": 2, "max_new_tokens": 4}  # the prompts have 3 to 5 tokens
    rlhf_env.run(experiment(file, environment=limits, evaluation={"prompts": 3}), tmp_path / "run")
    answers, by_the_reference = answers_of_run(tmp_path / "run", "sft", reference="before")
    assert {len(prompt.text) for prompt, _ in answers} <= {3, 4, 5} and len(answers) == len(by_the_reference) == 3


def test_an_epoch_has_every_demonstration_once(file: Path) -> None:
    workplace = prepare(experiment(file, budget={"epochs": 2}))
    taken: Counter[str] = Counter()
    source = workplace.source
    following = source.next

    def counting(agent: Any, /) -> Any:
        rollout = following(agent)
        taken.update(episode.response for episode in rollout.episodes)
        return rollout

    object.__setattr__(source, "next", counting)
    training = workplace.train()
    size = workplace.env.task.size
    assert size and len(training.rows) == math.ceil(2 * size / 4)
    assert len(taken) == size and min(taken.values()) == 2 and max(taken.values()) <= 3


def test_the_measure_is_the_mean_over_all_tokens_of_held_out_answers(file: Path) -> None:
    """Against a plain forward pass, text by text; end tokens count."""
    run = rlhf_env.run(experiment(file))
    aside = run.workplace.env.task.held_out()
    tokenizer = AlphabetTokenizer("ab=")
    losses: list[float] = []
    for index in range(aside.size):
        prompt = aside.prompt(index, {})
        start, ids = len(prompt.text), [*tokenizer.encode(prompt.text + prompt.meta["completion"]), tokenizer.end_id]
        logprobs = run.policy.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)  # type: ignore[attr-defined]
        losses += [-float(logprobs[t - 1, ids[t]].detach()) for t in range(start, len(ids))]
    metrics = run.evaluation.metrics
    assert metrics["loss"] == pytest.approx(np.mean(losses), abs=1e-12)
    assert metrics["objective"] == -metrics["loss"]
    assert (metrics["answers"], metrics["answer_tokens"]) == (aside.size, len(losses))
    assert metrics["prompts_in_training"] == 0


def test_it_stops_early_and_keeps_the_best_and_resumes(file: Path, tmp_path: Path) -> None:
    stops = experiment(file, budget={"epochs": 400}, evaluation={"every": 1}, patience=3)
    run = rlhf_env.run(stops, tmp_path / "run")
    assert "patience" in run.reason or "evaluations" in run.reason, run.reason
    losses = {row["update"]: row["eval/loss"] for row in run.metrics if row["update"]}
    kept = rlhf_env.load_run(tmp_path / "run", "best")
    assert losses[kept.update] == min(losses.values()) < losses[run.update]
    assert kept.evaluation.metrics["loss"] == losses[kept.update]


@pytest.mark.parametrize("agent", [{"pack_tokens": 15}, {"loss_on": "all"}])
def test_each_way_of_learning_resumes(file: Path, tmp_path: Path, agent: dict[str, Any]) -> None:
    table = {"agent": {"name": "sft", "lr": 1e-2, **agent}, "checkpoint_every": 1}
    whole = rlhf_env.run(experiment(file, **table, budget={"updates": 5}))
    rlhf_env.run(experiment(file, **table, budget={"updates": 2}), tmp_path / "run")
    resumed = rlhf_env.run(experiment(file, **table, budget={"updates": 5}), tmp_path / "run", resume=True)
    for name, value in whole.policy.state_dict().items():  # type: ignore[attr-defined]
        assert torch.equal(value, resumed.policy.state_dict()[name]), name  # type: ignore[attr-defined]
    texts = [row["train/texts"] for row in whole.metrics if row["update"]]
    assert len(set(texts)) > 1 if "pack_tokens" in agent else set(texts) == {4.0}


def test_with_a_reward_texts_are_measured_by_it_as_well(file: Path) -> None:
    metrics = rlhf_env.run(
        experiment(
            file,
            environment={"num_envs": 4, "max_new_tokens": 5, "max_prompt_tokens": 6},
            evaluation={"prompts": 3, "rewards": {"length": {"target": 2}}},
        )
    ).evaluation.metrics
    assert {"gold", "perplexity", "loss", "objective"} <= metrics.keys()
    assert metrics["objective"] == -metrics["loss"]


def test_a_conversation_gives_its_last_answer(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    (tmp_path / "m.jsonl").write_text(json.dumps({"messages": [*turns, {"role": "assistant", "content": "d"}]}) + "\n")
    chat = experiment(tmp_path / "m.jsonl", policy={"tokenizer": "bytes"})
    workplace = prepare(chat)
    (episode,) = demonstrations_of(workplace.env.task, workplace.setup.tokenizer).episodes
    assert (episode.prompt.text, episode.response) == ("User: a\nAssistant: b\nUser: c\nAssistant:", "d")
    assert episode.response_ids.tolist() == [ord("d"), 258]


@pytest.mark.parametrize(
    ("rows", "changes", "said"),
    [
        ('{"prompt": "a"}\n{"prompt": "b", "completion": 3}\n', {"task": {"name": "file"}}, "a.jsonl:1: no completion"),
        ('{"prompt": "a", "completion": "b"}\n', {"budget": {"generated_tokens": 9}}, "sft writes no texts: budget ep"),
        ('{"prompt": "a", "completion": "b"}\n', {"budget": {}}, "a budget needs at least one limit"),
        ('{"prompt": "a", "completion": "b"}\n', {"max_kl": 1.0}, "max_kl is measured on texts that the agent writes"),
        ('{"prompt": "a", "completion": "b"}\n', {"agent": {"name": "ppo"}}, "epochs are passes over given answers"),
        ("", {"task": {"name": "prompts", "prompts": ["a"]}}, "no completion to learn"),
        ("", {"task": {"name": "echo", "length": 1}}, "the task Echo has prompts without end and no answers"),
        ('{"prompt": "a", "completion": "' + "b" * 5000 + '"}\n', {}, "the model reads"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_before_training(
    tmp_path: Path, rows: str, changes: dict[str, Any], said: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(rows)
    task = {**changes.pop("task", {"name": "file"})}
    if task["name"] == "file":
        task["path"] = str(path)
    table = {"policy": {"tokenizer": "alphabet:ab="}, "agent": {"name": "sft"}, "budget": {"epochs": 1}, "task": task}
    with pytest.raises(ConfigError, match=said) as caught:
        prepare(Experiment.from_table({**table, **changes}))
    if "no completion" in said and task["name"] == "file":
        assert len(caught.value.problems) == 2, "all of them at once"


def test_a_bare_workplace_does_not_learn_from_what_it_writes(file: Path) -> None:
    with pytest.raises(ConfigError, match="sft learns from given answers and not from its own texts"):
        build(experiment(file, budget={"updates": 1})).train()
