"""Capped attention is the library's, except that float64 stays float64."""

from __future__ import annotations

import torch

from rlhf_env.policies import tiny_language_model


def test_it_is_the_librarys_attention_but_for_its_precision() -> None:
    policy = tiny_language_model(
        family="gemma2", vocab_size=11, end_id=9, pad_id=10, dtype=torch.float64, init_std=0.5, key_value_heads=2
    )
    policy.model.config.attn_logit_softcapping = 0.5  # so that the cap is felt
    for layer in policy.model.model.layers:
        layer.self_attn.attn_logit_softcapping = 0.5
    tokens = torch.arange(40).reshape(2, 20) % 9
    with torch.no_grad():
        ours = policy.model(tokens).logits
        policy.model.set_attn_implementation("eager")
        theirs = policy.model(tokens).logits
        longer = torch.nn.functional.pad(tokens, (0, 9), value=10)
        assert (ours - theirs).abs().max() < 1e-5
        policy.model.set_attn_implementation("rlhf_env_capped")
        assert (policy.model(longer).logits[:, :20] - ours).abs().max() <= 1e-10
