"""Every family of causal language models in transformers, made tiny from its configuration: which can be written with?

    python tests/families.py                      # all of them: some ten minutes; the table of docs/model_families.md
    python tests/families.py llama opt mamba      # these alone

Not part of the suite: it holds what `policies/soundness.py` says at load against all families at once. A family is
"works" when a policy is made of it and then states, while rows end one by one, what the library's own forward pass says
to 1e-4 nats in float32; "refused" when making the policy says by name that it cannot be; and anything else is a fault.
What cannot be made tiny from its configuration alone is listed as not tried.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from rlhf_env.errors import DataError
from rlhf_env.policies.language_model import LanguageModel

# A small value for each size that some configuration knows under this name.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embed_dim", "embedding_size", "embedding_dim"), 32),
    **dict.fromkeys(
        ("word_embed_proj_dim", "attention_hidden_size", "rnn_state_size", "lru_width", "decoder_hidden_size"), 32
    ),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "ffn_hidden_size"), 48
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "state_size"), 8),
    **dict.fromkeys(("initializer_range", "init_std"), 0.3),  # so that a text's past makes a difference
    "encoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "rotary_dim": 4,
    "sliding_window": 4,
    "expand": 2,
    "time_step_rank": 4,
    "num_blocks": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OF_ITS_OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "mamba_d_head": 16},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8},
}
MOST_PARAMETERS = 3_000_000
PROMPTS = ([5, 6, 7, 8, 9], [10, 11, 12], [13, 14], [15, 16, 17, 18], [5, 6, 7, 8, 9], [20])
WRITING = ((1, 1, 1, 1, 1, 1), (1, 0, 1, 1, 1, 1), (1, 0, 0, 0, 1, 1), (0, 0, 0, 0, 0, 1))


def tiny(family: str) -> Any:
    """A model of the family with random weights in float32. Raises what the library raises."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family).get_text_config(decoder=True)
    shape = {name: value for name, value in SMALL.items() if _can_be_set(config, name)}
    if "kv_lora_rank" in shape:  # multi-head latent attention: the width of a head follows from others
        shape.pop("head_dim", None)
        shape["num_key_value_heads"] = shape["num_attention_heads"]
        shape["rope_parameters"] = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0}
    if _can_be_set(config, "layer_types"):  # one layer of each kind, two where there is one kind
        kinds = list(dict.fromkeys(config.layer_types))
        layers = max(2, len(kinds))
        shape |= {"layer_types": (kinds * 2)[:layers], "num_hidden_layers": layers}
    made = type(config)(**shape | OF_ITS_OWN.get(family, {}))
    with torch.device("meta"):
        size = sum(it.numel() for it in AutoModelForCausalLM.from_config(made).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"{size:,} parameters are not tiny")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(made, dtype=torch.float32).eval()
    with torch.no_grad():
        model(input_ids=torch.tensor([[3, 4, 5]]))
    return model


def _can_be_set(config: Any, name: str) -> bool:
    """Whether the configuration has a value of this name that is no function of others."""
    try:
        value = getattr(config, name, None)
    except Exception:  # one that differs from layer to layer
        return False
    given = getattr(type(config), config.attribute_map.get(name, name), None)
    return value is not None and not (isinstance(given, property) and given.fset is None)


def largest_error(policy: LanguageModel) -> float:
    """In nats, over texts whose rows end one by one: what was stated against the plain forward pass on each text."""
    texts = [list(prompt) for prompt in PROMPTS]
    stated: list[list[float]] = [[] for _ in PROMPTS]
    for step in WRITING:
        width = max(map(len, texts))
        ids = np.array([text + [0] * (width - len(text)) for text in texts])
        mask = np.array([[1] * len(text) + [0] * (width - len(text)) for text in texts])
        written = policy.write({"input_ids": ids, "attention_mask": mask.astype(np.int8)}, 1, np.array(step, bool))
        for row in np.flatnonzero(written.tokens[:, 0] < policy.vocab_size).tolist():
            texts[row].append(int(written.tokens[row, 0]))
            stated[row].append(float(written.logprobs[row, 0]))
    largest = 0.0
    with torch.no_grad():
        for prompt, text, said in zip(PROMPTS, texts, stated, strict=True):
            alone = policy.model(input_ids=torch.tensor([text])).logits[0].double().log_softmax(-1)
            places = range(len(prompt), len(prompt) + len(said))
            errors = (abs(value - float(alone[at - 1, text[at]])) for at, value in zip(places, said, strict=True))
            largest = max([largest, *errors])
    return largest


def verdicts(families: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """(family, "works", "refused", "not tried" or "FAULT", and why)."""
    for family in families:
        try:
            model = tiny(family)
        except Exception as error:  # whatever a configuration made for other sizes raises
            yield family, "not tried", (str(error).strip() or type(error).__name__).splitlines()[0]
            continue
        try:
            error = largest_error(LanguageModel(model, end_id=63, pad_id=0))
        except DataError as refused:
            yield (
                family,
                "refused",
                str(refused).partition(": use a model of a family")[0].partition(": ")[2] or str(refused),
            )
        except Exception as failed:  # what this is here to find
            yield family, "FAULT", f"{type(failed).__name__}: {failed}"
        else:
            yield family, "works" if error < 1e-4 else "FAULT", f"{error:.0e}"


def main(wanted: Sequence[str]) -> int:
    from transformers import logging
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    faults = 0
    print("| family | | |\n|---|---|---|")
    for family, verdict, why in verdicts([*wanted] or list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)):
        faults += verdict == "FAULT"
        print(f"| {family} | {verdict} | {why[:150].replace('|', '/')} |", flush=True)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
