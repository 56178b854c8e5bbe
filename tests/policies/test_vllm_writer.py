"""vLLM as a writer: what it is asked, what is stated, when weights are handed over. The engine is a stand-in here; the
same of vllm itself is asked by `make vllm`."""

from __future__ import annotations

import copy
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_env.envs.stop_strings import StopStrings
from rlhf_env.envs.tokenizers import AlphabetTokenizer
from rlhf_env.errors import ConfigError, WriterFailed
from rlhf_env.lora_settings import Lora
from rlhf_env.policies import LanguageModel
from rlhf_env.policies.lora import add_adapter, is_of_adapter
from rlhf_env.policies.low_precision import copy_writes, writing_exactly
from rlhf_env.policies.policy import Sampling, Written
from rlhf_env.policies.tiny import tiny_language_model
from rlhf_env.policies.vllm_writer import VllmSettings, VllmWriter, checkpoint_weights

sys.path.insert(0, str(Path(__file__).parents[1]))
from policies.standing_vllm import LLM, stand_in

WORDS, END = 6, 5


def small(
    *, tied: bool = False, dtype: torch.dtype = torch.float32, lora: bool = False, seed: int = 7, spread: float = 0.5
) -> LanguageModel:
    policy = tiny_language_model(vocab_size=WORDS, hidden_size=16, heads=2, init_std=spread, dtype=dtype, seed=seed)
    if tied:
        policy.model.config.tie_word_embeddings = True
        policy.model.tie_weights()
    if lora:
        add_adapter(policy.model, Lora(rank=3), 0)
        policy = LanguageModel(policy.model, seed=seed)
    return policy


def observed(*texts: list[int], **more: Any) -> Any:
    width = max(map(len, texts))
    ids, mask = np.full((len(texts), width), 0), np.zeros((len(texts), width), np.int8)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    return {"input_ids": ids, "attention_mask": mask, **more}


def with_vllm(policy: LanguageModel, **wanted: Any) -> tuple[LanguageModel, LLM]:
    policy.writer = VllmWriter(policy, VllmSettings(**wanted), longest=16)
    return policy, LLM.made[-1]


def moved(policy: LanguageModel) -> None:
    """As after an update: what trains has other values, and no version says so (torch's fused AdamW)."""
    for name, weight in policy.named_parameters():
        if not policy.adapted or is_of_adapter(name):
            weight.data += 0.3 * torch.sin(torch.arange(weight.numel(), dtype=weight.dtype)).view_as(weight)
    policy.forget()


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    return stand_in(monkeypatch)


@pytest.mark.parametrize("kind", ["whole", "tied", "adapter", "float64"])
def test_what_is_stated_is_what_the_policy_recomputes_before_and_after_an_update(kind: str) -> None:
    policy = small(
        tied=kind == "tied", lora=kind == "adapter", dtype=torch.float64 if kind == "float64" else torch.float32
    )
    policy, llm = with_vllm(policy)
    asked = observed([0, 1], [2, 3, 4], [1])
    for update in range(3):
        policy.write(asked, 5)
        distance = policy.writer.take_distance()  # type: ignore[union-attr]
        assert distance["kl"] < 1e-9
        assert distance["ess"] > 1 - 1e-5
        assert llm.calls.count("add_lora" if kind == "adapter" else "reload_weights") == update + 1
        assert llm.calls.count("reset_prefix_cache") == update + 1
        policy.write(asked, 5)  # the same weights are not handed over again
        moved(policy)
    policy.forget = lambda: None  # type: ignore[method-assign]
    policy._forgotten -= 1  # a change that nobody told it of is seen by the distance
    policy.write(asked, 5)
    assert policy.writer.take_distance()["kl"] > 1e-3  # type: ignore[union-attr]


def test_the_tokens_are_a_function_of_row_seed_and_history() -> None:
    policy, llm = with_vllm(small())
    policy.reseed(3)
    together = policy.write(observed([0, 1], [2, 3], [2, 3]), 6)
    assert (together.tokens[1] != together.tokens[2]).any()  # equal prompts have seeds of their own
    seeds = [params.seed for params in llm.seen]
    policy.reseed(3)
    alone = policy.write(observed([0, 1], [2, 3], [2, 3]), 6, np.array([False, True, False]))
    assert (alone.tokens[1] == together.tokens[1]).all()
    assert alone.logprobs[1] == pytest.approx(together.logprobs[1], abs=1e-6)
    assert (alone.tokens[[0, 2]] == WORDS).all()
    assert [params.seed for params in llm.seen] == seeds[1:2]
    state = policy.sampling_state()
    more = policy.write(observed([0, 1], [2, 3], [2, 3]), 6)
    assert [params.seed for params in llm.seen] != seeds  # the streams go on
    policy.load_sampling_state(state)
    assert (policy.write(observed([0, 1], [2, 3], [2, 3]), 6).tokens == more.tokens).all()


def test_a_text_ends_at_any_end_token_which_has_its_log_probability() -> None:
    policy = LanguageModel(small().model, end_id=[END, 2], seed=1)
    policy, llm = with_vllm(policy)
    written = policy.write(observed(*[[0, 1]] * 16), 8)
    assert llm.seen[0].stop_token_ids == [END, 2]
    assert llm.seen[0].ignore_eos
    ends = np.isin(written.tokens, [END, 2])
    assert ends.any(axis=1).any()
    for row, at in zip(*np.nonzero(ends), strict=True):
        assert written.logprobs[row, at] < 0
        assert (written.tokens[row, at + 1 :] == WORDS).all()
        assert (written.logprobs[row, at + 1 :] == 0).all()


def test_what_follows_a_stop_string_is_left_out() -> None:
    tokenizer = AlphabetTokenizer("abcd")
    policy, _ = with_vllm(small(spread=0.1))
    plain = policy.write(observed(*[[0, 1]] * 12), 8)
    policy.reseed(7)
    stops = StopStrings(["ab"], tokenizer)
    cut = policy.write(observed(*[[0, 1]] * 12, stops=stops, stop_states=np.zeros(12, np.int64)), 8)
    assert (cut.tokens != plain.tokens).any()
    for before, after in zip(plain.tokens.tolist(), cut.tokens.tolist(), strict=True):
        texts = ["".join("abcd"[token] for token in before[:end] if token < 4) for end in range(9)]
        at = next((end for end, text in enumerate(texts) if "ab" in text), 8)
        assert after == before[:at] + [WORDS] * (8 - at)


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0.6), Sampling(top_k=3), Sampling(temperature=1.5, top_p=0.7), Sampling(top_k=1)]
)
def test_what_is_stated_is_of_the_distribution_that_was_drawn_from(sampling: Sampling) -> None:
    policy, llm = with_vllm(small())
    policy.sampling = sampling
    written = policy.write(observed(*[[0, 1]] * 8), 5)
    distance = policy.writer.take_distance()  # type: ignore[union-attr]
    if sampling.greedy:
        assert not written.logprobs.any()
        assert not distance
        assert llm.seen[0].temperature == 0.0
        policy.writer = None
        assert (policy.write(observed(*[[0, 1]] * 8), 5).tokens == written.tokens).all()
        return
    assert distance["kl"] < 1e-9
    policy.sampling = replace(sampling, temperature=sampling.temperature * 2.0)
    policy.writer._distance.read(policy, *_texts(8), written)  # type: ignore[union-attr]
    assert policy.writer.take_distance()["kl"] > 1e-3  # type: ignore[union-attr] # so it would be seen


def _texts(rows: int) -> tuple[Any, Any]:
    return np.array([[0, 1]] * rows), np.full(rows, 2)


def test_the_distance_is_k3_of_the_tokens_and_the_weights_of_the_texts() -> None:
    policy = small()
    policy, _ = with_vllm(policy)
    texts, lengths = _texts(3)
    true = policy.write(observed(*[[0, 1]] * 3), 4)
    policy.writer.take_distance()  # type: ignore[union-attr]
    off = np.linspace(-0.2, 0.3, 12).reshape(3, 4)
    there = true.tokens < WORDS
    stated = Written(true.tokens, np.where(there, true.logprobs - off, 0.0))
    policy.writer._distance.read(policy, texts, lengths, stated)  # type: ignore[union-attr]
    found = policy.writer.take_distance()  # type: ignore[union-attr]
    log_ratios = off[there]
    weights = np.exp(np.where(there, off, 0.0).sum(1))
    assert found["kl"] == pytest.approx(np.mean(np.exp(log_ratios) - 1 - log_ratios), abs=1e-6)
    assert found["ess"] == pytest.approx(weights.sum() ** 2 / (3 * (weights**2).sum()), abs=1e-5)
    assert found["ratio_p50"] == pytest.approx(np.exp(np.quantile(log_ratios, 0.5)), abs=1e-5)
    assert policy.writer.take_distance() == {}  # type: ignore[union-attr]


def test_texts_continued_token_by_token_are_measured_whole() -> None:
    policy, _ = with_vllm(small(), checked_texts=2)
    texts = [[0, 1], [2, 3], [1, 2]]
    for _ in range(4):
        written = policy.write(observed(*texts), 1)
        texts = [[*text, int(token)] for text, token in zip(texts, written.tokens[:, 0], strict=True)]
        if END in written.tokens:
            break
    held = policy.writer._distance._log_ratios  # type: ignore[union-attr]
    assert list(held) == [0, 2]
    assert sum(map(len, held[0])) == len(texts[0]) - 2


def test_the_process_is_left_as_it_was() -> None:
    policy = small()
    before, threads = torch.random.get_rng_state(), torch.set_num_threads
    with_vllm(policy)
    policy.write(observed([0, 1]), 3)
    assert (torch.random.get_rng_state() == before).all()
    assert torch.set_num_threads is threads
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_copies_references_and_evaluations_write_themselves() -> None:
    policy, llm = with_vllm(small())
    assert copy_writes(policy)
    assert copy.deepcopy(policy).writer is None
    assert policy.frozen_copy().writer is None
    with writing_exactly(policy):
        assert not copy_writes(policy)
        policy.write(observed([0, 1]), 2)
    assert not llm.calls
    policy.write(observed([0, 1]), 2)
    assert llm.calls


def test_the_engine_is_asked_for_as_much_as_the_settings_say() -> None:
    _, llm = with_vllm(small(), cache_mb=3, compiled=True)
    assert llm.arguments["kv_cache_memory_bytes"] == 3 << 20
    assert not llm.arguments["enforce_eager"]
    assert llm.arguments["max_model_len"] == 16
    assert llm.arguments["dtype"] == "float32"
    assert with_vllm(small(dtype=torch.float64))[1].arguments["dtype"] == "float32"
    assert with_vllm(small(), dtype="bfloat16")[1].arguments["dtype"] == "bfloat16"
    assert with_vllm(small(lora=True))[1].arguments["max_lora_rank"] == 8  # the least that it has for rank 3


def test_weights_have_the_names_of_files_and_each_comes_once() -> None:
    assert "lm_head.weight" in checkpoint_weights(small().model)
    tied = checkpoint_weights(small(tied=True).model)
    assert "lm_head.weight" not in tied
    assert "model.embed_tokens.weight" in tied


def test_what_it_cannot_do_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LLM, "cannot", "Unsupported CPU attention configuration: head_dim=8")
    with pytest.raises(ConfigError, match=r"^vLLM cannot write for this model here: RuntimeError: Unsupp.*=8$"):
        with_vllm(small())
    monkeypatch.setattr(LLM, "cannot", "")
    policy, _ = with_vllm(small())
    monkeypatch.setattr(LLM, "cannot", "engine dead")
    with pytest.raises(WriterFailed, match=r"^vLLM failed while it wrote: RuntimeError: engine dead$"):
        policy.write(observed([0, 1]), 2)
