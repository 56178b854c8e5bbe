"""A tiny model with random weights of any family of causal language models in transformers.

The configuration of a family is kept as the library makes it, and its sizes are made small: those that go by one name
everywhere by one table, the others by a table for each family. Kinds of layers and their order stay.
"""

from __future__ import annotations

from typing import Any

import torch

from rlhf_env.envs.transformers_tokenizer import quiet_transformers
from rlhf_env.policies.experts import loop_over_experts_in_float64
from rlhf_env.policies.untyped import HFConfig, HFModel

# A small value for each size that some configuration knows under this name.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embed_dim", "embedding_size", "embedding_dim"), 32),
    **dict.fromkeys(("word_embed_proj_dim", "attention_hidden_size", "rnn_state_size", "lru_width"), 32),
    **dict.fromkeys(("decoder_hidden_size", "pronunciation_embed_dim", "shape_embed_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner"), 48),
    **dict.fromkeys(("ffn_hidden_size", "d_inner", "feed_forward_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "state_size"), 8),
    **dict.fromkeys(("initializer_range", "init_std"), 0.3),  # so that a text's past makes a difference
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "sliding_window_size", "attention_window_size"), 4),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 4),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 64),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "linear_num_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    **dict.fromkeys(("ssm_state_size", "mamba_d_state"), 8),
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "encoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "num_expert_group": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "rotary_dim": 4,
    "expand": 2,
    "time_step_rank": 4,
    "num_blocks": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# What a family needs besides, or otherwise. None: the value that the configuration itself has.
_ATTENTIONS = ["sliding_attention", "full_attention"]
_EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}
_GEMMA_3N = {
    "num_hidden_layers": 4,
    "layer_types": _ATTENTIONS * 2,
    "num_kv_shared_layers": 2,
    "intermediate_size": [48] * 4,
    "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 4,
}
_GEMMA_4 = {"hidden_size_per_layer_input": 8, "per_layer_config": {"01": {"head_dim": 16}}}
_INKLING = {
    "num_hidden_layers": 3,
    "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding"],
    "swa_head_dim": 8,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "unpadded_vocab_size": 64,
    "rel_extent": 8,
    "d_rel": 4,
    "n_layers_per_attn_res_block": 1,
}
_INDEX = {"index_n_heads": 16, "index_head_dim": 16, "index_topk": 4}
_DOTS_3 = {
    "layer_types": ["indexed_attention", "sliding_attention"],
    "mlp_layer_types": ["dense", "sparse"],
    "swa_num_attention_heads": 2,
    "swa_num_key_value_heads": 2,
    "swa_q_lora_rank": 8,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 8,
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 4),
    "index_head_dim": 16,
    "index_n_heads": 16,  # with few of them many scores are 0, and which are the largest is chance
    "index_topk": 4,
    "head_dim": 16,
    "shared_experts_intermediate_size": 16,
    "rope_parameters": None,
}
_QWEN_4 = {
    "hc_lowrank": 4,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}
_ZAMBA = {
    "layer_types": None,
    "layers_block_type": ["linear_attention", "hybrid"] * 2,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "attention_hidden_size": None,
    "attention_head_dim": None,
    "head_dim": None,
}
_OF_BYTES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 1}
_OF_BYTES |= {"max_position_embeddings": 64, "hidden_size_global": 32, "vocab_size": 64}
_OF_PICTURES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_OF_PICTURES |= {"image_size": 28, "patch_size": 14}
OF_ITS_OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8},
    "blt": {
        "encoder_config": _OF_BYTES,
        "decoder_config": _OF_BYTES,
        "global_config": _OF_BYTES,
        "patcher_config": _OF_BYTES,
        "encoder_hash_byte_group_vocab": 64,
    },
    "cohere_compass_text": {
        "layer_types": _ATTENTIONS,
        "head_dim": 16,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
            "full_attention": None,
        },
    },
    "dbrx": {
        "max_seq_len": 64,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v32": _INDEX,
    "glm_moe_dsa": _INDEX,
    "deepseek_v2": {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "v_head_dim": 8},
    "dots1": _EXPERTS,
    "dots3_note": _DOTS_3,
    "dots3_note_text": _DOTS_3,
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8},
    "gemma3n": _GEMMA_3N,
    "gemma3n_text": _GEMMA_3N,
    "gemma4": _GEMMA_4,
    "gemma4_text": _GEMMA_4,
    "git": {"vision_config": _OF_PICTURES},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "mamba_d_head": 16},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "moe_topk": 2},
    "inkling2_loop_text": {**_INKLING, "loop_gate_rank": 4, "loop_layer_index_start": 1, "loop_layer_index_end": 2},
    "inkling2_text": _INKLING,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {
        "expert_ffn_hidden_size": 16,
        "moe_topk": 2,
        "zero_expert_num": 2,
        "v_head_dim": 8,
        "head_dim": 8,
    },
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "ministral": {"head_dim": 8, "layer_types": _ATTENTIONS},
    "mllama": {"cross_attention_layers": [1], "num_hidden_layers": 3},
    "nemotron_h": {"n_groups": 1},
    "nemotron": {"num_key_value_heads": 2},
    "phi4_multimodal": {
        "vision_config": _OF_PICTURES | {"crop_size": 28},
        "audio_config": {"hidden_size": 32, "intermediate_size": 48, "num_blocks": 1, "num_attention_heads": 4},
    },
    "prophetnet": {
        "num_hidden_layers": None,
        "num_decoder_layers": 2,
        "num_encoder_layers": 2,
        "num_decoder_attention_heads": 4,
    },
    "qwen4_exp": _QWEN_4,
    "qwen4_exp_text": _QWEN_4,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local", "lsh"]},
    "rembert": {"input_embedding_size": 32, "output_embedding_size": 32},
    "roc_bert": {"shape_vocab_size": 64, "pronunciation_vocab_size": 64},
    "xlnet": {"d_head": 8, "max_position_embeddings": None},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "num_heads": 2},
    "xmod": {"default_language": "en_XX"},
    "zamba": {**_ZAMBA, "mamba_dt_rank": 4, "n_mamba_heads": 2, "use_mamba_kernels": False},
    "zamba2": {**_ZAMBA, "n_mamba_heads": 4, "mamba_d_state": 8, "use_mamba_kernels": False},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 8},
}
NO_TEXTS = {
    "gemma4_assistant": "it drafts for a Gemma 4 model, whose keys and values it reads: alone it is no model",
    "musicgen": "it writes four codes of sound at a time, and no text",
    "musicgen_melody": "it writes four codes of sound at a time, and no text",
}
MOST_PARAMETERS = 3_000_000


def families() -> list[str]:
    """Every `model_type` that transformers calls a causal language model, in its order."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_model(family: str, dtype: torch.dtype = torch.float64, **settings: object) -> HFModel:
    """A model of the family with random weights, the same at every call. Raises what the library raises.

    `settings` are the configuration's, in place of those of the tables above.
    """
    from transformers import AutoConfig

    if family in NO_TEXTS:
        raise ValueError(NO_TEXTS[family])
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        config = AutoConfig.for_model(family).get_text_config(decoder=True)
        shape = small_settings(config) | OF_ITS_OWN.get(family, {}) | settings
        made = type(config)(**{name: value for name, value in shape.items() if value is not None})
        torch.manual_seed(0)
        with torch.device("meta"):
            size = sum(weight.numel() for weight in _made(family, made, dtype).parameters())
        if size > MOST_PARAMETERS:
            raise ValueError(f"{size:,} parameters are not tiny")
        torch.manual_seed(0)
        model = _made(family, made, dtype).eval()
        loop_over_experts_in_float64(model)
        with torch.no_grad():
            model(input_ids=torch.tensor([[3, 4, 5]]))
    return model


def small_settings(config: HFConfig) -> dict[str, Any]:
    """Small values for the sizes of a configuration."""
    shape = {name: value for name, value in SMALL.items() if _can_be_set(config, name)}
    if "kv_lora_rank" in shape:  # multi-head latent attention: the width of a head follows from others
        shape.pop("head_dim", None)
        shape["num_key_value_heads"] = shape["num_attention_heads"]
        shape["rope_parameters"] = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0}
    if _can_be_set(config, "layer_types"):  # one layer of each kind, two where there is one kind
        kinds = list(dict.fromkeys(config.layer_types))
        layers = max(2, len(kinds))
        shape |= {"layer_types": (kinds * 2)[:layers], "num_hidden_layers": layers}
    return shape


def _made(family: str, config: HFConfig, dtype: torch.dtype) -> HFModel:
    import transformers
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if type(config) in AutoModelForCausalLM._model_mapping:
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
    # The decoder of a larger model, which the library has no automatic class for.
    return getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family])._from_config(config, dtype=dtype)


def _can_be_set(config: HFConfig, name: str) -> bool:
    """Whether the configuration has a value of this name that is no function of others."""
    try:
        value = getattr(config, name, None)
    except Exception:  # one that differs from layer to layer
        return False
    given = getattr(type(config), config.attribute_map.get(name, name), None)
    return value is not None and not (isinstance(given, property) and given.fset is None)
