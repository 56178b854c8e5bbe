"""The price of a text that never ended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
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
    rewards, infos = written(["a"], {"missing_end": 2.5})
    assert rewards.tolist() == [0.0, -2.5]
    assert infos["reward_parts"]["missing_end"].tolist() == [0.0, -1.0]


@pytest.mark.parametrize("prompt", ["a", "b", "ab", "ba", "abb", "abba"])
def test_it_is_added_to_what_the_other_parts_say_whatever_was_asked(prompt: str) -> None:
    """Also after a prompt that the response repeats, and where prompt and response together are long."""
    rewards, infos = written([prompt], {"length": {"weight": 1.0, "target": 1}, "missing_end": 2.5})
    others = infos["reward_parts"]["length"]
    assert (others < 0.0).all()
    assert rewards.tolist() == [others[0], others[1] - 2.5]
    assert [score.total for score in infos["score"]] == rewards.tolist()


def written(prompts: list[str], reward: dict[str, Any]) -> tuple[Any, Any]:
    env = TextVectorEnv(
        2,
        task={"name": "prompts", "prompts": prompts},
        reward=reward,
        tokenizer="alphabet:ab",
        max_new_tokens=3,
        max_prompt_tokens=4,
        action_length=None,
    )
    env.reset(seed=0)
    _, rewards, terminated, _, infos = env.step(np.array([[0, 1, env.tokenizer.end_id], [0, 1, 1]]))
    assert terminated.all()
    return rewards, infos
