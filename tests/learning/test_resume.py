"""Exact resume: cut anywhere and gone on with, a run ends in the same bits as one that was left alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_env import plugins
from rlhf_env.cli import main as cli
from rlhf_env.errors import ConfigError, DataError, RewardError, RunFailed
from rlhf_env.lab.evaluation.evaluator import Evaluator
from rlhf_env.lab.evaluation.runs import run
from rlhf_env.learning import checkpoints
from rlhf_env.learning.experiment import Experiment, Workplace, build
from rlhf_env.learning.loop import Row, train
from rlhf_env.learning.rollout import Rollout, demonstrations, preference_pairs
from rlhf_env.learning.run_folder import RunFolder, read_metrics
from rlhf_env.learning.sources import DataSource, Source
from rlhf_env.policies import tiny_language_model
from rlhf_env.testing import make_episode
from rlhf_env.types import Episode, Float

UPDATES = 4


# ---------------------------------------------------------------- one run, and what it leaves


class Killed(BaseException):
    """Stands for kill -9 between two instructions: nothing in the code may catch it."""


@dataclass
class Recorder:
    """A source that remembers which prompts and tokens it handed out."""

    source: Source
    seen: list[Any] = field(default_factory=list)

    def next(self, agent: Any, /) -> Rollout:
        rollout = self.source.next(agent)
        self.seen.append([(e.prompt.id, e.ids.tobytes()) for e in rollout.episodes])
        return rollout

    def state_dict(self) -> dict[str, Any]:
        return self.source.state_dict()

    def load_state_dict(self, state: Any, /) -> None:
        self.source.load_state_dict(state)


MakeSource = Callable[[Workplace], Source]


def in_the_environment(workplace: Workplace) -> Source:
    return workplace.source


def from_demonstrations(workplace: Workplace) -> Source:
    texts = ["a=", "b=", "ab=", "ba=", "aa="]
    shown = [make_episode(text, text[:-1], workplace.setup.tokenizer) for text in texts]
    pad = workplace.setup.tokenizer.pad_id
    return DataSource(len(shown), 2, lambda rows: demonstrations([shown[i] for i in rows], pad_id=pad), seed=5)


def from_pairs(workplace: Workplace) -> Source:
    tokenizer, texts = workplace.setup.tokenizer, ["a=", "b=", "ab="]
    good, bad = ([make_episode(text, said, tokenizer) for text in texts] for said in ("a", "bb"))
    pad = tokenizer.pad_id
    return DataSource(
        len(texts),
        2,
        lambda rows: preference_pairs([good[i] for i in rows], [bad[i] for i in rows], pad_id=pad),
        seed=5,
    )


@dataclass
class Left:
    """What a run left behind: everything it depends on, what it logged, what it consumed."""

    state: dict[str, Any]
    rows: list[Row]
    seen: list[Any]


def run_once(
    experiment: Experiment,
    folder: Path,
    make_source: MakeSource = in_the_environment,
    *,
    kill_after: int | None = None,
    dropout: float = 0.0,
    evaluated: bool = True,
    allow_partial: bool = False,
    **how: Any,
) -> Left:
    """A process's life: build everything anew, go on if there is something to go on with, train."""
    policy = None
    if dropout:
        policy = tiny_language_model(vocab_size=5, end_id=3, pad_id=4, dropout=dropout, dtype=torch.float32)
    workplace = build(experiment, policy=policy)
    recorder = Recorder(make_source(workplace))
    evaluator = Evaluator.of(workplace)

    def kill(row: Row, _share: float) -> None:
        if row["update"] == kill_after:
            raise Killed

    try:
        with RunFolder(
            folder, experiment.to_toml(), resume=True, allow_partial=allow_partial, tensorboard=False
        ) as run:
            train(
                workplace.agent,
                recorder,
                experiment.budget,
                spending=workplace.setup.spending,
                engine=workplace.setup.engine,
                run=run,
                resume=True,
                **{"checkpoint_every": 1, "on_update": kill, **how},
                evaluate=lambda: dict(evaluator().metrics),
                evaluate_every=2 if evaluated else 0,
            )
    except Killed:
        pass
    spending = {name: value for name, value in workplace.setup.spending.as_dict().items() if name != "seconds"}
    state = {"agent": workplace.agent.state_dict(), "source": recorder.state_dict(), "spending": spending}
    return Left(state, [_timeless(row) for row in read_metrics(folder)], recorder.seen)


def _timeless(row: Row) -> Row:
    return {name: value for name, value in row.items() if not name.startswith("time/") and name != "spent/seconds"}


def assert_same_bits(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same_bits(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, np.ndarray):
        assert one.tobytes() == other.tobytes(), where
    else:
        assert one == other, where


# ---------------------------------------------------------------- cut after every update

CASES: dict[str, tuple[str, str, MakeSource, dict[str, Any]]] = {
    "ppo": ("ppo", "response", in_the_environment, {}),
    "ppo, token by token": ("ppo", "token", in_the_environment, {}),
    "ppo, separate value model": ("ppo", "response", in_the_environment, {"value_model": "separate"}),
    "reinforce": ("reinforce", "response", in_the_environment, {}),
    "rloo, token by token": ("rloo", "token", in_the_environment, {}),
    "grpo": ("grpo", "response", in_the_environment, {}),
    "rejection": ("rejection", "response", in_the_environment, {}),
    "grpo, token by token": ("grpo", "token", in_the_environment, {}),
    "options": ("options", "response", in_the_environment, {}),
    "curriculum around ppo": ("curriculum", "response", in_the_environment, {}),
    "dpo, online": ("dpo", "response", in_the_environment, {}),
    "dpo, stored pairs": ("dpo", "response", from_pairs, {}),
    "sft, demonstrations": ("sft", "response", from_demonstrations, {}),
    "sft, its own texts": ("sft", "response", in_the_environment, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_cut_after_every_update_a_run_ends_in_the_same_bits(case: str, toy: Any, tmp_path: Path) -> None:
    """F13, N40. The KL part moves its coefficient, evaluations come between updates, sft has dropout."""
    agent, view, source, settings = CASES[case]
    experiment = toy(agent, updates=UPDATES, view=view)
    experiment = replace(experiment, agent={**experiment.agent, **settings})
    how: dict[str, Any] = {"dropout": 0.1 if agent == "sft" else 0.0}
    uncut = run_once(experiment, tmp_path / "uncut", source, **how)
    assert [row["update"] for row in uncut.rows] == [1, 2, 3, 4]
    assert len(uncut.seen) == UPDATES
    for cut in range(1, UPDATES + 1):
        folder = tmp_path / f"cut-{cut}"
        # The row of the update is logged, its checkpoint is not written: the update is done again.
        first = run_once(experiment, folder, source, kill_after=cut, **how)
        assert first.seen == uncut.seen[:cut]
        resumed = run_once(experiment, folder, source, **how)
        assert resumed.seen == uncut.seen[cut - 1 :], f"cut after update {cut}"
        assert_same_bits(resumed.state, uncut.state, f"cut after update {cut}")
        assert resumed.rows == uncut.rows, f"cut after update {cut}"


def test_what_the_test_above_compares_is_alive(toy: Any, tmp_path: Path) -> None:
    """Parameters, moments, streams and the reward's memory all change from update to update."""
    one, two = (run_once(toy("ppo", updates=n), tmp_path / str(n)).state for n in (1, 2))
    assert one["source"]["rewards"]["kl"]["coefficient"] != two["source"]["rewards"]["kl"]["coefficient"] != 1.0
    assert one["source"]["place"] < two["source"]["place"]
    assert one["agent"]["order"] != two["agent"]["order"]
    assert one["agent"]["sampling"] != two["agent"]["sampling"]
    weight = next(iter(one["agent"]["policy"]))
    assert not torch.equal(one["agent"]["policy"][weight], two["agent"]["policy"][weight])
    assert not torch.equal(one["agent"]["optimizer"]["0"]["exp_avg"], two["agent"]["optimizer"]["0"]["exp_avg"])


def test_checkpoints_far_apart_are_as_exact(toy: Any, tmp_path: Path) -> None:
    experiment = toy("ppo", updates=5)
    uncut = run_once(experiment, tmp_path / "uncut", checkpoint_every=2)
    run_once(experiment, tmp_path / "cut", kill_after=3, checkpoint_every=2)
    resumed = run_once(experiment, tmp_path / "cut", checkpoint_every=2)
    assert len(resumed.seen) == 3
    assert_same_bits(resumed.state, uncut.state)
    assert resumed.rows == uncut.rows


def test_evaluating_changes_nothing(toy: Any, tmp_path: Path) -> None:
    with_it = run_once(toy("ppo"), tmp_path / "with")
    without = run_once(toy("ppo"), tmp_path / "without", evaluated=False)
    assert_same_bits(with_it.state, without.state)
    assert with_it.seen == without.seen


def test_a_finished_run_is_left_as_it_is(toy: Any, tmp_path: Path) -> None:
    first = run_once(toy("ppo"), tmp_path)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "checkpoints").rglob("*")}
    second = run_once(toy("ppo"), tmp_path)
    assert second.seen == []
    assert second.rows == first.rows
    assert_same_bits(second.state, first.state)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "checkpoints").rglob("*")} == before


def test_a_run_that_stopped_for_a_reason_has_stopped(toy: Any, tmp_path: Path) -> None:
    """Killed between the last checkpoint and the result's file, a run must not train one more update."""

    def enough(row: Row) -> str | None:
        return "enough" if row["update"] == 2 else None

    first = run_once(toy("ppo"), tmp_path, stop_when=enough)
    again = run_once(toy("ppo"), tmp_path, stop_when=enough)
    assert len(first.seen) == 2
    assert again.seen == []
    assert_same_bits(again.state, first.state)


def test_the_newest_checkpoint_damaged_the_one_before_is_offered(toy: Any, tmp_path: Path) -> None:
    """Refused by name; taken where that is allowed, and what was damaged is kept beside."""
    experiment = toy("ppo")
    uncut = run_once(experiment, tmp_path)
    tensors = tmp_path / "checkpoints" / "step-00000003" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"step-00000003/tensors\.safetensors is damaged") as refused:
        run_once(experiment, tmp_path)
    assert refused.value.problems[-1].startswith("step-00000002 is whole: --allow-partial resumes from there")
    resumed = run_once(experiment, tmp_path, allow_partial=True)
    assert len(resumed.seen) == 1
    assert_same_bits(resumed.state, uncut.state)
    assert not checkpoints.problems(tensors.parent)
    aside = [path.name for path in (tmp_path / "checkpoints").iterdir() if "set-aside" in path.name]
    assert [name.partition("-set")[0].partition(".set")[0] for name in aside] == ["step-00000003"]


# ---------------------------------------------------------------- faults of a reward


@dataclass
class Faulty:
    """The number of symbols said; from the call `at` on it breaks its contract as `how` says, until it is healed."""

    at: int | None = None
    how: str = "nan"
    calls: int = 0

    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        self.calls += 1
        scores: Float = np.array([float(len(episode.response)) for episode in episodes])
        if self.at is None or self.calls < self.at:
            return scores
        if self.how == "raises":
            raise ZeroDivisionError("division by zero")
        if self.how == "nan":
            scores[1] = np.nan
        return scores[:-1] if self.how == "wrong length" else scores


@pytest.fixture
def faulty() -> Iterator[Faulty]:
    """A reward known by the name "faulty", the same object for every run of the test."""
    reward = Faulty()
    plugins.register_reward("faulty", lambda completions: reward([_said(text) for text in completions]).tolist())
    yield reward
    plugins.host()._entries.pop(("reward", "faulty"))


def _said(text: str) -> Episode:
    return make_episode("?", text)


FAULTS = {
    "nan": r"reward 'faulty' returned nan for episode 1 of 0\.\.7",
    "wrong length": r"reward 'faulty' returned shape \(\d,\), expected \(\d,\)",
    "raises": r"reward 'faulty' raised ZeroDivisionError: division by zero",
}


@pytest.mark.parametrize("how", FAULTS)
@pytest.mark.parametrize("agent", ["ppo", "grpo"])
def test_a_reward_that_breaks_loses_nothing(how: str, agent: str, toy: Any, faulty: Faulty, tmp_path: Path) -> None:
    """F17, F18, F20: the run is saved as of its last update, and a healed one goes on as if nothing had been."""
    experiment = toy(agent, updates=4, rewards={"faulty": 1.0, "kl": {"weight": 0.1, "target": 0.01}})
    uncut = run_once(experiment, tmp_path / "uncut", evaluated=False, checkpoint_every=0)
    faulty.at, faulty.how, faulty.calls = 3, how, 0
    with pytest.raises(RewardError, match=FAULTS[how]):
        run_once(experiment, tmp_path / "broken", evaluated=False, checkpoint_every=0)
    saved = checkpoints.latest(tmp_path / "broken" / "checkpoints")
    assert saved is not None
    assert saved.name == "step-00000002"
    faulty.at = None
    resumed = run_once(experiment, tmp_path / "broken", evaluated=False, checkpoint_every=0)
    assert resumed.seen == uncut.seen[2:]
    assert_same_bits(resumed.state, uncut.state)
    assert resumed.rows == uncut.rows


def test_a_reward_that_breaks_at_once_leaves_a_run_to_go_on_with(toy: Any, faulty: Faulty, tmp_path: Path) -> None:
    experiment = toy("ppo", rewards={"faulty": 1.0})
    uncut = run_once(experiment, tmp_path / "uncut", evaluated=False)
    faulty.at, faulty.calls = 1, 0
    with pytest.raises(RewardError):
        run_once(experiment, tmp_path / "broken", evaluated=False)
    faulty.at = None
    assert_same_bits(run_once(experiment, tmp_path / "broken", evaluated=False).state, uncut.state)


def test_a_gold_reward_that_breaks_costs_one_evaluation(toy: Any, faulty: Faulty, tmp_path: Path) -> None:
    experiment = toy("ppo", updates=3)
    experiment = replace(experiment, evaluation=replace(experiment.evaluation, rewards={"faulty": 1.0}))
    uncut = run_once(experiment, tmp_path / "uncut", checkpoint_every=0)
    faulty.at, faulty.calls = 1, 0
    with pytest.raises(RewardError, match="faulty"):
        run_once(experiment, tmp_path / "broken", checkpoint_every=0)
    faulty.at = None
    resumed = run_once(experiment, tmp_path / "broken", checkpoint_every=0)
    assert len(resumed.seen) == 1
    assert_same_bits(resumed.state, uncut.state)
    assert [row["update"] for row in resumed.rows] == [1, 2, 3]
    assert resumed.rows[0::2] == uncut.rows[0::2]


def test_a_prompt_that_does_not_fit_loses_nothing(toy: Any, tmp_path: Path) -> None:
    """One of five prompts is too long for the environment: the run stops there, named, and saved."""
    prompts = ["a=", "b=", "ab=", "aaaa=", "bb="]
    experiment = toy(
        "reference", updates=9, task={"name": "prompts", "prompts": prompts}, rewards={"length": {"target": 2}}
    )
    experiment = replace(experiment, environment=replace(experiment.environment, num_envs=1))
    with pytest.raises(DataError, match=r"prompts/3.*5 tokens.*max_prompt_tokens"):
        run_once(experiment, tmp_path, evaluated=False, checkpoint_every=0)
    saved = checkpoints.latest(tmp_path / "checkpoints")
    assert saved is not None
    assert int(saved.name[-1]) == len(read_metrics(tmp_path)) < 5


def test_a_policy_that_diverged_does_not_overwrite_its_checkpoints(toy: Any, tmp_path: Path) -> None:
    experiment = toy("ppo", updates=5)

    def poison(row: Row, _share: float) -> None:
        if row["update"] == 3:
            with torch.no_grad():
                next(workplace.setup.policy.parameters()).fill_(float("nan"))

    workplace = build(experiment)
    with (
        RunFolder(tmp_path, experiment.to_toml(), tensorboard=False) as run,
        pytest.raises(RunFailed, match="diverged"),
    ):
        train(
            workplace.agent,
            workplace.source,
            experiment.budget,
            spending=workplace.setup.spending,
            engine=workplace.setup.engine,
            run=run,
            checkpoint_every=2,
            on_update=poison,
        )
    saved = checkpoints.latest(tmp_path / "checkpoints")
    assert saved is not None
    assert saved.name == "step-00000002"


def test_max_kl_ends_a_run_and_the_run_stays_ended(toy: Any, tmp_path: Path) -> None:
    experiment = replace(toy("ppo", updates=50, rewards={"task": 1.0, "kl": 0.01}), max_kl=0.5)
    experiment = replace(experiment, agent={**experiment.agent, "lr": 0.05})

    ended = run(experiment, tmp_path, resume=True)
    rows = read_metrics(tmp_path)
    assert 0 < ended.update < 50
    assert -rows[-1]["rollout/part/kl"] > 0.5
    assert all(-row["rollout/part/kl"] <= 0.5 for row in rows[1:-1])
    assert ended.reason == f"kl {-rows[-1]['rollout/part/kl']:.2f} above max_kl 0.5"
    assert rows[0]["update"] == 0
    assert {name for name in rows[0] if not name.startswith("eval/")} == {"update", "spent/generated_tokens"}
    assert run(experiment, tmp_path, resume=True).reason == ended.reason
    assert read_metrics(tmp_path) == rows


# ---------------------------------------------------------------- the command, killed for real


@pytest.fixture
def slow() -> Iterator[None]:
    """A reward that takes its time, so that a signal finds a run under way."""

    def slow(completions: list[str]) -> list[float]:
        time.sleep(0.03)
        return [float(len(text)) for text in completions]

    plugins.register_reward("slow", slow)
    yield
    plugins.host()._entries.pop(("reward", "slow"))


def _child(arguments: Sequence[str], errors: Path) -> None:
    with errors.open("w") as sys.stderr, Path(os.devnull).open("w") as sys.stdout:
        sys.argv = ["rlhf-env", *arguments]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        cli.main()


def command(*arguments: str, errors: Path) -> Any:
    """`rlhf-env ...` in a process of its own, made by forking: the imports are done."""
    process = multiprocessing.get_context("fork").Process(target=_child, args=(arguments, errors))
    process.start()
    return process


def wait_for_rows(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if len(read_metrics(folder)) >= count:
            return
        time.sleep(0.005)
    raise AssertionError(f"{folder} never got {count} rows")


def weights(folder: Path) -> tuple[str, str]:
    """Name and digest of the newest checkpoint's tensors: parameters and moments."""
    newest = checkpoints.latest(folder / "checkpoints")
    assert newest is not None
    _, manifest = checkpoints.load(newest)
    return newest.name, manifest["files"]["tensors.safetensors"]["sha256"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_killed_command_is_gone_on_with_exactly(number: signal.Signals, toy: Any, slow: None, tmp_path: Path) -> None:
    """F9, F10, F12."""
    file, folder, errors = tmp_path / "toy.toml", tmp_path / "run", tmp_path / "errors"
    experiment = replace(toy("grpo", updates=14, rewards={"slow": 1.0}), checkpoint_every=3)
    file.write_text(experiment.to_toml())
    whole = command("train", str(file), "--out", str(tmp_path / "whole"), errors=errors)
    whole.join()
    assert (whole.exitcode, errors.read_text()) == (0, "")

    process = command("train", str(file), "--out", str(folder), errors=errors)
    wait_for_rows(folder, 6)  # the evaluation at update 0, and five updates
    os.kill(process.pid, number)
    process.join(600)
    said = errors.read_text()
    updates = len(read_metrics(folder)) - 1
    assert updates < 14
    if number == signal.SIGKILL:
        assert process.exitcode == -number
    else:
        assert process.exitcode == 128 + number
        again = f"rlhf-env train {file} --out {folder} --resume"
        assert said == f"rlhf-env: stopped after update {updates}, saved in {folder}; resume with: {again}\n"
        assert weights(folder)[0] == f"step-{updates:08d}"

    refused = command("train", str(file), "--out", str(folder), errors=errors)
    refused.join()
    assert refused.exitcode == 2
    assert errors.read_text().count("\n") == 1
    assert "--resume" in errors.read_text()

    resumed = command("train", str(file), "--out", str(folder), "--resume", errors=errors)
    resumed.join()
    assert (resumed.exitcode, errors.read_text()) == (0, "")
    assert weights(folder) == weights(tmp_path / "whole")
    assert [_timeless(row) for row in read_metrics(folder)] == [
        _timeless(row) for row in read_metrics(tmp_path / "whole")
    ]
    assert (folder / "evaluation.json").read_text() == (tmp_path / "whole" / "evaluation.json").read_text()


def test_ctrl_c_before_a_run_is_under_way_is_status_130(toy: Any, slow: None, tmp_path: Path, monkeypatch: Any) -> None:
    """While models load there is nothing to save: one line, no traceback."""
    file, errors = tmp_path / "toy.toml", tmp_path / "errors"
    file.write_text(toy("grpo").to_toml())

    def interrupted(_experiment: Experiment) -> Workplace:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(600)
        raise AssertionError("not reached")

    monkeypatch.setattr("rlhf_env.lab.evaluation.runs.build", interrupted)
    process = command("train", str(file), "--out", str(tmp_path / "run"), errors=errors)
    process.join(600)
    assert (process.exitcode, errors.read_text()) == (130, "rlhf-env: stopped\n")


def test_another_experiment_is_not_resumed(toy: Any, tmp_path: Path) -> None:
    """F8: the fields that differ are named."""
    run_once(toy("ppo"), tmp_path)
    with pytest.raises(ConfigError, match=r"another agent\.lr: was 0\.01, now 0\.02") as refused:
        run_once(replace(toy("ppo"), agent={**toy("ppo").agent, "lr": 0.02}), tmp_path)
    assert len(refused.value.problems) == 1
