"""What the page gets to see of a store, as JSON can hold it: items with their forms, agreement, results.

Judging is blind: an item tells nothing of who wrote a response, or of what a reward model thinks of it. What others
wrote is made fit to be shown; what a vote has to say again (names, values of options) is sent as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np

from rlhf_env.feedback.asking.agreement import Interval, agreement_of
from rlhf_env.feedback.asking.tournament import contests, tournament
from rlhf_env.feedback.asking.verification import outcomes
from rlhf_env.feedback.kinds import kind_named
from rlhf_env.feedback.kinds.form import Form, Input
from rlhf_env.feedback.store.items import Assignment
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.shown_text import for_page
from rlhf_env.types import JsonObject, Prompt

TEXT_CHARACTERS = 50_000

Shown = JsonObject


def shown_item(assignment: Assignment, guidelines: Mapping[str, str], remaining: float) -> Shown:
    """An item that is lent for `remaining` seconds. `guidelines` are those of all criteria, by name."""
    item = assignment.item
    asked = {name: guidelines.get(name, "") for name in item.criteria or (item.criterion,)}
    return {
        "id": assignment.id,
        "ticket": assignment.ticket,
        "kind": item.kind,
        "purpose": item.purpose,
        "prompt": _text(_as_asked(item.prompt)),
        "responses": [_text(response.text) for response in item.responses],
        "form": shown_form(kind_named(item.kind).form(asked)),
        "lease": remaining,
    }


def shown_form(form: Form) -> Shown:
    """The form with each input's type."""
    return {
        "question": for_page(form.question),
        "guidelines": for_page(form.guidelines),
        "inputs": [_input(one) for one in form.inputs],
        "submit": for_page(form.submit),
        "shortcuts": [[for_page(key), for_page(meaning)] for key, meaning in form.shortcuts],
    }


def _input(one: Input) -> Shown:
    fields: Shown = {"name": one.name, **asdict(one), "type": one.type}
    for name in ("label", "guidelines"):
        if name in fields:
            fields[name] = for_page(fields[name])
    for option in fields.get("options", ()):
        option["label"] = for_page(option["label"])
    return fields


def shown_agreement(store: PreferenceStore) -> Shown:
    return {
        "agreement": [
            {
                "kind": row.kind,
                "criterion": for_page(row.criterion),
                "judgements": row.judgements,
                "annotators": len(row.annotators),
                "units": row.units,
                "agreement": _interval(row.agreement),
                "alpha": _interval(row.alpha),
                "self_consistency": _interval(row.self_consistency),
                "seconds": _interval(row.seconds),
            }
            for row in agreement_of(store.judgements(), np.random.default_rng(0), resamples=200)
        ]
    }


def shown_results(store: PreferenceStore) -> Shown:
    """The numbers of `preferences tournament` and `preferences verified`."""
    return {
        "progress": vars(store.progress()),
        "contests": [
            {
                "criterion": for_page(criterion),
                "contenders": [
                    {
                        "name": for_page(row.name),
                        "comparisons": row.comparisons,
                        "win_rate": _interval(row.win_rate),
                        "rating": _interval(row.rating),
                    }
                    for row in contenders
                ],
            }
            for criterion, made in contests(store).items()
            if (contenders := tournament(made, np.random.default_rng(0)))
        ],
        "verified": [
            {
                "model": for_page(row.model),
                "reason": for_page(row.reason),
                "why": row.why,
                "pairs": row.pairs,
                "votes": row.votes,
                "agreement": [row.agreement, row.low, row.high] if row.votes else None,
                "stated": row.stated if row.votes else None,
            }
            for row in outcomes(store)
        ],
    }


def _as_asked(prompt: Prompt) -> str:
    """The text without the mark that a task closes a turn with ("Hello.<|turn|>"): that is for the model."""
    turn = prompt.meta.get("turn")
    written = isinstance(turn, str) and re.fullmatch(r"<\|\w+\|>", prompt.text.removeprefix(turn))
    return str(turn) if written else prompt.text


def _text(text: str) -> Shown:
    """Fit to be shown; `length` says so where it is cut."""
    return {"text": for_page(text[:TEXT_CHARACTERS]), "length": len(text) if len(text) > TEXT_CHARACTERS else None}


def _interval(interval: Interval) -> list[float | None] | None:
    """[value, low, high]; the ends, or all of it, null where they are not known."""
    return (
        None
        if np.isnan(interval.value)
        else [_known(number) for number in (interval.value, interval.low, interval.high)]
    )


def _known(number: float) -> float | None:
    return None if np.isnan(number) else number
