"""What a run needs is estimated from what really is kept, and said before its model is loaded."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import rlhf_env
from rlhf_env.errors import DataError
from rlhf_env.feedback.judgements import Author, Preference, Response
from rlhf_env.feedback.reward_models import fitting
from rlhf_env.feedback.reward_models.config import RewardModelConfig
from rlhf_env.feedback.reward_models.fitting import fit_reward_model
from rlhf_env.learning import experiment_checks, workplace
from rlhf_env.learning.engine import Engine, Optimization
from rlhf_env.learning.memory_need import Load, memory_need, remedies
from rlhf_env.learning.policy_settings import PolicySettings
from rlhf_env.lora_settings import Lora
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.lora import adapter_weights, add_adapter
from rlhf_env.policies.sizes import size_of
from rlhf_env.policies.tiny import tiny_language_model
from rlhf_env.types import Prompt


def bytes_of(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("targets", [None, ("all-linear",), ("q_proj", "down_proj")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_estimate_is_what_training_keeps(dtype: Any, targets: tuple[str, ...] | None, tmp_path: Path) -> None:
    lora = None if targets is None else Lora(rank=2, targets=targets)
    if lora is not None:
        pytest.importorskip("peft")
    settings = PolicySettings(dtype=dtype, lora=lora)
    tiny_language_model("qwen3", key_value_heads=2).save_pretrained(tmp_path)
    size = size_of(tmp_path)
    assert size is not None
    policy = LanguageModel.from_pretrained(tmp_path, dtype=settings.torch_dtype)
    weights = bytes_of(*policy.parameters())
    if lora is not None:
        add_adapter(policy.model, lora, 0)
    optimizer = Engine().optimizer(policy.parameters(), Optimization())
    optimizer.backward(
        policy.evaluate(*(torch.ones(1, 4, dtype=torch.int64),) * 3 if False else texts()).logprobs.sum()
    )
    gradients = bytes_of(*(it.grad for it in optimizer._trained if it.grad is not None))
    optimizer.step()
    state = optimizer.state_dict().values()

    need = memory_need(size, settings, Load())
    assert need.stays["weights"] == weights
    assert need.stays.get("adapters", 0) == bytes_of(*adapter_weights(policy.model).values())
    assert need.stays["moments"] == sum(bytes_of(it["exp_avg"], it["exp_avg_sq"]) for it in state)
    assert need.stays.get("master copy", 0) == sum(bytes_of(it["master"]) for it in state if "master" in it)
    of_half = weights if dtype == "bfloat16" and lora is None else 0
    assert need.learning["gradients"] == gradients + of_half  # autograd's own, in bfloat16, for a moment
    assert ("reference" in need.stays) == (lora is None)


def texts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    mask = torch.ones(1, 5, dtype=torch.bool)
    where = mask.clone()
    where[:, 0] = False
    return torch.arange(5)[None], mask, where


def test_a_value_model_of_its_own_and_a_control() -> None:
    from rlhf_env.policies.sizes import ModelSize

    size = ModelSize(parameters=1000, matrices=(("a.q", 10, 20), ("a.k", 10, 10)), keys_and_values=8, dtype=None)
    usual, control = (memory_need(size, PolicySettings(), Load(trains=on)) for on in (True, False))
    assert usual.total == 4 * 1000 * (1 + 1 + 2 + 1)  # weights, reference, moments, gradients
    assert control.total == 4 * 1000 * 2 + 4 * 300  # while it writes, the matrices once more
    critic = memory_need(size, PolicySettings(), Load(separate_value_model=True))
    assert critic.total - usual.total == 4 * 1000 * (1 + 2 + 1)
    assert memory_need(size, PolicySettings(fused=False), Load(trains=False, written=7)).total == 8000 + 7 * 8 * 4
    taught = memory_need(size, PolicySettings(), Load(teachers=12_000))
    assert taught.total - usual.total == 12_000
    assert str(usual) == "20 KiB (weights 4 KiB, reference 4 KiB, moments 8 KiB, gradients 4 KiB, and activations)"
    assert "[policy.lora]" in remedies(PolicySettings(), trains=True)
    assert "[policy.lora]" not in remedies(PolicySettings(lora=Lora()), trains=True)
    assert "bfloat16" not in remedies(PolicySettings(dtype="bfloat16"), trains=True)


def test_a_run_that_will_need_more_is_told_so_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_language_model(dtype=torch.float32).save_pretrained(tmp_path)
    experiment: dict[str, Any] = {
        "policy": {"model": str(tmp_path), "tokenizer": "bytes"},
        "task": {"name": "count"},
        "environment": {"num_envs": 4, "max_new_tokens": 4},
        "agent": {"name": "grpo", "group_size": 2},
        "budget": {"updates": 1},
        "evaluation": {"prompts": 2},
    }
    said = r"the run will need about 2 MiB \(weights 1\d\d KiB, .*, and 200 KiB are free on cpu: \[policy.lora\] "
    monkeypatch.setattr(workplace, "free_on", lambda _device: 200 * 1024)
    with pytest.warns(RuntimeWarning, match=said):
        rlhf_env.run(experiment)
    monkeypatch.setattr(workplace, "free_on", lambda _device: 2**22)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        rlhf_env.run(experiment)


def test_weights_that_no_device_holds_are_refused_before_they_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_language_model(dtype=torch.float32).save_pretrained(tmp_path)
    monkeypatch.setattr(workplace, "find_device", lambda *_: "cuda:0")
    monkeypatch.setattr(experiment_checks, "require_dtype", lambda *_: None)
    monkeypatch.setattr(workplace, "free_on", lambda _device: 100 * 1024)
    monkeypatch.setattr(workplace, "load_policy", lambda *_, **__: pytest.fail("it is loaded"))
    policy = {"model": str(tmp_path), "tokenizer": "bytes"}
    said = r"weights alone are 1\d\d KiB in float32 \(.*\), and 100 KiB are free on cuda:0: dtype = \"bfloat16\" makes"
    with pytest.raises(DataError, match=said):
        rlhf_env.run({"policy": policy})


@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_a_fit_of_a_reward_model_is_told_so_too(
    lora: Lora | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lora is not None:
        pytest.importorskip("peft")
    tiny_language_model(dtype=torch.float32).save_pretrained(tmp_path)
    sides = [Response(text, author=Author("human", "a"), ids=(1, 2), prompt_ids=(3,)) for text in ("yes", "no")]
    pairs = [Preference(Prompt(id=str(i), text=f"Hi {i}"), *sides, annotator="b") for i in range(4)]
    config = RewardModelConfig(epochs=1, validation=0.0, lora=lora)
    monkeypatch.setattr(fitting, "free_on", lambda _device: 200 * 1024)
    with pytest.warns(RuntimeWarning, match=r"fitting the reward model will need about .* and 200 KiB are free"):
        fit_reward_model(pairs, tmp_path, config, generator=torch.Generator())


def test_teachers_of_agents_and_rewards_are_counted_once_each(tmp_path: Path) -> None:
    tiny_language_model(dtype=torch.float32).save_pretrained(tmp_path)
    size = size_of(tmp_path)
    assert size is not None
    teacher = str(tmp_path)

    def counted(**tables: Any) -> int:
        return workplace.teachers_weights(rlhf_env.Experiment(**tables))

    alone = {"name": "distill", "teacher": teacher}
    assert counted(agent={"name": "reinforce"}) == 0
    assert counted(agent=alone) == 4 * size.parameters
    assert counted(agent={"name": "replay", "agent": {**alone, "teacher_dtype": "bfloat16"}}) == 2 * size.parameters
    rewards = {"task": 1.0, "near": {"plugin": "teacher", "teacher": teacher}}
    assert counted(agent=alone, rewards=rewards) == 4 * size.parameters
    assert counted(rewards={"teacher": {"teacher": teacher, "dtype": "float64"}}) == 8 * size.parameters
