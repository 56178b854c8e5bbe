"""Bugs of replay and of the sampling of prompts and tasks."""

from __future__ import annotations

from bugs.mutant import Mutant

REPLAY, REPLAY_EXACT = "tests/agents/test_replay.py", "tests/agents/test_replay_exact.py"

MUTANTS = (
    Mutant(
        "M2",
        "a replayed text pays the KL of its writer",
        "agents/rlhf_agents/replay.py",
        "        return self.config.renew_kl and kl is not None",
        "        return not self.config.renew_kl and kl is not None",
        REPLAY_EXACT,
    ),
    Mutant(
        "M2",
        "the weights of replay forget how many groups there are",
        "rlhf_env/learning/functional.py",
        "    spread = len(probabilities) * probabilities\n",
        "    spread = probabilities\n",
        REPLAY_EXACT,
    ),
    Mutant(
        "M2",
        "the weights of replay are those of another group",
        "agents/rlhf_agents/replay.py",
        "float(weights[number])",
        "float(weights[-1 - number])",
        REPLAY_EXACT,
    ),
    Mutant(
        "M2",
        "the newest rollout goes first",
        "agents/rlhf_agents/replay.py",
        "            self.kept = self.kept[1:]\n",
        "            self.kept = self.kept[:-1]\n",
        REPLAY,
    ),
    Mutant(
        "M2",
        "replayed pairs are labels once more",
        "agents/rlhf_agents/replay.py",
        "        self.setup.spending.preference_labels = labels  # whoever",
        "        # whoever",
        REPLAY,
    ),
    Mutant(
        "M2",
        "a resumed run draws other texts",
        "agents/rlhf_agents/replay.py",
        '        self._draws.bit_generator.state = dict(state["draws"])\n',
        "",
        REPLAY,
    ),
    Mutant(
        "M2",
        "groups of two rollouts become one",
        "rlhf_env/learning/rollout.py",
        "groups.append(first + ",
        "groups.append(0 * first + ",
        REPLAY,
    ),
    Mutant(
        "M2",
        "gradient tokens are counted for each loss on the same texts",
        "rlhf_env/learning/engine.py",
        "        self._reading = 0  # a second loss",
        "        # a second loss",
        "tests/learning/test_engine.py",
    ),
    Mutant(
        "M3",
        "the weights of prompts are those of the first group",
        "agents/rlhf_agents/prompt_sampling.py",
        "of_groups[rollout.group]",
        "of_groups[0 * rollout.group]",
        "tests/agents/test_prompt_sampling.py",
    ),
    Mutant(
        "M3",
        "prompts that are asked for are not those that come",
        "rlhf_env/learning/sources.py",
        'wishes["indices"] if "indices" in wishes else self._prompts.take(groups)',
        "self._prompts.take(groups)",
        "tests/agents/test_prompt_sampling.py",
    ),
    Mutant(
        "M3",
        "a spread of KL alone keeps a group",
        "agents/rlhf_agents/dynamic_sampling.py",
        "returns, scored = rollout.returns(without=self.setup.reward.kl_names), rollout.scored",
        "returns, scored = rollout.returns(), rollout.scored",
        "tests/agents/test_dynamic_sampling.py",
    ),
    Mutant(
        "M3",
        "groups that were put aside are lost in a checkpoint",
        "agents/rlhf_agents/dynamic_sampling.py",
        '        self.pending = [rollout_from_state(rollout) for rollout in state["pending"]]\n',
        "",
        "tests/agents/test_dynamic_sampling.py",
    ),
    Mutant(
        "M3",
        "both averages of a task's scores are quick",
        "rlhf_env/learning/learning_progress.py",
        "(1.0 - self.settings.slow) * (score - self._slow[place])",
        "(1.0 - self.settings.fast) * (score - self._slow[place])",
        "tests/agents/test_task_sampling.py",
    ),
    Mutant(
        "M3",
        "a temperature sharpens the shares",
        "agents/rlhf_agents/task_sampling.py",
        "            return draw_probabilities(self._given, 1.0 / self.config.progress.temperature)\n",
        "            return draw_probabilities(self._given, self.config.progress.temperature)\n",
        "tests/agents/test_task_sampling.py",
    ),
)
