"""Whole runs on a device: everything is placed, evaluated, kept, and goes on on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rlhf_env
from rlhf_env.errors import ConfigError
from rlhf_env.feedback.reward_models.model import RewardModel
from rlhf_env.lab.chat import open_chat
from rlhf_env.lab.evaluation.against_reference import evaluate_run
from rlhf_env.lab.evaluation.runs import load_run
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.workplace import build
from rlhf_env.policies import tiny_language_model

from .fake import FakeDevice


@pytest.fixture
def reward_model(tmp_path: Path) -> Path:
    size: dict[str, Any] = {"hidden_size": 8, "layers": 1, "heads": 1, "vocab_size": 6, "context": 64}
    model = RewardModel(tiny_language_model("gpt2", dtype=torch.float32, **size).model.base_model, members=2)
    model.scatter_heads(torch.Generator().manual_seed(0))
    model.save(tmp_path / "reward_model")
    return tmp_path / "reward_model"


def experiment(device: str = "auto", reward_model: Path | None = None, **more: Any) -> dict[str, Any]:
    learned = {} if reward_model is None else {"ensemble": {"weight": 0.5, "model": str(reward_model)}}
    table = {
        "policy": {"tokenizer": "alphabet:ab:=", "device": device},
        "task": {"name": "count", "letter": "a", "target": 3},
        "rewards": {"task": 1.0, "kl": 0.05, **learned},
        "environment": {"num_envs": 8, "max_new_tokens": 4, "max_prompt_tokens": 8},
        "agent": {"name": "grpo"},
        "budget": {"updates": 2},
        "evaluation": {"prompts": 4},
        "checkpoint_every": 1,
    }
    return {**table, **more}


def devices_in(workplace: Any) -> set[torch.device]:
    setup, scorer = workplace.setup, workplace.env.reward.parts["ensemble"]._ensemble.models[0]
    return {it.device for model in (setup.policy, setup.reference, scorer) for it in model.parameters()}


def test_all_models_of_a_run_are_where_its_policy_says(reward_model: Path, gpu: FakeDevice) -> None:
    for named in ("auto", gpu.device.type, str(gpu.device)):
        workplace = build(Experiment.from_table(experiment(named, reward_model)))
        assert workplace.setup.engine.device == str(gpu.device)
        assert devices_in(workplace) == {gpu.device}


def test_a_reward_may_be_put_elsewhere(reward_model: Path, gpu: FakeDevice) -> None:
    table = experiment("auto", reward_model)
    table["rewards"]["ensemble"]["device"] = "cpu"
    assert devices_in(build(Experiment.from_table(table))) == {gpu.device, torch.device("cpu")}


def test_auto_is_never_the_gpu_without_float64() -> None:
    with FakeDevice("mps:0"):
        assert build(Experiment.from_table(experiment())).setup.policy.device == torch.device("cpu")
        assert build(Experiment.from_table(experiment("mps"))).setup.policy.device == torch.device("mps:0")
        with pytest.raises(ConfigError, match='dtype "float64" does not exist on mps:0: set "float32"'):
            build(Experiment.from_table(experiment("mps", policy={**experiment("mps")["policy"], "dtype": "float64"})))


def test_a_run_there_is_the_run_here_and_goes_on_here(tmp_path: Path, reward_model: Path, gpu: FakeDevice) -> None:
    kind = gpu.device.type
    here = rlhf_env.run(experiment("cpu", reward_model), tmp_path / "here")
    there = rlhf_env.run(experiment(kind, reward_model), tmp_path / "there")
    assert there.policy.device == gpu.device
    for ours, theirs in zip(here.metrics, there.metrics, strict=True):
        for name in ("rollout/reward", "rollout/kl", "train/grad_norm", "eval/reward"):
            assert (name in ours) == (name in theirs)
            assert name not in ours or abs(ours[name] - theirs[name]) < 2e-3, name
    assert (tmp_path / "there" / "experiment.toml").read_text() == (tmp_path / "here" / "experiment.toml").read_text()

    longer = {"budget": {"updates": 4}}
    resumed = rlhf_env.run(experiment("cpu", reward_model, **longer), tmp_path / "there", resume=True)
    assert f"device {gpu.name} -> cpu" in resumed.not_exact or gpu.name == "cpu"
    assert resumed.update == 4 and resumed.policy.device == torch.device("cpu")
    unchanged = rlhf_env.run(experiment("cpu", reward_model, **longer), tmp_path / "here", resume=True)
    assert not any("device" in it for it in unchanged.not_exact)
    assert abs(unchanged.metrics[-1]["rollout/reward"] - resumed.metrics[-1]["rollout/reward"]) < 5e-3
    back = rlhf_env.run(experiment(kind, reward_model, budget={"updates": 5}), tmp_path / "here", resume=True)
    assert f"device cpu -> {gpu.name}" in back.not_exact or gpu.name == "cpu"
    assert back.policy.device == gpu.device


def test_a_run_is_evaluated_talked_to_and_exported_there(tmp_path: Path, reward_model: Path, gpu: FakeDevice) -> None:
    rlhf_env.run(experiment(gpu.device.type, reward_model), tmp_path / "run")
    evaluated = evaluate_run(tmp_path / "run", prompts=4)
    on_cpu = evaluate_run(tmp_path / "run", prompts=4, device="cpu")
    assert [round(it.agent, 3) for it in evaluated.measures] == [round(it.agent, 3) for it in on_cpu.measures]
    loaded = load_run(tmp_path / "run")
    assert loaded.policy.device == gpu.device and load_run(tmp_path / "run", device="cpu").policy.device.type == "cpu"
    loaded.export(tmp_path / "out")
    written = rlhf_env.LanguageModel.from_pretrained(tmp_path / "out")
    for one, other in zip(written.parameters(), loaded.policy.parameters(), strict=True):
        assert torch.equal(one, other.cpu())
    answers = {
        device: open_chat(str(tmp_path / "run"), device=device, seed=3, rewards=rewards).ask("ab", lambda _: None).text
        for device, rewards in (("cpu", False), (gpu.device.type, True))
    }
    assert len(set(answers.values())) == 1


def test_offline_agents_learn_there_from_stored_pairs(tmp_path: Path, gpu: FakeDevice) -> None:
    rows = [{"prompt": "ab", "chosen": "a" * (1 + i % 3), "rejected": "b"} for i in range(8)]
    import json

    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(it) + "\n" for it in rows))
    for agent in ({"name": "dpo", "margin": "ignore"}, {"name": "kto"}):
        table = experiment(gpu.device.type, agent=agent, preferences=str(tmp_path / "pairs.jsonl"))
        run = rlhf_env.run(table)
        assert run.policy.device == gpu.device and np.isfinite(run.metrics[-1]["train/loss"])
