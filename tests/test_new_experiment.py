"""What `rlhf-env new experiment` writes, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from chat_tokenizers import save_chat_tokenizer
from typer.testing import CliRunner

from rlhf_env import Experiment, plugins
from rlhf_env.cli.main import app
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.lab.benchmark.grid import Grid
from rlhf_env.lab.evaluation.preparing import prepare
from rlhf_env.new_experiment import folder as writing
from rlhf_env.new_experiment import write_experiment
from rlhf_env.new_experiment.writer import Writer
from rlhf_env.policies.tiny import tiny_language_model

HOUSE = Path(__file__).parents[1]
ONLINE = ("ppo", "grpo", "rloo", "reinforce", "dpo", "kto", "rejection", "options", "sb3")


def told(*words: str) -> str:
    """What a command prints, all of it; it must end well."""
    done = CliRunner().invoke(app, [*words])
    assert done.exit_code == 0, done.output
    return done.output


def trained(folder: Path, updates: int = 2) -> Experiment:
    """Its file passes `check` as it is, and trains; a test has no minute for all of it."""
    assert told("check", str(folder / "experiment.toml")).splitlines()[-1] == "ok"
    table = tomllib.loads((folder / "experiment.toml").read_text("utf-8"))
    table |= {"budget": {"updates": updates}, "evaluation": {**table["evaluation"], "samples": 1, "every": 0}}
    table["environment"] |= {"num_envs": 16, "max_new_tokens": 8}
    experiment = Experiment.from_table(table, folder=folder)
    rows = prepare(experiment).train().rows
    assert [row["update"] for row in rows] == [*range(1, updates + 1)]
    part = next(name for name in experiment.rewards if name not in ("kl", "missing_end"))
    assert all(0.0 <= row[f"rollout/part/{part}"] <= 1.0 for row in rows)
    return experiment


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_chat_tokenizer(tmp_path_factory.mktemp("models") / "chat")
    tiny_language_model(
        vocab_size=262, hidden_size=8, layers=1, heads=1, end_id=260, context=256
    ).model.save_pretrained(folder)
    return folder


def test_what_is_written_trains_as_it_is(tmp_path: Path) -> None:
    made = write_experiment("mine", tmp_path)
    files = {path.name for path in made.folder.iterdir()}
    assert files == {"README.md", "experiment.toml", "grid.toml", "prompts.jsonl", "rewards.py"}
    assert made.notes == () and made.rewards.is_file()
    texts = [path.read_text("utf-8") for path in made.folder.iterdir()]
    assert not [text for text in texts if "$" in text], "all is filled in"
    experiment = trained(made.folder)
    assert experiment.task["held_out_fraction"] == 0.25 and experiment.policy.model == "rlhf-env/chitchat"
    assert told("check", str(made.folder / "rewards.py:overlap"), "--column", "answer=a text").splitlines() == ["ok"]


def test_the_reward_that_is_written_rises(tmp_path: Path) -> None:
    made = write_experiment("mine", tmp_path)
    table = tomllib.loads((made.folder / "experiment.toml").read_text("utf-8"))
    table["budget"] = {"updates": 10}
    table["evaluation"] = {"prompts": 5, "samples": 4}
    rows = prepare(Experiment.from_table(table, folder=made.folder)).train().rows
    first, last = (sum(row["rollout/part/overlap"] for row in part) / 3 for part in (rows[:3], rows[-3:]))
    assert last > first + 0.05


def test_the_grid_is_the_experiment_with_other_agents(tmp_path: Path) -> None:
    made = write_experiment("mine", tmp_path, agent="rloo")
    grid = Grid.load(made.folder / "grid.toml")
    assert list(grid.agents) == ["rloo", "ppo", "best_of_n", "reference"]
    own = Experiment.load(made.folder / "experiment.toml").located()
    (cell,) = [it for it in grid.cells() if (it.agent, it.seed) == ("rloo", 0)]
    assert cell.experiment.agent == own.agent and cell.experiment.seed == own.seed
    for table in ("task", "policy", "environment", "rewards", "budget", "evaluation"):
        assert getattr(cell.experiment.located(), table) == getattr(own, table), table
    told("check", str(made.folder / "grid.toml"))


def test_prompts_of_a_csv_file_and_a_column_of_another_name(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = "".join(f"{i},What is {i} and {i}?,{i + i} it is\n" for i in range(8))
    (tmp_path / "data/sums.csv").write_text(f"row id,prompt,Best Answer\n{rows}")
    made = write_experiment("sums", tmp_path, prompts=tmp_path / "data/sums.csv")
    assert not (made.folder / "prompts.jsonl").exists()
    experiment = trained(made.folder)
    assert experiment.task["path"] == "../data/sums.csv", "both can be moved together"
    assert 'columns["Best Answer"]' in made.rewards.read_text("utf-8")


def test_a_file_elsewhere_is_named_by_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "asked.jsonl").write_text('{"prompt": "Hi"}\n')
    made = write_experiment("mine", tmp_path / "here", prompts=tmp_path / "asked.jsonl")
    experiment = trained(made.folder)
    assert experiment.task["path"] == str((tmp_path / "asked.jsonl").resolve())
    assert "takes_up" in experiment.rewards, "no column to compare with"
    assert experiment.task["held_out_fraction"] == 0.0 and "too few" in made.notes[0]


@pytest.mark.parametrize(
    ("columns", "column"),
    [
        ({"id": ["a", "b"], "solution": ["c", "d"]}, "solution"),
        ({"topic": ["a", "a"], "hint": ["c", "d"]}, "hint"),
        ({"topic": ["a", "a"], "level": [1, 1], "row_id": ["c", "d"], "tags": [["x"], ["y"]]}, None),
        ({"answer": ["a", None], "completions": ["a", "b"]}, None),
        ({"hint": ["e", "f"], "answer": [42, 43]}, "answer"),
    ],
)
def test_which_column_the_reward_reads(columns: dict[str, list[object]], column: str | None, tmp_path: Path) -> None:
    rows = [{"prompt": f"ask {i}", **{key: values[i] for key, values in columns.items()}} for i in range(2)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    text = write_experiment("mine", tmp_path, prompts=tmp_path / "rows.jsonl").rewards.read_text("utf-8")
    assert ("def takes_up(" in text) if column is None else (f"def overlap(completions, {column}, **columns)" in text)


def test_a_chat_model_is_asked_by_messages(chat_model: Path, tmp_path: Path) -> None:
    made = write_experiment("talk", tmp_path, model=str(chat_model), agent="ppo")
    rows = [json.loads(line) for line in (made.folder / "prompts.jsonl").read_text("utf-8").splitlines()]
    assert rows[0]["messages"][0]["role"] == "user" and rows[0]["answer"]
    plain = write_experiment("plain", tmp_path).folder / "prompts.jsonl"  # the shipped model's template takes both
    assert [{"prompt": row["messages"][0]["content"], "answer": row["answer"]} for row in rows] == [
        json.loads(line) for line in plain.read_text("utf-8").splitlines()
    ]
    trained(made.folder)
    assert made.notes == ()


def test_conversations_of_ones_own_and_prompts_that_are_too_long(chat_model: Path, tmp_path: Path) -> None:
    said = [[{"role": "user", "content": "word " * n}, {"role": "assistant", "content": "Yes."}] for n in (1, 2, 90)]
    (tmp_path / "talks.jsonl").write_text("".join(f"{json.dumps({'messages': it})}\n" for it in said))
    made = write_experiment("talk", tmp_path, model=str(chat_model), prompts=tmp_path / "talks.jsonl")
    assert "1 of 3 prompts have more than" in made.notes[0]
    experiment = trained(made.folder)
    assert experiment.environment.over_long == "cut left"
    assert experiment.environment.max_prompt_tokens + experiment.environment.max_new_tokens <= 257
    assert "completion, **columns" in made.rewards.read_text("utf-8"), "the last message is the answer"


def test_plain_prompts_for_a_chat_model_are_said(chat_model: Path, tmp_path: Path) -> None:
    (tmp_path / "asked.jsonl").write_text('{"prompt": "Hi"}\n{"prompt": "Ho"}\n')
    made = write_experiment("talk", tmp_path, model=str(chat_model), prompts=tmp_path / "asked.jsonl")
    assert "has a chat template" in made.notes[0]


def test_a_model_beside_the_folder_is_named_from_it(chat_model: Path) -> None:
    made = write_experiment("beside", chat_model.parent, model=str(chat_model))
    assert Experiment.load(made.folder / "experiment.toml").policy.model == "../chat"
    trained(made.folder)


@pytest.mark.parametrize(("parameters", "adapters"), [(1_000_000, False), (135_000_000, True)])
def test_a_large_model_trains_adapters(
    parameters: int, adapters: bool, chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = writing.look_at_model(str(chat_model))

    def look(model: str) -> Writer:
        return Writer(model=model, tokenizer=looked.tokenizer, context=looked.context, parameters=parameters)

    monkeypatch.setattr(writing, "look_at_model", look)
    made = write_experiment("mine", tmp_path, model=str(chat_model))
    policy = Experiment.load(made.folder / "experiment.toml").policy
    assert (policy.lora is not None) is adapters
    assert "[policy.lora]" in (made.folder / "experiment.toml").read_text("utf-8"), "as a comment, where it is off"
    trained(made.folder)


def test_every_agent_is_written_or_refused(chat_model: Path, tmp_path: Path) -> None:
    for name in plugins.host().names("agent"):
        if name in ONLINE:
            made = write_experiment(name, tmp_path, model=str(chat_model), agent=name)
            prepare(made.folder / "experiment.toml")
        else:
            with pytest.raises(ConfigError, match=rf"^--agent {name.replace('+', '.')}: "):
                write_experiment("refused", tmp_path, model=str(chat_model), agent=name)
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    ("agent", "says"),
    [
        ("reference", "is a control and does not train"),
        ("sft", "imitates given answers"),
        ("sft+rm", "the setting 'preferences' is required"),
        ("distill", "teacher is needed"),
        ("curriculum", "wraps another agent"),
        ("gpro", "did you mean 'grpo'?"),
    ],
)
def test_an_agent_that_needs_something_else_is_refused_by_what_it_needs(agent: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        write_experiment("mine", tmp_path, agent=agent)
    assert says in str(refused.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "says"),
    [("my run", "did you mean 'my-run'?"), ("../x", "did you mean 'x'?"), ("", "''"), ("a--b", "a"), ("a" * 61, "60")],
)
def test_a_name_that_cannot_be_is_refused(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot name an experiment") as refused:
        write_experiment(name, tmp_path)
    assert says in str(refused.value) and not list(tmp_path.iterdir())


def test_nothing_is_overwritten_and_nothing_is_left_of_what_failed(tmp_path: Path) -> None:
    made = write_experiment("mine", tmp_path)
    made.rewards.write_text("mine")
    with pytest.raises(ConfigError, match="mine is there already, and stays as it is"):
        write_experiment("mine", tmp_path)
    assert made.rewards.read_text() == "mine"
    (tmp_path / "wrong.csv").write_text("question,answer\nWhy?,So.\n")
    with pytest.raises(DataError, match=r"wrong\.csv.*rename"):
        write_experiment("other", tmp_path, prompts=tmp_path / "wrong.csv")
    with pytest.raises(ConfigError, match="made new for toy tasks"):
        write_experiment("other", tmp_path, model="tiny")
    with pytest.raises(DataError, match="no-such-model"):
        write_experiment("other", tmp_path, model="no-such-model")
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "wrong.csv"}


def test_the_command_says_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        line.partition("   #")[0].strip() for line in told("new", "experiment", "mine", "--in", "my work").splitlines()
    ]
    assert lines[1] == "my work/mine/rewards.py" and lines[3] == "cd 'my work/mine'"
    page = (tmp_path / "my work/mine/README.md").read_text("utf-8")
    assert lines[4:] and [line for line in lines[4:] if line not in page] == []
    for option in ("--model", "--prompts", "--agent"):
        done = CliRunner().invoke(app, ["new", "reward", "polite", option, "x"])
        assert isinstance(done.exception, ConfigError) and f"{option} is for an experiment" in str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["my work"]


def test_what_is_written_is_as_clean_as_the_house(chat_model: Path, tmp_path: Path) -> None:
    write_experiment("plain", tmp_path)
    (tmp_path / "asked.jsonl").write_text('{"prompt": "Hi"}\n')
    write_experiment("other", tmp_path, prompts=tmp_path / "asked.jsonl")
    rules = ["--config", HOUSE / "pyproject.toml", "--no-cache"]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *rules, tmp_path], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    for text in (path.read_text("utf-8") for path in tmp_path.glob("*/*.toml")):
        assert max(map(len, text.splitlines())) <= 120
