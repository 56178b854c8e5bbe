"""One model, checked as a whole: its numbers in three precisions, its adapters, its end tokens and its chat template.

`policies/soundness.py` asks the least of this whenever a model is loaded; here nothing is left out that can be measured
on small batches in some seconds.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_env import assets
from rlhf_env.envs.tokenizers import FileTokenizer, end_ids, has_template, plain_conversation, prompt_ids
from rlhf_env.envs.transformers_tokenizer import quiet_transformers
from rlhf_env.errors import ConfigError, DataError, RlhfEnvError
from rlhf_env.learning.models import load_tokenizer_of
from rlhf_env.learning.policy_settings import PolicySettings
from rlhf_env.learning.run_models import model_folder
from rlhf_env.lora_settings import Lora
from rlhf_env.policies.differences import (
    ENDING,
    EXACT,
    RAGGED,
    RAGGED_AND_ENDING,
    Batch,
    differences,
    gradient_error,
    logprobs_alone,
    short_windows,
)
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.loading import base_and_adapter
from rlhf_env.policies.lora import adapter_weights, add_adapter, merge_adapter
from rlhf_env.types import JsonObject, Prompt, Tokenizer

PRECISIONS = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}

# Up to this many parameters a gradient and a merged adapter take some seconds and gigabytes at most.
_FEW = 300_000_000
_GRADIENT_BATCH = Batch((3, 1, 2), ((1, 1, 1),))

CONVERSATIONS: tuple[tuple[dict[str, str], ...], ...] = (
    ({"role": "user", "content": "Hi"},),
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}),
    (
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "4."},
        {"role": "user", "content": "And  3 + 3 ?\n"},
    ),
    ({"role": "user", "content": " naïve 你好 🙂 {{ braces }} <b>tags</b>\n\n\tdone "},),
)


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Of one precision: the largest differences in nats to the model's plain forward pass on each text alone."""

    path: str
    """"fused", "cached" or "whole", as `LanguageModel.forward_path`."""
    write: float
    """Texts written side by side from ragged prompts, rows ending early."""
    recompute: float
    """The same texts by `evaluate`."""
    own: float
    """The plain forward pass against itself, on a text and on the same text without its last token."""
    ragged: float | None
    """Prompts of different lengths, no row ends. This and the next are measured in the finest precision alone."""
    dropped: float | None
    """Prompts of one length, rows that end leave the batch."""
    windows: float | None
    """Texts longer than sliding windows, which are made short for it; None: the model has none."""
    from_float64: float | None
    """The plain forward pass itself, against that in float64, on the tokens of a text; None: not measured."""
    right: bool
    """Whether all of it is within the library's own error."""


@dataclass(frozen=True, kw_only=True)
class ModelCheck:
    """What was found of a model; see `Numbers`."""

    model: str
    family: str
    model_class: str
    parameters: int
    dtype: str
    """Of the weights in its files, as its configuration says."""
    context: int | None
    numbers: dict[str, Numbers]
    gradients: float | None
    """The gradient of log-probabilities in learning, against that of the plain forward pass: a share of its norm."""
    adapter: float | None
    """A random adapter merged into the weights against the same adapter beside them, in nats."""
    ends: tuple[tuple[int, str], ...]
    """Every token that ends a text, and its name."""
    template: str
    """"none", "equal" to the tokenizer's own `apply_chat_template` on a few conversations, or what is different."""
    left_out: tuple[str, ...]
    """What was not checked, and why."""

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong; empty if nothing is."""
        wrong = [f"its log-probabilities in {name}" for name, it in self.numbers.items() if not it.right]
        if self.gradients is not None and not self.gradients <= 1e-4:
            wrong.append("its gradients")
        if self.adapter is not None and not self.adapter <= 1e-4:
            wrong.append("adapters merged and not")
        if self.template not in ("none", "equal"):
            wrong.append(f"its chat template: {self.template}")
        return tuple(wrong)

    @property
    def verdict(self) -> str:
        """ "exact" (to 1e-10 in float64), "right" (up to the library's own error), or "WRONG"."""
        if self.problems:
            return "WRONG"
        finest = self.numbers.get("float64")
        exact = finest is not None and max(finest.write, finest.recompute, finest.own, finest.windows or 0.0) <= EXACT
        return "exact" if exact else "right"

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"{self.model}: {self.model_class}, of the family {self.family}"
        yield f"  parameters  {self.parameters:,}, {self.dtype} in its files"
        yield f"  context     {'no limit' if self.context is None else f'{self.context:,} tokens'}"
        for name, it in self.numbers.items():
            yield f"  {name:11} {it.path}: {_ABOUT_PATHS[it.path]}"
            yield f"              write {it.write:.0e}, recompute {it.recompute:.0e}, plain {it.own:.0e} nats"
            parts = {"ragged prompts": it.ragged, "dropped rows": it.dropped, "windows": it.windows}
            if shown := ", ".join(f"{part} {error:.0e}" for part, error in parts.items() if error is not None):
                yield f"              {shown} nats"
            if it.from_float64 is not None:
                yield f"              its plain forward pass differs from float64 by {it.from_float64:.0e} nats"
        if self.gradients is not None:
            yield f"  gradients   {self.gradients:.0e} of their norm"
        if self.adapter is not None:
            yield f"  adapter     merged and not differ by {self.adapter:.0e} nats"
        yield "  end tokens  " + ", ".join(f"{token} {name!r}" for token, name in self.ends)
        yield f"  template    {_ABOUT_TEMPLATES.get(self.template, self.template)}"
        for left_out in self.left_out:
            yield f"  not checked: {left_out}"
        yield f"  {self.verdict}: " + (", ".join(self.problems) or _ABOUT_VERDICTS[self.verdict])

    def as_json(self) -> JsonObject:
        """For programs; what was not measured is null."""
        return {**_finite(asdict(self)), "problems": list(self.problems), "verdict": self.verdict}


_ABOUT_PATHS = {
    "fused": "our own code for its family",
    "cached": "the library's code, with its cache",
    "whole": "the library's code without its cache, which does not give what the forward pass says: slow",
}
_ABOUT_TEMPLATES = {
    "none": "none",
    "equal": f"ids equal the tokenizer's apply_chat_template on {len(CONVERSATIONS)} conversations",
}
_ABOUT_VERDICTS = {
    "exact": "what is stated, recomputed and plainly computed is equal to 1e-10 in float64",
    "right": "what is stated and recomputed is what the library computes, up to its own error",
}


def check_model(name: str) -> ModelCheck:
    """Check a folder, a run's model, a shipped model or a hub name. Writes nothing (but the model of a run, into it).

    Raises DataError, in one line, for one that cannot be loaded, or is refused in every precision.
    """
    if name in ("tiny", "table"):
        raise ConfigError(f"model {name!r} is made when it is trained: name a folder, a run or a hub model")
    folder = model_folder(name)
    left_out: list[str] = []
    refused: list[DataError] = []
    tokenizer = _tokenizer(name, left_out)
    policies: list[LanguageModel] = []  # one at a time: the last that was loaded
    numbers: dict[str, Numbers] = {}
    plain: dict[str, Tensor] = {}
    gradients = adapter = None
    for precision, dtype in PRECISIONS.items():
        if policies and (reason := _too_large(policies[0], dtype)):
            left_out.append(f"{precision}: {reason}")
            continue
        try:
            policies[:] = [LanguageModel.from_pretrained(folder, dtype=dtype, end_id=_ends(tokenizer) or None)]
        except DataError as error:
            refused.append(error)
            left_out.append(f"{precision}: {error}")
            continue
        (policy,) = policies
        finest = precision == "float64" or (precision == "float32" and bool(_too_large(policy, torch.float64)))
        numbers[precision], plain[precision] = _measured(policy, finest), _plain(policy)
        if finest:  # last, for an adapter stays on the model
            gradients, adapter = _learning(policy, left_out)
    if not numbers:
        raise refused[0]
    exact = plain.get("float64")
    if exact is not None:
        for precision in numbers.keys() - {"float64"}:
            distance = float((plain[precision] - exact).abs().max())
            numbers[precision] = replace(numbers[precision], from_float64=distance)
    (policy,) = policies
    return ModelCheck(
        model=name,
        family=str(getattr(policy.model.config, "model_type", "?")),
        model_class=type(policy.model).__name__,
        parameters=sum(weight.numel() for weight in policy.parameters()),
        dtype=_dtype_of_files(folder),
        context=policy.context,
        numbers=numbers,
        gradients=gradients,
        adapter=adapter,
        ends=tuple((token, _token(tokenizer, token)) for token in dict.fromkeys((*_ends(tokenizer), *policy.end_ids))),
        template=_template(tokenizer),
        left_out=tuple(left_out),
    )


def _tokenizer(name: str, left_out: list[str]) -> Tokenizer | None:
    try:
        return load_tokenizer_of(PolicySettings(model=name))
    except ConfigError as error:
        left_out.append(f"its tokenizer: {error}")
        return None


def _ends(tokenizer: Tokenizer | None) -> tuple[int, ...]:
    return () if tokenizer is None else end_ids(tokenizer)


def _token(tokenizer: Tokenizer | None, token: int) -> str:
    if not isinstance(tokenizer, FileTokenizer):
        return ""
    return str(tokenizer.own.convert_ids_to_tokens(token))


def _too_large(policy: LanguageModel, dtype: torch.dtype) -> str:
    """Why this machine's memory does not hold the model in that precision; "" if it does, or if nobody knows."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on every system
        return ""
    needed = int(2.5 * dtype.itemsize * sum(weight.numel() for weight in policy.parameters()))
    return "" if needed <= free else f"it needs {needed / 1e9:.0f} GB, and {free / 1e9:.0f} are free"


def _dtype_of_files(folder: str) -> str:
    from transformers import AutoConfig

    with quiet_transformers():
        base, _ = base_and_adapter(folder)
        config = AutoConfig.from_pretrained(assets.resolve(base), trust_remote_code=False)
    return str(getattr(config, "dtype", None) or "not said").removeprefix("torch.")


@torch.no_grad()
def _measured(policy: LanguageModel, finest: bool) -> Numbers:
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        found = differences(policy, RAGGED_AND_ENDING.within(policy.context))
        ragged = differences(policy, RAGGED.within(policy.context)) if finest else None
        dropped = differences(policy, ENDING.within(policy.context)) if finest else None
        with short_windows(policy.model) as any_windows:
            windows = differences(policy, RAGGED_AND_ENDING.within(policy.context)) if any_windows else None
    every = [it for it in (found, ragged, dropped, windows) if it is not None]
    return Numbers(
        path=policy.forward_path,
        write=max(it.write for it in every),
        recompute=max(it.recompute for it in every),
        own=max(it.own for it in every),
        ragged=None if ragged is None else ragged.write,
        dropped=None if dropped is None else dropped.write,
        windows=None if windows is None else windows.write,
        from_float64=None,
        right=all(it.right for it in every),
    )


@torch.no_grad()
def _plain(policy: LanguageModel) -> Tensor:
    """float64[L]: the log-probabilities of a text that is the same in every precision."""
    text = np.random.default_rng(1).integers(policy.vocab_size, size=min(16, policy.context or 16))
    logprobs = logprobs_alone(policy.model, text)[:-1].cpu().double()
    return logprobs.gather(1, torch.from_numpy(text[1:, None]))[:, 0]


def _learning(policy: LanguageModel, left_out: list[str]) -> tuple[float | None, float | None]:
    """The errors of gradients, and of a merged adapter, which stays on the model."""
    if sum(weight.numel() for weight in policy.parameters()) > _FEW:
        left_out.append(f"gradients and adapters: more than {_FEW:,} parameters")
        return None, None
    gradients = gradient_error(policy, _GRADIENT_BATCH.within(policy.context))
    if importlib.util.find_spec("peft") is None:
        left_out.append("adapters: peft is not installed")
        return gradients, None
    try:
        return gradients, _adapter_error(policy)
    except RlhfEnvError as error:
        left_out.append(f"adapters: {error}")
        return gradients, None


@torch.no_grad()
def _adapter_error(policy: LanguageModel) -> float:
    """A random adapter: written with, where our own code merges it into its copies, and merged by peft."""
    if not policy.adapted:
        add_adapter(policy.model, Lora(rank=4), seed=0)
        stream = torch.Generator().manual_seed(0)
        for name, weight in adapter_weights(policy.model).items():
            if "lora_B" in name:  # 0 in a new adapter, which would change nothing
                weight.copy_(0.02 * torch.randn(weight.shape, generator=stream))
    text = np.random.default_rng(2).integers(policy.vocab_size, size=min(8, policy.context or 8))
    beside = logprobs_alone(policy.model, text)
    merged = logprobs_alone(merge_adapter(policy.model), text)
    written = differences(policy, RAGGED_AND_ENDING.within(policy.context))
    return max(float((beside - merged).abs().max()), written.write, written.recompute)


def _template(tokenizer: Tokenizer | None) -> str:
    """As `ModelCheck.template`."""
    if tokenizer is None or not has_template(tokenizer):
        return "none"
    assert isinstance(tokenizer, FileTokenizer)
    for number, messages in enumerate(CONVERSATIONS):
        asked = Prompt(f"conversation {number}", plain_conversation(messages), messages=messages)
        try:
            wanted = tokenizer.own.apply_chat_template(
                list(messages), tokenize=True, add_generation_prompt=True, return_dict=False
            )
        except Exception as error:  # templates refuse a system message, for instance, with exceptions of many kinds
            try:
                prompt_ids(tokenizer, asked)
            except DataError:
                continue
            return f"conversation {number} has ids, and the tokenizer refuses it ({type(error).__name__})"
        if prompt_ids(tokenizer, asked) != list(wanted):
            return f"the ids of conversation {number} are not the tokenizer's own"
    return "equal"


def _finite(cell: Any) -> Any:
    """The same without NaN, which JSON does not have."""
    if isinstance(cell, dict):
        return {name: _finite(it) for name, it in cell.items()}
    if isinstance(cell, list | tuple):
        return [_finite(it) for it in cell]
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell
