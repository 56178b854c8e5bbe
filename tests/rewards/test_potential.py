"""Potential-based shaping by hand. That it leaves optimum and policy gradient alone: tests/agents/test_shaping.py."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from rlhf_rewards.shaping import PotentialShaping

from rlhf_env.envs.tokenizers import ByteTokenizer
from rlhf_env.errors import ConfigError, RewardError
from rlhf_env.testing import check_reward, make_episode

LENGTH = {"name": "length", "target": 4}


def shaping(tmp_path: Any, code: str, **settings: Any) -> PotentialShaping:
    file = tmp_path / "mine.py"
    file.write_text(code)
    return PotentialShaping({"function": f"{file}:phi"}, tokenizer=ByteTokenizer(), **settings)


TABLE = "def phi(completions, **columns):\n    return [{'': 0.5, 'a': 2.0, 'ab': -1.0}[it] for it in completions]\n"


# ---------------------------------------------------------------- by hand


def test_a_step_pays_what_the_potential_rises_and_the_end_has_none(tmp_path: Any) -> None:
    (row,) = shaping(tmp_path, TABLE).token_rewards([make_episode("p", "ab")])
    assert row.tolist() == [2.0 - 0.5, -1.0 - 2.0, 0.0 + 1.0]  # a, b, the end token
    (cut,) = shaping(tmp_path, TABLE).token_rewards([make_episode("p", "ab", finish_reason="length")])
    assert cut.tolist() == [2.0 - 0.5, 0.0 - 2.0], "the limit ends a text"


def test_discounted_they_sum_to_minus_the_potential_of_the_beginning(tmp_path: Any) -> None:
    (row,) = shaping(tmp_path, TABLE, gamma=0.5).token_rewards([make_episode("p", "ab")])
    assert row.tolist() == [0.5 * 2.0 - 0.5, 0.5 * -1.0 - 2.0, 1.0]
    assert float(row @ 0.5 ** np.arange(3)) == -0.5


def test_states_are_those_in_which_the_agent_acts(tmp_path: Any) -> None:
    """Tokens of the environment in between are no steps, as in advantages."""
    begun = dataclasses.replace(make_episode("p", "ab"), actions=np.array([False, True, True]))
    (row,) = shaping(tmp_path, TABLE).token_rewards([begun])
    assert row.tolist() == [0.0, -1.0 - 2.0, 1.0]


def test_columns_reach_the_potential(tmp_path: Any) -> None:
    code = "def phi(completions, goal):\n    return [float(g.startswith(c)) for c, g in zip(completions, goal)]\n"
    (row,) = shaping(tmp_path, code).token_rewards([make_episode("p", "xy", meta={"goal": "xz"})])
    assert row.tolist() == [0.0, -1.0, 0.0]
    with pytest.raises(RewardError, match="goal"):
        shaping(tmp_path, code).token_rewards([make_episode("p", "xy")])


def test_it_keeps_the_contract() -> None:
    check_reward(PotentialShaping(LENGTH, tokenizer=ByteTokenizer()), longest=40)


def test_what_is_no_potential_is_refused(tmp_path: Any) -> None:
    for table, said in {
        "{}": 'potential needs a name or function = "FILE.py:NAME"',
        "{'name': 'lenght'}": "unknown reward 'lenght': did you mean 'length'",
        "{'name': 'diversity'}": "potential must be a reward of one text by itself, without a memory",
        "{'name': 'novelty_ngrams'}": "potential must be a reward of one text by itself, without a memory",
        "{'name': 'task'}": "there is no task here whose own score it could be",
    }.items():
        with pytest.raises(ConfigError, match=said):
            PotentialShaping(eval(table), tokenizer=ByteTokenizer())
    with pytest.raises(ConfigError, match="tokenizer is needed to read the text so far"):
        PotentialShaping(LENGTH)
    silent = shaping(tmp_path, "def phi(completions, **columns):\n    return [None for _ in completions]\n")
    with pytest.raises(RewardError, match="has no number for the text ''"):
        silent.token_rewards([make_episode("p", "a")])
