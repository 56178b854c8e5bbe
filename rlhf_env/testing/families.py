"""Every family of causal language models in transformers, each made tiny: is it right, read whole, or refused?

Each family is asked what `policies/soundness.py` asks of a model at load, in float64 where its code computes in it, and
more than that: ragged prompts, rows that end early, texts longer than windows and chunks, and gradients, one by one.
"""

from __future__ import annotations

import difflib
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch

from rlhf_env.envs.transformers_tokenizer import quiet_transformers
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.policies.differences import (
    ENDING,
    EXACT,
    LONG,
    RAGGED,
    RAGGED_AND_ENDING,
    differences,
    gradient_error,
    short_windows,
)
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.untyped import HFModel
from rlhf_env.testing.tiny_models import NO_TEXTS, families, tiny_model
from rlhf_env.types import JsonObject


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
    """Texts of 30 tokens with windows and chunks of 3 and 4; NaN for a family without any."""
    gradients: float = math.nan
    """The gradient by `evaluate` against that by the plain forward pass, relative."""

    def as_json(self) -> JsonObject:
        """As a table of JSON; what was not measured is null."""
        cells = asdict(self).items()
        return {name: None if isinstance(cell, float) and math.isnan(cell) else cell for name, cell in cells}


def check_family(family: str) -> FamilyCheck:
    """Make a tiny model of the family and check it. Changes nothing outside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _check(family)


def _check(family: str) -> FamilyCheck:
    model, dtype, reason = _tiny(family)
    if model is None:
        return FamilyCheck(family=family, verdict="not tried", reason=reason)
    with quiet_transformers():
        try:
            policy = LanguageModel(model, end_id=63, pad_id=0)
        except DataError as refused:
            if dtype == "float64" and "fails" in str(refused):  # in float64 alone, perhaps
                single = tiny_model(family, torch.float32)
                try:
                    return _checked(family, LanguageModel(single, end_id=63, pad_id=0), "float32")
                except DataError:
                    pass
            return FamilyCheck(family=family, verdict="refused", reason=_why(refused), dtype=dtype)
        try:
            return _checked(family, policy, dtype)
        except Exception as error:  # what this is here to find
            return FamilyCheck(
                family=family, verdict="WRONG", reason=_line(error), path=policy.forward_path, dtype=dtype
            )


def _checked(family: str, policy: LanguageModel, dtype: str) -> FamilyCheck:
    model = policy.model
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        found = [differences(policy, batch.within(policy.context)) for batch in (RAGGED_AND_ENDING, RAGGED, ENDING)]
        _, ragged, ending = found
        long = [differences(policy, LONG.within(policy.context))]
        with short_windows(model) as any_windows:
            if any_windows:
                long.append(differences(policy, LONG.within(policy.context)))
    found += long
    write, recompute, own = (max(getattr(it, name) for it in found) for name in ("write", "recompute", "own"))
    ahead = max(it.ahead for it in found)
    gradients = gradient_error(policy, RAGGED)
    exact = max(write, recompute, own, ahead) <= EXACT
    right = all(it.right for it in found)
    learns = gradients <= 1e-4
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
            named = NO_TEXTS.get(family)
            reason = reason or named or f"transformers makes none that computes anything ({_line(error)})"
    return None, "", reason


def _windows_of(model: HFModel) -> bool:
    config = model.config.get_text_config()
    named = ("sliding_window", "sliding_window_size", "attention_window_size", "attention_chunk_size", "window_size")
    return any(isinstance(vars(config).get(name), int) for name in named)


def _why(refused: DataError) -> str:
    said = str(refused).partition(": use a causal language model")[0]
    return said.partition(": ")[2] or said


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:160]


def check_families(wanted: Sequence[str] = ()) -> Iterator[FamilyCheck]:
    """One after the other, all families of the installed transformers, or those that are named.

    Raises ConfigError, before any is made, for a name that is none.
    """
    known = families()
    unknown = [family for family in wanted if family not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, 3)
        also = f" (near it: {', '.join(near)})" if near else ""
        raise ConfigError(f"{unknown[0]!r} is no family of causal language models in transformers{also}")
    return map(check_family, wanted or known)


def families_page(checks: Iterable[FamilyCheck]) -> str:
    """The page docs/models.md: what was found of every family, as Markdown."""
    import transformers

    rows = sorted(checks, key=lambda it: it.family)
    kinds = {verdict: [it for it in rows if it.verdict == verdict] for verdict in _ABOUT}
    counts = ", ".join(f"{len(kinds[verdict])} {verdict}" for verdict in _ABOUT if kinds[verdict])
    parts = [_HEAD.format(version=transformers.__version__, counts=counts, count=len(rows))]
    for verdict, about in _ABOUT.items():
        if kinds[verdict]:
            lines = [_measured(it) if it.path else _unmeasured(it) for it in kinds[verdict]]
            columns = _COLUMNS if kinds[verdict][0].path else ("family", "why")
            parts.append(f"## {verdict[0].upper()}{verdict[1:]} ({len(lines)})\n\n{about}\n")
            parts.append("\n".join([_row(columns), _row(["---"] * len(columns)), *lines, ""]))
    return "\n".join(parts)


_HEAD = """# Families of language models

Made by `make models` (`rlhf-env check families > docs/models.md`) with transformers {version}: all {count} families
that it calls causal language models, each made tiny with random weights in float64: {counts}.
A model of your own is checked by `rlhf-env check model:FOLDER`, and less thoroughly whenever it is loaded.

Every number is a largest difference in nats, over all tokens of all texts, to the model's own plain forward pass on
each text alone, rounded up to a power of ten; 0 is anything below 1e-14.

- **path**: *fused* is our own code for the family; *cached* is the library's code, which keeps keys, values and states
  from token to token; *whole* is the library's code without them, for families whose own cache does not give what
  their own forward pass says. Then every text is read from its beginning for each new token: slow, and right.
- **write**: what is stated while six texts are written side by side, rows ending one by one. **recompute**: what
  learning then says of the same texts. **plain**: the plain forward pass against itself, on a text and on the same text
  without its last token.
- **ragged**: prompts of different lengths, no row ends. **dropped**: prompts of one length, rows that end leave the
  batch. **windows**: texts of 30 tokens with windows and chunks of 3 and 4; - where the family has none.
- **gradient**: of all log-probabilities, as learning computes it, against that of the plain forward pass: the norm of
  the difference divided by the norm.
"""
_ABOUT = {
    "WRONG": "Other log-probabilities than the library's, and not refused: a fault.",
    "exact": "Equal to 1e-10.",
    "right": "Equal up to the library's own error: its code computes something in float32 whatever the weights are in, "
    "or does not work in float64 at all (marked).",
    "refused": "By name, when the model is loaded.",
    "not tried": "No tiny model can be made. One that can be loaded is asked at load like any other.",
}
_COLUMNS = ("family", "path", "write", "recompute", "plain", "ragged", "dropped", "windows", "gradient")


def _measured(it: FamilyCheck) -> str:
    numbers = (it.write, it.recompute, it.own, it.ragged, it.ending, it.windows, it.gradients)
    family = f"`{it.family}`" + (" (float32)" if it.dtype == "float32" else "")
    return _row([family, it.path + (f": {it.reason}" if it.reason else ""), *map(_shown, numbers)])


def _unmeasured(it: FamilyCheck) -> str:
    return _row([f"`{it.family}`", it.reason])


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(re.sub(r"[|\s]+", " ", cell) for cell in cells) + " |"


def _shown(number: float) -> str:
    """Its order of magnitude: the digits differ from machine to machine."""
    if math.isnan(number):
        return "-"
    return "0" if number < 1e-14 else f"1e{math.ceil(math.log10(number))}"
