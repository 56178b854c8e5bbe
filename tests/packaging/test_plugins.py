"""The plugin host: everybody comes in by the same door, and nobody who stumbles in it blocks it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, distributions, entry_points
from pathlib import Path
from typing import Any

import pytest

from rlhf_env import plugins
from rlhf_env.errors import ConfigError, MissingExtra, PluginError, UnknownName
from rlhf_env.plugins import PluginHost

Distribution = Callable[..., list[EntryPoint]]

GOOD = """
from rlhf_env.plugins import hookimpl

@hookimpl
def register_rewards(register):
    register("{name}", "{module}:Reward")

class Reward:
    def __init__(self, scale=1.0):
        self.scale = scale

    def __call__(self, episodes):
        return [self.scale] * len(episodes)
"""


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distribution:
    """Make a distribution of one module, as an installer would leave it; its entry points."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name: str, module: str, source: str) -> list[EntryPoint]:
        monkeypatch.delitem(sys.modules, module, raising=False)  # one of an earlier test
        (tmp_path / f"{module}.py").write_text(source)
        information = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(f"[rlhf_env]\nplugin = {module}\n")
        found = [dist for dist in distributions(path=[str(tmp_path)]) if dist.name == name]
        return [point for dist in found for point in dist.entry_points]

    return install


def test_a_plugin_is_found_with_its_origin_and_loads(distribution: Distribution) -> None:
    host = PluginHost(distribution("good-dist", "good_mod", GOOD.format(name="good", module="good_mod")))
    assert [(entry.kind, entry.name, entry.origin) for entry in host] == [("reward", "good", "good-dist")]
    assert host.failures == [] and host.names("reward") == ["good"] and host.names("agent") == []
    assert host.load("reward", "good")(2.0)([None]) == [2.0]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("raise RuntimeError('bad day')", "RuntimeError: bad day"),
        ("def broken(:", "SyntaxError"),
        (
            "from rlhf_env.plugins import hookimpl\n@hookimpl\ndef register_rewards(registrar): ...",
            "PluginValidationError",
        ),
        (
            "from rlhf_env.plugins import hookimpl\n@hookimpl\ndef register_rewards(register): register('x', 'colon')",
            "target 'colon' is not of the form 'module:Attr'",
        ),
        (
            "from rlhf_env.plugins import hookimpl\n@hookimpl\ndef register_rewards(register): register('', 'a:B')",
            "no usable name",
        ),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("RLHF_ENV_API = 2", "made for version 2 of the plugin hooks, and this is 1"),
        ("x = 1", "it has no hook, so it offers nothing: put `@hookimpl`"),
        ("def register_rewards(register): register('x', 'a:B')", "register_rewards is not marked, so nobody calls it"),
        (
            "from rlhf_env.plugins import hookimpl\n@hookimpl\ndef register_reward(register): ...",
            "no hook is called 'register_reward': did you mean 'register_rewards'?",
        ),
    ],
)
def test_a_broken_plugin_is_listed_and_harmless(distribution: Distribution, source: str, says: str) -> None:
    points = [
        *distribution("broken-dist", "broken_mod", source),
        *distribution("good-dist", "good_mod", GOOD.format(name="good", module="good_mod")),
    ]
    host = PluginHost(points)
    assert host.names("reward") == ["good"]
    (failure,) = host.failures
    assert failure.origin == "broken-dist" and says in failure.error and "broken_mod" in failure.error
    assert host.load("reward", "good")


def test_a_folder_without_init_is_told(distribution: Distribution, tmp_path: Path) -> None:
    points = distribution("bare-dist", "bare_mod", "")
    (tmp_path / "bare_mod.py").unlink()
    (tmp_path / "bare_mod").mkdir()
    (failure,) = PluginHost(points).failures
    assert "the folder bare_mod has no __init__.py" in failure.error


def test_two_points_of_one_module_are_no_failure(distribution: Distribution) -> None:
    points = distribution("good-dist", "good_mod", GOOD.format(name="good", module="good_mod"))
    assert PluginHost([*points, *points]).failures == []


@pytest.mark.parametrize("group", ["rlhf_env.rewards", "rlhf-env", "rhlf_env", "rlhfenv"])
def test_entry_points_of_a_misspelt_group_are_told(group: str) -> None:
    misspelt = EntryPoint("haiku", "haiku_of_nobody", group)
    of_others = [EntryPoint("x", "x", name) for name in ("console_scripts", "pytest11", "gymnasium.envs", "rlhf_env")]
    (failure,) = PluginHost([], of_all_groups=[misspelt, *of_others]).failures
    assert failure.origin == "haiku_of_nobody"
    assert f"the group {group!r}, which nobody reads: [project.entry-points.rlhf_env] is read" in failure.error
    assert PluginHost([], of_all_groups=[misspelt], choice="").failures == []


@pytest.mark.parametrize(("asks", "says"), [(">=99", "it asks for rlhf-env>=99, and this is "), (">=0.0.1", "")])
def test_one_that_asks_for_another_version_is_used_and_told(
    distribution: Distribution, tmp_path: Path, asks: str, says: str
) -> None:
    points = distribution("good-dist", "good_mod", GOOD.format(name="good", module="good_mod"))
    with (tmp_path / "good_dist-1.0.dist-info" / "METADATA").open("a") as metadata:
        metadata.write(f"Requires-Dist: numpy>=1\nRequires-Dist: RLHF.env{asks}\n")
    host = PluginHost(points)
    assert host.failures == [] and host.load("reward", "good")
    assert [misfit.origin for misfit in host.misfits()] == (["good-dist"] if says else [])
    assert all(misfit.error.startswith(says) for misfit in host.misfits())
    if says:
        with pytest.raises(UnknownName, match="of another version: good-dist"):
            host.entry("reward", "godo")


@pytest.mark.parametrize(
    "source",
    ["import time\ntime.sleep(60)", "while True:\n    try:\n        while True: pass\n    except Exception: pass"],
    ids=["sleeps", "busy"],
)
def test_one_that_takes_too_long_is_left_behind(
    distribution: Distribution, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "PATIENCE", 0.05)
    before = signal.getsignal(signal.SIGALRM)
    host = PluginHost(distribution("slow-dist", "slow_mod", source))
    (failure,) = host.failures
    assert failure.origin == "slow-dist" and "not imported within 0.05 s" in failure.error
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("choice", "names", "left_out"),
    [
        (None, ["one", "two"], []),
        ("", [], ["one-dist", "Two.Dist"]),
        ("one-dist", ["one"], ["Two.Dist"]),
        (" one_dist , two-dist ", ["one", "two"], []),
        ("-ONE.dist", ["two"], ["one-dist"]),
        ("-plugin", [], ["one-dist", "Two.Dist"]),
        ("one-dist,-one-dist", [], ["one-dist", "Two.Dist"]),
    ],
    ids=repr,
)
def test_who_is_let_in(distribution: Distribution, choice: str | None, names: list[str], left_out: list[str]) -> None:
    points = [
        *distribution("one-dist", "one_mod", GOOD.format(name="one", module="one_mod")),
        *distribution("Two.Dist", "two_mod", GOOD.format(name="two", module="two_mod")),
    ]
    host = PluginHost(points, choice=choice)
    assert (host.names("reward"), host.left_out, host.failures) == (names, left_out, [])
    assert ("one_mod" in sys.modules, "two_mod" in sys.modules) == ("one" in names, "two" in names)


def test_a_choice_of_nobody_says_so_and_the_built_ins_stay(distribution: Distribution) -> None:
    (point,) = (it for it in entry_points(group="rlhf_env") if it.value == "rlhf_rewards")
    host = PluginHost([point, *distribution("one-dist", "one_mod", "raise RuntimeError")], choice="oen-dist")
    (failure,) = host.failures
    assert failure.origin == "RLHF_ENV_PLUGINS" and "'oen-dist', and no such plugin is installed" in failure.error
    assert "kl" in host.names("reward")


def test_who_is_absent_is_said_where_a_name_is_unknown(distribution: Distribution) -> None:
    points = [
        *distribution("broken-dist", "broken_mod", "raise RuntimeError('bad day')"),
        *distribution("other-dist", "other_mod", ""),
    ]
    host = PluginHost(points, choice="-other-dist")
    with pytest.raises(UnknownName, match=r"failed to load: broken-dist \(.*bad day\); kept out .*: other-dist"):
        host.load("reward", "mine")


def test_two_of_one_name_are_refused_when_used_and_both_are_named(distribution: Distribution) -> None:
    points = [
        *distribution("first-dist", "first_mod", GOOD.format(name="same", module="first_mod")),
        *distribution("second-dist", "second_mod", GOOD.format(name="same", module="second_mod")),
        *distribution("third-dist", "third_mod", GOOD.format(name="other", module="third_mod")),
    ]
    host = PluginHost(points)
    (conflict,) = host.conflicts()
    assert "reward 'same' is offered by first-dist and second-dist: uninstall one of them" in conflict
    with pytest.raises(PluginError, match="first-dist and second-dist"):
        host.load("reward", "same")
    assert host.load("reward", "other")


def test_registering_again_from_one_place_replaces() -> None:
    host = PluginHost([])
    host.add("reward", "mine", "a:B")
    host.add("reward", "mine", "c:D")
    assert [entry.target for entry in host] == ["c:D"] and host.conflicts() == []


def test_an_unknown_name_has_a_suggestion() -> None:
    host = PluginHost([])
    host.add("agent", "grpo", "a:B")
    with pytest.raises(UnknownName, match=r"unknown agent 'grop': did you mean 'grpo'\? Known: grpo"):
        host.load("agent", "grop")
    with pytest.raises(UnknownName, match=r"unknown reward 'x'\. Known: none"):
        host.load("reward", "x")


def test_a_missing_extra_is_named(distribution: Distribution) -> None:
    distribution("needy-dist", "needy_mod", "import a_package_nobody_has\nclass Reward: ...")
    host = PluginHost([])
    host.add("reward", "needy", "needy_mod:Reward", origin="needy-dist", needs="demo")
    with pytest.raises(MissingExtra, match=r"a_package_nobody_has .*reward 'needy'.* pip install \"rlhf-env\[demo\]\""):
        host.load("reward", "needy")


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("no_such_module:Reward", "reward 'odd' of odd-dist .*No module named 'no_such_module'"),
        ("rlhf_env.types:NoSuch", "AttributeError"),
    ],
)
def test_a_target_that_is_not_there_names_its_plugin(target: str, says: str) -> None:
    host = PluginHost([])
    host.add("reward", "odd", target, origin="odd-dist")
    with pytest.raises(PluginError, match=says):
        host.load("reward", "odd")


class _Hooks:
    """A plugin with a hook of every kind."""

    @plugins.hookimpl
    def register_rewards(self, register: plugins.Register) -> None:
        register("a reward", "a:B")

    @plugins.hookimpl
    def register_agents(self, register: plugins.Register) -> None:
        register("an agent", "a:B")

    @plugins.hookimpl
    def register_tasks(self, register: plugins.Register) -> None:
        register("a task", "a:B", needs="demo")

    @plugins.hookimpl
    def register_annotators(self, register: plugins.Register) -> None:
        register("an annotator", "a:B")

    @plugins.hookimpl
    def register_judgements(self, register: plugins.Register) -> None:
        register("a judgement", "a:B")

    @plugins.hookimpl
    def register_trackers(self, register: plugins.Register) -> None:
        register("a tracker", "a:B")

    @plugins.hookimpl
    def register_stopping_rules(self, register: plugins.Register) -> None:
        register("a stopping rule", "a:B")

    @plugins.hookimpl
    def register_metrics(self, register: plugins.Register) -> None:
        register("a metric", "a:B")

    @plugins.hookimpl
    def register_token_losses(self, register: plugins.Register) -> None:
        register("a token loss", "a:B")

    @plugins.hookimpl
    def register_pair_losses(self, register: plugins.Register) -> None:
        register("a pair loss", "a:B")


def test_every_hook_reaches_its_kind() -> None:
    hooks = [name for name in dir(plugins) if hasattr(getattr(plugins, name), "rlhf_env_spec")]
    assert hooks == sorted(plugins.hook_of(kind) for kind in plugins.PLUGIN_KINDS), (
        "a hook without a kind, or the reverse"
    )
    host = PluginHost([])
    host.add_module(_Hooks(), "here")
    assert [(entry.kind, entry.name, entry.needs) for entry in host] == [
        ("reward", "a reward", ""),
        ("agent", "an agent", ""),
        ("task", "a task", "demo"),
        ("annotator", "an annotator", ""),
        ("judgement", "a judgement", ""),
        ("metric", "a metric", ""),
        ("tracker", "a tracker", ""),
        ("stopping rule", "a stopping rule", ""),
        ("token loss", "a token loss", ""),
        ("pair loss", "a pair loss", ""),
    ]


def test_the_built_ins_come_in_by_the_same_door() -> None:
    origins = {point.dist.name for point in entry_points(group="rlhf_env") if point.dist}
    assert "rlhf-env" in origins
    host = plugins.host()
    built_in = {(entry.kind, entry.name) for entry in host if entry.origin == "rlhf-env"}
    assert {("reward", "kl"), ("reward", "diversity"), ("task", "echo"), ("task", "count")} <= built_in
    assert {("tracker", "wandb"), ("stopping rule", "patience")} <= built_in
    assert not [failure for failure in host.failures if failure.origin == "rlhf-env"]


@pytest.mark.parametrize("kind", plugins.PLUGIN_KINDS)
def test_every_built_in_loads(kind: plugins.PluginKind) -> None:
    for entry in plugins.host():
        if entry.kind == kind and entry.origin == "rlhf-env":
            with contextlib.suppress(MissingExtra):  # says so in one line, which is what it should do
                assert callable(entry.load()), entry.name


def test_listing_imports_no_torch() -> None:
    code = (
        "import sys; from rlhf_env.plugins import host; names = [e.name for e in host()]; "
        "assert 'kl' in names and 'echo' in names and not host().failures, host().failures; "
        "sys.exit([m for m in ('torch', 'transformers', 'rlhf_rewards.kl') if m in sys.modules] or 0)"
    )
    finished = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


# ---------------------------------------------------------------- building with parameters


def _made(length: int, *, reference: Any = None, scale: float = 1.0) -> dict[str, Any]:
    if length < 0:
        raise ValueError("length must not be negative")
    return {"length": length, "reference": reference, "scale": scale}


@pytest.fixture
def hosted(monkeypatch: pytest.MonkeyPatch) -> None:
    host = PluginHost([])
    monkeypatch.setattr(plugins, "host", lambda: host)
    plugins.register_task("made", _made)


@pytest.mark.usefixtures("hosted")
def test_what_a_run_lends_fills_what_the_user_left_out() -> None:
    lent = {"reference": "the policy", "tokenizer": "unwanted"}
    assert plugins.build_plugin("task", "made", {"length": 1}, lent) == {
        "length": 1,
        "reference": "the policy",
        "scale": 1.0,
    }
    assert plugins.build_plugin("task", "made", {"length": 1, "reference": "mine"}, lent)["reference"] == "mine"


@pytest.mark.usefixtures("hosted")
@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"length": 1, "scael": 2}, "task 'made': no setting 'scael': did you mean 'scale'"),
        ({}, "task 'made': the setting 'length' is required"),
        ({"length": -1}, "task 'made': length must not be negative"),
        ({"length": "x"}, "task 'made': length must be a whole number, got 'x'"),
    ],
)
def test_a_wrong_setting_names_plugin_and_setting(parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plugins.build_plugin("task", "made", parameters)
