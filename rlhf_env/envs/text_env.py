"""Text generation as a Gymnasium environment: a `TextVectorEnv` with one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import TimeLimit

from rlhf_env.envs.actions import Actions, as_array
from rlhf_env.envs.infos import Info
from rlhf_env.envs.picture import TextPicture
from rlhf_env.envs.reward_tables import RewardSpec
from rlhf_env.envs.rewards import RewardMix
from rlhf_env.envs.tasks import TaskSpec
from rlhf_env.envs.text_vector_env import TextVectorEnv, row_of
from rlhf_env.envs.time_limits import is_last_step, time_limits_above
from rlhf_env.errors import EnvironmentMisuse
from rlhf_env.types import Bool, Observation, ResetOptions, Task, Tokenizer


class Arguments(TypedDict, total=False):
    """Those of TextVectorEnv that a single text takes, too."""

    task: TaskSpec
    reward: RewardSpec
    tokenizer: str | Tokenizer
    max_new_tokens: int
    max_prompt_tokens: int
    action_length: int | None
    max_episode_steps: int | None
    stop: Sequence[str]
    provided: Mapping[str, object] | None


class TextEnv(gym.Env[Observation, Actions]):
    """One text at a time. Arguments, observation, action, reward and info are those of TextVectorEnv without row axis.

    `reset()` without options keeps the present ones, so that they survive the autoreset of Gymnasium's vector
    environments.

    Where a TimeLimit of Gymnasium cuts a text (`gym.make(id, max_episode_steps=3)`), the info is that of a text which
    the environment's own `max_episode_steps` cuts.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "human", "rgb_array"], "render_fps": 4}  # noqa: RUF012

    def __init__(self, *, render_mode: str | None = None, **arguments: Unpack[Arguments]) -> None:
        self._machine = TextVectorEnv(1, render_mode=render_mode, autoreset_mode=AutoresetMode.DISABLED, **arguments)
        self.render_mode = render_mode
        # A copy: before Gymnasium 1.4, vector environments write their autoreset mode into this dict.
        self.metadata = {**type(self).metadata}
        self.observation_space = self._machine.single_observation_space
        self.action_space = self._machine.single_action_space
        self._limits: list[TimeLimit] = []

    @property
    def reward(self) -> RewardMix:
        return self._machine.reward

    @property
    def task(self) -> Task:
        return self._machine.task

    @property
    def tokenizer(self) -> Tokenizer:
        return self._machine.tokenizer

    def reset(  # type: ignore[override]  # the info is a dict of which mypy knows the keys
        self, *, seed: int | None = None, options: ResetOptions | None = None
    ) -> tuple[Observation, Info]:
        super().reset(seed=seed)
        self._machine.reset(seed=seed, options=options)
        self._limits = time_limits_above(self)
        self._show()
        return row_of(self._machine.observation(), 0), self._machine.latest_info(0)

    def step(  # type: ignore[override]  # as above
        self, action: Actions
    ) -> tuple[Observation, float, bool, bool, Info]:
        """Write the next tokens. Raises EnvironmentMisuse before `reset` and after the end of the text."""
        if self._machine.has_ended(0):
            raise EnvironmentMisuse("step after the text ended: call reset()")
        rewards, terminated, truncated, infos = self._machine.advance(_batched(action))
        info = infos.get(0, {})
        cut = any(is_last_step(limit) for limit in self._limits)
        if cut and not self._machine.has_ended(0):
            info = self._machine.cut(0)
        self._show()
        observation = row_of(self._machine.observation(), 0)
        return observation, float(rewards[0]), bool(terminated[0]), bool(truncated[0]) or cut, info

    def render(self) -> str | TextPicture | None:
        """The text so far: returned for "ansi", as a picture for "rgb_array", printed for "human" as it is written."""
        shown = self._machine.render() if self.render_mode != "human" else None
        return None if shown is None else shown[0]

    def action_masks(self) -> Bool:
        """bool[V]: tokens the task allows next (sb3-contrib's MaskablePPO asks for this)."""
        return np.asarray(self._machine.action_masks()[0], dtype=np.bool_)

    def close(self) -> None:
        self._machine.close()

    def _show(self) -> None:
        if self.render_mode == "human":
            self._machine.render()


def _batched(action: Actions) -> Actions:
    if isinstance(action, Mapping):
        return {key: as_array(value)[None] for key, value in action.items()}
    return as_array(action)[None]
