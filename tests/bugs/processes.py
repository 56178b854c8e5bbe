"""Bugs in what several processes of one run exchange."""

from __future__ import annotations

from bugs.mutant import Mutant

ENDING = "tests/learning/processes/test_ending.py"
SHARDED = "tests/learning/processes/test_sharded.py"

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
        "SHARD",
        "the gradient of a divided model is the mean over processes, not the sum",
        "rlhf_env/learning/sharding.py",
        "                    unit.set_gradient_divide_factor(1.0)  # gradients are sums, as losses are\n",
        "",
        SHARDED,
    ),
    Mutant(
        "SHARD",
        "the norm that a divided gradient is clipped to is that of one process's part",
        "rlhf_env/learning/engine.py",
        "        self._engine.processes.add_up([square])\n",
        "",
        SHARDED,
    ),
    Mutant(
        "SHARD",
        "every process resumes with the first one's part of the weights and moments",
        "rlhf_env/learning/shards.py",
        "    return parts[rank] if rank < len(parts) else whole[:0]\n",
        "    return parts[0]\n",
        SHARDED,
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
