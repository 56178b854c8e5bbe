"""The model that an experiment trains, and the tokenizer that belongs to it."""

from __future__ import annotations

from pathlib import Path

import torch

from rlhf_env.envs.tasks import prompt_at
from rlhf_env.envs.tokenizers import (
    AlphabetTokenizer,
    FileTokenizer,
    NotOnHub,
    end_ids,
    load_tokenizer,
    named_end_ids,
    tokenizer_folder,
)
from rlhf_env.errors import ConfigError, DataError, Problem, under
from rlhf_env.learning.devices import find_device, placed
from rlhf_env.learning.policy_settings import PolicySettings
from rlhf_env.learning.run_models import model_folder
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.loading import base_and_adapter, context_named, naming_base
from rlhf_env.policies.lora import add_adapter, bytes_kept_per_token
from rlhf_env.policies.policy import Policy
from rlhf_env.policies.tabular import TabularPolicy
from rlhf_env.policies.tiny import TINY_CONTEXT, tiny_language_model
from rlhf_env.runs_on_disk import run_in, tokenizer_of
from rlhf_env.types import Task, Tokenizer

_OF_LAYERS = {
    ("attention",),
    ("gradient_checkpointing",),
    ("writer_dtype",),
}  # settings that a model may be unable to follow

KEPT_AT_ONCE = 11 * 2**26  # bytes that a backward pass through a model with adapters keeps of all layers, about


def load_tokenizer_of(wanted: PolicySettings) -> Tokenizer:
    """The tokenizer that is named, or that comes with the model. Raises ConfigError where there is none."""
    if wanted.model == "tiny" and wanted.tokenizer is None:
        said = '[policy] model "tiny" needs a tokenizer: tokenizer = "bytes" or "alphabet:ab="'
        raise ConfigError(Problem(said, ("model",)))
    if wanted.model == "table" and not (wanted.tokenizer or "").startswith("alphabet:"):
        said = '[policy] model "table" needs a tokenizer of few symbols: tokenizer = "alphabet:abcd"'
        raise ConfigError(Problem(said, ("model",)))
    with under("tokenizer" if wanted.tokenizer else "model"):
        if wanted.tokenizer:
            return load_tokenizer(wanted.tokenizer)
        run = run_in(Path(wanted.model).expanduser())
        if run is not None and (own := tokenizer_of(run)).startswith(("bytes", "alphabet:")):
            return load_tokenizer(own)
        base, adapter = base_and_adapter(model_folder(wanted.model))
        beside = adapter is not None and (adapter / "tokenizer.json").is_file()  # peft's trainers save it there
        with naming_base(base, adapter):
            try:
                return load_tokenizer(str(adapter) if beside else base, revision=wanted.revision)
            except NotOnHub as error:  # nobody named a tokenizer
                raise DataError(
                    f"model {base!r} is no folder, run or shipped model, and the hub did not give it "
                    f"({type(error.__cause__).__name__}): check the name, or the network"
                ) from error.__cause__


def context_before_loading(wanted: PolicySettings) -> int | None:
    """The longest text the model can read, as far as that is known before its weights are loaded; None: no limit."""
    if wanted.model == "table":
        return None
    if wanted.model == "tiny":
        return TINY_CONTEXT
    with under("model"):
        return context_named(model_folder(wanted.model), wanted.revision)


def load_policy(wanted: PolicySettings, tokenizer: Tokenizer, task: Task, *, max_new_tokens: int, seed: int) -> Policy:
    """The model to train, at its initial weights, on its device; with a new adapter on it where `wanted` has one.

    The adapter is drawn before the model is moved: on every device it begins alike.
    """
    device = find_device(wanted.device)
    policy = _load_base(wanted, tokenizer, task, max_new_tokens=max_new_tokens, seed=seed)
    if wanted.lora is not None:
        with under("lora"):
            if not isinstance(policy, LanguageModel):
                raise ConfigError("a table of logits has no matrices to put adapters on")
            if policy.adapted:
                raise ConfigError(
                    f"{wanted.model} is an adapter already, which trains as it is: leave [policy.lora] out"
                )
            add_adapter(policy.model, wanted.lora, seed)
    return placed(policy, device)


def _load_base(
    wanted: PolicySettings, tokenizer: Tokenizer, task: Task, *, max_new_tokens: int, seed: int
) -> LanguageModel | TabularPolicy:
    dtype = wanted.torch_dtype or torch.float32  # of a model that has no files
    if isinstance(tokenizer, AlphabetTokenizer) and wanted.model == "table":
        for (name,) in _OF_LAYERS:
            if getattr(wanted, name) != getattr(PolicySettings(), name):
                raise ConfigError(Problem(f"{name}: a table of logits has no layers: leave it out", (name,)))
        if task.size != 1:
            said = f'[policy] model "table" answers one prompt, and the task has {task.size or "unbounded"}'
            raise ConfigError(Problem(said, ("model",)))
        return TabularPolicy(
            len(tokenizer.symbols),
            max_new_tokens,
            prompt=tokenizer.encode(prompt_at(task, 0, {}).text),
            dtype=dtype,
            sampling=wanted.sampling,
            seed=seed,
        )
    if wanted.model != "tiny":
        # The tokenizer says first how a text ends: models that know several end tokens name another one first.
        end, pad = end_ids(tokenizer), tokenizer.pad_id
        try:
            with under("model"):
                model = model_folder(wanted.model)
                base, adapter = base_and_adapter(model)
                if isinstance(tokenizer, FileTokenizer) and (wanted.tokenizer or adapter):  # that of another folder
                    with naming_base(base, adapter):
                        end = (*end, *named_end_ids(tokenizer_folder(base, wanted.revision)))
                return LanguageModel.from_pretrained(
                    model,
                    dtype=wanted.torch_dtype,
                    revision=wanted.revision,
                    attention=wanted.attn_implementation,
                    end_id=end,
                    pad_id=pad,
                    sampling=wanted.sampling,
                    rows_at_once=wanted.rows_at_once,
                    fused=wanted.fused,
                    gradient_checkpointing=wanted.gradient_checkpointing,
                    writer_dtype=wanted.writer_dtype,
                )
        except DataError:
            raise
        except ConfigError as error:
            keys = [problem.keys[-1:] for problem in error.problems if isinstance(problem, Problem)]
            if keys and keys[0] in _OF_LAYERS:
                raise ConfigError(Problem(error.problems[0], keys[0])) from error
            said = f"the tokenizer and the model {wanted.model} do not belong together: {error}"
            raise DataError(Problem(said, ("model",))) from error
    return tiny_language_model(
        vocab_size=tokenizer.vocab_size,
        end_id=tokenizer.end_id,
        pad_id=tokenizer.pad_id,
        dtype=dtype,
        seed=seed,
        sampling=wanted.sampling,
        rows_at_once=wanted.rows_at_once,
        fused=wanted.fused,
        attention=wanted.attn_implementation,
        gradient_checkpointing=wanted.gradient_checkpointing,
        writer_dtype=wanted.writer_dtype,
    )


def most_tokens(policy: Policy) -> int:
    """`Engine.most_tokens` of a run that trains `policy`: what fits `KEPT_AT_ONCE` below adapters, on a processor.

    Without adapters, gradients and moments of all weights are there too, three times the weights: a few more micro-
    batches would change the last digits of runs and little else. On a GPU, small matrices cost time.
    """
    if not isinstance(policy, LanguageModel) or not policy.adapted or policy.gradient_checkpointing:
        return 0
    return max(1, KEPT_AT_ONCE // bytes_kept_per_token(policy.model)) if policy.device.type == "cpu" else 0


def shares_prefixes(policy: Policy) -> bool:
    """`Engine.shares_prefixes` of a run that trains `policy`."""
    return isinstance(policy, LanguageModel) and policy.forward_path == "fused"


def with_vocabulary_of(tokenizer: Tokenizer, policy: Policy, model: str) -> Tokenizer:
    """The tokenizer with the model's vocabulary (which many models fill up to a round number), or DataError."""
    written = end_ids(policy)
    if isinstance(tokenizer, FileTokenizer):
        more_ends = policy.end_id in tokenizer.end_ids and not set(written) <= set(tokenizer.end_ids)
        if more_ends or tokenizer.vocab_size < policy.vocab_size:
            largest = max(tokenizer.vocab_size, policy.vocab_size)
            tokenizer = tokenizer.belonging_to(largest, written if more_ends else ())
    if tokenizer.vocab_size != policy.vocab_size:
        raise DataError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model} has {policy.vocab_size}: "
            "they do not belong together"
        )
    known = end_ids(tokenizer)
    if not set(written) <= set(known):  # it would stop where the environment waits for more
        ours, theirs = (", ".join(map(str, ids)) for ids in (known, written))
        raise DataError(
            f"the tokenizer ends a text with token {ours}, the model {model} with {theirs}: they do not belong together"
        )
    return tokenizer
