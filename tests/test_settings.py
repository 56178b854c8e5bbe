"""Settings: what is no number is refused by name wherever a setting is one; and what a declaration says is what holds.

Every plugin and every class of settings is looked at. TOML can say nan, inf and true where a number is meant, and
Python anything.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import math
import re
import subprocess
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Interval, Le, Len, Lt, MinLen

import rlhf_env
from rlhf_env import plugins
from rlhf_env.errors import ConfigError, Problem
from rlhf_env.learning.configuration import from_table
from rlhf_env.settings import (
    AtLeastOne,
    NonNegative,
    Positive,
    Seed,
    Share,
    ShareBelowOne,
    check_settings,
    checked,
    fault,
    fits,
    hints_of,
    is_plain,
    limits,
    require,
    settings,
    spoken,
    unlimited,
)

BAD = (math.nan, math.inf, -math.inf, "x", True)
ENTRIES = [entry for entry in plugins.host() if entry.origin == plugins.OWN]
PACKAGE = Path(str(rlhf_env.__file__)).parent


def _settings_of_the_library() -> Iterator[type[Any]]:
    """Every class of rlhf_env that is decorated with @settings; plugins that need extras are looked at as plugins."""
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.stem in ("reasoning_gym_task", "textarena_task"):
            continue
        for node in ast.parse(file.read_bytes()).body:
            decorators = map(ast.unparse, node.decorator_list) if isinstance(node, ast.ClassDef) else ()
            if any(re.fullmatch(r"settings(\(.*\))?", decorator) for decorator in decorators):
                module = ".".join(["rlhf_env", *file.relative_to(PACKAGE).with_suffix("").parts])
                yield getattr(importlib.import_module(module), typing.cast(ast.ClassDef, node).name)


CLASSES = list(_settings_of_the_library())
NEEDED: dict[str, dict[str, Any]] = {
    "Grid": {"agents": {"ppo": {}}},
    "PageConfig": {"store": Path("s.db")},
    "Proxy": {"labels": 1, "layers": 1},
    "Climb": {"agent": {}, "updates": 1, "every": 1},
    "Size": {"hidden": 1, "layers": 1, "heads": 1, "intermediate": 1},
    "Course": {"updates": 1, "rows": 1, "lr": 1.0},
    "SimulatedAnnotator": {"gold": len},
    "Budget": {"updates": 1},
    "Track": {"title": "t", "counts": "reward_calls", "level": 1.0, "limit": 1.0, "seeds": [0, 1], "experiment": {}},
    "TestedChange": {"claim": "c", "proxy": "p", "than": "q", "what": "gold", "expected": "better"},
    "PipelineFile": {"stage": [{"name": "base", "kind": "base_model"}]},
    "Responses": {"model": "m"},
    "ResponsesStage": {"model": "m"},
    "RewardModelSettings": {"base": "m"},
    "ServerSettings": {"url": "http://localhost/v1", "model": "m"},
    "RewardModelFile": {"base": "m"},
    "Multiple": {"low": 0.5, "high": 2.0},
    "Uniform": {"low": 0.5, "high": 2.0},
    "Prompts": {"prompts": ["a"]},
    "File": {"path": "a.jsonl"},
    "MaxKL": {"limit": 1.0},
    "Patience": {"evaluations": 1},
    "Curriculum.Config": {"levels": (1,)},
    "Hybrid.Config": {"preferences": "votes.sqlite"},
    "Prefixes": {"column": "answer", "shares": [0.5]},
    **{name: {"url": "http://localhost:1/v1", "model": "m"} for name in ("JudgeAnnotator", "ChatModel", "Judging")},
}


def _numeric(hint: Any) -> bool:
    hint = unlimited(hint)
    return hint in (int, float) or any(map(_numeric, typing.get_args(hint)))


def _wrong(hint: Any) -> list[Any]:
    """What a number of this annotation cannot be, within a list or a table where it holds numbers."""
    hint = unlimited(hint)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (list, tuple):
        return [[value] for value in _wrong(inner[0])]
    if origin is dict:
        return [{"key": value} for value in _wrong(inner[1])]
    return [value for value in BAD if not (isinstance(value, str) and str in inner)]


def _numbers(cls: type[Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, a wrong value) for each number among the fields of a dataclass, and of those within it."""
    hints = hints_of(cls)
    for field in (field for field in dataclasses.fields(cls) if field.init and field.name in hints):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _numbers(hint, (*path, field.name))  # type: ignore[arg-type]
        elif _numeric(hint) and is_plain(hint):
            yield from (((*path, field.name), value) for value in _wrong(hint))


def _refused(named: str, build: Any, *arguments: Any, **settings: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        build(*arguments, **settings)
    found = [it for it in refused.value.problems if not it.endswith("is required")]
    assert any(re.search(rf"\b{named}\b", it) for it in found), found


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_a_dataclass_of_settings(cls: type[Any]) -> None:
    """By a file, and by Python."""
    needed = NEEDED.get(cls.__name__, {})
    if cls.__name__ != "File":  # which reads its file
        cls(**needed)
    for path, value in _numbers(cls):
        table: Any = value
        for key in reversed(path):
            table = {key: table}
        _refused(path[-1], from_table, cls, {**needed, **table}, "here")
        if len(path) == 1:
            _refused(path[0], cls, **{**needed, path[0]: tuple(value) if isinstance(value, list) else value})


@pytest.mark.parametrize("entry", [it for it in ENTRIES if it.kind == "agent"], ids=lambda entry: entry.name)
def test_an_agents_settings(entry: plugins.Entry) -> None:
    """By a file, where a nested table's may stand one level up, and by Python."""
    config = entry.load().Config
    for path, value in _numbers(config):
        table: Any = value
        for key in reversed(path):
            table = {key: table}
        _refused(path[-1], from_table, config, table, "here")
        _refused(path[-1], from_table, config, {path[-1]: value}, "here")
        if len(path) == 1:
            _refused(path[0], config, **{**NEEDED.get(config.__qualname__, {}), path[0]: value})


@pytest.mark.parametrize(
    "entry", [it for it in ENTRIES if it.kind != "agent"], ids=lambda entry: f"{entry.kind}:{entry.name}"
)
def test_a_plugins_settings(entry: plugins.Entry) -> None:
    target = pytest.importorskip(entry.target.partition(":")[0]) and entry.load()
    hints = hints_of(target)
    accepted = inspect.signature(target).parameters
    for name in accepted.keys() & hints.keys():
        if _numeric(hints[name]) and is_plain(hints[name]):
            for value in _wrong(hints[name]):
                _refused(name, plugins.call_with, target, {name: value}, {}, "here")


@pytest.mark.parametrize("value", [*BAD, [1.0]], ids=str)
def test_the_weight_of_a_reward(value: Any) -> None:
    from rlhf_env.envs.reward_tables import load_rewards
    from rlhf_env.envs.tasks import load_task

    _refused("weight", load_rewards, {"length": {"weight": value, "target": 3}}, load_task("count"))
    _refused("weight", load_rewards, {"kl": {"weight": value}}, load_task("count"), {"reference": object()})


# ---------------------------------------------------------------- what a declaration says


@settings
class Inner:
    rate: Positive = 0.5


@settings
class Outer:
    steps: AtLeastOne = 2
    cap: NonNegative = 3.0
    share: Share = 1.0
    kind: Literal["soft", "hard"] = "soft"
    ends: Annotated[tuple[Positive, ...], MinLen(2)] = (1.0, 2.0)
    names: dict[str, int] = dataclasses.field(default_factory=dict)
    optional: Positive | None = None
    inner: Inner = Inner()
    beside: Sequence[Any] | None = dataclasses.field(default=None, init=False)

    def problems(self) -> Iterator[Problem]:
        if self.cap <= self.steps:
            yield fault("cap", f"must be above steps, got {self.cap}")
        if self.share == 0.25:
            yield Problem("a quarter is nothing", ("share",))
        if self.cap == 9:
            yield Problem("nine is too much of all")


def problems_of(**given: Any) -> list[tuple[str, tuple[Any, ...]]]:
    with pytest.raises(ConfigError) as refused:
        Outer(**given)
    return [(str(problem), problem.keys) for problem in refused.value.problems if isinstance(problem, Problem)]


def test_an_object_of_settings_is_a_frozen_dataclass() -> None:
    made = Outer(steps=1)
    assert dataclasses.is_dataclass(made) and made == Outer(steps=1) and hash(Inner()) == hash(Inner(rate=0.5))
    assert dataclasses.replace(made, share=0.5) == Outer(steps=1, share=0.5)
    assert dataclasses.asdict(made)["inner"] == {"rate": 0.5}
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.steps = 3  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        Outer(3)  # type: ignore[misc]
    with pytest.raises(ConfigError, match="steps must be at least 1, got 0"):
        dataclasses.replace(made, steps=0)


def test_every_fault_is_said_at_once_with_the_path_of_its_setting() -> None:
    assert problems_of(steps="3", share=1.5, kind="firm", ends=[1.0, -1], names={"a": 1.5}, optional=0, inner=3) == [
        ("steps must be a whole number, got '3'", ("steps",)),
        ("share must be in [0, 1], got 1.5", ("share",)),
        ("kind must be one of 'soft', 'hard', got 'firm'", ("kind",)),
        ("ends[1] must be above 0, got -1", ("ends", 1)),
        ("names.a must be a whole number, got 1.5", ("names", "a")),
        ("optional must be above 0, got 0", ("optional",)),
        ("inner must be a table, got 3", ("inner",)),
    ]


def test_what_concerns_several_fields_is_said_too() -> None:
    cap, share = ("cap must be above steps, got 2.0", ("cap",)), ("a quarter is nothing", ("share",))
    assert problems_of(cap=2, share=0.25) == [cap, share]
    with pytest.raises(ConfigError) as refused:
        from_table(Outer, {"cap": 2, "share": 0.25, "optional": -1, "rate": 0}, "here")
    assert [(str(it), it.keys) for it in refused.value.problems if isinstance(it, Problem)] == [
        ("here: optional must be above 0, got -1", ("optional",)),
        ("here inner: rate must be above 0, got 0", ("inner", "rate")),
        (f"here: {cap[0]}", cap[1]),
        (f"here: {share[0]}", share[1]),
    ]


def test_what_is_wrong_by_itself_is_said_once_and_stops_no_other_rule() -> None:
    said = problems_of(share="x", cap=-1, kind="firm")
    assert [keys for _, keys in said] == [("cap",), ("share",), ("kind",)]
    assert [keys for _, keys in problems_of(steps="3", share=0.25, cap=1)] == [("steps",), ("cap",), ("share",)]
    assert [keys for _, keys in problems_of(steps=-5, cap=2.5)] == [("steps",)], "2.5 is above the default, 2"
    assert [keys for _, keys in problems_of(kind="firm", share=0.25)] == [("kind",), ("share",)]
    assert [keys for _, keys in problems_of(kind="firm", cap=9)] == [("kind",)], "of no setting: once each is right"
    assert [keys for _, keys in problems_of(cap=9)] == [()]


def test_only_an_integer_for_a_float_and_a_list_for_a_tuple_are_converted() -> None:
    made = Outer(cap=4, ends=[2, 3], optional=5)  # type: ignore[arg-type]
    assert (type(made.cap), made.ends, type(made.ends[0])) == (float, (2.0, 3.0), float)
    assert type(made.optional) is int, "as it was given: runs are known by the text of their settings"
    for given in ({"cap": "4"}, {"cap": True}, {"steps": 2.0}, {"steps": True}, {"ends": "12"}, {"kind": 1}):
        assert len(problems_of(**given)) == 1


def test_a_class_keeps_its_own_post_init() -> None:
    @settings(kw_only=False, frozen=False)
    class Own:
        n: AtLeastOne = 1

        def __post_init__(self) -> None:
            self.n += 1

    assert Own(3).n == 4
    with pytest.raises(ConfigError, match="n must be at least 1"):
        Own(0)


def test_from_python_a_wrong_setting_of_an_agent_is_one_line() -> None:
    from rlhf_agents.dpo import DPO
    from rlhf_agents.ppo import PPO

    with pytest.raises(ConfigError) as refused:
        PPO.Config(epochs="3")  # type: ignore[arg-type]
    assert str(refused.value) == "epochs must be a whole number, got '3'"
    with pytest.raises(ConfigError) as refused:
        DPO.Config(epochs=1.5)  # type: ignore[arg-type]
    assert str(refused.value) == "epochs must be a whole number, got 1.5"


@pytest.mark.parametrize(
    ("hint", "inside", "outside", "words"),
    [
        (AtLeastOne, [1, 2**63 - 1], [0, -1], "at least 1"),
        (Seed, [0, 2**40 - 1], [-1, 2**40], "from 0 to 1,099,511,627,775"),
        (Positive, [1e-300, 2**1023], [0, -1.0], "above 0"),
        (ShareBelowOne, [0, 0.999], [1.0, -0.1], "in [0, 1)"),
        (Annotated[float, Gt(0), Le(1)], [1, 0.1], [0, 1.1], "in (0, 1]"),
        (Annotated[float, Interval(ge=-2, lt=3)], [-2, 2.9], [3, -2.1], "in [-2, 3)"),
        (Annotated[int, Ge(2)] | None, [None, 2], [1], "at least 2"),
        (Annotated[int, Le(5)], [5, -9], [6], "at most 5"),
        (Annotated[float, Lt(0.5)], [0.4], [0.5], "below 0.5"),
        (Annotated[str, MinLen(1)], ["a"], [""], "one or more characters"),
        (Annotated[list[int], MinLen(2)], [[1, 2]], [[1]], "at least 2 entries"),
        (Annotated[str, Len(1, 1)], ["a"], ["", "ab"], "one character"),
        (Annotated[list[int], Len(1, 2)], [[1]], [[], [1, 2, 3]], "1 to 2 entries"),
    ],
    ids=str,
)
def test_a_limit_holds_and_is_said(hint: Any, inside: list[Any], outside: list[Any], words: str) -> None:
    assert limits(hint) == words
    assert all(fits(value, hint) for value in inside)
    for value in outside:
        (problem,) = checked(value, hint, ("it",))[1]
        assert problem.startswith("it must ") and words in problem


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Literal["a", 1], "one of 'a', 1"),
        (Literal["stop"] | float, "one of 'stop' or a finite number"),
        (Positive | None, "a finite number"),
        (dict[str, dict[str, Any]], "a table, each a table"),
        (str | Path | Sequence[str | Path], "a string or a list (each a string)"),
        (tuple[int, str], "a list of 2: a whole number, a string"),
        (Inner, "a table"),
    ],
    ids=str,
)
def test_an_annotation_is_said_in_words(hint: Any, words: str) -> None:
    assert spoken(hint) == words


def test_a_message_shows_a_long_value_in_part() -> None:
    (problem,) = checked("x" * 1000, int, ("n",))[1]
    assert len(problem) < 170 and problem.endswith("xxx ...")
    assert checked(10**5000, int, ("n",))[1] == ["n must be a whole number, got a number of thousands of digits"]
    assert len(checked([1] * 1000, list[str], ("n",))[1]) == 20


class Writer(typing.Protocol):
    def write(self) -> str: ...


def test_what_no_file_can_hold_is_not_looked_at() -> None:
    assert fits(3, Writer) and fits(None, Writer | None) and fits(object(), Any)
    assert not is_plain(Writer) and is_plain(str | Path) and not is_plain(Path)


def test_a_constructor_by_hand_asks_for_the_same_check() -> None:
    with pytest.raises(ConfigError) as refused:
        require(share=(2, Share), kind=("x", Literal["a"]))
    assert refused.value.problems == ("share must be in [0, 1], got 2", "kind must be one of 'a', got 'x'")
    check_settings(Inner(rate=1.0))


def test_nothing_checks_its_settings_by_hand() -> None:
    """Limits stand beside the field: what else has a `__post_init__` is no settings, and says here what it is."""
    judgement = "a kind of judgement, which is data: a file's line or a vote"
    others = {
        **dict.fromkeys(
            ("abstention.py", "comparison.py", "ranking.py", "rating.py", "criteria.py", "form.py"), judgement
        ),
        "judgements.py": judgement,
        "items.py": "rows of the preference store",
        "metric.py": "entries of the table of metrics",
        "fairness.py": "words that are handed to a measure",
        "ensemble.py": "models that are handed over",
        "tabular.py": "a tree that is counted",
        "world.py": "tensors that must fit each other",
        "types.py": "arrays that are made read-only",
        "shaping.py": "loads its potential",
        **dict.fromkeys(("novelty_embedding.py", "novelty_ngrams.py", "novelty_rnd.py"), "begins its memory"),
        "settings.py": "the one place",
    }
    folders = [PACKAGE, *(Path(str(importlib.import_module(name).__file__)).parent for name in PLUGINS)]
    files = [file for folder in folders for file in folder.rglob("*.py")]
    assert {file.name for file in files if "def __post_init__" in file.read_text("utf-8")} == others.keys()


PLUGINS = ("rlhf_agents", "rlhf_rewards")


def test_what_checks_settings_is_not_loaded_to_list_plugins() -> None:
    code = (
        "import sys, rlhf_env, rlhf_env.settings; from rlhf_env.plugins import host; list(host()); "
        "sys.exit('pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
