# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "gymnasium==1.2.2", "ray[rllib]==2.60.0"]
# ///
"""Ray RLlib's PPO learns to write.

    python examples/other_libraries/run.py rllib_ppo

"ab=" asks for "ab" and the end token, one token a step; 1 is the best return. RLlib's default networks read a vector
and no table: its FlattenObservations connector makes one of ids and mask. RLlib holds Gymnasium at 1.2.2. Give the name
with the package before it, "rlhf_env:rlhf_env/Token-v0": Ray's workers import it, and so register the environments.
"""

import ray
import torch
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.connectors.env_to_module import FlattenObservations
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

TEXT = {
    "task": {"name": "echo", "length": 2},
    "tokenizer": "alphabet:ab=",
    "max_new_tokens": 3,
    "max_prompt_tokens": 3,
}


def mean_return(algorithm: PPO) -> float:
    """Of 40 texts, sampled."""
    return algorithm.evaluate()["env_runners"]["episode_return_mean"]


def main() -> None:
    torch.set_num_threads(1)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    config = (
        PPOConfig()
        .environment("rlhf_env:rlhf_env/Token-v0", env_config=TEXT)
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=16,
            env_to_module_connector=lambda env, spaces, device: FlattenObservations(),
        )
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[64, 64]))
        .training(train_batch_size=512, minibatch_size=64, num_epochs=8, lr=2e-3, gamma=1.0, entropy_coeff=0.01)
        .evaluation(evaluation_num_env_runners=0, evaluation_duration=40)
        .debugging(seed=0)
    )
    algorithm = config.build_algo()
    print(f"before  return {mean_return(algorithm):.2f}")
    for _ in range(25):
        algorithm.train()
    print(f"after   return {mean_return(algorithm):.2f}")
    algorithm.stop()


if __name__ == "__main__":
    main()
