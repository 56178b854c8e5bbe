"""TRL's own reward functions, unchanged, against what TRL's trainer computes with them on the same batch."""

from __future__ import annotations

import asyncio
import collections
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("trl", reason="TRL is in the extra `bench`")
pytest.importorskip("math_verify", reason="TRL's accuracy rewards need math-verify")

from trl import GRPOTrainer
from trl import rewards as trl_rewards

from rlhf_env.envs.file_task import File
from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.envs.tokenizers import ByteTokenizer
from rlhf_env.envs.toy_tasks import Count
from rlhf_env.errors import RewardError
from rlhf_env.testing import make_episode
from rlhf_env.types import Episode, TrainerState

GROUP = 4
SOLUTIONS = [r"\frac{1}{3}", "$42$", "no number at all"]
ANSWERS = [
    r"<think>a third, a third, a third</think> It is \boxed{\frac{1}{3}}",
    r"<think>\boxed{\frac{1}{3}}",
    r"\boxed{0.5}",
    r"\boxed{0.5}",
    r"<think>42</think> The answer is $42$",
    "the the the the the the",
    "",
    r"<think> <think> </think> \boxed{42}",
    "anything",
    "</think> $1$",
    "</think> $1$",
    "",
]


def batch(tmp_path: Path, conversational: bool) -> list[Episode]:
    """Twelve answers, four to a prompt, equal ones among them."""
    rows = []
    for number, solution in enumerate(SOLUTIONS):
        text = f"Question {number}?"
        asked: Any = [{"role": "user", "content": text}] if conversational else text
        rows.append({"prompt": asked, "solution": solution, "number": number})
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = File(str(tmp_path / "prompts.jsonl"))
    prompts = [task.prompt(row, {}) for row in range(len(rows))]
    return [replace(make_episode("", text), prompt=prompts[row // GROUP]) for row, text in enumerate(ANSWERS)]


@pytest.fixture
def trainer() -> Iterator[Callable[..., Any]]:
    """What TRL's trainer computes: float32[B, functions], NaN where a function abstains."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def computed(functions: list[Any], episodes: list[Episode], conversational: bool) -> Any:
        own = SimpleNamespace(
            accelerator=SimpleNamespace(device=torch.device("cpu"), is_main_process=True),
            reward_funcs=functions,
            reward_func_names=[str(place) for place in range(len(functions))],
            reward_processing_classes=[None] * len(functions),
            state=SimpleNamespace(global_step=3, max_steps=9),
            environments=None,
            async_loop=loop,
            args=SimpleNamespace(report_to=[]),
            _pending_extra_logs=collections.defaultdict(list),
            _pending_metrics=collections.defaultdict(list),
        )
        own._log_completion_extra = GRPOTrainer._log_completion_extra.__get__(own)
        own._log_metric = GRPOTrainer._log_metric.__get__(own)
        inputs, completions = [], []
        for it in episodes:
            asked = [dict(message) for message in it.prompt.messages] if conversational else it.prompt.text
            inputs.append({"prompt": asked, **it.prompt.meta})
            completions.append([{"role": "assistant", "content": it.response}] if conversational else it.response)
        ids = [it.response_ids.tolist() for it in episodes]
        found = GRPOTrainer._calculate_rewards(own, inputs, [row["prompt"] for row in inputs], completions, ids)
        return found, {name: sum(values) / len(values) for name, values in own._pending_metrics.items()}

    yield computed
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def looks_around(prompts: list[Any], completions: list[Any], number: list[int], **kwargs: Any) -> list[float | None]:
    """Rank in the batch, neighbours, columns, how far training is: everything that a batch of its own would change."""
    texts = [it if isinstance(it, str) else it[0]["content"] for it in completions]
    kwargs["log_metric"]("different", len(set(texts)))
    kwargs["log_extra"]("text", texts)
    step = kwargs["trainer_state"].global_step / kwargs["trainer_state"].max_steps
    return [
        None if not text else sorted(texts).index(text) + texts.count(text) / 10 + step + number[row] * len(prompts)
        for row, text in enumerate(texts)
    ]


async def waits(completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float | None]:
    await asyncio.sleep(0)
    return [float(len(ids)) if len(ids) > 1 else None for ids in completion_ids]


FUNCTIONS = {
    "accuracy": (lambda: trl_rewards.accuracy_reward, "messages"),
    "reasoning accuracy": (lambda: trl_rewards.reasoning_accuracy_reward, "messages"),
    "cosine": (lambda: trl_rewards.get_cosine_scaled_reward(max_len=60), "messages"),
    "think format": (lambda: trl_rewards.think_format_reward, "messages"),
    "soft overlong": (lambda: trl_rewards.get_soft_overlong_punishment(40, 20), "both"),
    "repetition": (lambda: trl_rewards.get_repetition_penalty_reward(3), "both"),
    "looks around": (lambda: looks_around, "both"),
    "async": (lambda: waits, "both"),
}


@pytest.mark.parametrize("conversational", [True, False], ids=["conversational", "plain"])
def test_the_same_numbers_as_trls_trainer(conversational: bool, trainer: Callable[..., Any], tmp_path: Path) -> None:
    episodes = batch(tmp_path, conversational)
    functions = {
        name: make() for name, (make, takes) in FUNCTIONS.items() if conversational or takes == "both"
    }  # fmt: skip
    expected, logged = trainer(list(functions.values()), episodes, conversational)
    weights = [0.5 + place for place in range(len(functions))]
    mix = load_rewards(dict(zip(functions, zip(weights, functions.values(), strict=True), strict=True)), Count("a", 4))
    mix.follow(TrainerState(global_step=3, max_steps=9))
    scores = mix.score(episodes, GROUP)
    found = torch.tensor([[score.raw.get(name, torch.nan) for name in functions] for score in scores])
    assert torch.equal(found.isnan(), expected.isnan()) and bool(expected.isnan().any())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0, equal_nan=True)
    assert len(set(expected[~expected.isnan()].tolist())) > 10, "the batch tells them apart"
    totals = (expected.double() * torch.tensor(weights, dtype=torch.float64)).nansum(dim=1)
    np.testing.assert_allclose([score.total for score in scores], totals.numpy(), rtol=1e-6)
    assert [not score.raw for score in scores] == expected.isnan().all(dim=1).tolist()
    assert mix.take_logged() == logged == {"different": 9.0}


@pytest.mark.parametrize("name", [name for name, (_, takes) in FUNCTIONS.items() if takes == "messages"])
def test_what_needs_messages_fails_on_plain_text_as_in_trl(
    name: str, trainer: Callable[..., Any], tmp_path: Path
) -> None:
    """These read `completion[0]["content"]`: on plain prompts they fail in TRL's trainer, and by name here."""
    function, episodes = FUNCTIONS[name][0](), batch(tmp_path, False)
    with pytest.raises(TypeError):
        trainer([function], episodes, False)
    with pytest.raises(RewardError, match="reward 'mine' raised TypeError: string indices must be integers"):
        load_rewards({"mine": function}, Count("a", 4)).score(episodes, GROUP)


def test_where_no_function_speaks_there_is_no_score_as_in_trl(trainer: Callable[..., Any], tmp_path: Path) -> None:
    episodes = batch(tmp_path, True)
    functions = [trl_rewards.accuracy_reward, waits]
    expected, _ = trainer(functions, episodes, True)
    scores = load_rewards({"accuracy": functions[0], "waits": functions[1]}, Count("a", 4)).score(episodes, GROUP)
    assert [not score.raw for score in scores] == expected.isnan().all(dim=1).tolist()
    assert sum(not score.raw for score in scores) == 1
    assert ByteTokenizer().end_id == episodes[-1].response_ids[-1], "the ids end with the end token, as TRL's do"
