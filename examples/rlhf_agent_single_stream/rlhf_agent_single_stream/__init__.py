"""A plugin for rlhf-env. Importing it is cheap: the agent itself is named, not imported."""

from __future__ import annotations

from rlhf_env.plugins import Register, hookimpl


@hookimpl
def register_agents(register: Register) -> None:
    register("single_stream", "rlhf_agent_single_stream.single_stream:SingleStream")
