"""One forward pass through any transformers causal LM that computes logits only where somebody reads them.

A causal LM is a trunk (from the embedding to the final norm) and a head. The head is the model's own code and may scale
or cap the logits (Gemma, Granite, Cohere), so the model itself has to call it. A hook between the two hands it only
those states whose logits are wanted.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from rlhf_env.errors import ConfigError
from rlhf_env.policies.untyped import HFCache, HFModel, HFModule
from rlhf_env.types import JsonObject


def forward_pass(
    model: HFModel,
    tokens: Tensor,
    attention_mask: Tensor,
    positions: Tensor,
    *,
    select: Callable[[Tensor], Tensor],
    cache: HFCache | None = None,
) -> tuple[Tensor, Tensor]:
    """The states [B, L, H] after the final norm, and the logits [N, V] of the states [N, H] that `select` picks.

    `tokens`, `positions` [B, L]; `attention_mask` [B, length of the cache + L], True on text; the cache grows by L.
    """
    trunk = trunk_of(model)
    states: list[Tensor] = []

    def keep_selected(_module: HFModule, _arguments: Any, output: Any) -> Any:
        states.append(output.last_hidden_state)
        output.last_hidden_state = select(states[0]).unsqueeze(0)
        return output

    inputs: JsonObject = {"input_ids": tokens, "attention_mask": attention_mask.long(), "use_cache": cache is not None}
    if cache is not None:  # newer versions of the library warn of the older name
        named = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        inputs[named] = cache
    if "position_ids" in inspect.signature(trunk.forward).parameters:  # ALiBi models take positions from the mask
        inputs["position_ids"] = positions
    hook = trunk.register_forward_hook(keep_selected)
    try:
        logits = model(**inputs, return_dict=True).logits
    finally:
        hook.remove()
    return states[0], logits[0]


@contextmanager
def first_layer_alone(model: HFModel) -> Iterator[None]:
    """Inside, the trunk has no other layers, where they are listed as usual: for whom its states are all the same."""
    trunk = trunk_of(model)
    name = next((name for name in ("layers", "h") if isinstance(getattr(trunk, name, None), nn.ModuleList)), None)
    if name is None:
        yield
        return
    layers = getattr(trunk, name)
    try:
        setattr(trunk, name, layers[:1])
        yield
    finally:
        setattr(trunk, name, layers)


def trunk_of(model: HFModel) -> HFModule:
    """The module whose output the head reads: `base_model`, or its decoder where the model calls that one (OPT, BART).

    A model is asked once, with a text of one token.
    """
    whole: HFModule = model.base_model
    if whole is model:  # of a part of a larger model (Llama 4), whose name for its trunk is another
        whole = getattr(model, "model", None)
        if whole is None:
            raise ConfigError(f"{type(model).__name__} is not a causal language model made of a trunk and a head")
    decoder = getattr(whole, "decoder", None)
    if decoder is None:
        return whole
    if model not in _CALLS_WHOLE:
        called: list[HFModule] = []
        hook = whole.register_forward_hook(lambda module, *_: called.append(module))
        try:
            with torch.no_grad():
                model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device))
        finally:
            hook.remove()
        _CALLS_WHOLE[model] = bool(called)
    return whole if _CALLS_WHOLE[model] else decoder


_CALLS_WHOLE: WeakKeyDictionary[HFModel, bool] = WeakKeyDictionary()  # of models that have a decoder inside
