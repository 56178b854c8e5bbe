"""What ends a run early: the two rules that every experiment knows, several at once, and rules from outside."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from rlhf_env import plugins
from rlhf_env.errors import ConfigError, Problem, RunFailed
from rlhf_env.lab.evaluation.runs import run
from rlhf_env.learning import checkpoints
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.stopping import AnyOf, Brake, MaxKL, Patience, StoppingRule, load_stopping_rules
from rlhf_env.learning.workplace import build


def evaluations(rule: StoppingRule, objectives: Sequence[float | None]) -> list[bool]:
    return [rule({"update": i, "eval/objective": value}) is not None for i, value in enumerate(objectives)]


@pytest.mark.parametrize(
    ("patience", "min_delta", "objectives", "stops_at"),
    [
        (2, 0.0, [1.0, 2.0, 3.0, 2.9, 3.0], 4),  # as good is not better
        (2, 0.0, [1.0, 0.5, 1.1, 1.0, 0.9], 4),  # an improvement begins the count anew
        (1, 0.0, [1.0, 0.5], 1),
        (2, 0.1, [1.0, 1.05, 1.09], 2),  # small steps do not move what has to be beaten
        (2, 0.1, [1.0, 1.05, 1.11, 1.2, 1.21], 4),
        (2, 0.0, [None, math.nan], 1),
        (3, 0.0, [-3.0, -2.0, math.nan, -1.0, -1.0, -1.0, -1.0], 6),
        (50, 0.0, [1.0] * 50, None),
    ],
    ids=str,
)
def test_a_plateau_is_so_many_evaluations_without_a_better_one(
    patience: int, min_delta: float, objectives: list[float | None], stops_at: int | None
) -> None:
    ended = evaluations(Patience(evaluations=patience, min_delta=min_delta), objectives)
    assert [i for i, stop in enumerate(ended) if stop][:1] == ([] if stops_at is None else [stops_at])


def test_patience_reads_a_row_once_and_passes_over_those_without_an_evaluation() -> None:
    patience = Patience(evaluations=2)
    assert patience({"update": 0, "eval/objective": 1.0}) is None
    for _ in range(5):
        assert patience({"update": 1, "eval/objective": 0.9}) is None
    assert [patience({"update": update}) for update in range(2, 9)] == [None] * 7
    reason = "no better objective in 2 evaluations (the best was 1)"
    assert [patience({"update": 9, "eval/objective": 1.0}) for _ in range(2)] == [reason, reason]
    resumed = Patience(evaluations=2)
    resumed.load_state_dict(json.loads(json.dumps(patience.state_dict())))
    assert resumed({"update": 9, "eval/objective": 1.0}) == reason


def test_max_kl_reads_the_kl_itself() -> None:
    rule = MaxKL(limit=2.0)
    assert rule({"update": 1, "rollout/kl": 2.0, "rollout/part/kl": -5.0}) is None
    assert rule({"update": 2, "rollout/kl": 2.01, "rollout/part/kl": -1.0}) == "kl 2.01 above max_kl 2"
    assert rule({"update": 3}) is None
    assert rule({"update": 4, "rollout/kl": None}) is None, "what was not finite is no number to compare"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MaxKL(limit=0.0), "limit must be above 0, got 0"),
        (lambda: Patience(evaluations=0), "evaluations must be at least 1, got 0"),
        (lambda: Patience(evaluations=1, min_delta=-0.5), "min_delta must be at least 0, got -0.5"),
    ],
)
def test_limits_that_mean_nothing_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


# ---------------------------------------------------------------- several rules


def test_of_several_rules_the_first_reason_ends_the_run_and_all_have_read_the_row() -> None:
    rules = AnyOf({"max_kl": MaxKL(limit=1.0), "patience": Patience(evaluations=1)})
    assert rules({"update": 0, "rollout/kl": 0.5, "eval/objective": 1.0}) is None
    assert rules({"update": 1, "rollout/kl": 1.5, "eval/objective": 0.5}) == "kl 1.50 above max_kl 1"
    assert rules.state_dict() == {"max_kl": {}, "patience": {"best": 1.0, "stale": 1, "update": 1}}
    assert AnyOf({})({"update": 1}) is None


class Silent:
    """A rule that never has a reason."""

    def __call__(self, _row: Any, /) -> str | None:
        return None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, _state: Any, /) -> None: ...


def _raises(_row: Any) -> str:
    raise KeyError("rollout/gold")


def _exits(_row: Any) -> str:
    raise SystemExit(0)


@pytest.mark.parametrize(
    ("says", "said"),
    [
        (_raises, r"\[stopping.odd\] raised KeyError: 'rollout/gold'"),
        (_exits, r"\[stopping.odd\] raised SystemExit: 0"),
        (lambda _row: True, r"\[stopping.odd\] gave True: a reason to stop, in words, or None is needed"),
        (lambda _row: 0.0, r"\[stopping.odd\] gave 0.0: a reason"),
    ],
)
def test_a_rule_that_raises_or_gives_no_words_ends_the_run_by_name(says: Any, said: str) -> None:
    odd = type("Odd", (Silent,), {"__call__": lambda self, row: says(row)})()
    with pytest.raises(RunFailed, match=said):
        AnyOf({"odd": odd})({"update": 1})


def test_a_rule_that_changes_its_row_changes_nobody_elses() -> None:
    class Clears(Silent):
        def __call__(self, row: Any, /) -> None:
            row["histogram/reward"].clear()
            row.clear()

    row = {"update": 1, "rollout/kl": 9.0, "histogram/reward": {"low": 0.0}}
    before = copy.deepcopy(row)
    assert AnyOf({"clears": Clears(), "max_kl": MaxKL(limit=2.0)})(row) == "kl 9.00 above max_kl 2"
    assert row == before


def test_what_a_rule_fails_on_is_saved(toy: Any, tmp_path: Path) -> None:
    """The update was done before the rule was asked; once the rule is mended, the run goes on from there."""

    class FailsOnce(Silent):
        failed = False

        def __call__(self, row: Any, /) -> str | None:
            if row["update"] == 2 and not FailsOnce.failed:
                FailsOnce.failed = True
                raise ValueError("not a number")
            return None

    experiment = replace(toy("ppo", updates=3), checkpoint_every=100)
    rules = AnyOf({"odd": FailsOnce()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlhf_env.learning.workplace.load_stopping_rules", lambda _tables: rules)
        with pytest.raises(RunFailed, match="raised ValueError: not a number"):
            run(experiment, tmp_path)
        newest = checkpoints.latest(tmp_path / "checkpoints")
        assert newest is not None
        assert newest.name.endswith("2")
        assert run(experiment, tmp_path, resume=True).update == 3


def test_each_rule_gets_its_own_state_back() -> None:
    def rules() -> AnyOf:
        return AnyOf({"strict": Patience(evaluations=1), "patience": Patience(evaluations=3)})

    first, resumed = rules(), rules()
    first({"update": 0, "eval/objective": 2.0})
    first({"update": 1, "eval/objective": 1.0})
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert resumed.state_dict() == first.state_dict()
    assert resumed({"update": 1, "eval/objective": 1.0}) == first({"update": 1, "eval/objective": 1.0}) is not None


def test_the_state_of_a_checkpoint_from_before_there_were_rules_is_that_of_patience() -> None:
    rules = load_stopping_rules(Experiment(rewards={"task": 1.0, "kl": 0.0}, max_kl=9.0).stopping_tables())
    rules.load_state_dict({"best": None, "stale": 0, "update": -1})  # a run without patience had a state, too
    rules = load_stopping_rules({"patience": {"evaluations": 2}, "max_kl": {"limit": 9.0}})
    rules.load_state_dict({"best": 2.0, "stale": 1, "update": 7})
    assert rules({"update": 7, "eval/objective": 1.5}) is None, "it had read this row"
    assert rules({"update": 8, "eval/objective": 1.5}) == ("no better objective in 2 evaluations (the best was 2)")


# ---------------------------------------------------------------- in an experiment


def test_the_short_settings_are_tables_of_rules(toy: Any) -> None:
    plain = toy("ppo")
    assert plain.stopping_tables() == {}
    every = replace(plain.evaluation, every=1)
    short = replace(plain, evaluation=every, max_kl=2.0, patience=3, min_delta=0.5)
    tables = {"max_kl": {"limit": 2.0}, "patience": {"evaluations": 3, "min_delta": 0.5}}
    assert short.stopping_tables() == tables
    assert replace(plain, evaluation=every, stopping=tables).stopping_tables() == tables


def test_a_setting_that_is_not_used_is_not_in_the_text_that_a_run_is_known_by(toy: Any) -> None:
    plain = toy("ppo")
    assert not {"stopping", "trackers"} & {line.strip("[]").partition(".")[0] for line in plain.to_toml().split("\n")}
    ruled = replace(plain, stopping={"max_kl": {"limit": 2.0}})
    assert ruled.to_toml() != plain.to_toml()
    assert Experiment.from_table(json.loads(json.dumps({"stopping": {}}))).to_toml() == Experiment().to_toml()


NEAR = {"near": {"plugin": "max_kl", "limit": 1.0}}


@pytest.mark.parametrize(
    ("table", "said", "keys"),
    [
        ({"stopping": NEAR, "rewards": {"task": 1.0}}, "max_kl is measured by a KL penalty", ("stopping", "near")),
        ({"max_kl": 2.0, "rewards": {"task": 1.0}}, "max_kl is measured by a KL penalty", ("max_kl",)),
        (
            {"stopping": NEAR, "preferences": "pairs.jsonl"},
            r"\[stopping.near\] is measured on texts that the agent writes, and with `preferences`",
            ("stopping", "near"),
        ),
        (
            {"stopping": {"flat": {"plugin": "patience", "evaluations": 1}}},
            r"\[stopping.flat\] counts evaluations on the way, and there are none",
            ("stopping", "flat"),
        ),
        (
            {"stopping": {"max_kl": {"limit": 1.0}}, "max_kl": 2.0},
            r"max_kl is set twice: as max_kl = 2.0 and by \[stopping.max_kl\]",
            ("max_kl",),
        ),
    ],
    ids=str,
)
def test_what_a_rule_needs_is_asked_for_however_it_is_written(
    table: dict[str, Any], said: str, keys: tuple[str, ...], toy: Any
) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        build(toy("ppo", **table))
    (problem,) = refused.value.problems
    assert isinstance(problem, Problem)
    assert problem.keys == keys


def test_patience_needs_somebody_who_evaluates(toy: Any) -> None:
    every = replace(toy("ppo").evaluation, every=1)
    table = {"flat": {"plugin": "patience", "evaluations": 1}}
    with pytest.raises(
        ConfigError, match=r"\[stopping.flat\] counts evaluations: pass `evaluate`, or use rlhf_env.run"
    ):
        build(toy("ppo", evaluation=every, stopping=table)).train()


@pytest.mark.parametrize(
    ("stopping", "said"),
    [
        ({"max_kll": {}}, r"unknown stopping rule 'max_kll': did you mean 'max_kl'\?"),
        ({"max_kl": 2.0}, r"\[stopping\] max_kl: a table of settings is needed, got 2.0"),
        ({"max_kl": {"limits": 2.0}}, r"\[stopping\] max_kl: no setting 'limits': did you mean 'limit'\?"),
        ({"max_kl": {}}, r"\[stopping\] max_kl: the setting 'limit' is required"),
        ({"far": {"plugin": 3}}, r"\[stopping\] far: `plugin` is the name of a stopping rule, got 3"),
        ({"far": {"plugin": "max_kl", "limit": -1.0}}, r"\[stopping\] far: limit must be above 0, got -1.0"),
    ],
)
def test_what_a_table_gets_wrong_is_said_before_a_model_is_loaded(
    stopping: dict[str, Any], said: str, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf_env.learning.workplace.load_policy", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(ConfigError, match=said):
        build(toy("ppo", stopping=stopping))


# ---------------------------------------------------------------- a rule from outside


@dataclass
class EnoughWords:
    """A rule that somebody else wrote: enough tokens, which it has to count and to remember."""

    tokens: float
    counted: float = 0.0
    last: float = -1.0

    def __call__(self, row: Mapping[str, Any], /) -> str | None:
        if row["update"] > self.last:
            self.last = row["update"]
            self.counted += row.get("rollout/length", 0.0)
        return f"{self.counted:g} tokens are enough" if self.counted >= self.tokens else None

    def state_dict(self) -> dict[str, Any]:
        return {"counted": self.counted, "last": self.last}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.counted, self.last = state["counted"], state["last"]


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        @plugins.hookimpl
        def register_stopping_rules(self, register: plugins.Register) -> None:
            register("enough_words", EnoughWords)
            register("a_function", lambda: lambda row: "always")

    host = plugins.PluginHost(plugins.entry_points(group="rlhf_env"))
    host.add_module(Module(), "somebody")
    monkeypatch.setattr(plugins, "host", lambda: host)


@pytest.mark.usefixtures("outside")
def test_a_rule_from_outside_ends_a_run_and_its_state_outlives_a_kill(toy: Any, tmp_path: Path) -> None:
    """Killed after its third update, the run ends where the run that was left alone ended."""
    experiment = toy("ppo", updates=20, stopping={"words": {"plugin": "enough_words", "tokens": 18.0}})
    experiment = replace(experiment, checkpoint_every=2)

    class Killed(BaseException): ...

    def ended(folder: Path, kill_after: int | None = None) -> tuple[str | None, list[int]]:
        def kill(row: Mapping[str, Any], _share: float) -> None:
            if row["update"] == kill_after:
                raise Killed

        finished = run(experiment, folder, resume=True, on_update=kill)
        return finished.reason, [row["update"] for row in finished.metrics]

    whole = ended(tmp_path / "whole")
    assert str(whole[0]).endswith("tokens are enough")
    assert 4 < whole[1][-1] < 20
    newest = checkpoints.latest(tmp_path / "whole" / "checkpoints")
    assert newest is not None
    assert checkpoints.load(newest)[0]["stopping"].keys() == {"words"}
    with pytest.raises(Killed):
        ended(tmp_path / "killed", kill_after=3)
    assert ended(tmp_path / "killed") == whole
    assert ended(tmp_path / "killed") == whole, "and stays ended"


@pytest.mark.usefixtures("outside")
def test_what_cannot_give_its_state_is_no_rule(toy: Any) -> None:
    with pytest.raises(ConfigError, match=r"\[stopping\] a_function: .* is no stopping rule: it must be callable"):
        build(toy("ppo", stopping={"a_function": {}}))


def gold_of(values: Sequence[float | None], rule: Brake) -> list[bool]:
    rows = [
        {"update": i, "eval/gold": value, "eval/gold_std": 2.0 if i == 0 else 9.0} for i, value in enumerate(values)
    ]
    return [rule(row) is not None for row in rows]


@pytest.mark.parametrize(
    ("drop", "evaluations", "gold", "stops_at"),
    [
        (0.5, 1, [0.0, 3.0, 2.1, 1.9], 3),  # 0.5 of the first evaluation's spread, 2, below the best
        (0.5, 2, [0.0, 3.0, 1.9, 2.5, 1.9, 1.8], 5),  # one that is not as far below begins the count anew
        (0.5, 2, [0.0, 3.0, 1.9, None, 1.8], 4),  # what is not known says nothing
        (0.0, 1, [1.0, 1.0, 0.9], 2),
        (0.5, 1, [0.0, -0.9, 1.0, 5.0], None),
    ],
    ids=str,
)
def test_the_brake_stops_when_gold_is_far_below_its_best(
    drop: float, evaluations: int, gold: list[float | None], stops_at: int | None
) -> None:
    stopped = gold_of(gold, Brake(drop=drop, evaluations=evaluations))
    assert [i for i, stop in enumerate(stopped) if stop][:1] == ([] if stops_at is None else [stops_at])


def test_the_brake_remembers_over_a_resumption_and_reads_a_row_once() -> None:
    rule = Brake(drop=0.5, evaluations=2)
    assert gold_of([0.0, 3.0, 1.0], rule) == [False, False, False]
    assert rule({"update": 2, "eval/gold": 1.0}) is None
    assert rule({"update": 3, "rollout/kl": 1.0}) is None
    resumed = Brake(drop=0.5, evaluations=2)
    resumed.load_state_dict(json.loads(json.dumps(rule.state_dict())))
    reason = "gold fell by more than 0.5 standard deviations below its best, 3, in 2 evaluations in a row"
    assert [resumed({"update": 4, "eval/gold": 1.0}) for _ in range(2)] == [reason, reason]
