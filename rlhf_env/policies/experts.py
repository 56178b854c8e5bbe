"""Mixtures of experts in float64.

The transformers library multiplies all experts at once by a kernel (`torch._grouped_mm`) that float64 does not have,
and then fails; one after the other, which it can as well, they give the same in any precision.
"""

from __future__ import annotations

import torch

from rlhf_env.policies.untyped import HFModel


def compute_experts_in_own_precision(model: HFModel) -> None:
    """Make a transformers model in float64 compute its experts one by one. Other models do not change."""
    if next(model.parameters()).dtype != torch.float64 or not model._can_set_experts_implementation():
        return
    model.set_experts_implementation("eager")
