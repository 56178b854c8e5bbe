"""Memory of one GRPO update at a vocabulary of 49,152 words, 32 answers of 128 tokens: ours, and TRL's if installed.

    python benchmarks/update_memory.py                needs Linux; for TRL: pip install -e ".[bench]"

Each side is a process of its own: model and texts are there, a small update has been made, and what is printed is how
far the resident memory rises above that in the update. "all logits" is ours through the model's own head, which makes
the logits of all answers at once: what autograd costs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import groups
import side_by_side as bench
import torch

from rlhf_env.envs.reward_functions import from_function
from rlhf_env.envs.rewards import RewardMix
from rlhf_env.learning.advantages import group_advantages
from rlhf_env.learning.rollout import Rollout
from rlhf_env.types import Score

ROWS, TOKENS = 32, 128
SIDES = {"ours": "ours", "plain": "ours, all logits", "trl": "TRL"}


def megabytes(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def rise(update: Callable[[int], Any]) -> float:
    """Megabytes that `update(rows)` needs on top of what is there after a small one."""
    update(groups.GROUP)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = megabytes("VmRSS")
    update(ROWS)
    return megabytes("VmHWM") - before


def updates_of(side: str) -> Callable[[int], Any]:
    """`update(rows)` of a side, on some of the same texts."""
    policy = bench.model("S", vocab_size=49_152)
    episodes = bench.texts(policy.vocab_size, ROWS, answer=TOKENS, per_prompt=groups.GROUP)
    worth = groups.liked([it.response_ids for it in episodes])
    scores = [Score(raw={"liked": value}, weights={"liked": 1.0}) for value in worth]
    rollout = Rollout.from_episodes(episodes, scores, pad_id=1, group_size=groups.GROUP)
    if side == "trl":
        trl = bench.peer("trl", bench.TRL)
        advantages = group_advantages(rollout.returns(), rollout.group, scale_by_std=True).float()
        trainer = bench.trainer(
            trl,
            "GRPO",
            policy.model,
            groups.liked,
            rows=[{"prompt": "w2"}] * ROWS,
            num_generations=groups.GROUP,
            per_device_train_batch_size=ROWS,
            loss_type="grpo",
        )
        prompt_ids, prompt_mask = bench.padded([it.prompt_ids for it in episodes], left=True)
        ids, mask = bench.padded([it.response_ids for it in episodes])
        batch = {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "completion_ids": ids,
            "completion_mask": mask,
            "advantages": advantages,
        }
        return lambda rows: bench.step_of(
            trainer, {name: some[:rows] for name, some in batch.items()} | {"num_items_in_batch": mask[:rows].sum()}
        )

    from rlhf_agents.grpo import GRPO

    from rlhf_env.policies import language_model

    if side == "plain":
        language_model.linear_head = lambda _model: None
    rollout = bench.stated_by(policy, rollout)
    setup = bench.setup(policy, policy, RewardMix({"liked": from_function(groups.liked)}), ROWS)
    agent = GRPO(setup, GRPO.Config())
    return lambda rows: agent.update(rollout.select(slice(0, rows)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    side = parser.parse_args().side
    torch.set_num_threads(1)
    if side is not None:
        print(rise(updates_of(side)))
        return
    found: dict[str, float] = {}
    print("memory of a GRPO update, 32 x 128 tokens, 49,152 words", flush=True)
    for side, name in SIDES.items():
        again = [sys.executable, __file__, "--side", side]
        said = subprocess.run(again, capture_output=True, text=True, check=True, env=os.environ).stdout.splitlines()[-1]
        try:
            found[side] = float(said)
        except ValueError:  # TRL is not there, and says how to get it
            print(said)
            continue
        print(f"{name:24} {found[side]:8.0f} MB {found[side] / found['ours']:8.2f} of ours", flush=True)


if __name__ == "__main__":
    main()
