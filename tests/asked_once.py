"""What a model is asked when it is loaded takes 40 times as long as making a tiny one, and thousands are made here.

Of equal models the answer is the same: it is remembered, by all that it depends on but our own code. Where that code is
put to the question, in tests/policies and tests/testing, every model is asked.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

from rlhf_env.policies.soundness import trusted_path

if TYPE_CHECKING:
    from rlhf_env.policies.differences import ForwardPath
    from rlhf_env.policies.language_model import LanguageModel

_LARGE = 5_000_000  # numbers: to hash more takes longer than to ask
_answers: dict[str, ForwardPath] = {}


def remembered_path(policy: LanguageModel) -> ForwardPath:
    """As `trusted_path`; what is refused is asked each time."""
    key = _identity(policy)
    if key is None:
        return trusted_path(policy)
    if key not in _answers:
        _answers[key] = trusted_path(policy)
    return _answers[key]


def _identity(policy: LanguageModel) -> str | None:
    model = policy.model
    weights = model.state_dict()
    plain = all(type(it).__name__ in ("Tensor", "Parameter") and it.device.type == "cpu" for it in weights.values())
    if not plain or sum(it.numel() for it in weights.values()) > _LARGE:
        return None
    known = hashlib.sha256()
    known.update(
        repr(
            (
                [(name, type(module), module.training) for name, module in model.named_modules()],
                model.config.to_json_string(use_diff=False),
                model.config._attn_implementation,
                [(name, it.dtype, it.shape) for name, it in weights.items()],
                (
                    policy.fused,
                    policy.writer_dtype,
                    policy.gradient_checkpointing,
                    policy.sampling,
                    policy.rows_at_once,
                ),
                (policy.context, policy.end_ids, policy.pad_id),
            )
        ).encode()
    )
    for it in weights.values():
        known.update(it.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return known.hexdigest()
