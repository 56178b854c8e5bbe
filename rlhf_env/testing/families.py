"""Every family of causal language models in transformers, each made tiny: is it right, read whole, or refused?

Each family is asked what `policies/soundness.py` asks of a model at load, in float64 where its code computes in it, and
more than that: ragged prompts, rows that end early, texts longer than windows and chunks, and gradients, one by one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import torch

from rlhf_env.envs.transformers_tokenizer import quiet_transformers
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.soundness import (
    ENDING,
    LONG,
    RAGGED,
    RAGGED_AND_ENDING,
    differences,
    gradient_error,
    short_windows,
)
from rlhf_env.policies.untyped import HFModel
from rlhf_env.testing.tiny_models import families, tiny_model
from rlhf_env.types import JsonObject

# Up to here a difference is nothing but the order of sums in float64.
EXACT = 1e-10


@dataclass(frozen=True, kw_only=True)
class FamilyCheck:
    """What was found of one family. Errors are in nats, the largest over all tokens of all texts; NaN: not measured."""

    family: str
    verdict: str
    """"exact" (to 1e-10), "right" (to the library's own error), "refused", "not tried", or "WRONG"."""
    path: str = ""
    """"fused", "cached" or "whole", as `LanguageModel.forward_path`."""
    reason: str = ""
    """Why it was refused or not tried, or what is wrong."""
    dtype: str = "float64"
    write: float = math.nan
    """Written side by side, rows ending early: what is stated against the plain forward pass on each text alone."""
    recompute: float = math.nan
    """The same texts by `evaluate`."""
    own: float = math.nan
    """The plain forward pass on one text against itself, before and after the text goes on."""
    ending: float = math.nan
    """Prompts of one length, rows that end and are dropped."""
    ragged: float = math.nan
    """Prompts of different lengths, no row ends."""
    windows: float = math.nan
    """Texts of 62 tokens with windows and chunks of 3; NaN for a family without any."""
    gradients: float = math.nan
    """The gradient by `evaluate` against that by the plain forward pass, relative."""


def check_family(family: str) -> FamilyCheck:
    """Make a tiny model of the family and check it. Changes nothing outside."""
    model, dtype, reason = _tiny(family)
    if model is None:
        return FamilyCheck(family=family, verdict="not tried", reason=reason)
    with quiet_transformers():
        try:
            policy = LanguageModel(model, end_id=63, pad_id=0)
        except DataError as refused:
            return FamilyCheck(family=family, verdict="refused", reason=_why(refused), dtype=dtype)
        try:
            return _checked(family, policy, dtype)
        except Exception as error:  # what this is here to find
            return FamilyCheck(family=family, verdict="WRONG", reason=_line(error), path=policy.forward_path, dtype=dtype)


def _checked(family: str, policy: LanguageModel, dtype: str) -> FamilyCheck:
    model = policy.model
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        found = [differences(policy, batch.within(policy.context)) for batch in (RAGGED_AND_ENDING, RAGGED, ENDING)]
        both, ragged, ending = found
        long = [differences(policy, LONG.within(policy.context))]
        with short_windows(model) as any_windows:
            if any_windows:
                long.append(differences(policy, LONG.within(policy.context)))
    found += long
    write, recompute, own = (max(getattr(it, name) for it in found) for name in ("write", "recompute", "own"))
    gradients = gradient_error(policy, RAGGED)
    allowed = max(it.allowed for it in found)
    exact = max(write, recompute, own) <= EXACT
    right = exact or (max(write, recompute) <= allowed and not any(it.looks_ahead for it in found))
    learns = gradients <= (1e-8 if exact else 1e-2)
    wrong = "" if right and learns else ("its gradients" if right else "its log-probabilities")
    return FamilyCheck(
        family=family,
        verdict="WRONG" if wrong else "exact" if exact else "right",
        reason=wrong,
        path=policy.forward_path,
        dtype=dtype,
        write=write,
        recompute=recompute,
        own=own,
        ending=ending.write,
        ragged=ragged.write,
        windows=max(it.write for it in long) if any_windows or _windows_of(model) else math.nan,
        gradients=gradients,
    )


def _tiny(family: str) -> tuple[HFModel | None, str, str]:
    """A tiny model and its precision; or None, and why there is none."""
    reason = ""
    for dtype in (torch.float64, torch.float32):  # some families compute in float32 whatever they are given
        try:
            return tiny_model(family, dtype), str(dtype).removeprefix("torch."), ""
        except Exception as error:  # whatever a configuration made for other sizes raises
            reason = reason or _line(error)
    return None, "", reason


def _windows_of(model: HFModel) -> bool:
    config = model.config.get_text_config()
    return any(isinstance(vars(config).get(name), int) for name in ("sliding_window", "attention_chunk_size"))


def _why(refused: DataError) -> str:
    said = str(refused).partition(": use a causal language model")[0]
    return said.partition(": ")[2] or said


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:160]
