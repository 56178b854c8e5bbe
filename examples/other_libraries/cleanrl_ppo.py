# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "gymnasium==1.4.0"]
# ///
"""PPO in one file, as CleanRL writes it: make_env thunks, a SyncVectorEnv, an Agent of linear layers, one loop.

    python examples/other_libraries/run.py cleanrl_ppo

"ab=" asks for "ab" and the end token, one token a step; 1 is the best return. Two things differ from CleanRL's ppo.py:
FlattenObservation, since its agent reads a vector and no table, and the autoreset mode SAME_STEP, which is what its
loop means by `done`. (In Gymnasium's default mode, NEXT_STEP, the step after an end writes nothing: leave it out.)
"""

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn
from torch.distributions import Categorical

import rlhf_env  # noqa: F401  # importing it registers the environments

NUM_ENVS, NUM_STEPS, UPDATES, EPOCHS, MINIBATCH = 16, 32, 60, 8, 64
GAMMA, GAE_LAMBDA, CLIP, ENTROPY, VALUE = 1.0, 0.95, 0.2, 0.02, 0.5


def make_env(seed):
    def thunk():
        env = gym.make(
            "rlhf_env/Token-v0",
            task={"name": "echo", "length": 2},
            tokenizer="alphabet:ab=",
            max_new_tokens=3,
            max_prompt_tokens=3,
        )
        env = gym.wrappers.FlattenObservation(env)
        env = gym.wrappers.RecordEpisodeStatistics(env)
        env.action_space.seed(seed)
        return env

    return thunk


def layer_init(layer, std=2**0.5):
    nn.init.orthogonal_(layer.weight, std)
    nn.init.zeros_(layer.bias)
    return layer


class Agent(nn.Module):
    def __init__(self, envs):
        super().__init__()
        width = int(np.prod(envs.single_observation_space.shape))
        self.critic = nn.Sequential(
            layer_init(nn.Linear(width, 64)),
            nn.Tanh(),
            layer_init(nn.Linear(64, 64)),
            nn.Tanh(),
            layer_init(nn.Linear(64, 1), std=1.0),
        )
        self.actor = nn.Sequential(
            layer_init(nn.Linear(width, 64)),
            nn.Tanh(),
            layer_init(nn.Linear(64, 64)),
            nn.Tanh(),
            layer_init(nn.Linear(64, envs.single_action_space.n), std=0.01),
        )

    def get_value(self, x):
        return self.critic(x).flatten()

    def get_action_and_value(self, x, action=None):
        distribution = Categorical(logits=self.actor(x))
        action = distribution.sample() if action is None else action
        return action, distribution.log_prob(action), distribution.entropy(), self.get_value(x)


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    envs = SyncVectorEnv([make_env(i) for i in range(NUM_ENVS)], autoreset_mode=AutoresetMode.SAME_STEP)
    agent = Agent(envs)
    optimizer = torch.optim.Adam(agent.parameters(), lr=2e-3, eps=1e-5)

    shape = (NUM_STEPS, NUM_ENVS)
    obs = torch.zeros(shape + envs.single_observation_space.shape)
    actions, logprobs, rewards = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape)
    dones, values = torch.zeros(shape), torch.zeros(shape)
    next_obs = torch.tensor(envs.reset(seed=0)[0], dtype=torch.float32)
    next_done = torch.zeros(NUM_ENVS)
    returns_of_texts = []

    for update in range(UPDATES):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - update / UPDATES)
        for step in range(NUM_STEPS):
            obs[step], dones[step] = next_obs, next_done
            with torch.no_grad():
                actions[step], logprobs[step], _, values[step] = agent.get_action_and_value(next_obs)
            observed, reward, terminated, truncated, infos = envs.step(actions[step].long().numpy())
            rewards[step] = torch.tensor(reward)
            next_obs = torch.tensor(observed, dtype=torch.float32)
            next_done = torch.tensor(terminated | truncated, dtype=torch.float32)
            if "final_info" in infos:
                returns_of_texts += infos["final_info"]["episode"]["r"][infos["_final_info"]].tolist()

        with torch.no_grad():
            advantages, last = torch.zeros(shape), 0.0
            for t in reversed(range(NUM_STEPS)):
                nonterminal = 1.0 - (next_done if t == NUM_STEPS - 1 else dones[t + 1])
                next_value = agent.get_value(next_obs) if t == NUM_STEPS - 1 else values[t + 1]
                delta = rewards[t] + GAMMA * next_value * nonterminal - values[t]
                advantages[t] = last = delta + GAMMA * GAE_LAMBDA * nonterminal * last
            targets = advantages + values

        b_obs, b_actions = obs.flatten(0, 1), actions.flatten()
        b_logprobs, b_advantages, b_targets = logprobs.flatten(), advantages.flatten(), targets.flatten()
        for _ in range(EPOCHS):
            for rows in torch.randperm(NUM_ENVS * NUM_STEPS).split(MINIBATCH):
                _, logprob, entropy, value = agent.get_action_and_value(b_obs[rows], b_actions[rows])
                ratio = (logprob - b_logprobs[rows]).exp()
                gain = b_advantages[rows]
                gain = (gain - gain.mean()) / (gain.std() + 1e-8)
                policy_loss = torch.max(-gain * ratio, -gain * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
                value_loss = 0.5 * (value - b_targets[rows]).square().mean()
                optimizer.zero_grad()
                (policy_loss - ENTROPY * entropy.mean() + VALUE * value_loss).backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()

    print(f"before  return {np.mean(returns_of_texts[:200]):.2f}  (the first 200 texts written while it learned)")
    print(f"after   return {np.mean(returns_of_texts[-200:]):.2f}  (the last 200 of {len(returns_of_texts)})")


if __name__ == "__main__":
    main()
