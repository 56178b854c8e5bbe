"""A run folder of somebody else names code, `function = "evil.py:reward"`: nothing that reads it runs that code."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rlhf_env
from rlhf_env.errors import ConfigError
from rlhf_env.lab.evaluation.exporting import export_run
from rlhf_env.learning.code_of_runs import mark_of
from rlhf_env.learning.experiment import Experiment

sys.path.insert(0, str(Path(__file__).parents[1]))
from security.probes import exit_of

POLITE = """\
from pathlib import Path
Path(__file__).with_name("ran").touch()
def polite(completions):
    return [float(len(text)) for text in completions]
"""
TOML = """\
name = "toy"
[task]
name = "echo"
length = 1
[policy]
tokenizer = "alphabet:ab="
[environment]
num_envs = 4
max_new_tokens = 3
max_prompt_tokens = 3
[rewards.polite]
function = "polite.py:polite"
[agent]
name = "reinforce"
[budget]
updates = 1
[evaluation]
prompts = 4
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of settings and one of code, and a run of them, which its user made here."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "polite.py").write_text(POLITE)
    (folder / "toy.toml").write_text(TOML)
    rlhf_env.run(folder / "toy.toml", folder / "run")
    assert (folder / "ran").exists(), "the probe would show it"
    yield folder
    forget(folder)


def forget(folder: Path) -> None:
    """Have the code imported anew where it is used."""
    from rlhf_env import own_code

    own_code._ours.clear()
    (folder / "ran").unlink(missing_ok=True)


def test_ones_own_run_is_read_back_from_anywhere(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    forget(project)
    run = rlhf_env.load_run(project / "run")
    assert run.experiment.rewards == {"polite": {"function": "polite.py:polite"}}, "as it was written"
    assert (project / "ran").exists()
    moved = shutil.copytree(project / "run", tmp_path / "moved")
    assert rlhf_env.load_run(moved).update == run.update, "the same run in another place is still one's own"


@pytest.mark.parametrize(
    "what",
    [
        "no record",
        "no mark",
        "another mark",
        "another key",
        "another paths_from",
        "another weight",
        "another code",
    ],
)
def test_a_run_that_one_did_not_make_runs_nothing(what: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = project / "run"
    record = json.loads((run / "record.json").read_text())
    if what == "no record":
        (run / "record.json").unlink()
    elif what == "another key":
        monkeypatch.setenv("XDG_STATE_HOME", str(project / "other state"))
    elif what.startswith("another ") and what != "another mark" and what != "another paths_from":
        old, new = {
            "another weight": ('"polite.py:polite"', '"polite.py:polite"\nweight = 2.0'),
            "another code": ('"polite.py:polite"', '"os:system"'),
        }[what]
        toml = (run / "experiment.toml").read_text()
        assert old in toml
        (run / "experiment.toml").write_text(toml.replace(old, new))
    else:
        mark = "0" * 64 if what == "another mark" else record["made_here"]
        other = {"made_here": mark} if what != "no mark" else {"made_here": ""}
        other |= {"paths_from": str(project.parent)} if what == "another paths_from" else {}
        (run / "record.json").write_text(json.dumps({**record, **other}))
    forget(project)
    for words in (["evaluate", str(run)],):
        assert exit_of(monkeypatch, *words) == 2
    with pytest.raises(ConfigError, match=r"names code to run.*--trust-code \(trust_code=True\)"):
        rlhf_env.load_run(run)
    with pytest.raises(ConfigError, match=r"--trust-code"):
        rlhf_env.evaluate_run(run)
    assert not (project / "ran").exists()


def test_code_that_changed_since_is_not_run(project: Path) -> None:
    (project / "polite.py").write_text(POLITE + "\n# changed\n")
    forget(project)
    with pytest.raises(ConfigError, match=r"polite.py is not what the run was trained with: put it back, or say"):
        rlhf_env.load_run(project / "run")
    assert not (project / "ran").exists()
    rlhf_env.load_run(project / "run", trust_code=True)
    assert (project / "ran").exists()


def test_whoever_trusts_it_says_so(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(project / "other state"))
    assert exit_of(monkeypatch, "evaluate", str(project / "run")) == 2
    assert exit_of(monkeypatch, "evaluate", str(project / "run"), "--trust-code") == 0


def test_a_home_that_cannot_be_written_costs_the_mark_and_not_the_run(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "a file"))
    assert mark_of("", "", {}) == ""
    rlhf_env.run(project / "toy.toml", project / "unmarked")
    with pytest.raises(ConfigError, match=r"nothing shows that you made it on this machine"):
        rlhf_env.load_run(project / "unmarked")


def test_the_key_is_its_users_alone(project: Path, tmp_path: Path) -> None:
    key = tmp_path / "state" / "rlhf-env" / "key"
    assert key.stat().st_mode & 0o077 == 0
    assert len(key.read_bytes()) == 32
    assert [file.name for file in key.parent.iterdir()] == ["key"]
    assert key.read_bytes().hex() not in (project / "run" / "record.json").read_text()


def test_an_export_and_its_card_run_no_code(project: Path, tmp_path: Path) -> None:
    toml = project / "toy.toml"
    toml.write_text(TOML.replace("prompts = 4", f'prompts = 4\nmetrics = ["{project}/measures.py:LOUD"]'))
    (project / "measures.py").write_text(
        "from pathlib import Path\nfrom rlhf_env import Metric\nPath(__file__).with_name('ran').touch()\n"
        'LOUD = Metric(name="loud", title="Loud", unit="share", meaning="loud", measure=lambda replies: 0.5)\n'
    )
    rlhf_env.run(toml, project / "measured")
    forget(project)
    export_run(project / "measured", tmp_path / "out")
    assert "loud" in (tmp_path / "out" / "README.md").read_text()
    assert not (project / "ran").exists()


def test_lists_and_schemas_run_no_code(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """(Nor does a report: tests/lab/test_own_code_in_runs.py.)"""
    forget(project)
    monkeypatch.chdir(project)
    for words in (["plugins"], ["schema"], ["train", "--help"]):
        assert exit_of(monkeypatch, *words) == 0
    Experiment.load(project / "toy.toml").to_toml()
    assert not (project / "ran").exists()
