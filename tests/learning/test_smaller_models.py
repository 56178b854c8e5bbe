"""Smaller models: which layers are kept, that they are the model's own, and that the folder is a model as any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_env.envs.tokenizers import load_tokenizer
from rlhf_env.errors import ConfigError
from rlhf_env.learning.run_models import save_language_model
from rlhf_env.learning.smaller_models import spread_layers, write_smaller
from rlhf_env.learning.teachers import token_difference
from rlhf_env.policies import tiny_language_model
from rlhf_env.policies.language_model import LanguageModel


def test_layers_are_spread_from_the_first_to_the_last() -> None:
    assert spread_layers(30, 1) == (0,)
    assert spread_layers(4, 2) == (0, 3)
    assert spread_layers(9, 5) == (0, 2, 4, 6, 8)
    assert spread_layers(30, 30) == tuple(range(30))
    for layers in range(2, 20):
        for kept in range(2, layers + 1):
            assert len(set(spread_layers(layers, kept))) == kept


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo3", "qwen3_moe"])
def test_what_is_kept_is_the_models_own_in_its_order(family: Any, tmp_path: Path) -> None:
    tokenizer = load_tokenizer("alphabet:abcdefgh")
    policy = tiny_language_model(
        family, vocab_size=tokenizer.vocab_size, end_id=8, pad_id=9, layers=4, init_std=0.3, dtype=torch.float32
    )
    large, small = tmp_path / "large", tmp_path / "small"
    save_language_model(policy.model, tokenizer, large, ends=policy.end_ids, sampling=policy.sampling)
    made = write_smaller(str(large), small, layers=2)
    assert made.kept == (0, 3) and made.layers_before == 4 and made.parameters < made.of
    assert token_difference(load_tokenizer(str(large)), load_tokenizer(str(small))) == ""

    # Without its second and third layer, the large model computes what the small one does.
    shorter = policy.model.base_model
    layers = "h" if family == "gpt2" else "layers"
    kept = getattr(shorter, layers)
    setattr(shorter, layers, torch.nn.ModuleList([kept[0], kept[3]]))
    config = policy.model.config.get_text_config()
    config.num_hidden_layers = 2
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[0], config.layer_types[3]]
    texts = torch.tensor([[1, 5, 2, 7, 3]])
    small_model = LanguageModel.from_pretrained(small).eval()
    ours = small_model.model(input_ids=texts, use_cache=False).logits
    theirs = policy.model.eval()(input_ids=texts, use_cache=False).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_narrower_model_is_random_and_the_same_for_one_seed(tmp_path: Path) -> None:
    made = [
        write_smaller("rlhf-env/chitchat", tmp_path / str(i), layers=1, hidden_size=96, seed=seed)
        for i, seed in enumerate((0, 0, 1))
    ]
    assert made[0].parameters == 2048 * 96 + 4 * 96 * 96 + 3 * 96 * 256 + 3 * 96 and made[0].kept is None
    weights = [(tmp_path / str(i) / "model.safetensors").read_bytes() for i in range(3)]
    assert weights[0] == weights[1] != weights[2]


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        write_smaller("rlhf-env/chitchat", tmp_path, layers=2)
    assert [it.name for it in tmp_path.iterdir()] == ["mine.txt"]
