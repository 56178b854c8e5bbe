"""What keeps an installed distribution from being a plugin, in words: no hook that is called, say."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from importlib.metadata import Distribution
from types import ModuleType

from rlhf_env.errors import did_you_mean

_ALIKE = 0.85  # "rlhf_envs" and "rhlf_env" are
_HOW = "put `@hookimpl` (from rlhf_env.plugins) above `def register_rewards(register):`, or another hook"


def fault_of_hooks(module: object, marked: Sequence[str], hooks: Collection[str]) -> str:
    """Why a module that could be imported offers nothing; "" where a hook of it is called.

    `marked`: the names of its functions that are marked @hookimpl; `hooks`: those that are called.
    """
    unknown = sorted(set(marked) - set(hooks))
    if unknown:
        return f"no hook is called {unknown[0]!r}{did_you_mean(unknown[0], hooks)}"
    if marked:
        return ""
    unmarked = [name for name in vars(module) if name.startswith("register_")] if isinstance(module, ModuleType) else []
    if unmarked:
        return f"{unmarked[0]} is not marked, so nobody calls it: {_HOW}"
    if isinstance(module, ModuleType) and getattr(module, "__file__", None) is None:
        return f"the folder {module.__name__} has no __init__.py, so there is no hook in it: {_HOW} there"
    return f"it has no hook, so it offers nothing: {_HOW}"


def fault_of_group(group: str, ours: str) -> str:
    """Why nobody asks for entry points of a group that is almost `ours`; "" of any other."""
    letters, wanted = (re.sub(r"[^a-z]", "", name.lower()) for name in (group, ours))
    alike = letters.startswith(wanted) or difflib.SequenceMatcher(None, letters, wanted).ratio() > _ALIKE
    if group == ours or not alike:
        return ""
    return f"its entry points are in the group {group!r}, which nobody reads: [project.entry-points.{ours}] is read"


def fault_of_version(wanted_by: Distribution | None, distribution: str, version: str) -> str:
    """What a plugin's distribution asks of the version of ours, where this one is not it; else "".

    An installer looks at that once. Later one of the two may be replaced without the other.
    """
    from packaging.requirements import InvalidRequirement, Requirement

    for text in (wanted_by.requires or []) if wanted_by is not None else []:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        ours = re.sub(r"[-_.]+", "-", requirement.name).lower() == distribution
        if ours and not requirement.specifier.contains(version, prereleases=True):
            return f"it asks for {distribution}{requirement.specifier}, and this is {version}: pip install another one"
    return ""
