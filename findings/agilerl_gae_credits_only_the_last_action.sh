#!/usr/bin/env bash
# agilerl 2.58.0: PPO's advantages (GAE, its default) take the end of an episode one step too early.
#
# RolloutBuffer.compute_returns_and_advantages asks dones[t + 1] whether the episode goes on after step t, as
# Stable-Baselines3 does, whose buffer keeps there whether an episode STARTS. But collect_rollouts stores under `dones`
# whether step t ENDED it. So a reward paid at the end of an episode reaches its last action only, and no earlier one;
# with lambda below 1, values of the next episode reach that last action. The environment below pays 1 at the third step:
# with gamma = lambda = 1 the return of every step is 1, whatever the critic says; AgileRL computes 0, 0, 1.
# Exits with 1 when this has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check agilerl==2.58.0 peft==0.21.0 torch==2.13.0
cat > "$folder/returns.py" <<'PY'
import importlib.metadata, platform
import gymnasium as gym
import numpy as np
from agilerl.algorithms.ppo import PPO
from agilerl.rollouts.on_policy import collect_rollouts
from gymnasium.vector import AutoresetMode, SyncVectorEnv

print("python", platform.python_version(), "- agilerl", importlib.metadata.version("agilerl"))


class PaysAtTheThirdStep(gym.Env):
    observation_space = gym.spaces.Box(0.0, 3.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        last = self.steps == 3
        return np.full(1, self.steps, np.float32), float(last), last, False, {}


envs = SyncVectorEnv([PaysAtTheThirdStep], autoreset_mode=AutoresetMode.SAME_STEP)
returns = {}
for use_gae in (True, False):
    agent = PPO(
        envs.single_observation_space, envs.single_action_space, num_envs=1, learn_step=9, gamma=1.0, gae_lambda=1.0,
        rollout_buffer_config={"use_gae": use_gae},
    )
    collect_rollouts(agent, envs, n_steps=9)
    returns[use_gae] = np.asarray(agent.rollout_buffer.buffer["returns"].cpu())[:9, 0]
    print(f"use_gae={use_gae!s:5}  returns of three episodes", np.round(returns[use_gae], 2))
assert np.allclose(returns[False], 1.0), "without GAE every return is 1"
raise SystemExit(1 if np.allclose(returns[True], 1.0) else 0)
PY
PYTHONWARNINGS=ignore "$folder/venv/bin/python" "$folder/returns.py"
