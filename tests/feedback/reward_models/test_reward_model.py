"""The reward model: its scores against padding, its files against damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.judgements import Author, Preference, Response
from rlhf_env.feedback.reward_models import model as reward_model
from rlhf_env.feedback.reward_models import reply_head
from rlhf_env.feedback.reward_models.config import RewardModelConfig
from rlhf_env.feedback.reward_models.fitting import fit_reward_model
from rlhf_env.feedback.reward_models.model import RewardModel, Text
from rlhf_env.types import Episode, Prompt

Build = Callable[..., Any]


@pytest.fixture
def model(trunk: Path) -> RewardModel:
    """With a head that has an opinion."""
    made = RewardModel.from_trunk(trunk, dtype=torch.float64)
    with torch.no_grad():
        made.heads[0] = torch.linspace(-1, 1, made.heads.shape[1], dtype=torch.float64)
    return made


@pytest.fixture
def episodes(episode: Build) -> list[Episode]:
    rng = np.random.default_rng(0)
    return [episode(rng.integers(0, 258, size=n).tolist()) for n in (1, 2, 5, 17, 40)]


class TestScore:
    def test_padding_and_batch_mates_change_nothing(self, model: RewardModel, episodes: list[Episode]) -> None:
        together = model.score(episodes)
        alone = np.concatenate([model.score([it]) for it in episodes])
        np.testing.assert_allclose(together, alone, rtol=0, atol=1e-10)
        order = [3, 0, 4, 2, 1]
        np.testing.assert_allclose(model.score([episodes[i] for i in order]), together[order], rtol=0, atol=1e-10)
        assert together.dtype == np.float64
        assert len(np.unique(together.round(6))) == len(episodes)

    def test_many_small_batches_are_put_back_in_order(
        self, model: RewardModel, episodes: list[Episode], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = model.score(episodes[::-1] * 2)
        monkeypatch.setattr(reward_model, "_POSITIONS_AT_ONCE", 25)
        np.testing.assert_allclose(model.score(episodes[::-1] * 2), whole, rtol=0, atol=1e-10)

    def test_equal_texts_are_read_once(
        self, model: RewardModel, episodes: list[Episode], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[int] = []
        raw = model.raw
        monkeypatch.setattr(model, "raw", lambda texts: read.append(len(texts)) or raw(texts))
        scores = model.score([episodes[i] for i in (2, 0, 2, 2, 4, 0)])
        assert sum(read) == 3
        np.testing.assert_array_equal(scores, model.score([episodes[i] for i in (0, 2, 4)])[[1, 0, 1, 1, 2, 0]])

    def test_the_score_is_read_at_the_last_token(self, model: RewardModel, episodes: list[Episode]) -> None:
        ids = torch.from_numpy(episodes[3].ids)[None]
        hidden = model.trunk(input_ids=ids).last_hidden_state[0, -1]
        np.testing.assert_allclose(model.score(episodes[3:4]), (hidden @ model.heads[0]).item(), rtol=0, atol=1e-10)

    @pytest.mark.parametrize("filler", [0, 257, 258])
    def test_tokens_after_the_end_are_never_read(
        self, model: RewardModel, episodes: list[Episode], filler: int
    ) -> None:
        """Whatever pads: 258 is the end token, and a text may hold it more than once."""
        ids = torch.full((len(episodes), 60), filler)
        lengths = torch.tensor([len(it.ids) for it in episodes])
        for row, it in enumerate(episodes):
            ids[row, : len(it.ids)] = torch.from_numpy(it.ids)
        np.testing.assert_allclose(model(ids, lengths, lengths)[0].detach(), model.score(episodes), rtol=0, atol=1e-10)

    def test_an_end_token_in_the_prompt_does_not_end_the_text(self, model: RewardModel, episode: Build) -> None:
        one, two = episode([7, 8], prompt=[258, 5, 258]), episode([9, 8], prompt=[258, 5, 258])
        assert model.score([one])[0] != model.score([two])[0]

    def test_whether_the_text_ended_matters(self, model: RewardModel, episode: Build) -> None:
        cut, ended = model.score([episode([7, 8], ended=False), episode([7, 8, 258])])
        assert cut != ended

    def test_dropout_is_never_on(self, model: RewardModel, episodes: list[Episode]) -> None:
        before = model.score(episodes)
        model.train()
        assert (model.score(episodes) == before).all()

    def test_what_cannot_be_scored_is_refused(self, model: RewardModel, episode: Build) -> None:
        assert model.score([]).shape == (0,)
        with pytest.raises(DataError, match="without a token"):
            model.score([episode([], prompt=[])])
        with pytest.raises(DataError, match="65 tokens exceeds the reward model's context of 64"):
            model.score([episode([1] * 62)])
        for wrong in (-1, 259):
            with pytest.raises(DataError, match=f"token id {wrong} is outside the reward model's vocabulary of 259"):
                model.score([episode([3, wrong, 4])])

    def test_text_without_ids_is_encoded_and_ended(self, trunk: Path) -> None:
        model, zoe = RewardModel.from_trunk(trunk), Author("human", "Zoë")
        sides = Response("b", zoe), Response("bc", zoe, finish_reason="length")
        chosen, rejected = model.read([(Prompt("p", "a"), side) for side in sides])
        a, b, c, end = (model._tokenizer().encode(letter)[0] for letter in ("a", "b", "c", "<end>"))
        assert (chosen.ids.tolist(), chosen.start) == ([a, b, end], 1)
        assert (rejected.ids.tolist(), rejected.start) == ([a, b, c], 1)


class TestReplyHead:
    """The head that reads the whole response and how likely the trunk finds it."""

    @pytest.fixture
    def reads_all(self, trunk: Path) -> RewardModel:
        made = RewardModel.from_trunk(trunk, head="reply", members=2, dtype=torch.float64)
        with torch.no_grad():
            made.heads.copy_(torch.randn(made.heads.shape, generator=torch.Generator().manual_seed(1)))
        return made

    def test_padding_and_batch_mates_change_nothing(
        self, reads_all: RewardModel, episodes: list[Episode], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given = [*episodes, replace(episodes[0], response_ids=episodes[0].response_ids[:0])]
        alone = np.concatenate([reads_all.score_members([it]) for it in given], axis=1)
        np.testing.assert_allclose(reads_all.score_members(given), alone, rtol=0, atol=1e-10)
        monkeypatch.setattr(reply_head, "_LOGITS_AT_ONCE", 259 * 7)
        np.testing.assert_allclose(reads_all.score_members(given), alone, rtol=0, atol=1e-10)

    def test_what_it_reads_is_what_the_language_model_says(
        self, reads_all: RewardModel, trunk: Path, episodes: list[Episode]
    ) -> None:
        from rlhf_env.policies import LanguageModel

        texts = [Text.of(it) for it in episodes]
        features = reads_all.frozen_features(texts).numpy()
        width = reads_all.trunk.config.hidden_size
        policy = LanguageModel.from_pretrained(trunk, dtype=torch.float64, end_id=258, pad_id=258)
        for row, it, logprobs in zip(features, episodes, policy.response_logprobs(episodes), strict=True):
            states = reads_all.trunk(input_ids=torch.from_numpy(it.ids)[None]).last_hidden_state[0].detach()
            start = len(it.prompt_ids)
            mean, numbers = row[width : 2 * width], row[2 * width :]
            np.testing.assert_allclose(mean, states[start:].mean(dim=0), rtol=0, atol=1e-10)
            softer = (states[start - 1 : -1] @ policy_embeddings(reads_all) / 1.6).log_softmax(dim=1)
            said = softer[torch.arange(len(softer)), torch.from_numpy(it.response_ids)]
            expected = [said.mean().item(), -(softer.exp() * softer).sum(dim=1).mean().item()]
            np.testing.assert_allclose(numbers[4:6], expected, rtol=0, atol=1e-10)
            expected = [logprobs.mean(), logprobs.min(), logprobs[-1], len(logprobs)]
            np.testing.assert_allclose(numbers[[0, 6, 7, 8]], expected, rtol=0, atol=1e-10)

    def test_where_the_response_begins_matters(self, reads_all: RewardModel, episode: Build) -> None:
        one, two = (
            reads_all.score([episode(said, prompt=asked)]) for asked, said in (([5, 6], [7, 8]), ([5], [6, 7, 8]))
        )
        assert abs(one - two) > 1e-3
        together = reads_all.score([episode([7, 8], prompt=[5, 6]), episode([6, 7, 8], prompt=[5])])
        np.testing.assert_allclose(together, [*one, *two], rtol=0, atol=1e-10)

    def test_it_is_saved_whole_and_an_older_reader_is_told(
        self, reads_all: RewardModel, model: RewardModel, episodes: list[Episode], tmp_path: Path
    ) -> None:
        assert reads_all.hidden is not None
        reads_all.hidden.measure(reads_all.frozen_features([Text.of(it) for it in episodes]))
        for it, number in ((reads_all, 2), (model, 1)):
            it.save(tmp_path / str(number))
            assert json.loads((tmp_path / str(number) / "reward_model.json").read_text())["format"] == number
            assert (RewardModel.load(tmp_path / str(number)).score(episodes) == it.score(episodes)).all()

    def test_a_trunk_with_another_output_is_refused(self, reads_all: RewardModel) -> None:
        reads_all.trunk.config.tie_word_embeddings = False
        with pytest.raises(ConfigError, match="tie_word_embeddings"):
            RewardModel(reads_all.trunk, head="reply")


def policy_embeddings(model: RewardModel) -> torch.Tensor:
    return model.trunk.get_input_embeddings().weight.detach().T  # type: ignore[no-any-return]


class TestFiles:
    def test_a_loaded_model_gives_the_same_bits(
        self, model: RewardModel, episodes: list[Episode], tmp_path: Path
    ) -> None:
        for dtype in (torch.float64, torch.float32):
            model = model.to(dtype)
            model.mean, model.std = np.array([0.1]), 1 / 3
            model.save(tmp_path / "nested" / "model")  # the second time over the first
            loaded = RewardModel.load(tmp_path / "nested" / "model")
            assert loaded.heads.dtype == dtype
            assert (loaded.score(episodes) == model.score(episodes)).all()
        assert [it.name for it in (tmp_path / "nested").iterdir()] == ["model"]
        assert not list(tmp_path.rglob("*.bin")) + list(tmp_path.rglob("*.pt"))

    def test_record_and_tokenizer_travel_along(
        self, trunk: Path, tmp_path: Path, preference: Build, episode: Build
    ) -> None:
        pairs = [preference(episode([1, i], name=str(i)), episode([2, i])) for i in range(8)]
        config = RewardModelConfig(epochs=1, validation=0.0)
        fitted, record = fit_reward_model(pairs, trunk, config, generator=torch.Generator().manual_seed(0))
        fitted.save(tmp_path / "one")
        RewardModel.load(tmp_path / "one").save(tmp_path / "two")
        loaded = RewardModel.load(tmp_path / "two")
        assert loaded.record == record
        assert (tmp_path / "two" / "tokenizer.json").read_bytes() == (trunk / "tokenizer.json").read_bytes()
        typed = Preference(
            Prompt("p", "hi"), Response("yes", Author("human", "Zoë")), Response("no", Author("human", "Z")), "a"
        )
        assert np.equal(loaded.score_pairs([typed]), fitted.score_pairs([typed])).all()

    def test_folders_that_are_no_reward_model(self, trunk: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        for folder in (trunk, tmp_path / "empty", tmp_path / "absent"):
            with pytest.raises(DataError, match=r"is not a reward model: there is no reward_model\.json"):
                RewardModel.load(folder)
        with pytest.raises(DataError, match=r"no config\.json"):
            RewardModel.from_trunk(tmp_path / "empty")

    def test_damage_is_noticed(self, model: RewardModel, tmp_path: Path) -> None:
        for name in ("model.safetensors", "reward_head.safetensors"):
            model.save(tmp_path / "model")
            content = bytearray((tmp_path / "model" / name).read_bytes())
            content[-5] ^= 1
            (tmp_path / "model" / name).write_bytes(content)
            with pytest.raises(DataError, match=f"{name} is missing or damaged"):
                RewardModel.load(tmp_path / "model")
        model.save(tmp_path / "model")
        card = tmp_path / "model" / "reward_model.json"
        good = json.loads(card.read_text())
        for bad in ("", "{}", "[]", *(json.dumps({**good, key: None}) for key in good if key != "record")):
            card.write_text(bad)
            with pytest.raises(DataError, match=r"reward_model\.json"):
                RewardModel.load(tmp_path / "model")

    def test_saving_never_replaces_something_else(self, model: RewardModel, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("years of work")
        for path in (tmp_path, tmp_path / "thesis.txt"):
            with pytest.raises(ConfigError, match="something else"):
                model.save(path)
        assert (tmp_path / "thesis.txt").read_text() == "years of work"
