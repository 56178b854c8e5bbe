"""Swap the algorithm, keep the environment: eight agents, one task, one objective, one table.

    python examples/swap_agents.py

Every agent starts from the same small random model and has the same number of tokens to learn from. All are measured
by one external evaluator on the same prompts, with the same random draws. What changes from row to row is one word.
"""

import time

from rlhf_env.lab.evaluation.evaluator import Evaluator
from rlhf_env.learning.engine import set_threads
from rlhf_env.learning.experiment import EnvironmentSettings, Experiment, PolicySettings, build
from rlhf_env.learning.loop import train
from rlhf_env.learning.spending import Budget

EXPERIMENT = Experiment(
    task={"name": "count", "letter": "a", "target": 6},  # write six a's, and nothing else
    rewards={"task": 1.0, "kl": 0.01},  # and stay near the model you were: beta is the environment's
    policy=PolicySettings(model="tiny", tokenizer="alphabet:abcd:"),
    environment=EnvironmentSettings(num_envs=64, max_new_tokens=8, max_prompt_tokens=4),
    budget=Budget(generated_tokens=15_000),
)

# A name and that algorithm's own settings; the controls and best_of_n do not train, so they have none.
AGENTS = {
    "ppo": {"lr": 3e-3},
    "reinforce": {"lr": 3e-3},
    "rloo": {"lr": 3e-3, "group_size": 8},
    "grpo": {"lr": 3e-3, "group_size": 8},
    "dpo": {"lr": 3e-3},
    "best_of_n": {},
    "reference": {},
    "random": {},
}


def main() -> None:
    set_threads(1)
    print(f"{'agent':10} {'objective':>9} {'task':>6} {'KL':>7} {'length':>7} {'tokens':>8} {'seconds':>8}   a reply")
    for name, settings in AGENTS.items():
        workplace = build(EXPERIMENT.with_agent({"name": name, **settings}))
        started = time.perf_counter()
        if getattr(workplace.agent, "trains", True):
            train(
                workplace.agent,
                workplace.source,
                EXPERIMENT.budget,
                spending=workplace.setup.spending,
                engine=workplace.setup.engine,
            )
        seconds = time.perf_counter() - started
        measured = Evaluator.of(workplace)()
        found, reply = measured.metrics, measured.samples[0]["response"]
        kl = f"{'≤' if found['kl_is_bound'] else ''}{found['kl']:.2f}"  # best_of_n knows a bound on its distance
        print(
            f"{name:10} {found['objective']:9.2f} {found['part/task']:6.2f} {kl:>7} {found['length']:7.1f} "
            f"{workplace.setup.spending.generated_tokens:8,} {seconds:8.1f}   {reply!r}",
            flush=True,
        )
    print("\nOne seed on a toy: numbers, no claim. `rlhf-env bench examples/benchmark.toml` runs several.")


if __name__ == "__main__":
    main()
