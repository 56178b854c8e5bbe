"""`collect` lays out what an agent decides, whatever the view; `train` spends a budget and says what happened."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_env.errors import ConfigError, RlhfEnvError, RunFailed
from rlhf_env.lab.evaluation.runs import run as run_it
from rlhf_env.learning import loop
from rlhf_env.learning.agent import Around, Decision
from rlhf_env.learning.collect import collect
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.loop import train
from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.run_folder import RunFolder
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.learning.schedules import multiplier
from rlhf_env.learning.signals import Interrupted
from rlhf_env.learning.spending import Budget
from rlhf_env.learning.stopping import Patience
from rlhf_env.learning.workplace import build

from .scripted import END, LIMIT, TEXTS, Scripted, Spends, echo_env


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("stated", [True, False], ids=["action with probs", "plain action"])
def test_the_same_decisions_give_the_same_rollout_in_every_view(k: int, stated: bool) -> None:
    whole, view = (collect(echo_env(length, stated=stated), Scripted(TEXTS, length), seed=7) for length in (LIMIT, k))
    for name in ("tokens", "mask", "actions", "group", "truncated"):
        assert torch.equal(getattr(whole, name), getattr(view, name)), name
    # With probs in the action, the logprob passes through exp and log in the *episode* alone, not in the rollout.
    assert torch.equal(whole.logprobs, view.logprobs)
    assert torch.equal(whole.extras["value"], view.extras["value"])
    assert [score.raw for score in whole.scores] == [score.raw for score in view.scores]
    assert list(whole.episodes) == list(view.episodes)


class Mine:
    """An agent that says what it is told to."""

    def __init__(self, begins: Any = None, acts: Any = None) -> None:
        self.begins, self.acts = begins, acts

    def begin(self) -> Any:
        return self.begins

    def act(self, _observation: Any, /) -> Any:
        return self.acts


class Wrapper(Around):
    def __init__(self, agent: Any) -> None:
        self.agent = agent


TOKENS = np.zeros(4, dtype=np.int64)
ONE_EACH = "one number for each token of each row is needed"


@pytest.mark.parametrize(
    ("begins", "acts", "says"),
    [
        (None, None, r"begin\(\) gave None: a dict of reset options by name is needed, or \{\}"),
        ([1], None, r"begin\(\) gave a list: a dict"),
        ({1: 2}, None, r"begin\(\) gave dict whose keys are no strings"),
        ({}, None, r"act\(\) gave None: a rlhf_env\.Decision\(tokens, logprobs\) is needed"),
        ({}, TOKENS, r"act\(\) gave a ndarray: a rlhf_env\.Decision"),
        ({}, Decision(None, -1.0 * TOKENS), r"act\(\) gave None as tokens: numbers are needed"),  # type: ignore[arg-type]
        ({}, Decision(TOKENS, None), r"act\(\) gave None as logprobs: numbers are needed"),  # type: ignore[arg-type]
        ({}, Decision(TOKENS, -np.ones(3)), rf"act\(\) gave logprobs of shape \(3,\) for 4 rows and .*: {ONE_EACH}"),
        ({}, Decision(TOKENS[:3], -np.ones(3)), r"act\(\) gave tokens of shape \(3,\) for 4 rows"),
        ({}, Decision(TOKENS, -np.ones(4), None), r"act\(\) gave None as extras: a dict of arrays"),  # type: ignore[arg-type]
        ({}, Decision(TOKENS, -np.ones(4), {"value": "x"}), r"act\(\) gave .* as value: numbers are needed"),  # type: ignore[dict-item]
        ({}, Decision([[1], [1, 2]], -np.ones(4)), r"act\(\) gave tokens that are no array: ValueError"),  # type: ignore[arg-type]
        (
            {},
            Decision(TOKENS, torch.zeros(4, requires_grad=True)),
            r"act\(\) gave logprobs that are no array: .*detach",
        ),  # type: ignore[arg-type]
        (
            {},
            Decision(TOKENS + 9, -np.ones(4)),
            "the environment refuses what act.. gave: token id 9 in row 0 is outside",
        ),
        ({}, Decision(TOKENS + 0.5, -np.ones(4)), "the environment refuses what act.. gave: token ids are integers"),
    ],
    ids=[
        *("begin None", "begin list", "begin keys", "act None", "act array", "tokens None", "logprobs None"),
        *("logprobs short", "tokens short", "extras None", "extra str", "ragged", "gradient", "outside", "floats"),
    ],
)
def test_what_an_agent_says_wrongly_is_its_fault_by_name(begins: Any, acts: Any, says: str) -> None:
    agent: Any = Mine(begins, acts)
    for asked in (agent, Wrapper(agent)):
        with pytest.raises(RunFailed, match=f"^the agent Mine: {says}") as failed:
            collect(echo_env(1, stated=False), asked, seed=7)
        assert "\n" not in str(failed.value)


@pytest.mark.parametrize("k", [1, 2, 3, LIMIT])
def test_logprobs_and_extras_lie_on_the_tokens_they_speak_of(k: int) -> None:
    rollout = collect(echo_env(k), Scripted(TEXTS, k), seed=7)
    lengths = [3, 1, 5, 5]
    assert [episode.finish_reason for episode in rollout.episodes] == ["stop", "stop", "length", "stop"]
    assert rollout.actions.sum(dim=1).tolist() == lengths
    assert rollout.stated
    for row, length in enumerate(lengths):
        said = row + torch.arange(length, dtype=torch.float64) / 10
        assert torch.equal(rollout.logprobs[row][rollout.actions[row]], -1.0 - said)
        assert torch.equal(rollout.extras["value"][row][rollout.actions[row]], 100.0 + said)
        assert not rollout.logprobs[row][~rollout.actions[row]].any()
        assert not rollout.extras["value"][row][~rollout.actions[row]].any()


def test_options_reach_the_environment_and_a_callers_win() -> None:
    agent = Scripted([[END]] * 4, LIMIT)
    agent.begun = {"group_size": 2, "level": 3}
    rollout = collect(echo_env(LIMIT), agent, seed=0)
    assert rollout.group.tolist() == [0, 0, 1, 1]
    assert {len(episode.prompt_ids) for episode in rollout.episodes} == {4}
    env = echo_env(LIMIT)
    rollout = collect(env, agent, {"level": 2, "indices": [5, 6]}, seed=0)
    asked = [env.task.prompt(index, {"level": 2}) for index in (5, 5, 6, 6)]
    assert [episode.prompt for episode in rollout.episodes] == asked


@pytest.mark.parametrize("k", [2, LIMIT])
def test_an_agent_that_writes_nothing_is_stopped(k: int) -> None:
    with pytest.raises(RunFailed, match="wrote nothing"):
        collect(echo_env(k), Scripted([[0, END], [], [], []], k), seed=0)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_an_environment_that_resets_itself_is_refused(mode: str) -> None:
    with pytest.raises(ConfigError, match="Disabled"):
        collect(echo_env(LIMIT, autoreset_mode=mode), Scripted(TEXTS, LIMIT))


def test_a_row_cut_from_outside_is_truncated_and_not_scored() -> None:
    rollout = collect(echo_env(1, max_episode_steps=2), Scripted(TEXTS, 1), seed=0)
    assert rollout.truncated.tolist() == [True, False, True, True]
    assert rollout.scored.tolist() == [False, True, False, False]
    assert rollout.extras["value"][2][rollout.actions[2]].tolist() == [102.0, 102.1]


@pytest.mark.parametrize(
    ("budget", "updates"),
    [
        ({"updates": 3}, 3),
        ({"episodes": 12}, 3),
        ({"episodes": 13}, 4),
        ({"generated_tokens": 29}, 3),
        ({"reward_calls": 17}, 3),
        ({"preference_labels": 7}, 3),
        ({"gradient_steps": 5}, 3),
        ({"episodes": 100, "gradient_steps": 4}, 2),
        # Of several, in their own units: 4 episodes, 10 tokens, 8 reward calls, 3 labels, 2 steps an update.
        ({"episodes": 17, "generated_tokens": 31, "reward_calls": 100, "preference_labels": 100}, 4),
        ({"updates": 9, "reward_calls": 33, "preference_labels": 13, "gradient_steps": 11}, 5),
        ({"updates": 2, "seconds": 1e9, "generated_tokens": 1000}, 2),
    ],
    ids=str,
)
def test_the_first_limit_reached_ends_the_run(budget: dict[str, int], updates: int) -> None:
    run = Spends()
    training = run.train(Budget(**budget))
    assert training.reason == "budget"
    assert run.spending.updates == updates
    assert [row["update"] for row in training.rows] == list(range(1, updates + 1))


def test_seconds_are_those_of_collecting_and_updating(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(loop.time, "perf_counter", lambda: next(clock))
    run = Spends()
    run.train(Budget(seconds=5), evaluate=lambda: {"slow": float(sum(next(clock) for _ in range(9)))}, evaluate_every=1)
    assert (run.spending.updates, run.spending.seconds) == (3, 6)


@pytest.mark.parametrize("limits", [{}, {"updates": 0}, {"episodes": -1}, {"seconds": math.nan}])
def test_a_budget_without_a_usable_limit_is_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="|".join(limits) or "a budget needs at least one limit"):
        Budget(**limits)


def test_a_budget_nobody_spends_ends_the_run() -> None:
    run = Spends()
    run.update = lambda _rollout: {}  # type: ignore[method-assign]
    with pytest.raises(RunFailed, match="preference_labels"):
        run.train(Budget(preference_labels=10))
    assert run.spending.updates < 1000


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ({"schedule": "constant"}, [1.0, 1.0, 1.0, 1.0]),
        ({"schedule": "linear"}, [1.0, 0.75, 0.5, 0.25]),
        ({"schedule": "linear", "floor": 0.2}, [1.0, 0.8, 0.6, 0.4]),
        ({"schedule": "cosine"}, [1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
        ({"schedule": "constant", "warmup": 0.5}, [0.1, 0.55, 1.0, 1.0]),
        ({"schedule": "linear", "warmup": 0.5}, [0.1, 0.55, 1.0, 0.5]),
    ],
    ids=str,
)
def test_the_learning_rate_follows_the_share_of_the_budget_spent(schedule: Any, rates: list[float]) -> None:
    run = Spends(Optimization(lr=0.1, max_grad_norm=0.0, **schedule))
    places = []
    training = run.train(
        Budget(episodes=16), on_update=lambda _row, share: places.append((run.parameter.item(), share))
    )
    assert [row["train/lr"] for row in training.rows] == pytest.approx([0.1 * rate for rate in rates], rel=1e-12)
    assert [share for _, share in places] == [0.25, 0.5, 0.75, 1.0]
    # AdamW moves a parameter of constant gradient by one learning rate a step, two steps an update.
    walked = np.diff([0.0, *(place for place, _ in places)])
    assert walked == pytest.approx([-2 * 0.1 * rate for rate in rates], rel=1e-5)


def test_a_row_says_what_was_rolled_out_learned_and_spent(toy: Any) -> None:
    experiment = replace(toy("ppo", updates=2), seed=3)
    workplace = build(experiment)
    seen: list[Rollout] = []
    update = workplace.agent.update
    workplace.agent.update = lambda rollout: seen.append(rollout) or update(rollout)  # type: ignore[func-returns-value]
    training = train(
        workplace.agent,
        workplace.source,
        experiment.budget,
        spending=workplace.setup.spending,
        engine=workplace.setup.engine,
    )
    row, rollout = training.rows[1], seen[1]
    totals = np.array([score.total for score in rollout.scores])
    assert row["rollout/reward"] == pytest.approx(totals.mean(), abs=1e-12)
    assert row["rollout/reward_std"] == pytest.approx(totals.std(), abs=1e-12)
    for part in ("task", "kl"):
        assert row[f"rollout/part/{part}"] == pytest.approx(np.mean([s.raw[part] for s in rollout.scores]), abs=1e-12)
    assert row["rollout/length"] == float(rollout.actions.sum(dim=1).double().mean())
    assert row["rollout/cut_at_limit"] == np.mean([e.finish_reason == "length" for e in rollout.episodes])
    assert row["spent/episodes"] == 16
    assert row["spent/generated_tokens"] == sum(int(r.actions.sum()) for r in seen)
    assert row["spent/gradient_steps"] == 2 * row["train/gradient_steps"]
    assert 0.0 < row["time/collect_share"] < 1.0
    assert 0.0 < row["time/processor_seconds"] < 60.0
    took = row["spent/seconds"] - training.rows[0]["spent/seconds"]
    assert row["time/tokens_per_second"] == pytest.approx(int(rollout.actions.sum()) / took, rel=1e-6)
    drawn = np.concatenate([episode.logprobs for episode in rollout.episodes])
    assert row["rollout/entropy"] == pytest.approx(-drawn.mean(), abs=1e-12)
    coefficient = -row["rollout/part/kl"] / row["rollout/kl"]
    assert coefficient == pytest.approx(0.9, abs=1e-12), "the controller has moved it"
    log_ratios = [score.tokens["kl"] / -coefficient for score in rollout.scores]
    assert row["rollout/kl"] == pytest.approx(np.mean([values.sum() for values in log_ratios]), abs=1e-12)
    k3 = np.mean([(np.exp(-values) - 1 + values).sum() for values in log_ratios])
    assert 0 < row["rollout/kl_k3"] == pytest.approx(k3, abs=1e-12)
    for name, values in (("reward", totals), ("part/task", [s.raw["task"] for s in rollout.scores])):
        counts, edges = np.histogram(values, bins=10)
        assert row[f"histogram/{name}"] == {"low": edges[0], "high": edges[-1], "counts": counts.tolist()}
    assert {"train/policy_loss", "train/value_loss", "train/lr"} <= row.keys()


def test_agents_may_name_a_section_themselves() -> None:
    (row,) = Spends().train(Budget(updates=1)).rows
    assert row["other/number"] == 1.0
    assert "train/lr" in row
    assert "train/other/number" not in row


def test_evaluations_come_every_so_many_updates() -> None:
    calls = iter(range(1, 100))
    rows = Spends().train(Budget(updates=5), evaluate=lambda: {"n": float(next(calls))}, evaluate_every=2).rows
    assert [row.get("eval/n") for row in rows] == [None, 1.0, None, 2.0, None]


@pytest.mark.parametrize(
    ("name", "warmup", "floor", "multipliers"),
    [
        ("constant", 0.0, 0.0, [1.0, 1.0, 1.0, 1.0, 1.0]),
        ("constant", 0.5, 0.0, [0.1, 0.55, 1.0, 1.0, 1.0]),
        ("linear", 0.0, 0.0, [1.0, 0.75, 0.5, 0.25, 0.0]),
        ("linear", 0.5, 0.2, [0.1, 0.55, 1.0, 0.6, 0.2]),
        ("cosine", 0.0, 0.0, [1.0, 0.8535533905932737, 0.5, 0.1464466094067263, 0.0]),
        ("cosine", 0.25, 0.1, [0.1, 1.0, 0.1 + 0.9 * 0.75, 0.1 + 0.9 * 0.25, 0.1]),
        ("cosine", 1.0, 0.3, [0.1, 0.325, 0.55, 0.775, 1.0]),
    ],
)
def test_schedules_by_hand(name: Any, warmup: float, floor: float, multipliers: list[float]) -> None:
    """At 0, 1/4, 1/2, 3/4 and all of the budget. cos^2(pi/8) is 0.8535..., cos^2(pi/6) is 3/4."""
    came = [multiplier(name, share / 4, warmup=warmup, floor=floor) for share in range(5)]
    assert came == pytest.approx(multipliers, abs=1e-12)


@pytest.mark.parametrize("checkpoint_every", [1, 2, 3])
def test_a_plateau_outlives_a_kill(checkpoint_every: int, tmp_path: Path) -> None:
    """The count is in the checkpoint: killed after any update, the run ends where it would have ended."""
    objectives = [0.0, 1.0, 0.5, 2.0, 1.9, 2.0, 1.8, 9.0, 9.0]
    reason = "no better objective in 3 evaluations (the best was 2)"

    class Killed(BaseException): ...

    def run(folder: Path, kill_after: int | None = None) -> tuple[str, int, dict[str, Any]]:
        work, stopping = Spends(), Patience(evaluations=3)

        def kill(row: Any, _share: float) -> None:
            if row["update"] == kill_after:
                raise Killed

        with RunFolder(folder, "x = 1", resume=True, tensorboard=False) as run:
            training = work.train(
                Budget(updates=20),
                run=run,
                resume=True,
                checkpoint_every=checkpoint_every,
                evaluate=lambda: {"objective": objectives[work.spending.updates]},
                evaluate_every=1,
                stop_when=stopping,
                on_update=kill,
            )
        return training.reason, work.spending.updates, stopping.state_dict()

    whole = run(tmp_path / "whole")
    assert whole == (reason, 6, {"best": 2.0, "stale": 3, "update": 6})
    assert run(tmp_path / "whole") == whole, "and stays ended"
    for cut in range(1, 6):
        with pytest.raises(Killed):
            run(tmp_path / str(cut), kill_after=cut)
        assert run(tmp_path / str(cut)) == whole, f"killed after update {cut}"


def test_an_experiment_without_progress_ends_early_and_says_so(toy: Any, tmp_path: Path) -> None:
    experiment = toy("ppo", updates=9)
    experiment = replace(
        experiment,
        agent={**experiment.agent, "lr": 1e-30},
        rewards={"task": 1.0},
        patience=2,
        evaluation=replace(experiment.evaluation, every=3),
    )
    for _ in range(2):
        ended = run_it(experiment, tmp_path, resume=True)
        # Update 0 is the best there is; those after updates 3 and 6 are as good.
        best = ended.evaluation.metrics["objective"]
        assert ended.reason == f"no better objective in 2 evaluations (the best was {best:.4g})"
        assert [row["update"] for row in read_metrics(tmp_path)] == list(range(7))


@pytest.mark.parametrize(
    ("gave", "said"),
    [
        (None, r"the agent Spends: update\(\) gave None: a dict of numbers by name is needed"),
        ({"loss": torch.tensor(0.5)}, r"gave a Tensor as 'loss': .*float\(\.\.\.\) makes one"),
        ({"loss": "low"}, "gave a str as 'loss'"),
        ({3: 1.0}, "gave a float as 3: names are texts"),
    ],
    ids=["none", "tensor", "text", "number for a name"],
)
def test_metrics_that_are_none_are_named(gave: object, said: str) -> None:
    run = Spends()
    run.update = lambda _rollout: gave  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(RunFailed, match=said):
        run.train(Budget(updates=2))


def test_a_number_of_numpy_is_a_number() -> None:
    run = Spends()
    run.update = lambda _rollout: {"loss": np.float32(0.5)}  # type: ignore[method-assign,assignment,return-value]
    (row,) = run.train(Budget(updates=1)).rows
    assert type(row["train/loss"]) is float
    assert row["train/loss"] == 0.5


def test_a_reason_to_stop_ends_the_run_after_its_update() -> None:
    run = Spends()
    training = run.train(Budget(updates=9), stop_when=lambda row: "enough" if row["update"] == 4 else None)
    assert (training.reason, run.spending.updates, len(training.rows)) == ("enough", 4, 4)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_lets_the_update_under_way_finish(
    number: signal.Signals, exit_code: int, request: pytest.FixtureRequest
) -> None:
    usual = signal.signal(number, signal.default_int_handler)  # whoever runs the tests may ignore it
    request.addfinalizer(lambda: signal.signal(number, usual))
    run, before = Spends(), signal.getsignal(number)

    def next_rollout(_agent: Any) -> Rollout:
        if run.spending.updates == 1:
            os.kill(os.getpid(), number)
        return run.rollout

    run.next = next_rollout  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match="after update 2") as stopped:
        run.train(Budget(updates=9))
    assert isinstance(stopped.value, RlhfEnvError)
    assert stopped.value.exit_code == exit_code
    assert (run.spending.updates, run.spending.gradient_steps) == (2, 4)
    assert signal.getsignal(number) is before


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    """As `nohup` leaves it."""
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = Spends()

        def next_rollout(_agent: Any) -> Rollout:
            os.kill(os.getpid(), signal.SIGHUP)
            return run.rollout

        run.next = next_rollout  # type: ignore[method-assign]
        assert len(run.train(Budget(updates=2)).rows) == 2
    finally:
        signal.signal(signal.SIGHUP, usual)


def test_a_second_ctrl_c_stops_at_once() -> None:
    run = Spends()

    def next_rollout(_agent: Any) -> Rollout:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")

    run.next = next_rollout  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run.train(Budget(updates=9))


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    run = Spends()
    run.optimizer.backward(run.parameter.sum() * math.inf)
    with pytest.raises(RunFailed, match="lower the learning rate"):
        run.optimizer.step()
    assert run.parameter.item() == 0.0
    assert run.spending.gradient_steps == 0
