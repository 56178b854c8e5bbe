"""`check_model` measures what it says, and a fault in any part of it is a problem."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_env import assets
from rlhf_env.envs.transformers_tokenizer import quiet_transformers
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.policies import decoding
from rlhf_env.testing import models
from rlhf_env.testing.models import ModelCheck, check_model
from rlhf_env.testing.tiny_models import tiny_model

SHIPPED = Path(assets.__file__).parent / "chitchat"


def saved(folder: Path, family: str, **settings: Any) -> Path:
    """A tiny model of the family with the shipped model's tokenizer."""
    size = json.loads((SHIPPED / "config.json").read_text())["vocab_size"]
    model = tiny_model(family, torch.float32, vocab_size=size, **settings)
    with quiet_transformers():
        model.save_pretrained(folder)
    for file in SHIPPED.glob("*token*.json"):
        shutil.copy(file, folder)
    if (template := SHIPPED / "chat_template.jinja").exists():
        shutil.copy(template, folder)
    return folder


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> ModelCheck:
    return check_model(str(saved(tmp_path_factory.mktemp("model"), "mistral")))


def test_what_is_found(checked: ModelCheck) -> None:
    assert (checked.family, checked.model_class, checked.context) == ("mistral", "MistralForCausalLM", 64)
    assert (checked.verdict, checked.problems, checked.left_out) == ("exact", (), ())
    assert list(checked.numbers) == ["float32", "float64", "bfloat16"]
    single, double, half = checked.numbers.values()
    assert all(it.path == "fused" and it.right for it in checked.numbers.values())
    assert max(double.write, double.recompute, double.own, double.ragged or 1, double.dropped or 1) < 1e-10
    assert double.windows is not None and double.windows < 1e-10  # with a window of 4, made 3
    assert single.from_float64 is not None and half.from_float64 is not None
    assert 1e-9 < single.from_float64 < 1e-4 < half.from_float64 < 1
    assert checked.gradients is not None and checked.gradients < 1e-10
    assert checked.adapter is not None and checked.adapter < 1e-10
    assert checked.template == "equal"
    assert {name for _, name in checked.ends} >= {"<|end|>"}
    assert json.loads(json.dumps(checked.as_json(), allow_nan=False))["verdict"] == "exact"


def test_people_read_the_same(checked: ModelCheck) -> None:
    text = "\n".join(checked.lines())
    for said in (f"{checked.parameters:,}", "fused", "windows", "<|end|>", "apply_chat_template on 4 conversations"):
        assert said in text
    assert text.splitlines()[-1].startswith("  exact: ")
    wrong = replace(checked, gradients=0.5)
    assert list(wrong.lines())[-1] == "  WRONG: its gradients"


def test_an_adapter_that_is_merged_wrongly_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = models.merge_adapter

    def doubled(model: Any) -> Any:
        merged = honest(model)
        merged.lm_head.weight.data = 2 * merged.lm_head.weight.data
        return merged

    monkeypatch.setattr(models, "merge_adapter", doubled)
    monkeypatch.setattr(models, "PRECISIONS", {"float64": torch.float64})
    told = check_model(str(saved(tmp_path, "llama")))
    assert told.problems == ("adapters merged and not",)


def test_wrong_log_probabilities_and_ids_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, ids = decoding.draw, models.prompt_ids

    def off(*arguments: Any) -> Any:
        tokens, logprobs = honest(*arguments)
        return tokens, logprobs + 0.01 * (len(tokens) > 4)  # of more texts than are written at load

    monkeypatch.setattr(decoding, "draw", off)
    monkeypatch.setattr(models, "prompt_ids", lambda *arguments: ids(*arguments)[1:])
    monkeypatch.setattr(models, "PRECISIONS", {"float32": torch.float32})
    told = check_model(str(saved(tmp_path, "llama")))
    assert told.verdict == "WRONG"
    assert told.problems == (
        "its log-probabilities in float32",
        "its chat template: the ids of conversation 0 are not the tokenizer's own",
    )


def test_a_model_without_a_tokenizer_is_checked_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in saved(tmp_path, "gpt_neox").glob("*token*"):
        file.unlink()
    monkeypatch.setattr(models, "PRECISIONS", {"float32": torch.float32})
    told = check_model(str(tmp_path))
    assert told.template == "none" and told.ends == ((2, ""),)
    assert told.numbers["float32"].path == "cached"
    assert any(it.startswith("its tokenizer: ") for it in told.left_out)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no causal language model") as refused:
        check_model(str(saved(tmp_path / "bert", "bert")))
    assert "\n" not in str(refused.value)
    with pytest.raises(DataError, match="there is no such folder"):
        check_model(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="'tiny' is made when it is trained"):
        check_model("tiny")
