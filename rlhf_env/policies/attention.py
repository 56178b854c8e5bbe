"""Attention with capped scores (Gemma 2) in the precision of the model.

The transformers library computes its softmax in float32 even where everything else is float64. The rounding of its sum
then depends on how much padding a row has, and so a log-probability depends on the other rows of the batch, at 1e-7.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_env.policies.untyped import HFModel

CAPPED = "rlhf_env_capped"  # the name under which transformers knows this implementation


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    **_others: object,
) -> tuple[Tensor, Tensor]:
    """Outputs [B, L, heads, D] and weights [B, heads, L, K] of attention `softmax(cap(scaling * q k) + mask) v`.

    `query` [B, heads, L, D]; `key`, `value` [B, groups, K, D], each group serving heads / groups heads;
    `attention_mask` [B, 1, L, K] is added to the scores; cap(x) = softcap * tanh(x / softcap).
    """
    heads = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(heads, dim=1), value.repeat_interleave(heads, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
    weights = F.dropout(weights, dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def attend_in_own_precision(model: HFModel) -> None:
    """Make a transformers model with capped scores attend in its own precision. Other models do not change."""
    config = model.config.get_text_config()
    if getattr(config, "attn_logit_softcapping", None) is None:
        return
    if config._attn_implementation not in ("eager", "sdpa"):  # sdpa, the default of older versions, ignores the cap
        return
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(CAPPED, attend)
    AttentionMaskInterface.register(CAPPED, eager_mask)
    model.set_attn_implementation(CAPPED)
