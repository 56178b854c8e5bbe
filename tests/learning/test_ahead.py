"""`[engine] ahead = 1`: texts of the weights before the last update, whoever is quicker, and after any ending."""

from __future__ import annotations

import copy
import os
import shutil
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rlhf_env
from rlhf_env import Experiment, build
from rlhf_env.errors import ConfigError, WriterFailed
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.policies import ahead_writer
from rlhf_env.policies.ahead_writer import AheadWriter, answer_requests
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.policy import Written

UPDATES = 4
OF_TIME = ("time/", "spent/seconds")


class InAThread:
    """The other process's loop in a thread of this one, where it starts at once."""

    def __init__(self, theirs: socket.socket, descriptor: int) -> None:
        self.connection, self.memory = theirs.dup(), os.dup(descriptor)
        asked = (self.connection, self.memory, lambda: None)
        self.thread = threading.Thread(target=answer_requests, args=asked, daemon=True)
        self.thread.start()

    def how_it_ended(self) -> str:
        return "ended"

    def end(self) -> None:
        self.thread.join(30.0)
        self.connection.close()
        os.close(self.memory)


class Behind:
    """The definition: a copy of the policy that is given its weights when a rollout has been written, before it learns
    from it. It foretells nothing, and asks nobody."""

    name, of_training, max_kl = "a copy", True, float("inf")

    def __init__(self, policy: LanguageModel) -> None:
        self.copy = policy.frozen_copy()
        self.next_weights = self._weights(policy)

    def write(self, policy: Any, _weights: Any, observation: Any, rows: Any, numbers: Any) -> Written:
        self.copy.load_state_dict(self.next_weights)
        self.next_weights = self._weights(policy)
        return self.copy.write_by(numbers, observation, rows)

    def take_distance(self) -> dict[str, float]:
        return {}

    @staticmethod
    def _weights(policy: LanguageModel) -> dict[str, Any]:
        return {name: value.clone() for name, value in policy.state_dict().items()}


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead_writer, "_Process", InAThread)


GRPO = {"name": "grpo", "lr": 1e-2, "group_size": 4}


def experiment(agent: Any = GRPO, ahead: int = 1, policy: dict[str, Any] | None = None, **more: Any) -> Experiment:
    return Experiment.from_table(
        {
            "task": {"name": "echo", "length": 2},
            "policy": {"tokenizer": "alphabet:ab=", **(policy or {})},
            "environment": {"num_envs": 8, "max_new_tokens": 4, "max_prompt_tokens": 4},
            "rewards": {"task": 1.0, "kl": 0.05},
            "agent": agent,
            "budget": {"updates": UPDATES},
            "evaluation": {"prompts": 4},
            "engine": {"ahead": ahead},
            **more,
        }
    )


def numbers(rows: Any) -> list[dict[str, Any]]:
    """What depends on the texts, and not on who wrote them or on the clock."""
    return [
        {name: value for name, value in row.items() if not name.startswith(("writer/", *OF_TIME))}
        for row in rows
        if row["update"]
    ]


AGENTS = {
    "grpo": GRPO,
    "ppo": {"name": "ppo", "lr": 1e-2},
    "replay": {"name": "replay", "agent": {"name": "reinforce", "lr": 1e-2}},
    "curriculum": {"name": "curriculum", "levels": [1, 2], "by": "updates", "starts": [0, 2], "agent": GRPO},
}


@pytest.mark.parametrize("name", AGENTS)
def test_texts_are_of_the_weights_that_the_last_update_began_with(name: str, threads: None) -> None:
    rows = build(experiment(AGENTS[name])).train().rows
    by_hand = build(experiment(AGENTS[name], ahead=0))
    policy = by_hand.setup.policy
    assert isinstance(policy, LanguageModel)
    policy.writer = Behind(policy)
    assert numbers(rows) == numbers(by_hand.train().rows)
    assert numbers(rows) != numbers(build(experiment(AGENTS[name], ahead=0)).train().rows)
    assert [row["writer/staleness"] for row in rows] == [0, 1, 1, 1]
    # The rollout that a curriculum changes its level for cannot be foretold.
    assert [row["writer/written_ahead"] for row in rows] == [0, 1, float(name != "curriculum"), 1]
    assert rows[0]["writer/ess"] == pytest.approx(1.0)
    assert all(row["writer/ratio_p05"] < 1 < row["writer/ratio_p95"] for row in rows[1:])


def test_what_is_written_does_not_depend_on_when(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    lora = {"lora": {"rank": 2}}
    ahead = build(experiment(policy=lora)).train().rows
    monkeypatch.setattr(AheadWriter, "ask_ahead", lambda *_: None)
    when_asked = build(experiment(policy=lora)).train().rows
    assert numbers(ahead) == numbers(when_asked)
    assert [row["writer/written_ahead"] for row in when_asked] == [0.0] * UPDATES


def test_a_run_goes_on_with_the_weights_that_wrote(threads: None, tmp_path: Path) -> None:
    wanted = experiment(checkpoint_every=1, evaluation={"prompts": 4, "every": 1})
    rlhf_env.run(wanted, tmp_path / "run")
    whole = read_metrics(tmp_path / "run")
    steps = sorted((tmp_path / "run" / "checkpoints").iterdir())
    shutil.rmtree(steps[-1])  # as if killed before it was written
    rlhf_env.run(wanted, tmp_path / "run", resume=True)
    resumed = read_metrics(tmp_path / "run")
    assert numbers(resumed) == numbers(whole)
    assert [row["writer/staleness"] for row in resumed[1:]] == [0, 1, 1, 1]
    assert [row["writer/written_ahead"] for row in whole[1:]] == [0, 1, 1, 1]  # evaluations take no numbers from it
    with pytest.raises(ConfigError):  # its texts would be others
        rlhf_env.run(experiment(ahead=0, checkpoint_every=1), tmp_path / "run", resume=True)


@pytest.mark.parametrize("agent", ["grpo", "ppo", "reinforce", "rloo"])
def test_the_gradient_is_that_of_ratios_to_who_wrote(agent: str, threads: None) -> None:
    """A rollout states how likely its texts were to the old weights, and what is learned depends on it."""
    workplace = build(experiment({"name": agent, "lr": 1e-2}))
    policy = workplace.setup.policy
    assert isinstance(policy, LanguageModel)
    workplace.start_writer()
    old: dict[str, Any] = {}
    for _ in range(2):
        rollout = workplace.source.next(workplace.agent)
        before = copy.deepcopy(policy)
        workplace.setup.spending.add(updates=1)
        learned = {}
        if old:
            written_with = copy.deepcopy(policy)
            written_with.load_state_dict(old)
            stated = rollout.logprobs[rollout.actions].numpy()
            said = written_with.response_logprobs(rollout.episodes)
            assert np.allclose(stated, np.concatenate(said), atol=1e-5)
            now = np.concatenate(policy.response_logprobs(rollout.episodes))
            assert not np.allclose(stated, now, atol=1e-3)
            state = copy.deepcopy(workplace.agent.state_dict())
            own = rollout.logprobs.clone()
            own[rollout.actions] = torch.from_numpy(now)
            workplace.agent.update(replace(rollout, logprobs=own))
            learned = {name: value.clone() for name, value in policy.state_dict().items()}
            workplace.agent.load_state_dict(state)
        workplace.agent.update(rollout)
        if learned:
            assert any(not torch.equal(value, learned[name]) for name, value in policy.state_dict().items())
        old = {name: value.clone() for name, value in before.state_dict().items()}
    assert isinstance(policy.writer, AheadWriter)
    policy.writer.close()


def test_another_process_writes_and_a_run_ends_with_it_and_goes_on(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead_writer, "_Process", InAThread)
        in_a_thread = numbers(build(experiment()).train().rows)
    workplace = build(experiment())
    policy = workplace.setup.policy
    assert isinstance(policy, LanguageModel)
    writer = policy.writer = AheadWriter(policy)

    def kill_after(row: Any, _share: float) -> None:
        if row["update"] == 2:
            writer._served.process.kill()  # type: ignore[attr-defined]

    with pytest.raises(WriterFailed, match=r"^the process that writes ahead \(pid \d+\) was killed by SIGKILL$"):
        rlhf_env.run(workplace, tmp_path / "run", on_update=kill_after)
    assert policy.writer is None
    before = numbers(read_metrics(tmp_path / "run"))
    assert before == in_a_thread[: len(before)]
    assert len(before) in (2, 3)  # it may have sent the texts of the third before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead_writer, "_Process", InAThread)
        rlhf_env.run(experiment(), tmp_path / "run", resume=True)
    assert numbers(read_metrics(tmp_path / "run")) == in_a_thread


def test_the_process_ends_when_the_run_is_gone() -> None:
    policy = build(experiment()).setup.policy
    assert isinstance(policy, LanguageModel)
    writer = AheadWriter(policy)
    writer._socket.close()  # as the kernel does, however a process ends
    assert writer._served.process.wait(60) == 0  # type: ignore[attr-defined]
    writer.close()


@pytest.mark.parametrize(
    ("agent", "more", "said"),
    [
        ("options", {}, "ahead = 1: texts would be of weights that are one update old, and options has no importance"),
        ("sb3", {}, "ahead = 1: texts would be of weights that are one update old, and sb3 has no importance ratio"),
        ("sft", {}, "ahead = 1: sft learns from given texts, and nothing is written"),
        ("grpo", {"policy": {"writer": "vllm"}}, 'ahead = 1: writer = "vllm" writes in its place: leave one out'),
        ("grpo", {"policy": {"writer_dtype": "int8"}}, 'ahead = 1: writer_dtype = "int8" is of a copy in this process'),
        ("grpo", {"view": "token"}, "ahead = 1: whole texts are written ahead, and here one action is a part of a"),
        ("grpo", {"engine": {"shard": True}}, "ahead = 1 is of one process that learns, and shard = true of several"),
        ("grpo", {"engine": {"ahead": 2}}, "ahead must be from 0 to 1, got 2"),
    ],
)
def test_what_does_not_go_together(agent: str, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build(
            Experiment.from_table(
                {
                    "task": {"name": "echo", "length": 2},
                    "policy": {"tokenizer": "alphabet:ab=", **more.get("policy", {})},
                    "environment": {"max_prompt_tokens": 4, "view": more.get("view", "response")},
                    "agent": {"name": agent},
                    "budget": {"updates": 1},
                    "engine": {"ahead": 1, **more.get("engine", {})},
                }
            )
        )
    assert said in str(refused.value)
    assert len(refused.value.problems) == 1


def test_a_run_is_known_by_it_where_it_is_used() -> None:
    assert "engine" not in experiment(ahead=0).to_toml()
    wanted = experiment()
    assert "[engine]\nahead = 1\n" in wanted.to_toml()
