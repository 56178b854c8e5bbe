"""What the page gets to see of a store, as JSON can hold it: items with their forms, agreement, results.

Judging is blind: an item tells nothing of who wrote a response, or of what a reward model thinks of it. What others
wrote is made fit to be shown; what a vote has to say again (names, values of options) is sent as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from rlhf_env.feedback.asking.agreement import Interval, agreement_of
from rlhf_env.feedback.asking.tournament import contests, tournament
from rlhf_env.feedback.asking.verification import outcomes
from rlhf_env.feedback.kinds import kind_named
from rlhf_env.feedback.kinds.form import Form, Input
from rlhf_env.feedback.store.items import Assignment
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.shown_text import for_page

TEXT_CHARACTERS = 50_000

Shown = dict[str, Any]


def shown_item(assignment: Assignment, guidelines: Mapping[str, str], remaining: float) -> Shown:
    """An item that is lent for `remaining` seconds. `guidelines` are those of all criteria, by name."""
    item = assignment.item
    asked = {name: guidelines.get(name, "") for name in item.criteria or (item.criterion,)}
    return {
        "id": assignment.id,
        "kind": item.kind,
        "purpose": item.purpose,
        "prompt": _text(item.prompt.text),
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
                "kind": it.kind,
                "criterion": for_page(it.criterion),
                "judgements": it.judgements,
                "annotators": len(it.annotators),
                "units": it.units,
                "agreement": _interval(it.agreement),
                "alpha": _interval(it.alpha),
                "self_consistency": _interval(it.self_consistency),
                "seconds": _interval(it.seconds),
            }
            for it in agreement_of(store.judgements(), np.random.default_rng(0), resamples=200)
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
                        "name": for_page(it.name),
                        "comparisons": it.comparisons,
                        "win_rate": _interval(it.win_rate),
                        "rating": _interval(it.rating),
                    }
                    for it in contenders
                ],
            }
            for criterion, made in contests(store).items()
            if (contenders := tournament(made, np.random.default_rng(0)))
        ],
        "verified": [
            {
                "model": for_page(it.model),
                "reason": for_page(it.reason),
                "why": it.why,
                "pairs": it.pairs,
                "votes": it.votes,
                "agreement": [it.agreement, it.low, it.high] if it.votes else None,
                "stated": it.stated if it.votes else None,
            }
            for it in outcomes(store)
        ],
    }


def _text(text: str) -> Shown:
    """Fit to be shown; `length` says so where it is cut."""
    return {"text": for_page(text[:TEXT_CHARACTERS]), "length": len(text) if len(text) > TEXT_CHARACTERS else None}


def _interval(found: Interval) -> list[float | None] | None:
    """[value, low, high]; the ends, or all of it, null where they are not known."""
    return None if np.isnan(found.value) else [_known(it) for it in (found.value, found.low, found.high)]


def _known(number: float) -> float | None:
    return None if np.isnan(number) else number
