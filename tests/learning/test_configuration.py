"""Tables to dataclasses: what fits comes through, and everything that does not is said at once."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

import pytest

from rlhf_env.errors import ConfigError
from rlhf_env.learning.configuration import from_table
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.experiment import Experiment
from rlhf_env.settings import is_setting


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    steps: int = 1

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be positive, got {getattr(self, name)}"
            for name in ("rate", "steps")
            if getattr(self, name) <= 0
        ]
        if problems:
            raise ConfigError(*problems)


@dataclass(frozen=True, kw_only=True)
class Limits:
    first: int | None = None
    second: int | None = None


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    kind: Literal["soft", "hard"] = "soft"
    on: bool = False
    count: int = 3
    share: float = 0.25
    optional: float | None = None
    words: list[str] = field(default_factory=list)
    pair: tuple[float, ...] = (1.0, 2.0)
    table: dict[str, Any] = field(default_factory=dict)
    anything: Any = None
    inner: Inner = Inner(rate=0.75)
    limits: Limits = field(default_factory=lambda: Limits(first=9), metadata={"whole": True})


def problems_of(table: dict[str, Any], cls: type[Any] = Outer) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        from_table(cls, table, "toy.toml")
    return list(refused.value.problems)


def test_a_table_fills_a_dataclass() -> None:
    made = from_table(Outer, {"name": "x", "kind": "hard", "on": True, "words": ["a"], "table": {"k": 1}}, "here")
    assert made == Outer(name="x", kind="hard", on=True, words=["a"], table={"k": 1})


def test_a_nested_table_changes_the_default_of_its_place() -> None:
    assert from_table(Outer, {"name": "x", "inner": {"steps": 4}}, "here").inner == Inner(rate=0.75, steps=4)
    assert from_table(Outer, {"name": "x", "steps": 4}, "here").inner == Inner(rate=0.75, steps=4)
    assert from_table(Outer, {"name": "x", "rate": 0.1, "inner": {"steps": 4}}, "here").inner == Inner(
        rate=0.1, steps=4
    )
    assert from_table(Outer, {"name": "x", "inner": Inner(rate=3.0)}, "here").inner == Inner(rate=3.0)


def test_a_whole_field_is_replaced_and_not_merged() -> None:
    assert from_table(Outer, {"name": "x"}, "here").limits == Limits(first=9)
    assert from_table(Outer, {"name": "x", "limits": {"second": 2}}, "here").limits == Limits(second=2)
    assert from_table(Outer, {"name": "x", "second": 2}, "here").limits == Limits(second=2)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("count", True, "must be a whole number, got True"),
        ("count", 2.0, "must be a whole number, got 2.0"),
        ("count", "3", "must be a whole number, got '3'"),
        ("count", 2**63, "must be a whole number, got 9223372036854775808"),
        ("share", "abc", "must be a finite number, got 'abc'"),
        ("share", False, "must be a finite number, got False"),
        ("share", 10**400, f"must be a finite number, got 1{'0' * 115} ..."),
        ("optional", "x", "must be a finite number, got 'x'"),
        ("on", 1, "must be true or false, got 1"),
        ("name", 7, "must be a string, got 7"),
        ("kind", "firm", "must be one of 'soft', 'hard', got 'firm'"),
        ("words", "abc", "must be a list, each a string, got 'abc'"),
        ("pair", 1.0, "must be a list, each a finite number, got 1.0"),
        ("table", [], "must be a table, got []"),
        ("inner", 3, "must be a table, got 3"),
    ],
)
def test_a_value_of_another_type_is_named(key: str, value: Any, complaint: str) -> None:
    (problem,) = problems_of({"name": "x", key: value})
    assert problem == f"toy.toml: {key} {complaint}"


@pytest.mark.parametrize(
    ("key", "value", "becomes"),
    [
        ("share", 2, 2.0),
        ("optional", 3, 3),
        ("optional", None, None),
        ("pair", [3, 4.5], (3, 4.5)),
        ("anything", [1], [1]),
    ],
)
def test_what_toml_writes_otherwise_is_taken(key: str, value: Any, becomes: Any) -> None:
    taken = getattr(from_table(Outer, {"name": "x", key: value}, "here"), key)
    assert taken == becomes
    assert type(taken) is type(becomes)


def test_unknown_keys_get_the_nearest_known_one() -> None:
    (problem,) = problems_of({"name": "x", "cuont": 1})
    assert problem.startswith("toy.toml: no setting 'cuont': did you mean 'count'? Known: ")
    assert "rate" in problem, "keys of a nested table may stand one level up"
    (problem,) = problems_of({"name": "x", "inner": {"rte": 1.0}})
    assert problem.startswith("toy.toml inner: no setting 'rte': did you mean 'rate'?")


def test_of_many_names_those_of_the_table_itself_are_listed() -> None:
    """And all of them are guessed at."""
    with pytest.raises(ConfigError) as caught:
        from_table(Experiment, {"polcy": {}, "generated_tokns": 1}, "toy.toml")
    first, second = (problem.partition(" Known: ") for problem in caught.value.problems[:2])
    assert first[0] == "toy.toml: no setting 'polcy': did you mean 'policy'?"
    assert second[0] == "toy.toml: no setting 'generated_tokns': did you mean 'generated_tokens'?"
    assert set(first[2].split(", ")) == {each.name for each in fields(Experiment) if is_setting(each)}


def test_all_problems_are_said_at_once() -> None:
    """Also those that a dataclass finds itself, beside a table that cannot be built."""
    found = problems_of({"cuont": 1, "share": "abc", "inner": {"rate": -1.0, "steps": 0}})
    assert [problem.partition(":")[0] for problem in found] == [
        "toy.toml",
        "toy.toml",
        "toy.toml inner",
        "toy.toml inner",
        "toy.toml",
    ]
    assert found[-1] == "toy.toml: the setting 'name' is required"
    assert "rate must be positive, got -1.0" in found[2]


@dataclass(frozen=True, kw_only=True)
class Two:
    one: Inner = Inner()
    other: Inner = Inner()
    limits: Limits = Limits()


def test_a_key_that_two_tables_know_is_not_guessed() -> None:
    (problem,) = problems_of({"rate": 0.1}, Two)
    assert "no setting 'rate'" in problem
    assert from_table(Two, {"other": {"rate": 0.1}, "first": 1}, "here") == Two(
        other=Inner(rate=0.1), limits=Limits(first=1)
    )


@dataclass(frozen=True, kw_only=True)
class Needs:
    inner: Inner


def test_a_nested_table_without_a_default() -> None:
    assert from_table(Needs, {"inner": {"steps": 2}}, "here") == Needs(inner=Inner(steps=2))
    assert problems_of({}, Needs) == ["toy.toml: the setting 'inner' is required"]


@dataclass(frozen=True)
class Careless:
    """A plugin's settings that complain with a plain ValueError."""

    n: int = 1

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n is {self.n}")


def test_a_plain_value_error_of_a_plugin_is_a_problem_too() -> None:
    assert problems_of({"n": 0}, Careless) == ["toy.toml: n is 0"]


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": -1e-3},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"lr": float("inf")},
        {"schedule": "step"},
        {"warmup": 1.5},
        {"floor": -0.1},
        {"beta1": 1.0},
        {"beta2": -0.5},
        {"weight_decay": -1.0},
        {"max_grad_norm": float("nan")},
        {"micro_batch_size": -1},
        {"micro_batch_tokens": -1},
    ],
    ids=str,
)
def test_an_optimization_that_cannot_work_is_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Optimization(**settings)
