"""Judgements of pairs that were read off numbers: strengths with a sign, and scores of several responses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from rlhf_env.feedback.interchange.gathering import Reading
from rlhf_env.feedback.judgements import Response, digest
from rlhf_env.feedback.kinds import Comparison, Verdict
from rlhf_env.types import Prompt


def comparison_by(
    strength: float, prompt: Prompt, first: Response, second: Response, annotator: str, *, note: str = ""
) -> Comparison:
    """A strength above 0 prefers the first response, one below 0 the second, and 0 is a tie; its size is the margin."""
    verdict: Verdict = "first" if strength > 0 else "second" if strength < 0 else "tie"
    margin = abs(strength) if strength else None
    return Comparison(prompt, first, second, verdict, annotator, margin=margin, note=note)


def comparisons_of(
    prompt: Prompt,
    scored: Sequence[tuple[Response, float]],
    annotator: str,
    reading: Reading,
    *,
    criterion: str = "overall",
    created: str = "",
    note: str = "",
) -> list[Comparison]:
    """Every pair of the responses that one person scored on one scale; the difference of two scores is the margin.

    The pairs are one judgement, as those of a ranking are: one group, and together the weight of one comparison. A
    pair of equal texts is passed over, because no score says which of them is better.
    """
    pairs = list(combinations(scored, 2))
    told = [(response.text, score) for response, score in scored]
    group = digest(prompt.text, told, annotator, criterion) if len(pairs) > 1 else ""
    made = []
    for (first, high), (second, low) in pairs:
        if first.text == second.text:
            reading.passes_over("pairs of two equal responses")
            continue
        margin = abs(high - low) or None
        verdict: Verdict = "first" if high > low else "second" if low > high else "tie"
        made.append(
            Comparison(
                prompt,
                first,
                second,
                verdict,
                annotator,
                criterion=criterion,
                weight=1 / len(pairs),
                created=created,
                group=group,
                margin=margin,
                note=note,
            )
        )
    return made
