"""Bugs in what is concluded from numbers, and in the rewards' own fine print."""

from __future__ import annotations

from bugs.mutant import Mutant

MUTANTS = (
    Mutant(
        "END",
        "a missing end replaces the total",
        "rlhf_env/types.py",
        "            total += self.weights[name] * raw\n",
        "            total = self.weights[name] * raw + total * (name != 'missing_end' or not raw)\n",
        "tests/rewards/test_missing_end.py",
    ),
    Mutant(
        "END",
        "the penalty for a missing end looks at the prompt",
        "reward_plugins/rlhf_rewards/missing_end.py",
        'if episode.finish_reason == "length" else 0.0',
        'if episode.finish_reason == "length" and episode.prompt.text not in episode.response else 0.0',
        "tests/rewards/test_missing_end.py",
    ),
    Mutant(
        "END",
        "the penalty for a missing end looks at the length of prompt and response",
        "reward_plugins/rlhf_rewards/missing_end.py",
        'if episode.finish_reason == "length" else 0.0',
        'if episode.finish_reason == "length" and len(episode.ids) > 5 else 0.0',
        "tests/rewards/test_missing_end.py",
    ),
    Mutant(
        "TUNE",
        "an objective of 0.0 is taken for a failed trial",
        "rlhf_env/lab/benchmark/tuning.py",
        "for trial in trials if trial.objective is not None]",
        "for trial in trials if trial.objective]",
        "tests/lab/benchmark/test_tuning.py::test_the_highest_mean_is_chosen_and_a_failed_run_rules_out",
    ),
    Mutant(
        "N35",
        "token-mean of a batch without a token divides by zero",
        "rlhf_env/learning/functional.py",
        "        return counted / counted.sum().clamp(min=1)\n",
        "        return counted / counted.sum()\n",
    ),
    Mutant(
        "STAT",
        "sign flips are told apart by rounding",
        "rlhf_env/lab/statistics.py",
        "(sums >= seen - 1e-9 * float(np.abs(of_seeds).sum()))",
        "(sums >= seen)",
        "tests/lab/test_statistics.py",
    ),
    Mutant(
        "STAT",
        "the interval of a mean forgets that scores are skewed",
        "rlhf_env/lab/statistics.py",
        "    low, high = (-_hall(bound, skew) * error for bound in (t, -t))\n",
        "    low, high = (-bound * error for bound in (t, -t))\n",
        "tests/lab/test_statistics.py",
    ),
    Mutant(
        "STAT",
        "the skewness has the wrong sign",
        "rlhf_env/lab/statistics.py",
        "    third = float(((of_seeds - value) ** 3).sum())",
        "    third = -float(((of_seeds - value) ** 3).sum())",
        "tests/lab/test_statistics.py",
    ),
    Mutant(
        "STAT",
        "widened percentiles without the n - 1 of a sample's variance",
        "rlhf_env/lab/statistics.py",
        "    wide = math.sqrt(seeds / (seeds - 1)) * student_t((1.0 + level) / 2.0, seeds - 1)\n",
        "    wide = student_t((1.0 + level) / 2.0, seeds - 1)\n",
        "tests/lab/test_statistics.py",
    ),
)
