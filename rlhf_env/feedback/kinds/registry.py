"""Which kinds of judgement there are: the built-in ones, and those of plugins.

A built-in kind is a line here. A plugin registers `"module:THE_KIND"` under the kind's name by the hook
`register_judgements`; a script calls `rlhf_env.plugins.register_judgement`. Files and stores that hold built-in kinds
only are read without asking any plugin.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rlhf_env import plugins
from rlhf_env.errors import PluginError
from rlhf_env.feedback import findings
from rlhf_env.feedback.judgements import Judgement, Preference
from rlhf_env.feedback.kinds.abstention import ABSTENTION
from rlhf_env.feedback.kinds.comparison import COMPARISON
from rlhf_env.feedback.kinds.criteria import CRITERIA
from rlhf_env.feedback.kinds.kind import JudgementKind, ScoredResponse
from rlhf_env.feedback.kinds.ranking import RANKING
from rlhf_env.feedback.kinds.rating import RATING, rating_preferences

_BUILT_IN = {kind.name: kind for kind in (COMPARISON, RATING, RANKING, CRITERIA, ABSTENTION)}
_BY_CLASS = {kind.judgement: kind for kind in _BUILT_IN.values()}


def asked_kind_names() -> list[str]:
    """The kinds that people can be asked for, the built-in ones first; no plugin is loaded for it."""
    return [name for name in kind_names() if name not in _BUILT_IN or _BUILT_IN[name].is_asked]


def kind_names() -> list[str]:
    """The built-in kinds first."""
    return [*_BUILT_IN, *(name for name in plugins.host().names("judgement") if name not in _BUILT_IN)]


def kind_named(name: str) -> JudgementKind:
    """Raises DataError for a kind that nobody registered, PluginError for one that cannot be had."""
    if isinstance(name, str) and name in _BUILT_IN:
        return _BUILT_IN[name]
    findings.refuse(findings.one_of("kind", name, kind_names()))
    kind = plugins.host().load("judgement", name)
    if not isinstance(kind, JudgementKind) or kind.name != name:
        raise PluginError(f"judgement {name!r}: expected a JudgementKind of that name, got {kind!r:.200}")
    return kind


def kinds() -> list[JudgementKind]:
    return [kind_named(name) for name in kind_names()]


def kind_of(judgement: Judgement) -> JudgementKind:
    """Raises TypeError for what is no judgement."""
    if (built_in := _BY_CLASS.get(type(judgement))) is not None:
        return built_in
    for kind in kinds():
        if kind.judgement is type(judgement):
            return kind
    raise TypeError(f"{type(judgement).__name__} is no kind of judgement: register it (rlhf_env.plugins)")


def preferences_of(judgements: Iterable[Judgement]) -> Iterator[Preference]:
    """The weighted pairs of judgements of any kind.

    Those of comparisons and rankings come in order; those of ratings, which need all ratings of a prompt, come last.
    """
    ratings: list[ScoredResponse] = []
    for judgement in judgements:
        kind = kind_of(judgement)
        yield from kind.pairs(judgement)
        ratings += kind.ratings(judgement)
    yield from rating_preferences(ratings)
