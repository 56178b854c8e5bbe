"""A model that would state wrong log-probabilities is refused when it is loaded, by name and in one line."""

from __future__ import annotations

import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rlhf_env
from rlhf_env.errors import DataError
from rlhf_env.feedback.reward_models.loading import load_scorer
from rlhf_env.learning.models import load_tokenizer_of
from rlhf_env.learning.policy_settings import PolicySettings
from rlhf_env.policies import fused, trunk
from rlhf_env.policies.differences import EXACT, LONG, RAGGED, RAGGED_AND_ENDING, differences, gradient_error
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.loading import context_of
from rlhf_env.testing.tiny_models import tiny_model

TINY = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3, **TINY}
SHORT = {"intermediate_size": 48, "max_position_embeddings": 64, **WIDE}


def model_of(family: str, dtype: torch.dtype = torch.float64, **shape: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape), dtype=dtype).eval()


RIGHT = {
    "opt": {**WIDE, "ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 16, "init_std": 0.3},
    "gpt_neox": SHORT,
    "bloom": {**TINY, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3},
    "qwen3_next": {
        **SHORT,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
}
# Right by their plain forward pass, and wrong or unable with a cache and rows of different lengths.
WITHOUT_CACHE = {
    "openai-gpt": {**TINY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3},
    "bart": {
        **TINY,
        **dict.fromkeys(("d_model", "decoder_ffn_dim"), 32),
        **dict.fromkeys(("decoder_layers", "encoder_layers"), 2),
        **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
        "max_position_embeddings": 64,
        "init_std": 0.3,
    },
    "rwkv": {**TINY, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
    "mamba": {**TINY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "minimax": {**SHORT, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2},
}


@pytest.mark.parametrize("family", [*RIGHT, *WITHOUT_CACHE])
def test_families_that_hold(family: str) -> None:
    """What writing states and what learning recomputes is what the library computes, rows ending early or not."""
    policy = LanguageModel(model_of(family, torch.float32, **(RIGHT | WITHOUT_CACHE)[family]), end_id=2, pad_id=0)
    assert policy.forward_path == ("cached" if family in RIGHT else "whole")
    prompts = np.array([[5, 6, 7, 8], [9, 10, 0, 0], [11, 0, 0, 0], [5, 6, 7, 8]])
    observation = {"input_ids": prompts, "attention_mask": (prompts > 0).astype(np.int8)}
    written = policy.write(observation, 6)
    for row, prompt in enumerate(prompts):
        said = written.tokens[row][written.tokens[row] < policy.vocab_size]
        text = torch.from_numpy(np.array([[*prompt[prompt > 0], *said]]))
        with torch.no_grad():
            whole = policy.model(input_ids=text).logits[0].double().log_softmax(-1)
        start = int((prompt > 0).sum())
        wanted = whole[start - 1 : -1].gather(1, text[0, start:, None])[:, 0].numpy()
        np.testing.assert_allclose(written.logprobs[row][: len(said)], wanted, atol=2e-5)


@pytest.mark.parametrize("family", ["openai-gpt", "bart"])
def test_half_precision_hides_nothing(family: str) -> None:
    """By bfloat16's rounding a wrong cache might pass: the check is made in float32, and the weights are as before."""
    model = model_of(family, torch.bfloat16, **WITHOUT_CACHE[family])
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    assert LanguageModel(model, end_id=2, pad_id=0).forward_path == "whole"
    for name, weight in model.named_parameters():
        assert weight.dtype == torch.bfloat16 and torch.equal(weight, before[name]), name


def test_a_cache_that_goes_wrong_once_a_text_outgrows_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows are made short for the check: the texts that it writes are shorter than this one."""
    from transformers.models.starcoder2 import modeling_starcoder2 as family

    windowed, causal = family.create_sliding_window_causal_mask, family.create_causal_mask

    def forgets_the_window(**given: Any) -> Any:
        cache = given.get("cache", given.get("past_key_values"))
        decodes = cache is not None and cache.get_seq_length() > 0
        return causal(**given) if decodes else windowed(**given)

    model = tiny_model("starcoder2", sliding_window=32)
    assert LanguageModel(model, end_id=63, pad_id=0).forward_path == "cached"
    monkeypatch.setattr(family, "create_sliding_window_causal_mask", forgets_the_window)
    policy = LanguageModel(model, end_id=63, pad_id=0)
    assert policy.forward_path == "whole"
    assert model.config.sliding_window == 32
    with torch.no_grad():
        assert differences(policy, RAGGED_AND_ENDING, whole=False).right, "short texts do not show it"


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_encoders_are_refused(family: str) -> None:
    model = model_of(family, torch.float32, **SHORT)
    with pytest.raises(DataError, match="no causal language model") as refused:
        LanguageModel(model, end_id=2, pad_id=0)
    said = str(refused.value)
    assert said.startswith(f"{type(model).__name__} (model_type {family!r})")
    assert "use a causal language model" in said
    assert "\n" not in said


def test_an_encoder_of_a_short_context_is_no_less_one() -> None:
    with pytest.raises(DataError, match="no causal language model"):
        LanguageModel(model_of("bert", **{**SHORT, "max_position_embeddings": 5}), end_id=2, pad_id=0)


def test_a_family_that_cannot_be_learned_from_is_refused() -> None:
    with pytest.raises(DataError, match="its log-probabilities have no gradient"):
        LanguageModel(tiny_model("reformer"), end_id=63, pad_id=0)


def test_padding_whose_embedding_is_zero_leaves_gradients_finite() -> None:
    """Gemma 3n divides by the length of an embedding, and that of padding is 0 until somebody trains it."""
    policy = LanguageModel(tiny_model("gemma3n_text"), end_id=63, pad_id=0)
    assert not policy.model.get_input_embeddings().weight[0].any()
    assert gradient_error(policy, RAGGED) < 1e-6


LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}


def test_longrope_ends_where_the_longest_text_would_decide_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond, keys in the cache have the angles of shorter texts, and a text's numbers hang on the others' lengths."""
    rope = {**LONGROPE, "original_max_position_embeddings": 12}
    model = tiny_model("llama", rope_parameters=rope)
    policy = LanguageModel(model, end_id=63, pad_id=0)
    assert policy.context == 12 and model.config.max_position_embeddings == 64
    with torch.no_grad():
        assert differences(policy, RAGGED_AND_ENDING).write < 1e-10
        monkeypatch.setattr(LanguageModel, "context", 64)
        assert differences(policy, LONG).write > 0.01
    prompt = np.array([[5] * 10])
    monkeypatch.undo()
    with pytest.raises(DataError, match="exceed the model's context of 12"):
        policy.write({"input_ids": prompt, "attention_mask": np.ones_like(prompt)}, 4)


def test_the_context_by_whatever_name_the_configuration_has_it() -> None:
    from transformers import BloomConfig, LlamaConfig, MptConfig, WhisperConfig, XLNetConfig

    assert context_of(XLNetConfig()) is None  # which says -1
    assert context_of(BloomConfig()) is None
    assert context_of(LlamaConfig(max_position_embeddings=77)) == 77
    assert context_of(MptConfig(max_seq_len=77)) == 77
    assert context_of(WhisperConfig(max_target_positions=77)) == 77


def test_a_family_that_changes_its_embeddings_in_place_can_learn() -> None:
    policy = LanguageModel(tiny_model("ctrl"), end_id=63, pad_id=0)
    assert policy.forward_path == "cached"
    assert gradient_error(policy, RAGGED) < 1e-10


def test_a_family_that_is_known_goes_wrong_with_other_settings() -> None:
    """An adapter, a hook, a bidirectional mask: the plain path is then asked like any other."""
    model = model_of("gemma3_text", num_key_value_heads=2, head_dim=8, use_bidirectional_attention=True, **SHORT)
    with pytest.raises(DataError, match="no causal language model"):
        LanguageModel(model, end_id=2, pad_id=0)


def test_the_check_moves_no_random_stream() -> None:
    model = model_of("gpt_neox", **SHORT)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    policies = [LanguageModel(model, end_id=2, pad_id=0, seed=1) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert policies[0].sampling_state() == policies[1].sampling_state()
    fresh = np.random.default_rng(0)
    observation = {"input_ids": fresh.integers(3, 40, (3, 4)), "attention_mask": np.ones((3, 4), np.int8)}
    first, second = (policy.write(observation, 5) for policy in policies)
    assert np.array_equal(first.tokens, second.tokens)


@pytest.mark.falls_back
def test_a_family_that_is_known_is_asked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where our own code for it does not give what the model says, the model's code is used, and it is said."""
    model = tiny_model("llama")
    assert LanguageModel(model, end_id=63, pad_id=0).forward_path == "fused"
    for module, name in ((fused, "apply_rotary"), (trunk, "apply_rotary"), (trunk, "_norm")):
        with monkeypatch.context() as changed:
            right = getattr(module, name)
            changed.setattr(module, name, lambda *given, right=right: 1.01 * right(*given))
            policy = LanguageModel(model, end_id=63, pad_id=0)
        assert policy.forward_path == "cached" and not policy.fused, name
        with torch.no_grad():
            assert differences(policy, RAGGED_AND_ENDING).write < EXACT


def test_a_model_that_is_read_whole_says_so_once(tmp_path: Path) -> None:
    """And what it costs: wherever a model is loaded from its files, for a run, its evaluation or a chat."""
    model_of("mamba", **WITHOUT_CACHE["mamba"]).save_pretrained(tmp_path / "mamba")
    model_of("llama", **SHORT, num_key_value_heads=2).save_pretrained(tmp_path / "llama")
    for name, expected in (("mamba", 1), ("llama", 0)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("default")
            for _ in range(2):
                LanguageModel.from_pretrained(tmp_path / name, end_id=2, pad_id=0)
        ours = [it for it in said if "read whole" in str(it.message)]
        assert len(ours) == expected
        for it in ours:
            assert "mamba' (model_type 'mamba')" in str(it.message) and "15,000 tokens instead of 200" in str(
                it.message
            )
            assert Path(it.filename).is_relative_to(Path(rlhf_env.__file__).parent), "one line on the command line"


def test_diverged_weights_are_refused() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    with pytest.raises(DataError, match=r"1 of its weights are not finite, model.norm.weight among them"):
        LanguageModel(model, end_id=63, pad_id=0)


def test_a_model_that_says_nothing_yet_is_right() -> None:
    """A head of zeros: every context says the same, and rounding may not be taken for a mistake."""
    model = tiny_model("llama", torch.float32)
    with torch.no_grad():
        model.lm_head.weight.mul_(1e-9)
    assert LanguageModel(model, end_id=63, pad_id=0).forward_path == "fused"


@pytest.mark.parametrize("path", ["fused", "cached"])
def test_words_that_a_bias_rules_out_are_no_mistake(path: str) -> None:
    """Their log-probability is -inf on both sides, whose difference is no number."""
    model = tiny_model("llama", torch.float32)
    bias = torch.zeros(model.config.vocab_size)
    bias[10:14] = -torch.inf
    model.lm_head.register_parameter("bias", torch.nn.Parameter(bias))
    assert LanguageModel(model, end_id=63, pad_id=0, fused=path == "fused").forward_path == path


# ---------------------------------------------------------------- adapters


def test_an_adapter_alone_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    loaders = {
        "'owner/base'.*(no such folder|is no folder)": (
            lambda: LanguageModel.from_pretrained(tmp_path),
            lambda: load_tokenizer_of(PolicySettings(model=str(tmp_path))),
        ),
        "a PEFT adapter of 'owner/base', and no whole model: merge": (lambda: load_scorer(tmp_path),),
    }
    for says, loads in loaders.items():
        for load in loads:
            with pytest.raises(DataError, match=says) as refused:
                load()
            assert "\n" not in str(refused.value), inspect.getsource(load)
    (tmp_path / "adapter_config.json").write_text("[")
    with pytest.raises(DataError, match=r"adapter_config\.json cannot be read"):
        LanguageModel.from_pretrained(tmp_path)
