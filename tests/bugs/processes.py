"""Bugs in what several processes of one run exchange."""

from __future__ import annotations

from bugs.mutant import Mutant

ENDING = "tests/learning/processes/test_ending.py"

MUTANTS = (
    Mutant(
        "N34",
        "every process learns from its own gradient alone",
        "rlhf_env/learning/engine.py",
        "        processes.add_up(gradients)\n",
        "",
        ENDING,
    ),
    Mutant(
        "LOG",
        "the sum over micro-batches is that of one process",
        "rlhf_env/learning/engine.py",
        "        return self._engine.processes.summed(sums)\n",
        "        return dict(sums)\n",
        ENDING,
    ),
    Mutant(
        "PROC",
        "every process asks the rewards",
        "rlhf_env/learning/workplace.py",
        "        reward.for_all = several\n",
        "        pass\n",
        "tests/learning/processes/test_same_as_one.py",
    ),
    Mutant(
        "PROC",
        "the coefficient of the KL penalty moves in the first process alone",
        "rlhf_env/envs/rewards.py",
        "            self._remembering[self.kl.name].load_state_dict(moved[self.kl.name])",
        "            pass",
        "tests/learning/processes/test_same_as_one.py",
    ),
    Mutant(
        "PROC",
        "a process that gets a signal stops alone",
        "rlhf_env/learning/loop.py",
        "            stopped_by = processes.largest(caught[0] if caught else 0)\n",
        "            stopped_by = caught[0] if caught else 0\n",
        ENDING,
    ),
    Mutant(
        "F34",
        "that a process is gone is noticed by nobody",
        "rlhf_env/learning/lifeline.py",
        "            if not (other.left or other.ended or self._stopped.is_set()):\n",
        "            if False:\n",
        ENDING,
    ),
)
