"""Whom to ask about what, and what the answers are worth.

Annotators are registered here by name: listing plugins loads none.
"""

from __future__ import annotations

from rlhf_env import plugins


@plugins.hookimpl
def register_annotators(register: plugins.Register) -> None:
    register("simulated", "rlhf_env.feedback.asking.annotators:SimulatedAnnotator")
    register("judge", "rlhf_env.feedback.asking.judge:JudgeAnnotator")
