"""`rlhf_env.run`: the run that the command makes, from Python, of whatever an experiment comes as."""

from __future__ import annotations

import copy
import io
import os
import signal
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from rich.console import Console

import rlhf_env
from rlhf_env.cli import main as cli
from rlhf_env.errors import ConfigError
from rlhf_env.lab.evaluation.health import Alert, Watch
from rlhf_env.lab.evaluation.runs import Run, load_run, run
from rlhf_env.learning.checkpoints import fingerprint
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.signals import Interrupted
from rlhf_env.learning.workplace import build

UPDATES = 6


@pytest.fixture
def wanted(toy: dict[str, Any]) -> dict[str, Any]:
    """An experiment of a few updates, evaluated twice on the way."""
    return {
        **toy,
        "name": "few",
        "agent": {"name": "grpo", "lr": 1e-2, "group_size": 4},
        "budget": {"updates": UPDATES},
        "evaluation": {"prompts": 8, "every": 3, "rewards": {"task": 1.0}},
        "checkpoint_every": 2,
        # In the order in which a TOML file has them: rewards are summed in it, and another sum has other last bits.
        "rewards": {"kl": 0.05, "diversity": 0.1, "length": {"target": 3}},
    }


@pytest.fixture
def file(wanted: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "few.toml"
    path.write_text(tomli_w.dumps(wanted), encoding="utf-8")
    return path


def numbers(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of metrics without what a clock says."""
    return [{k: v for k, v in row.items() if not k.startswith("time/") and k != "spent/seconds"} for row in rows]


def weights(of: Run) -> str:
    return fingerprint(of.policy.state_dict())


def same(one: Run, other: Run) -> None:
    """Bit for bit."""
    assert numbers(one.metrics) == numbers(other.metrics)
    assert weights(one) == weights(other)
    assert dict(one.evaluation.metrics) == dict(other.evaluation.metrics)
    assert list(one.evaluation.samples) == list(other.evaluation.samples)
    assert (one.reason, one.update) == (other.reason, other.update)


# ---------------------------------------------------------------- the same run, by every door


def test_it_is_the_run_that_the_command_makes(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["rlhf-env", "train", str(file), "--out", str(tmp_path / "by command")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    by_command = load_run(tmp_path / "by command")
    here = run(file, tmp_path / "from python")
    assert [row["update"] for row in here.metrics] == list(range(UPDATES + 1))
    assert [row["update"] for row in here.metrics if "eval/objective" in row] == [0, 3, 6]
    assert weights(here) != fingerprint(here.workplace.setup.reference.state_dict()), "it has learned"
    same(here, by_command)
    for name in ("experiment.toml", "evaluation.json"):
        one, other = ((tmp_path / folder / name).read_text() for folder in ("by command", "from python"))
        assert one == other, name
    same(load_run(tmp_path / "from python"), here)


def test_without_a_folder_the_run_is_the_same_and_leaves_nothing(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = run(file, tmp_path / "kept")
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setattr("tempfile.tempdir", str(empty))
    in_memory = run(file)
    assert not list(empty.iterdir())
    assert in_memory.folder is None
    same(in_memory, kept)
    assert capfd.readouterr() == ("", ""), "and says nothing"


def test_an_experiment_comes_in_five_forms(wanted: dict[str, Any], file: Path) -> None:
    experiment = Experiment.load(file)
    by_table = run(wanted)
    assert by_table.experiment == experiment
    for form in (experiment, str(file), file, build(experiment)):
        same(run(form), by_table)


def test_a_model_of_ones_own_is_run(wanted: dict[str, Any]) -> None:
    """What `build` made with another policy than the experiment names is trained as it is."""
    experiment = Experiment.from_table(wanted)
    mine = copy.deepcopy(build(experiment).setup.policy)
    with torch.no_grad():
        for parameter in mine.parameters():
            parameter.mul_(0.5)
    before = fingerprint(mine.state_dict())
    trained = run(build(experiment, policy=mine))
    assert fingerprint(trained.workplace.setup.reference.state_dict()) == before
    assert weights(trained) != before


def test_the_number_of_threads_is_as_it_was(wanted: dict[str, Any]) -> None:
    seen: list[int] = []
    torch.set_num_threads(2)
    try:
        run(wanted, threads=1, on_update=lambda _row, _spent: seen.append(torch.get_num_threads()))
        assert seen == [1] * UPDATES
        assert torch.get_num_threads() == 2
        with pytest.raises(ConfigError, match="threads must be a whole number"):
            run(wanted, threads=0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


# ---------------------------------------------------------------- interrupted, resumed, ended early


def test_an_interrupted_run_is_resumed_exactly(file: Path, tmp_path: Path) -> None:
    whole = run(file, tmp_path / "whole")
    shares: list[float] = []

    def stop(row: Mapping[str, Any], spent: float) -> None:
        shares.append(spent)
        if row["update"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="stopped after update 3, saved in"):
        run(file, tmp_path / "cut", on_update=stop)
    assert shares == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    cut = load_run(tmp_path / "cut")
    assert (cut.update, cut.reason, cut.spending.updates) == (3, None, 3)
    assert cut.evaluation.metrics["objective"] == whole.metrics[3]["eval/objective"], "evaluated as it stands"
    resumed = run(file, tmp_path / "cut", resume=True)
    same(resumed, whole)
    assert (list(resumed.lost), list(resumed.not_exact)) == ([], [])
    same(load_run(tmp_path / "cut"), whole)


def test_a_folder_that_holds_a_run_is_not_written_over(file: Path, tmp_path: Path) -> None:
    run(file, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"already holds a run: .*resume=True"):
        run(file, tmp_path / "run")
    with pytest.raises(ConfigError, match="pass `folder`"):
        run(file, resume=True)


def test_what_a_resume_has_lost_is_said(file: Path, tmp_path: Path) -> None:
    run(file, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-00000006" / "state.json").write_text("{}")
    again = run(file, tmp_path / "run", allow_partial=True)
    assert list(again.lost) == ["step-00000006: set aside; the updates after step-00000004 are repeated"]
    assert again.update == UPDATES


def test_an_evaluation_of_another_update_is_not_this_ones(file: Path, tmp_path: Path) -> None:
    """The newest checkpoint is damaged, so that the run is read back at an earlier one than was evaluated."""
    whole = run(file, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-00000006" / "state.json").write_text("{}")
    earlier = load_run(tmp_path / "run")
    assert (earlier.update, earlier.reason) == (4, None)
    assert earlier.evaluation.metrics["objective"] != whole.evaluation.metrics["objective"]


def test_it_stops_early_as_the_experiment_says(wanted: dict[str, Any]) -> None:
    evaluation = {**wanted["evaluation"], "every": 1}
    changes = {"agent": {**wanted["agent"], "lr": 1e-30}, "evaluation": evaluation, "rewards": {"task": 1.0}}
    stuck = run({**wanted, **changes, "patience": 2})
    assert stuck.reason is not None
    assert stuck.reason.startswith("no better objective in 2 evaluations")
    assert (stuck.update, len(stuck.metrics)) == (2, 3)
    far = run({**wanted, "max_kl": 1e-9})
    assert far.reason is not None
    assert "above max_kl" in far.reason
    assert far.update < UPDATES


def test_an_agent_that_does_not_train_is_evaluated_once(
    wanted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    texts = rlhf_env.Evaluator.texts
    monkeypatch.setattr(rlhf_env.Evaluator, "texts", lambda *given: (asked.append(1), texts(*given))[1])
    still = run({**wanted, "agent": {"name": "reference"}}, tmp_path / "still")
    assert (still.reason, still.update, len(still.metrics), len(asked)) == ("does not train", 0, 1, 1)
    assert still.evaluation.metrics["objective"] == still.metrics[0]["eval/objective"]
    same(load_run(tmp_path / "still"), still)


# ---------------------------------------------------------------- what goes wrong


@pytest.fixture
def alarmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run has one thing wrong with it, at its second update."""

    def look(self: Watch, row: Mapping[str, Any]) -> list[Alert]:
        new = [Alert("a thing", 2, "it is wrong", "Mend it")] if row["update"] == 2 else []
        self.found += new
        return new

    monkeypatch.setattr(Watch, "__call__", look)


def test_what_goes_wrong_in_a_run_is_a_python_warning_about_the_line_that_ran_it(
    wanted: dict[str, Any], alarmed: None
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        troubled = run(wanted)
    (warning,) = [it for it in caught if it.category is RuntimeWarning]
    assert str(warning.message) == "a thing, update 2: it is wrong. Mend it"
    assert warning.filename == __file__
    assert [it.name for it in troubled.warnings] == ["a thing"]
    assert "a thing" in repr(troubled)


def test_warnings_go_to_who_asks_for_them_and_stay_in_the_folder(
    wanted: dict[str, Any], alarmed: None, tmp_path: Path
) -> None:
    told: list[Alert] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        troubled = run(wanted, tmp_path / "run", on_warning=told.append)
    assert told == list(troubled.warnings) == list(load_run(tmp_path / "run").warnings)
    assert len(told) == 1


def test_a_console_shows_progress_and_warnings(wanted: dict[str, Any], alarmed: None, tmp_path: Path) -> None:
    shown, seen = io.StringIO(), []
    console = Console(file=shown, width=100, force_terminal=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        run(wanted, tmp_path / "run", resume=True, console=console, on_update=lambda row, _: seen.append(row["update"]))
    said = " ".join(shown.getvalue().split())
    assert "a thing, update 2: it is wrong. Mend it" in said
    assert "Training" in said
    assert "from the start" in said
    assert seen == list(range(1, UPDATES + 1))


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("updates = 6", "updates = 0", "updates = 0", "updates must be at least 1, got 0"),
        ('name = "grpo"', 'name = "grop"', 'name = "grop"', "unknown agent 'grop': did you mean 'grpo'?"),
        ("group_size = 4", "group_sise = 4", "group_sise = 4", "did you mean 'group_size'?"),
    ],
)
def test_a_wrong_setting_of_a_file_is_one_line_with_its_place(
    file: Path, old: str, new: str, line: str, said: str
) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    text = text.replace(old, new)
    file.write_text(text, encoding="utf-8")
    number = text.splitlines().index(line) + 1
    with pytest.raises(ConfigError) as caught:
        run(file)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{file}, line {number}")
    assert said in problem
    assert "\n" not in problem


def test_a_wrong_setting_of_a_table_is_one_line(wanted: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run({**wanted, "budget": {"updates": 0}, "sed": 3}, tmp_path / "run")
    assert len(caught.value.problems) == 2
    assert all("\n" not in problem for problem in caught.value.problems)
    with pytest.raises(ConfigError, match="unknown agent 'grop'"):
        run({**wanted, "agent": {"name": "grop"}}, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"no\.toml: No such file"):
        run(tmp_path / "no.toml")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- what is left in one's hands


def test_a_run_hands_over_its_policy_and_its_agent(wanted: dict[str, Any], tmp_path: Path) -> None:
    trained = run(wanted, tmp_path / "run")
    for finished in (trained, load_run(tmp_path / "run")):
        env = finished.workplace.env
        observation, _ = env.reset(seed=7)
        written = finished.policy.write(observation, env.max_new_tokens)
        texts = [
            env.tokenizer.decode([t for t in row if t < env.tokenizer.vocab_size and t != env.tokenizer.end_id])
            for row in written.tokens.tolist()
        ]
        assert len(texts) == 8
        assert set("".join(texts)) <= set("ab=")
        assert any(texts)
        replies = rlhf_env.collect(env, finished.agent, seed=1).episodes
        assert all(reply.response_ids.size for reply in replies)
        assert finished.spending.episodes == UPDATES * 8
    assert repr(trained) == f"Run('few', grpo, seed 0: ended: budget, update 6; {tmp_path / 'run'})"
