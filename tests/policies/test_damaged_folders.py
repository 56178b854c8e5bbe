"""Folders of models that are not whole are refused with the file that is to blame; what their users have is read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_env.envs.tokenizers import FileTokenizer, load_tokenizer
from rlhf_env.errors import DataError
from rlhf_env.learning.tokenizer_files import save_tokenizer
from rlhf_env.policies.language_model import LanguageModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from chat_tokenizers import save_chat_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = LlamaConfig(
        vocab_size=262, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, eos_token_id=260
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    return save_chat_tokenizer(tmp_path / "model")


def changed(file: Path, **settings: object) -> None:
    """The settings in a JSON file; None takes one out."""
    table = {**json.loads(file.read_text()), **settings}
    file.write_text(json.dumps({name: value for name, value in table.items() if value is not None}))


def refused(folder: Path) -> str:
    with pytest.raises(DataError) as raised:
        LanguageModel.from_pretrained(folder)
    return str(raised.value)


def test_a_pointer_of_git_lfs_is_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 12\n")
    assert (
        refused(folder) == f"{weights}: a pointer of Git LFS stands in place of the weights: fetch them (git lfs pull)"
    )


@pytest.mark.parametrize("size", [0, 100, 2000])
def test_a_file_that_was_cut_off_is_named(folder: Path, size: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    assert refused(folder).startswith(f"{weights}: cut off, or no safetensors file (")


def test_files_of_two_models_are_told(folder: Path) -> None:
    changed(folder / "config.json", intermediate_size=16)
    assert "other shapes than config.json says: these files are of two models" in refused(folder)


def test_weights_that_are_not_finite_are_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    said = refused(folder)
    assert "1 of its weights are not finite, model.layers.0.mlp.up_proj.weight among them: the files are" in said


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_an_end_token_that_the_model_alone_names_is_the_tokenizers(folder: Path, tmp_path: Path, file: str) -> None:
    changed(folder / "tokenizer_config.json", eos_token=None, pad_token=None)
    for name in ("config.json", "generation_config.json"):
        changed(folder / name, eos_token_id=[261, 260] if name == file else None)
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, FileTokenizer)
    assert (tokenizer.end_id, tokenizer.end_ids, tokenizer.pad_id) == (261, (261, 260), 261)
    save_tokenizer(tokenizer, tmp_path / "saved")
    assert FileTokenizer(tmp_path / "saved").end_id == 261
