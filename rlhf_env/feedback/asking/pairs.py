"""From responses to preference pairs: which two are put before the annotator, and in which order."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import numpy as np

from rlhf_env.errors import ConfigError
from rlhf_env.feedback.asking.annotators import Annotator, answers_to_each
from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.feedback.kinds import Comparison
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.types import Episode, Prompt

Authored = tuple[Episode, Author]
"""A finished response and who wrote it (the policy's name and the temperature it was sampled at)."""


def collect_pairs(
    candidates: Iterable[Authored],
    annotator: Annotator,
    rng: np.random.Generator,
    *,
    store: PreferenceStore | None = None,
    pairs_per_prompt: int | None = 1,
    criterion: str = "overall",
    created: str = "",
) -> list[Comparison]:
    """Have `annotator` compare responses to the same prompt; returns the judgements, and adds them to `store`.

    Of K different responses to one prompt, `pairs_per_prompt` of the K(K-1)/2 pairs are drawn without replacement
    (None: all of them). Responses that say the same are one, a prompt left with a single one gives no pair, and of each
    pair a coin decides which is shown first. Candidates may come in any order; prompts are taken in the order seen.

    One pair per prompt makes the pairs independent of each other, as intervals on accuracy assume. Each verdict weighs
    1: they are separate judgements, each with its own noise (the K(K-1)/2 pairs read off one *ranking* are not).
    """
    if pairs_per_prompt is not None and pairs_per_prompt < 1:
        raise ConfigError(
            f"pairs_per_prompt: {pairs_per_prompt!r} is not a number of at least 1, or None for all pairs"
        )
    shown: list[tuple[Authored, Authored]] = []
    for group in _by_prompt(candidates):
        possible = list(combinations(group, 2))
        count = len(possible) if pairs_per_prompt is None else min(pairs_per_prompt, len(possible))
        for i in rng.permutation(len(possible))[:count]:
            first, second = possible[i]
            shown.append((first, second) if rng.random() < 0.5 else (second, first))
    verdicts = answers_to_each(annotator, "compare", [(first[0], second[0]) for first, second in shown], rng)
    comparisons = [
        Comparison(
            prompt=first[0].prompt,
            first=Response.from_episode(*first),
            second=Response.from_episode(*second),
            verdict=verdict,
            annotator=annotator.name,
            criterion=criterion,
            created=created,
        )
        for (first, second), verdict in zip(shown, verdicts, strict=True)
    ]
    if store is not None:
        store.add(comparisons)
    return comparisons


def _by_prompt(candidates: Iterable[Authored]) -> list[list[Authored]]:
    """The candidates of each prompt, without those that say what an earlier one said."""
    groups: dict[tuple[str, str], dict[tuple[int, ...], Authored]] = {}
    for episode, author in candidates:
        prompt: Prompt = episode.prompt
        tokens = tuple(episode.response_ids.tolist())
        groups.setdefault((prompt.id, prompt.text), {}).setdefault(tokens, (episode, author))
    return [list(group.values()) for group in groups.values()]
