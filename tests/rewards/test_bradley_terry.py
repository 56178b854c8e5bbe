"""The learned reward as a part of a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rlhf_rewards.bradley_terry import BradleyTerry

from rlhf_env.errors import DataError
from rlhf_env.feedback.reward_models.model import RewardModel
from rlhf_env.policies.tiny import tiny_language_model
from rlhf_env.types import Episode, GroupReward, Prompt, Reward, TokenReward


def test_it_is_the_score_of_the_saved_model(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    tiny_language_model().save_pretrained(tmp_path / "trunk")
    model = RewardModel.from_trunk(tmp_path / "trunk")
    model.heads.data.fill_(0.5)
    model.mean, model.std = np.array([2.0]), 3.0
    model.save(tmp_path / "model")
    reward = BradleyTerry(tmp_path / "model")
    ids = [np.array(text, dtype=np.int64) for text in ([5, 6, 258], [7])]
    episodes = [Episode(Prompt("p", "q"), ids[1], "x", it, "stop", np.ones(len(it), bool)) for it in ids]
    assert isinstance(reward, Reward)
    assert not isinstance(reward, TokenReward | GroupReward)
    assert reward(episodes).dtype == np.float64
    assert (reward(episodes) == model.score(episodes)).all()
    assert reward([]).shape == (0,)


def test_a_folder_that_is_no_reward_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a reward model"):
        BradleyTerry(tmp_path)


def test_listing_it_imports_no_torch() -> None:
    code = "import sys, rlhf_rewards.bradley_terry; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
