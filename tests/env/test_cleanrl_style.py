"""A training loop as CleanRL writes them, a page of PyTorch and a Gymnasium vector, learns in the environment as is."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import nn

import rlhf_env  # noqa: F401  # registers the environments

torch.set_num_threads(1)
ROWS, STEPS, BEST = 32, 16, 1.0


class Network(nn.Module):
    """Ids and mask -> logits and value. It reads one-hot places: the environment's vocabulary is tiny."""

    def __init__(self, vocabulary: int, length: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.trunk = nn.Sequential(nn.Linear(vocabulary * length, 64), nn.Tanh())
        self.actor, self.critic = nn.Linear(64, vocabulary), nn.Linear(64, 1)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.distributions.Categorical, torch.Tensor]:
        places = nn.functional.one_hot(ids, self.vocabulary).float() * mask[..., None]
        state = self.trunk(places.flatten(-2))
        return torch.distributions.Categorical(logits=self.actor(state)), self.critic(state).squeeze(-1)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP], ids=lambda mode: mode.name)
def test_a_page_of_ppo_learns(mode: AutoresetMode) -> None:
    envs: Any = gym.make_vec(
        "rlhf_env/Token-v0",
        num_envs=ROWS,
        vectorization_mode="vector_entry_point",
        task={"name": "echo", "length": 2},
        tokenizer="alphabet:ab=",
        max_new_tokens=3,
        max_prompt_tokens=3,
        autoreset_mode=mode,
    )
    envs = gym.wrappers.vector.RecordEpisodeStatistics(envs, buffer_length=200)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        early = learn(envs, updates=1)
        late = learn(envs, updates=100)
    assert early < 0.5 * BEST
    assert late >= 0.9 * BEST


def learn(envs: Any, updates: int) -> float:
    """The mean return of the last 200 texts, sampled from the policy while it learned."""
    length = envs.single_observation_space["input_ids"].shape[0]
    network = Network(int(envs.single_action_space.n), length)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    observation, _ = envs.reset(seed=1)
    ended = np.zeros(ROWS, dtype=bool)
    for _ in range(updates):
        ids, masks, actions, logprobs, values, rewards, ends, counted = [], [], [], [], [], [], [], []
        for _ in range(STEPS):
            ids.append(torch.tensor(observation["input_ids"]))
            masks.append(torch.tensor(observation["attention_mask"]))
            with torch.no_grad():
                distribution, value = network(ids[-1], masks[-1])
            actions.append(distribution.sample())
            logprobs.append(distribution.log_prob(actions[-1]))
            values.append(value)
            # In NEXT_STEP mode the step after an end only starts the next text: nobody acted there.
            resting = envs.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
            counted.append(torch.tensor(~ended if resting else np.ones(ROWS, dtype=bool)))
            observation, paid, terminated, truncated, _ = envs.step(actions[-1].numpy())
            ended = terminated | truncated
            rewards.append(torch.tensor(paid, dtype=torch.float32))
            ends.append(torch.tensor(ended))

        with torch.no_grad():
            _, following = network(torch.tensor(observation["input_ids"]), torch.tensor(observation["attention_mask"]))
        advantages, running = [torch.zeros(ROWS)] * STEPS, torch.zeros(ROWS)
        for t in reversed(range(STEPS)):
            goes_on = (~ends[t]).float()
            running = rewards[t] + following * goes_on - values[t] + 0.95 * goes_on * running
            advantages[t], following = running, values[t]

        here = torch.stack(counted)
        seen_ids, seen_masks = torch.stack(ids)[here], torch.stack(masks)[here]
        taken, old, gain = torch.stack(actions)[here], torch.stack(logprobs)[here], torch.stack(advantages)[here]
        target = gain + torch.stack(values)[here]
        gain = (gain - gain.mean()) / (gain.std() + 1e-8)
        for rows in torch.cat([torch.randperm(len(taken)) for _ in range(4)]).split(128):
            distribution, value = network(seen_ids[rows], seen_masks[rows])
            ratio = (distribution.log_prob(taken[rows]) - old[rows]).exp()
            policy_loss = -torch.min(ratio * gain[rows], ratio.clamp(0.8, 1.2) * gain[rows]).mean()
            loss = policy_loss + 0.5 * (value - target[rows]).square().mean() - 0.003 * distribution.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return float(np.mean(envs.return_queue))
