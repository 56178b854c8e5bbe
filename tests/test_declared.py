"""What plugins say about themselves: every setting with its type, limits, default and meaning, the papers, an example.

`rlhf-env plugins NAME` and its `--json` print it; the JSON schema is made of the same.
"""

from __future__ import annotations

import inspect
import json
import sys
import tomllib
from collections.abc import Sequence
from typing import Annotated, Any

import pytest
from annotated_types import Ge

from rlhf_env import plugins
from rlhf_env.cli import main
from rlhf_env.declared import LOSSES, REQUIRED, Setting, declaration, find, nested, settings_of
from rlhf_env.errors import MissingExtra, UnknownName
from rlhf_env.learning.configuration import from_table
from rlhf_env.learning.losses.declaring import load_pair_loss, load_token_loss
from rlhf_env.learning.making_agents import agent_factory
from rlhf_env.learning.stopping import load_stopping_rules
from rlhf_env.learning.tracking import check_trackers
from rlhf_env.settings import Example, NonNegative, Positive, marks_of, settings

ENTRIES = [entry for entry in plugins.host() if entry.origin == plugins.OWN]
WRAPPERS = (
    "curriculum",
    "replay",
    "prompt_sampling",
    "dynamic_sampling",
    "task_sampling",
    "backward_curriculum",
    "temperature",
)


@settings
class Inner:
    """What is within."""

    rate: Positive = 0.5
    """How fast."""


@settings(kw_only=False)
class Outer:
    """What is around.

    Args:
        said: where nothing stands under the field.
    """

    n: Annotated[int, Ge(2)]
    """How many,
    over two lines."""
    said: str = "a"
    silent: NonNegative | None = None
    inner: Inner = Inner(rate=0.75)
    """A table."""
    lent: plugins.PluginHost | None = None
    """What no file can hold is no setting."""


def by_hand(prompts: Sequence[str], completions: Sequence[str], answer: Any, *, price: float = 2.0) -> list[float]:
    """A reward as a function.

    Args:
        prompts: what was asked.
        price: what a letter costs,
            in points.
        answer: a column of the task.

    Returns one number each.
    """
    return [price] * len(prompts)


def test_a_setting_is_said_by_annotation_default_and_the_string_under_it() -> None:
    said = {it.name: (it.default, it.meaning, it.as_dict()["type"], it.as_dict()["limits"]) for it in listed(Outer)}
    assert said == {
        "n": (REQUIRED, "How many, over two lines.", "a whole number", "at least 2"),
        "said": ("a", "where nothing stands under the field.", "a string", ""),
        "silent": (None, "", "a finite number", "at least 0"),
        "inner.rate": (0.75, "How fast.", "a finite number", "above 0"),
    }


def test_a_function_says_its_settings_in_its_docstring() -> None:
    assert [(it.name, it.default, it.meaning) for it in settings_of(by_hand)] == [
        ("price", 2.0, "what a letter costs, in points.")
    ]


def listed(target: Any) -> list[Setting]:
    return list(nested(settings_of(target)))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.kind}:{entry.name}")
def test_every_setting_of_every_plugin_has_a_meaning_and_the_example_is_taken(entry: plugins.Entry) -> None:
    try:
        told = declaration(entry)
    except MissingExtra as missing:
        pytest.skip(str(missing))
    assert told.about
    assert [setting.name for setting in told.settings if not setting.meaning] == []
    for setting in told.settings:
        assert setting.meaning[0] != " " and "  " not in setting.meaning, setting
    named = {"reward": "rewards", "tracker": "trackers", "stopping rule": "stopping"}
    in_agent = entry.kind in LOSSES
    table = tomllib.loads(told.example)["agent" if in_agent else named.get(entry.kind, entry.kind)]
    if in_agent:
        assert agent_factory(table)
        loss = (load_token_loss if entry.kind == "token loss" else load_pair_loss)(table["loss"])
        assert loss.settings == {setting.name: setting.default for setting in told.settings}
    if entry.kind == "stopping rule":
        assert load_stopping_rules(table).rules.keys() == {entry.name}
    if entry.kind == "tracker":
        check_trackers(table)
    if entry.kind == "agent":
        assert table.pop("name") == entry.name
        assert (table.pop("agent", None) == {"name": "ppo"}) == (entry.name in WRAPPERS)
        config = entry.load().Config
        made = from_table(config, table, "example")
        filled_in = any(isinstance(mark, Example) for setting in told.settings for mark in marks_of(setting.hint))
        if not filled_in and not any(setting.required for setting in told.settings):
            assert made == config(), "the example is the plugin at its defaults"
    json.dumps(told.as_dict(), allow_nan=False)


def test_an_agent_names_its_paper() -> None:
    papers = {entry.name: declaration(entry).papers for entry in ENTRIES if entry.kind == "agent"}
    assert {name for name, found in papers.items() if not found} == {"temperature", "reference", "random"}
    assert papers["ppo"][:2] == ("Schulman et al. 2017, arXiv 1707.06347", "Ouyang et al. 2022, arXiv 2203.02155")
    assert papers["reinforce"][:2] == ("Williams 1992", "Hu et al. 2025, arXiv 2501.03262")
    assert papers["sb3"] == ("Raffin et al. 2021, JMLR 22(268)",)
    assert papers["replay"] == ("Lin 1992", "Schaul et al. 2016, arXiv 1511.05952")
    assert papers["curriculum"][0] == 'Bengio et al. 2009, "Curriculum learning", ICML'


def test_a_name_of_two_kinds_needs_its_kind() -> None:
    host = plugins.PluginHost([])
    host.add("agent", "twin", "a:B")
    assert find(host, "twin").kind == "agent"
    host.add("task", "twin", "a:B")
    assert find(host, "task:twin").kind == "task"
    with pytest.raises(UnknownName, match="Known: agent:twin, task:twin"):
        find(host, "twin")
    with pytest.raises(UnknownName, match="unknown plugin 'twinn': did you mean 'twin'"):
        find(host, "twinn")


def printed(words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "argv", ["rlhf-env", *words])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert not ended.value.code, capsys.readouterr().err
    return capsys.readouterr().out


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said = printed(["plugins", "ppo"], capsys, monkeypatch)
    assert said.startswith("agent ppo, of rlhf-env\n\nClipped policy gradient with a learned value.\n")
    assert "\nPapers\n  Schulman et al. 2017, arXiv 1707.06347\n" in said
    assert "\n  epochs: a whole number, at least 1; default 2\n      Passes over a rollout.\n" in said
    assert "\n  optimization.lr: a finite number, above 0; default 0.0002\n      AdamW's learning rate.\n" in said
    assert '\n  [agent]\n  name = "ppo"\n' in said
    said = printed(["plugins", "reward:length"], capsys, monkeypatch)
    assert "\n  target: a whole number, at least 1; required\n" in said
    assert "\nSettings of every reward\n  weight: a finite number; default none\n" in said


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    told = json.loads(printed(["plugins", "dpo", "--json"], capsys, monkeypatch))
    assert (told["kind"], told["name"], told["origin"]) == ("agent", "dpo", "rlhf-env")
    smoothing = next(setting for setting in told["settings"] if setting["name"] == "label_smoothing")
    assert smoothing == {
        "name": "label_smoothing",
        "type": "a finite number",
        "limits": "in [0, 0.5)",
        "required": False,
        "default": 0.0,
        "meaning": "The chance that a hard label is wrong (cDPO; sigmoid loss only).",
    }
    every = json.loads(printed(["plugins", "--json"], capsys, monkeypatch))
    assert {"kind": "agent", "name": "dpo", "origin": "rlhf-env", "target": "rlhf_agents.dpo:DPO"} in every["plugins"]


def test_the_source_of_a_class_need_not_be_there() -> None:
    made: dict[str, Any] = {}
    exec("class NoSource:\n    def __init__(self, n: int = 1) -> None: ...", made)
    with pytest.raises((OSError, TypeError)):
        inspect.getsource(made["NoSource"])
    assert [(it.name, it.meaning) for it in settings_of(made["NoSource"])] == [("n", "")]
