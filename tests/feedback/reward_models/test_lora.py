"""Reward models with low-rank adapters: the trunk's own weights do not change, the adapters are merged at the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlhf_env.feedback.judgements import Author, Preference, Response
from rlhf_env.feedback.reward_models import fitting
from rlhf_env.feedback.reward_models.config import RewardModelConfig
from rlhf_env.feedback.reward_models.fitting import fit_ensemble, fit_reward_model
from rlhf_env.feedback.reward_models.loading import load_scorer
from rlhf_env.feedback.reward_models.model import RewardModel
from rlhf_env.lora_settings import Lora
from rlhf_env.policies.tiny import tiny_language_model
from rlhf_env.types import Prompt

pytest.importorskip("peft")
CONFIG = RewardModelConfig(
    epochs=2, validation=0.0, learning_rate=0.05, lora=Lora(rank=2, targets=("q_proj", "up_proj"))
)


@pytest.fixture
def trunk(tmp_path: Path) -> Path:
    tiny_language_model(init_std=0.1, dtype=torch.float32).save_pretrained(tmp_path / "trunk")
    return tmp_path / "trunk"


def pairs() -> list[Preference]:
    author = Author("policy", "p", 1.0)
    return [
        Preference(
            Prompt(id=str(i), text=f"{i}"),
            *(
                Response(text, author=author, ids=ids, prompt_ids=(i,))
                for text, ids in (("a", (97, 1)), ("b", (98, 2)))
            ),
            annotator="x",
        )
        for i in range(12)
    ]


def test_only_adapters_and_heads_learn_and_the_merged_trunk_has_no_adapter(
    trunk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = RewardModel.from_trunk(trunk).trunk.state_dict()
    merge, unmerged = fitting.merge_adapter, []

    def noting(model: torch.nn.Module) -> torch.nn.Module:
        unmerged.append({name: value.clone() for name, value in model.state_dict().items()})
        return merge(model)

    monkeypatch.setattr(fitting, "merge_adapter", noting)
    model, _ = fit_reward_model(pairs(), trunk, CONFIG, generator=torch.Generator().manual_seed(0))
    (learned,) = unmerged
    assert any(bool(value.any()) for name, value in learned.items() if ".lora_B." in name)
    assert bool(model.heads.any())
    for name, value in learned.items():
        if ".lora_" not in name:
            assert torch.equal(value, before[name.replace(".base_layer.", ".")]), name
    after = model.trunk.state_dict()
    assert set(after) == set(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "q_proj" in name or "up_proj" in name}

    chosen, rejected = model.score_pairs(pairs())
    assert (chosen > rejected).all()
    model.save(tmp_path / "rm")
    again = load_scorer(tmp_path / "rm").score_pairs(pairs())
    assert (again[0] == chosen).all() and (again[1] == rejected).all()


def test_the_same_seed_fits_the_same_bits_and_members_differ(trunk: Path) -> None:
    one, other = (
        fit_reward_model(pairs(), trunk, CONFIG, generator=torch.Generator().manual_seed(3))[0] for _ in range(2)
    )
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    both = fit_ensemble(pairs(), trunk, CONFIG, models=2, generator=torch.Generator().manual_seed(3))
    first, second = (member.state_dict() for member in both.models)
    assert not torch.equal(first["heads"], second["heads"])
