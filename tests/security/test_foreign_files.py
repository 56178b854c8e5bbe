"""What is not trusted, rows S1 to S6 of the project's list: files, models and plugins of others run nothing."""

from __future__ import annotations

import ast
import hashlib
import json
import pickle
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_env import plugins
from rlhf_env.errors import DataError
from rlhf_env.feedback.reward_models.loading import load_scorer
from rlhf_env.learning import checkpoints
from rlhf_env.policies.language_model import LanguageModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from security.probes import calls, exit_of, imports, nodes


class Payload:
    """Unpickled, it leaves a file: what read it has run it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture
def payload(tmp_path: Path) -> Iterator[bytes]:
    marker = tmp_path / "payload has run"
    content = pickle.dumps(Payload(marker))
    pickle.loads(content)
    assert marker.exists(), "the payload works"
    marker.unlink()
    yield content
    assert not marker.exists(), "somebody has run the payload"


# ---------------------------------------------------------------- S1 to S4: files of others


def test_no_code_reads_a_format_that_runs_code() -> None:
    """S1, S2, S5. Also no zip of Stable-Baselines3: whoever loads one with SB3 itself trusts it."""
    unsafe = re.compile(
        r"(torch\.(load|save|hub\..*)|joblib\..*|dill\..*|shelve\..*|marshal\..*|yaml\.(load|unsafe_load)|np\.load"
        r"|eval|exec|os\.(system|popen)|load_from_zip_file|(\w+\.)*(PPO|A2C|MaskablePPO|BaseAlgorithm)\.load)"
    )
    # But for the process of the reward `code`, which is there to run what a model wrote, where the user says `trust`.
    found = {(file.name, name) for file, _, name in calls() if unsafe.fullmatch(name)}
    assert found == {("code_process.py", "exec")}
    assert unsafe.fullmatch("torch.load") and unsafe.fullmatch("stable_baselines3.PPO.load")
    # Between a run and its own child: requests are pickles, and answers JSON. The child of reasoning_gym_task.py runs
    # the library that the run itself imports, on no other input than a number: its problems come back as pickles. The
    # child of ahead_writer.py is sent its model and its requests, and answers in numbers.
    assert {file for file, name in imports() if name == "pickle"} <= {
        "isolation.py",
        "isolated_process.py",
        "reward_tables.py",
        "reasoning_gym_task.py",
        "ahead_writer.py",
    }
    loads = {file.name for file, _, name in calls() if name == "pickle.loads"}
    assert loads <= {"isolated_process.py", "ahead_writer.py"}


def test_nothing_unpacks_archives_or_runs_a_shell() -> None:
    """S15: an archive's members have names that climb."""
    assert not [found for found in imports() if found[1].split(".")[0] in ("tarfile", "zipfile")]
    assert not [file.name for file, _, name in calls() if name.endswith("unpack_archive")]
    assert not [file.name for file, call, _ in calls() for word in call.keywords if word.arg == "shell"], (
        "subprocess with a shell"
    )


def _signed(folder: Path, name: str, content: bytes) -> None:
    """Put `content` in the place of a checkpoint's file and make its manifest say so: a forger can."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    del manifest["sha256"]
    manifest["sha256"] = checkpoints._seal(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_pickle_in_a_checkpoint_is_not_run(name: str, payload: bytes, tmp_path: Path) -> None:
    """S1."""
    folder = checkpoints.save(tmp_path, 1, {"weights": torch.zeros(2)}, {})
    if name == "manifest.json":
        (folder / name).write_bytes(payload)
    else:
        _signed(folder, name, payload)
        assert checkpoints.problems(folder) == [], "it is refused for what is in it, and not as damaged"
    with pytest.raises(DataError, match=str(folder)):
        checkpoints.load(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "model.pt"])
def test_a_pickle_in_a_models_folder_is_not_run(name: str, payload: bytes, tmp_path: Path) -> None:
    """S1, S4."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "gpt2", "n_layer": 1, "n_embd": 4, "n_head": 1}')
    (folder / name).write_bytes(payload)
    with pytest.raises(DataError, match="model"):
        LanguageModel.from_pretrained(folder)
    (folder / "reward_model.json").write_text('{"format": 1, "sha256": {}}')
    with pytest.raises(DataError, match="reward_model"):
        load_scorer(folder)


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    """S3: `auto_map` names a module in the folder, which would be imported."""
    folder, marker = tmp_path / "model", tmp_path / "ran"
    folder.mkdir()
    (folder / "modeling_theirs.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nTheirs = 1\n")
    for name in ("config.json", "tokenizer_config.json"):
        mapped = {f"Auto{kind}": "modeling_theirs.Theirs" for kind in ("Config", "ModelForCausalLM", "Tokenizer")}
        (folder / name).write_text(json.dumps({"model_type": "theirs", "auto_map": mapped}))
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(DataError):
        LanguageModel.from_pretrained(folder)
    with pytest.raises(DataError):
        load_scorer(folder)
    assert not marker.exists()


def test_every_door_to_transformers_is_shut_to_code_and_pickles() -> None:
    """S3, S4. There is no switch: neither a file nor an option can say otherwise."""
    doors = [(file, call, name) for file, call, name in calls() if re.fullmatch(r"Auto\w+\.from_pretrained", name)]
    assert len(doors) >= 4
    for file, call, name in doors:
        said = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert said.get("trust_remote_code") == "False", (file, name)
        assert "Model" not in name or said.get("use_safetensors") == "True", (file, name)
    named = [
        file.name
        for file, node in nodes()
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code" and ast.unparse(node.value) != "False"
    ]
    assert not named


def test_transformers_is_new_enough() -> None:
    """S3: with versions below 5.3 a config.json alone ran code."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    (wanted,) = [it for it in tomllib.loads(project.read_text())["project"]["dependencies"] if "transformers" in it]
    lowest = re.search(r">=(\d+)\.(\d+)", wanted)
    assert lowest is not None
    assert tuple(map(int, lowest.groups())) >= (5, 3)


def test_a_revision_of_a_hub_model_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """S4: by model and tokenizer alike."""
    from rlhf_env.envs import tokenizers
    from rlhf_env.learning.experiment import Experiment
    from rlhf_env.learning.policy_settings import PolicySettings
    from rlhf_env.learning.workplace import build

    asked: list[Any] = []

    def fetched(name: str, **wanted: Any) -> str:
        asked.append((name, wanted["revision"]))
        raise OSError

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    settings = PolicySettings(model="owner/name", revision="0123abc")
    with pytest.raises(DataError, match="owner/name"):
        build(Experiment(policy=settings))
    assert asked == [("owner/name", "0123abc")]
    assert 'revision = "0123abc"' in Experiment(policy=settings).to_toml()
    assert tokenizers.load_tokenizer("bytes").vocab_size == 259

    def loaded(name: str, **wanted: Any) -> Any:
        asked.append((name, wanted["revision"]))
        raise OSError

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", loaded)
    with pytest.raises(DataError, match="owner/name"):
        build(Experiment(policy=replace(settings, tokenizer="bytes")))
    assert asked[1:] == [("owner/name", "0123abc")]


# ---------------------------------------------------------------- S5, S6: plugins


def test_listing_and_help_import_no_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """S5, S6: only a name that was registered is imported, and only when it is used. (Code that the command itself
    names, `check FILE.py:NAME`, is what somebody asked for.)"""
    marker = tmp_path / "imported"
    (tmp_path / "body_of_a_plugin.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    plugins.register_reward("bodily", "body_of_a_plugin:Reward")
    try:
        for words in (["plugins"], ["--help"], ["check", "--help"], ["check", "reward:body_of_a_plugin"]):
            exit_of(monkeypatch, *words)
            assert not marker.exists(), words
        assert "bodily" in capsys.readouterr().out
        assert exit_of(monkeypatch, "check", "reward:bodily") == 2
        assert marker.exists(), "the probe would have shown it"
    finally:
        plugins.host()._entries.pop(("reward", "bodily"))
