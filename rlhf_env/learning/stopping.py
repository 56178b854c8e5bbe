"""What ends a run before its budget does. A rule is one class: write it here, or in a package of your own.

`register_stopping_rules(register)` offers it by name (for those here, in `learning/__init__.py`), and an experiment
asks for it by a table of that name:

    [stopping.max_kl]                          [stopping.patience]
    limit = 12.0                               evaluations = 3

`max_kl = 12.0` and `patience = 3` in an experiment are short for these two.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import field
from typing import Protocol, runtime_checkable

from rlhf_env import plugins
from rlhf_env.errors import ConfigError, RlhfEnvError, RunFailed, under
from rlhf_env.learning.tracking import LoggedRow
from rlhf_env.own_code import error_in_words
from rlhf_env.settings import AtLeastOne, Name, NonNegative, Positive, settings
from rlhf_env.types import JsonView, State
from rlhf_env.working_folder import same_folder


@runtime_checkable
class StoppingRule(Protocol):
    """Ends a run early. It reads every row of metrics in order, and gives a reason to stop, or None.

    What it remembers is saved with the run, as plain data that JSON can hold. A resumed run asks once more with the
    last row that it has: a row that was read before changes nothing, and gets the same answer.
    """

    def __call__(self, row: LoggedRow, /) -> str | None:
        """The reason to stop after this row (`row["update"]` says which it is), in words that a user reads."""

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State, /) -> None: ...


@settings
class MaxKL:
    """Stop as soon as the policy is too far from the reference."""

    limit: Positive
    """The most that the mean KL of a rollout, `rollout/kl`, may be, in nats per response."""

    def __call__(self, row: LoggedRow, /) -> str | None:
        kl = row.get("rollout/kl")
        if isinstance(kl, (int, float)) and kl > self.limit:
            return f"kl {kl:.2f} above max_kl {self.limit:g}"
        return None

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State, /) -> None:
        """It remembers nothing."""


@settings(frozen=False)
class Patience:
    """Stop when evaluations no longer improve."""

    evaluations: AtLeastOne
    """This many in a row whose `eval/objective` is not above the best so far end the run."""
    min_delta: NonNegative = 0.0
    """By how much an evaluation must be above the best to count as better."""
    _best: float | None = field(default=None, init=False)
    _stale: int = field(default=0, init=False)
    _update: int = field(default=-1, init=False)

    def __call__(self, row: LoggedRow, /) -> str | None:
        if "eval/objective" not in row:
            return None
        objective, update = row["eval/objective"], row["update"]
        assert isinstance(update, (int, float))
        if update > self._update:
            self._update = int(update)
            self._count(objective if isinstance(objective, (int, float)) else math.nan)
        if self._stale < self.evaluations:
            return None
        best = "none was finite" if self._best is None else f"the best was {self._best:.4g}"
        return f"no better objective in {self._stale} evaluations ({best})"

    def _count(self, objective: float) -> None:
        """An objective that is not finite (a log has null for it) is no improvement."""
        if math.isfinite(objective) and (self._best is None or objective > self._best + self.min_delta):
            self._best, self._stale = objective, 0
        else:
            self._stale += 1

    def state_dict(self) -> State:
        return {"best": self._best, "stale": self._stale, "update": self._update}

    def load_state_dict(self, state: State, /) -> None:
        self._best = state["best"]
        self._stale, self._update = int(state["stale"]), int(state["update"])


@settings(frozen=False)
class Brake:
    """Stop when what training does not see has fallen behind its best: gold, the reward of [evaluation.rewards].

    That reward may be a judge, or whoever can be asked of a few texts every so often: each evaluation costs it
    `[evaluation] prompts` times `samples` judgements. With `[evaluation] best = "gold"` the checkpoint that is kept
    beside the last is that of the best evaluation. `rlhf-env lab brake` measured what it is worth (docs/brake.md).
    """

    measure: Name = "gold"
    """The number of the evaluation that is watched."""
    drop: NonNegative = 0.75
    """By how much it has to be below its best, in standard deviations of what it was over the texts of the first
    evaluation."""
    evaluations: AtLeastOne = 3
    """So many in a row that are as far below end the run."""
    _unit: float | None = field(default=None, init=False)
    _best: float | None = field(default=None, init=False)
    _below: int = field(default=0, init=False)
    _update: int = field(default=-1, init=False)

    def __call__(self, row: LoggedRow, /) -> str | None:
        value, update = row.get(f"eval/{self.measure}"), row["update"]
        if f"eval/{self.measure}" not in row:
            return None
        assert isinstance(update, (int, float))
        if update > self._update:
            self._update = int(update)
            spread = row.get(f"eval/{self.measure}_std")
            if self._unit is None and isinstance(spread, (int, float)) and math.isfinite(spread):
                self._unit = float(spread)
            self._count(value if isinstance(value, (int, float)) else math.nan)
        if self._below < self.evaluations or self._best is None:
            return None
        return (
            f"{self.measure} fell by more than {self.drop:g} standard deviations below its best, {self._best:.4g}, in "
            f"{self._below} evaluations in a row"
        )

    def _count(self, value: float) -> None:
        """One that is not finite says nothing, for or against."""
        if not math.isfinite(value):
            return
        if self._best is None or value > self._best:
            self._best, self._below = value, 0
        elif value < self._best - self.drop * (self._unit or 0.0):
            self._below += 1
        else:
            self._below = 0

    def state_dict(self) -> State:
        return {"unit": self._unit, "best": self._best, "below": self._below, "update": self._update}

    def load_state_dict(self, state: State, /) -> None:
        self._unit, self._best = state["unit"], state["best"]
        self._below, self._update = int(state["below"]), int(state["update"])


class AnyOf:
    """Several rules by name. All of them read every row; the first that has a reason ends the run."""

    def __init__(self, rules: Mapping[str, StoppingRule]) -> None:
        self.rules = dict(rules)

    def __call__(self, row: LoggedRow, /) -> str | None:
        """Raises RunFailed where a rule raises, or gives anything but words or None."""
        reasons = [_reason_of(name, rule, row) for name, rule in self.rules.items()]
        return next((reason for reason in reasons if reason), None)

    def of(self, kind: type[StoppingRule]) -> list[str]:
        """The names of the rules of one class."""
        return [name for name, rule in self.rules.items() if isinstance(rule, kind)]

    def state_dict(self) -> State:
        return {name: rule.state_dict() for name, rule in self.rules.items()}

    def load_state_dict(self, state: State, /) -> None:
        """Also of a checkpoint from the time when `patience` was the only rule that remembered something."""
        by_rule = {"patience": state} if isinstance(state.get("stale"), int) else state
        for name, rule in self.rules.items():
            if name in by_rule:
                rule.load_state_dict(by_rule[name])


def _reason_of(name: str, rule: StoppingRule, row: LoggedRow) -> str | None:
    """What a rule says of a copy of the row, which it may change: the row is for others, too."""
    try:
        with same_folder(f"[stopping.{name}]"):
            reason: object = rule(copy.deepcopy(dict(row)))
    except RlhfEnvError:
        raise
    except (Exception, SystemExit) as error:
        raise RunFailed(f"[stopping.{name}] raised {error_in_words(error)}") from error
    if reason is None or isinstance(reason, str):
        return reason
    raise RunFailed(f"[stopping.{name}] gave {reason!r}: a reason to stop, in words, or None is needed")


def load_stopping_rules(tables: JsonView) -> AnyOf:
    """The rules of an experiment's tables: the key is the rule's name, unless the table has a `plugin`.

    Raises ConfigError that names the table, with the problems of all of them.
    """
    rules: dict[str, StoppingRule] = {}
    problems: list[str] = []
    for name, table in tables.items():
        try:
            with under(name):
                rules[name] = _load(name, table)
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(*problems)
    return AnyOf(rules)


def _load(name: str, table: object) -> StoppingRule:
    if not isinstance(table, Mapping):
        raise ConfigError(f"[stopping] {name}: a table of settings is needed, got {table!r}")
    settings = dict(table)
    named = settings.get("plugin", name)
    plugin = plugins.name_in(settings, "stopping rule", name, key="plugin")
    if plugin is None:
        raise ConfigError(f"[stopping] {name}: `plugin` is the name of a stopping rule, got {named!r}")
    rule = plugins.build_plugin("stopping rule", plugin, settings, where=f"[stopping] {name}")
    if not isinstance(rule, StoppingRule):
        raise ConfigError(
            f"[stopping] {name}: {rule!r} is no stopping rule: it must be callable with a row, and have state_dict() "
            "and load_state_dict()"
        )
    return rule
