"""Bugs of whoever reads published preference sets: a sign, a scale, a missing rating, who judged what."""

from __future__ import annotations

from bugs.mutant import Mutant

_LAYOUTS, _SEES = "rlhf_env/feedback/interchange/layouts", "tests/feedback/interchange/test_layouts.py"

MUTANTS = (
    Mutant(
        "K15",
        "SHP's label 1 is the second comment",
        f"{_LAYOUTS}/shp.py",
        '"first" if a_is_better else "second"',
        '"second" if a_is_better else "first"',
        _SEES,
    ),
    Mutant(
        "K15",
        "a negative strength of HelpSteer prefers the second response",
        f"{_LAYOUTS}/helpsteer.py",
        "comparison_by(-vote, ",
        "comparison_by(vote, ",
        _SEES,
    ),
    Mutant(
        "K15",
        "the lowest rank of Nectar is the worst",
        f"{_LAYOUTS}/nectar.py",
        "places = sorted({rank for _, rank in answers})",
        "places = sorted({rank for _, rank in answers}, reverse=True)",
        _SEES,
    ),
    Mutant(
        "K15",
        "the choice of a summary is turned round",
        f"{_LAYOUTS}/summarize.py",
        '"second" if choice else "first"',
        '"first" if choice else "second"',
        _SEES,
    ),
    Mutant(
        "K15",
        "a tie of WebGPT is a win of the first",
        f"{_LAYOUTS}/scores.py",
        'verdict: Verdict = "first" if strength > 0 else',
        'verdict: Verdict = "first" if strength >= 0 else',
        _SEES,
    ),
    Mutant(
        "K15",
        "six pairs of one turn weigh as six comparisons",
        f"{_LAYOUTS}/scores.py",
        "weight=1 / len(pairs),",
        "weight=1.0,",
        _SEES,
    ),
    Mutant(
        "K15",
        "N/A is an aspect's rating",
        f"{_LAYOUTS}/ultrafeedback.py",
        '_NO_RATING = ("N/A", "", None)',
        '_NO_RATING = ("", None)',
        _SEES,
    ),
    Mutant(
        "K15",
        "equal ratings of a binarised pair are a preference",
        f"{_LAYOUTS}/ultrafeedback.py",
        "if better is not None and better == worse else comparison",
        "if False else comparison",
        _SEES,
    ),
    Mutant(
        "K15",
        "both bad is a tie",
        f"{_LAYOUTS}/arena.py",
        '"tie (bothbad)": "both bad"',
        '"tie (bothbad)": "tie"',
        _SEES,
    ),
    Mutant(
        "K15",
        "a later turn is asked without the conversation before it",
        f"{_LAYOUTS}/prism.py",
        "prompt_of(talk)",
        "prompt_of(talk[-1:])",
        _SEES,
    ),
    Mutant(
        "K15",
        "deleted replies are ranked",
        f"{_LAYOUTS}/oasst.py",
        'elif reply.row.get("deleted") is True or',
        "elif False or",
        _SEES,
    ),
    Mutant(
        "K15",
        "the annotators of two rows are the same people",
        f"{_LAYOUTS}/fields.py",
        "{digest(*texts)[:8]}/{place}",
        "{place}",
        _SEES,
    ),
)
