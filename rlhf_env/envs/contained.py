"""What a reward is lent, and what it changes of the process put back: a run does not depend on what plugins do beside.

This contains mistakes; it is no sandbox.
"""

from __future__ import annotations

import copy
import random
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np

from rlhf_env.types import AnyReward, Episode, Prompt
from rlhf_env.working_folder import same_folder


@contextmanager
def contained(who: str) -> Iterator[None]:
    """Put back what other people's code changes for all: the working directory, the global random generators, torch's
    default dtype, threads and gradient mode. What was changed is said once, by a RuntimeWarning that names `who`.

    torch is looked at only where somebody has imported it.
    """
    python, numpy = random.getstate(), _numpy_state()
    torch: Any = sys.modules.get("torch")
    settings = None if torch is None else _torch_settings(torch)
    try:
        with same_folder(who):
            yield
    finally:
        changed = []
        if random.getstate() != python:
            random.setstate(python)
            changed.append("the state of Python's global random generator")
        if not _same(_numpy_state(), numpy):
            np.random.set_state(numpy)  # noqa: NPY002  # global on purpose
            changed.append("the state of numpy's global random generator")
        if settings is not None:
            changed += _restored(torch, settings)
        if changed:
            warnings.warn(f"{who} changed {' and '.join(changed)}: put back", RuntimeWarning, stacklevel=3)


def _numpy_state() -> tuple[Any, ...]:
    state: tuple[Any, ...] = np.random.get_state()  # type: ignore[assignment]  # noqa: NPY002
    return state


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return one[2:] == other[2:] and np.array_equal(one[1], other[1])


def _torch_settings(torch: Any) -> tuple[Any, ...]:
    return torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), torch.get_rng_state()


def _restored(torch: Any, settings: tuple[Any, ...]) -> list[str]:
    dtype, threads, grad, generator = settings
    changed = []
    if torch.get_default_dtype() != dtype:
        torch.set_default_dtype(dtype)
        changed.append("torch's default dtype")
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
        changed.append("torch's number of threads")
    if torch.is_grad_enabled() != grad:
        torch.set_grad_enabled(grad)
        changed.append("whether torch records gradients")
    if not torch.equal(torch.get_rng_state(), generator):
        torch.set_rng_state(generator)
        changed.append("the state of torch's global random generator")
    return changed


def is_of_this_package(reward: AnyReward) -> bool:
    """Whether all of its code is ours, which tests hold to what `contained` contains and to writing into nothing that
    it is lent: no user's function or reference, and no user's task, also within a task of ours."""
    waiting: list[object] = [reward]
    while waiting:
        part = waiting.pop()
        if type(part).__module__.partition(".")[0] not in ("rlhf_env", "rlhf_rewards"):
            return False
        waiting += [getattr(part, name) for name in ("task", "function", "reference") if hasattr(part, name)]
        inside = getattr(part, "tasks", {})
        waiting += inside.values() if isinstance(inside, dict) else []
    return True


def lent(episodes: Sequence[Episode]) -> list[Episode]:
    """The episodes with tables of their own, so that whoever writes into these changes nothing for others."""
    prompts: dict[int, Prompt] = {}
    for it in episodes:
        if id(it.prompt) not in prompts:
            prompts[id(it.prompt)] = _copied(it.prompt)
    return [
        it if prompts[id(it.prompt)] is it.prompt else replace(it, prompt=prompts[id(it.prompt)]) for it in episodes
    ]


def _copied(prompt: Prompt) -> Prompt:
    if not prompt.meta and not prompt.messages:
        return prompt
    meta = dict(prompt.meta)
    with suppress(Exception):  # a column may be anything, also what cannot be copied
        meta = copy.deepcopy(meta)
    return replace(prompt, meta=meta, messages=copy.deepcopy(prompt.messages))
