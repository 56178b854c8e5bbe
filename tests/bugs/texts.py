"""Bugs in who writes and who scores: policies, the environment, rewards, reward models."""

from __future__ import annotations

from bugs.mutant import Mutant

MUTANTS = (
    Mutant(
        "N3",
        "text is told from padding by comparing with the padding token",
        "rlhf_env/policies/language_model.py",
        "        self._check_scored(mask, where)\n        length = tokens.shape[1]\n",
        "        mask = mask & (tokens != self.pad_id)\n        length = tokens.shape[1]\n",
        "tests/policies",
    ),
    Mutant(
        "N5",
        "padding on the left shifts the positions",
        "rlhf_env/policies/language_model.py",
        "        if _padded_on_the_left(mask):  # to",
        "        if False:  # to",
        "tests/policies/test_language_model.py",
    ),
    Mutant(
        "N5",
        "continued texts are read at the slot's number, not at their own position",
        "rlhf_env/policies/readers.py",
        "            torch.from_numpy(positions[:, None]).to(self.model.device),\n",
        "            torch.full((len(positions), 1), slots - 1, device=self.model.device),\n",
        "tests/policies/test_writing.py",
    ),
    Mutant(
        "N6",
        "the reward model reads the last column, not the last token",
        "rlhf_env/feedback/reward_models/model.py",
        "hidden[torch.arange(len(ids), device=ids.device), lengths - 1]",
        "hidden[:, -1]",
        "tests/feedback/reward_models/test_reward_model.py",
    ),
    Mutant(
        "N8",
        "micro-batches sorted by length are not put back in order",
        "rlhf_env/policies/language_model.py",
        "                for row, index in enumerate(batch):\n",
        "                for row, index in enumerate(sorted(batch)):\n",
        "tests/policies/test_language_model.py",
    ),
    Mutant(
        "N10",
        "the temperature is missing when texts are scored",
        "rlhf_env/policies/lm_head.py",
        "    return scores.div_(temperature) if temperature != 1.0 else scores, slope\n",
        "    return scores, slope\n",
        "tests/policies/test_writing.py",
    ),
    Mutant(
        "N10",
        "log-probabilities instead of logits are divided by the temperature",
        "rlhf_env/policies/language_model.py",
        "logprobs, entropy = read.head.score(read.scored, targets, temperature)\n",
        "logprobs, entropy = (value / temperature for value in read.head.score(read.scored, targets, 1.0))\n",
        "tests/policies/test_writing.py",
    ),
    Mutant(
        "N12",
        "dropout is on while texts are written and scored",
        "rlhf_env/policies/language_model.py",
        "    training = [part for part in module.modules() if part.training]\n",
        "    training: list[nn.Module] = []\n",
        "tests/policies/test_language_model.py",
    ),
    Mutant(
        "N14",
        "the tokenizer adds its special tokens to every text",
        "rlhf_env/envs/tokenizers.py",
        "add_special_tokens=special",
        "add_special_tokens=True",
        "tests/env/test_tokenizers.py",
    ),
    Mutant(
        "N19",
        "the KL penalty has the wrong sign",
        "reward_plugins/rlhf_rewards/kl.py",
        "        return [0.0 - self.coefficient * values for values in differences]",
        "        return [0.0 + self.coefficient * values for values in differences]",
        "tests/rewards/test_kl.py",
    ),
    Mutant(
        "N24",
        "the step that only resets a row writes its action into the new text",
        "rlhf_env/envs/text_vector_env.py",
        """            resting = self._done.nonzero()[0]
            rewards, terminated, truncated, row_infos = self.advance(actions)
            row_infos |= self._start(resting)
""",
        """            row_infos = self._start(self._done.nonzero()[0])
            rewards, terminated, truncated, more = self.advance(actions)
            row_infos |= more
""",
        "tests/env/test_views.py",
    ),
    Mutant(
        "N44",
        "a stop string that spans two actions is not seen",
        "rlhf_env/envs/text_buffer.py",
        "                self.stop_states[rows] = states\n",
        "",
        "tests/env/test_stop_strings.py",
    ),
    Mutant(
        "N44",
        "a writer does not know where in a stop string its text stands",
        "rlhf_env/policies/decoding.py",
        "        states = np.zeros(len(rows), np.int64) if stop_states is None else stop_states.copy()\n",
        "        states = np.zeros(len(rows), np.int64)\n",
        "tests/learning/test_writers_stop.py",
    ),
    Mutant(
        "N44",
        "a writer goes on after a stop string, and what it then draws is thrown away",
        "rlhf_env/policies/decoding.py",
        "                self.live[some] &= ~stops.completed(states[some])\n",
        "",
        "tests/learning/test_writers_stop.py",
    ),
    Mutant(
        "N44",
        "the text is cut at the stop string that is named first, not at the one that is complete first",
        "rlhf_env/envs/stop_strings.py",
        "text[: min(found)[1]]",
        "text[: found[0][1]]",
        "tests/env/test_stop_strings.py",
    ),
    Mutant(
        "N44",
        "a stop string within another is not seen once the longer one has begun",
        "rlhf_env/envs/stop_strings.py",
        "        complete[state] |= complete[shorter[state]]\n",
        "",
        "tests/env/test_stop_strings.py",
    ),
    Mutant(
        "N44",
        "a conversation is cut at the stop string of its first turn",
        "rlhf_env/envs/text_vector_env.py",
        "ids[texts.turn_start[row] :]",
        "ids[start:]",
        "tests/env/test_stop_strings.py",
    ),
)
