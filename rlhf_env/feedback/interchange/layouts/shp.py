"""Stanford Human Preferences: two comments on a Reddit post, and which of them readers voted up further."""

from __future__ import annotations

import math

from rlhf_env.feedback.interchange.gathering import Reading
from rlhf_env.feedback.interchange.layouts.fields import Fields, annotator_of, by_person, prompt_of
from rlhf_env.feedback.interchange.layouts.layout import UNCHECKED, Layout, columns_of, unread
from rlhf_env.feedback.judgements import Judgement
from rlhf_env.feedback.kinds import Comparison, Verdict
from rlhf_env.types import JsonView

_SCORES = ("score_A", "score_B")
_WRITER = "a reader of Reddit"


def _read(row: JsonView, reading: Reading) -> list[Judgement]:
    fields = Fields(row)
    prompt = prompt_of(fields.text("history"))
    responses = [by_person(fields.text(name), _WRITER) for name in ("human_ref_A", "human_ref_B")]
    a_is_better = fields.flag("labels")
    margin = _margin(fields, a_is_better)
    fields.done()
    verdict: Verdict = "first" if a_is_better else "second"
    return [Comparison(prompt, responses[0], responses[1], verdict, annotator_of(reading), margin=margin)]


def _margin(fields: Fields, a_is_better: bool) -> float | None:
    """The logarithm of how many times more votes the better comment has: 0 where both have as many."""
    ratio = None
    if all(fields.row.get(name) is not None for name in _SCORES):
        a, b = (fields.number(name) for name in _SCORES)
        better, worse = (a, b) if a_is_better else (b, a)
        if better < worse:
            fields.complain(
                "labels", f"prefers the comment with fewer votes, {better:g} against {worse:g}: which is it?"
            )
        ratio = better / worse if worse > 0 else None
    if fields.row.get("score_ratio") is not None:
        ratio = fields.number("score_ratio")
        if ratio < 1 and not fields.problems:
            fields.complain("score_ratio", f"{ratio:g} is below 1, and the better comment has the more votes")
    return math.log(ratio) if ratio is not None and ratio >= 1 else None


SHP = Layout(
    name="shp",
    sets="stanfordnlp/SHP, stanfordnlp/SHP-2",
    known_by=("history", "human_ref_A", "human_ref_B", "labels"),
    columns=(
        *columns_of(
            "card",
            history="the prompt: the post",
            human_ref_A="the first response",
            human_ref_B="the second response",
            labels=("the better one: 1 is A, 0 is B", "number"),
            score_ratio=("its natural logarithm is the margin", "number"),
            score_A=(
                "with `score_B`: must not be against `labels`; the ratio where `score_ratio` is missing",
                "number",
            ),
            score_B=("see `score_A`", "number"),
        ),
        *unread(
            "card",
            "post_id",
            "domain",
            "upvote_ratio",
            "c_root_id_A",
            "c_root_id_B",
            "created_at_utc_A",
            "created_at_utc_B",
            "seconds_difference",
        ),
    ),
    sources={
        "card": "huggingface.co/datasets/stanfordnlp/SHP at 534d986, Data Structure; that SHP-2 has the same columns: "
        + UNCHECKED
    },
    read=_read,
)
