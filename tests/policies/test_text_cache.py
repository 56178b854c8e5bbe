"""Shared prompts, rings and new prompts in places that others have left change nothing that is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rlhf_env.policies import LanguageModel, language_model, text_cache, tiny_language_model
from rlhf_env.policies.low_precision import has_bfloat16, has_int8
from rlhf_env.policies.readers import CacheReader, FusedReader, places_for
from rlhf_env.policies.text_cache import TextCache
from rlhf_env.policies.tiny import Family
from tests.policies.conftest import FAMILIES, Texts

VOCABULARY = 8
EXACT = 1e-10


def policy_of(family: Family, **changes: Any) -> LanguageModel:
    """Its end token comes soon: rows end at different times."""
    settings = {"vocab_size": VOCABULARY, "init_std": 0.1, "seed": 3, "key_value_heads": 2, **changes}
    return tiny_language_model(family, **settings)


def groups(sizes: tuple[int, ...] = (5, 1, 8, 2, 3), longest: int = 20) -> Texts:
    """A prompt for every group; some of them are longer than the windows of the models."""
    rng = np.random.default_rng(0)
    lengths = [longest, 3, 11, 1, longest // 2][: len(sizes)]
    prompts = [rng.integers(0, VOCABULARY - 1, length) for length in lengths]
    return Texts([prompt for prompt, size in zip(prompts, sizes, strict=True) for _ in range(size)], 80)


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> list[TextCache]:
    """Every cache that is made, but for those of the check at load."""
    made: list[TextCache] = []
    begin, asked = TextCache.__init__, language_model.trusted_path

    def noting(self: TextCache, *args: Any) -> None:
        made.append(self)
        begin(self, *args)

    def at_load(policy: Any) -> Any:
        before = len(made)
        path = asked(policy)
        del made[before:]
        return path

    monkeypatch.setattr(TextCache, "__init__", noting)
    monkeypatch.setattr(language_model, "trusted_path", at_load)
    return made


@pytest.fixture
def sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are shared however short they are."""
    monkeypatch.setattr(text_cache, "WORTH_SHARING", 0)


def stated(written: Any) -> list[np.ndarray]:
    return [row[tokens < VOCABULARY] for row, tokens in zip(written.logprobs, written.tokens, strict=True)]


def assert_same(some: list[np.ndarray], others: list[np.ndarray]) -> None:
    for one, other in zip(some, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=EXACT)


@pytest.mark.usefixtures("sharing")
class TestSharedPrompts:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_what_is_stated_is_what_is_recomputed(self, family: Family, recomputed: Any, caches: Any) -> None:
        policy, before = policy_of(family), groups()
        written = policy.write(before.observation, 25)
        assert caches[0].shares and len(caches) == 1
        lengths = (written.tokens < VOCABULARY).sum(1)
        assert lengths.min() < 4 and lengths.max() > 12
        assert_same(stated(written), recomputed(policy, before, written))

    @pytest.mark.parametrize("family", ["llama", "gemma3"])
    def test_as_without_sharing(self, family: Family, caches: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        shared = policy_of(family).write(groups().observation, 20)
        monkeypatch.setattr(text_cache, "WORTH_SHARING", 2**60)
        alone = policy_of(family).write(groups().observation, 20)
        assert [cache.shares for cache in caches] == [True, False]
        np.testing.assert_array_equal(shared.tokens, alone.tokens)
        np.testing.assert_allclose(shared.logprobs, alone.logprobs, rtol=0, atol=EXACT)

    @pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
    @pytest.mark.parametrize("step", [1, 4])
    def test_over_several_calls(self, family: Family, step: int, caches: Any) -> None:
        whole = policy_of(family).write(groups().observation, 24)
        policy, current, live = policy_of(family), groups(), np.ones(19, bool)
        caches.clear()
        pieces = []
        while live.any():
            pieces.append(policy.write(current.observation, step, live))
            current = current.after(pieces[-1], VOCABULARY)
            live &= np.array([(row < VOCABULARY).all() and row[-1] != VOCABULARY - 1 for row in pieces[-1].tokens])
        assert len(caches) == 1 and caches[0].shares
        tokens, logprobs = (np.hstack([getattr(it, name) for it in pieces]) for name in ("tokens", "logprobs"))
        np.testing.assert_array_equal(tokens, whole.tokens[:, : tokens.shape[1]])
        np.testing.assert_allclose(logprobs, whole.logprobs[:, : tokens.shape[1]], rtol=0, atol=EXACT)
        assert (whole.tokens[:, tokens.shape[1] :] == VOCABULARY).all()

    def test_a_prompt_is_kept_once_and_goes_with_its_last_row(
        self, caches: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        memories, prompts = set(), []
        step = TextCache.step

        def noting(self: TextCache) -> Any:
            layer = self.layers[0]
            assert layer is not None
            memories.add(layer.prompt_keys.data_ptr())
            prompts.append((len(self.prompt_lengths), len(set(self.prompt_of)), len(layer.prompt_keys)))
            return step(self)

        monkeypatch.setattr(TextCache, "step", noting)
        policy_of("llama").write(groups().observation, 25)
        assert len(memories) == 1  # never copied
        assert prompts[0][0] > prompts[-1][0] > 0 and all(room == 5 for _, _, room in prompts)
        assert all(kept == in_use for kept, in_use, _ in prompts)


def test_sharing_begins_where_it_pays(caches: Any) -> None:
    long = Texts([np.arange(700) % 7] * 40, 720)
    few = Texts([np.arange(700) % 7] * 2, 720)
    for before in (few, long):
        policy_of("llama", context=1024, dtype=torch.float32).write(before.observation, 2)
    assert [cache.shares for cache in caches] == [False, True]


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_a_layer_with_a_window_keeps_its_window(family: Family, recomputed: Any, caches: Any) -> None:
    if family not in FAMILIES:
        pytest.skip("not in this transformers")
    policy, before = policy_of(family, vocab_size=30), Texts([np.arange(n) % 29 for n in (20, 3, 9)], 80)
    written = policy.write(before.observation, 30)
    windows = [(memory.slots, memory.window) for memory in caches[0].layers if memory.window is not None]
    assert windows and all(slots == window < 20 for slots, window in windows)
    for row, tokens, expected in zip(
        written.logprobs, written.tokens, recomputed(policy, before, written), strict=True
    ):
        np.testing.assert_allclose(row[tokens < 30], expected, rtol=0, atol=EXACT)


def test_memory_has_no_gaps_and_grows_with_the_texts(caches: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    step = TextCache.step

    def noting(self: TextCache) -> Any:
        made = step(self)
        for memory in self.layers:
            assert memory is not None and memory.keys[: made.rows].is_contiguous()
            sizes.append((memory.slots, int(self.lengths.max()) + 1))
        return made

    monkeypatch.setattr(TextCache, "step", noting)
    policy_of("llama", vocab_size=30, init_std=0.01, context=512).write(groups().observation, 300)
    assert all(needed <= slots <= max(needed * 1.125, needed) + 32 for slots, needed in sizes)
    assert len({slots for slots, _ in sizes}) > 3
    assert sizes[-1] == (319, 319) or sizes[-1][1] < 319  # not more than the longest text that may come


class TestNewPrompts:
    """They begin in the places of rows that have ended."""

    @pytest.fixture
    def begun(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
        """Of every prefill: how many rows begin, and how many others go on."""
        count: list[tuple[int, int]] = []
        for reader in (FusedReader, CacheReader):

            def noting(self: Any, *args: Any, read: Any = reader.begin) -> Any:
                count.append((len(args[2]), len(args[3])))
                return read(self, *args)

            monkeypatch.setattr(reader, "begin", noting)
        return count

    @pytest.mark.parametrize("family", FAMILIES)
    def test_what_is_stated_is_what_is_recomputed(
        self, family: Family, texts: Any, recomputed: Any, begun: Any
    ) -> None:
        policy, before = policy_of(family, rows_at_once=8), texts(rows=30, symbols=7, width=60, longest=20)
        written = policy.write(before.observation, 25)
        assert any(others for _, others in begun)
        assert all(new + others <= 8 for new, others in begun)
        assert_same(stated(written), recomputed(policy, before, written))
        at_once = policy_of(family).write(before.observation, 25)
        np.testing.assert_array_equal(written.tokens, at_once.tokens)

    @pytest.mark.usefixtures("sharing")
    @pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
    def test_with_shared_prompts(self, family: Family, recomputed: Any, begun: Any) -> None:
        policy, before = policy_of(family, rows_at_once=8), groups()
        before = Texts([*before.prompts, *(prompt[::-1] for prompt in before.prompts)], 80)
        written = policy.write(before.observation, 25)
        assert any(others for _, others in begun) and sum(new for new, _ in begun) == 38
        assert_same(stated(written), recomputed(policy, before, written))

    def test_a_group_begins_together(self, begun: Any) -> None:
        rng = np.random.default_rng(0)
        before = Texts([prompt for prompt in rng.integers(0, 7, (9, 6)) for _ in range(4)], 40)
        policy_of("llama", rows_at_once=10).write(before.observation, 25)
        assert all(new % 4 == 0 for new, _ in begun)

    def test_a_group_that_is_too_large_begins_in_parts(self, recomputed: Any, begun: Any) -> None:
        policy, before = policy_of("llama", rows_at_once=3), Texts([np.arange(6)] * 7, 40)
        written = policy.write(before.observation, 25)
        assert sum(new for new, _ in begun) == 7 and max(new for new, _ in begun) == 3
        assert_same(stated(written), recomputed(policy, before, written))

    def test_in_the_cache_of_transformers_they_wait_for_all_others(self, texts: Any, begun: Any) -> None:
        before = texts(rows=30, symbols=7)
        general = policy_of("llama", rows_at_once=8, fused=False).write(before.observation, 25)
        assert [new for new, _ in begun] == [8, 8, 8, 6] and not any(others for _, others in begun)
        np.testing.assert_array_equal(general.tokens, policy_of("llama").write(before.observation, 25).tokens)

    def test_the_streams_know_nothing_of_it(self, texts: Any) -> None:
        states = []
        for rows_at_once in (3, 256):
            policy = policy_of("llama", rows_at_once=rows_at_once)
            policy.write(texts(rows=20, symbols=7).observation, 25)
            states.append(policy.sampling_state())
        assert states[0] == states[1]


@pytest.mark.skipif(not (has_int8() and has_bfloat16()), reason="this processor has no such instructions")
class TestSixteenBits:
    @pytest.mark.parametrize(
        ("dtype", "copy", "kept"),
        [
            (torch.float32, "int8", torch.bfloat16),
            (torch.float32, "bfloat16", torch.bfloat16),
            (torch.bfloat16, None, torch.bfloat16),
            (torch.float32, None, torch.float32),
            (torch.float64, "int8", torch.float64),
        ],
    )
    def test_where_the_writer_is_in_low_precision(self, dtype: Any, copy: Any, kept: Any, caches: Any) -> None:
        policy = policy_of("llama", dtype=dtype, writer_dtype=copy)
        policy.write(groups().observation, 9)
        assert {it.dtype for layer in caches[0].layers for it in (layer.keys, layer.values)} == {kept}

    @pytest.mark.parametrize("family", ["llama", "gemma2"])
    @pytest.mark.parametrize("worth", [0, 2**60])
    def test_states_almost_what_wider_keys_give(
        self, family: Family, worth: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is stated is of the distribution that was drawn from; the same copy with wider keys agrees roughly."""
        monkeypatch.setattr(text_cache, "WORTH_SHARING", worth)
        narrow = policy_of(family, dtype=torch.float32, writer_dtype="int8", rows_at_once=8)
        written = narrow.write(groups().observation, 20)
        monkeypatch.setattr("rlhf_env.policies.fused.has_bfloat16", lambda: False)
        wide = policy_of(family, dtype=torch.float32, writer_dtype="int8").write(groups().observation, 20)
        same = (written.tokens == wide.tokens).cumprod(1).astype(bool)
        assert same.mean() > 0.7
        np.testing.assert_allclose(written.logprobs[same], wide.logprobs[same], rtol=0, atol=0.05)
        assert not np.array_equal(written.logprobs[same], wide.logprobs[same])


def test_numbers_of_places_are_few_and_close() -> None:
    assert [places_for(n) for n in (1, 2, 5, 8, 9, 11, 17, 33, 96, 97)] == [1, 2, 5, 8, 10, 12, 20, 40, 96, 112]
    assert all(n <= places_for(n) <= 1.25 * n for n in range(1, 300))
