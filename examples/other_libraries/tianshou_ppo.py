# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "gymnasium==1.4.0", "tianshou==2.0.1"]
# ///
"""Tianshou's collectors, networks and PPO learn to write.

    python examples/other_libraries/run.py tianshou_ppo

"ab=" asks for "ab" and the end token, one token a step; 1 is the best return. Tianshou's own networks read a vector and
no table: Gymnasium's FlattenObservation makes one of ids and mask.
"""

import gymnasium as gym
import torch
from gymnasium.wrappers import FlattenObservation
from tianshou.algorithm import PPO
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, CollectStats, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OnPolicyTrainerParams
from tianshou.utils.net.common import Net
from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic, dist_fn_categorical_from_logits

import rlhf_env  # noqa: F401  # importing it registers the environments

ROWS = 16


class WithoutInfo(gym.Wrapper):
    """Tianshou keeps every info in its buffer, and takes what is there at some steps only for a fault of the data."""

    def reset(self, **arguments):
        return super().reset(**arguments)[0], {}

    def step(self, action):
        return *super().step(action)[:4], {}


def environment() -> gym.Env:
    env = gym.make(
        "rlhf_env/Token-v0",
        task={"name": "echo", "length": 2},
        tokenizer="alphabet:ab=",
        max_new_tokens=3,
        max_prompt_tokens=3,
    )
    return FlattenObservation(WithoutInfo(env))


def mean_return(policy: ProbabilisticActorPolicy) -> float:
    """Of 40 greedy texts."""
    collector = Collector[CollectStats](policy, DummyVectorEnv([environment] * 4))
    return collector.collect(n_episode=40, reset_before_collect=True).returns.mean()


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    one = environment()
    network = Net(state_shape=one.observation_space.shape, hidden_sizes=[64, 64], activation=torch.nn.Tanh)
    policy = ProbabilisticActorPolicy(
        actor=DiscreteActor(preprocess_net=network, action_shape=one.action_space.n, softmax_output=False),
        dist_fn=dist_fn_categorical_from_logits,
        action_space=one.action_space,
        action_scaling=False,
        deterministic_eval=True,
    )
    algorithm = PPO(
        policy=policy,
        critic=DiscreteCritic(preprocess_net=network),
        optim=AdamOptimizerFactory(lr=2e-3),
        gamma=1.0,
        ent_coef=0.01,
    )
    print(f"before  return {mean_return(policy):.2f}")
    training = DummyVectorEnv([environment] * ROWS)
    training.seed(0)
    algorithm.run_training(
        OnPolicyTrainerParams(
            training_collector=Collector[CollectStats](algorithm, training, VectorReplayBuffer(ROWS * 64, ROWS)),
            max_epochs=5,
            epoch_num_steps=4096,
            collection_step_num_env_steps=512,
            batch_size=64,
            update_step_num_repetitions=8,
            verbose=False,
            show_progress=False,
        )
    )
    print(f"after   return {mean_return(policy):.2f}")


if __name__ == "__main__":
    main()
