"""Stable-Baselines3's own PPO, with its own network, learns to write: nothing here but Gymnasium and their library.

    python examples/sb3_ppo.py

"ab=" asks for "ab" and the end token, one token a step; four prompts, and 1 is the best return.
(`rlhf_agents.sb3` brings a transformer to their algorithms, and the batched environment.)
"""

import gymnasium as gym
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor

import rlhf_env  # noqa: F401  # importing it registers the environments

torch.set_num_threads(1)  # such a small network gains nothing from more
text = {"task": {"name": "echo", "length": 2}, "tokenizer": "alphabet:ab=", "max_new_tokens": 3, "max_prompt_tokens": 3}
env = Monitor(gym.make("rlhf_env/Token-v0", **text, render_mode="ansi"))
model = PPO("MultiInputPolicy", env, n_steps=512, learning_rate=2e-3, gamma=1.0, seed=0, device="cpu")
model.set_logger(
    Logger(folder=None, output_formats=[])
)  # the usual one leaves a folder in /tmp at each call of `learn`

for steps in (0, 1024, 1024, 1024):
    if steps:
        model.learn(steps, reset_num_timesteps=False)
    mean, deviation = evaluate_policy(model, env, n_eval_episodes=40)
    print(f"after {model.num_timesteps:5} steps  return {mean:.2f} ± {deviation:.2f}")

for _ in range(4):
    observation, ended = env.reset()[0], False
    while not ended:
        action, _ = model.predict(observation, deterministic=True)
        observation, _, ended, _, _ = env.step(action)
    print(env.render())
