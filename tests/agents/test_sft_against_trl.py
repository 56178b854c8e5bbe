"""The loss of `sft` against TRL's SFTTrainer on the same conversations: answers only, every turn, packed.

TRL computes the cross-entropy in float32, so that equal is equal to its rounding.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rlhf_agents.sft import SFT

pytest.importorskip("trl", reason="TRL is among what the tests need")
pytest.importorskip("datasets", reason="TRL's trainers read data sets of that library")

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from rlhf_env.lab.evaluation.preparing import prepare
from rlhf_env.learning.workplace import Workplace
from rlhf_env.policies.tiny import tiny_language_model

sys.path.insert(0, str(Path(__file__).parents[1]))
from chat_tokenizers import save_chat_tokenizer

# The tag holds what the model is to write: the answer and its end token (TRL's own templates add a newline to it).
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def conversation(number: int) -> list[dict[str, str]]:
    """Of one to three turns; lengths differ."""
    turns = range(1 + number % 3)
    asked = [{"role": "user", "content": f"q{turn}" + "x" * number} for turn in turns]
    said = [{"role": "assistant", "content": f"a{turn}" + "y" * (2 * number)} for turn in turns]
    return [message for pair in zip(asked, said, strict=True) for message in pair]


CONVERSATIONS = [conversation(number) for number in range(6)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_chat_tokenizer(tmp_path_factory.mktemp("sft") / "model", TEMPLATE, begins=False)
    made = tiny_language_model(
        vocab_size=262, context=256, end_id=260, pad_id=258, hidden_size=16, layers=2, dtype=torch.float64
    )
    made.save_pretrained(folder)
    return folder


def workplace(model: Path, tmp_path: Path, **agent: Any) -> Workplace:
    file = tmp_path / "chat.jsonl"
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in CONVERSATIONS))
    return prepare(
        {
            "task": {"name": "file", "path": str(file), "chat_template": str(model)},
            "policy": {"model": str(model), "dtype": "float64"},
            "environment": {"num_envs": len(CONVERSATIONS)},
            "agent": {"name": "sft", "lr": 1e-9, **agent},  # so small that a step changes nothing that is seen
            "budget": {"epochs": 1},
        }
    )


def our_loss(work: Workplace) -> tuple[float, int]:
    """(mean over the tokens learned, how many) of one pass over the data."""
    agent, source = work.agent, work.source
    assert isinstance(agent, SFT)
    rows = [agent.update(source.next(agent)) for _ in range(source.updates_of(1))]  # type: ignore[attr-defined]
    tokens = sum(row["tokens"] for row in rows)
    return sum(row["loss"] * row["tokens"] for row in rows) / tokens, int(tokens)


def their_loss(model: Path, tmp_path: Path, rows: Sequence[Any], **settings: Any) -> tuple[float, int]:
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    settings = {"max_length": None, "per_device_train_batch_size": len(rows), **settings}
    trainer = SFTTrainer(
        model=network,
        args=SFTConfig(output_dir=str(tmp_path / "trl"), use_cpu=True, report_to=[], disable_tqdm=True, **settings),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    network.eval()
    total, tokens = 0.0, 0
    for batch in trainer.get_train_dataloader():
        count = int((batch["labels"][:, 1:] != -100).sum())
        total, tokens = total + float(trainer.compute_loss(network, batch).detach()) * count, tokens + count
    return total / tokens, tokens


MESSAGES = [{"messages": messages} for messages in CONVERSATIONS]
LAST = [{"prompt": messages[:-1], "completion": messages[-1:]} for messages in CONVERSATIONS]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("ours", "rows", "theirs"),
    [
        ({"turns": "every"}, MESSAGES, {"assistant_only_loss": True}),
        ({}, LAST, {}),
        (
            {"turns": "every", "pack_tokens": 256},
            MESSAGES,
            {"assistant_only_loss": True, "packing": True, "max_length": 256, "per_device_train_batch_size": 1},
        ),
    ],
    ids=["every turn", "the last turn", "packed"],
)
def test_the_loss_is_that_of_trl(model: Path, tmp_path: Path, ours: Any, rows: Any, theirs: Any) -> None:
    loss, tokens = our_loss(workplace(model, tmp_path, **ours))
    of_trl, counted = their_loss(model, tmp_path, rows, **theirs)
    assert tokens == counted
    assert loss == pytest.approx(of_trl, abs=1e-6)


@pytest.mark.parametrize("tokens", [1, 120, 256, 4096])
def test_packing_changes_nothing_but_the_steps(model: Path, tmp_path: Path, tokens: int) -> None:
    """In float64, to 1e-12: no text sees another one, whatever shares its step."""
    plain, count = our_loss(workplace(model, tmp_path, turns="every"))
    packed, packed_count = our_loss(workplace(model, tmp_path, turns="every", pack_tokens=tokens))
    assert count == packed_count
    assert abs(plain - packed) < 1e-7  # of the steps in between, which are there, however small
    work = workplace(model, tmp_path, turns="every", pack_tokens=tokens)
    assert isinstance(work.agent, SFT)
    rollout = work.source.next(work.agent)
    alone = [work.setup.policy.response_logprobs([episode])[0] for episode in rollout.episodes]
    mean = sum(float(row[it.actions].sum()) for row, it in zip(alone, rollout.episodes, strict=True))
    assert abs(work.agent.update(rollout)["loss"] + mean / int(rollout.actions.sum())) < 1e-12
