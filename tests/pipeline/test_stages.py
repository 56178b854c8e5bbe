"""A file of stages at work: what runs, what is passed over, what is resumed, and what is refused."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from faults.processes import Ended, rlhf_env, warm_up

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.lab import scheduling
from rlhf_env.lab.processes import InThisProcess
from rlhf_env.learning.run_folder import RunFolder
from rlhf_env.pipeline import responses
from rlhf_env.pipeline.demo import shipped_pipeline
from rlhf_env.pipeline.plan import read_plan
from rlhf_env.pipeline.records import Record
from rlhf_env.pipeline.running import intentions, run_pipeline
from rlhf_env.pipeline.stages import writing
from rlhf_env.pipeline.stages.registry import STAGES

MakeFile = Callable[..., Path]
NAMES = ["sft", "answers", "votes", "taste", "ppo", "blind"]


@pytest.fixture(scope="module")
def whole(trunk: Path, small_file: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the small pipeline has run, beside its file."""
    place = tmp_path_factory.mktemp("whole")
    for name in ("trunk", "prompts.jsonl"):
        (place / name).symlink_to(trunk / name)
    (place / "small.toml").write_text(small_file)
    ended = run_pipeline(place / "small.toml", place / "out")
    assert ended.waiting == ""
    assert ended.report == place / "out" / "report.html"
    return place


@pytest.fixture
def done(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True, symlinks=True)
    return tmp_path


def steps(place: Path, **options: Any) -> dict[str, str]:
    return {it.name: it.step for it in intentions(place / "small.toml", place / "out", **options)}


def records(out: Path) -> dict[str, Record]:
    found = {name: Record.read(out, name) for name in NAMES}
    return {name: record for name, record in found.items() if record is not None}


def weights(run: Path) -> dict[str, Any]:
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    return load_file(newest / "tensors.safetensors")


# ---------------------------------------------------------------- what each stage comes to


def test_every_stage_says_what_it_bought_and_what_it_cost(whole: Path) -> None:
    found = records(whole / "out")
    assert {name: record.status for name, record in found.items()} == dict.fromkeys(NAMES, "finished")
    assert found["sft"].numbers["perplexity"] < found["sft"].numbers["perplexity_before"]
    assert found["answers"].numbers["responses"] > 10
    assert found["answers"].numbers["tokens"] > found["answers"].numbers["responses"]
    assert found["votes"].numbers["labels"] == 10
    assert 0 <= found["taste"].numbers["accuracy_low"] <= found["taste"].numbers["accuracy"] <= 1
    assert {"gold", "gold_before", "proxy", "kl", "tokens"} <= found["ppo"].numbers.keys()
    assert [point["update"] for point in found["ppo"].curve] == [0, 1, 2, 3]
    assert 0 <= found["blind"].numbers["win_rate"] <= 1
    assert all(record.seconds > 0 for record in found.values())


def test_stages_take_what_earlier_ones_give(whole: Path) -> None:
    out = whole / "out"
    described = (out / "ppo" / "experiment.toml").read_text()
    assert f'model = "{out / "sft"}"' in described
    assert f'model = "{out / "taste"}"' in described
    with PreferenceStore(out / "answers" / "preferences.sqlite") as answers:
        assert {response.author.name for _, response in answers.responses()} == {"sft"}
        assert not list(answers.judgements()), "judges work on a copy"
    with PreferenceStore(out / "blind" / "preferences.sqlite") as blind:
        authors = {response.author.name for _, response in blind.responses()}
    assert authors == {"sft", "ppo", "reference"}


def test_the_page_has_every_stage(whole: Path) -> None:
    page = (whole / "out" / "report.html").read_text()
    for name in NAMES:
        assert f'<th scope="row">{name}<small>' in page
    assert "near eight characters" in page
    assert page.count("<svg") == 4, "gold, proxy, KL and perplexity along the updates"


# ---------------------------------------------------------------- what is passed over


def test_nothing_is_done_twice(whole: Path) -> None:
    assert steps(whole) == dict.fromkeys(NAMES, "skip")


def test_what_changes_is_made_anew_and_what_takes_from_it(done: Path) -> None:
    file = done / "small.toml"
    file.write_text(file.read_text().replace("budget = { updates = 3 }", "budget = { updates = 1 }"))
    found = {it.name: it for it in intentions(file, done / "out")}
    assert {name: it.step for name, it in found.items()} == {
        **dict.fromkeys(NAMES, "skip"),
        "ppo": "anew",
        "blind": "run",
    }
    assert "budget.updates changed" in found["ppo"].why
    before = (done / "out" / "ppo" / "metrics.jsonl").read_bytes()
    ended = run_pipeline(file, done / "out")
    assert (done / "out" / "replaced" / "ppo-1" / "metrics.jsonl").read_bytes() == before, "nothing is overwritten"
    assert ended.stages["ppo"].numbers["updates"] == 1
    assert steps(done) == dict.fromkeys(NAMES, "skip")


def test_a_comment_or_a_tracker_changes_nothing(done: Path) -> None:
    file = done / "small.toml"
    text = file.read_text().replace('kind = "train"\n', 'kind = "train" # PPO\ntrackers = { tensorboard = {} }\n')
    file.write_text(text)
    assert steps(done) == dict.fromkeys(NAMES, "skip")


def test_files_are_known_by_content(done: Path) -> None:
    prompts = done / "prompts.jsonl"
    content = prompts.read_text()
    prompts.unlink()
    prompts.write_text(content)  # another time, another inode, the same content
    assert steps(done) == dict.fromkeys(NAMES, "skip")
    prompts.write_text(content.replace("red", "pink"))
    found = {it.name: it for it in intentions(done / "small.toml", done / "out")}
    assert found["sft"].step == "anew"
    assert "prompts.jsonl changed" in found["sft"].why


def test_a_function_of_ones_own_is_known_by_content(done: Path) -> None:
    file, own = done / "small.toml", done / "short.py"
    own.write_text("def short(completions, **columns):\n    return [-float(len(text)) for text in completions]\n")
    text = file.read_text().replace("kl = 0.05", 'kl = 0.05, short = { function = "short.py:short", weight = 0.1 }')
    file.write_text(text)
    assert steps(done)["ppo"] == "anew"
    ended = run_pipeline(file, done / "out", until="ppo")
    assert ended.stages["ppo"].status == "finished"
    assert steps(done, until="ppo")["ppo"] == "skip"
    own.write_text(own.read_text().replace("-float", "float"))
    found = {it.name: it for it in intentions(file, done / "out")}
    assert (found["sft"].step, found["ppo"].step) == ("skip", "anew")
    assert "short.py changed" in found["ppo"].why


# ---------------------------------------------------------------- only, until, again


def test_only_and_until(pipeline: MakeFile, tmp_path: Path) -> None:
    file, out = pipeline(), tmp_path / "out"
    ended = run_pipeline(file, out, until="answers")
    assert list(ended.stages) == ["sft", "answers"]
    with pytest.raises(ConfigError, match=r"small.toml, line 46: stage 'ppo': takes from 'taste', which has not been"):
        run_pipeline(file, out, only="ppo")
    ended = run_pipeline(file, out, only="votes")
    assert list(ended.stages) == ["sft", "answers", "votes"]
    with pytest.raises(ConfigError, match="--only: no stage 'vote': did you mean 'votes'"):
        run_pipeline(file, out, only="vote")


def test_an_output_that_is_gone_or_changed_is_refused(done: Path) -> None:
    file, out = done / "small.toml", done / "out"
    (out / "answers" / "preferences.sqlite").unlink()
    with PreferenceStore(out / "votes" / "preferences.sqlite") as store:
        store.add([replace(next(store.comparisons()), annotator="somebody else")])
    with pytest.raises(ConfigError) as refused:
        run_pipeline(file, out)
    said = refused.value.problems
    assert len(said) == 2
    assert "small.toml, line 26: stage 'answers': its output in" in said[0]
    assert said[0].endswith("is missing: put it back, or make it anew with --again answers")
    assert "small.toml, line 33: stage 'votes': its output in" in said[1]
    assert steps(done, again=["answers", "votes"]) == {
        **dict.fromkeys(["answers", "votes"], "anew"),
        **dict.fromkeys(["taste", "ppo", "blind"], "run"),
        "sft": "skip",
    }
    assert steps(done, until="sft")["sft"] == "skip", "what comes after --until is not asked for"
    run_pipeline(file, out, again=["answers", "votes"], until="votes")
    assert steps(done) == dict.fromkeys(NAMES, "skip"), "the same draws give the same answers: nothing else is remade"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "budget = { updates = 3 }",
            "environment = { max_prompt_tokens = 5 }",
            "has 6 tokens, the environment takes 5",
        ),
        (
            "budget = { updates = 3 }",
            "environment = { max_new_tokens = 60 }",
            "has 6 tokens, which with 60 new ones (max_new_tokens) exceed the model's context of 64",
        ),
        ("prompts = 10\n", "prompts = 10\nmax_prompt_tokens = 5\n", "has 6 tokens, the environment takes 5"),
    ],
)
def test_prompts_too_long_for_a_later_stage_are_found_before_the_first_runs(
    pipeline: MakeFile, tmp_path: Path, old: str, new: str, says: str
) -> None:
    file, out = pipeline((old, new)), tmp_path / "out"
    with pytest.raises(ConfigError) as refused:
        run_pipeline(file, out)
    assert len(refused.value.problems) > 1, "all at once"
    assert says in refused.value.problems[-1]
    assert not out.exists()


def test_a_folder_of_something_else_is_left_alone(pipeline: MakeFile, tmp_path: Path, whole: Path) -> None:
    file, out = pipeline(), tmp_path / "out"
    (out / "taste").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"stage 'taste': .*taste is there, and this pipeline has not made it"):
        run_pipeline(file, out)
    other = pipeline(('name = "small"', 'name = "other"'))
    with pytest.raises(ConfigError, match="holds the pipeline 'small': choose another folder"):
        run_pipeline(other, whole / "out")
    with pytest.raises(ConfigError, match="holds a run"):
        run_pipeline(other, whole / "out" / "ppo")


# ---------------------------------------------------------------- killed, changed


def test_killed_inside_a_stage_it_ends_in_the_same_bits(whole: Path, pipeline: MakeFile, tmp_path: Path) -> None:
    warm_up()
    file, out = pipeline(), tmp_path / "out"
    words = ["pipeline", str(file), "--out", str(out)]
    log = RunFolder.log

    def before() -> None:
        def log_and_die(run: RunFolder, row: Any) -> None:
            log(run, row)
            if run.path.name == "ppo" and row["update"] == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        RunFolder.log = log_and_die  # type: ignore[method-assign]

    killed = rlhf_env(*words, before=before)
    assert killed.status == -signal.SIGKILL
    assert records(out)["ppo"].status == "begun"
    found = {it.name: it.step for it in intentions(file, out)}
    assert found == {**dict.fromkeys(NAMES[:4], "skip"), "ppo": "resume", "blind": "run"}
    rows = (out / "ppo" / "metrics.jsonl").read_bytes()
    run_pipeline(file, out)
    assert (out / "ppo" / "metrics.jsonl").read_bytes().startswith(rows[:200]), "what was done is not done again"
    for stage in ("sft", "ppo"):
        one, other = weights(out / stage), weights(whole / "out" / stage)
        assert all(one[name].equal(other[name]) for name in one), stage
    ours, theirs = records(out), records(whole / "out")
    assert {n: r.identity for n, r in ours.items() if n != "blind"} == {
        n: r.identity for n, r in theirs.items() if n != "blind"
    }
    assert ours["blind"].numbers == theirs["blind"].numbers


def test_a_raised_budget_goes_on_where_the_smaller_one_ended(done: Path, whole: Path) -> None:
    file, out = done / "small.toml", done / "out"
    rows = (out / "ppo" / "metrics.jsonl").read_bytes()
    raised: dict[str, object] = {"ppo.budget": {"updates": 5}}
    (said,) = (it for it in intentions(file, out, changes=raised) if it.name == "ppo")
    assert (said.step, said.why) == ("resume", "budget.updates 3 -> 5 (--again ppo makes it anew)")
    ended = run_pipeline(file, out, changes=raised, until="ppo")
    assert (out / "ppo" / "metrics.jsonl").read_bytes().startswith(rows)
    assert ended.stages["ppo"].numbers["updates"] == 5
    assert not (out / "replaced").exists()
    assert steps(done, changes=raised) == {**dict.fromkeys(NAMES[:5], "skip"), "blind": "anew"}
    assert steps(done)["ppo"] == "anew", "the smaller budget again"
    other: dict[str, object] = {**raised, "ppo.agent.lr": 2e-3}
    assert steps(done, changes=other)["ppo"] == "anew", "another setting beside it"
    assert steps(done, changes=raised, again=["ppo"])["ppo"] == "anew"
    run_pipeline(file, out, changes=raised, again=["ppo"], until="ppo")
    whole_run, went_on = (weights(out / place) for place in ("ppo", "replaced/ppo-1"))
    assert all(whole_run[name].equal(went_on[name]) for name in whole_run), "nothing here goes by the budget's share"


def test_a_folder_that_was_moved_while_a_stage_was_half_done(whole: Path, pipeline: MakeFile, tmp_path: Path) -> None:
    file, out, elsewhere = pipeline(), tmp_path / "out", tmp_path / "elsewhere"
    log = RunFolder.log

    def log_and_die(run: RunFolder, row: Any) -> None:
        log(run, row)
        if run.path.name == "ppo" and row["update"] == 2:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunFolder, "log", log_and_die)
        run_pipeline(file, out)
    out.rename(elsewhere)
    assert {it.step for it in intentions(file, elsewhere)} == {"skip", "resume", "run"}
    ended = run_pipeline(file, elsewhere)
    assert ended.stages["blind"].numbers == records(whole / "out")["blind"].numbers
    one, other = weights(elsewhere / "ppo"), weights(whole / "out" / "ppo")
    assert all(one[name].equal(other[name]) for name in one)
    assert str(out) + os.sep not in (elsewhere / "ppo" / "experiment.toml").read_text()


BENCH = """
[[stage]]
name = "grid"
kind = "bench"
from = "sft"
seeds = 1
agents = { best_of_n = { n = 2 }, reference = {} }
rewards = { length = { target = 5 } }
budget = { generated_tokens = 60 }
evaluation = { prompts = 2 }
tasks = { words = {} }
"""


def test_prompts_too_long_for_a_benchmark_are_found_before_the_first_stage_runs(
    pipeline: MakeFile, small_file: str, tmp_path: Path
) -> None:
    bench = BENCH.replace("words = {}", "words = { environment = { max_prompt_tokens = 5 } }")
    file = pipeline(text=small_file[: small_file.index('[[stage]]\nname = "answers"')] + bench)
    with pytest.raises(ConfigError, match=r"small.toml, line \d+: prompt .*has 6 tokens, the environment takes 5"):
        run_pipeline(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_was_moved_while_a_benchmark_was_half_done(
    pipeline: MakeFile, small_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Workers take seconds to start.
    monkeypatch.setattr(scheduling, "LocalProcesses", lambda _count: InThisProcess())
    file = pipeline(text=small_file[: small_file.index('[[stage]]\nname = "answers"')] + BENCH)
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    run_pipeline(file, out)
    (out / "grid" / "results" / "words--best_of_n--seed-0.json").unlink()
    kept = (out / "grid" / "results" / "words--reference--seed-0.json").read_bytes()
    record = Record.read(out, "grid")
    assert record is not None
    replace(record, status="begun").save(out)
    out.rename(elsewhere)
    assert run_pipeline(file, elsewhere).stages["grid"].status == "finished"
    assert (elsewhere / "grid" / "results" / "words--best_of_n--seed-0.json").is_file()
    assert (elsewhere / "grid" / "results" / "words--reference--seed-0.json").read_bytes() == kept


def test_killed_while_it_goes_on_with_a_larger_budget(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, out = done / "small.toml", done / "out"
    raised: dict[str, object] = {"ppo.budget": {"updates": 5}}
    log = RunFolder.log

    def log_and_die(run: RunFolder, row: Any) -> None:
        log(run, row)
        if row["update"] == 4:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunFolder, "log", log_and_die)
        run_pipeline(file, out, changes=raised, until="ppo")
    assert steps(done, changes=raised)["ppo"] == "resume"
    assert run_pipeline(file, out, changes=raised, until="ppo").stages["ppo"].numbers["updates"] == 5


def test_killed_while_it_writes_it_comes_to_the_same_answers(whole: Path, pipeline: MakeFile, tmp_path: Path) -> None:
    file, out = pipeline(), tmp_path / "out"
    run_pipeline(file, out, until="sft")
    note, calls = responses._Progress.note, itertools.count(1)

    def note_and_die(progress: Any, *arguments: Any) -> None:
        note(progress, *arguments)
        if next(calls) == 3:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(responses._Progress, "note", note_and_die)
        with pytest.raises(Killed):
            run_pipeline(file, out)
    assert not (out / "answers" / "preferences.sqlite").exists()
    run_pipeline(file, out, until="answers")
    assert not (out / "answers" / ".writing.json").exists()
    assert records(out)["answers"].identity == records(whole / "out")["answers"].identity
    assert [it.name for it in (out / "answers").iterdir()] == ["preferences.sqlite"]


class Killed(BaseException):
    """Stands for kill -9."""


def test_ctrl_c_leaves_a_pipeline_to_resume_and_says_how(pipeline: MakeFile, tmp_path: Path) -> None:
    file, out = pipeline(), tmp_path / "out"
    words = ["pipeline", str(file), "--out", str(out)]
    log = RunFolder.log

    def before() -> None:
        def log_and_stop(run: RunFolder, row: Any) -> None:
            log(run, row)
            if row["update"] == 1:
                os.kill(os.getpid(), signal.SIGINT)

        RunFolder.log = log_and_stop  # type: ignore[method-assign]

    ended = rlhf_env(*words, before=before)
    assert ended.status == 128 + signal.SIGINT, ended.stderr
    assert ended.stderr.endswith(f"resume with: rlhf-env {' '.join(words)}\n")
    assert {it.name: it.step for it in intentions(file, out)}["sft"] == "resume"


@pytest.mark.parametrize(
    "left", [["lock"], ["lock", "record.json", "experiment.toml", "base"]], ids=["a lock", "a run that began"]
)
def test_a_stage_that_was_stopped_before_its_first_checkpoint_is_resumed(done: Path, left: list[str]) -> None:
    """Later stages read the model of a run: there is none in what it left."""
    for stage in ("stages", *NAMES):
        for name in NAMES[1:]:
            (done / "out" / stage / f"{name}.json").unlink(missing_ok=True)
        if stage in NAMES[1:]:
            shutil.rmtree(done / "out" / stage)
    for path in (done / "out" / "sft").iterdir():
        if path.name not in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    sft = Record.read(done / "out", "sft")
    assert sft is not None
    replace(sft, status="begun", identity="").save(done / "out")
    assert steps(done)["sft"] == "resume"
    ended = run_pipeline(done / "small.toml", done / "out", until="sft")
    assert ended.stages["sft"].identity == sft.identity


def test_a_file_that_changes_under_a_running_pipeline_is_refused(
    pipeline: MakeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = pipeline(), tmp_path / "out"
    prompts = tmp_path / "prompts.jsonl"
    content = prompts.read_text()
    work = writing.ResponsesStage.work

    def edited(stage: writing.ResponsesStage, site: Any) -> Any:
        outcome = work(stage, site)
        prompts.unlink()
        prompts.write_text(content.replace("red", "pink"))
        return outcome

    monkeypatch.setattr(writing.ResponsesStage, "work", edited)
    with pytest.raises(DataError, match=r"line 26: stage 'answers': .*prompts.jsonl changed while the pipeline ran"):
        run_pipeline(file, out)
    assert records(out)["answers"].status == "begun", "what was made of two files is not taken"
    prompts.write_text(content)
    monkeypatch.undo()
    ended = run_pipeline(file, out, until="answers")
    assert ended.stages["answers"].status == "finished"


# ---------------------------------------------------------------- the file


def test_a_copy_of_a_shipped_file_is_the_same_pipeline(tmp_path: Path) -> None:
    shown = rlhf_env("pipeline", "--show", "demo")
    assert (shown.status, shown.stderr) == (0, "")
    (tmp_path / "mine.toml").write_text(shown.stdout)
    mine, theirs = read_plan(tmp_path / "mine.toml"), read_plan(shipped_pipeline("demo"))
    assert [it.table for it in mine.stages] == [it.table for it in theirs.stages]
    assert mine.about == theirs.about
    assert json.dumps(mine.outputs(tmp_path)) == json.dumps(theirs.outputs(tmp_path))


def test_from_scratch_and_seeds_are_changes_to_the_file() -> None:
    plan = read_plan(shipped_pipeline("demo"), {"agents.seeds": 5, "base.take": None, "base.judge": None})
    assert plan.named("base").table == {}
    assert plan.named("agents").table["seeds"] == 5
    outputs = plan.outputs(Path("/out"))
    assert outputs["base"][""] == "/out/base/chitchat"
    assert outputs["base"]["judge"] == "/out/base/chitchat-judge"


def test_a_file_can_be_checked(pipeline: MakeFile) -> None:
    assert rlhf_env("check", str(pipeline())) == Ended(0, "ok\n", "")
    wrong = pipeline(("held_out = 0.3", "held_out = 3"))
    checked = rlhf_env("check", str(wrong))
    assert (checked.status, checked.stdout) == (2, "")
    assert "small.toml, line 43: held_out must be in [0, 1), got 3" in checked.stderr


def test_examples_of_pipelines_can_run(tmp_path: Path) -> None:
    folder = Path(__file__).resolve().parents[2] / "examples"
    names = ["two", "three", "four", "five", "directly"]
    changes = {f"{name}.budget": {"updates": 1} for name in names}
    ended = run_pipeline(folder / "progressive.toml", tmp_path / "progressive", changes=changes)
    assert list(ended.stages) == names
    assert ended.stages["three"].inputs == {"two": ended.stages["two"].identity}
    pytest.importorskip("chitchat_dataset")
    whole = read_plan(folder / "pipeline.toml")
    whole.check()
    assert {it.kind for it in whole.stages} == set(STAGES) - {"annotate"}


def test_a_dry_run_writes_nothing(pipeline: MakeFile, tmp_path: Path) -> None:
    file = pipeline()
    ended = rlhf_env("pipeline", str(file), "--out", str(tmp_path / "out"), "--dry-run")
    assert ended.stderr == ""
    assert ended.stdout.splitlines()[0] == "sft (sft) runs: not made yet"
    assert len(ended.stdout.splitlines()) == len(NAMES)
    assert not (tmp_path / "out").exists()


def test_stages_that_take_from_a_wrong_one_are_not_blamed_for_it(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(
        """
[defaults]
policy = { model = "rlhf-env/chitchat" }
task = { name = "prompts", prompts = ["a", "b"] }
[[stage]]
name = "sft"
kind = "train"
budgt = { updates = 2 }
[[stage]]
name = "answers"
kind = "responses"
from = "sft"
limit = 3
[[stage]]
name = "votes"
kind = "annotate"
from = "answers"
[[stage]]
name = "taste"
kind = "reward_model"
from = ["sft", "votes"]
[[stage]]
name = "ppo"
kind = "train"
from = ["sft", "taste"]
rewards = { bradley_terry = 1.0 }
"""
    )
    with pytest.raises(ConfigError) as caught:
        read_plan(file).check()
    assert [problem.split("'")[1] for problem in caught.value.problems] == ["budgt", "limit"]
