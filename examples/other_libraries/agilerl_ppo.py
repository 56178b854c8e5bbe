# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "gymnasium==1.4.0", "agilerl==2.58.0", "peft==0.21.0"]
# ///
"""AgileRL's evolution of PPO agents learns to write, on the batched environment.

    python examples/other_libraries/run.py agilerl_ppo

"ab=" asks for "ab" and the end token, one token a step; 1 is the best return. AgileRL reads the table of ids and mask
as it is, and takes every step for one that its agent acted in: autoreset mode SameStep. Its advantages need `use_gae`
off: with it, a reward reaches only the last action of a text (findings/agilerl_gae_credits_only_the_last_action.sh).
"""

import gymnasium as gym
import torch
from agilerl.algorithms.core.registry import HyperparameterConfig, RLParameter
from agilerl.algorithms.ppo import PPO
from agilerl.hpo.mutation import Mutations
from agilerl.hpo.tournament import TournamentSelection
from agilerl.training.train_on_policy import train_on_policy

import rlhf_env  # noqa: F401  # importing it registers the environments

ROWS, POPULATION = 16, 2


def environment() -> gym.vector.VectorEnv:
    return gym.make_vec(
        "rlhf_env/Token-v0",
        num_envs=ROWS,
        vectorization_mode="vector_entry_point",
        autoreset_mode="SameStep",
        task={"name": "echo", "length": 2},
        tokenizer="alphabet:ab=",
        max_new_tokens=3,
        max_prompt_tokens=3,
    )


def best_return(population: list[PPO]) -> float:
    """The best agent's: the first greedy text of every row, three times."""
    return max(float(agent.test(environment(), loop=3)) for agent in population)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    envs = environment()
    population = [
        PPO(
            envs.single_observation_space,
            envs.single_action_space,
            index=index,
            hp_config=HyperparameterConfig(lr=RLParameter(min=1e-4, max=1e-2)),
            num_envs=ROWS,
            learn_step=512,
            batch_size=64,
            update_epochs=8,
            lr=2e-3,
            gamma=1.0,
            rollout_buffer_config={"use_gae": False},
        )
        for index in range(POPULATION)
    ]
    print(f"before  return {best_return(population):.2f}")
    population, _ = train_on_policy(
        envs,  # train_on_policy closes them
        "echo",
        "PPO",
        population,
        max_steps=POPULATION * 12_288,
        evo_steps=4_096,
        eval_loop=3,
        selection_strategy=TournamentSelection(tournament_size=2, elitism=True, population_size=POPULATION),
        mutation=Mutations(no_mutation=0.5, architecture=0, new_layer_prob=0, parameters=0, activation=0, rl_hp=0.5),
        verbose=False,
    )
    print(f"after   return {best_return(population):.2f}")


if __name__ == "__main__":
    main()
