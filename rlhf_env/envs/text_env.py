"""Text generation as a Gymnasium environment: a `TextVectorEnv` with one row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from rlhf_env.envs.text_vector_env import Info, TextVectorEnv, as_array
from rlhf_env.errors import EnvironmentMisuse
from rlhf_env.types import Bool


class TextEnv(gym.Env[Any, Any]):
    """One text at a time. Arguments, observation, action, reward and info are those of TextVectorEnv without row axis.

    `reset()` without options keeps the present ones, so that they survive the autoreset of Gymnasium's vector
    environments.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "human"], "render_fps": 4}  # noqa: RUF012

    def __init__(self, *, render_mode: str | None = None, **arguments: Any) -> None:
        self._machine = TextVectorEnv(1, render_mode=render_mode, autoreset_mode=AutoresetMode.DISABLED, **arguments)
        self.render_mode = render_mode
        # A copy: before Gymnasium 1.4, vector environments write their autoreset mode into this dict.
        self.metadata = {**type(self).metadata}
        self.observation_space = self._machine.single_observation_space
        self.action_space = self._machine.single_action_space

    @property
    def reward(self) -> Any:
        """The RewardMix."""
        return self._machine.reward

    @property
    def task(self) -> Any:
        return self._machine.task

    @property
    def tokenizer(self) -> Any:
        return self._machine.tokenizer

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Info]:
        super().reset(seed=seed)
        _, infos = self._machine.reset(seed=seed, options=options)
        del infos  # the vector form; a single environment gives the row's own
        self._show()
        return self._observation(), self._machine.latest_info(0)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, Info]:
        """Write the next tokens. Raises EnvironmentMisuse before `reset` and after the end of the text."""
        if self._machine.has_ended(0):
            raise EnvironmentMisuse("step after the text ended: call reset()")
        rewards, terminated, truncated, infos = self._machine.advance(_batched(action))
        self._show()
        return self._observation(), float(rewards[0]), bool(terminated[0]), bool(truncated[0]), infos.get(0, {})

    def render(self) -> Any:
        """The text so far: returned for "ansi", printed for "human"."""
        return self._machine.describe(0) if self.render_mode == "ansi" else None

    def action_masks(self) -> Bool:
        """bool[V]: tokens the task allows next (sb3-contrib's MaskablePPO asks for this)."""
        return np.asarray(self._machine.action_masks()[0], dtype=np.bool_)

    def close(self) -> None:
        self._machine.close()

    def _show(self) -> None:
        if self.render_mode == "human":
            self._machine.render()

    def _observation(self) -> dict[str, Any]:
        batched: Mapping[str, Any] = self._machine.observation()
        return {key: value[0] for key, value in batched.items()}


def _batched(action: Any) -> Any:
    if isinstance(action, Mapping):
        return {key: as_array(value)[None] for key, value in action.items()}
    return as_array(action)[None]
