"""Whether a model computes what its family computes."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from rlhf_env.policies.anatomy.families import FAMILIES
from rlhf_env.policies.anatomy.layer import Anatomy
from rlhf_env.policies.attention import CAPPED
from rlhf_env.policies.untyped import HFConfig, HFModel, HFModule

# Implementations of attention in transformers that compute the same formula, up to the order of sums.
ATTENTIONS = {"sdpa", "eager", CAPPED}


def anatomy_of(model: HFModel) -> Anatomy | None:
    """The anatomy of a causal LM of the transformers library, or of its trunk; None for a model that is not known.

    A model is known if it belongs to one of the families in `FAMILIES`, is in float32, float64 or bfloat16, and
    computes what its family computes, but for low-rank adapters: no setting, other adapter, hook or quantisation
    changes that.
    """
    kind = type(model)
    describe = FAMILIES.get(kind.__name__)
    if describe is None or not kind.__module__.startswith("transformers.models.") or not _is_plain(model):
        return None
    config, trunk = model.config, model.base_model
    if config._attn_implementation not in ATTENTIONS or getattr(trunk, "gradient_checkpointing", False):
        return None
    if not _attends_to_the_past(config, trunk):
        return None
    return describe(trunk, config)


class Recognized:
    """The anatomy of one model, looked for again only after something of the model has changed.

    Every forward pass asks for it, and in a small model the answer took as long as the layers.
    """

    def __init__(self) -> None:
        self._model: HFModel | None = None
        self._look: _Look | None = None
        self._anatomy: Anatomy | None = None

    def of(self, model: HFModel) -> Anatomy | None:
        """What `anatomy_of` says of `model` as it is now."""
        if self._look is None or self._model is not model or not self._look.holds():
            self._look = None  # stays so if what follows raises
            self._anatomy, self._model = anatomy_of(model), model
            self._look = _Look(model)
        return self._anatomy

    def __deepcopy__(self, _memo: object) -> Recognized:
        return Recognized()  # a copy of the model has modules of its own

    def __reduce__(self) -> tuple[type[Recognized], tuple[()]]:
        return Recognized, ()


_place_and_precision = operator.attrgetter("dtype", "device")


class _Look:
    """All that `anatomy_of` may have read of a model: the attributes of its modules, what is in their tables (hooks
    among it), where parameters are and in which precision, and its configurations.

    What was read is kept, so that an object which is another cannot have come to the same address.
    """

    def __init__(self, model: HFModel) -> None:
        modules = list(model.modules())
        self._attributes = [(vars(module), tuple(vars(module).values())) for module in modules]
        self._types = [(module, type(module)) for module in modules]
        tables = [it for _, values in self._attributes for it in values if isinstance(it, (dict, list, set))]
        self._empty = [table for table in tables if not table]
        self._filled = [(table, tuple(_inside(table))) for table in tables if table]
        self._parameters = list(model.parameters())
        self._places = list(map(_place_and_precision, self._parameters))
        self._configs = [model.config, getattr(model.base_model, "config", model.config)]
        self._settings = [repr(vars(config)) for config in self._configs]

    def holds(self) -> bool:
        """Whether all of that is as it was. (Written for speed: a few dozen microseconds.)"""
        for attributes, values in self._attributes:
            if len(attributes) != len(values) or not all(map(operator.is_, attributes.values(), values)):
                return False
        if any(self._empty) or any(type(module) is not kind for module, kind in self._types):
            return False
        for table, inside in self._filled:
            if len(table) != len(inside) or not all(map(operator.is_, _inside(table), inside)):
                return False
        if list(map(_place_and_precision, self._parameters)) != self._places:
            return False
        return [repr(vars(config)) for config in self._configs] == self._settings


def _inside(table: dict[Any, Any] | list[Any] | set[Any]) -> Iterable[Any]:
    return table.values() if isinstance(table, dict) else table


def has_dropout(model: HFModel) -> bool:
    """Whether dropout is active somewhere in the model."""
    attention_dropout = getattr(model.config.get_text_config(), "attention_dropout", 0.0)
    return any(
        module.training and (getattr(module, "p", 0.0) if isinstance(module, nn.Dropout) else attention_dropout)
        for module in model.modules()
    )


def _attends_to_the_past(config: HFConfig, trunk: HFModel) -> bool:
    """Whether no setting turns the model into an encoder, which looks at what comes after a token."""
    bidirectional = getattr(config, "use_bidirectional_attention", False) not in (None, False, "vision")
    return not bidirectional and all(getattr(it, "is_causal", True) for it in (config, *trunk.modules()))


def _is_plain(model: HFModel) -> bool:
    """Whether every module is as the library makes it, and all are in one precision, but for their adapters."""
    from transformers.pytorch_utils import Conv1D

    adapters = [module for module in model.modules() if hasattr(module, "lora_A")]
    inside = {id(part) for adapter in adapters for part in adapter.modules()}
    low_rank = {id(weight) for it in adapters for part in (it.lora_A, it.lora_B) for weight in part.parameters()}
    kinds = {(weight.dtype, weight.device) for weight in model.parameters() if id(weight) not in low_rank}
    plain = len(kinds) == 1 and kinds.pop()[0] in (torch.float32, torch.float64, torch.bfloat16)
    with_experts = [module for module in model.modules() if hasattr(module, "experts")]
    routing = [getattr(it, name) for it in with_experts for name in ("experts", "gate", "router") if hasattr(it, name)]
    called_whole = {id(part) for module in routing for part in module.modules()}
    plain &= all(_is_low_rank(it) or (id(it) in called_whole and _is_of_experts(it)) for it in adapters)
    for module in model.modules():  # False for another adapter, a quantised layer, somebody's hook
        plain &= not (module._forward_hooks or module._forward_pre_hooks)
        plain &= not (module._backward_hooks or module._backward_pre_hooks)
        plain &= "forward" not in vars(module)
        plain &= not isinstance(module, nn.Linear | Conv1D) or type(module) in (nn.Linear, Conv1D)
        plain &= type(module).__module__.startswith(("transformers.", "torch.")) or id(module) in inside
        plain &= not isinstance(module, nn.Sequential)
    return plain


def _is_low_rank(module: HFModule) -> bool:
    """Whether an adapter computes what `LowRank` says: it is peft's own for a matrix, active, alone, and not merged."""
    return (
        (type(module).__module__, type(module).__name__) == ("peft.tuners.lora.layer", "Linear")
        and len(module.active_adapters) == 1
        and list(module.lora_A) == list(module.active_adapters)
        and not (module.merged or module.disable_adapters or module.lora_variant)
        and not any(layer.bias is not None for layer in module.lora_B.values())
    )


def _is_of_experts(module: HFModule) -> bool:
    """Whether an adapter is peft's for the matrices of experts, which computes by itself (see `Layer.experts`)."""
    return (type(module).__module__, type(module).__name__) == ("peft.tuners.lora.layer", "ParamWrapper")
