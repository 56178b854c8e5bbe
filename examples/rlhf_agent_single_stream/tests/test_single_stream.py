"""The agent's own tests: numbers worked out by hand, and the contract that rlhf-env asks of every agent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rlhf_agent_single_stream.baselines import PromptBaselines
from rlhf_agent_single_stream.single_stream import SingleStream, normalised, policy_gradient_loss

from rlhf_env import Optimization
from rlhf_env.errors import ContractError
from rlhf_env.testing import check_agent


def test_a_baseline_by_hand() -> None:
    known = PromptBaselines(memory=0.5)
    assert known.expected(["a", "b"], 7.0).tolist() == [7.0, 7.0]
    known.observe(["a", "b", "a"], np.array([1.0, 4.0, 0.0]))
    # a: 1, and then 1 + (0 - 1) / (0.5 + 1); of c nothing is known but the mean of the others
    assert known.expected(["a", "b", "c"], 7.0).tolist() == pytest.approx([1 / 3, 4.0, (1 / 3 + 4.0) / 2])


def test_for_right_and_wrong_it_is_the_papers_beta_distribution() -> None:
    memory, a, b = 0.9, 0.0, 0.0
    known = PromptBaselines(memory)
    for right in (1.0, 0.0, 0.0, 1.0, 1.0):
        a, b = memory * a + right, memory * b + 1.0 - right
        known.observe(["p"], np.array([right]))
        assert known.expected(["p"], 0.0)[0] == pytest.approx(a / (a + b), abs=1e-12)


def test_prompts_that_earn_differently_leave_no_signal_once_they_are_known() -> None:
    """One mean for all of them would call the answers to the easy one good, and those to the hard one bad."""
    known = PromptBaselines(memory=0.9)
    prompts, returns = ["easy", "hard"] * 4, np.array([1.0, 0.0] * 4)
    known.observe(prompts, returns)
    assert normalised(returns - known.expected(prompts, 0.5)).tolist() == [0.0] * 8
    assert np.abs(normalised(returns - returns.mean())).tolist() == [1.0] * 8


def test_the_loss_by_hand() -> None:
    logprobs = torch.tensor([[-9.0, -1.0, -2.0], [-9.0, -3.0, -9.0]])
    actions = torch.tensor([[False, True, True], [False, True, False]])
    assert policy_gradient_loss(logprobs, actions, torch.tensor([2.0, -1.0])).item() == 3.0


def test_a_state_goes_through_names_with_odd_characters() -> None:
    one, other = PromptBaselines(0.9), PromptBaselines(0.9)
    one.observe(["a/b", "", "é\n"], np.array([1.0, 2.0, 3.0]))
    other.load_state_dict(one.state_dict())
    assert other.expected(["a/b", "", "é\n"], 0.0).tolist() == [1.0, 2.0, 3.0]
    other.load_state_dict(PromptBaselines(0.9).state_dict())
    assert len(other) == 0


def test_the_contract() -> None:
    check_agent(lambda setup: SingleStream(setup, SingleStream.Config(optimization=Optimization(lr=0.02))))


def test_the_check_sees_that_the_baselines_are_part_of_the_state() -> None:
    class Forgets(SingleStream):
        def load_state_dict(self, state: dict[str, object], /) -> None:
            super().load_state_dict({**state, "baselines": self.baselines.state_dict()})

    with pytest.raises(ContractError, match=r"self\.baselines .* still differs: put self\.baselines\.state_dict\(\)"):
        check_agent(lambda setup: Forgets(setup, Forgets.Config()))
