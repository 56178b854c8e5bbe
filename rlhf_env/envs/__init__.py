"""Text generation as an environment. Tasks are registered here by name: listing plugins loads none.

Nothing here imports torch.
"""

from __future__ import annotations

from rlhf_env import plugins


@plugins.hookimpl
def register_tasks(register: plugins.Register) -> None:
    register("prompts", "rlhf_env.envs.tasks:Prompts")
    register("file", "rlhf_env.envs.file_task:File")
    register("mixture", "rlhf_env.envs.mixture:Mixture")
    register("tools", "rlhf_env.envs.tool_task:ToolUse")
    register("validation", "rlhf_env.envs.validation_task:Validation")
    register("count", "rlhf_env.envs.toy_tasks:Count")
    register("echo", "rlhf_env.envs.toy_tasks:Echo")
    register("increasing", "rlhf_env.envs.toy_tasks:Increasing")
    register("addition", "rlhf_env.envs.addition_task:Addition")
    register("segments", "rlhf_env.envs.segments_task:Segments")
    register("enumerable", "rlhf_env.envs.toy_tasks:Enumerable")
    register("guess", "rlhf_env.envs.toy_tasks:Guess")
    register("chitchat", "rlhf_env.envs.chitchat:Chitchat", needs="demo")
    register("reasoning_gym", "rlhf_env.envs.reasoning_gym_task:ReasoningGym", needs="reasoning")
    register("textarena", "rlhf_env.envs.textarena_task:TextArena", needs="textarena")


@plugins.hookimpl
def register_rewards(register: plugins.Register) -> None:
    register("total", "rlhf_env.envs.shaping:Total")
