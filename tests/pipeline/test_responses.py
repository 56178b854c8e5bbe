"""Responses of a model: the draws that the settings say, once each, also where the writing was stopped on the way."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import rlhf_env
from rlhf_env.envs.tasks import load_task
from rlhf_env.envs.tokenizers import load_tokenizer
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.asking.collecting import sample_responses
from rlhf_env.feedback.judgements import Response
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.run_models import model_folder
from rlhf_env.pipeline import responses as module
from rlhf_env.pipeline.responses import Responses, write_responses
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.types import Prompt

QUIET = Console(quiet=True)
PROMPTS = [f"prompt {number}" for number in range(7)]
TASK = {"name": "prompts", "prompts": PROMPTS}
TINY = Responses(
    model="tiny", tokenizer="bytes", task=TASK, temperatures=(0.5, 1.0), samples=2, num_envs=4, max_new_tokens=6, seed=3
)


def said(store: Path) -> list[tuple[Prompt, Response]]:
    with PreferenceStore(store) as opened:
        return sorted(opened.responses(), key=lambda it: (it[1].author.temperature or 0, it[0].text, it[1].text))


def test_every_prompt_is_answered_as_often_as_wanted_at_every_temperature(tmp_path: Path) -> None:
    assert write_responses(tmp_path / "s", TINY, console=QUIET) == 7 * 2 * 2
    counts = Counter((prompt.text, response.author) for prompt, response in said(tmp_path / "s"))
    assert {author.temperature for _, author in counts} == {0.5, 1.0}
    assert {(author.kind, author.name) for _, author in counts} == {("policy", "tiny")}
    assert counts.keys() == {(text, author) for text in PROMPTS for _, author in counts}
    assert set(counts.values()) == {2}


def test_the_texts_are_those_of_the_model_at_that_seed(tmp_path: Path) -> None:
    """Compared with another way of writing that shares no code with it but the model's own."""
    wanted = Responses(
        model="rlhf-env/chitchat",
        prompts=6,
        temperatures=(0.7, 1.4),
        num_envs=4,
        max_new_tokens=8,
        max_prompt_tokens=48,
    )
    write_responses(tmp_path / "s", wanted, console=QUIET)
    policy, tokenizer = LanguageModel.from_pretrained(wanted.model), load_tokenizer(wanted.model)
    prompts = [load_task("chitchat").prompt(index, {}) for index in range(6)]
    expected = set()
    for temperature in wanted.temperatures:
        policy.reseed(wanted.seed + round(1000 * temperature))
        for episode, author in sample_responses(
            policy, tokenizer, prompts, [temperature], name=wanted.model, max_new_tokens=8, batch_size=4
        ):
            expected.add((episode.prompt.text, Response.from_episode(episode, author)))
    assert {(prompt.text, response) for prompt, response in said(tmp_path / "s")} == expected


@pytest.mark.parametrize("stopped_after", [1, 2, 4, 5, 7])
def test_a_call_that_was_stopped_goes_on_to_the_same_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_after: int
) -> None:
    write_responses(tmp_path / "whole", TINY, console=QUIET)
    batches, real = 0, module.collect

    def stopping(*args: Any) -> Any:
        nonlocal batches
        batches += 1
        if batches > stopped_after:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(module, "collect", stopping)
    with pytest.raises(KeyboardInterrupt):
        write_responses(tmp_path / "s", TINY, console=QUIET)
    batches = -100
    rest = write_responses(tmp_path / "s", TINY, console=QUIET)
    assert batches + 100 == 8 - stopped_after  # what is there is not written again
    assert 0 < rest < 28
    assert said(tmp_path / "s") == said(tmp_path / "whole")
    assert write_responses(tmp_path / "s", TINY, console=QUIET) == 0


def test_other_settings_another_store_or_other_weights_are_written_for(tmp_path: Path) -> None:
    write_responses(tmp_path / "s", TINY, console=QUIET)
    assert write_responses(tmp_path / "s", replace(TINY, seed=4), console=QUIET) == 28
    assert write_responses(tmp_path / "s", replace(TINY, author="other"), console=QUIET) == 28
    place = tmp_path / "s.writing.json"
    (tmp_path / "t.writing.json").write_text(place.read_text())  # beside a store that is not there
    assert write_responses(tmp_path / "t", replace(TINY, author="other"), console=QUIET) == 28
    place.write_text("{")
    before = said(tmp_path / "s")
    assert write_responses(tmp_path / "s", TINY, console=QUIET) == 28  # nothing says how far it came
    assert said(tmp_path / "s") == before  # and the same draws are the same answers


def test_a_run_answers_as_its_policy_does(tmp_path: Path) -> None:
    table = {
        "policy": {"tokenizer": "bytes"},
        "task": TASK,
        "environment": {"num_envs": 8, "max_new_tokens": 6},
        "rewards": {"length": {"target": 3}},
        "budget": {"updates": 1},
        "agent": {"name": "ppo", "lr": 0.1},
    }
    rlhf_env.run(Experiment.from_table(table), tmp_path / "run")
    write_responses(tmp_path / "a", replace(TINY, model=str(tmp_path / "run"), tokenizer=None), console=QUIET)
    folder = model_folder(str(tmp_path / "run"))
    write_responses(tmp_path / "b", replace(TINY, model=folder, tokenizer=None), console=QUIET)
    a, b = ([(prompt.text, response.ids) for prompt, response in said(tmp_path / store)] for store in "ab")
    assert a == b
    assert a != [(prompt.text, response.ids) for prompt, response in said_by_the_untrained(tmp_path)]


def said_by_the_untrained(tmp_path: Path) -> list[tuple[Prompt, Response]]:
    write_responses(tmp_path / "c", TINY, console=QUIET)
    return said(tmp_path / "c")


def test_long_prompts_and_unknown_models_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    long = replace(TINY, task={"name": "prompts", "prompts": ["x" * 40, "y" * 41, "z"]})
    with pytest.raises(DataError) as error:
        write_responses(tmp_path / "s", long, console=QUIET)
    assert len(error.value.problems) == 2
    with pytest.raises(ConfigError, match="no such folder"):
        write_responses(tmp_path / "s", replace(TINY, model="./none", tokenizer="bytes"), console=QUIET)
    assert said(tmp_path / "s") == []
    assert not (tmp_path / "s.writing.json").exists()


def test_what_is_remembered_is_json(tmp_path: Path) -> None:
    write_responses(tmp_path / "s", TINY, console=QUIET)
    assert json.loads((tmp_path / "s.writing.json").read_text())["batches"] == 8


def test_stop_strings_are_those_named_else_those_that_a_run_was_trained_with(tmp_path: Path) -> None:
    table = {"task": {"name": "prompts", "prompts": ["ab", "b"]}, "rewards": {"length": {"target": 2}}}
    table |= {"policy": {"model": "tiny", "tokenizer": "alphabet:ab"}, "agent": {"name": "grpo", "group_size": 2}}
    environment = {"num_envs": 4, "max_new_tokens": 6, "max_prompt_tokens": 4, "stop": ["ab"]}
    wanted = {**table, "environment": environment, "budget": {"updates": 1}, "evaluation": {"prompts": 2}}
    rlhf_env.run(wanted, tmp_path / "run")
    asked = Responses(
        model=str(tmp_path / "run"), task=table["task"], temperatures=(2.0,), samples=20, num_envs=8, max_new_tokens=6
    )
    for number, (stop, string) in enumerate(((None, "ab"), (["bb"], "bb"))):
        write_responses(tmp_path / str(number), replace(asked, stop=stop), console=QUIET)
        answers = [response for _, response in said(tmp_path / str(number))]
        assert "stop_string" in {answer.finish_reason for answer in answers}
        assert not [answer.text for answer in answers if string in answer.text]
