"""Teachers: frozen models that a policy learns from, loaded once in a process whoever asks for them."""

from __future__ import annotations

from typing import Literal
from weakref import WeakValueDictionary

import torch

from rlhf_env.envs.tokenizers import AlphabetTokenizer, FileTokenizer, end_ids
from rlhf_env.errors import ConfigError, DataError, Problem
from rlhf_env.learning.devices import placed
from rlhf_env.learning.models import load_tokenizer_of
from rlhf_env.learning.policy_settings import PolicySettings
from rlhf_env.learning.run_models import model_folder
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.policy import Policy
from rlhf_env.settings import fault
from rlhf_env.types import Tokenizer

TeacherDtype = Literal["float32", "float64", "bfloat16", "auto"]

# By folder, precision, device, and what a policy is told beside them. A teacher lives as long as somebody uses it.
_LOADED: WeakValueDictionary[tuple[object, ...], LanguageModel] = WeakValueDictionary()


def load_teacher(name: str, student: Policy, tokenizer: Tokenizer, dtype: TeacherDtype | None = None) -> LanguageModel:
    """The model called `name`, frozen, on the student's device, drawing at the student's temperature.

    `name` is a folder, the folder of a run, a shipped model or a hub name; `dtype` is the student's unless given. Equal
    calls get the same object, so whoever writes with it keeps its own `sampling_state`.

    Raises ConfigError for a teacher whose tokenizer is another than the student's, and DataError where there is none.
    """
    if name in ("tiny", "table"):
        raise ConfigError(fault("teacher", f"{name!r} is new and random, and teaches nothing: name a model"))
    wanted = PolicySettings(model=name)
    theirs = load_tokenizer_of(wanted)
    if unlike := token_difference(tokenizer, theirs):
        raise ConfigError(
            fault(
                "teacher",
                f"{name} has another tokenizer than the policy ({unlike}), so its probabilities are of other tokens: "
                "take a teacher of the same family, or learn answers that it wrote into a file with sft",
            )
        )
    folder, kind = model_folder(name), _torch_dtype(dtype, student)
    key = (folder, kind, str(student.device), end_ids(student), student.pad_id, student.sampling)
    if (known := _LOADED.get(key)) is not None:
        return known
    try:
        teacher = LanguageModel.from_pretrained(
            folder, dtype=kind, end_id=end_ids(student), pad_id=student.pad_id, sampling=student.sampling
        )
    except ConfigError as error:
        raise DataError(Problem(f"the teacher {name} cannot be used here: {error}", ("teacher",))) from error
    teacher = placed(teacher.eval().requires_grad_(False), str(student.device))
    _LOADED[key] = teacher
    return teacher


def token_difference(ours: Tokenizer, theirs: Tokenizer) -> str:
    """The first token that two tokenizers do not have in common, in words; "" where all are the same."""
    tokens, others = _tokens(ours), _tokens(theirs)
    if tokens is None or others is None:
        return "" if type(ours) is type(theirs) else f"{type(theirs).__name__} and {type(ours).__name__}"
    for number in sorted(tokens.keys() | others.keys()):
        if tokens.get(number) != others.get(number):
            return f"token {number} is {others.get(number)!r} there and {tokens.get(number)!r} here"
    return ""


def _tokens(tokenizer: Tokenizer) -> dict[int, str] | None:
    """Every token by its id, an alphabet's as its files have them; None where they are not listed."""
    if isinstance(tokenizer, AlphabetTokenizer):
        return dict(enumerate([*tokenizer.symbols, "<|end|>", "<|pad|>"]))
    return tokenizer.tokens() if isinstance(tokenizer, FileTokenizer) else None


def _torch_dtype(dtype: TeacherDtype | None, student: Policy) -> torch.dtype | None:
    return student.dtype if dtype is None else PolicySettings(dtype=dtype).torch_dtype
