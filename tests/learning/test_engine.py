"""Micro-batches and threads: what the engine decides for everybody."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from rlhf_env.cli.main import app
from rlhf_env.errors import ConfigError
from rlhf_env.learning import devices, models
from rlhf_env.learning.devices import LARGE, sensible_threads, set_threads
from rlhf_env.learning.engine import Engine, Optimization
from rlhf_env.learning.models import most_tokens
from rlhf_env.lora_settings import Lora
from rlhf_env.policies import tiny_language_model
from rlhf_env.policies.lora import add_adapter

LENGTHS = torch.tensor([3, 9, 4, 9, 2, 5, 8, 1])


def parts(lengths: torch.Tensor = LENGTHS, together: int = 1, **settings: int) -> list[list[int]]:
    parameter = torch.zeros(1, requires_grad=True)
    rows = Engine().optimizer([parameter], Optimization(**settings)).rows(lengths, together=together)
    return [part.tolist() for part in rows]


class TestMicroBatches:
    def test_a_batch_within_the_limits_keeps_its_order(self) -> None:
        whole = [list(range(8))]
        assert parts(micro_batch_tokens=0) == parts(micro_batch_tokens=72) == parts(micro_batch_size=8) == whole

    def test_like_lengths_go_together_longest_first(self) -> None:
        assert parts(micro_batch_size=3, micro_batch_tokens=0) == [[1, 3, 6], [5, 2, 0], [4, 7]]

    def test_padding_counts(self) -> None:
        """18 tokens: two of 9; 8 and 5 padded to 8; 4, 3, 2 and 1 padded to 4."""
        assert parts(micro_batch_tokens=18) == [[1, 3], [6, 5], [2, 0, 4, 7]]

    def test_both_limits_hold(self) -> None:
        assert parts(micro_batch_tokens=18, micro_batch_size=3) == [[1, 3], [6, 5], [2, 0, 4], [7]]

    def test_a_text_beyond_the_limit_goes_alone(self) -> None:
        assert parts(micro_batch_tokens=4)[:4] == [[1], [3], [6], [5]]

    def test_pairs_are_not_parted(self) -> None:
        """Of pairs, the longer text counts: 9, 9, 5 and 8."""
        assert parts(together=2, micro_batch_tokens=18) == [[0, 1], [2, 3], [6, 7], [4, 5]]
        assert parts(together=2, micro_batch_tokens=36) == [[0, 1, 2, 3], [6, 7, 4, 5]]

    @pytest.mark.parametrize("shares", [True, False])
    def test_groups_go_together_where_their_prompt_is_read_once(self, shares: bool) -> None:
        """The group of the longest text first. A policy that reads each text by itself has less padding by length."""
        optimizer = Engine(shares_prefixes=shares).optimizer(
            [torch.zeros(1, requires_grad=True)], Optimization(micro_batch_tokens=18)
        )
        group = torch.tensor([7, 0, 1, 1, 0, 7, 0, 7])
        found = [part.tolist() for part in optimizer.rows(LENGTHS, group=group)]
        assert found == ([[1, 6], [4, 3, 2], [5, 0, 7]] if shares else parts(micro_batch_tokens=18))

    @staticmethod
    def shared(lengths: list[int], prompts: list[int], *, group: list[int], most: int = 0, **settings: int) -> Any:
        engine = Engine(shares_prefixes=True, most_tokens=most)
        optimizer = engine.optimizer([torch.zeros(1, requires_grad=True)], Optimization(**settings))
        rows = optimizer.rows(torch.tensor(lengths), group=torch.tensor(group), prompts=torch.tensor(prompts))
        return [part.tolist() for part in rows]

    def test_a_prompt_counts_once_for_its_answers(self) -> None:
        """Two prompts of 10 tokens with three answers of 2 tokens each: 16 tokens a group."""
        texts = {"lengths": [12] * 6, "prompts": [10] * 6, "group": [0, 0, 0, 1, 1, 1]}
        assert self.shared(**texts, micro_batch_tokens=32) == [list(range(6))]
        assert self.shared(**texts, micro_batch_tokens=31) == [[0, 1, 2], [3, 4, 5]]
        assert self.shared(**texts, micro_batch_tokens=14) == [[0, 1], [2], [3, 4], [5]]
        assert self.shared(**texts, micro_batch_tokens=32, micro_batch_size=4) == [[0, 1, 2, 3], [4, 5]]

    def test_of_a_long_prompt_some_answers_go_together(self) -> None:
        """One text takes 30 tokens, more than fit into memory; 40 is a third more. What the user says holds."""
        texts = {"lengths": [30] * 6, "prompts": [26] * 6, "group": [0, 0, 0, 0, 1, 1], "most": 20}
        assert self.shared(**texts) == [[0, 1, 2], [3], [4, 5]]
        assert self.shared(**texts, micro_batch_tokens=36) == [[0, 1], [2, 3], [4, 5]]

    def test_no_rows(self) -> None:
        assert parts(LENGTHS[:0]) == parts(LENGTHS[:0], together=2) == []

    @pytest.mark.parametrize("settings", [{"micro_batch_size": 3}, {"micro_batch_tokens": 11}, {}])
    def test_every_row_once(self, settings: dict[str, int]) -> None:
        assert sorted(row for part in parts(**settings) for row in part) == list(range(8))

    @pytest.mark.parametrize("settings", [{}, {"micro_batch_size": 3}, {"micro_batch_tokens": 12}])
    def test_tokens_are_counted_of_which_a_gradient_is_computed(self, settings: dict[str, int]) -> None:
        """Each text once in a pass, however it is split; a pass that only reads costs none."""
        parameter = torch.zeros(1, requires_grad=True)
        computing = Engine()
        optimizer = computing.optimizer([parameter], Optimization(**settings))
        for _ in optimizer.rows(LENGTHS):
            pass
        assert computing.spending.gradient_tokens == 0
        for _ in range(2):
            for _ in optimizer.rows(LENGTHS):
                optimizer.backward(parameter.sum())
                optimizer.backward(parameter.sum())
        assert computing.spending.gradient_tokens == 2 * 41


class TestMostTokens:
    """Below adapters, a backward pass keeps what fits into memory."""

    @staticmethod
    def rows(most: int, **settings: int) -> list[list[int]]:
        optimizer = Engine(most_tokens=most).optimizer([torch.zeros(1, requires_grad=True)], Optimization(**settings))
        return [part.tolist() for part in optimizer.rows(LENGTHS)]

    def test_the_smaller_limit_holds_and_0_is_none(self) -> None:
        assert self.rows(18) == parts(micro_batch_tokens=18) == self.rows(72, micro_batch_tokens=18)
        assert self.rows(18, micro_batch_tokens=0) == [list(range(8))] == self.rows(0)

    def test_of_adapters_on_a_processor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        policy = tiny_language_model(vocab_size=20, end_id=0, pad_id=1)
        assert most_tokens(policy) == 0
        add_adapter(policy.model, Lora(), seed=0)
        layer = policy.model.model.layers[0]
        attention = [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj, layer.self_attn.o_proj]
        matrices = [*attention, layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj]
        kept = (
            policy.dtype.itemsize
            * len(policy.model.model.layers)
            * sum(it.in_features + it.out_features for it in matrices)
        )
        monkeypatch.setattr(models, "KEPT_AT_ONCE", 7 * kept + 1)
        assert most_tokens(policy) == 7
        policy.gradient_checkpointing = True
        assert most_tokens(policy) == 0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`machine(cores, load)`; torch's threads and the environment are put back."""
    monkeypatch.delenv("RLHF_ENV_THREADS", raising=False)
    before = torch.get_num_threads()

    def make(cores: int, load: float) -> None:
        monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _pid: set(range(cores)), raising=False)
        monkeypatch.setattr(devices.os, "getloadavg", lambda: (load, 9.0, 9.0))

    yield make
    torch.set_num_threads(before)


class TestThreads:
    def test_small_models_get_one(self, machine: Any) -> None:
        machine(8, 0.0)
        assert sensible_threads(0) == sensible_threads(LARGE - 1) == set_threads() == torch.get_num_threads() == 1

    @pytest.mark.parametrize(("load", "threads"), [(0.0, 4), (0.4, 4), (0.6, 3), (2.0, 2), (3.4, 1), (30.0, 1)])
    def test_larger_ones_get_the_idle_cores(self, machine: Any, load: float, threads: int) -> None:
        machine(4, load)
        assert sensible_threads(LARGE) == set_threads(parameters=LARGE) == torch.get_num_threads() == threads

    def test_whoever_says_a_number_gets_it(self, machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        machine(4, 0.0)
        monkeypatch.setenv("RLHF_ENV_THREADS", "2")
        assert set_threads(parameters=LARGE) == 2
        assert set_threads(1, parameters=LARGE) == 1
        monkeypatch.setenv("RLHF_ENV_THREADS", "many")
        with pytest.raises(ConfigError, match="whole number"):
            set_threads()

    @pytest.mark.parametrize("command", ["train", "bench", "demo", "evaluate"])
    def test_commands_take_a_number(self, command: str) -> None:
        help_text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
        assert "--threads" in help_text
        assert "RLHF_ENV_THREADS" not in os.environ
