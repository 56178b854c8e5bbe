"""docs/precision.md, line by line: what is kept in which precision."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import rlhf_env
from rlhf_env.learning import checkpoints
from rlhf_env.learning.run_models import model_folder
from rlhf_env.plain_data import flat
from rlhf_env.policies.fused import FusedStep
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.tiny import tiny_language_model

TABLE = Path(__file__).parents[2] / "docs" / "precision.md"


def promised(line: str, dtype: str) -> str:
    """The cell of the table in the line that begins so."""
    rows = [row.split("|")[1:-1] for row in TABLE.read_text(encoding="utf-8").splitlines() if row.startswith("|")]
    heads = [re.search(r"float\d\d|bfloat16", cell).group() for cell in rows[0][1:]]  # type: ignore[union-attr]
    (row,) = [row for row in rows if row[0].strip().startswith(line)]
    return row[1 + heads.index(dtype)].strip()


def experiment(dtype: str, *, model: str | Path = "tiny", lora: bool = False, **table: Any) -> dict[str, Any]:
    policy: dict[str, Any] = {"model": str(model), "tokenizer": "bytes", "dtype": dtype}
    if lora:
        pytest.importorskip("peft")
        policy["lora"] = {"rank": 2}
    content: dict[str, Any] = {
        "policy": policy,
        "task": {"name": "count"},
        "environment": {"num_envs": 4, "max_new_tokens": 5},
        "agent": {"name": "ppo"},
        "rewards": {"task": 1.0, "kl": 0.1},
        "budget": {"updates": 1},
        "evaluation": {"prompts": 2},
    }
    return {**content, **table}


def kinds_of(*tensors: Any) -> set[str]:
    return {str(tensor.dtype).removeprefix("torch.") for tensor in tensors}


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_each_line_of_the_table(dtype: str, lora: bool, tmp_path: Path) -> None:
    summed: set[str] = set()
    step = torch.optim.AdamW.step

    def noting(self: torch.optim.AdamW, *args: Any) -> Any:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        summed.update(kinds_of(*(it.grad for it in parameters if it.grad is not None)))
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", noting)
        run = rlhf_env.run(experiment(dtype, lora=lora), tmp_path / "run")
    policy, reference = run.policy, run.workplace.setup.reference
    assert isinstance(policy, LanguageModel) and isinstance(reference, LanguageModel)
    named = [*policy.named_parameters(), *reference.named_parameters()]
    assert kinds_of(*(it for name, it in named if ".lora_" not in name)) == {promised("weights of the model", dtype)}
    assert not lora or kinds_of(*(it for name, it in named if ".lora_" in name)) == {promised("adapters", dtype)}
    assert summed == {promised("gradients", dtype)}
    _check_checkpoint(tmp_path / "run", policy, dtype, lora=lora)
    _check_what_is_computed(policy, dtype)


def _check_checkpoint(run: Path, policy: LanguageModel, dtype: str, *, lora: bool) -> None:
    newest = checkpoints.latest(run / "checkpoints")
    assert newest is not None
    state = {
        name: it for name, it in flat(checkpoints.load(newest)[0]["agent"]).items() if isinstance(it, torch.Tensor)
    }
    kept = {
        part: kinds_of(*(it for name, it in state.items() if part in name.split(".")))
        for part in ("value_head", "exp_avg", "master")
    }
    assert kept["value_head"] == {promised("value head", dtype)}
    assert kept["exp_avg"] == {promised("AdamW's moments", dtype)}
    assert kept["master"] == ({promised("master copy", dtype)} - {"none"})
    of_policy = {name.removeprefix("policy."): it for name, it in state.items() if name.startswith("policy.")}
    assert kinds_of(*of_policy.values()) == {promised("adapters" if lora else "weights of the model", dtype)}
    assert all(torch.equal(it, of_policy[name]) for name, it in policy.state_dict().items())


def _check_what_is_computed(policy: LanguageModel, dtype: str) -> None:
    asked = {"input_ids": np.full((2, 4), 7), "attention_mask": np.ones((2, 4), bool)}
    caches: list[Any] = []
    make = FusedStep.cache

    def noting(*args: Any) -> Any:
        caches.append(make(*args))
        return caches[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FusedStep, "cache", noting)
        written = policy.write(asked, 2)
    held = [it for layer in caches[0].layers for it in (layer.keys, layer.values)]
    assert kinds_of(*held) == {promised("keys, values", dtype)}
    mask = torch.ones(2, 5, dtype=torch.bool)
    where = mask.clone()
    where[:, 0] = False
    scores = policy.evaluate(torch.full((2, 5), 7), mask, where)
    assert kinds_of(scores.hidden) == {promised("keys, values", dtype)}
    assert kinds_of(scores.logprobs, scores.entropy) == {promised("softmax", dtype)}
    assert {str(written.logprobs.dtype)} == {promised("log-probabilities that", dtype)}


@pytest.mark.parametrize(("files", "read"), [("float16", "float32"), ("bfloat16", "bfloat16"), ("float64", "float64")])
def test_auto_is_the_precision_of_the_files(files: str, read: str, tmp_path: Path) -> None:
    model = tiny_language_model(dtype=getattr(torch, files)).model
    model.save_pretrained(tmp_path / "base")
    run = rlhf_env.run(experiment("auto", model=tmp_path / "base"), tmp_path / "run")
    assert run.policy.dtype == getattr(torch, read)  # type: ignore[union-attr]
    reference = run.workplace.setup.reference
    assert isinstance(reference, LanguageModel)
    for name, weight in model.state_dict().items():  # not a bit is lost
        assert torch.equal(reference.model.state_dict()[name], weight.to(getattr(torch, read)))
    with safe_open(Path(model_folder(str(tmp_path / "run"), "last")) / "model.safetensors", "pt") as trained:
        assert kinds_of(*(trained.get_tensor(name) for name in trained.keys())) == {read}  # noqa: SIM118
    again = rlhf_env.load_run(tmp_path / "run").policy
    assert torch.equal(again.model.lm_head.weight, run.policy.model.lm_head.weight)  # type: ignore[union-attr]


def test_auto_where_the_configuration_names_no_precision_and_where_there_are_no_files(tmp_path: Path) -> None:
    tiny_language_model(dtype=torch.bfloat16).model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["dtype"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert LanguageModel.from_pretrained(tmp_path, dtype=None).dtype == torch.bfloat16
    assert rlhf_env.run(experiment("auto")).policy.dtype == torch.float32  # type: ignore[union-attr]


def test_adapters_in_auto(tmp_path: Path) -> None:
    tiny_language_model(dtype=torch.bfloat16).model.save_pretrained(tmp_path / "base")
    whole = rlhf_env.run(experiment("auto", model=tmp_path / "base", lora=True), tmp_path / "run")
    policy = whole.policy
    assert isinstance(policy, LanguageModel) and policy.dtype == torch.bfloat16
    folder = model_folder(str(tmp_path / "run"), "last")
    assert LanguageModel.from_pretrained(folder, dtype=None).dtype == torch.bfloat16


def test_the_default_settings_stay_out_of_the_resolved_file() -> None:
    """A run is known by that text: those of older versions resume."""
    written = rlhf_env.Experiment.from_table(experiment("float32")).to_toml()
    assert "gradient_checkpointing" not in written and "attention" not in written
    used = experiment("float32")
    used["policy"] |= {"gradient_checkpointing": True, "attention": "sdpa"}
    again = rlhf_env.Experiment.from_table(used)
    assert again.policy.gradient_checkpointing and 'attention = "sdpa"' in again.to_toml()


def test_settings_of_layers_reach_the_model_of_a_folder(tmp_path: Path) -> None:
    tiny_language_model(dtype=torch.float32).save_pretrained(tmp_path / "base")
    used = experiment("float32", model=tmp_path / "base")
    plain = rlhf_env.run(used, tmp_path / "plain")
    used["policy"] |= {"gradient_checkpointing": True, "attention": "eager"}
    saving = rlhf_env.run(used, tmp_path / "saving")
    policy = saving.policy
    assert isinstance(policy, LanguageModel)
    assert policy.gradient_checkpointing and policy.model.config._attn_implementation == "eager"
    for name, weight in plain.policy.state_dict().items():
        torch.testing.assert_close(policy.state_dict()[name], weight, rtol=0, atol=1e-5)


def test_what_rounding_leaves_between_written_and_learned_is_what_the_page_says() -> None:
    """By the command that the page names: largest and mean difference, without adapters and with."""
    pytest.importorskip("peft")
    sys.path.insert(0, str(TABLE.parents[1] / "benchmarks"))
    from written_and_learned import differences

    for dtype in ("float64", "float32", "bfloat16"):
        said = promised_numbers(dtype)
        found = differences("rlhf-env/chitchat", getattr(torch, dtype), 16, 0.01)
        for quoted, value in zip(said[2:], found[:2], strict=True):
            assert value < 5 * quoted  # by another processor's order of sums


def promised_numbers(dtype: str) -> list[float]:
    rows = [row.split("|")[1:-1] for row in TABLE.read_text(encoding="utf-8").splitlines() if row.startswith("|")]
    (row,) = [row for row in rows if row[0].strip() == dtype]
    return [float(cell) for cell in row[1:]]
