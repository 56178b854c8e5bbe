"""A pipeline of every kind of stage on a model of two layers: all of it takes seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rlhf_env.policies.tiny import tiny_language_model

torch.set_num_threads(1)

WORDS = ("red", "blue", "a cat", "the sun", "rain", "one", "two", "tea", "my dog", "green")
FILE = """\
name = "small"
title = "A small pipeline"
what_gold_is = "near eight characters"

[defaults]
seed = 3
policy = { model = "trunk" }
environment = { num_envs = 8, max_new_tokens = 6, max_prompt_tokens = 12 }
checkpoint_every = 1

[defaults.task]
name = "file"
path = "prompts.jsonl"

[defaults.evaluation]
prompts = 4
every = 1
rewards = { length = { target = 8 } }

[[stage]]
name = "sft"
kind = "sft"
agent = { name = "sft", lr = 1e-3 }
budget = { updates = 2 }

[[stage]]
name = "answers"
kind = "responses"
from = "sft"
prompts = 10
temperatures = [0.8, 1.5]

[[stage]]
name = "votes"
kind = "judge"
from = "answers"
annotator = { name = "simulated", temperature = 0.2 }

[[stage]]
name = "taste"
kind = "reward_model"
from = ["sft", "votes"]
held_out = 0.3
reward_model = { epochs = 1, validation = 0.0 }

[[stage]]
name = "ppo"
kind = "train"
from = ["sft", "taste"]
agent = { name = "ppo", lr = 1e-3, group_size = 4 }
rewards = { bradley_terry = 1.0, kl = 0.05 }
budget = { updates = 3 }

[[stage]]
name = "blind"
kind = "evaluate"
from = ["sft", "ppo"]
by = "simulated"
"""


@pytest.fixture(scope="session")
def small_file() -> str:
    return FILE


@pytest.fixture(scope="session")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer model with a byte-level tokenizer beside it, and a file of prompts with their completions."""
    import tokenizers
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    place = tmp_path_factory.mktemp("small")
    folder = place / "trunk"
    tiny_language_model("gpt2", init_std=0.2, context=64).save_pretrained(folder)
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<pad>", "<end>"]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>").save_pretrained(folder)
    rows = [{"prompt": word, "completion": f"{word}!"} for word in WORDS]
    (place / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return place


MakeFile = Callable[..., Path]


@pytest.fixture
def pipeline(trunk: Path, tmp_path: Path) -> MakeFile:
    """`pipeline(("old", "new"), ...)`: the file with these changes, beside the model and the prompts."""

    def make(*changes: tuple[str, str], text: str = FILE) -> Path:
        for name in ("trunk", "prompts.jsonl"):
            if not (tmp_path / name).exists():
                (tmp_path / name).symlink_to(trunk / name)
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new, 1)
        file = tmp_path / "small.toml"
        file.write_text(text)
        return file

    return make
