"""Low-rank adapters: what is written is what is learned, the base never changes, peft reads what we write."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.lora_settings import Lora
from rlhf_env.policies.anatomy import anatomy_of
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.lora import adapter_weights, add_adapter, merge_adapter, save_adapter
from rlhf_env.policies.tiny import tiny_language_model

peft = pytest.importorskip("peft")
FAMILIES = ("llama", "gpt2", "gemma3", "qwen3", "mistral")
KINDS: dict[str, dict[str, Any]] = {"plain": {}, "rslora": {"rslora": True}, "dora": {"dora": True}}


def adapted(family: str = "llama", seed: int = 0, **settings: Any) -> LanguageModel:
    """A tiny model in float64 with an adapter that has learned something: B is not 0."""
    policy = tiny_language_model(family, init_std=0.3)  # type: ignore[arg-type]
    add_adapter(policy.model, Lora(**{"rank": 4, "alpha": 8.0, **settings}), seed)
    generator = torch.Generator().manual_seed(1)
    for name, value in adapter_weights(policy.model).items():
        if "lora_B" in name:
            value.copy_(0.2 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return policy


def some_texts(policy: LanguageModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, policy.vocab_size - 1, (4, 12)))
    mask = torch.arange(12) < torch.tensor([12, 9, 12, 5])[:, None]
    where = mask.clone()
    where[:, :3] = False
    return tokens, mask, where


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_what_is_learned_and_what_the_merged_model_says(family: str, kind: str) -> None:
    policy = adapted(family, **KINDS[kind])
    assert (anatomy_of(policy.model) is not None) == (kind != "dora")  # which has a path of its own in peft
    asked = np.random.default_rng(0).integers(0, policy.vocab_size - 1, (4, 6))
    written = policy.write({"input_ids": asked, "attention_mask": np.ones((4, 6), bool)}, 8)
    there = written.tokens < policy.vocab_size
    tokens = torch.from_numpy(np.concatenate([asked, np.where(there, written.tokens, 0)], axis=1))
    mask = torch.from_numpy(np.concatenate([np.ones((4, 6), bool), there], axis=1))
    where = mask.clone()
    where[:, :6] = False
    learned = policy.evaluate(tokens, mask, where).logprobs.detach().numpy()[:, 6:]
    plain = merge_adapter(policy.model)(tokens, attention_mask=mask.long()).logits.log_softmax(-1).detach()
    plain = plain[:, 5:-1].gather(-1, tokens[:, 6:, None]).squeeze(-1).numpy()
    np.testing.assert_allclose(written.logprobs[there], learned[there], rtol=0, atol=1e-10)
    np.testing.assert_allclose(written.logprobs[there], plain[there], rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_library(family: str) -> None:
    ours, theirs = adapted(family), adapted(family)
    theirs.fused = False
    for policy in (ours, theirs):
        policy.evaluate(*some_texts(policy)).logprobs.sum().backward()
    pairs = dict(zip(ours.named_parameters(), theirs.named_parameters(), strict=True))
    learning = [name for name, parameter in ours.named_parameters() if parameter.grad is not None]
    assert learning == [name for name, _ in adapter_weights(ours.model).items() if name] or learning
    for (name, one), (_, other) in pairs.items():
        assert (one.grad is None) == (".lora_" not in name)
        if one.grad is not None and other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-9)


def test_a_new_adapter_changes_nothing_and_the_same_seed_makes_the_same() -> None:
    plain, one, other, third = (tiny_language_model("llama", init_std=0.3) for _ in range(4))
    for policy, seed in ((one, 3), (other, 3), (third, 4)):
        before = torch.random.get_rng_state()
        add_adapter(policy.model, Lora(rank=4), seed)
        assert torch.equal(before, torch.random.get_rng_state())  # nothing is drawn from the global generator
    texts = some_texts(plain)
    assert torch.equal(plain.evaluate(*texts).logprobs, one.evaluate(*texts).logprobs)
    same = [torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)]
    assert all(same)
    assert not torch.equal(*(next(iter(it.state_dict().values())) for it in (one, third)))


def test_the_reference_shares_the_base_and_keeps_its_own_adapter() -> None:
    policy = adapted()
    reference = policy.frozen_copy()
    texts = some_texts(policy)
    before = reference.evaluate(*texts).logprobs
    for (name, ours), theirs in zip(policy.named_parameters(), reference.parameters(), strict=True):
        assert (ours.data_ptr() == theirs.data_ptr()) == (".lora_" not in name)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    assert torch.equal(reference.evaluate(*texts).logprobs, before)
    assert not torch.allclose(policy.evaluate(*texts).logprobs, before)


def test_a_state_is_the_adapter_alone_and_goes_back_in() -> None:
    policy, other = adapted(), tiny_language_model("llama", init_std=0.3)
    add_adapter(other.model, Lora(rank=4, alpha=8.0), 9)
    state = policy.state_dict()
    assert set(state) == {name for name, _ in policy.named_parameters() if ".lora_" in name}
    other.load_state_dict(state)
    texts = some_texts(policy)
    assert torch.equal(policy.evaluate(*texts).logprobs, other.evaluate(*texts).logprobs)
    smaller = dict(list(state.items())[1:])
    with pytest.raises(RuntimeError, match="1 weights are not those of this adapter"):
        other.load_state_dict(smaller)


def test_the_next_write_sees_a_changed_adapter() -> None:
    policy = adapted()
    observation = {"input_ids": np.full((2, 4), 7), "attention_mask": np.ones((2, 4), bool)}
    first = policy.write(observation, 1).logprobs
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
    policy.reseed(0)
    assert not np.allclose(first, policy.write(observation, 1).logprobs)


@pytest.mark.parametrize("kind", KINDS)
def test_peft_reads_what_we_write_and_we_read_what_peft_writes(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    policy = adapted(**KINDS[kind])
    plain = tiny_language_model("llama", init_std=0.3)
    plain.save_pretrained(tmp_path / "base")
    save_adapter(policy.model, tmp_path / "ours", str(tmp_path / "base"))
    texts = some_texts(policy)

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float64)
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "ours"))
    logits = theirs(texts[0], attention_mask=texts[1].long()).logits
    ours = policy.model(texts[0], attention_mask=texts[1].long()).logits
    torch.testing.assert_close(logits[texts[1]], ours[texts[1]], rtol=0, atol=1e-12)

    theirs.save_pretrained(str(tmp_path / "theirs"))
    for folder in ("ours", "theirs"):
        again = LanguageModel.from_pretrained(tmp_path / folder, dtype=torch.float64, end_id=0, pad_id=0)
        assert again.adapted and all(".lora_" in n for n, p in again.named_parameters() if p.requires_grad)
        torch.testing.assert_close(
            again.evaluate(*texts).logprobs, policy.evaluate(*texts).logprobs, rtol=0, atol=1e-12
        )


def test_a_saved_model_is_merged_and_needs_no_adapter(tmp_path: Path) -> None:
    policy = adapted()
    before = copy.deepcopy(policy.state_dict())
    policy.save_pretrained(tmp_path / "whole")
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())
    again = LanguageModel.from_pretrained(tmp_path / "whole", dtype=torch.float64, end_id=0, pad_id=0)
    assert not again.adapted
    texts = some_texts(policy)
    torch.testing.assert_close(again.evaluate(*texts).logprobs, policy.evaluate(*texts).logprobs, rtol=0, atol=1e-12)


def test_what_is_no_adapter_of_the_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no adapter can be put there"):
        add_adapter(tiny_language_model("llama").model, Lora(targets=("nothing",)), 0)
    with pytest.raises(ConfigError, match="leaves no other target"):
        add_adapter(tiny_language_model("llama").model, Lora(targets=("all-linear", "q_proj")), 0)
    with pytest.raises(ConfigError, match="shares its weight"):
        add_adapter(tiny_language_model("gpt2").model, Lora(targets=("lm_head",)), 0)

    policy = adapted()
    other = tiny_language_model("llama", layers=1)
    other.save_pretrained(tmp_path / "other")
    save_adapter(policy.model, tmp_path / "adapter", str(tmp_path / "other"))
    with pytest.raises(DataError, match=r"adapter .*of another model than its base"):
        LanguageModel.from_pretrained(tmp_path / "adapter", end_id=0)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(DataError, match=r"adapter_model\.safetensors is missing"):
        LanguageModel.from_pretrained(tmp_path / "adapter", end_id=0)


BEYOND: dict[str, Any] = {
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "trainable_token_indices": {"trainable_token_indices": {"embed_tokens": [1, 2]}},
    "bias": {"bias": "all"},
    "lora_bias": {"lora_bias": True},
    "alora_invocation_tokens": {"alora_invocation_tokens": [3, 4]},
    "layer_replication": {"layer_replication": [(0, 2), (1, 2)]},
}


def saved_by_peft(folder: Path, config: Any, family: str = "llama") -> torch.nn.Module:
    """A base in folder/base and an adapter of it in folder/adapter, as peft's own users make them."""
    from transformers import AutoModelForCausalLM

    tiny_language_model(family, init_std=0.3).save_pretrained(folder / "base")  # type: ignore[arg-type]
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float64)
    torch.manual_seed(0)
    model = peft.get_peft_model(base, config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad:
                value.add_(0.1 * torch.randn(value.shape, dtype=value.dtype) if "lora_B" in name else 0.0)
    model.save_pretrained(str(folder / "adapter"))
    return model.eval()  # type: ignore[no-any-return]


@pytest.mark.parametrize("extra", BEYOND)
def test_what_is_more_than_low_rank_adapters_is_refused_by_name(extra: str, tmp_path: Path) -> None:
    saved_by_peft(tmp_path, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **BEYOND[extra]))
    said = rf"{extra} = .* changes more than low-rank adapters do, which is not read: merge it into its base"
    with pytest.raises(DataError, match=said):
        LanguageModel.from_pretrained(tmp_path / "adapter", end_id=0)


@pytest.mark.parametrize("start", ["pissa", "olora", "lora_ga"])
def test_a_start_that_changes_the_base_is_refused_by_name(start: str, tmp_path: Path) -> None:
    saved_by_peft(tmp_path, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "init_lora_weights": start}))
    with pytest.raises(DataError, match=rf"init_lora_weights = '{start}' changes the weights of its base"):
        LanguageModel.from_pretrained(tmp_path / "adapter", end_id=0)


def test_a_head_that_is_not_the_bases_is_refused_by_name(tmp_path: Path) -> None:
    saved_by_peft(tmp_path, peft.LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM"))
    tiny_language_model("llama", init_std=0.3, seed=1).save_pretrained(tmp_path / "base")
    with pytest.raises(DataError, match=r"it holds a lm_head.base_layer that is not that of its base here: it was tr"):
        LanguageModel.from_pretrained(tmp_path / "adapter", end_id=0)


def test_another_kind_of_adapter_is_refused_by_name(tmp_path: Path) -> None:
    saved_by_peft(tmp_path, peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"))
    with pytest.raises(DataError, match="it is IA3, and only LoRA is read: merge it into its base"):
        LanguageModel.from_pretrained(tmp_path / "adapter", end_id=0)


OTHERS: dict[str, dict[str, Any]] = {
    "ranks by module": {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 32}},
    "some layers": {"layers_to_transform": [1]},
    "all but one": {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
    "another start": {"init_lora_weights": "gaussian"},
    "the head": {"target_modules": ["lm_head", "q_proj"]},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_whatever_else_peft_wrote_is_what_peft_says(kind: str, tmp_path: Path) -> None:
    settings = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **OTHERS[kind]}
    theirs = saved_by_peft(tmp_path, peft.LoraConfig(**settings))
    ours = LanguageModel.from_pretrained(tmp_path / "adapter", dtype=torch.float64, end_id=0, pad_id=0).eval()
    tokens, mask, where = some_texts(ours)
    logprobs = theirs(tokens, attention_mask=mask.long()).logits.log_softmax(-1)[:, :-1]
    expected = logprobs.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    found = ours.evaluate(tokens, mask, where).logprobs[:, 1:]
    torch.testing.assert_close(found[where[:, 1:]], expected[where[:, 1:]], rtol=0, atol=1e-10)


def test_adapters_beside_tied_embeddings_leave_them_tied() -> None:
    """GPT-2's head is its embedding: "all-linear" leaves it out, and the reference and a merged model keep it one."""
    policy = adapted("gpt2")
    for model in (policy.model, policy.frozen_copy().model, merge_adapter(policy.model)):
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    with pytest.raises(ConfigError, match="shares its weight with the embedding, or is the embedding"):
        add_adapter(tiny_language_model("llama").model, Lora(targets=("embed_tokens",)), 0)
