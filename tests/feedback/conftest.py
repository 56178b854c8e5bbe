"""A little world of preferences: a two-layer model on disk, and episodes written by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_env.feedback.judgements import Author, Preference, Response
from rlhf_env.policies.tiny import tiny_language_model
from rlhf_env.types import Episode, Prompt


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with learned absolute positions and dropout configured, and a byte-level tokenizer beside it."""
    import tokenizers
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("trunk")
    tiny_language_model("gpt2", dropout=0.1, init_std=0.2, context=64).save_pretrained(folder)
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<pad>", "<end>"]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def author() -> Author:
    return Author("policy", "sft", 0.7)


@pytest.fixture(scope="session")
def episode() -> Callable[..., Episode]:
    def build(
        response: Sequence[int], *, prompt: Sequence[int] = (1, 2, 3), name: str = "p", ended: bool = True
    ) -> Episode:
        """An episode whose texts spell its ids."""
        return Episode(
            prompt=Prompt(name, " ".join(map(str, prompt))),
            prompt_ids=np.array(prompt, dtype=np.int64),
            response=" ".join(map(str, response)),
            response_ids=np.array(response, dtype=np.int64),
            finish_reason="stop" if ended else "length",
            actions=np.ones(len(response), dtype=np.bool_),
        )

    return build


@pytest.fixture(scope="session")
def preference(author: Author) -> Callable[..., Preference]:
    def build(chosen: Episode, rejected: Episode, weight: float = 1.0) -> Preference:
        return Preference(
            prompt=chosen.prompt,
            chosen=Response.from_episode(chosen, author),
            rejected=Response.from_episode(rejected, author),
            annotator="ann",
            weight=weight,
            created="2024-05-01T10:00:00+00:00",
        )

    return build
