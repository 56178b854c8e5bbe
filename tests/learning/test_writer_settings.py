"""`[policy] writer_dtype` in an experiment: who gets a copy that writes, who measures what, and what a run says."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_env import Evaluator, Experiment, build
from rlhf_env.policies import LanguageModel, low_precision

pytestmark = pytest.mark.skipif(not low_precision.has_int8(), reason="this processor has no 8-bit instructions")


def experiment(agent: str | dict[str, Any], writer: str | None) -> Experiment:
    policy = {"tokenizer": "alphabet:ab=", **({} if writer is None else {"writer_dtype": writer})}
    return Experiment.from_table(
        {
            "task": {"name": "echo", "length": 2},
            "policy": policy,
            "environment": {"num_envs": 8, "max_new_tokens": 4, "max_prompt_tokens": 4},
            "agent": {"name": agent} if isinstance(agent, str) else agent,
            "budget": {"updates": 1},
            "evaluation": {"prompts": 4},
        }
    )


def test_who_does_not_correct_writes_itself_under_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_precision, "WORTH_A_COPY", 1)
    wraps = {"name": "curriculum", "levels": [1, 2]}
    agents: list[tuple[Any, bool]] = [("grpo", True), ("options", False)]
    agents += [({**wraps, "agent": {"name": "ppo"}}, True), ({**wraps, "agent": {"name": "options"}}, False)]
    for agent, copied in agents:
        workplace = build(experiment(agent, "auto"))
        assert isinstance(workplace.setup.policy, LanguageModel)
        assert workplace.setup.policy.copy_writes == copied, agent


def test_evaluations_are_written_by_the_policy_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    workplace, plain = build(experiment("grpo", "int8")), build(experiment("grpo", None))
    wrote: list[bool] = []
    write = LanguageModel.write
    monkeypatch.setattr(
        LanguageModel, "write", lambda self, *asked: wrote.append(self.copy_writes) or write(self, *asked)
    )
    assert Evaluator.of(workplace)().metrics == Evaluator.of(plain)().metrics
    assert wrote and not any(wrote)
    workplace.source.next(workplace.agent)
    assert wrote[-1]


def test_a_run_says_that_its_processor_has_no_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build(experiment("grpo", "int8")).notes == ()
    monkeypatch.setattr(low_precision, "has_int8", lambda: False)
    workplace = build(experiment("grpo", "int8"))
    (said,) = workplace.notes
    assert "this processor has no instructions for it, so texts are written in the policy's own precision" in said
    assert isinstance(workplace.setup.policy, LanguageModel)
    assert not workplace.setup.policy.copy_writes


def test_left_out_it_is_in_no_file() -> None:
    assert "writer_dtype" not in experiment("grpo", None).to_toml()
    assert 'writer_dtype = "int8"' in experiment("grpo", "int8").to_toml()
