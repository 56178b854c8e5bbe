"""`LanguageModel.write` states what `evaluate` recomputes, whatever the batch, the cache and the padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rlhf_env.errors import ConfigError, DataError, RunFailed
from rlhf_env.policies import LanguageModel, Sampling, Written, tiny_language_model
from rlhf_env.policies.readers import CacheReader, FusedReader
from rlhf_env.policies.tiny import Family
from tests.policies.conftest import FAMILIES

EXACT = 1e-10


WAY = {"fused": True}
READERS: tuple[Any, ...] = (FusedReader, CacheReader)


@pytest.fixture(autouse=True, params=[True, False], ids=["fused", "general"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test goes both ways; `opinionated` makes its models for the one it is on."""
    monkeypatch.setitem(WAY, "fused", request.param)


def opinionated(family: Family = "llama", **changes: Any) -> LanguageModel:
    """A model far from uniform, so that errors show."""
    return tiny_language_model(family, **{"vocab_size": 30, "init_std": 0.3, "seed": 3, **WAY, **changes})


def stated(written: Written, vocab_size: int = 30) -> list[np.ndarray]:
    return [row[tokens < vocab_size] for row, tokens in zip(written.logprobs, written.tokens, strict=True)]


def assert_same(some: list[np.ndarray], others: list[np.ndarray]) -> None:
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=EXACT)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.7])
def test_stated_logprobs_equal_recomputed_ones(family: Family, temperature: float, texts: Any, recomputed: Any) -> None:
    policy = opinionated(family, sampling=Sampling(temperature=temperature), key_value_heads=2)
    before = texts()
    written = policy.write(before.observation, 20)  # longer than the sliding windows
    assert_same(stated(written), recomputed(policy, before, written))


def test_stated_logprobs_stay_exact_when_many_rows_finish_early(texts: Any, recomputed: Any) -> None:
    policy = opinionated("gpt2", init_std=0.05, vocab_size=6)  # the end token comes soon
    before = texts(rows=40, symbols=5)
    written = policy.write(before.observation, 25)
    lengths = (written.tokens < 6).sum(1)
    assert lengths.min() == 1 and lengths.max() > 10
    assert_same(stated(written, 6), recomputed(policy, before, written))


def test_rows_are_dropped_and_tokens_follow_the_end_token_never(texts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []
    for reader in READERS:
        read = reader.next

        def noting(self: Any, texts: Any, lengths: Any, rows: Any, read: Any = read) -> Any:
            logits = read(self, texts, lengths, rows)
            batches.append((len(self._rows), len(rows)))
            return logits

        monkeypatch.setattr(reader, "next", noting)
    written = opinionated(init_std=0.05, vocab_size=6).write(texts(rows=40, symbols=5).observation, 25)
    assert all(live >= 0.75 * held for held, live in batches)
    assert len({held for held, _ in batches}) < len({live for _, live in batches})  # not at every finish
    for tokens, logprobs in zip(written.tokens, written.logprobs, strict=True):
        ends = np.flatnonzero(tokens == 5)
        if len(ends):
            assert (tokens[ends[0] + 1 :] == 6).all() and (logprobs[ends[0] + 1 :] == 0).all()
        else:
            assert (tokens < 5).all()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_batch_mates_and_padding_change_nothing(family: Family, texts: Any) -> None:
    before = texts(rows=6)
    together = opinionated(family).write(before.observation, 12)
    for row in range(6):
        rows = np.arange(6) == row
        alone = opinionated(family).write(before.observation, 12, rows)
        np.testing.assert_array_equal(alone.tokens[row], together.tokens[row])
        np.testing.assert_allclose(alone.logprobs[row], together.logprobs[row], rtol=0, atol=EXACT)
        assert (alone.tokens[~rows] == 30).all() and (alone.logprobs[~rows] == 0).all()
    wider = opinionated(family).write(type(before)(before.prompts, 70).observation, 12)
    np.testing.assert_array_equal(wider.tokens, together.tokens)
    np.testing.assert_allclose(wider.logprobs, together.logprobs, rtol=0, atol=EXACT)


def test_a_text_does_not_depend_on_the_other_rows(texts: Any) -> None:
    """Nor on how many there are, nor on how long their earlier texts went on."""
    alone, among = (opinionated("gpt2", init_std=0.05, vocab_size=6) for _ in range(2))
    own, others = texts(rows=3, symbols=5), texts(rows=9, symbols=5, seed=1)
    for call in range(4):
        mates = [prompt[call % 2 :] if len(prompt) > 1 else prompt for prompt in others.prompts]
        some = alone.write(own.observation, 25)
        all_of_them = among.write(type(own)([*own.prompts, *mates], 50).observation, 25)
        np.testing.assert_array_equal(all_of_them.tokens[:3], some.tokens)
        np.testing.assert_allclose(all_of_them.logprobs[:3], some.logprobs, rtol=0, atol=EXACT)


@pytest.mark.parametrize("rows_at_once", [1, 5])
def test_waves_change_nothing_and_bound_the_cache(
    rows_at_once: int, texts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = texts()
    whole = opinionated().write(before.observation, 9)
    begun, held = [], []
    for reader in READERS:
        read, read_on = reader.begin, reader.next

        def noting(self: Any, *args: Any, read: Any = read) -> Any:
            begun.append(len(args[2]))
            return read(self, *args)

        def noting_on(self: Any, *args: Any, read_on: Any = read_on) -> Any:
            held.append(len(self._rows))
            return read_on(self, *args)

        monkeypatch.setattr(reader, "begin", noting)
        monkeypatch.setattr(reader, "next", noting_on)
    policy = opinionated(rows_at_once=rows_at_once)
    begun.clear()  # what the check at load read
    held.clear()
    rows = np.arange(12) != 7
    waves = policy.write(before.observation, 9, rows)
    np.testing.assert_array_equal(waves.tokens[rows], whole.tokens[rows])
    np.testing.assert_allclose(waves.logprobs[rows], whole.logprobs[rows], rtol=0, atol=EXACT)
    assert (waves.tokens[7] == 30).all() and not waves.logprobs[7].any()
    assert max(held) == max(begun) == rows_at_once and sum(begun) == 11
    assert policy._decoding is None


def test_a_wave_has_a_row_at_least() -> None:
    with pytest.raises(ConfigError, match="rows_at_once must be at least 1, got 0"):
        opinionated(rows_at_once=0)


def test_pad_and_end_may_be_one_token(texts: Any) -> None:
    one, two = opinionated(end_id=29, pad_id=29), opinionated(end_id=29, pad_id=0)
    # Neither the padding itself nor the end token inside a prompt means anything to the sampler.
    before = texts(symbols=30)
    padded = before.observation
    padded["input_ids"][padded["attention_mask"] == 0] = 29
    some, others = one.write(padded, 15), two.write(before.observation, 15)
    np.testing.assert_array_equal(some.tokens, others.tokens)
    np.testing.assert_array_equal(some.logprobs, others.logprobs)


class TestTokenByToken:
    """Called once a token, `write` goes on from its cache."""

    @pytest.fixture
    def prefills(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Grows by one whenever texts are read from the start."""
        count: list[int] = []
        for reader in READERS:
            read = reader.begin
            monkeypatch.setattr(reader, "begin", lambda *args, read=read: count.append(1) or read(*args))
        return count

    @pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
    @pytest.mark.parametrize("step", [1, 3])
    def test_equals_a_whole_response(self, family: Family, step: int, texts: Any, prefills: list[int]) -> None:
        vocab_size, total = 8, 18
        start = texts(rows=16, symbols=7)
        policy = opinionated(family, vocab_size=vocab_size, init_std=0.1)
        whole, later = policy.write(start.observation, total), policy.write(start.observation, total)
        policy.reseed(3)
        policy.forget()
        prefills.clear()

        current, live = start, np.ones(16, bool)
        pieces = []
        for _ in range(total // step):
            pieces.append(policy.write(current.observation, step, live))
            current = current.after(pieces[-1], vocab_size)
            live &= np.array([(row < vocab_size).all() and row[-1] != vocab_size - 1 for row in pieces[-1].tokens])
        np.testing.assert_array_equal(np.hstack([piece.tokens for piece in pieces]), whole.tokens)
        np.testing.assert_allclose(np.hstack([p.logprobs for p in pieces]), whole.logprobs, rtol=0, atol=EXACT)
        assert len(prefills) == 1
        np.testing.assert_array_equal(policy.write(start.observation, total).tokens, later.tokens)
        assert (~live).any()  # some rows finished on the way and kept their text

    def test_other_texts_are_read_anew(self, texts: Any, recomputed: Any, prefills: list[int]) -> None:
        policy = opinionated(end_id=29, init_std=0.1)
        start = texts()
        prefills.clear()  # that of the check at load
        first = policy.write(start.observation, 1)
        current = start.after(first, 30)
        changed = type(current)([*current.prompts[:-1], (current.prompts[-1] + 1) % 29], 40)
        second = policy.write(changed.observation, 1)
        assert len(prefills) == 2
        assert_same(stated(second), recomputed(policy, changed, second))

    def test_the_same_text_again_is_read_anew(self, texts: Any, recomputed: Any, prefills: list[int]) -> None:
        policy, start = opinionated(), texts()
        prefills.clear()  # that of the check at load
        policy.write(start.observation, 1)
        again = policy.write(start.observation, 1)
        assert len(prefills) == 2
        assert_same(stated(again), recomputed(policy, start, again))

    def test_a_row_that_paused_is_read_anew(self, texts: Any, recomputed: Any, prefills: list[int]) -> None:
        policy, start = opinionated(), texts(rows=4)
        others = np.array([True, True, True, False])
        prefills.clear()  # that of the check at load
        current = start.after(policy.write(start.observation, 1), 30)
        current = current.after(policy.write(current.observation, 1, others), 30)
        assert len(prefills) == 1
        everyone = policy.write(current.observation, 1)
        assert len(prefills) == 2
        assert_same(stated(everyone), recomputed(policy, current, everyone))

    @pytest.mark.parametrize("how", ["optimizer", "load_state_dict", "replaced"])
    def test_new_weights_invalidate_the_cache(self, how: str, texts: Any, recomputed: Any) -> None:
        policy, start = opinionated(init_std=0.1), texts()
        current = start.after(policy.write(start.observation, 1), 30)
        if how == "optimizer":
            for parameter in policy.parameters():
                parameter.grad = torch.ones_like(parameter)
            torch.optim.AdamW(policy.parameters(), lr=0.1).step()
        elif how == "load_state_dict":
            policy.load_state_dict(opinionated(seed=4).state_dict())
        else:
            other = opinionated(seed=5)
            for name, parameter in other.model.model.layers[0].self_attn.named_parameters():
                policy.model.model.layers[0].self_attn.get_submodule(name.split(".")[0]).weight = parameter
        live = np.array([prompt[-1] != 29 for prompt in current.prompts])
        written = policy.write(current.observation, 3, live)
        assert_same(stated(written), recomputed(policy, current, written))

    def test_a_failed_call_leaves_no_cache(self, texts: Any, recomputed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        policy, start = opinionated(), texts()
        current = start.after(policy.write(start.observation, 1), 30)
        with monkeypatch.context() as patched:
            patched.setattr("rlhf_env.policies.decoding.draw", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                policy.write(current.observation, 1)
        written = policy.write(current.observation, 1)
        assert_same(stated(written), recomputed(policy, current, written))


class TestStream:
    """The policy's own random numbers."""

    def test_reseeding_repeats(self, texts: Any) -> None:
        policy, observation = opinionated(), texts().observation
        policy.reseed(7)
        first = policy.write(observation, 9).tokens
        assert not np.array_equal(policy.write(observation, 9).tokens, first)
        policy.reseed(7)
        np.testing.assert_array_equal(policy.write(observation, 9).tokens, first)

    def test_state_survives_json(self, texts: Any) -> None:
        import json

        policy, other, observation = opinionated(), opinionated(), texts().observation
        policy.write(observation, 2)
        other.load_sampling_state(json.loads(json.dumps(policy.sampling_state())))
        np.testing.assert_array_equal(policy.write(observation, 9).tokens, other.write(observation, 9).tokens)

    def test_global_generators_stay_as_they_were(self, texts: Any) -> None:
        before = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002 - it is what is tested
        opinionated().write(texts().observation, 5)
        assert torch.equal(torch.get_rng_state(), before[0])
        np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


class TestBadInput:
    def test_empty_prompt(self, texts: Any) -> None:
        observation = texts(rows=3).observation
        observation["attention_mask"][1] = 0
        with pytest.raises(DataError, match=r"row 1: .*prompt is empty"):
            opinionated().write(observation, 2)

    def test_no_rows_asked(self, texts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is written, taken from the streams, or made: joined matrices are as large as the model."""
        policy = opinionated()
        monkeypatch.setattr("rlhf_env.policies.language_model.FusedStep", None)
        before = policy.sampling_state()["seed"]
        written = policy.write(texts(rows=3).observation, 2, np.zeros(3, bool))
        assert (written.tokens == 30).all() and not written.logprobs.any()
        assert written.tokens.shape == written.logprobs.shape == (3, 2)
        assert policy.sampling_state() == {"seed": before, "taken": [0, 0, 0]}

    def test_longer_than_the_context(self, texts: Any) -> None:
        before = type(texts())([np.arange(10)], 40)
        assert (opinionated("gpt2", context=16).write(before.observation, 7).tokens < 30).any()
        with pytest.raises(DataError, match="10 tokens and 8 new ones exceed the model's context of 16"):
            opinionated("gpt2", context=16).write(before.observation, 8)

    def test_padded_on_the_left(self) -> None:
        observation = {"input_ids": np.zeros((1, 3), np.int64), "attention_mask": np.array([[0, 1, 1]], np.int8)}
        with pytest.raises(ConfigError, match="padded on the right"):
            opinionated().write(observation, 1)

    def test_token_outside_the_vocabulary(self, texts: Any) -> None:
        with pytest.raises(DataError, match="outside the model's vocabulary of 30"):
            opinionated().write(texts(symbols=99).observation, 1)

    def test_diverged_weights(self, texts: Any) -> None:
        policy = opinionated()
        with torch.no_grad():
            policy.model.lm_head.weight.fill_(torch.nan)
        with pytest.raises(RunFailed, match="diverged"):
            policy.write(texts().observation, 1)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
