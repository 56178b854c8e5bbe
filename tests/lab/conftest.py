"""A toy world for the laboratory: a tiny random model that echoes two letters."""

from __future__ import annotations

from typing import Any

import pytest
import torch

torch.set_num_threads(1)

# As it stands in a benchmark's file, under [experiment].
TOY: dict[str, Any] = {
    "task": {"name": "echo", "length": 3},
    "policy": {"model": "tiny", "tokenizer": "alphabet:ab="},
    "environment": {"num_envs": 8, "max_new_tokens": 4, "max_prompt_tokens": 4},
    "rewards": {"length": {"target": 3}, "kl": 0.05, "diversity": 0.1},
    "budget": {"updates": 40},
    "evaluation": {"prompts": 12, "every": 10, "rewards": {"task": 1.0}},
    "checkpoint_every": 5,
}


@pytest.fixture(scope="session")
def toy() -> dict[str, Any]:
    return TOY
