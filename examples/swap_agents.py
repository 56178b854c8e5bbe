"""Swap the algorithm, keep the environment: eight agents, one task, one objective, one table.

    python examples/swap_agents.py

Every agent starts from the same small random model and has the same number of tokens to learn from. All are measured
by one external evaluator on the same prompts, with the same random draws. What changes from row to row is one word.
"""

import rlhf_env

EXPERIMENT = rlhf_env.Experiment(
    task={"name": "count", "letter": "a", "target": 6},  # write six a's, and nothing else
    rewards={"task": 1.0, "kl": 0.01},  # and stay near the model you were: beta is the environment's
    policy=rlhf_env.PolicySettings(model="tiny", tokenizer="alphabet:abcd:"),
    environment=rlhf_env.EnvironmentSettings(num_envs=64, max_new_tokens=8, max_prompt_tokens=4),
    budget=rlhf_env.Budget(generated_tokens=15_000),
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

print(f"{'agent':10} {'objective':>9} {'task':>6} {'KL':>7} {'length':>7} {'tokens':>8} {'seconds':>8}   a reply")
for name, settings in AGENTS.items():
    experiment = EXPERIMENT.with_agent({"name": name, **settings})
    run = rlhf_env.run(experiment, on_warning=lambda _: None)  # texts grow to the limit: here they are meant to
    found, reply = run.evaluation.metrics, run.evaluation.samples[0]["response"]
    kl = f"{'≤' if found['kl_is_bound'] else ''}{found['kl']:.2f}"  # best_of_n knows a bound on its distance
    print(
        f"{name:10} {found['objective']:9.2f} {found['part/task']:6.2f} {kl:>7} {found['length']:7.1f} "
        f"{run.spending.generated_tokens:8,} {run.spending.seconds:8.1f}   {reply!r}",
        flush=True,
    )
print("\nOne seed on a toy: numbers, no claim. `rlhf-env bench examples/benchmark.toml` runs several.")
