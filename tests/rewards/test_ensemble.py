"""Several reward models as one part of a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rlhf_rewards.ensemble import Ensemble

from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.envs.tasks import load_task
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.feedback.reward_models.ensemble import RewardEnsemble, combined
from rlhf_env.feedback.reward_models.loading import load_scorer
from rlhf_env.feedback.reward_models.model import RewardModel, Text
from rlhf_env.policies.tiny import tiny_language_model
from rlhf_env.testing import check_reward, make_episode
from rlhf_env.types import Reward

EPISODES = [make_episode("Hi", text) for text in ("Fine.", "Not so well.", "", "?")]


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trunk")
    tiny_language_model(init_std=0.3).save_pretrained(folder)
    return folder


def model(trunk: Path, seed: int, *, members: int = 1, std: float = 1.0) -> RewardModel:
    made = RewardModel.from_trunk(trunk, members=members, dtype=torch.float64)
    made.heads.data.normal_(generator=torch.Generator().manual_seed(seed))
    made.mean, made.std = np.arange(members, dtype=np.float64), std
    return made


class TestCombined:
    SCORES = np.array([[1.0, 0.0], [3.0, 0.0], [-1.0, 0.0]])

    def test_by_hand(self) -> None:
        """Three members say 1, 3, -1: mean 1, lowest -1, variance 8/3."""
        assert combined(self.SCORES, "mean").tolist() == [1.0, 0.0]
        assert combined(self.SCORES, "worst").tolist() == [-1.0, 0.0]
        np.testing.assert_allclose(combined(self.SCORES, "uncertainty", penalty=0.5), [1 - 4 / 3, 0.0], atol=1e-12)
        assert (combined(self.SCORES, "uncertainty", penalty=0.0) == combined(self.SCORES, "mean")).all()

    def test_entropic_by_hand(self) -> None:
        """-beta log of the mean of exp(-r / beta), beta = 1 / (2 penalty) = 2: (e^-0.5 + e^-1.5 + e^0.5) / 3."""
        found = combined(self.SCORES, "entropic", penalty=0.25)
        expected = -2.0 * np.log((np.exp(-0.5) + np.exp(-1.5) + np.exp(0.5)) / 3.0)
        np.testing.assert_allclose(found, [expected, 0.0], atol=1e-12)

    def test_entropic_lies_between_worst_and_mean(self) -> None:
        """It is the one in the limit and the other at 0, and where members differ by little, uncertainty weighting."""
        scores = np.random.default_rng(0).normal(size=(4, 100))
        assert (combined(scores, "entropic", penalty=0.0) == combined(scores, "mean")).all()
        np.testing.assert_allclose(combined(scores, "entropic", penalty=1e6), scores.min(0), atol=1e-5)
        near = 1.0 + 1e-3 * scores
        gap = combined(near, "entropic", penalty=0.7) - combined(near, "uncertainty", penalty=0.7)
        assert 0.0 < np.abs(gap).max() < 1e-8  # the third order
        for penalty in (0.1, 1.0, 1e4):
            found = combined(1e3 * scores, "entropic", penalty=penalty)
            assert ((found >= 1e3 * scores.min(0)) & (found <= 1e3 * scores.mean(0))).all()
        assert (combined(10.0 * scores, "uncertainty", penalty=1.0) < 10.0 * scores.min(0)).any()

    def test_one_opinion_is_what_it_is(self) -> None:
        for combination in ("mean", "worst", "uncertainty", "entropic"):
            assert combined(self.SCORES[:1], combination).tolist() == [1.0, 0.0]  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="none of mean, worst, uncertainty"):
            combined(self.SCORES, "best")  # type: ignore[arg-type]


class TestMembers:
    def test_heads_on_one_trunk_are_models_of_their_own(self, trunk: Path) -> None:
        shared = model(trunk, 0, members=3, std=2.0)
        raw = shared.raw([Text.of(it) for it in EPISODES]).detach().numpy()
        expected = (raw - np.array([[0.0], [1.0], [2.0]])) / 2.0
        np.testing.assert_allclose(shared.score_members(EPISODES), expected, rtol=0, atol=1e-10)
        np.testing.assert_allclose(shared.score(EPISODES), expected.mean(axis=0), rtol=0, atol=1e-10)

    def test_normalising_aligns_the_members_and_keeps_their_odds(self, trunk: Path) -> None:
        shared = model(trunk, 0, members=3)
        before = shared.score_members(EPISODES)
        shared.normalise([Text.of(it) for it in EPISODES])
        after = shared.score_members(EPISODES)
        np.testing.assert_allclose(after.mean(axis=1), 0.0, atol=1e-10)
        assert abs(after.mean(axis=0).std() - 1.0) < 1e-10
        odds = [np.diff(it, axis=1) for it in (before, after * shared.log_odds_per_point)]
        np.testing.assert_allclose(odds[0], odds[1], rtol=0, atol=1e-10)

    def test_separate_models_are_brought_to_one_unit(self, trunk: Path) -> None:
        """One normalised by 1, one by 3: in log-odds each says what it said."""
        one, other = model(trunk, 1), model(trunk, 2, members=2, std=3.0)
        ensemble = RewardEnsemble([one, other])
        assert (ensemble.members, ensemble.log_odds_per_point) == (3, 2.0)
        expected = np.concatenate([one.score_members(EPISODES) * 1.0, other.score_members(EPISODES) * 3.0]) / 2.0
        np.testing.assert_allclose(ensemble.score_members(EPISODES), expected, rtol=0, atol=1e-10)
        stored = [(it.prompt, Response.from_episode(it, Author("policy", "sft"))) for it in EPISODES]
        for scores in (ensemble.score(EPISODES), ensemble.score_responses(stored)):
            np.testing.assert_allclose(scores, expected.mean(axis=0), rtol=0, atol=1e-10)


class TestFolders:
    def test_a_loaded_ensemble_gives_the_same_bits(self, trunk: Path, tmp_path: Path) -> None:
        ensemble = RewardEnsemble([model(trunk, 1), model(trunk, 2, members=2)])
        for _ in range(2):  # the second time over the first
            ensemble.save(tmp_path / "ensemble")
        loaded = load_scorer(tmp_path / "ensemble")
        assert (loaded.score_members(EPISODES) == ensemble.score_members(EPISODES)).all()
        assert [it.name for it in tmp_path.iterdir()] == ["ensemble"]

    def test_what_is_no_ensemble_is_refused(self, trunk: Path, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("years of work")
        with pytest.raises(ConfigError, match="something else"):
            RewardEnsemble([model(trunk, 1)]).save(tmp_path)
        with pytest.raises(ConfigError, match="at least one"):
            RewardEnsemble([])
        card = tmp_path / "reward_ensemble.json"
        for bad, said in (
            ("{", "cannot be read"),
            ('{"format": 2, "models": []}', "format 2"),
            ('{"format": 1, "models": ["../secret"]}', "outside its folder"),
        ):
            card.write_text(bad)
            with pytest.raises(DataError, match=said):
                load_scorer(tmp_path)


class TestReward:
    @pytest.fixture
    def folders(self, trunk: Path, tmp_path: Path) -> dict[str, Any]:
        """The same two opinions: in two folders, and in one."""
        models = [model(trunk, seed) for seed in (1, 2)]
        for i, it in enumerate(models):
            it.save(tmp_path / f"{i}")
        RewardEnsemble(models).save(tmp_path / "both")
        return {"list": [tmp_path / "0", tmp_path / "1"], "folder": tmp_path / "both"}

    def test_it_combines_what_the_members_say(self, folders: dict[str, Any]) -> None:
        members = load_scorer(folders["folder"]).score_members(EPISODES)
        for kind in folders:
            for combination in ("mean", "worst", "uncertainty", "entropic"):
                reward = Ensemble(folders[kind], combination, penalty=0.3)  # type: ignore[arg-type]
                expected = combined(members, combination, penalty=0.3)  # type: ignore[arg-type]
                assert isinstance(reward, Reward)
                assert (reward(EPISODES) == expected).all()
        check_reward(Ensemble(folders["folder"]), longest=300, tolerance=1e-10)

    def test_by_name_in_a_run(self, folders: dict[str, Any]) -> None:
        settings = {"model": str(folders["folder"]), "combination": "worst", "weight": 0.5}
        mix = load_rewards({"ensemble": settings}, load_task("count"))
        assert (mix.parts["ensemble"](EPISODES) == Ensemble(folders["list"])(EPISODES)).all()  # type: ignore[operator]

    def test_what_makes_no_sense_is_refused(self, folders: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="a single model"):
            Ensemble(folders["list"][0])
        with pytest.raises(ConfigError, match="combination must be one of 'mean', 'worst'"):
            Ensemble(folders["folder"], "median")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="penalty"):
            Ensemble(folders["folder"], penalty=-1.0)

    def test_listing_it_imports_no_torch(self) -> None:
        code = "import sys, rlhf_rewards.ensemble, rlhf_rewards.fairness; assert 'torch' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True)
