"""What a second thread gains: GRPO's rollout and update on a model of 134 million weights, in wall time.

    python benchmarks/two_threads.py [--rounds 3] [--lora 16] [--writer int8]

On a machine with two cores that have nothing else to do; the load is printed, and with more than 0.5 at the beginning
the numbers say little. Each side is a process of its own with as many threads as torch takes from OMP_NUM_THREADS, and
they take turns: 4 prompts of 32 tokens with 4 answers of 64, written, scored and learned from. The first line is wall
time, what a user waits for; the second is processor time, what the second thread costs. A turn of both takes 40 s.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

AT_LEAST, BUSY = 1.75, 0.5
PROMPTS = 4


def worker(task: str) -> None:
    """One rollout and update for every line on standard input."""
    import side_by_side as bench
    import torch
    from groups import GROUP, liked

    from rlhf_env import plugins
    from rlhf_env.envs.reward_tables import load_rewards
    from rlhf_env.learning.collect import collect
    from rlhf_env.learning.engine import Optimization
    from rlhf_env.lora_settings import Lora
    from rlhf_env.policies.lora import add_adapter

    asked: Any = json.loads(task)
    torch.set_num_threads(asked["threads"])
    rows = PROMPTS * GROUP
    policy = bench.model(asked["size"], writer=asked["writer"])
    if asked["lora"]:
        add_adapter(policy.model, Lora(rank=asked["lora"], alpha=2.0 * asked["lora"]), seed=0)
    texts = bench.texts(policy.vocab_size, rows, per_prompt=GROUP)
    prompts = [bench.Words(policy.vocab_size).decode(it.prompt_ids.tolist()) for it in texts[::GROUP]]
    rewards = {"liked": liked}
    setup = bench.setup(policy, policy, load_rewards(rewards, bench.Given(prompts), {"reference": policy}), rows)
    kind = plugins.host().load("agent", "grpo")
    agent = kind(setup, kind.Config(group_size=GROUP, optimization=Optimization(lr=1e-6)))
    env = bench.environment(prompts, rewards, setup)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        rollout = collect(env, agent)
        metrics = agent.update(rollout)
        said = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps({**said, "tokens": int(rollout.actions.sum()), "norm": metrics["grad_norm"]}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (default: %(default)s)")
    parser.add_argument("--size", default="L", choices=["S", "M", "L"], help="of the model (default: %(default)s)")
    parser.add_argument("--lora", type=int, default=0, help="rank of adapters to learn (default: all weights)")
    parser.add_argument("--writer", choices=["int8", "bfloat16"], help="the precision of a copy that writes")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker)
        return
    from earlier_build import Side
    from side_by_side import heading, line, same

    heading("one thread / two threads")
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if cores < 2:
        print(f"two threads: not measured, this process may use {cores} core")
        return
    asked = {"size": given.size, "lora": given.lora, "writer": given.writer}
    one, two = (Side(__file__, "--worker", json.dumps({**asked, "threads": it}), threads=it) for it in (1, 2))
    first, second = one.turn(), two.turn()  # warms up, and is looked at
    same("tokens", second["tokens"], first["tokens"])
    # Numbers are rounded otherwise with two threads, and a token that is drawn otherwise makes another text.
    same("gradient norm", second["norm"], first["norm"], within=0.3)
    took = [(one.turn(), two.turn()) for _ in range(given.rounds)]
    what = f"GRPO, {given.size}, {PROMPTS} x 4 x 64, rollout and update"
    mark = AT_LEAST if given.size == "L" else None
    line(f"{what}, wall time", [alone["wall"] / both["wall"] for alone, both in took], mark)
    line(f"{what}, processor time", [alone["cpu"] / both["cpu"] for alone, both in took])
    for side in (one, two):
        side.end()
    after = os.getloadavg()[0]
    if load > BUSY:
        print(f"    the machine was busy: load {load:.1f} before, {after:.1f} after: wall time says little")


if __name__ == "__main__":
    main()
