"""Bugs of guided exploration: prefixes and their curriculum, temperatures, the entropy bonus, novelty, shaping."""

from __future__ import annotations

from bugs.mutant import Mutant

PREFIXES, BACKWARD = "tests/env/test_prefixes.py", "tests/agents/test_backward_curriculum.py"
TEMPERATURE, ENTROPY = "tests/agents/test_temperature.py", "tests/agents/test_entropy.py"
NOVELTY, SHAPING = "tests/rewards/test_novelty.py", "tests/rewards/test_potential.py"

MUTANTS = (
    Mutant(
        "M4",
        "every group has the prefix of the first",
        "rlhf_env/envs/text_vector_env.py",
        "self._beginning(asked[index][0], row // self._group_size)",
        "self._beginning(asked[index][0], 0)",
        PREFIXES,
    ),
    Mutant(
        "M4",
        "a task's mask is that before the prefix",
        "rlhf_env/envs/text_vector_env.py",
        "return prefix, self._mask_after(prompt, np.array(prefix, dtype=np.int64))",
        "return prefix, self._mask_after(prompt, np.array([], dtype=np.int64))",
        PREFIXES,
    ),
    Mutant(
        "M4",
        "a prefix is a token too long",
        "rlhf_env/envs/prefixes.py",
        "math.floor(share * len(ids) + 1e-9)",
        "math.ceil(share * len(ids) + 1e-9)",
        PREFIXES,
    ),
    Mutant(
        "M4",
        "success at other stages shortens the prefix",
        "agents/rlhf_agents/backward_curriculum.py",
        " and self._stages[group] == self.stage:",
        ":",
        BACKWARD,
    ),
    Mutant(
        "M4",
        "a hot text pays the KL of its writer",
        "agents/rlhf_agents/temperature.py",
        "if factor != 1.0 and kl is not None",
        "if factor == 1.0 and kl is not None",
        TEMPERATURE,
    ),
    Mutant(
        "M4",
        "evaluations are written hot",
        "agents/rlhf_agents/temperature.py",
        "        self._training = False\n        rollout",
        "        rollout",
        TEMPERATURE,
    ),
    Mutant(
        "M4",
        "entropy is punished",
        "rlhf_env/learning/entropy.py",
        "return loss - coefficient * entropy",
        "return loss + coefficient * entropy",
        ENTROPY,
    ),
    Mutant(
        "M4",
        "the floor's controller is turned around",
        "rlhf_env/learning/entropy.py",
        "1.0 - entropy / config.entropy_floor",
        "entropy / config.entropy_floor - 1.0",
        ENTROPY,
    ),
    Mutant(
        "M4",
        "the floor's controller winds up",
        "rlhf_env/learning/entropy.py",
        "min(max(1.0, moved), max(config.entropy_max / self.scheduled, 1.0))",
        "max(1.0, moved)",
        ENTROPY,
    ),
    Mutant(
        "M4",
        "a run of tokens counts as often as it is in a text",
        "reward_plugins/rlhf_rewards/novelty_ngrams.py",
        "self.counts[np.unique(self._bins(episode))] += 1",
        "np.add.at(self.counts, self._bins(episode), 1)",
        NOVELTY,
    ),
    Mutant(
        "M4",
        "the newest texts are forgotten first",
        "reward_plugins/rlhf_rewards/novelty_embedding.py",
        "[-self.memory :]",
        "[: self.memory]",
        NOVELTY,
    ),
    Mutant(
        "M4",
        "the moments of a distillation's optimizer are lost in a checkpoint",
        "reward_plugins/rlhf_rewards/novelty_rnd.py",
        '        self._optimizer.load_state_dict(state["optimizer"])\n',
        "",
        NOVELTY,
    ),
    Mutant(
        "M4",
        "a text that has ended has a potential",
        "reward_plugins/rlhf_rewards/shaping.py",
        "values = np.append(potentials[own], 0.0)",
        "values = np.append(potentials[own], potentials[own][-1:])",
        SHAPING,
    ),
    Mutant(
        "M4",
        "the discount is on the potential before",
        "reward_plugins/rlhf_rewards/shaping.py",
        "self.gamma * values[1:] - values[:-1]",
        "values[1:] - self.gamma * values[:-1]",
        SHAPING,
    ),
)
