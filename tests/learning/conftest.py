"""A toy experiment that learns in milliseconds an update, and what the tests of the loop share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlhf_env.learning.experiment import EnvironmentSettings, EvaluationSettings, Experiment
from rlhf_env.learning.policy_settings import PolicySettings
from rlhf_env.learning.spending import Budget

torch.set_num_threads(1)

MakeExperiment = Callable[..., Experiment]

# Settings with which each agent has something to remember: momentum, minibatch order, groups, temperature.
AGENTS: dict[str, dict[str, Any]] = {
    "ppo": {"minibatches": 2, "lr": 1e-2, "schedule": "linear"},
    "reinforce": {"lr": 1e-2, "schedule": "cosine"},
    "rloo": {"minibatches": 2, "lr": 1e-2, "group_size": 4},
    "rejection": {"minibatches": 2, "lr": 1e-2, "group_size": 4},
    "grpo": {"minibatches": 2, "lr": 1e-2, "group_size": 4},
    "dpo": {"minibatches": 2, "lr": 1e-2, "group_size": 4},
    "sft": {"lr": 1e-2},
    "options": {"minibatches": 2, "lr": 1e-2},
    "curriculum": {"levels": [1, 2], "threshold": 0.0, "window": 12, "agent": {"name": "ppo", "lr": 1e-2}},
    "replay": {"priority": "advantage", "updates": 2, "agent": {"name": "rloo", "lr": 1e-2, "group_size": 4}},
    "prompt_sampling": {"prompts": 5, "correction": 0.5, "agent": {"name": "ppo", "lr": 1e-2}},
    "dynamic_sampling": {"draws": 2, "agent": {"name": "grpo", "lr": 1e-2, "group_size": 4}},
    "backward_curriculum": {
        "column": "answer",
        "stages": 2,
        "threshold": 0.0,
        "window": 12,
        "earlier": 0.3,
        "whole": 0.3,
        "agent": {
            "name": "temperature",
            "agent": {"name": "rloo", "lr": 1e-2, "group_size": 4, "entropy_coefficient": 0.1, "entropy_floor": 1.3},
        },
    },
    "best_of_n": {"n": 2},
    "reference": {},
    "random": {},
}


@pytest.fixture
def toy() -> MakeExperiment:
    """`toy("ppo", updates=3, view="token", lr=1e-3)`: echo two letters, with a KL penalty that has a memory."""

    def make(agent: str = "ppo", /, *, updates: int = 3, view: str = "response", **changes: Any) -> Experiment:
        table: dict[str, Any] = {
            "name": "toy",
            "task": {"name": "echo", "length": 2},
            "policy": PolicySettings(tokenizer="alphabet:ab="),
            "environment": EnvironmentSettings(
                num_envs=8,
                max_new_tokens=4,
                max_prompt_tokens=3,
                view=view,  # type: ignore[arg-type]
            ),
            "rewards": {"task": 1.0, "kl": {"weight": 0.1, "target": 0.01, "horizon": 16}},
            "agent": {"name": agent, **AGENTS[agent]},
            "budget": Budget(updates=updates),
            "evaluation": EvaluationSettings(prompts=6),
        }
        return Experiment(**{**table, **changes})

    return make
