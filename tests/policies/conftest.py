"""Texts of random tokens, as observations and as evaluated sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING

from rlhf_env.policies import LanguageModel, Written, language_model
from rlhf_env.policies.tiny import Family
from rlhf_env.types import Int, Observation

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def falls_back(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own code for a family that does not fit a model is left for the library's at load, and a test that compares
    numbers alone would not see the bug: it fails here. Tests of that are marked `falls_back`."""
    ask = language_model.trusted_path

    def asked(policy: LanguageModel) -> str:
        path = ask(policy)
        assert policy.anatomy() is None or path == "fused", f"our own code for {type(policy.model).__name__} is wrong"
        return path

    if request.node.get_closest_marker("falls_back") is None:
        monkeypatch.setattr(language_model, "trusted_path", asked)


# Those of the installed transformers: the oldest that is admitted has no Gemma 4.
FAMILIES = [it for it in get_args(Family) if it in CONFIG_MAPPING or f"{it}_text" in CONFIG_MAPPING]


@dataclass(frozen=True)
class Texts:
    """Prompts as an environment shows them, and as it shows them again once something was written."""

    prompts: Sequence[Int]
    width: int

    @property
    def observation(self) -> Observation:
        return _observation(self.prompts, self.width)

    def after(self, written: Written, vocab_size: int) -> Texts:
        tokens = [row[row < vocab_size] for row in written.tokens]
        return Texts([np.append(p, t) for p, t in zip(self.prompts, tokens, strict=True)], self.width)


def _observation(texts: Sequence[Int], width: int) -> Observation:
    ids, mask = np.zeros((len(texts), width), np.int64), np.zeros((len(texts), width), np.int8)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def texts() -> Callable[..., Texts]:
    """`texts(rows, width, longest, symbols)`: ragged prompts of 1 to `longest` tokens, some of them twice."""

    def make(rows: int = 12, width: int = 40, longest: int = 12, symbols: int = 29, seed: int = 0) -> Texts:
        rng = np.random.default_rng(seed)
        prompts = [rng.integers(0, symbols, rng.integers(1, longest + 1)) for _ in range(rows)]
        prompts[-1] = prompts[0]
        return Texts(prompts, width)

    return make


@pytest.fixture
def recomputed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[np.ndarray]]:
    """`recomputed(policy, before, written)`: log-probabilities of what was written, row by row, alone in a batch.

    The quick way and the model's own code must say the same.
    """

    def evaluate(policy: LanguageModel, before: Texts, written: Written) -> list[np.ndarray]:
        answers = []
        after = before.after(written, policy.vocab_size)
        for prompt, text in zip(before.prompts, after.prompts, strict=True):
            where = torch.arange(len(text)) >= len(prompt)
            tokens, mask = torch.from_numpy(text)[None], torch.ones(1, len(text), dtype=torch.bool)
            with torch.no_grad():
                said = policy.evaluate(tokens, mask, where[None]).logprobs[0, where].numpy()
                with monkeypatch.context() as patch:
                    patch.setattr(policy, "fused", False)
                    own_code = policy.evaluate(tokens, mask, where[None]).logprobs[0, where].numpy()
            np.testing.assert_allclose(said, own_code, rtol=0, atol=1e-10 if said.dtype == np.float64 else 2e-5)
            answers.append(said)
        return answers

    return evaluate
