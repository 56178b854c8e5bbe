# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "gymnasium==1.4.0", "torchrl==0.14.1", "tensordict==0.14.3"]
# ///
"""TorchRL's collector, advantage and PPO loss learn to write, on the batched environment.

    python examples/other_libraries/run.py torchrl_ppo

"ab=" asks for "ab" and the end token, one token a step; 1 is the best return. TorchRL wants the autoreset mode
Disabled: it resets the rows that have ended by itself.
"""

import gymnasium as gym
import torch
from tensordict.nn import TensorDictModule
from tensordict.nn.probabilistic import InteractionType, set_interaction_type
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import GymWrapper
from torchrl.envs.utils import check_env_specs
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

import rlhf_env  # noqa: F401  # importing it registers the environments

ROWS, STEPS = 32, 16


class Network(nn.Module):
    """Ids and mask of the text so far -> `outputs` numbers; every place is read as one-hot."""

    def __init__(self, vocabulary: int, length: int, outputs: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.layers = nn.Sequential(nn.Linear(vocabulary * length, 64), nn.Tanh(), nn.Linear(64, outputs))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        places = nn.functional.one_hot(input_ids, self.vocabulary) * attention_mask.unsqueeze(-1)
        return self.layers(places.flatten(-2).float())


def environment() -> GymWrapper:
    envs = gym.make_vec(
        "rlhf_env/Token-v0",
        num_envs=ROWS,
        vectorization_mode="vector_entry_point",
        autoreset_mode="Disabled",
        task={"name": "echo", "length": 2},
        tokenizer="alphabet:ab=",
        max_new_tokens=3,
        max_prompt_tokens=3,
    )
    return GymWrapper(envs, categorical_action_encoding=True)


def mean_return(policy: ProbabilisticActor) -> float:
    """Of one greedy text in each row."""
    with set_interaction_type(InteractionType.DETERMINISTIC), torch.no_grad():
        rollout = environment().rollout(3, policy, break_when_any_done=False)
    ended = rollout["next", "done"].squeeze(-1)
    first = ended.cumsum(1) - ended.long() == 0  # until the first text of the row has ended
    return (rollout["next", "reward"].squeeze(-1) * first).sum(1).mean().item()


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    env = environment()
    check_env_specs(env)
    env.set_seed(0)
    vocabulary, length = int(env.action_spec.space.n), env.observation_spec["input_ids"].shape[-1]
    seen = ["input_ids", "attention_mask"]
    actor = ProbabilisticActor(
        TensorDictModule(Network(vocabulary, length, vocabulary), in_keys=seen, out_keys=["logits"]),
        in_keys=["logits"],
        spec=env.action_spec,
        distribution_class=torch.distributions.Categorical,
        return_log_prob=True,
    )
    critic = ValueOperator(Network(vocabulary, length, 1), in_keys=seen)
    advantage = GAE(gamma=1.0, lmbda=0.95, value_network=critic)
    objective = ClipPPOLoss(actor, critic, entropy_coeff=0.02, normalize_advantage=True)
    optimizer = torch.optim.Adam(objective.parameters(), lr=2e-3)
    print(f"before  return {mean_return(actor):.2f}")
    collector = Collector(
        env,
        actor,
        frames_per_batch=ROWS * STEPS,
        total_frames=ROWS * STEPS * 60,
        auto_register_policy_transforms=True,
    )
    for batch in collector:
        with torch.no_grad():
            advantage(batch)
        texts = batch.reshape(-1)
        for rows in torch.cat([torch.randperm(len(texts)) for _ in range(8)]).split(64):
            losses = objective(texts[rows])
            optimizer.zero_grad()
            (losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]).backward()
            optimizer.step()
    collector.shutdown()
    print(f"after   return {mean_return(actor):.2f}")


if __name__ == "__main__":
    main()
