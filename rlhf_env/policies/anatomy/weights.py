"""The numbers in a model's modules, as the fused paths take them: matrices, adapters, weights of norms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf_env.policies.untyped import HFModule

# RMS norms whose weight is stored less 1. (Gemma 4 stores it as it is.)
_LESS_ONE = {"GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm"}

# Those that in half precision round before they multiply by the weight; others (Gemma, OLMo 2) multiply in float32.
_ROUND_FIRST = {
    f"{family}RMSNorm"
    for family in (
        *("Llama", "Mistral", "Mixtral", "Qwen2", "Qwen3", "Qwen2Moe", "Qwen3Moe"),
        *("Phi3", "SmolLM3", "Granite", "Glm", "Glm4"),
    )
}


@dataclass(frozen=True, eq=False)
class LowRank:
    """The adapter of a linear layer (LoRA): x weight^T becomes x weight^T + scaling (x a^T) b^T."""

    a: Tensor
    """[r, in]"""
    b: Tensor
    """[out, r]"""
    scaling: float


def low_rank_of(module: HFModule) -> LowRank | None:
    """The adapter of a matrix; None where it has none."""
    if not hasattr(module, "lora_A"):
        return None
    (name,) = module.active_adapters
    return LowRank(module.lora_A[name].weight, module.lora_B[name].weight, float(module.scaling[name]))


def weight_and_bias(*modules: HFModule) -> tuple[Tensor, Tensor | None]:
    """Weight [out, in] and bias [out], None if there is none, of one linear layer with the outputs of all `modules`.

    Of a matrix with an adapter, those of its base. GPT-2's Conv1D stores its weight transposed.
    """
    modules = tuple(getattr(module, "base_layer", module) for module in modules)
    weights = [module.weight if isinstance(module, nn.Linear) else module.weight.t() for module in modules]
    biases = [module.bias for module in modules if module.bias is not None]
    if len(modules) == 1:
        return weights[0], biases[0] if biases else None
    return torch.cat(weights), torch.cat(biases) if biases else None


def rms_norm_weight(module: HFModule) -> tuple[Tensor, float] | None:
    """Weight [H] and epsilon of an RMS norm in float32, of some in bfloat16; None where the module has to be called.

    That is so for other norms, for one without a weight (of values in Gemma 4), and in other precisions: RMS norms of
    transformers compute in float32 whatever the model's precision is, and code of our own would not round as they do.
    """
    kind = type(module).__name__
    if not kind.endswith("RMSNorm") or not hasattr(module, "weight"):
        return None
    if module.weight.dtype != torch.float32 and (module.weight.dtype != torch.bfloat16 or kind not in _ROUND_FIRST):
        return None
    weight: Tensor = module.weight
    if kind in _LESS_ONE:
        weight = 1.0 + weight
    return weight, float(module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps)


def layer_norm_weight(module: HFModule) -> tuple[Tensor, float] | None:
    """Weight [H] and epsilon of one of Cohere's layer norms in float32, which have no bias; None as above."""
    if not type(module).__name__.startswith("Cohere") or module.weight.dtype != torch.float32:
        return None
    if module.weight.dim() > 1:  # one weight for every head
        return None
    return module.weight, float(module.variance_epsilon)
