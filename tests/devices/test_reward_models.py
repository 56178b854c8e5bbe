"""Reward models on a device: fitted there or loaded there, they score as on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rlhf_rewards.bradley_terry import BradleyTerry
from rlhf_rewards.upbeat import Upbeat

from rlhf_env.feedback.judgements import Author, Preference, Response
from rlhf_env.feedback.reward_models.config import RewardModelConfig
from rlhf_env.feedback.reward_models.ensemble import RewardEnsemble
from rlhf_env.feedback.reward_models.fitting import fit_ensemble, fit_reward_model
from rlhf_env.feedback.reward_models.loading import load_scorer
from rlhf_env.feedback.reward_models.model import RewardModel
from rlhf_env.policies import tiny_language_model
from rlhf_env.testing import make_episode
from rlhf_env.types import Episode, Prompt

from .fake import FakeDevice

VOCABULARY = 40


@pytest.fixture
def trunk(tmp_path: Path) -> Path:
    size: dict[str, Any] = {"hidden_size": 16, "layers": 2, "heads": 2, "context": 32, "vocab_size": VOCABULARY}
    tiny_language_model("gpt2", init_std=0.3, dtype=torch.float32, **size).save_pretrained(tmp_path / "trunk")
    return tmp_path / "trunk"


def episodes() -> list[Episode]:
    answers = [[4, 5, 6], [7, 8], [9], [10, 11, 12, 13]]
    said = [(np.array([1, 2]), np.array(ids), np.ones(len(ids), bool)) for ids in answers]
    return [Episode(Prompt("p", "p"), prompt, "a", ids, "stop", actions) for prompt, ids, actions in said]


def preferences() -> list[Preference]:
    author = Author("policy", "p")

    def side(*ids: int) -> Response:
        return Response(str(ids), author, prompt_ids=(1, 2), ids=ids)

    pairs = [((4, 5), (6,)), ((7, 8, 9), (10,)), ((4,), (11, 12)), ((5, 5), (13, 14, 15))] * 3
    return [Preference(Prompt(f"p{i}", "p"), side(*a), side(*b), annotator="x") for i, (a, b) in enumerate(pairs)]


def fitted(trunk: Path, device: str, **config: Any) -> RewardModel:
    wanted = RewardModelConfig(epochs=2, batch_size=4, validation=0.3, **config)
    generator = torch.Generator().manual_seed(0)
    return fit_reward_model(preferences(), trunk, wanted, generator=generator, device=device)[0]


@pytest.mark.parametrize(
    "config",
    [{}, {"members": 2, "dropout": 0.2}, {"head": "reply", "head_epochs": 1}, {"lora": "rank 2"}],
    ids=["one head", "several heads", "reply", "lora"],
)
def test_one_fitted_there_is_the_one_fitted_here(config: dict[str, Any], trunk: Path, device: FakeDevice) -> None:
    from rlhf_env.lora_settings import Lora

    config = {name: Lora(rank=2) if name == "lora" else value for name, value in config.items()}
    here, there = fitted(trunk, "cpu", **config), fitted(trunk, str(device.device), **config)
    assert {it.device for it in there.parameters()} == {device.device}
    assert np.abs(here.score_members(episodes()) - there.score_members(episodes())).max() < 5e-3
    there.save(trunk.parent / "model")
    loaded = load_scorer(trunk.parent / "model")
    assert np.abs(loaded.score(episodes()) - there.score(episodes())).max() < 1e-4


def test_an_ensemble_there(trunk: Path, gpu: FakeDevice, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    config = RewardModelConfig(epochs=1, batch_size=4)
    made = fit_ensemble(preferences(), trunk, config, models=2, generator=generator, device=str(gpu.device))
    made.save(tmp_path / "both")
    there, here = RewardEnsemble.load(tmp_path / "both", device=str(gpu.device)), load_scorer(tmp_path / "both")
    assert {it.device for it in there.models[1].parameters()} == {gpu.device}  # type: ignore[attr-defined]
    assert np.abs(there.score_members(episodes()) - here.score_members(episodes())).max() < 1e-4


def test_a_classifier_there(tmp_path: Path, device: FakeDevice) -> None:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=32, num_labels=1)
    config.pad_token_id = 0
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    name = str(device.device)
    there, here = load_scorer(tmp_path / "classifier", device=name), load_scorer(tmp_path / "classifier")
    assert there._model.device == device.device  # type: ignore[attr-defined]
    assert np.abs(there.score(episodes()) - here.score(episodes())).max() < 1e-4
    lent = BradleyTerry(tmp_path / "classifier", device=name)
    assert np.abs(lent(episodes()) - here.score(episodes())).max() < 1e-4


def test_the_judge_of_the_gold_reward_is_there_if_float64_is(device: FakeDevice) -> None:
    said = [make_episode("hi", text) for text in ("I am glad to see you!", "no")]
    before = device.worked
    assert np.abs(Upbeat(device=str(device.device))(said) - Upbeat()(said)).max() < 1e-6
    assert (device.worked > before) == device.has_float64
