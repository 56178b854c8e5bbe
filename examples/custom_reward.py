"""Two rewards of your own, known by name: a class, and a plain function as TRL takes them.

    python examples/custom_reward.py

A small random model is rewarded for laughing and for ending on its only exclamation mark, and after a few seconds of
GRPO it does both. A file of settings can name such code itself: see polite/ beside this file. In a package of its own,
the two `register_reward` lines become a plugin hook: see rlhf_reward_haiku/.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import gymnasium as gym
import numpy as np
import torch

import rlhf_env
from rlhf_env.testing import check_reward


@dataclass(frozen=True)
class Laughter:
    """How many times "ha" is said, out of `wanted`. The fields of a reward class are its settings."""

    wanted: int = 3

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    def __call__(self, episodes: Sequence[rlhf_env.Episode]) -> np.ndarray:
        return np.array([min(1.0, episode.response.count("ha") / self.wanted) for episode in episodes])


def exclaims(completions: list[str], **_columns: list) -> list[float]:
    """1 where the text ends on its one and only exclamation mark."""
    return [float(text.endswith("!") and text.count("!") == 1) for text in completions]


rlhf_env.register_reward("laughter", Laughter)
rlhf_env.register_reward("exclaims", exclaims)

EXPERIMENT = rlhf_env.Experiment(
    task={"name": "prompts", "prompts": ["?"]},
    rewards={"laughter": {"weight": 1.0, "wanted": 3}, "exclaims": 1.0},
    agent={"name": "grpo", "lr": 5e-3, "group_size": 8},
    policy=rlhf_env.PolicySettings(model="tiny", tokenizer="alphabet:ha! ?"),
    environment=rlhf_env.EnvironmentSettings(num_envs=64, max_new_tokens=8, max_prompt_tokens=4),
    budget=rlhf_env.Budget(updates=80),
)


def main() -> None:
    torch.set_num_threads(1)  # such a small model gains nothing from more
    check_reward(Laughter())
    print("Laughter keeps the contract of rewards: finite, in range, one float a text, whoever else is in the batch.\n")

    print("By name in any environment. A score keeps its parts:")
    env = gym.make("rlhf_env/Response-v0", reward={"laughter": 1.0, "exclaims": 1.0}, render_mode="ansi")
    env.reset(seed=0)
    env.step(list(b"haha, very funny"))
    print(f"  {env.render()}\n")

    print("By name in an experiment:")
    workplace = rlhf_env.build(EXPERIMENT)
    show_replies("before", workplace)
    workplace.train(on_update=show_progress)
    show_replies("after", workplace)


def show_progress(row: dict, _share_spent: float) -> None:
    if row["update"] == 1 or row["update"] % 10 == 0:
        reward, laughter, exclaims = (row[f"rollout/{name}"] for name in ("reward", "part/laughter", "part/exclaims"))
        parts = f"laughter {laughter:.2f}  exclaims {exclaims:.2f}"
        print(f"  update {row['update']:3}  reward {reward:.2f} {'█' * round(10 * reward):20}  {parts}")


def show_replies(when: str, workplace: rlhf_env.Workplace) -> None:
    replies = [episode.response for episode in rlhf_env.collect(workplace.env, workplace.agent, seed=1).episodes]
    print(f"  {when + ':':8} {'  '.join(map(repr, replies[:6]))}")


if __name__ == "__main__":
    main()
