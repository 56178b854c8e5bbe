"""What a loss is, what it declares, and how a table of settings names one.

A token loss is a function of a `TokenBatch`, a pair loss one of `Pairs`; further parameters, with defaults, are its
settings. What it needs beyond its settings it declares by a decorator:

    @TokenLoss(advantages="group", aggregation="token-mean")
    def unclipped(tokens: TokenBatch, *, scale: float = 1.0) -> Tensor:
        return -scale * tokens.advantages * tokens.log_ratio.exp()

`loss = "cispo"` names one that is registered, `loss = { name = "cispo", cap = 2.0 }` has settings too, and
`loss = { function = "mine.py:unclipped" }` is code of one's own. A function that declares nothing is given whatever
advantages the agent has, and its tokens add up as the agent's do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from rlhf_env import plugins
from rlhf_env.errors import ConfigError, PluginError, Problem, did_you_mean
from rlhf_env.learning.functional import Aggregation
from rlhf_env.own_code import OwnCode
from rlhf_env.settings import checked, hints_of

AdvantageKind = Literal["agent", "group", "group std", "group mean", "batch std"]
LossSpec = str | dict[str, Any]
"""How a file names a loss: its name, or a table with a name (or code of one's own) and settings."""
_Function = TypeVar("_Function", bound=Callable[..., Any])
_DECLARED = "declared_loss"


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """What a token loss reads, [B, L] each; only where `actions` is True does anything count."""

    logprobs: Tensor
    """log pi of each token under the policy that learns."""
    log_ratio: Tensor
    """log pi - log mu, where mu is the policy that wrote the token and gets no gradient."""
    advantages: Tensor
    actions: Tensor
    """bool: tokens that the agent wrote."""
    left_out: Tensor | None = None
    """bool: tokens that the loss chose to learn nothing from, where it `leaves_out` some."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """What a pair loss reads, [P] each."""

    chosen: Tensor
    """log pi(answer) - log reference(answer) of the preferred answer; log pi(answer) if the loss has no reference."""
    rejected: Tensor
    chosen_tokens: Tensor
    """How many tokens the preferred answer has."""
    rejected_tokens: Tensor
    beta: float
    """The weight of the environment's KL penalty."""
    wrong: Tensor | float = 0.0
    """The probability that the label is wrong."""
    offset: Tensor | float | None = None
    """By how much beta * (chosen - rejected) should be above 0."""


LeavesOut = Callable[..., tuple[Tensor, int]]
"""From a `TokenBatch` of a whole gradient step and the settings to candidates bool[B, L], and how many of them, drawn
at random, are left out."""


@dataclass(frozen=True, kw_only=True)
class TokenLoss:
    """What a token loss declares; put above its function, it is a decorator.

    `advantages` are what it multiplies: the agent's own ("agent"); the return less its group's mean ("group"), divided
    by the group's standard deviation ("group std") or by its mean reward ("group mean"); or the agent's own, then
    shifted and scaled to mean 0 and variance 1 over the tokens of the batch ("batch std"). `aggregation` is how tokens
    add up (None: as the agent's do).
    """

    advantages: AdvantageKind = "agent"
    aggregation: Aggregation | None = None
    leaves_out: LeavesOut | None = None
    check: Callable[[Mapping[str, Any]], Iterator[Problem]] | None = None
    """Says what is wrong between its settings."""
    paper: str = ""
    equation: str = ""
    purpose: str = ""
    """What it is for, for the table in docs/losses.md."""
    differs: str = ""
    """Where a well-known library's code differs from its paper, or from this."""

    def __call__(self, function: _Function) -> _Function:
        return _declare(function, self)

    @property
    def groups(self) -> bool:
        """Whether answers to one prompt are compared by it, whatever the agent does."""
        return self.advantages.startswith("group")


@dataclass(frozen=True, kw_only=True)
class PairLoss:
    """What a pair loss declares; put above its function, it is a decorator.

    `reference`: whether it reads log-ratios to the reference; else log-probabilities, and no reference is asked.
    `wrong_labels`, `offsets`: whether it reads `Pairs.wrong` and `Pairs.offset`. `per_token`: it divides by lengths
    itself.
    """

    reference: bool = True
    wrong_labels: bool = False
    offsets: bool = False
    per_token: bool = False
    check: Callable[[Mapping[str, Any]], Iterator[Problem]] | None = None
    paper: str = ""
    equation: str = ""
    purpose: str = ""
    differs: str = ""

    def __call__(self, function: _Function) -> _Function:
        return _declare(function, self)


def _declare(function: _Function, declared: TokenLoss | PairLoss) -> _Function:
    setattr(function, _DECLARED, declared)
    return function


@dataclass(frozen=True, eq=False)
class NamedTokenLoss:
    """A token loss with its settings, as an agent uses it."""

    name: str
    function: Callable[..., Tensor]
    declared: TokenLoss
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, tokens: TokenBatch) -> Tensor:
        """[B, L]: the loss of each token. Raises PluginError if the function gives something else."""
        terms = self.function(tokens, **self.settings)
        if not isinstance(terms, Tensor) or terms.shape != tokens.actions.shape:
            raise _wrong_result(self.name, terms, "token", tuple(tokens.actions.shape))
        return terms

    @property
    def draws(self) -> bool:
        """Whether it leaves tokens out at random, for which it looks at a whole gradient step at first."""
        return self.declared.leaves_out is not None

    def candidates(self, tokens: TokenBatch) -> tuple[Tensor, int]:
        """bool[B, L]: the tokens of a whole step of which so many are to be left out."""
        if self.declared.leaves_out is None:
            return torch.zeros_like(tokens.actions), 0
        return self.declared.leaves_out(tokens, **self.settings)

    def left_out(self, tokens: TokenBatch, stream: np.random.Generator) -> Tensor:
        """bool[B, L]: the tokens of a whole step that are left out, drawn from `stream`.

        Drawn in the order of their log-probabilities and not of their places: the layout of a batch decides nothing.
        """
        among, count = self.candidates(tokens)
        places = among.nonzero()
        if not len(places) or not count:
            return torch.zeros_like(among)
        keys = torch.stack([tokens.logprobs.detach()[among], tokens.advantages.expand_as(among)[among]]).cpu().numpy()
        places = places[torch.from_numpy(np.lexsort(keys.round(9))).to(places.device)]
        drawn = places[torch.from_numpy(stream.permutation(len(places))[:count]).to(places.device)]
        taken = torch.zeros_like(among)
        taken[drawn[:, 0], drawn[:, 1]] = True
        return taken


@dataclass(frozen=True, eq=False)
class NamedPairLoss:
    """A pair loss with its settings, as an agent uses it."""

    name: str
    function: Callable[..., Tensor]
    declared: PairLoss
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, pairs: Pairs) -> Tensor:
        """[P]: the loss of each pair. Raises PluginError if the function gives something else."""
        terms = self.function(pairs, **self.settings)
        if not isinstance(terms, Tensor) or terms.shape != pairs.chosen.shape:
            raise _wrong_result(self.name, terms, "pair", tuple(pairs.chosen.shape))
        return terms


def _wrong_result(name: str, terms: object, of: str, shape: tuple[int, ...]) -> PluginError:
    found = f"a tensor of shape {tuple(terms.shape)}" if isinstance(terms, Tensor) else f"{type(terms).__name__}"
    return PluginError(f"the {of} loss {name!r} gave {found}: it must give one number for each {of}, of shape {shape}")


# ---------------------------------------------------------------- from a table


def load_token_loss(spec: LossSpec) -> NamedTokenLoss:
    """The token loss that a table names. `advantages` and `aggregation` in it stand for what the loss declares.

    Raises ConfigError with every problem, UnknownName, or PluginError for code that is no loss.
    """
    name, function, table = _named("token loss", spec)
    declared = getattr(function, _DECLARED, None)
    if not isinstance(declared, TokenLoss):
        declared = TokenLoss()
    problems: list[Problem] = []
    stands: dict[str, Any] = {}
    for key, hint in (("advantages", AdvantageKind), ("aggregation", Aggregation)):
        if key in table:
            stands[key], wrong = checked(table.pop(key), hint, (key,))
            problems += wrong
    settings = _settings("token loss", name, function, table, declared, problems, also=("advantages", "aggregation"))
    return NamedTokenLoss(name, function, replace(declared, **stands), settings)


def load_pair_loss(spec: LossSpec) -> NamedPairLoss:
    """The pair loss that a table names. Raises as `load_token_loss` does."""
    name, function, table = _named("pair loss", spec)
    declared = getattr(function, _DECLARED, None)
    if not isinstance(declared, PairLoss):
        declared = PairLoss()
    return NamedPairLoss(name, function, declared, _settings("pair loss", name, function, table, declared, []))


def _named(kind: plugins.PluginKind, spec: LossSpec) -> tuple[str, Callable[..., Tensor], dict[str, Any]]:
    """Its name, its function, and the rest of the table."""
    table: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = plugins.name_in(table, kind)
    if name is None:
        raise ConfigError(Problem(f"a {kind} needs a name: one of {', '.join(plugins.host().names(kind))}", ("name",)))
    function = plugins.host().load(kind, name)
    if not callable(function) or isinstance(function, type) or not _reads_a_batch(function):
        code = name if isinstance(name, OwnCode) else OwnCode(f"{kind}:{name}")
        raise plugins.wrong_kind(kind, code, function)
    return (name.label if isinstance(name, OwnCode) else name), function, table


def _reads_a_batch(function: Callable[..., Any]) -> bool:
    """Whether it has one parameter without a default, the first."""
    parameters = list(inspect.signature(function).parameters.values())
    required = [each for each in parameters if each.default is each.empty and each.kind is not each.VAR_KEYWORD]
    return len(required) == 1 and required[0] is parameters[0] and required[0].kind is not required[0].KEYWORD_ONLY


def _settings(
    kind: str,
    name: str,
    function: Callable[..., Any],
    table: Mapping[str, Any],
    declared: TokenLoss | PairLoss,
    problems: list[Problem],
    also: Sequence[str] = (),
) -> dict[str, Any]:
    """The checked settings of a loss, its defaults with them. Raises ConfigError with what is wrong, `problems` too."""
    found: list[Problem] = []
    parameters = dict(list(inspect.signature(function).parameters.items())[1:])
    hints = hints_of(function)
    settings = {key: each.default for key, each in parameters.items() if each.default is not each.empty}
    for key, value in table.items():
        if key not in settings:
            found.append(Problem(f"no setting {key!r}{did_you_mean(key, [*settings, *also])}", (key,)))
            continue
        settings[key], wrong = checked(value, hints[key], (key,)) if key in hints else (value, [])
        found += wrong
    if not found and not problems and declared.check is not None:
        found += declared.check(settings)
    if problems or found:
        raise ConfigError(*(Problem(f"{kind} {name!r}: {each}", each.keys) for each in [*problems, *found]))
    return settings


# ---------------------------------------------------------------- in the settings of an agent


def problems_of_token_loss(
    spec: LossSpec, agent: str, understands: Sequence[AdvantageKind], own: Mapping[str, tuple[object, object]]
) -> Iterator[Problem]:
    """What is wrong with `loss = ...` of an agent, which `understands` these advantages.

    `own`, by name, are (value, default) of the settings that belong to the agent's own loss.
    """
    try:
        loss = load_token_loss(spec)
    except ConfigError as error:
        for problem in error.problems:
            yield Problem(f"loss: {problem}", ("loss", *(problem.keys if isinstance(problem, Problem) else ())))
        return
    if loss.declared.advantages not in understands:
        able = ", ".join(map(repr, understands))
        yield Problem(
            f"loss: {loss.name!r} multiplies advantages of the kind {loss.declared.advantages!r}, and {agent} has "
            f"{able}: take grpo, or another loss (docs/losses.md)",
            ("loss",),
        )
    used = {"scale_by_std": loss.declared.advantages == "agent", "aggregation": loss.declared.aggregation is None}
    for name, (value, default) in own.items():
        if value != default and not used.get(name, False):
            instead = f"loss = {{ name = {loss.name!r}, ... }}"
            said = (
                f"{name} belongs to {agent}'s own loss: leave it out; what this loss can be set to stands in {instead}"
            )
            yield Problem(said, (name,))
