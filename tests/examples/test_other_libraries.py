"""The scripts for other libraries and the page about them say the same; their runner sees a reward that does not rise.

The scripts themselves run outside of the suite: `python examples/other_libraries/run.py`.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import textwrap
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import rlhf_env

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "other_libraries"
SCRIPTS = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py") if path.stem != "run"}
PAGE = (ROOT / "docs" / "other-libraries.md").read_text(encoding="utf-8")
SECTION_OF = {
    "stable_baselines3_ppo": "Stable-Baselines3",
    "cleanrl_ppo": "CleanRL",
    "torchrl_ppo": "TorchRL",
    "rllib_ppo": "Ray RLlib",
    "tianshou_ppo": "Tianshou",
    "agilerl_ppo": "AgileRL",
    "minari_dataset": "Minari",
}


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_other_libraries", FOLDER / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _sections() -> dict[str, str]:
    _, *parts = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    return {part.partition("\n")[0]: part for part in parts}


def _without_indentation(text: str) -> str:
    return re.sub(r"^ +", "", text, flags=re.MULTILINE)


def test_the_page_has_a_row_and_a_section_for_each_script(runner: ModuleType) -> None:
    assert SCRIPTS.keys() == SECTION_OF.keys() == set(runner.SCRIPTS)
    table = {row.split("|")[-2].strip().strip("`"): row for row in re.findall(r"^\| .*`\w+` \|$", PAGE, re.MULTILINE)}
    assert table.keys() == SCRIPTS.keys()
    assert set(SECTION_OF.values()) <= _sections().keys()


@pytest.mark.parametrize("name", SECTION_OF)
def test_the_code_on_the_page_is_the_scripts(name: str) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", _sections()[SECTION_OF[name]], re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        assert _without_indentation(block) in _without_indentation(SCRIPTS[name])


@pytest.mark.parametrize("name", SECTION_OF)
def test_each_pins_what_it_was_tested_with(name: str, runner: ModuleType) -> None:
    pins = [re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?==([\d.]+)", pin) for pin in runner.requirements(SCRIPTS[name])]
    wanted = {pin[1]: pin[2] for pin in pins if pin}
    assert len(wanted) == len(pins)
    assert {"torch", "gymnasium"} <= wanted.keys()
    rows = [row for row in PAGE.splitlines() if row.endswith(f"`{name}` |")]
    library = next((library for library in wanted if library not in ("torch", "gymnasium")), "gymnasium")
    assert len(rows) == 1
    assert re.search(rf" {re.escape(wanted[library])}[ )]", rows[0]), f"the page's version of {library}"
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    for requirement in declared:  # pip refuses the pair otherwise
        found = re.fullmatch(r"(torch|gymnasium|stable-baselines3)>=([\d.]+),<(\d+)", requirement)
        if found and found[1] in wanted:
            mine = [int(number) for number in wanted[found[1]].split(".")]
            assert [int(number) for number in found[2].split(".")] <= mine < [int(found[3])]


@pytest.mark.parametrize("name", SECTION_OF)
def test_each_says_how_to_run_it_and_hides_no_library(name: str) -> None:
    tree = ast.parse(SCRIPTS[name])
    assert f"python examples/other_libraries/run.py {name}" in (ast.get_docstring(tree) or "")
    imported = {
        module.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for module in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [it.name for it in node.names])
    }
    assert not imported & {*SCRIPTS, "run"}, "a script's folder is where Python looks first"
    assert {module for module in imported if module.startswith("rlhf_")} <= {"rlhf_env"}
    used = set(re.findall(r"\brlhf_env\.([A-Za-z]\w+)", SCRIPTS[name]))
    assert used <= set(rlhf_env.__all__), "public names only"


@pytest.mark.parametrize(
    ("output", "faults"),
    [
        ("before  return 0.20\nafter   return 0.97\n", []),
        ("PPO  before  return 0.2\nPPO  after   return 1.00\nMaskablePPO  before  return 0.4  (40 texts)\n"
         "MaskablePPO  after   return 0.80\n", []),
        ("before  return 0.20\nafter   return 0.60\n", ["return 0.2 before and 0.6 after"]),
        ("before  return 0.90\nafter   return 0.90\n", ["return 0.9 before and 0.9 after"]),
        ("before  return 0.20\n", ["return only before"]),
        ("PPO  before  return 0.2\nPPO  after  return 1.0\nA2C  before  return 0.1\nA2C  after  return -1.0\n",
         ["A2C return 0.1 before and -1.0 after"]),
        ("the task is over\n", ["no return was printed"]),
    ],
)  # fmt: skip
def test_the_runner_sees_whether_a_reward_rose(output: str, faults: list[str], runner: ModuleType) -> None:
    assert runner.not_learned(output) == faults


def test_the_runner_says_what_failed(
    runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    head = "# /// script\n# dependencies = []\n# ///\n"
    for name, code in (("rises", "print('before return 0\\nafter return 1')"), ("breaks", "raise SystemExit(3)")):
        (tmp_path / f"{name}.py").write_text(head + textwrap.dedent(code), encoding="utf-8")
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setattr(runner, "HERE", tmp_path)
    assert runner.holds("rises", tmp_path / "rises", keep=True)
    assert not runner.holds("breaks", tmp_path / "breaks", keep=True)
    assert "breaks: FAILED, it exits with 3" in capsys.readouterr().out
