"""Published sets from the command line and in an experiment: imported, counted, learned from."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.cli import main as cli
from rlhf_env.errors import ConfigError
from rlhf_env.feedback.interchange import LAYOUTS
from rlhf_env.feedback.offline import load_judgements, load_preferences
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.lab.evaluation.preparing import prepare

sys.path.insert(0, str(Path(__file__).parent / "interchange"))
from published_sets import ROWS, comparison, hh, nectar, preference_3, shp

Run = Callable[..., tuple[int, str, str]]

EXPERIMENT = """
name = "learned"
preferences = "set.jsonl"
[task]
name = "prompts"
prompts = ["a", "b", "c", "d"]
[policy]
tokenizer = "bytes"
[environment]
num_envs = 4
max_new_tokens = 8
max_prompt_tokens = 64
[rewards]
kl = 0.1
length = { target = 2 }
[agent]
name = "dpo"
[budget]
updates = 1
[evaluation]
prompts = 2
"""


def written(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("import", "s.db", "a.jsonl")` in an empty folder: status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rlhf-env", "preferences", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


def test_a_store_takes_every_published_set_at_once(run: Run, tmp_path: Path) -> None:
    files = [written(tmp_path / f"{name}.jsonl", rows).name for name, rows in ROWS.items()]
    status, said, _ = run("import", "s.db", *files)
    assert status == 0
    first, *passed_over = said.splitlines()
    assert first == "147 new of 147 judgements are in s.db"
    assert "ultrafeedback.jsonl: passed over: ratings of honesty that are N/A: 1" in passed_over
    assert run("import", "s.db", *files)[1].startswith("0 new of 147 judgements")
    with PreferenceStore(tmp_path / "s.db") as store:
        assert {name for name, _ in store.origins().items()} >= {"gpt-4", "arena_user_1", "w1", "user of c1"}


def test_the_layouts_are_listed_and_written_down(run: Run) -> None:
    said = run("layouts")[1]
    assert [line.split()[0] for line in said.splitlines() if line[0] != " "] == [layout.name for layout in LAYOUTS]
    assert "known by history, human_ref_A, human_ref_B, labels" in said
    assert run("layouts", "--markdown")[1].startswith("# Layouts of published preference sets\n")


def test_options_of_the_import(run: Run, tmp_path: Path) -> None:
    written(tmp_path / "pku.jsonl", ROWS["pku"])
    said = run("import", "s.db", "pku.jsonl", "--criterion", "safety", "--limit", "3", "--annotator", "pku")[1]
    assert said.splitlines() == [
        "3 new of 3 judgements are in s.db",
        "pku.jsonl: passed over: judgements by the criterion 'helpfulness': 3",
        "pku.jsonl: passed over: judgements by the criterion 'is safe': 6",
    ]
    with PreferenceStore(tmp_path / "s.db") as store:
        assert {(it.criterion, it.annotator) for it in store.judgements()} == {("safety", "pku")}
    written(tmp_path / "broken.jsonl", [ROWS["shp"][0], {**ROWS["shp"][0], "history": None}])
    status, _, error = run("import", "t.db", "broken.jsonl")
    assert (status, error) == (2, "rlhf-env: broken.jsonl:2: history: expected text, got null\n")
    assert not (tmp_path / "t.db").exists()
    said = run("import", "t.db", "broken.jsonl", "--skip")[1]
    assert said.splitlines() == [
        "1 new of 1 judgements are in t.db",
        "broken.jsonl: passed over: lines that cannot be read, the first: broken.jsonl:2: history: expected text, got "
        "null: 1",
    ]


def test_a_large_file_says_how_far_it_is(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_env.cli.importing._MANY_ROWS", 20)
    written(tmp_path / "shp.jsonl", [shp(f"p{n}", 1, 4, 2) for n in range(50)])
    status, said, error = run("import", "s.db", "shp.jsonl")
    assert (status, said) == (0, "50 new of 50 judgements are in s.db\n")
    assert error.splitlines() == ["shp.jsonl: 20 rows read", "shp.jsonl: 40 rows read"]


# ---------------------------------------------------------------- learned from


@pytest.mark.parametrize("name", [name for name in ROWS if name != "trl-unpaired"])
def test_pairs_of_every_set(tmp_path: Path, name: str) -> None:
    file = written(tmp_path / "set.jsonl", ROWS[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pairs = load_preferences(file)
    assert pairs and all(pair.chosen.text != pair.rejected.text for pair in pairs)


@pytest.mark.parametrize("name", ["hh-rlhf", "prism-utterances"])
def test_an_experiment_names_a_published_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "set.jsonl", ROWS[name])
    (tmp_path / "x.toml").write_text(EXPERIMENT)
    training = prepare("x.toml").train()
    assert training.reason


def test_what_an_experiment_passes_over_is_said(tmp_path: Path) -> None:
    file = written(tmp_path / "set.jsonl", ROWS["ultrafeedback"])
    with pytest.warns(RuntimeWarning) as caught:
        load_preferences(file)
    said = [str(one.message) for one in caught]
    assert f"{file}: passed over: ratings of honesty that are N/A: 1" in said
    assert (
        f"{file}: pairs by several criteria are learned from alike: overall (4), helpfulness (1), honesty (1);"
        in said[-1]
    )


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    file = written(tmp_path / "set.jsonl", ROWS["shp"])
    before = load_judgements(file)
    assert load_judgements(file) == before and load_judgements(file) is not before
    written(file, ROWS["webgpt"][:1])
    assert len(load_judgements(file)) == 1


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("shp", {**ROWS["shp"][1], "human_ref_A": "x" * 600}),
        ("hh-rlhf", hh("q" * 600, "good 0", "bad 0")),
        ("nectar", nectar("q" * 600, a=1.0, b=2.0)),
        ("summarize", comparison("p" * 900, 1, "w1", 8)),
        ("helpsteer3", preference_3("p" * 600, 1)),
    ],
)
def test_a_text_that_is_too_long_is_named_by_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, row: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "set.jsonl", [ROWS[name][0], row])
    (tmp_path / "x.toml").write_text(EXPERIMENT)
    with pytest.raises(ConfigError) as caught:
        prepare("x.toml")
    said = [str(problem) for problem in caught.value.problems]
    assert said and all("set.jsonl:2: prompt and response have" in problem for problem in said)
