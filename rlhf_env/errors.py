"""One tree of exceptions. A message says what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

Key = str | int

TRACEBACK = "RLHF_ENV_TRACEBACK"
"""The environment variable that has a command show where an error came from, and then what is wrong."""


class RlhfEnvError(Exception):
    """The root of all exceptions that this project raises on purpose; a command ends with its `exit_code`."""

    exit_code = 2


class Problem(str):
    """One finding. `keys` lead to the setting, or to the table, that it is about, from the outermost table."""

    keys: tuple[Key, ...]

    def __new__(cls, text: str, keys: Sequence[Key] = ()) -> Problem:
        problem = super().__new__(cls, text)
        problem.keys = tuple(keys)
        return problem

    def led_by(self, where: str, *, instead_of: str = "") -> Problem:
        """The same problem with `where` put before its text, unless the text begins with it already.

        If the text begins with `instead_of`, `where` replaces those words.
        """
        if self.startswith((f"{where} ", f"{where}:", f"{where},")):
            return self
        rest = f": {self}"
        if instead_of and self.startswith((f"{instead_of} ", f"{instead_of}:")):
            rest = self.removeprefix(instead_of)
        return Problem(f"{where}{',' if rest[0] == ' ' else ''}{rest}", self.keys)

    def under(self, *keys: Key) -> Problem:
        """The same, as it is seen from the table that has those keys."""
        return Problem(self, (*keys, *self.keys))


class ConfigError(RlhfEnvError, ValueError):
    """A setting, a file or an argument is wrong. `problems` lists every problem."""

    def __init__(self, *problems: str) -> None:
        self.problems: tuple[str, ...] = problems
        super().__init__("; ".join(problems))

    def change(self, how: Callable[[Problem], Problem]) -> None:
        """Replace each problem by what `how` makes of it; the caller then raises again."""
        self.problems = tuple(how(it if isinstance(it, Problem) else Problem(it)) for it in self.problems)
        self.args = ("; ".join(self.problems),)

    def found_in(self, where: str) -> None:
        """Put `where` before each problem that does not begin with it; the caller then raises again."""
        self.change(lambda problem: problem.led_by(where))


class UnknownName(ConfigError):
    """A name that nobody registered. The message has the nearest known name, and names plugins that failed to load."""

    def __init__(self, kind: str, name: str, known: Iterable[str], absent: Iterable[str] = ()) -> None:
        self.kind, self.name = kind, name
        super().__init__(Problem("; ".join([f"unknown {kind} {name!r}{did_you_mean(name, known)}", *absent])))


class PluginError(ConfigError):
    """A plugin cannot be loaded, or two plugins have the same name."""


class MissingExtra(ConfigError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f'{what} is not installed: pip install "rlhf-env[{extra}]"')


class DataError(ConfigError):
    """Input data (a prompt, a preference, a model folder, a checkpoint) that cannot be used."""


class LeaseExpired(DataError):
    """A vote that came after the item was given to somebody else. It was not counted; ask for the next item."""


class NotAsked(DataError):
    """A vote on what was never put before this person, or in another order. It was not counted."""


class EnvironmentMisuse(RlhfEnvError, RuntimeError):
    """The environment was called out of order, or with an action that is not in its action space."""


class RewardError(RlhfEnvError):
    """A reward part failed during a run: it raised, or its answer has the wrong length or is not finite."""

    exit_code = 3


class ContractError(RlhfEnvError, AssertionError):
    """A check of `rlhf_env.testing` failed: a reward, task or agent breaks its contract. `rule` names the rule, and
    `remedy` says how to mend it, where that is known."""

    exit_code = 1

    def __init__(self, rule: str, message: str, remedy: str = "") -> None:
        self.rule = rule
        self.remedy = ""
        super().__init__(f"[{rule}] {message}")
        self.add_remedy(remedy)

    def add_remedy(self, remedy: str) -> None:
        """Say how to mend it, unless that is said already."""
        if remedy and not self.remedy:
            self.remedy = remedy
            self.args = (f"{self.args[0]}. To mend it: {remedy}",)


class RunFailed(RlhfEnvError):
    """A run had to stop. Its last checkpoint is untouched."""

    exit_code = 3


class WriterFailed(RunFailed):
    """The engine that writes for a policy failed, or what it wrote is too far from the policy to learn from."""


class DiskRefused(RunFailed):
    """A file cannot be written, because the disk is full, for example. The earlier files are whole."""


def did_you_mean(name: str, known: Iterable[str], also: Iterable[str] = ()) -> str:
    """The end of a message about an unknown name: `": did you mean 'grpo'? Known: dpo, grpo, ppo"`.

    Names in `also` would be taken too and are guessed at; there are too many of them to be listed.
    """
    names: Sequence[str] = sorted(set(known))
    near = difflib.get_close_matches(name, sorted({*names, *also}), n=1, cutoff=0.5)
    guess = f": did you mean {near[0]!r}?" if near else "."
    return f"{guess} Known: {', '.join(names) or 'none'}"


@contextmanager
def under(*keys: Key) -> Iterator[None]:
    """Problems raised inside get `keys` before their own: they are about a setting in the table at these keys."""
    try:
        yield
    except ConfigError as error:
        error.change(lambda problem: problem.under(*keys))
        raise
