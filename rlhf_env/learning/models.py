"""The model that an experiment trains, and the tokenizer that belongs to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rlhf_env.envs.tokenizers import AlphabetTokenizer, FileTokenizer, load_tokenizer
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.policy import Policy
from rlhf_env.policies.tabular import TabularPolicy
from rlhf_env.policies.tiny import tiny_language_model
from rlhf_env.types import Task, Tokenizer

if TYPE_CHECKING:
    from rlhf_env.learning.experiment import Experiment, PolicySettings


def load_tokenizer_of(wanted: PolicySettings) -> Tokenizer:
    """The tokenizer that is named, or that comes with the model. Raises ConfigError where there is none."""
    if wanted.model == "tiny" and wanted.tokenizer is None:
        raise ConfigError('[policy] model "tiny" needs a tokenizer: tokenizer = "bytes" or "alphabet:ab="')
    if wanted.model == "table" and not (wanted.tokenizer or "").startswith("alphabet:"):
        raise ConfigError('[policy] model "table" needs a tokenizer of few symbols: tokenizer = "alphabet:abcd"')
    return load_tokenizer(wanted.tokenizer or wanted.model, revision=None if wanted.tokenizer else wanted.revision)


def load_policy(experiment: Experiment, tokenizer: Tokenizer, task: Task) -> Policy:
    """The model to train, at its initial weights."""
    wanted = experiment.policy
    dtype = {"float32": torch.float32, "float64": torch.float64}[wanted.dtype]
    if isinstance(tokenizer, AlphabetTokenizer) and wanted.model == "table":
        if task.size != 1:
            raise ConfigError(f'[policy] model "table" answers one prompt, and the task has {task.size or "unbounded"}')
        return TabularPolicy(
            len(tokenizer.symbols),
            experiment.environment.max_new_tokens,
            prompt=tokenizer.encode(task.prompt(0, {}).text),
            dtype=dtype,
            sampling=wanted.sampling,
            seed=experiment.seed,
        )
    if wanted.model != "tiny":
        # The tokenizer says how a text ends: models that know several end tokens name another one first.
        end, pad = tokenizer.end_id, tokenizer.pad_id
        try:
            return LanguageModel.from_pretrained(
                wanted.model,
                dtype=dtype,
                revision=wanted.revision,
                end_id=end,
                pad_id=pad,
                sampling=wanted.sampling,
                rows_at_once=wanted.rows_at_once,
                fused=wanted.fused,
            )
        except DataError:
            raise
        except ConfigError as error:
            raise DataError(f"the tokenizer and the model {wanted.model} do not belong together: {error}") from error
    return tiny_language_model(
        vocab_size=tokenizer.vocab_size,
        end_id=tokenizer.end_id,
        pad_id=tokenizer.pad_id,
        dtype=dtype,
        seed=experiment.seed,
        sampling=wanted.sampling,
        rows_at_once=wanted.rows_at_once,
        fused=wanted.fused,
    )


def fitted(tokenizer: Tokenizer, policy: Policy, model: str) -> Tokenizer:
    """The tokenizer with the model's vocabulary (which many models fill up to a round number), or DataError."""
    if tokenizer.vocab_size < policy.vocab_size and isinstance(tokenizer, FileTokenizer):
        tokenizer = tokenizer.filled_up(policy.vocab_size)
    if tokenizer.vocab_size != policy.vocab_size:
        raise DataError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model} has {policy.vocab_size}: "
            "they do not belong together"
        )
    if tokenizer.end_id != policy.end_id:
        raise DataError(
            f"the tokenizer ends a text with token {tokenizer.end_id}, the model {model} with {policy.end_id}: "
            "they do not belong together"
        )
    return tokenizer
