"""Mixtures of experts in float64.

By default the transformers library multiplies the matrices of all experts in one call of torch (`grouped_mm`), which
raises an error in float64. The library's plain loop over experts computes the same in every precision.
"""

from __future__ import annotations

import torch

from rlhf_env.policies.untyped import HFModel


def loop_over_experts_in_float64(model: HFModel) -> None:
    """Make a transformers model that has experts able to compute in float64. Other models do not change."""
    grouped = getattr(model.config.get_text_config(), "_experts_implementation", None) == "grouped_mm"
    if grouped and next(model.parameters()).dtype == torch.float64:
        model.set_experts_implementation("eager")
