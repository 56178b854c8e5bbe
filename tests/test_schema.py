"""The JSON schema of experiments and grids, by a public validator: what is shipped is taken, what is wrong is not.

What a schema cannot tell is said here, case by case: `rlhf-env check` does.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import rlhf_env
from rlhf_env.lab.benchmark.grid import Grid
from rlhf_env.learning.experiment import Experiment
from rlhf_env.pipeline.demo import DemoRewardModel
from rlhf_env.pipeline.plan import PipelineFile
from rlhf_env.pipeline.reward_settings import RewardModelFile
from rlhf_env.pipeline.stages.registry import settings_by_kind
from rlhf_env.plugins import PluginHost, host
from rlhf_env.schema import file_schema, one_of_files, staged_schema

sys.path.insert(0, str(Path(__file__).parent))
from bad_inputs import BAD, Bad
from wrong.table import GRID, TOY

ROOT = Path(__file__).parent.parent
PACKAGE = Path(rlhf_env.__file__).parent  # of the wheel, where that is what is tested
# What is about several settings at once, about other files, or about nothing that JSON knows.
BEYOND = {
    r"must be a whole number, got \d+\.0|target must be a whole number, got $|length must be a whole number, got $": (
        "2.0 is an integer to JSON"
    ),
    r"must be a finite number, got|temperature must be a f|must be a finite n|weights must be a list|got \[0.0, nan": (
        "JSON has no nan and no inf"
    ),
    r"one or more printable characters|is no name for a file|device must be": "what a name is made of",
    r"needs a tokenizer|at least one limit|is measured by|counts evaluations|watches gold|must be at most 4 \(max": (
        "several settings at once"
    ),
    r"and they are ignored|is for hard labels|belongs to the sigmoid|marks answers, and loss_on|leaves no pr": (
        "several settings at once, too: margins, turns, over_long"
    ),
    r"stop (is a list|has )|stands for what|samples = |pass_at 8|is called '|is no criterion|compares": (
        "what strings are made of, and several settings at once: stop, samples, pass_at, success"
    ),
    r"no task of this name|no row of this name|\[agent\] ppo optimization: lr must be a finite number": "other tables",
    r"no row is called|rows are compared on the same": "other tables",
    r"no.such|cannot read|alphabet|one or more different symbols|tokenizer|model|do not belong|answers one prompt": (
        "what is outside of the file"
    ),
    r"has no spread: take an|has no tasks to choose|learns wrongly from texts|must be above 0 with a corr": (
        "what an agent inside of another is, and several settings at once"
    ),
    r"must be (below|above|at most) [\w +]+ = |own loss: leave|belongs? to the losses|multiplies adv|does by itself": (
        "several settings at once: of a loss, and of the agent that it replaces"
    ),
    r"holds no demonstrated|has writers of its own|entropy_(coefficient must|floor must be bel|end bel)": (
        "several settings at once, what a task has, and what an agent inside of another is: guided exploration"
    ),
    r"the setting 'potential' is required": "a reward that is a weight alone has no settings",
    r"and ptx_data belong|here several write|ptx_data, prompts/1|makes prompts for ever": (
        "several settings at once, and what a text is made of: the pretraining mix"
    ),
    r"must have (points in order|shares of)|lower number and a higher|by_task is of|both set the w|go together: the": (
        "several settings at once: of shaping, and of the shares of tasks"
    ),
    r"must be https://|names no environment variable|is no file, and none of|at temperature 0 asks|above lowest": (
        "what is outside of the file, and several settings at once: a judge"
    ),
    r"no other part is|is how the sum|controller of its own|token by token|has that name|is measured, and": (
        "what other parts of the reward are"
    ),
    r"no part of the reward counts|is the KL penalty, of which|tasks of reward": "the tasks of a mixture",
    r"^shard = true: ": "several settings at once: a model in parts, and who learns",
    r"ahead = 1": "several settings at once: texts that are written ahead, who writes them, and who learns",
    r"starts are for by = |must have no letter twice": "several settings at once: levels, and goals",
    r"teach|on_policy .sequence|is of distributions|beta is of": (
        "several settings at once, and what another model is: distill, and a teacher's reward"
    ),
    r"needs \[policy.lora\]|and has its own pairs": "several settings at once: sft+rm",
    r"is not installed|is not here|a table of logits has|fused is false|no importance ratio|beside it$|server drew": (
        "what is outside of the file, and several settings at once"
    ),
    r"learns by|does not divide|the environment takes|has no token|a.jsonl|a.csv|a.txt|not JSON|\d fields|prompt'": (
        "what is outside of the file, or only a run can tell"
    ),
}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    experiment = file_schema(host(), Experiment, title="An experiment")
    grid = file_schema(host(), Grid, title="A grid", tables={"reward_model": DemoRewardModel})
    return one_of_files({"": experiment, "agents": grid}, "Either")


@pytest.fixture(scope="module")
def validator(schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator(schema)


def wrong(validator: Draft202012Validator, text: str) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(tomllib.loads(text))]


def test_it_is_a_schema(schema: dict[str, Any]) -> None:
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    json.dumps(schema, allow_nan=False)
    names = {name.replace(" ", "%20") for name in schema["$defs"]}
    assert set(re.findall(r'"#/\$defs/([^"]+)"', json.dumps(schema))) <= names


def shipped() -> Iterator[tuple[str, str]]:
    for file in sorted((ROOT / "examples").rglob("*.toml")):
        others = ("pyproject.toml", "reward_model.toml", "judge.toml")
        of_plugins = file.parent.name.startswith("rlhf_")  # which are not installed here
        if not of_plugins and file.name not in others and "[[stage]]" not in file.read_text("utf-8"):
            yield file.name, file.read_text("utf-8")
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for number, block in enumerate(re.findall(r"```toml\n(.*?)```", file.read_text("utf-8"), re.DOTALL)):
            if "[[stage]]" not in block and not block.startswith("# judge.toml"):  # no schema knows those
                yield f"{file.name}, block {number + 1}", block


def pipelines() -> Iterator[tuple[str, str]]:
    for folder in (ROOT / "examples", PACKAGE / "pipeline"):
        for file in sorted(folder.rglob("*.toml")):
            if "[[stage]]" in (text := file.read_text("utf-8")):
                yield file.name, text
    for number, block in enumerate(
        re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    ):
        if "[[stage]]" in block:
            yield f"README.md, block {number + 1}", block


def test_files_of_reward_models_that_are_shipped_are_taken() -> None:
    validator = Draft202012Validator(file_schema(host(), RewardModelFile, title="A reward model of votes"))
    files = [file.read_text("utf-8") for file in (ROOT / "examples").rglob("reward_model.toml")]
    assert files and not [found for text in files for found in wrong(validator, text)]


@pytest.fixture(scope="module")
def staged() -> Draft202012Validator:
    stages = settings_by_kind()
    return Draft202012Validator(staged_schema(host(), PipelineFile, stages, title="A pipeline", defaults=Experiment))


@pytest.mark.parametrize(("name", "text"), [pytest.param(*it, id=it[0]) for it in pipelines()])
def test_pipelines_that_are_shipped_are_taken(name: str, text: str, staged: Draft202012Validator) -> None:
    Draft202012Validator.check_schema(staged.schema)
    assert wrong(staged, text) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('kind = "judge"', 'kind = "jugde"', "$.stage[2].kind: 'jugde' is not one of"),
        ("per_prompt = 3", "per_prompt = 0", "$.stage[2].per_prompt: 0 is not valid under any"),
        ("per_prompt = 3", "per_promt = 3", "$.stage[2]: Additional properties are not allowed ('per_promt'"),
        ("seeds = 3", "seeds = 'x'", "$.stage[4].seeds: 'x' is not valid under any"),
        ("grpo = { lr = 2e-4 }", "grpo = { lr = 0 }", "$.stage[4].agents.grpo.lr: 0 is not valid under any"),
        ("num_envs = 64", "num_envs = true", "$.defaults.environment.num_envs: True is not valid under any"),
        ('from = "base"\n', "from = 3\n", "$.stage[1].from: 3 is not valid under any"),
        ('name = "base"\nkind', "kind", "$.stage[0]: 'name' is a required property"),
    ],
)
def test_a_wrong_pipeline_is_not(old: str, new: str, said: str, staged: Draft202012Validator) -> None:
    text = (PACKAGE / "pipeline" / "demo.toml").read_text("utf-8")
    assert old in text
    found = wrong(staged, text.replace(old, new, 1))
    assert any(it.startswith(said) for it in found), found


@pytest.mark.parametrize(("name", "text"), [pytest.param(*it, id=it[0]) for it in shipped()])
def test_what_is_shipped_is_taken(name: str, text: str, validator: Draft202012Validator) -> None:
    assert wrong(validator, text) == []


def test_something_is_shipped() -> None:
    assert len(list(shipped())) >= 4


@pytest.mark.parametrize("text", [TOY, f"{GRID}\n[agents.ppo]\n"], ids=["experiment", "grid"])
def test_what_the_bad_inputs_were_made_of_is_taken(text: str, validator: Draft202012Validator) -> None:
    assert wrong(validator, text) == []


def test_the_resolved_file_of_a_run_is_taken(validator: Draft202012Validator) -> None:
    assert wrong(validator, Experiment().to_toml()) == []


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("[stopping.max_kl]\nlimit = 2.0", ""),
        ('[stopping.far]\nplugin = "max_kl"\nlimit = 2.0', ""),
        ('[stopping]\nrule = "max_kl"\nlimit = 2.0', ""),
        ('[stopping]\nrule = "brake"', ""),
        ('[stopping]\nrule = "max_kll"', "$.stopping.rule: 'max_kll' is not one of ["),
        ('[stopping]\nrule = "max_kl"\nlimt = 2.0', "$.stopping: 'limit' is a required property"),
        ("[stopping.max_kl]\nlimit = 0.0", "$.stopping.max_kl.limit: 0.0 is less than or equal to the minimum of 0"),
        ('[stopping.far]\nplugin = "max_kl"\nlimt = 2.0', "$.stopping.far: 'limit' is a required property"),
        ("[stopping.far]\nlimit = 2.0", "$.stopping.far: 'plugin' is a required property"),
        ('[stopping.far]\nplugin = "max_kll"', "$.stopping.far.plugin: 'max_kll' is not one of ["),
        ('[trackers.wandb]\nproject = "toy"', ""),
        ("[trackers.tensorboard]", ""),
        ('[trackers.tensorboard]\nproject = "toy"', "$.trackers.tensorboard: Additional properties are not allowed"),
        ('[trackers.wandbb]\nproject = "toy"', "$.trackers.wandbb: 'function' is a required property"),
        ('[trackers.mine]\nfunction = "mine.py:Mine"\nproject = "toy"', ""),
        ('[stopping.mine]\nfunction = "mine.py:Mine"\nlimit = 2.0', ""),
    ],
)
def test_rules_and_trackers_are_tables_by_name(table: str, said: str, validator: Draft202012Validator) -> None:
    found = wrong(validator, f"{TOY}\n{table}\n")
    assert any(said in problem for problem in found) if said else found == []


def wrong_files() -> Iterator[Any]:
    """The files that are wrong in themselves, among the bad inputs."""
    for bad in BAD:
        content = next(iter(bad.files.values()), None) if len(bad.files) == 1 else None
        if bad.command[0] in ("check", "bench") and isinstance(content, str):
            try:
                tomllib.loads(content)
            except (ValueError, RecursionError):
                continue
            yield pytest.param(bad, content, id=str(bad))


@pytest.mark.parametrize(("bad", "content"), list(wrong_files()))
def test_what_is_wrong_is_refused(bad: Bad, content: str, validator: Draft202012Validator) -> None:
    beyond = [why for pattern, why in BEYOND.items() if any(re.search(pattern, said) for said in bad.says)]
    assert wrong(validator, content) or beyond, bad.says


def test_most_of_what_is_wrong_is_refused(validator: Draft202012Validator) -> None:
    files = [it.values[1] for it in wrong_files()]
    refused = sum(bool(wrong(validator, content)) for content in files)
    assert len(files) > 130 and refused > 90, (refused, len(files))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "toy"', 'name = "toy"\nsede = 3', "$: Additional properties are not allowed ('sede' was unexpected)"),
        ("lr = 1e-2", "lr = -1", "$.agent.lr: -1 is less than or equal to the minimum of 0"),
        ("lr = 1e-2", "optimization = { lr = -1 }", "$.agent.optimization.lr: -1 is less than or equal to the mini"),
        ("lr = 1e-2", 'clip = "x"', "$.agent.clip: 'x' is not of type 'number'"),
        ("lr = 1e-2", "ganma = 1", "$.agent: Additional properties are not allowed ('ganma' was unexpected)"),
        ("lr = 1e-2", 'value_model = "own"', "$.agent.value_model: 'own' is not one of ['shared', 'separate']"),
        ("length = { target = 2 }", "length = {}", "$.rewards.length: 'target' is a required property"),
        ("length = { target = 2 }", "length = { target = 0 }", "$.rewards.length.target: 0 is less than the minimum"),
        ("length = { target = 2 }", "x = { target = 2 }", "$.rewards.x: 'plugin' is a required property"),
        ("length = 2", "length = 0", "$.task.length: 0 is less than the minimum of 1"),
        ("updates = 2", "updates = 0", "$.budget.updates: 0 is less than the minimum of 1"),
        ('name = "ppo"', 'name = "pppo"', "$.agent.name: 'pppo' is not one of ["),
    ],
)
def test_it_says_where(old: str, new: str, said: str, validator: Draft202012Validator) -> None:
    assert any(it.startswith(said) for it in wrong(validator, TOY.replace(old, new, 1))), wrong(
        validator, TOY.replace(old, new, 1)
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lr = 1e-2", "[agent.optimization]\nlr = 1e-2\nbeta1 = 0.5"),
        ("num_envs = 8\nmax_new_tokens = 4\nmax_prompt_tokens = 4", ""),
        ("length = { target = 2 }", 'x = { plugin = "length", target = 2, weight = 0.5, timeout = 3 }\ntask = 1.0'),
        ("length = { target = 2 }", 'task = { weight = 2, on_error = "skip" }\nkl = 0.1'),
        ("prompts = 4", "prompts = 4\nrewards = { repetition = 1.0, length = { target = 3 } }"),
        ('name = "ppo"\nlr = 1e-2', 'name = "curriculum"\nlevels = [1, 2]\nagent = { name = "grpo", lr = 1 }'),
        ('name = "echo"\nlength = 2', 'name = "mixture"\ntasks = ["echo", { name = "count", target = 3 }]'),
        ('name = "echo"\nlength = 2', 'name = "validation"\ntask = { name = "echo", length = 2 }\nshare = 0.5'),
        ("lr = 1e-2", 'ptx_coefficient = 0.1\nptx_data = { name = "file", path = "a.jsonl" }'),
        ("lr = 1e-2", "ptx_data = {}"),
        ("[policy]", "num_envs = 3\n[policy]"),
    ],
)
def test_what_the_library_takes_is_taken(old: str, new: str, validator: Draft202012Validator) -> None:
    text = TOY.replace(old, new, 1)
    if new.startswith("num_envs"):
        text = TOY.replace('name = "toy"', 'name = "toy"\nnum_envs = 3').replace("num_envs = 8\n", "")
    assert wrong(validator, text) == []
    Experiment.from_table(tomllib.loads(text))


def test_rows_and_tasks_of_a_grid(validator: Draft202012Validator) -> None:
    good = (
        f'{GRID}\n[agents.ppo]\n[agents.two]\nname = "grpo"\ngroup_size = 2\n[tasks.a]\nseed = 3\n[tasks.a.task]\n'
        "length = 3\n[tasks.b.rewards]\nlength = { target = 3 }\n[tasks.b.agents.two]\nlr = 1\n"
        "[reward_model]\nprompts = 9\n"
    )
    assert wrong(validator, good) == []
    for row, said in {
        "[agents.two]\n": "$.agents.two: 'name' is a required property",
        "[agents.ppo]\nlr = 0\n": "$.agents.ppo.lr: 0 is less than or equal",
        '[agents.ppo]\nname = "grpo"\nlam = 1\n': "$.agents.ppo: Additional properties are not allowed ('lam' was",
        "[agents.ppo]\n[reward_model]\nepochs = -1\n": "$.reward_model.epochs: -1 is less than the minimum of 0",
        "[agents.ppo]\n[tasks.a.environment]\nnum_envs = 0\n": "$.tasks.a.environment.num_envs: 0 is less than",
    }.items():
        assert any(it.startswith(said) for it in wrong(validator, f"{GRID}\n{row}")), (
            row,
            wrong(validator, GRID + row),
        )


def test_other_peoples_plugins_are_in_it() -> None:
    mine = PluginHost([])
    mine.add("task", "own", "tests_that_is_not_there:Task")
    mine.add("reward", "counted", counted)
    mine.add("agent", "ppo", "rlhf_agents.ppo:PPO")
    schema = file_schema(mine, Experiment, title="An experiment")
    validator = Draft202012Validator(schema)
    text = '[task]\nname = "own"\nanything = 1\n[rewards.counted]\nletter = "x"\n[agent]\nname = "ppo"\n'
    assert wrong(validator, text) == []
    assert "Not checked" in schema["$defs"]["task own"]["description"]
    assert wrong(validator, text.replace('letter = "x"', "letter = 3")) != []
    assert wrong(validator, text.replace('letter = "x"', 'lettre = "x"')) != []


def counted(prompts: list[str], completions: list[str], *, letter: str = "e") -> list[float]:
    return [float(text.count(letter)) for text in completions]


def test_the_command_writes_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf_env.cli import main

    for words, key in (
        (["schema"], "anyOf"),
        (["schema", "experiment"], "properties"),
        (["schema", "pipeline"], "stage"),
    ):
        monkeypatch.setattr(sys, "argv", ["rlhf-env", *words])
        with pytest.raises(SystemExit) as ended:
            main.main()
        assert not ended.value.code
        made = json.loads(capsys.readouterr().out)
        assert key in {**made, **made.get("properties", {})}
