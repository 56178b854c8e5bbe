"""What `import rlhf_env` gives: the public names, the registered environments, quickly, and nothing else."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import FunctionType, ModuleType

import gymnasium as gym
import pytest

import rlhf_env
from rlhf_env import plugins

# Changed here on purpose only: a name that is added is promised, and one that goes is a line of CHANGELOG.
PUBLIC = """
    Experiment PolicySettings EnvironmentSettings EvaluationSettings EngineSettings Budget run Run load_run evaluate_run
    Grid run_benchmark read_results markdown_table write_report run_pipeline PipelineRun
    build Workplace Evaluator collect Rollout finished
    TextEnv TextVectorEnv Episode Observation Prompt Task Tokenizer load_tokenizer
    Reward TokenReward GroupReward RewardMix Score from_function
    Policy Sampling LanguageModel tiny_language_model Agent Decision Setup Optimization
    PreferenceStore load_scorer fit_to_votes RewardModelSettings
    hookimpl Register register_agent register_annotator register_judgement register_metric register_pair_loss
    register_reward register_stopping_rule register_task register_token_loss register_tracker Metric PairLoss TokenLoss
    __version__
"""


def test_the_public_names() -> None:
    assert rlhf_env.__all__ == sorted(PUBLIC.split())
    assert dir(rlhf_env) == rlhf_env.__all__


def test_every_kind_of_plugin_can_be_registered_by_hand() -> None:
    assert {f"register_{kind.replace(' ', '_')}" for kind in plugins.PLUGIN_KINDS} <= set(rlhf_env.__all__)


@pytest.mark.parametrize("name", sorted(rlhf_env.__all__))
def test_every_public_class_and_function_says_what_it_is(name: str) -> None:
    """In its own words: what a dataclass or a protocol gets by itself is none."""
    value = getattr(rlhf_env, name)
    if isinstance(value, (type, FunctionType)):
        said = value.__doc__ or ""
        assert len(said.split()) >= 4 and not said.startswith(f"{name}("), said


@pytest.mark.parametrize("name", rlhf_env.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(rlhf_env, name) is not None
    assert name in dir(rlhf_env)


def test_every_public_name_has_its_home_and_its_type() -> None:
    public = set(rlhf_env.__all__) - {"__version__"}
    assert public == set(rlhf_env._HOMES)
    for name, home in rlhf_env._HOMES.items():
        assert getattr(rlhf_env, name) is getattr(importlib.import_module(home), name)
    source = ast.parse(Path(str(rlhf_env.__file__)).read_text(encoding="utf-8"))
    (typed,) = [node for node in source.body if isinstance(node, ast.If)]
    seen_by_type_checkers = {
        (alias.asname, statement.module)  # `as`: only so is an imported name public to them
        for statement in typed.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert seen_by_type_checkers == set(rlhf_env._HOMES.items())


def test_the_package_holds_the_list_and_the_registration_and_nothing_else() -> None:
    source = ast.parse(Path(str(rlhf_env.__file__)).read_text(encoding="utf-8"))
    defined = {node.name for node in source.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert defined == {"__getattr__", "__dir__"}
    values = {name: value for name, value in vars(rlhf_env).items() if not name.startswith("_")}
    found = {name for name, value in values.items() if not isinstance(value, ModuleType)} - set(rlhf_env.__all__)
    assert found <= {"annotations", "register", "registry", "TYPE_CHECKING", "Any"}


def test_a_name_that_is_none() -> None:
    with pytest.raises(AttributeError, match="module 'rlhf_env' has no attribute 'TextEnvironment'"):
        _ = rlhf_env.TextEnvironment


def test_the_ids_are_registered_by_strings() -> None:
    for name, action_length in (("Token", 1), ("Response", None)):
        spec = gym.spec(f"rlhf_env/{name}-v0")
        assert spec.entry_point == "rlhf_env.envs.text_env:TextEnv"
        assert spec.vector_entry_point == "rlhf_env.envs.text_vector_env:TextVectorEnv"
        assert spec.kwargs == {"action_length": action_length}


@pytest.mark.parametrize(
    "statement",
    ["import rlhf_env", "import rlhf_env.testing", "import rlhf_env, gymnasium; gymnasium.make('rlhf_env/Token-v0')"],
)
def test_no_torch_until_a_policy_is_built(statement: str) -> None:
    code = f"{statement}; import sys; sys.exit([m for m in ('torch', 'transformers') if m in sys.modules] or 0)"
    finished = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_gymnasium_can_import_the_package_itself() -> None:
    code = "import gymnasium; print(gymnasium.make('rlhf_env:rlhf_env/Token-v0').reset(seed=0)[1]['prompt'])"
    finished = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert finished.stdout == "a:\n"
