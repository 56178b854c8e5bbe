"""Every agent that trains can train adapters alone: the base stays as it is and is in no checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import rlhf_env
from rlhf_env.lab.evaluation.preparing import prepare
from rlhf_env.learning import checkpoints
from rlhf_env.plain_data import flat
from rlhf_env.policies.policy import all_weights

pytest.importorskip("peft")
AGENTS: dict[str, dict[str, Any]] = {
    "ppo": {},
    "ppo, separate": {"name": "ppo", "value_model": "separate"},
    "grpo": {"group_size": 4},
    "rloo": {"group_size": 4},
    "reinforce": {},
    "dpo": {"group_size": 4},
    "kto": {"group_size": 4},
    "rejection": {"group_size": 4, "keep": 2},
    "distill": {"divergence": "sequence", "best_of": 2},
    "options": {},
    "curriculum": {"levels": (2, 3), "agent": {"name": "grpo", "group_size": 4, "lr": 0.01}, "lr": None},
    "replay": {"agent": {"name": "grpo", "group_size": 4, "lr": 0.01}, "lr": None},
    "temperature": {"agent": {"name": "rloo", "group_size": 4, "lr": 0.01}, "lr": None},
    "sb3": {"lr": None, "learning_rate": 0.01},
    "sft": {},
    "sft+rm": {"preferences": str(Path(__file__).with_name("pairs.jsonl")), "way": "adapters", "step_tokens": 64},
}

WITH_HEADS = ("ppo", "ppo, separate", "options")
LENGTHS: dict[str, Any] = {"options": {"action_length": 2}, "sb3": {"action_length": 1}}


def experiment(variant: str, updates: int = 2) -> dict[str, Any]:
    asked = {"name": "count", "target": 4}
    if variant == "curriculum":
        asked = {"name": "echo", "length": 3, "alphabet": "ab"}
    imitates = variant in ("sft", "sft+rm")
    if imitates:
        asked = {"name": "file", "path": str(Path(__file__).with_name("answers.jsonl"))}
    return {
        "policy": {"model": "tiny", "tokenizer": "alphabet:ab:=", "lora": {"rank": 2, "dropout": 0.1}},
        "task": asked,
        "environment": {"num_envs": 8, "max_new_tokens": 6, **LENGTHS.get(variant, {})},
        **({} if imitates else {"rewards": {"task": 1.0, "kl": 0.1}}),
        "agent": {key: it for key, it in {"name": variant, "lr": 0.01, **AGENTS[variant]}.items() if it is not None},
        "budget": {"updates": updates},
        "evaluation": {"prompts": 4},
        "checkpoint_every": 1,
    }


@pytest.mark.parametrize("variant", AGENTS)
def test_only_adapters_train_and_are_kept_and_a_resumed_run_ends_in_the_same_bits(variant: str, tmp_path: Path) -> None:
    whole = rlhf_env.run(experiment(variant), tmp_path / "whole")
    policy, reference = whole.policy, whole.workplace.setup.reference
    # The reference shares the base with the policy, and would not show that it changed: another build does.
    before, after = all_weights(prepare(experiment(variant)).setup.policy), all_weights(policy)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(".lora_" in name for name in changed)
    assert all(torch.equal(value, all_weights(reference)[name]) for name, value in before.items())

    newest = checkpoints.latest(tmp_path / "whole" / "checkpoints")
    assert newest is not None
    state, _ = checkpoints.load(newest)
    kept = flat(state["agent"])
    base = [name for name in after if ".lora_" not in name]
    assert base and not [name for name in kept for weight in base if name.endswith(weight)]
    assert any(".lora_B." in name for name in kept)

    heads = {name: value for name, value in kept.items() if name.startswith(("value_head.", "bids.", "values."))}
    if variant in WITH_HEADS:  # value heads and a manager's: they train beside the adapters, and are kept
        assert any(isinstance(value, torch.Tensor) and bool(value.any()) for value in heads.values())

    rlhf_env.run(experiment(variant, updates=1), tmp_path / "cut")
    resumed = rlhf_env.run(experiment(variant), tmp_path / "cut", resume=True)
    assert all(torch.equal(value, all_weights(resumed.policy)[name]) for name, value in after.items())
    assert resumed.metrics[-1]["update"] == whole.metrics[-1]["update"] == 2
    last = checkpoints.latest(tmp_path / "cut" / "checkpoints")
    assert last is not None
    again = flat(checkpoints.load(last)[0]["agent"])  # heads and moments too
    for name, value in kept.items():
        assert torch.equal(value, again[name]) if isinstance(value, torch.Tensor) else True


def test_a_run_with_adapters_is_a_model_and_needs_none(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from rlhf_env.learning.run_models import model_folder
    from rlhf_env.policies.lora import merge_adapter

    trained = rlhf_env.run(experiment("grpo"), tmp_path / "run")
    alone = AutoModelForCausalLM.from_pretrained(model_folder(str(tmp_path / "run"), "last"))
    whole = merge_adapter(trained.policy.model)  # type: ignore[attr-defined]
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in alone.state_dict().items())

    policy = {"model": str(tmp_path / "run"), "lora": {"rank": 3}}
    further = rlhf_env.run({**experiment("ppo"), "policy": policy}, tmp_path / "further")
    assert torch.isfinite(torch.tensor(further.evaluation.metrics["objective"]))


def test_adapters_are_not_put_on_another_model_than_the_run_began_with(tmp_path: Path) -> None:
    from rlhf_env.errors import DataError
    from rlhf_env.learning.run_models import model_folder

    base, run = tmp_path / "base", tmp_path / "run"
    first = experiment("grpo")
    del first["policy"]["lora"]
    rlhf_env.run(first, base)
    rlhf_env.run({**experiment("grpo"), "policy": {"model": str(base), "lora": {"rank": 2}}}, run)
    rlhf_env.run({**first, "budget": {"updates": 4}}, base, resume=True)  # the model that is named goes on
    for use in (lambda: model_folder(str(run)), lambda: rlhf_env.load_run(run)):
        with pytest.raises(DataError, match=r"other weights than the run began with.*: put that model back"):
            use()
    assert not list((run / "model").glob("*"))
