"""The price of a text that never ended."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from rlhf_rewards.missing_end import MissingEnd

from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.testing import check_reward, make_episode


def test_only_the_length_limit_costs() -> None:
    episode = make_episode("p", "a b c")
    ended = [replace(episode, finish_reason=reason) for reason in ("stop", "task", "length")]
    assert MissingEnd()(ended).tolist() == [0.0, 0.0, -1.0]
    check_reward(MissingEnd())


def test_its_weight_is_the_price_in_the_environment() -> None:
    """Two rows of one length: one writes the end token in its last place, the other another letter."""
    env = TextVectorEnv(
        2,
        task={"name": "prompts", "prompts": ["a"]},
        reward={"missing_end": 2.5},
        tokenizer="alphabet:ab",
        max_new_tokens=3,
        max_prompt_tokens=2,
        action_length=None,
    )
    env.reset(seed=0)
    _, rewards, terminated, _, infos = env.step(np.array([[0, 1, env.tokenizer.end_id], [0, 1, 1]]))
    assert terminated.all()
    assert rewards.tolist() == [0.0, -2.5]
    assert infos["reward_parts"]["missing_end"].tolist() == [0.0, -1.0]
