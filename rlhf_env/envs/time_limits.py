"""Gymnasium's TimeLimit as the environment inside it sees it.

`gym.make(id, max_episode_steps=3)` puts a TimeLimit around the environment and tells it nothing: the wrapper sets
`truncated` after the environment has answered. An environment whose last info says how a text ended has to know before.
(A wrapper of our own around the TimeLimit would do, but `gym.make_vec` refuses ids that bring wrappers.)
"""

from __future__ import annotations

import sys
from types import FrameType

import gymnasium as gym
from gymnasium.wrappers import TimeLimit

_RESET = TimeLimit.reset.__code__


def time_limits_above(env: gym.Env) -> list[TimeLimit]:
    """The TimeLimits whose `reset` is calling that of `env`, wrappers between them or not."""
    limits: list[TimeLimit] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        # The name of its first argument is the code's; reading the locals of the few frames that match is quick.
        if frame.f_code is _RESET:
            limit = frame.f_locals[_RESET.co_varnames[0]]
            if limit.unwrapped is env:
                limits.append(limit)
        frame = frame.f_back
    return limits


def is_last_step(limit: TimeLimit) -> bool:
    """Whether the step that is under way inside `limit` is the one after which it cuts."""
    elapsed: int = vars(limit)["_elapsed_steps"]
    return elapsed + 1 >= limit._max_episode_steps
