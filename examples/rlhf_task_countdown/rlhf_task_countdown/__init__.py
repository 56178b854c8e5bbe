"""A plugin for rlhf-env. Importing it is cheap: the task itself is named, not imported."""

from __future__ import annotations

from rlhf_env.plugins import Register, hookimpl


@hookimpl
def register_tasks(register: Register) -> None:
    register("countdown", "rlhf_task_countdown.countdown:Countdown")
