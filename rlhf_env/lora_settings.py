"""The settings of low-rank adapters, without torch: files and pages of settings name them before anything is loaded."""

from __future__ import annotations

from typing import Annotated

from annotated_types import MinLen

from rlhf_env.settings import AtLeastOne, Name, Positive, ShareBelowOne, settings


@settings
class Lora:
    """Low-rank adapters: what is trained, and kept, instead of the whole model. Names in brackets are peft's."""

    rank: AtLeastOne = 16
    """The rank of the change of each matrix (`r`)."""
    alpha: Positive = 32.0
    """The change is scaled by alpha / rank (`lora_alpha`)."""
    dropout: ShareBelowOne = 0.0
    """Dropout on what the adapters read, while they learn (`lora_dropout`)."""
    targets: Annotated[tuple[Name, ...], MinLen(1)] = ("all-linear",)
    """The modules that get an adapter, by the ends of their names, such as "q_proj"; "all-linear": all matrices but the
    head's (`target_modules`)."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (Kalajdzievski 2023, 2312.03732; `use_rslora`)."""
    dora: bool = False
    """Learn the magnitude of each output apart from its direction (Liu et al. 2024, 2402.09353; `use_dora`)."""
