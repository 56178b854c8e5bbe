"""Capped attention is the library's, except that float64 stays float64."""

from __future__ import annotations

import torch

from rlhf_env.policies import tiny_language_model
from rlhf_env.policies.attention import attend


def test_without_a_cap_it_is_scaled_dot_product_attention() -> None:
    stream = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 5, 8, dtype=torch.float64, generator=stream)
    key, value = torch.randn(2, 2, 2, 7, 8, dtype=torch.float64, generator=stream)
    mask = torch.zeros(2, 1, 5, 7, dtype=torch.float64).masked_fill(
        torch.rand(2, 1, 5, 7, generator=stream) < 0.3, -9e9
    )
    states, weights = attend(torch.nn.Module().eval(), query, key, value, mask, scaling=0.3)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(states.transpose(1, 2), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 5, dtype=torch.float64), rtol=0, atol=1e-12)


def test_in_a_model_it_is_the_librarys_attention_but_for_its_precision() -> None:
    policy = tiny_language_model(
        family="gemma2", vocab_size=11, end_id=9, pad_id=10, dtype=torch.float64, init_std=0.5, key_value_heads=2
    )
    for layer in policy.model.model.layers:
        layer.self_attn.attn_logit_softcapping = 0.5  # so that the cap is felt
    tokens = torch.arange(40).reshape(2, 20) % 9
    with torch.no_grad():
        ours = policy.model(tokens).logits
        policy.model.set_attn_implementation("eager")
        torch.testing.assert_close(ours, policy.model(tokens).logits, rtol=0, atol=1e-5)
