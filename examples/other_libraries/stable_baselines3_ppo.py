# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "gymnasium==1.4.0", "stable-baselines3==2.9.2", "sb3-contrib==2.9.2"]
# ///
"""Stable-Baselines3's PPO learns to write, and sb3-contrib's MaskablePPO where the task forbids tokens.

    python examples/other_libraries/run.py stable_baselines3_ppo

"ab=" asks for "ab" and the end token, one token a step; 1 is the best return. Both take the environments from
Stable-Baselines3's own make_vec_env. (Their own kind of vector: one of Gymnasium's is refused.)
"""

import numpy as np
import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import rlhf_env  # importing it registers the environments

TEXT = {"tokenizer": "alphabet:ab=", "max_new_tokens": 3, "max_prompt_tokens": 3}
SETTINGS = {"n_steps": 64, "batch_size": 64, "learning_rate": 2e-3, "gamma": 1.0, "seed": 0, "device": "cpu"}


class Letters:
    """Echo two letters, and nothing but letters may be written: then the end token, which is the only one allowed."""

    size = 4

    def prompt(self, index: int, options: object, /) -> rlhf_env.Prompt:
        word = "ab"[index // 2] + "ab"[index % 2]
        return rlhf_env.Prompt(id=word, text=word + "=", meta={"answer": word})

    def score(self, episode: rlhf_env.Episode, /) -> float:
        return sum(map(str.__eq__, episode.prompt.meta["answer"], episode.response)) / 2

    def action_mask(self, prompt: rlhf_env.Prompt, response_ids: np.ndarray, /) -> np.ndarray:
        letter, end = len(response_ids) < 2, len(response_ids) == 2
        return np.array([letter, letter, False, end, False])  # a, b, =, the end token, padding


def main() -> None:
    torch.set_num_threads(1)

    envs = make_vec_env("rlhf_env/Token-v0", 8, seed=0, env_kwargs={"task": {"name": "echo", "length": 2}, **TEXT})
    model = PPO("MultiInputPolicy", envs, **SETTINGS)
    print(f"PPO          before  return {evaluate_policy(model, envs, n_eval_episodes=40)[0]:.2f}")
    model.learn(12_288)
    print(f"PPO          after   return {evaluate_policy(model, envs, n_eval_episodes=40)[0]:.2f}")

    envs = make_vec_env("rlhf_env/Token-v0", 8, seed=0, env_kwargs={"task": Letters(), **TEXT})
    model = MaskablePPO("MultiInputPolicy", envs, **SETTINGS)
    print(f"MaskablePPO  before  return {evaluate_masked(model, envs, n_eval_episodes=40)[0]:.2f}")
    model.learn(8_192)
    print(f"MaskablePPO  after   return {evaluate_masked(model, envs, n_eval_episodes=40)[0]:.2f}")


if __name__ == "__main__":
    main()
