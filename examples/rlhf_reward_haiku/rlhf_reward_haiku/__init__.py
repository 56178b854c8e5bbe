"""A plugin for rlhf-env. Importing it is cheap: the reward itself is named, not imported."""

from __future__ import annotations

from rlhf_env.plugins import Register, hookimpl


@hookimpl
def register_rewards(register: Register) -> None:
    register("haiku", "rlhf_reward_haiku.haiku:Haiku")
