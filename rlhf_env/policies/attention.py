"""Which attention a model's own modules compute; and attention with capped scores in the precision of the model.

Where scores are capped (Gemma 2), the transformers library computes its softmax in float32 even if everything else is
float64. The rounding of its sum then depends on how much padding a row has, and so a log-probability depends on the
other rows of the batch, at 1e-7.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_env.errors import ConfigError, Problem
from rlhf_env.policies.untyped import HFModel

CAPPED = "rlhf_env_capped"  # the name under which transformers knows this implementation
_FLASH = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}  # the package of each


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


@contextmanager
def naming_attention(wanted: str | None, dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, a model is made whose attention is `wanted`, one of the library's implementations; None: its own choice.

    Raises ConfigError where the implementation, the device or the family of the model cannot do that.
    """
    if wanted is None:
        yield
        return
    package = _FLASH.get(wanted)
    # Without it the library would fetch a kernel from the hub, which is code of others.
    if package is not None and importlib.util.find_spec(package) is None:
        raise _refused(wanted, f"needs the package {package}, which is not installed, and a GPU that it knows")
    if package is not None and dtype not in (torch.bfloat16, torch.float16, None):
        kind = str(dtype).removeprefix("torch.")
        raise _refused(wanted, f'has no {kind}: take dtype = "bfloat16" with it')
    try:
        yield
    except (ImportError, ValueError) as error:  # what the library says of an implementation that it cannot use
        said = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        if "attention" not in said.lower() and "attn" not in said.lower() and wanted not in said:
            raise
        raise _refused(wanted, f"cannot be used here: {said}") from error


def _refused(wanted: str, why: str) -> ConfigError:
    return ConfigError(
        Problem(f'attention = "{wanted}" {why}; or leave attention out, for the library\'s choice', ("attention",))
    )
