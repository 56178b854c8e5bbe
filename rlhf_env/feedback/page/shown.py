"""What the page gets to see of a store, as JSON can hold it: items with their forms, agreement, results.

Judging is blind: an item tells nothing of who wrote a response, or of what a reward model thinks of it. What others
wrote is made fit to be shown; what a vote has to say again (names, values of options) is sent as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace

import numpy as np

from rlhf_env.envs.tokenizers import conversation_of, said_in
from rlhf_env.feedback.asking.agreement import Interval, agreement_of
from rlhf_env.feedback.asking.controls import control_scores
from rlhf_env.feedback.asking.tournament import contests, tournament
from rlhf_env.feedback.asking.verification import outcomes
from rlhf_env.feedback.judgements import Judgement
from rlhf_env.feedback.kinds import ChoiceInput, Form, JudgementKind, Option, kind_named, kind_of
from rlhf_env.feedback.kinds.abstention import ABSTENTION, CANNOT_SAY, abstention_options
from rlhf_env.feedback.kinds.form import Input
from rlhf_env.feedback.store.items import Assignment, OwnVote
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.shown_text import for_page
from rlhf_env.types import JsonObject, Prompt

TEXT_CHARACTERS = 50_000
STRENGTHS = (
    ("Much better", "much", 3.0, "aj"),
    ("Better", "clearly", 2.0, "sk"),
    ("Slightly better", "slightly", 1.0, "dl"),
)
"""(label, adverb, margin, the keys for the first and the second response). The margins are the larger
ones of Llama 2 (2307.09288, table 27): what the loss of a reward model asks for beyond being right."""

# As tokenizers write them. "<s>" inside a text is HTML for what is struck out; at its ends it is the model's.
_MARKERS = re.compile(
    r"(?:(?:<\|[\w-]{1,40}\|>|<\|[\w-]{1,40}>|<[\w-]{1,40}\|>|<｜[^<>\n]{1,40}｜>|<(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>"
    r"|\[/?INST\]|<</?SYS>>|</s>\n?<s>)\n?)+"
)
# Where somebody's turn begins, as chat templates write it: ChatML's, Gemma's and Llama 3's, or Zephyr's and Phi's.
_TURN = re.compile(
    r"(?:<\|im_start\|>|<start_of_turn>|<\|turn>|<\|start_header_id\|>)([\w-]{1,40})(?:<\|end_header_id\|>)?\n{1,2}"
    r"|<\|(system|user|assistant|tool|developer)\|>\n?"
)
_ENDS = ("<s>", "</s>")

Shown = JsonObject


def shown_item(
    assignment: Assignment, guidelines: Mapping[str, str], remaining: float, *, strength: bool = False
) -> Shown:
    """An item that is lent for `remaining` seconds. `guidelines` are those of all criteria, by name.

    `strength`: whoever prefers a response says by how much. A control question looks like any other.
    """
    item = assignment.item
    asked = {name: guidelines.get(name, "") for name in item.criteria or (item.criterion,)}
    kind = kind_named(item.kind)
    return {
        "id": assignment.id,
        "ticket": assignment.ticket,
        "kind": item.kind,
        "purpose": "collection" if item.purpose == "control" else item.purpose,
        "prompt": _prompt(item.prompt),
        "responses": [_text(without_markers(response.text)) for response in item.responses],
        "form": shown_form(kind, asked, len(item.responses), strength=strength),
        "lease": remaining,
    }


def shown_form(kind: JudgementKind, guidelines: Mapping[str, str], responses: int, *, strength: bool = False) -> Shown:
    """The form with each input's type, what may be said instead, and whether there is room for a comment and a flag."""
    form = kind.form(guidelines)
    instead = () if _may_abstain(form) else abstention_options(responses)
    return {
        "question": for_page(form.question),
        "guidelines": for_page(form.guidelines),
        "inputs": [_input(_with_strength(one) if strength and kind.takes("margin") else one) for one in form.inputs],
        "instead": [vars(option) for option in instead],
        "submit": for_page(form.submit),
        "shortcuts": [[for_page(key), for_page(meaning)] for key, meaning in form.shortcuts],
        "comment": kind.takes("note"),
        "flag": kind.takes("flag"),
    }


def shown_own(vote: OwnVote) -> Shown:
    """A line of the annotator's own earlier judgements."""
    judgement = vote.judgement
    return {
        "number": vote.number,
        "item": vote.assignment.id,
        "prompt": for_page(" ".join(_asked_last(vote.assignment.item.prompt).split())[:200]),
        "said": for_page(verdict_in_words(judgement)),
        "note": for_page(getattr(judgement, "note", "")),
        "flag": bool(getattr(judgement, "flag", False)),
        "created": judgement.created,
    }


def earlier_answer(vote: OwnVote) -> Shown:
    """What an earlier judgement said, for its form to be filled in with."""
    judgement = vote.judgement
    kind = kind_of(judgement)
    answer = kind.answer_of(judgement)
    abstained = kind is ABSTENTION
    if vote.assignment.item.criteria and isinstance(answer, Mapping):
        answer = {name: answer.get(name, CANNOT_SAY) for name in vote.assignment.item.criteria}
    return {
        "answer": None if abstained else answer,
        "abstain": answer if abstained else None,
        "margin": getattr(judgement, "margin", None),
        "note": getattr(judgement, "note", ""),
        "flag": bool(getattr(judgement, "flag", False)),
    }


def verdict_in_words(judgement: Judgement) -> str:
    """What a judgement says, in the words of the form that it was given by."""
    kind = kind_of(judgement)
    answer = kind.answer_of(judgement)
    if kind is ABSTENTION:
        options = abstention_options(len(judgement.responses))
        return next((option.label for option in options if option.value == answer), str(answer))
    form = kind.form(dict.fromkeys(answer, "") if isinstance(answer, Mapping) else {judgement.criterion: ""})
    labels = {
        (one.name, option.value): option.label
        for one in form.inputs
        if isinstance(one, ChoiceInput)
        for option in one.options
    }
    if isinstance(answer, Mapping):
        return ", ".join(f"{name}: {labels.get((name, said), said)}" for name, said in answer.items())
    if isinstance(answer, list) and all(type(place) is int for place in answer):
        groups = [[str(i) for i, place in enumerate(answer, start=1) if place == rank] for rank in sorted(set(answer))]
        return f"Best first: response {', then '.join(' = '.join(group) for group in groups)}"
    said = labels.get(("", answer), str(answer)) if isinstance(answer, (bool, int, str)) else str(answer)
    margin = getattr(judgement, "margin", None)
    words = {value: adverb for _, adverb, value, _ in STRENGTHS}
    return said if margin is None else f"{said} ({words.get(margin, f'by {margin:g}')})"


def _may_abstain(form: Form) -> bool:
    """Whether the form itself has an option to say nothing."""
    return any(
        option.value == CANNOT_SAY
        for one in form.inputs
        if isinstance(one, ChoiceInput) and not one.name
        for option in one.options
    )


def _with_strength(one: Input) -> Input:
    """A choice in which preferring a response says how strongly."""
    if not isinstance(one, ChoiceInput):
        return one
    made: list[Option] = []
    for option in one.options:
        if option.under is None or option.under > 1:
            made.append(option)
            continue
        for label, _, margin, keys in STRENGTHS:
            made.append(replace(option, label=label, key=keys[option.under], margin=margin))
    return replace(one, options=tuple(made))


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


def shown_controls(store: PreferenceStore) -> list[Shown]:
    """How often each annotator gave the answer that was known: for whoever asked, not for annotators."""
    return [
        {
            "annotator": for_page(row.annotator),
            "answered": row.answered,
            "right": row.right,
            "undecided": row.undecided,
            "share": list(row.share),
        }
        for row in control_scores(store)
    ]


def shown_results(store: PreferenceStore) -> Shown:
    """The numbers of `preferences tournament` and `preferences verified`."""
    return {
        "progress": vars(store.progress()),
        **shown_agreement(store),
        "controls": shown_controls(store),
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


def _prompt(prompt: Prompt) -> Shown:
    """The text; of a conversation its turns, too, each with who says it."""
    shown = _text(_as_asked(prompt))
    if spoken := _turns(prompt):
        shown["turns"] = [{"role": for_page(role), **_text(said)} for role, said in spoken]
    return shown


def _turns(prompt: Prompt) -> list[tuple[str, str]]:
    """Of a conversation, (who, what they say), also where a chat template has written it down; "" for who is nobody."""
    if messages := conversation_of(prompt):
        return [(str(message["role"]), without_markers(said_in(message))) for message in messages]
    text = prompt.text
    heads = list(_TURN.finditer(text))
    if not heads:
        return []
    ends = [*(head.start() for head in heads[1:]), len(text)]
    said = [
        (head[1] or head[2], without_markers(text[head.end() : end].strip("\n")))
        for head, end in zip(heads, ends, strict=True)
    ]
    before = without_markers(text[: heads[0].start()].strip("\n"))
    # A last one without words is the model's to write.
    return [(who, words) for who, words in [("", before), *said] if words.strip()]


def _as_asked(prompt: Prompt) -> str:
    """The text without what is for the model: the mark that a task closes a turn with ("Hello.<|turn|>") and others."""
    if _TURN.search(prompt.text):
        return "\n".join(f"{who}: {words}" if who else words for who, words in _turns(prompt))
    return without_markers(prompt.text)


def _asked_last(prompt: Prompt) -> str:
    """What a list calls it by: the last words of a conversation, for many begin alike; else its text."""
    said = [words for _, words in _turns(prompt) if words.strip()]
    return said[-1] if said else _as_asked(prompt)


def without_markers(text: str) -> str:
    """The text without the special tokens of models: a new line for those inside, nothing for those at its ends."""
    text = _without_ends(text)
    text = _MARKERS.sub(lambda run: "" if run.start() == 0 or run.end() == len(text) else "\n", text)
    return _without_ends(text)


def _without_ends(text: str) -> str:
    start, end = 0, len(text)
    while text.startswith(_ENDS, start):
        start = text.index(">", start) + 1
    while text.endswith(_ENDS, start, end):
        end = text.rindex("<", start, end)
    return text[start:end]


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
