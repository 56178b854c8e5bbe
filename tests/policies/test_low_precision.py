"""A copy of a policy in 8 bits, or in bfloat16, writes: it states exactly what it finds likely."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlhf_env.errors import ConfigError
from rlhf_env.lora_settings import Lora
from rlhf_env.policies import LanguageModel, low_precision, tiny_language_model
from rlhf_env.policies.lora import adapter_weights, add_adapter, merge_adapter
from rlhf_env.policies.low_precision import (
    BFloat16Linear,
    Int8Linear,
    PackedInt8Linear,
    RMSNormIn8Bits,
    fallback,
    in_8_bits,
    writing_exactly,
)

pytestmark = pytest.mark.skipif(not low_precision.has_int8(), reason="this processor has no 8-bit instructions")


class Plain8Bit(nn.Module):
    """The same in float64, number by number: what `Int8Linear` is held to."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = self.rounded(weight.detach()), bias

    @staticmethod
    def rounded(values: Tensor) -> Tensor:
        scale = (values.abs().max(dim=-1, keepdim=True).values / 127).clamp(min=1e-30)
        return torch.round(values / scale) * scale

    def forward(self, x: Tensor) -> Tensor:
        y = self.rounded(x) @ self.weight.T
        return y if self.bias is None else y + self.bias


def in_plain_8_bits(policy: LanguageModel) -> LanguageModel:
    """The policy's own modules (of transformers) with every matrix replaced."""
    plain = copy.deepcopy(policy)
    plain.writer_dtype, plain.fused = None, False
    for name, module in list(plain.model.named_modules()):
        if isinstance(module, nn.Linear | Conv1D):
            weight = module.weight.T if isinstance(module, Conv1D) else module.weight
            parent = plain.model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], Plain8Bit(weight, module.bias))
    return plain


def observation(rows: int = 3, width: int = 7, *, ragged: bool = True) -> dict[str, Any]:
    ids = np.random.default_rng(0).integers(0, 28, (rows, width))
    lengths = np.arange(rows) % 3 + width - 2 if ragged else np.full(rows, width)
    return {"input_ids": ids, "attention_mask": (np.arange(width) < lengths[:, None]).astype(np.int8)}


def read_again(policy: LanguageModel, asked: dict[str, Any], tokens: np.ndarray) -> np.ndarray:
    """The log-probabilities of `tokens` [B, k] after the prompts, by the policy's own forward pass."""
    found = np.zeros(tokens.shape)
    for row, (ids, mask) in enumerate(zip(asked["input_ids"], asked["attention_mask"], strict=True)):
        written = tokens[row][tokens[row] < policy.vocab_size]
        text = torch.from_numpy(np.concatenate([ids[: mask.sum()], written]))[None]
        with torch.no_grad():
            logits = policy.model(text).logits[0, -len(written) - 1 : -1]
        scores = logits.log_softmax(-1).gather(1, torch.from_numpy(written)[:, None])
        found[row, : len(written)] = scores[:, 0].numpy()
    return found


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2", "phi3", "cohere2"])
def test_what_the_copy_states_is_what_a_plain_8_bit_model_says(family: Any) -> None:
    policy = tiny_language_model(family, vocab_size=30, init_std=0.3, writer_dtype="int8")
    assert policy.copy_writes
    asked = observation()
    written = policy.write(asked, 9)
    exact = read_again(in_plain_8_bits(policy), asked, written.tokens)
    # Some families of transformers normalise in float32 whatever the precision of the model is.
    np.testing.assert_allclose(written.logprobs, exact, rtol=0, atol=1e-9 if family == "gpt2" else 2e-5)
    own = read_again(in_own_precision(policy), asked, written.tokens)
    assert np.abs(written.logprobs - own).max() > 1e-3


def in_own_precision(policy: LanguageModel) -> LanguageModel:
    plain = copy.deepcopy(policy)
    plain.writer_dtype = None
    return plain


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_layer_in_8_bits(dtype: torch.dtype, bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1100, 40, generator=generator).to(dtype)  # more rows than are rounded at a time
    offset = torch.randn(1100, generator=generator).to(dtype) if bias else None
    x, residual = torch.randn(5, 40, generator=generator).to(dtype), torch.randn(5, 1100, generator=generator).to(dtype)
    x[2] = 0.0
    layer = Int8Linear(weight, offset)
    exact = Plain8Bit(weight.double(), None if offset is None else offset.double())(x.double())
    close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.2}[dtype]
    torch.testing.assert_close(layer(x), exact.to(dtype), rtol=0, atol=close)
    torch.testing.assert_close(layer.add_to(residual, x), (residual.double() + exact).to(dtype), rtol=0, atol=close)
    assert layer(x).dtype == layer.add_to(residual, x).dtype == dtype


def test_many_rows_are_as_few_at_a_time() -> None:
    x = torch.randn(600, 40, generator=torch.Generator().manual_seed(0))
    layer = Int8Linear(torch.randn(30, 40, generator=torch.Generator().manual_seed(1)), torch.ones(30))
    assert torch.equal(layer(x), torch.cat([layer(row) for row in x.split(7)]))


@pytest.mark.parametrize("bias", [False, True])
def test_packed_weights_give_the_same_bits(monkeypatch: pytest.MonkeyPatch, bias: bool) -> None:
    monkeypatch.setattr(low_precision, "LARGE_ENOUGH_TO_PACK", 1)
    generator = torch.Generator().manual_seed(0)
    weight, offset = torch.randn(96, 200, generator=generator), torch.randn(96, generator=generator)
    x, residual = torch.randn(9, 200, generator=generator), torch.randn(9, 96, generator=generator)
    x[4] = 0.0
    plain, packed = (kind(weight, offset if bias else None) for kind in (Int8Linear, PackedInt8Linear))
    assert packed.packed
    assert torch.equal(packed(x), plain(x))
    assert torch.equal(packed.add_to(residual, x), plain.add_to(residual, x))


def test_long_texts_are_written_with_packed_weights_and_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_precision, "LARGE_ENOUGH_TO_PACK", 1)
    policy = tiny_language_model(vocab_size=30, init_std=0.3, dtype=torch.float32, writer_dtype="int8")
    steps = low_precision.WORTH_PACKING
    assert low_precision.writer_linear("int8", policy.model, steps=steps) is PackedInt8Linear
    assert low_precision.writer_linear("int8", policy.model, steps=steps - 1) is Int8Linear
    made: list[type] = []
    usual = PackedInt8Linear._stored
    monkeypatch.setattr(PackedInt8Linear, "_stored", lambda self, whole: made.append(type(self)) or usual(self, whole))
    plain = policy.write(observation(), 6)
    assert not made
    monkeypatch.setattr(low_precision, "WORTH_PACKING", 6)
    policy.forget()
    policy.reseed(0)
    packed = policy.write(observation(), 6)
    assert made
    np.testing.assert_array_equal(packed.tokens, plain.tokens)
    np.testing.assert_array_equal(packed.logprobs, plain.logprobs)


def test_a_norm_in_8_bits_is_the_norm_rounded() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(6, 64, generator=generator) * 3, torch.rand(64, generator=generator) + 0.5
    x[2] = 0.0
    rows = RMSNormIn8Bits(weight, 1e-5)(x)
    normed = torch.nn.functional.rms_norm(x.double(), (64,), weight.double(), 1e-5)
    exact = in_8_bits(normed)
    assert torch.equal(rows.numbers, exact.numbers.float())
    torch.testing.assert_close(rows.scale.double(), exact.scale, rtol=1e-5, atol=1e-20)
    assert len(rows) == 6 and rows.dtype == torch.float32


def test_whole_numbers_reach_127_and_no_further() -> None:
    rows = in_8_bits(torch.tensor([[0.0, -2.54, 1.27, 0.01], [0.0, 0.0, 0.0, 0.0]]))
    assert rows.numbers.tolist() == [[0, -127, 64, 0], [0, 0, 0, 0]]  # 63.5 and 0.5 are halves: to even
    assert float(rows.scale[0]) == pytest.approx(0.02)


@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
def test_a_row_does_not_depend_on_the_rows_beside_it(kind: Any) -> None:
    many = observation(6)
    together = tiny_language_model(vocab_size=30, init_std=0.3, writer_dtype=kind).write(many, 8)
    alone = tiny_language_model(vocab_size=30, init_std=0.3, writer_dtype=kind)
    only = np.arange(6) == 4
    found = alone.write(many, 8, only)
    np.testing.assert_array_equal(found.tokens[4], together.tokens[4])
    np.testing.assert_allclose(found.logprobs[4], together.logprobs[4], rtol=0, atol=1e-9 if kind == "int8" else 0.05)


def test_token_by_token_it_writes_the_same() -> None:
    asked = observation(ragged=False)
    whole = tiny_language_model(vocab_size=30, init_std=0.3, writer_dtype="int8").write(asked, 6)
    stepwise = tiny_language_model(vocab_size=30, init_std=0.3, writer_dtype="int8")
    ids = asked["input_ids"]
    for step in range(6):
        live = np.ones(len(ids), bool) if step == 0 else (ids[:, -1] < 29)
        mask = np.ones(ids.shape, np.int8)
        piece = stepwise.write({"input_ids": ids, "attention_mask": mask}, 1, live)
        np.testing.assert_array_equal(piece.tokens[live, 0], whole.tokens[live, step])
        np.testing.assert_allclose(piece.logprobs[live, 0], whole.logprobs[live, step], rtol=0, atol=1e-9)
        ids = np.concatenate([ids, np.minimum(piece.tokens, 29)], axis=1)


def test_it_is_made_anew_when_the_weights_change() -> None:
    policy = tiny_language_model(vocab_size=30, init_std=0.3, writer_dtype="int8")
    policy.write(observation(), 4)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    policy.reseed(5)
    written = policy.write(observation(), 4)
    fresh = copy.deepcopy(policy)
    fresh.reseed(5)
    again = fresh.write(observation(), 4)
    np.testing.assert_array_equal(written.tokens, again.tokens)
    np.testing.assert_array_equal(written.logprobs, again.logprobs)


def test_an_adapter_is_merged_before_it_is_rounded() -> None:
    policy = tiny_language_model(vocab_size=30, init_std=0.3, writer_dtype="int8")
    add_adapter(policy.model, Lora(rank=2), seed=0)
    for number, weight in enumerate(adapter_weights(policy.model).values()):
        weight.copy_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)))
    merged = LanguageModel(merge_adapter(policy.model), end_id=policy.end_id, writer_dtype="int8")
    ours, theirs = policy.write(observation(), 6), merged.write(observation(), 6)
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_allclose(ours.logprobs, theirs.logprobs, rtol=0, atol=1e-9)


def test_inside_writing_exactly_the_policy_writes_itself() -> None:
    policy, other = (tiny_language_model(vocab_size=30, init_std=0.3, writer_dtype=kind) for kind in ("int8", None))
    with writing_exactly(policy, object()):
        assert not policy.copy_writes
        exact = policy.write(observation(), 5)
    assert policy.copy_writes
    plain = other.write(observation(), 5)
    np.testing.assert_array_equal(exact.tokens, plain.tokens)
    np.testing.assert_array_equal(exact.logprobs, plain.logprobs)
    assert not np.array_equal(policy.write(observation(), 5).logprobs, exact.logprobs)


def test_a_copy_does_not_continue_what_the_policy_has_read() -> None:
    policy, fresh = (tiny_language_model(vocab_size=30, init_std=0.3, writer_dtype="int8") for _ in range(2))
    asked = observation(ragged=False)
    with writing_exactly(policy):
        written = policy.write(asked, 1)
    ids = np.concatenate([asked["input_ids"], written.tokens], axis=1)
    longer: Any = {"input_ids": ids, "attention_mask": np.ones(ids.shape, np.int8)}
    fresh.load_sampling_state(policy.sampling_state())
    np.testing.assert_allclose(policy.write(longer, 1).logprobs, fresh.write(longer, 1).logprobs, rtol=0, atol=1e-12)


def test_evaluate_is_the_policys_own() -> None:
    tokens = torch.from_numpy(observation(ragged=False)["input_ids"])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    where = mask.clone()
    where[:, 0] = False
    copied, plain = (
        tiny_language_model(vocab_size=30, init_std=0.3, writer_dtype=kind).evaluate(tokens, mask, where).logprobs
        for kind in ("int8", None)
    )
    assert torch.equal(copied, plain)


def test_bfloat16_is_near_and_is_not_the_policy() -> None:
    policy = tiny_language_model(vocab_size=30, init_std=0.3, dtype=torch.float32, writer_dtype="bfloat16")
    if not policy.copy_writes:
        pytest.skip("this processor does not multiply in bfloat16")
    written = policy.write(observation(), 6)
    own = read_again(in_own_precision(policy), observation(), written.tokens)
    assert 1e-4 < np.abs(written.logprobs - own).max() < 0.3
    assert BFloat16Linear(torch.ones(3, 4), None)(torch.ones(2, 4)).tolist() == [[4.0] * 3] * 2


def test_auto_takes_bfloat16_for_large_models_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    small = tiny_language_model(vocab_size=30, dtype=torch.float32, writer_dtype="auto")
    assert not small.copy_writes
    monkeypatch.setattr(low_precision, "WORTH_A_COPY", 1)
    monkeypatch.setattr(low_precision, "has_bfloat16", lambda: True)
    assert small.copy_writes
    assert not tiny_language_model(vocab_size=30, writer_dtype="auto").copy_writes  # float64 is for exactness
    assert low_precision.writer_linear("auto", small.model) is BFloat16Linear
    monkeypatch.setattr(low_precision, "has_bfloat16", lambda: False)
    assert not small.copy_writes


def test_without_the_instructions_the_policy_writes_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fallback("int8", "cpu") is None
    monkeypatch.setattr(low_precision, "has_int8", lambda: False)
    policy, plain = (tiny_language_model(vocab_size=30, init_std=0.3, writer_dtype=kind) for kind in ("int8", None))
    assert not policy.copy_writes
    np.testing.assert_array_equal(policy.write(observation(), 5).logprobs, plain.write(observation(), 5).logprobs)
    assert "this processor has no instructions" in str(fallback("int8", "cpu"))
    assert "the model is on cuda" in str(fallback("int8", "cuda"))
    assert fallback("auto", "cpu") is None and fallback(None, "cuda") is None


def test_what_has_no_copy_is_refused() -> None:
    with pytest.raises(ConfigError, match="fused is false"):
        tiny_language_model(writer_dtype="int8", fused=False)
    assert not tiny_language_model(writer_dtype="auto", fused=False).copy_writes
    bloom = nn.Module()
    with pytest.raises(ConfigError, match="Module is none of the families"):
        low_precision.require_known("int8", bloom, fused=True, known=False)
