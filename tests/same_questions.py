"""Two processes with different hash seeds ask the same: every data set of reasoning-gym, at its defaults and at levels.

    python tests/same_questions.py            # all of them (several minutes)
    python tests/same_questions.py knight_swap

The suite compares a sample of the defaults; this compares all of them, and levels 0 and 3 as well. Each data set that
differs is named, and the exit status is 1: it belongs into `UNSTEADY` of rlhf_env/envs/reasoning_gym_task.py.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

# One searches for seconds unless its puzzles need no solution; one mixes others and must be told which.
SETTINGS = {"knight_swap": {"impossible_ratio": 1.0}, "composite": {"datasets": [{"name": "chain_sum", "weight": 1.0}]}}
ASKING = "asking"


def ask(names: list[str]) -> None:
    """A line per data set and level: a digest of what it asks and answers."""
    out, sys.stdout = sys.stdout, sys.stderr  # some data sets print
    from reasoning_gym.factory import CURRICULA, DATASETS

    from rlhf_env.envs.reasoning_gym_task import ReasoningGym
    from rlhf_env.errors import RlhfEnvError

    for name in names or sorted(DATASETS):
        for level in (None, 0, 3) if name in CURRICULA else (None,):
            try:
                task = ReasoningGym(name, SETTINGS.get(name, {}), level=level)
                prompts = [task.prompt(index, {}) for index in range(2)]
                asked = repr([(prompt.id, prompt.text, prompt.meta["answer"]) for prompt in prompts])
            except RlhfEnvError as error:  # a level that the data set does not have
                asked = str(error)
            digest = hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()
            print(f"{name}, level {level}: {digest}", file=out, flush=True)


def main(names: list[str]) -> int:
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, ASKING, *names],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    one, other = (process.communicate()[0].splitlines() for process in processes)
    if not one or any(process.returncode for process in processes):
        print("a process ended early")
        return 1
    differing = [line.partition(":")[0] for line, again in zip(one, other, strict=True) if line != again]
    for what in differing:
        print(f"two processes ask otherwise: {what}")
    print(f"{len(one) - len(differing)} of {len(one)} the same")
    return int(bool(differing))


if __name__ == "__main__":
    if sys.argv[1:2] == [ASKING]:
        ask(sys.argv[2:])
    else:
        sys.exit(main(sys.argv[1:]))
