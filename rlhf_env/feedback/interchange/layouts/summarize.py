"""OpenAI's summaries judged by people (Stiennon et al. 2020, 2009.01325): comparisons, and scores on several axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rlhf_env.errors import DataError
from rlhf_env.feedback.interchange.gathering import Located, Reading
from rlhf_env.feedback.interchange.layouts.fields import Fields, annotator_of, by_policy, prompt_of
from rlhf_env.feedback.interchange.layouts.layout import UNCHECKED, Layout, PublishedColumn, columns_of, unread
from rlhf_env.feedback.interchange.layouts.scores import comparisons_of
from rlhf_env.feedback.judgements import Judgement, Response
from rlhf_env.feedback.kinds import Comparison
from rlhf_env.types import JsonView, Prompt

_README = "README of github.com/openai/summarize-from-feedback at 065ea4e, section Human feedback data"
_TRL = "examples/datasets/tldr_preference.py of TRL at 031b6de, which makes the same prompts"
_AXES = ("overall", "accuracy", "coverage", "coherence")
_LOWEST, _HIGHEST = 1, 7


def _prompt(info: Fields) -> Prompt:
    """The post or the article in the layout that the paper's models read."""
    if info.row.get("post") is None and info.row.get("article") is not None:
        return prompt_of(f"Article:\n{info.text('article')}\n\nTL;DR:")
    said = {name: info.text(name) for name in ("subreddit", "title", "post")}
    return prompt_of(f"SUBREDDIT: r/{said['subreddit']}\n\nTITLE: {said['title']}\n\nPOST: {said['post']}\n\nTL;DR:")


def _comparison(row: JsonView, reading: Reading) -> list[Judgement]:
    fields = Fields(row)
    prompt = _prompt(fields.inside("info"))
    summaries = fields.objects("summaries")
    if len(summaries) != 2 and not fields.problems:
        fields.complain("summaries", f"expected 2, got {len(summaries)}")
    choice = fields.whole("choice", 0, 1)
    said = [by_policy(one.text("text"), one.words("policy"), reading) for one in summaries]
    notes = [f"of summary {place}: {note}" for place, one in enumerate(summaries, 1) if (note := one.words("note"))]
    if isinstance(row.get("extra"), Mapping) and row["extra"].get("confidence") is not None:
        notes.append(f"confidence {fields.inside('extra').number('confidence'):g}")
    who = fields.words("worker")
    fields.done()
    who = annotator_of(reading, who)
    return [Comparison(prompt, said[0], said[1], "second" if choice else "first", who, note="\n".join(notes))]


@dataclass(frozen=True)
class _Scored:
    """One summary, and what a worker thinks of it."""

    prompt: Prompt
    response: Response
    scores: Mapping[str, int]
    worker: str
    note: str
    others: tuple[str, ...]
    """Axes that are no score."""


def _scored(row: JsonView, source: str) -> _Scored:
    fields = Fields(row)
    prompt = _prompt(fields.inside("info"))
    summary = fields.inside("summary")
    axes = summary.inside("axes")
    made = _Scored(
        prompt=prompt,
        response=by_policy(summary.text("text"), summary.words("policy"), Reading(source=source)),
        scores={name: axes.whole(name, _LOWEST, _HIGHEST) for name in _AXES if axes.row.get(name) is not None},
        worker=fields.words("worker"),
        note=summary.words("note"),
        others=tuple(name for name, said in axes.row.items() if name not in _AXES and said is not None),
    )
    fields.done()
    return made


def _by_post_and_worker(rows: Iterator[Located], reading: Reading) -> list[Located]:
    """The summaries that one worker scored of one post: a worker's scores are compared with each other alone."""
    together: dict[tuple[str, str], list[_Scored]] = {}
    units: list[Located] = []
    for where, row in rows:
        try:
            if isinstance(row, DataError):
                raise row
            one = _scored(row, reading.source)
        except DataError as error:
            units.append((where, error))
            continue
        key = (one.prompt.text, one.worker)
        if key not in together:
            together[key] = []
            units.append((where, together[key]))
        together[key].append(one)
    return units


def _axes(summaries: Sequence[_Scored], reading: Reading) -> list[Judgement]:
    first = summaries[0]
    for name in (name for one in summaries for name in one.others):
        reading.passes_over(f"answers on the axis {name!r}, which are no scores from {_LOWEST} to {_HIGHEST}")
    if len(summaries) == 1:
        reading.passes_over(
            "summaries whose worker scored no other one of the same post: scores from 1 to 7 have no place of their own"
        )
    note = "\n".join(f"of {one.response.text[:40]!r}: {one.note}" for one in summaries if one.note)
    who = annotator_of(reading, first.worker)
    made: list[Judgement] = []
    for axis in _AXES:
        scored = [(one.response, float(one.scores[axis])) for one in summaries if axis in one.scores]
        made += comparisons_of(first.prompt, scored, who, reading, criterion=axis, note=note)
    return made


SUMMARIZE = Layout(
    name="summarize",
    sets="openai/summarize_from_feedback, comparisons",
    known_by=("info", "summaries", "choice"),
    columns=(
        PublishedColumn(
            "info", "the prompt: SUBREDDIT, TITLE and POST, or Article, and TL;DR: after it", "TRL", "json"
        ),
        PublishedColumn(
            "summaries",
            "the two responses, in order; `policy` is the author, `note` goes to the note",
            "README",
            "json",
        ),
        PublishedColumn("choice", "the better one: 0 the first, 1 the second", "TRL", "number"),
        *columns_of("README", worker="the annotator"),
        *unread("README", "batch", "split"),
        PublishedColumn(
            "extra",
            "`confidence` goes to the note: the README does not say what its scale is, so it is no margin",
            "README",
            "json",
        ),
    ),
    sources={"README": _README, "TRL": _TRL},
    read=_comparison,
)

SUMMARIZE_AXES = Layout(
    name="summarize-axes",
    sets="openai/summarize_from_feedback, axis evaluations",
    known_by=("info", "summary", "worker"),
    columns=(
        PublishedColumn("info", "the prompt, as in `summarize`", "TRL", "json"),
        PublishedColumn(
            "summary",
            "the response; `axes` has its scores from 1 to 7: of every two summaries of one post that one worker "
            "scored, a comparison by each axis, the difference of the scores as its margin",
            "README, paper",
            "json",
        ),
        *columns_of("README", worker="the annotator"),
        *unread("README", "batch", "split"),
    ),
    sources={
        "README": _README,
        "TRL": _TRL,
        "paper": "Stiennon et al. 2020 (2009.01325v3), 7-point Likert scale of each axis: " + UNCHECKED,
    },
    read=_axes,
    units=_by_post_and_worker,
)
