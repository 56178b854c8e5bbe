"""The catalogue's bugs, put back one at a time: every one must turn the numeric suite red.

    make mutants                                    # all of them: `N killed of N`
    python tests/mutants.py N21 N27 --jobs 1        # some of them

Each mutant is one edit of one source file, applied to a copy of the source, never to the checkout. First the suite runs
on the right code, where nothing may fail. The numbers are those of bugs that RLHF code has had: what happened, where.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bugs import (
    agents,
    exploration,
    judges,
    lab,
    layouts,
    learning,
    lengths,
    losses,
    mechanisms,
    numbers,
    processes,
    shaping,
    texts,
)
from bugs.mutant import Mutant

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("rlhf_env", "agents", "reward_plugins", "tests", "pyproject.toml")
NUMERIC = (
    "tests/learning/test_functional.py",
    "tests/learning/losses",
    "tests/policies",
    "tests/agents/test_sft.py",
    "tests/agents/test_ppo.py",
    "tests/agents/test_grpo.py",
    "tests/agents/test_dpo.py",
    "tests/agents/test_kto.py",
    "tests/agents/test_reinforce.py",
    "tests/agents/test_rloo.py",
    "tests/agents/test_every_agent.py",
    "tests/lab/studies/test_exact.py",
    "tests/lab/studies/test_exact_losses.py",
    "tests/rewards/test_kl.py",
    "tests/rewards/test_mix.py",
    "tests/rewards/test_missing_end.py",
    "tests/lab/test_statistics.py",
    "tests/lab/benchmark/test_tuning.py::test_the_highest_mean_is_chosen_and_a_failed_run_rules_out",
    "tests/feedback/reward_models/test_reward_model.py",
    "tests/feedback/reward_models/test_losses.py",
    "tests/env/test_multi_turn.py",
    "tests/env/test_tokenizers.py",
    "tests/env/test_views.py",
    "tests/learning/test_resume.py::test_checkpoints_far_apart_are_as_exact",
)
NOT_NUMERIC = "not learns and not resumes and not mix_keeps"  # long, and seldom the first to see a bug
PATIENCE = 300  # seconds for one run: a mutant that hangs is caught too


MUTANTS = (
    *learning.MUTANTS,
    *mechanisms.MUTANTS,
    *shaping.MUTANTS,
    *exploration.MUTANTS,
    *judges.MUTANTS,
    *agents.MUTANTS,
    *losses.MUTANTS,
    *numbers.MUTANTS,
    *processes.MUTANTS,
    *texts.MUTANTS,
    *layouts.MUTANTS,
    *lengths.MUTANTS,
    *lab.MUTANTS,
)


def environment(tree: Path) -> dict[str, str]:
    """Imports come from the copy, before the installed packages."""
    path = os.pathsep.join(str(tree / part) for part in ("", "agents", "reward_plugins"))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def run_suite(tree: Path, first: str | None = None) -> tuple[str | None, float]:
    """What failed first (None: nothing did), and how many seconds that took."""
    order = NUMERIC if first is None else (first, *NUMERIC)
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, "-k", NOT_NUMERIC, *order],
            cwd=tree,
            env=environment(tree),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "it hangs", time.monotonic() - started
    seconds = time.monotonic() - started
    if done.returncode == 0:
        return None, seconds
    failed = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(\S+)", done.stdout, flags=re.MULTILINE)
    return failed.group(1) if failed else f"pytest ended with {done.returncode}: {done.stdout[-300:]}", seconds


def copy_tree(into: Path) -> Path:
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, into / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, into / name)
    return into


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("numbers", nargs="*", help="only these (N21 ...); default: all")
    arguments.add_argument("--jobs", type=int, default=2, help="runs side by side (default 2)")
    given = arguments.parse_args()
    mutants = [mutant for mutant in MUTANTS if not given.numbers or mutant.number in given.numbers]
    with tempfile.TemporaryDirectory() as folder:
        trees: queue.Queue[Path] = queue.Queue()
        for job in range(given.jobs):
            trees.put(copy_tree(Path(folder) / str(job)))
        failed, seconds = run_suite(Path(folder) / "0")
        if failed is not None:
            print(f"the right code fails at {failed}: repair that first")
            return 1
        print(f"the right code passes the numeric suite in {seconds:.0f} s", flush=True)

        def attempt(mutant: Mutant) -> bool:
            tree = trees.get()
            file = tree / mutant.file
            right = file.read_text(encoding="utf-8")
            file.write_text(right.replace(mutant.right, mutant.wrong, 1), encoding="utf-8")
            try:
                killer, seconds = run_suite(tree, mutant.seen_by)
            finally:
                file.write_text(right, encoding="utf-8")
                trees.put(tree)
            verdict = "SURVIVED" if killer is None else f"killed by {killer}"
            print(f"{mutant.number:4} {mutant.bug}: {verdict} ({seconds:.0f} s)", flush=True)
            return killer is not None

        with ThreadPoolExecutor(given.jobs) as pool:
            killed = sum(pool.map(attempt, mutants))
    print(f"{killed} killed of {len(mutants)}")
    return 0 if killed == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
