"""`attention`: what the library is asked for is what it gets, or is refused by name; the fused ways follow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_env.errors import ConfigError
from rlhf_env.policies import attention
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.tiny import tiny_language_model


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_the_librarys_modules_attend_as_asked_and_the_numbers_are_the_same(name: str, tmp_path: Path) -> None:
    tiny_language_model(init_std=0.3).save_pretrained(tmp_path / "model")
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 250, (3, 9)))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    where = mask.clone()
    where[:, 0] = False
    expected = tiny_language_model(init_std=0.3).evaluate(tokens, mask, where).logprobs
    for fused in (True, False):
        policy = LanguageModel.from_pretrained(
            tmp_path / "model", dtype=torch.float64, end_id=258, attention=name, fused=fused
        )
        assert policy.model.config._attn_implementation == name
        assert (policy.anatomy() is not None) == fused
        rounding = 1e-5 if name == "eager" and not fused else 1e-12  # the library's eager softmax is in float32
        torch.testing.assert_close(policy.evaluate(tokens, mask, where).logprobs, expected, rtol=0, atol=rounding)


def test_the_fused_ways_are_off_beside_any_other() -> None:
    """They compute the formula of "eager" and "sdpa", and of another they know nothing."""
    policy = tiny_language_model(init_std=0.3)
    policy.model.config._attn_implementation = "flash_attention_2"
    assert policy.fused and policy.anatomy() is None


def test_what_the_family_or_the_machine_lacks_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'attention = "sdpa" cannot be used here: Gemma2ForCausalLM does not supp'):
        tiny_language_model("gemma2", attention="sdpa")
    tiny_language_model().save_pretrained(tmp_path / "model")
    for make in (
        lambda: tiny_language_model(attention="flash_attention_2", dtype=torch.bfloat16),
        lambda: LanguageModel.from_pretrained(tmp_path / "model", attention="flash_attention_2", dtype=torch.bfloat16),
    ):
        with pytest.raises(ConfigError, match=r'attention = "flash_attention_2" needs the package flash_attn, which'):
            make()


def test_flash_attention_is_for_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_FLASH", {"flash_attention_2": "torch"})  # a package that is there
    with pytest.raises(ConfigError, match=r'attention = "flash_attention_2" has no float32: take dtype = "bfloat16"'):
        tiny_language_model(attention="flash_attention_2", dtype=torch.float32)
    with pytest.raises(ConfigError, match=r'attention = "flash_attention_2" cannot be used here'):
        tiny_language_model(attention="flash_attention_2", dtype=torch.bfloat16)


def test_a_failure_that_has_nothing_to_do_with_attention_is_left_alone() -> None:
    with pytest.raises(ValueError, match=r"^the file is cut$"), attention.naming_attention("eager", torch.float32):
        raise ValueError("the file is cut")
