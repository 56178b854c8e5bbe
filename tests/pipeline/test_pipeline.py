"""The pipeline from corpus to report, at a size where all of it takes seconds: a slice of the real conversations."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("chitchat_dataset")
pytest.importorskip("vaderSentiment")
pytest.importorskip("matplotlib")

import numpy as np
import torch
from rich.console import Console

from rlhf_env.cli.benchmarks import report
from rlhf_env.envs import chitchat
from rlhf_env.envs.tokenizers import load_tokenizer
from rlhf_env.lab import scheduling
from rlhf_env.lab.benchmark.reading import read_results
from rlhf_env.lab.processes import InThisProcess
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.pipeline import base_model
from rlhf_env.pipeline.base_model import Course, Models, Recipe, Size, make_models
from rlhf_env.pipeline.demo import DemoRewardModel, learn_reward_model, shipped_pipeline
from rlhf_env.pipeline.plan import read_plan
from rlhf_env.pipeline.running import intentions, run_pipeline
from rlhf_env.pipeline.stages.fitting import FitStage
from rlhf_env.policies import LanguageModel

QUIET = Console(quiet=True)
SIZE = Size(hidden=16, layers=1, heads=2, intermediate=16)
COURSE = Course(updates=3, rows=4, lr=1e-2)
RECIPE = Recipe(
    vocabulary=400,
    row_length=32,
    base=SIZE,
    judge=SIZE,
    pretraining=COURSE,
    fine_tuning=replace(COURSE, updates=2),
    judge_pretraining=replace(COURSE, updates=2),
    judge_fine_tuning=replace(COURSE, updates=2),
)
SMALL: dict[str, object] = {
    "replies.prompts": 30,
    "replies.temperatures": [1.0, 1.4],
    "replies.num_envs": 8,
    "replies.max_new_tokens": 8,
    "preferences.per_prompt": 1,
    "reward_model.held_out": 0.25,
    "reward_model.reward_model": {"epochs": 1, "batch_size": 8, "validation": 0.1},
    "agents.seeds": 1,
    "agents.environment": {"num_envs": 8, "max_new_tokens": 8},
    "agents.budget": {"generated_tokens": 150},
    "agents.evaluation": {"prompts": 6, "every": 2},
    "agents.agents": {
        "ppo": {"group_size": 4},
        "grpo": {},
        "dpo": {},
        "best_of_n": {"n": 2},
        "reference": {},
        "random": {},
    },
}


def small(models: Path) -> dict[str, object]:
    """Changes to the demo, with which all of it takes seconds."""
    made = Models.within(models)
    return {**SMALL, "base.take": made.base, "base.judge": made.judge}


@pytest.fixture(scope="module", autouse=True)
def _a_slice_of_the_corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every twelfth conversation: tidying all of them takes longer than everything else here."""
    cached = [chitchat._raw, chitchat._tidy_conversations, chitchat._task_prompts, chitchat._common_words]
    cached.append(chitchat.corpus_hash)
    some = dict(list(chitchat._raw().items())[::12])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chitchat, "_raw", lambda: some)
        patch.setenv("RLHF_ENV_CACHE", str(tmp_path_factory.mktemp("cache")))  # the prompts kept there are of it all
        for function in cached[1:]:
            function.cache_clear()
        yield
    for function in cached:
        function.cache_clear()


Lesson = tuple[str, list[list[int]]]


@pytest.fixture(scope="module")
def lessons() -> list[Lesson]:
    """What was learned from, filled by `made`: the stage's folder, and the tokens of each text."""
    return []


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, lessons: list[Lesson]) -> Path:
    """Models made by a recipe that was killed in its third stage and called again."""
    out = tmp_path_factory.mktemp("models")
    imitate, calls = base_model._imitate, itertools.count(1)

    def watched(policy: Any, tokenizer: Any, episodes: Sequence[Any], *rest: Any) -> None:
        folder = rest[2]
        lessons.append((f"{folder.parent.name}, {folder.name}", [episode.ids.tolist() for episode in episodes]))
        if next(calls) == 3:
            raise Killed
        imitate(policy, tokenizer, episodes, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_model, "_imitate", watched)
        with pytest.raises(Killed):
            make_models(out, recipe=RECIPE, console=QUIET)
        rows = [read_metrics(folder.parent) for folder in sorted(out.rglob("metrics.jsonl"))]
        assert [len(stage) for stage in rows] == [3, 2]
        lessons.clear()
        make_models(out, recipe=RECIPE, console=QUIET)
    return out


# ---------------------------------------------------------------- the models


def test_the_models_are_whole_and_say_how_they_were_made(made: Path) -> None:
    assert {path.name for path in made.iterdir()} == {"chitchat", "chitchat-judge", "recipe.json"}
    record = json.loads((made / "recipe.json").read_text())
    assert record["content_hash"] == RECIPE.content_hash
    assert record["recipe"]["seed"] == RECIPE.seed
    assert {"corpus_hash", "versions", "threads", "parameters"} <= record.keys()
    perplexity = record["held_out_perplexity"]
    assert set(perplexity) == {
        *(f"{who}, {what}" for who in ("base", "judge") for what in ("conversations", "replies")),
        "base, replies, sharpened",
    }
    assert all(1.0 < value < 2 * 400 for value in perplexity.values()), "near the vocabulary's size after three updates"
    models = Models.within(made)
    assert models.typical == record["median_reply_logprob_under_judge"] < 0.0
    for name in (models.base, models.judge):
        model, tokenizer = LanguageModel.from_pretrained(name), load_tokenizer(name)
        assert (model.vocab_size, model.end_id, model.pad_id) == (
            tokenizer.vocab_size,
            tokenizer.end_id,
            tokenizer.pad_id,
        )
        assert tokenizer.decode(tokenizer.encode("Hey, how are you?")) == "Hey, how are you?"


def test_a_recipe_that_was_killed_makes_what_an_uncut_one_makes(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def before(*arguments: Any) -> Iterator[None]:  # in this process: the other would not know the slice of the corpus
        base_model._teach_quietly(*arguments, threads=1)
        yield

    monkeypatch.setattr(base_model, "_judge_alongside", before)
    changes = {"base.recipe": asdict(RECIPE)}  # nor does it matter when the judge learned, or who asked for it
    ended = run_pipeline(shipped_pipeline("base-model"), tmp_path, changes=changes, jobs=2)
    again = tmp_path / "base"
    for name in ("chitchat", "chitchat-judge"):
        one, other = (LanguageModel.from_pretrained(folder / name).state_dict() for folder in (made, again))
        assert all(torch.equal(one[key], other[key]) for key in one)
    first, second = (json.loads((folder / "recipe.json").read_text()) for folder in (made, again))
    assert first == second
    assert ended.stages["base"].numbers["perplexity"] == first["held_out_perplexity"]["base, replies, sharpened"]
    plan = read_plan(shipped_pipeline("base-model"), changes)
    assert plan.outputs(tmp_path)["base"]["typical"] == first["median_reply_logprob_under_judge"]


def test_a_made_recipe_is_found_by_its_content(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_model, "_train_tokenizer", lambda *_: pytest.fail("made again"))
    assert make_models(made, recipe=RECIPE, console=QUIET) == Models.within(made)
    hashes = {
        RECIPE.content_hash,
        replace(RECIPE, seed=1).content_hash,
        replace(RECIPE, pretraining=replace(COURSE, lr=2e-2)).content_hash,
        replace(RECIPE, sharpening=1.0).content_hash,
    }
    assert len(hashes) == 4
    monkeypatch.setattr(chitchat, "corpus_hash", lambda: "another corpus")
    assert RECIPE.content_hash not in hashes


def test_held_out_conversations_stay_held_out(made: Path, lessons: list[Lesson]) -> None:
    """Each model learns from its own conversations, and none from those that the other or the evaluation has."""
    splits: tuple[chitchat.Split, ...] = ("base", "judge", "held_out")
    keys = [{key for key, _ in chitchat._tidy_conversations(split)} for split in splits]
    assert all(keys)
    assert len(set.union(*keys)) == sum(map(len, keys))

    tokenizer = load_tokenizer(Models.within(made).base)
    learned = dict(lessons)
    assert set(learned) == {f"{who}, {what}" for who in ("base", "judge") for what in ("conversations", "replies")}
    for who in splits[:2]:
        packed = [token for row in learned[f"{who}, conversations"] for token in row]
        whole = [token for talk in chitchat.conversations(who) for token in tokenizer.encode(chitchat.text_of(talk))]
        assert packed == whole[: len(packed)]
        assert len(packed) > 0.9 * len(whole)
        answers = [(*tokenizer.encode(said), *tokenizer.encode(reply)) for said, reply in chitchat.replies(who)]
        assert [tuple(row[:-1]) for row in learned[f"{who}, replies"]] == answers
        assert {row[-1] for row in learned[f"{who}, replies"]} == {tokenizer.end_id}


# ---------------------------------------------------------------- the demo


@pytest.fixture(scope="module")
def demo(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        # Workers would have the whole corpus, and time to load it.
        patch.setattr(scheduling, "LocalProcesses", lambda _count: InThisProcess())
        ended = run_pipeline(shipped_pipeline("demo"), out, changes=small(made))
        assert (ended.report, ended.waiting) == (out / "report.html", "")
        yield out


def test_the_demo_leaves_everything_it_promises(demo: Path) -> None:
    there = {"report.html", "replies", "preferences", "reward_model", "agents", "stages"}
    assert {path.name for path in demo.iterdir()} >= there
    assert {path.name for path in (demo / "agents").iterdir()} >= {
        "about.json",
        "benchmark.toml",
        "cells",
        "report.html",
        "results",
        "reward_model.json",
        "scorecard.json",
    }
    results = read_results(demo / "agents")
    assert results.agents == ["best_of_n", "dpo", "grpo", "ppo", "reference", "random"]
    assert (results.failed, results.seeds, results.has_gold) == (0, 1, True)
    assert results.benchmark == "demo"
    for cell in results.cells:
        assert {"gold", "proxy", "kl", "length", "distinct_2"} <= cell.evaluation.keys()
        if cell.agent in ("ppo", "grpo", "dpo"):
            assert cell.spending["generated_tokens"] >= 150
            assert cell.reason == "budget"
    assert list((demo / "agents" / "cells").rglob("events.out.tfevents.*"))


def test_the_report_says_what_each_stage_bought(demo: Path) -> None:
    page = (demo / "report.html").read_text()
    assert "upbeat, human-like small talk" in page
    for stage in ("base", "replies", "preferences", "reward_model", "agents"):
        assert f'<th scope="row">{stage}<small>' in page
    assert 'href="agents/report.html"' in page
    assert 'href="reward_model/scorecard.html"' in page
    assert "<script" not in page


def test_the_report_can_be_made_again(demo: Path) -> None:
    page = (demo / "report.html").read_bytes()
    (demo / "report.html").unlink()
    (demo / "agents" / "report.html").unlink()
    report(demo)
    assert (demo / "report.html").read_bytes() == page
    assert (demo / "agents" / "report.html").is_file()


def test_preferences_are_about_training_prompts_and_evaluation_about_held_out_ones(demo: Path) -> None:
    with closing(sqlite3.connect(demo / "preferences" / "preferences.sqlite")) as database:
        text = "\n".join(database.iterdump())
    trained, held_out = set(chitchat.prompts("base")), set(chitchat.prompts("held_out"))
    asked = {sample.prompt for cell in read_results(demo / "agents").cells for sample in cell.samples}
    assert len(asked) == 6
    assert asked <= held_out
    assert not held_out & trained
    assert "chitchat/base/" in text
    assert "chitchat/held_out/" not in text


def test_the_reward_model_says_how_good_it_is(demo: Path) -> None:
    card = json.loads((demo / "agents" / "reward_model.json").read_text())
    assert 0.0 <= card["low"] <= card["accuracy"] <= card["high"] <= 1.0
    assert 0.5 < card["ceiling"] < 1.0
    assert 0.0 <= card["calibration_error"] <= 1.0
    assert card["held_out_pairs"] >= 3
    assert card["pairs"] > card["held_out_pairs"]


def test_a_second_call_does_nothing_new(demo: Path, made: Path) -> None:
    def stamps() -> dict[str, int]:
        return {
            str(file): file.stat().st_mtime_ns
            for part in ("replies", "preferences", "reward_model", "agents")
            for file in (demo / part).rglob("*")
            if file.is_file()
        }

    before, page = stamps(), (demo / "report.html").read_bytes()
    assert {it.step for it in intentions(shipped_pipeline("demo"), demo, changes=small(made))} == {"skip"}
    run_pipeline(shipped_pipeline("demo"), demo, changes=small(made))
    assert stamps() == before
    assert (demo / "report.html").read_bytes() == page


def test_the_gold_reward_is_seen_by_no_agent(demo: Path) -> None:
    for cell in read_results(demo / "agents").cells:
        rows = read_metrics(demo / "agents" / cell.run)
        assert not [name for row in rows for name in row if "gold" in name and not name.startswith("eval/")]
        assert not [name for row in rows for name in row if "upbeat" in name]
        if cell.agent == "ppo":
            assert {"rollout/part/bradley_terry", "rollout/part/kl", "rollout/part/diversity"} <= rows[-1].keys()


def test_every_agent_starts_from_the_same_model(demo: Path) -> None:
    cells = read_results(demo / "agents").cells
    first = {cell.agent: cell.curve[0] for cell in cells if cell.agent in ("ppo", "grpo", "dpo")}
    assert first["ppo"] == first["grpo"] == first["dpo"]
    assert np.isclose(first["ppo"].values["kl"], 0.0, atol=1e-5)


# ---------------------------------------------------------------- a grid's reward model


def test_a_grid_makes_the_demos_reward_model_with_changes(made: Path, tmp_path: Path) -> None:
    assert DemoRewardModel().changes() == {}, "its defaults are those of demo.toml"
    demo = read_plan(shipped_pipeline("demo"))
    usual = DemoRewardModel().reward_model
    fit = demo.made(demo.named("reward_model"), demo.outputs(tmp_path))
    assert isinstance(fit, FitStage)
    assert fit.wanted.reward_model == usual, "with every default of a reward model's settings"
    wanted = DemoRewardModel(
        prompts=12,
        temperatures=(1.0, 1.4),
        pairs_per_prompt=1,
        held_out_pairs=0.25,
        reward_model=replace(usual, head="linear", head_epochs=1),
        num_envs=6,
        max_new_tokens=6,
        seed=3,
    )
    changes = wanted.changes()
    assert changes["replies.temperatures"] == [1.0, 1.4]
    assert changes["reward_model.reward_model.head"] == "linear"
    assert {f"{stage}.seed" for stage in ("replies", "preferences", "reward_model")} <= changes.keys()
    model = learn_reward_model(tmp_path, wanted, console=QUIET)
    assert model == tmp_path / "reward_model"
    record = json.loads((model / "reward_model.json").read_text())
    assert record["record"]["config"]["head_epochs"] == 1
    assert (tmp_path / "scorecard.json").is_file()
