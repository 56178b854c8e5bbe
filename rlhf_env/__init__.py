"""Text generation as a Gymnasium environment, rewards and RLHF agents as plugins, and a laboratory to compare them.

Importing this package registers the environments; torch and transformers load when a policy is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register, registry

if TYPE_CHECKING:
    from rlhf_env.envs.rewards import RewardMix, Score, from_function
    from rlhf_env.envs.text_env import TextEnv
    from rlhf_env.envs.text_vector_env import TextVectorEnv
    from rlhf_env.plugins import (
        hookimpl,
        register_agent,
        register_reward,
        register_stopping_rule,
        register_task,
        register_tracker,
    )
    from rlhf_env.types import Episode, GroupReward, Observation, Prompt, Reward, Task, TokenReward

__version__ = "0.1.0"

_HOMES = {
    "TextEnv": "rlhf_env.envs.text_env",
    "TextVectorEnv": "rlhf_env.envs.text_vector_env",
    "RewardMix": "rlhf_env.envs.rewards",
    "Score": "rlhf_env.envs.rewards",
    "from_function": "rlhf_env.envs.rewards",
    "hookimpl": "rlhf_env.plugins",
    "register_agent": "rlhf_env.plugins",
    "register_reward": "rlhf_env.plugins",
    "register_stopping_rule": "rlhf_env.plugins",
    "register_task": "rlhf_env.plugins",
    "register_tracker": "rlhf_env.plugins",
    "Episode": "rlhf_env.types",
    "GroupReward": "rlhf_env.types",
    "Observation": "rlhf_env.types",
    "Prompt": "rlhf_env.types",
    "Reward": "rlhf_env.types",
    "Task": "rlhf_env.types",
    "TokenReward": "rlhf_env.types",
}

__all__ = [
    "Episode",
    "GroupReward",
    "Observation",
    "Prompt",
    "Reward",
    "RewardMix",
    "Score",
    "Task",
    "TextEnv",
    "TextVectorEnv",
    "TokenReward",
    "__version__",
    "from_function",
    "hookimpl",
    "register_agent",
    "register_reward",
    "register_stopping_rule",
    "register_task",
    "register_tracker",
]


def __getattr__(name: str) -> Any:
    """Public names load on first use, so that `import rlhf_env` stays quick."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


# Token-v0: one token a step (the token-level MDP). Response-v0: one whole response a step.
for _name, _action_length in (("Token", 1), ("Response", None)):
    if f"rlhf_env/{_name}-v0" not in registry:
        register(
            id=f"rlhf_env/{_name}-v0",
            entry_point="rlhf_env.envs.text_env:TextEnv",
            vector_entry_point="rlhf_env.envs.text_vector_env:TextVectorEnv",
            kwargs={"action_length": _action_length},
        )
del _name, _action_length
