"""Gradient checkpointing: of every layer its input alone is kept, and the backward pass computes the layer again.

Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016, 1604.06174), with torch's `checkpoint`. The numbers
are those of the usual pass, to the bit where the kernels are deterministic; dropout draws the same again.

transformers does the same in layers that are in training mode. The agents of reinforcement learning learn in evaluation
mode, since with dropout the first ratio would not be 1, so the layers are wrapped here, whatever their mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlhf_env.errors import ConfigError, Problem
from rlhf_env.policies.untyped import HFModel, HFModule


def recomputed(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`layer(x)`, of which nothing but `x` is kept for the backward pass."""
    return cast(Tensor, checkpoint(layer, x, use_reentrant=False))


def require_layers(model: HFModel) -> None:
    """Raise ConfigError for a model whose layers the library does not know how to compute again."""
    if not layers_of(model):
        said = f"gradient_checkpointing: {type(model).__name__} has no layers that can be computed again: leave it out"
        raise ConfigError(Problem(said, ("gradient_checkpointing",)))


@contextmanager
def recomputed_layers(model: HFModel) -> Iterator[None]:
    """Inside, a forward pass of the model's own code with gradients keeps of each layer its inputs alone."""
    layers = layers_of(model) if torch.is_grad_enabled() else []
    for layer in layers:
        # An attribute of the instance, which goes before the method of the class. `checkpoint` keeps the method itself,
        # so that the backward pass may come when the attribute is gone.
        layer.forward = partial(_recomputed_call, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _recomputed_call(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def layers_of(model: HFModel) -> list[HFModule]:
    """The layers that the library knows how to compute again, in their order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
