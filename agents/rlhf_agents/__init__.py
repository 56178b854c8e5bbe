"""Built-in agents, one file per algorithm. This module is only their list: importing it imports no torch."""

from __future__ import annotations

from rlhf_env.plugins import Register, hookimpl


@hookimpl
def register_agents(register: Register) -> None:
    for name, attribute in {
        "sft": "SFT",
        "ppo": "PPO",
        "reinforce": "Reinforce",
        "rloo": "RLOO",
        "grpo": "GRPO",
        "dpo": "DPO",
        "kto": "KTO",
        "best_of_n": "BestOfN",
        "curriculum": "Curriculum",
        "options": "Options",
        "replay": "Replay",
        "prompt_sampling": "PromptSampling",
        "dynamic_sampling": "DynamicSampling",
        "task_sampling": "TaskSampling",
        "backward_curriculum": "BackwardCurriculum",
        "temperature": "Temperature",
        "rejection": "Rejection",
        "distill": "Distill",
        "reference": "Reference",
        "random": "Random",
    }.items():
        register(name, f"rlhf_agents.{name}:{attribute}")
    register("sft+rm", "rlhf_agents.hybrid:Hybrid")
    register("sb3", "rlhf_agents.sb3_agent:SB3")  # `sb3` itself is for those who let Stable-Baselines3 own the loop
