"""Not honest: PPO that writes each answer three times and learns from the one with the most letters a.

The loop counts the tokens of what it is given. The two answers that are thrown away cost as much, and are not counted.
"""

import numpy as np
from rlhf_agents.ppo import PPO

from rlhf_env.learning.agent import Decision


class Peeking(PPO):
    def act(self, observation, /):
        tries = [super(Peeking, self).act(observation) for _ in range(3)]
        tokens = np.stack([each.tokens for each in tries])  # [tries, B, k]
        letter = self.setup.tokenizer.encode("a")[0]
        best = (tokens == letter).sum(axis=2).argmax(axis=0)
        rows = np.arange(len(best))
        return Decision(tokens[best, rows], np.stack([each.logprobs for each in tries])[best, rows])
