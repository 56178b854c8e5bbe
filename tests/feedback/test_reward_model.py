"""The reward model: its loss against closed forms, its scores against padding, its files against damage."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback import reward_model
from rlhf_env.feedback.preferences import Author, Preference, Response, split_by_prompt
from rlhf_env.feedback.reward_model import (
    RewardModel,
    RewardModelConfig,
    accuracy_with_interval,
    bradley_terry_loss,
    fit_reward_model,
)
from rlhf_env.types import Episode, Prompt

Build = Callable[..., Any]


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def model(trunk: Path) -> RewardModel:
    """With a head that has an opinion."""
    made = RewardModel.from_trunk(trunk, dtype=torch.float64)
    with torch.no_grad():
        made.head.copy_(torch.linspace(-1, 1, len(made.head), dtype=torch.float64))
    return made


@pytest.fixture
def episodes(episode: Build) -> list[Episode]:
    rng = np.random.default_rng(0)
    return [episode(rng.integers(0, 258, size=n).tolist()) for n in (1, 2, 5, 17, 40)]


class TestLoss:
    def test_equal_scores_cost_ln_2(self) -> None:
        scores = doubles(-3.0, 0.0, 800.0)
        for weight in (None, torch.tensor([1.0, 5.0, 0.1])):
            assert abs(bradley_terry_loss(scores, scores, weight).item() - math.log(2)) < 1e-12

    def test_value_and_gradient_in_closed_form(self) -> None:
        """d loss / d chosen = -w sigmoid(-(chosen - rejected - margin)) / sum w, and the opposite for rejected."""
        chosen, rejected, weight, margin = (
            doubles(0.3, -1.0, 2.0),
            doubles(0.1, 0.5, -2.0),
            doubles(1.0, 2.0, 0.5),
            0.25,
        )
        bradley_terry_loss(chosen, rejected, weight.detach(), margin).backward()  # type: ignore[no-untyped-call]
        delta = (chosen - rejected).detach() - margin
        value = (weight * torch.log1p(torch.exp(-delta))).sum() / 3.5
        slope = weight.detach() * torch.sigmoid(-delta) / 3.5
        torch.testing.assert_close(bradley_terry_loss(chosen, rejected, weight, margin), value, rtol=0, atol=1e-12)
        torch.testing.assert_close(chosen.grad, -slope, rtol=0, atol=1e-12)
        torch.testing.assert_close(rejected.grad, slope, rtol=0, atol=1e-12)

    def test_swapping_turns_the_gradient_and_reflects_the_loss(self) -> None:
        a, b = doubles(0.7, -2.0), doubles(0.2, 1.0)
        loss, swapped = bradley_terry_loss(a, b), bradley_terry_loss(b, a)
        # log sigmoid(x) - log sigmoid(-x) = x
        torch.testing.assert_close(swapped - loss, (a - b).mean(), rtol=0, atol=1e-12)
        at_equal = doubles(1.0, 2.0), doubles(1.0, 2.0)
        bradley_terry_loss(*at_equal).backward()  # type: ignore[no-untyped-call]
        assert at_equal[0].grad is not None
        assert at_equal[1].grad is not None
        assert at_equal[0].grad.tolist() == [-0.25, -0.25]
        assert at_equal[1].grad.tolist() == [0.25, 0.25]

    def test_far_apart_scores_stay_finite(self) -> None:
        low, high = doubles(-1e4), doubles(1e4)
        assert bradley_terry_loss(high, low) == 0.0
        assert bradley_terry_loss(low, high) == 2e4


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
        monkeypatch.setattr(reward_model, "POSITIONS_AT_ONCE", 25)
        np.testing.assert_allclose(model.score(episodes[::-1] * 2), whole, rtol=0, atol=1e-10)

    def test_the_score_is_read_at_the_last_token(self, model: RewardModel, episodes: list[Episode]) -> None:
        ids = torch.from_numpy(episodes[3].ids)[None]
        hidden = model.trunk(input_ids=ids).last_hidden_state[0, -1]
        np.testing.assert_allclose(model.score(episodes[3:4]), (hidden @ model.head).item(), rtol=0, atol=1e-10)

    @pytest.mark.parametrize("filler", [0, 257, 258])
    def test_tokens_after_the_end_are_never_read(
        self, model: RewardModel, episodes: list[Episode], filler: int
    ) -> None:
        """Whatever pads: 258 is the end token, and a text may hold it more than once."""
        ids = torch.full((len(episodes), 60), filler)
        lengths = torch.tensor([len(it.ids) for it in episodes])
        for row, it in enumerate(episodes):
            ids[row, : len(it.ids)] = torch.from_numpy(it.ids)
        np.testing.assert_allclose(model(ids, lengths).detach(), model.score(episodes), rtol=0, atol=1e-10)

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


class TestFiles:
    def test_a_loaded_model_gives_the_same_bits(
        self, model: RewardModel, episodes: list[Episode], tmp_path: Path
    ) -> None:
        for dtype in (torch.float64, torch.float32):
            model = model.to(dtype)
            model.mean, model.std = 0.1, 1 / 3
            model.save(tmp_path / "nested" / "model")  # the second time over the first
            loaded = RewardModel.load(tmp_path / "nested" / "model")
            assert loaded.head.dtype == dtype
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


class TestFit:
    def pairs(self, episode: Build, preference: Build, count: int, seed: int = 0) -> list[Preference]:
        """The response with more of token 97 is preferred; where it stands, and the length, tell nothing."""
        rng = np.random.default_rng(seed)
        made = []
        while len(made) < count:
            a, b = (rng.choice([97, 98, 99, 100], size=rng.integers(4, 12)).tolist() for _ in range(2))
            if abs(a.count(97) - b.count(97)) > 1:
                more, less = (a, b) if a.count(97) > b.count(97) else (b, a)
                prompt = rng.integers(0, 90, size=3).tolist()
                made.append(preference(episode(more, prompt=prompt), episode(less, prompt=prompt)))
        return made

    def test_it_learns_a_planted_preference(self, trunk: Path, episode: Build, preference: Build) -> None:
        training, unseen = (self.pairs(episode, preference, count, seed) for count, seed in ((400, 0), (300, 1)))
        seen: list[tuple[int, int, float]] = []
        config = RewardModelConfig(learning_rate=3e-3, epochs=6, patience=6)
        model, record = fit_reward_model(
            training, trunk, config, generator=torch.Generator().manual_seed(0), progress=lambda *it: seen.append(it)
        )
        accuracy = accuracy_with_interval(*model.score_pairs(unseen))
        assert accuracy.low > 0.9
        before = RewardModel.from_trunk(trunk).score_pairs(unseen)
        assert accuracy_with_interval(*before).value == 0.5
        assert record.pairs + record.validation_pairs == 400
        assert 20 <= record.validation_pairs <= 60
        assert [done for done, _, _ in seen] == list(range(1, record.steps + 1))
        assert {planned for _, planned, _ in seen} == {record.steps}
        assert record.epochs[record.best].validation_loss == min(it.validation_loss or 9 for it in record.epochs)

        texts = {tuple(ids): np.array(ids) for pair in model.read_pairs(training) for ids in pair}
        scores = model.score_ids(list(texts.values()))
        assert abs(scores.mean()) < 1e-4
        assert abs(scores.std() - 1) < 1e-4

    def test_the_same_seed_gives_the_same_bits(self, trunk: Path, episode: Build, preference: Build) -> None:
        training = self.pairs(episode, preference, 60)
        config = RewardModelConfig(learning_rate=1e-3, epochs=2, dropout=0.2)

        def fit(seed: int) -> RewardModel:
            torch.manual_seed(torch.seed())  # nothing is drawn from the global generator
            return fit_reward_model(training, trunk, config, generator=torch.Generator().manual_seed(seed))[0]

        one, two, other = (fit(seed).score_pairs(training)[0] for seed in (1, 1, 2))
        assert (one == two).all()
        assert (one != other).any()

    @pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
    def test_micro_batches_change_nothing(
        self, trunk: Path, episode: Build, preference: Build, micro_batch_size: int
    ) -> None:
        pairs = [replace(it, weight=1.0 + i) for i, it in enumerate(self.pairs(episode, preference, 8))]
        weight = torch.tensor([it.weight for it in pairs], dtype=torch.float64)

        def gradient(size: int) -> tuple[float, torch.Tensor]:
            model = RewardModel.from_trunk(trunk, dtype=torch.float64)
            model.head.data.fill_(0.1)
            config = RewardModelConfig(micro_batch_size=size, margin=0.3)
            loss = reward_model._accumulate_gradient(
                model, model.read_pairs(pairs), weight, range(8), config, torch.Generator()
            )
            return loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

        model = RewardModel.from_trunk(trunk, dtype=torch.float64)
        model.head.data.fill_(0.1)
        texts = model.read_pairs(pairs)
        scores = [torch.cat([model._read([pair[side]]) for pair in texts]) for side in (0, 1)]
        whole = bradley_terry_loss(scores[0], scores[1], weight, 0.3)
        whole.backward()  # type: ignore[no-untyped-call]
        expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        loss, found = gradient(micro_batch_size)
        assert abs(loss - whole.item()) < 1e-12
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)

    def test_the_best_epoch_is_kept(
        self, trunk: Path, episode: Build, preference: Build, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        training, weights = self.pairs(episode, preference, 40), []
        verdicts = iter([(0.7, 0.5), (0.5, 0.6), (0.6, 0.7), (0.6, 0.7), (0.1, 0.9)])

        def validate(model: RewardModel, *_: Any) -> tuple[float, float]:
            weights.append(model.head.detach().clone())
            return next(verdicts)

        monkeypatch.setattr(reward_model, "_validate", validate)
        model, record = fit_reward_model(
            training, trunk, RewardModelConfig(epochs=5, patience=2), generator=torch.Generator().manual_seed(0)
        )
        assert (record.best, len(record.epochs)) == (1, 4)
        assert (model.head == weights[1]).all()
        assert (model.head != weights[3]).any()

    def test_validation_is_independent_of_the_held_out_division(
        self, trunk: Path, episode: Build, preference: Build
    ) -> None:
        """Training prompts all hash above the held-out share: dividing them by the same hash would validate on none."""
        training, _ = split_by_prompt(self.pairs(episode, preference, 300), 0.3)
        _, record = fit_reward_model(
            training, trunk, RewardModelConfig(epochs=1, validation=0.2), generator=torch.Generator().manual_seed(0)
        )
        assert 0.1 < record.validation_pairs / len(training) < 0.3

    def test_without_validation_the_last_epoch_is_kept(self, trunk: Path, episode: Build, preference: Build) -> None:
        config = RewardModelConfig(epochs=2, validation=0.0)
        _, record = fit_reward_model(
            self.pairs(episode, preference, 10), trunk, config, generator=torch.Generator().manual_seed(0)
        )
        assert record.best == 1
        assert record.validation_pairs == 0
        assert record.epochs[1].validation_loss is None

    def test_bad_settings_and_empty_data(self, trunk: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            RewardModelConfig(learning_rate=-1.0, epochs=0, validation=1.0)
        assert [problem.split(":")[0] for problem in caught.value.problems] == ["learning_rate", "epochs", "validation"]
        with pytest.raises(DataError, match="no preferences"):
            fit_reward_model([], trunk, RewardModelConfig(), generator=torch.Generator())

    def test_text_without_ids_is_encoded_and_ended(self, trunk: Path) -> None:
        model, zoe = RewardModel.from_trunk(trunk), Author("human", "Zoë")
        sides = Response("b", zoe), Response("bc", zoe, finish_reason="length")
        ((chosen, rejected),) = model.read_pairs([Preference(Prompt("p", "a"), *sides, "ann")])
        a, b, c, end = (model._tokenizer().encode(letter)[0] for letter in ("a", "b", "c", "<end>"))
        assert chosen.tolist() == [a, b, end]
        assert rejected.tolist() == [a, b, c]


class TestAccuracy:
    def test_wilson_by_hand(self) -> None:
        """8 of 10: the textbook interval is (0.490, 0.943)."""
        scores = np.array([1.0] * 8 + [-1.0] * 2)
        accuracy = accuracy_with_interval(scores, np.zeros(10))
        assert accuracy.value == 0.8
        np.testing.assert_allclose([accuracy.low, accuracy.high], [0.4901625, 0.9433178], atol=1e-6)

    def test_edges(self) -> None:
        assert accuracy_with_interval(np.zeros(4), np.zeros(4)).value == 0.5
        sure = accuracy_with_interval(np.ones(5), np.zeros(5))
        assert sure.high == 1.0
        assert 0.5 < sure.low < 0.6
        with pytest.raises(DataError, match="got 0 and 0"):
            accuracy_with_interval(np.zeros(0), np.zeros(0))

    def test_the_interval_covers_as_often_as_it_says(self) -> None:
        rng = np.random.default_rng(0)
        inside = 0
        for _ in range(1000):
            accuracy = accuracy_with_interval((rng.random(200) < 0.75).astype(float), np.full(200, 0.5))
            inside += accuracy.low <= 0.75 <= accuracy.high
        assert abs(inside / 1000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 1000)
