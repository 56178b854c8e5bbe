"""Scoring, copying, saving and loading of `LanguageModel`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_env.errors import ConfigError, DataError, UnknownName
from rlhf_env.policies import LanguageModel, Policy, Sampling, ValueHead, tiny_language_model
from rlhf_env.policies import language_model as language_model_file
from rlhf_env.policies.tiny import Family
from rlhf_env.types import Episode, Prompt, TokenScorer
from tests.policies.conftest import FAMILIES

EXACT = 1e-10


def opinionated(family: Family = "llama", **changes: Any) -> LanguageModel:
    return tiny_language_model(family, **{"vocab_size": 30, "init_std": 0.3, "seed": 3, **changes})


def batch(rows: int = 5, length: int = 14, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, mask (lengths 3 to L), and places to score: a random half, the first token never."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, length + 1, rows)
    lengths[0] = length
    mask = np.arange(length) < lengths[:, None]
    where = mask & (rng.random((rows, length)) < 0.5)
    where[:, 0] = False
    return torch.from_numpy(rng.integers(0, 30, (rows, length))), torch.from_numpy(mask), torch.from_numpy(where)


def episodes(count: int, longest: int = 12, seed: int = 0) -> list[Episode]:
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        prompt, response = (rng.integers(0, 30, rng.integers(1, longest)) for _ in range(2))
        actions = rng.random(len(response)) < 0.8
        made.append(Episode(Prompt(str(index), ""), prompt, "", response, "length", actions))
    return made


class TestEvaluate:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_against_the_plain_model(self, family: Family) -> None:
        """Logits of the whole text, one row at a time, no padding: the definition."""
        policy = opinionated(family, sampling=Sampling(temperature=1.7))
        tokens, mask, where = batch()
        answer = policy.evaluate(tokens, mask, where)
        assert answer.logprobs.shape == answer.entropy.shape == tokens.shape
        assert answer.hidden.shape == (*tokens.shape, policy.hidden_size)
        for row in range(len(tokens)):
            length = int(mask[row].sum())
            output = policy.model(tokens[row : row + 1, :length], output_hidden_states=True)
            distribution = (output.logits[0] / 1.7).log_softmax(-1)
            for t in range(tokens.shape[1]):
                expected = distribution[t - 1, tokens[row, t]] if where[row, t] else torch.zeros(())
                entropy = -(distribution[t - 1].exp() @ distribution[t - 1]) if where[row, t] else torch.zeros(())
                hidden = output.hidden_states[-1][0, t - 1] if 0 < t <= length else torch.zeros(policy.hidden_size)
                assert abs(answer.logprobs[row, t] - expected) <= EXACT
                assert abs(answer.entropy[row, t] - entropy) <= EXACT
                assert (answer.hidden[row, t] - hidden).abs().max() <= EXACT

    @pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "gemma2"])
    @pytest.mark.parametrize(("left", "right"), [(1, 0), (15, 0), (0, 9), (4, 3)])
    def test_padding_changes_nothing(self, family: Family, left: int, right: int) -> None:
        policy = opinionated(family)
        tokens, mask, where = batch()
        answer = policy.evaluate(tokens, mask, where)
        wider = [torch.nn.functional.pad(t, (left, right)) for t in (tokens, mask, where)]
        wider[0][~wider[1]] = 7  # whatever stands in the padding
        padded = policy.evaluate(*wider)
        end = left + tokens.shape[1]
        np.testing.assert_allclose(padded.logprobs[:, left:end].tolist(), answer.logprobs.tolist(), rtol=0, atol=EXACT)
        np.testing.assert_allclose(padded.entropy[:, left:end].tolist(), answer.entropy.tolist(), rtol=0, atol=EXACT)
        difference = (padded.hidden[:, left:end] - answer.hidden)[mask]
        assert difference.abs().max() <= EXACT
        assert padded.logprobs[~wider[2]].abs().max() == 0

    def test_tail_is_never_read(self) -> None:
        policy = opinionated("gpt2")
        tokens, mask, where = batch()
        nonsense = tokens.masked_fill(~mask, 30)  # no token of the vocabulary: an embedding would fail
        for some, other in zip(
            policy.evaluate(tokens, mask, where), policy.evaluate(nonsense, mask, where), strict=True
        ):
            assert torch.equal(some, other)

    def test_gradient_only_where_asked(self) -> None:
        policy = opinionated()
        tokens, mask, where = batch()
        answer = policy.evaluate(tokens, mask, where)
        answer.logprobs[~where].sum().backward(retain_graph=True)
        assert all(parameter.grad is None or not parameter.grad.any() for parameter in policy.parameters())
        answer.logprobs.sum().backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in policy.parameters())

    @pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
    def test_gradients_do_not_know_the_padding_token(self, family: Family) -> None:
        """N3: the end token inside a text trains its embedding, even if it also pads."""
        gradients = []
        for pad_id in (29, 0):
            policy = opinionated(family, end_id=29, pad_id=pad_id)
            policy.model.config.pad_token_id = pad_id
            policy = LanguageModel(type(policy.model)(policy.model.config).double(), end_id=29, pad_id=pad_id)
            policy.load_state_dict(opinionated(family).state_dict())
            tokens, mask, where = batch()
            tokens = tokens.masked_fill(~mask, pad_id)
            tokens[:, 1] = 29
            policy.evaluate(tokens, mask, where).logprobs.sum().backward()
            gradients.append([parameter.grad for parameter in policy.parameters()])
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)

    def test_logits_are_computed_only_where_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        policy, seen = opinionated(), []
        policy.model.lm_head.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
        tokens, mask, where = batch()
        policy.evaluate(tokens, mask, where)
        assert seen == [(1, int(where.sum()), 30)]

    def test_nothing_to_score(self) -> None:
        tokens, mask, where = batch()
        answer = opinionated().evaluate(tokens, mask, torch.zeros_like(where))
        assert not answer.logprobs.any() and answer.hidden[:, 1:].any()
        one = torch.zeros(2, 1, dtype=torch.int64)
        assert opinionated().evaluate(one, one == 0, one != 0).hidden.shape == (2, 1, 32)

    def test_places_without_a_distribution_are_refused(self) -> None:
        tokens, mask, where = batch()
        with pytest.raises(ConfigError, match="outside the text"):
            opinionated().evaluate(tokens, mask, ~mask)
        where[2, 0] = True
        with pytest.raises(ConfigError, match="first token"):
            opinionated().evaluate(tokens, mask, where)

    def test_float32_and_bfloat16(self) -> None:
        exact = opinionated().evaluate(*batch()).logprobs
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.2)):
            answer = opinionated(dtype=torch.float64)
            answer.model.to(dtype)
            logprobs = answer.evaluate(*batch()).logprobs
            assert logprobs.dtype == torch.float32 and answer.dtype == dtype
            assert (logprobs - exact).abs().max() < tolerance


class TestDropout:
    """N12: dropout belongs to training steps, not to rollouts and scores."""

    def test_scoring_passes_are_bit_identical_and_modes_are_restored(self, texts: Any) -> None:
        policy = opinionated("gpt2", dropout=0.1).train()
        policy.model.transformer.h[0].eval()  # a part that somebody froze
        modes = [module.training for module in policy.modules()]
        some = episodes(8)
        first, second = policy.response_logprobs(some), policy.response_logprobs(some)
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
        written = [policy.write(texts().observation, 9) for _ in range(2) if policy.reseed(1) is None]
        np.testing.assert_array_equal(written[0].logprobs, written[1].logprobs)
        assert [module.training for module in policy.modules()] == modes

    def test_evaluate_runs_in_the_mode_it_finds(self) -> None:
        policy = opinionated("gpt2", dropout=0.1).train()
        assert not torch.equal(policy.evaluate(*batch()).logprobs, policy.evaluate(*batch()).logprobs)
        policy.eval()
        assert torch.equal(policy.evaluate(*batch()).logprobs, policy.evaluate(*batch()).logprobs)


class TestResponseLogprobs:
    @pytest.mark.parametrize("at_once", [1, 40, 8192])
    def test_in_the_order_given_whatever_the_batches(self, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(language_model_file, "POSITIONS_AT_ONCE", at_once)
        policy, some = opinionated("gpt2"), episodes(17)
        answers = policy.response_logprobs(some)
        for episode, answer in zip(some, answers, strict=True):
            assert answer.dtype == np.float64 and answer.shape == episode.response_ids.shape
            logits = policy.model(torch.from_numpy(episode.ids)[None]).logits[0].log_softmax(-1)
            start = len(episode.prompt_ids)
            expected = [
                logits[start + t - 1, token].item() if episode.actions[t] else 0.0
                for t, token in enumerate(episode.response_ids)
            ]
            np.testing.assert_allclose(answer, expected, rtol=0, atol=EXACT)

    def test_logits_stay_within_their_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        policy, seen = opinionated(), []
        monkeypatch.setattr(language_model_file, "LOGITS_AT_ONCE", 30 * 25)
        policy.model.lm_head.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape[1]))
        policy.response_logprobs(episodes(17))
        assert max(seen) <= 25 and len(seen) > 3

    def test_no_episodes(self) -> None:
        assert opinionated().response_logprobs([]) == []

    def test_what_was_written_scores_as_stated(self, texts: Any) -> None:
        policy, before = opinionated(sampling=Sampling(temperature=0.7)), texts()
        written = policy.write(before.observation, 10)
        made = []
        for prompt, tokens in zip(before.prompts, written.tokens, strict=True):
            ids = tokens[tokens < 30]
            made.append(Episode(Prompt("", ""), prompt, "", ids, "length", np.ones(len(ids), bool)))
        for logprobs, row in zip(policy.response_logprobs(made), written.logprobs, strict=True):
            np.testing.assert_allclose(logprobs, row[: len(logprobs)], rtol=0, atol=EXACT)


class TestFrozenCopy:
    def test_it_stays_when_the_policy_moves(self) -> None:
        policy, some = opinionated("gpt2", dropout=0.1).train(), episodes(4)
        policy.write({"input_ids": np.ones((2, 4), np.int64), "attention_mask": np.ones((2, 4), np.int8)}, 1)
        reference = policy.frozen_copy()
        assert reference._decoding is None  # no second copy of the cache
        before = reference.response_logprobs(some)
        np.testing.assert_array_equal(np.hstack(before), np.hstack(policy.response_logprobs(some)))
        for parameter in policy.parameters():
            parameter.data.add_(0.3 * torch.ones_like(parameter).cumsum(-1).sin())
        np.testing.assert_array_equal(np.hstack(reference.response_logprobs(some)), np.hstack(before))
        assert not np.allclose(np.hstack(policy.response_logprobs(some)), np.hstack(before))
        assert not reference.training and policy.training
        assert not any(parameter.requires_grad for parameter in reference.parameters())
        assert all(parameter.requires_grad for parameter in policy.parameters())

    def test_it_is_a_policy_and_a_scorer(self) -> None:
        policy: Policy = opinionated()
        scorer: TokenScorer = policy.frozen_copy()
        assert len(scorer.response_logprobs(episodes(3))) == 3


class TestFiles:
    @pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
    def test_round_trip(self, family: Family, tmp_path: Path) -> None:
        policy = opinionated(family, end_id=3, pad_id=4)
        policy.save_pretrained(tmp_path / "model")
        loaded = LanguageModel.from_pretrained(tmp_path / "model", dtype=torch.float64)
        assert (loaded.end_id, loaded.pad_id, loaded.vocab_size, loaded.dtype) == (3, 4, 30, torch.float64)
        assert torch.equal(loaded.evaluate(*batch()).logprobs, policy.evaluate(*batch()).logprobs)
        assert LanguageModel.from_pretrained(tmp_path / "model", end_id=5).end_id == 5

    def test_float16_on_disk_becomes_float32(self, tmp_path: Path) -> None:
        policy = opinionated()
        policy.model.to(torch.float16)
        policy.save_pretrained(tmp_path)
        loaded = LanguageModel.from_pretrained(tmp_path)
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
        assert loaded.evaluate(*batch()).logprobs.isfinite().all()

    def test_a_folder_that_is_not_a_model(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"config\.json is missing"):
            LanguageModel.from_pretrained(tmp_path)
        opinionated().save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
        with pytest.raises(DataError, match=r"safetensors, are missing \(pickled"):
            LanguageModel.from_pretrained(tmp_path)

    @pytest.mark.parametrize("by", ["reward_model.json", "architectures"])
    def test_a_model_that_scores_texts_writes_none(self, by: str, tmp_path: Path) -> None:
        # Tied: the head of such a folder is there, and was not trained to write.
        opinionated().save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        if by == "architectures":
            config["architectures"] = ["LlamaForSequenceClassification"]
            (tmp_path / "config.json").write_text(json.dumps(config))
        else:
            (tmp_path / by).write_text("{}")
        with pytest.raises(DataError, match="it scores texts and writes none: name the language model"):
            LanguageModel.from_pretrained(tmp_path)

    def test_broken_files(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        from safetensors.torch import load_file, save_file

        opinionated().save_pretrained(tmp_path / "good")
        broken = {name: tmp_path / name for name in ("cut", "config", "empty", "partial")}
        for folder in broken.values():
            shutil.copytree(tmp_path / "good", folder)
        weights = (tmp_path / "good" / "model.safetensors").read_bytes()
        (broken["cut"] / "model.safetensors").write_bytes(weights[:-100])
        (broken["config"] / "config.json").write_text("{nonsense")
        (broken["empty"] / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
        tensors = load_file(tmp_path / "good" / "model.safetensors")
        del tensors["model.norm.weight"]
        save_file(tensors, broken["partial"] / "model.safetensors", {"format": "pt"})
        for folder in broken.values():
            with pytest.raises(DataError) as caught:
                LanguageModel.from_pretrained(folder)
            assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
            assert caught.value.__context__ is None or caught.value.__suppress_context__
        assert capfd.readouterr().err == ""
        assert "model.norm.weight" in str(caught.value)

    def test_no_such_folder(self) -> None:
        with pytest.raises(DataError, match="there is no such folder"):
            LanguageModel.from_pretrained("./no/such/folder")

    def test_a_hub_name_without_the_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(DataError, match="HF_HUB_OFFLINE") as caught:
            LanguageModel.from_pretrained("nobody/no-such-model")
        assert "\n" not in str(caught.value) and caught.value.__suppress_context__

    def test_ids_outside_the_vocabulary(self) -> None:
        with pytest.raises(ConfigError, match="end_id: 30 is outside the model's vocabulary of 30"):
            opinionated(end_id=30)


def test_the_cache_is_let_go_when_learning_begins(texts: Any) -> None:
    policy = opinionated()
    policy.write(texts().observation, 2)
    with torch.no_grad():
        policy.evaluate(*batch())  # a value asked for on the way does not cost the cache
    assert policy._decoding is not None
    policy.evaluate(*batch())
    assert policy._decoding is None


def test_value_head() -> None:
    head = ValueHead(32, dtype=torch.float64)
    hidden = opinionated().evaluate(*batch()).hidden
    assert head(hidden).shape == hidden.shape[:2] and not head(hidden).any()
    head(hidden).sum().backward()
    torch.testing.assert_close(head.weight.grad, hidden.sum((0, 1)))


def test_tiny_models_are_reproducible() -> None:
    same, other = opinionated(), opinionated(seed=4)
    for one, two, three in zip(opinionated().parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
        assert one.std() == 0 or not torch.equal(one, three)
    with pytest.raises(UnknownName, match="did you mean 'llama'"):
        tiny_language_model("lama")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="hidden_size"):
        tiny_language_model(hidden_size=30)


def test_transformers_loads_only_when_a_model_does() -> None:
    script = "import sys, rlhf_env.policies; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
