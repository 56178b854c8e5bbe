"""What the annotation page asks for: a form of inputs, which the page draws without knowing the kind of judgement.

    ChoiceInput   one of a few options, each with a key
    OrderInput    the responses put in order, the best first, with ties
    TextInput     words

A form of one input without a name has that input's value as its answer, and a choice is then a bar of buttons, each of
which judges at once. A form of named inputs has an object of their values as its answer, and a button to submit it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf_env.errors import ConfigError

OptionValue = bool | int | str


@dataclass(frozen=True, kw_only=True)
class Option:
    """One thing that can be chosen."""

    value: OptionValue
    """What the answer holds."""
    label: str
    """What the page shows."""
    key: str = ""
    """The key that chooses it, where a choice judges at once."""
    under: int | None = None
    """The response (0, 1, ...) that its button stands under; None: the bar at the bottom."""
    margin: float | None = None
    """By how much the response is better, where the option says so."""


@dataclass(frozen=True, kw_only=True)
class ChoiceInput:
    """One of `options`. In a form of several inputs the digits 1, 2, ... choose."""

    type: ClassVar[str] = "choice"
    options: tuple[Option, ...]
    name: str = ""
    """Under which name an object of answers holds the value; "" where the answer is the value itself."""
    label: str = ""
    """What is asked, in a form of several inputs."""
    guidelines: str = ""
    steps: bool = False
    """The options are steps of one scale, from the worst to the best."""


@dataclass(frozen=True, kw_only=True)
class OrderInput:
    """The place of each response in the order shown, 1 the best; equal places are ties."""

    type: ClassVar[str] = "order"
    name: ClassVar[str] = ""


@dataclass(frozen=True, kw_only=True)
class TextInput:
    """Some words, or none."""

    type: ClassVar[str] = "text"
    name: str = ""
    label: str = ""
    guidelines: str = ""


Input = ChoiceInput | OrderInput | TextInput


@dataclass(frozen=True, kw_only=True)
class Form:
    """What people see of an item beside its texts."""

    question: str
    inputs: tuple[Input, ...]
    guidelines: str = ""
    """Shown under the question."""
    submit: str = "Submit"
    """The label of the button that submits several inputs."""
    shortcuts: tuple[tuple[str, str], ...] = ()
    """What the page says of its keys, as (key, meaning); by default it says what its inputs do."""

    def __post_init__(self) -> None:
        names = [one.name for one in self.inputs]
        if names != [""] and ("" in names or len(set(names)) < len(names) or not names):
            raise ConfigError(f"form: its inputs are {names}: give one without a name, or several with different names")


def by_criterion(name: str) -> str:
    """The end of a question: nothing for the criterion "overall"."""
    return "" if name == "overall" else f" by “{name}”"
