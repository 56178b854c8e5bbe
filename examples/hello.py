"""Text generation as a Gymnasium environment: one text, one token a step, written at random.

    python examples/hello.py

The prompt "a:" asks for many a's (the task `count`). `info` says why the text ended and what each reward part gave.
"""

import gymnasium as gym

import rlhf_env  # noqa: F401  # importing it registers the environments

env = gym.make("rlhf_env/Token-v0", tokenizer="alphabet:abc:", render_mode="ansi")
env.action_space.seed(26)
_, info = env.reset(seed=0)
print(f"The prompt is {info['prompt']!r}, and the environment wants {env.action_space}.\n")

ended = False
while not ended:
    _, reward, terminated, truncated, info = env.step(env.action_space.sample())
    ended = terminated or truncated
    print(env.render())

print(f"\nReward {reward:+.3f}. What info holds now that the text has ended:")
print("\n".join(f"  {name:15} {value!r:.70}" for name, value in info.items()))
