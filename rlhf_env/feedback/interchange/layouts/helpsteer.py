"""NVIDIA's HelpSteer2 (2406.08673, 2410.01257) and HelpSteer3 (2505.11475): five attributes, and preferences."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlhf_env.feedback.interchange.dialogues import Messages
from rlhf_env.feedback.interchange.gathering import Reading
from rlhf_env.feedback.interchange.layouts.fields import (
    Fields,
    annotator_of,
    prompt_of,
    unnamed_annotator,
    unsigned,
)
from rlhf_env.feedback.interchange.layouts.layout import Layout, PublishedColumn, columns_of, unread
from rlhf_env.feedback.interchange.layouts.scores import comparison_by
from rlhf_env.feedback.judgements import Judgement, Response
from rlhf_env.feedback.kinds import LOWEST, CriteriaRating
from rlhf_env.types import JsonView, Prompt

_ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
_MUCH = 3


def _prompt(text: str) -> Prompt:
    """The turns of a conversation that the set keeps in one text; most have one."""
    first, *turns = _TURN.split(text)
    messages: Messages = [{"role": "user", "content": first}]
    messages += ({"role": who.lower(), "content": said} for who, said in zip(turns[::2], turns[1::2], strict=True))
    return prompt_of(messages)


def _ratings(row: JsonView, reading: Reading) -> list[Judgement]:
    fields = Fields(row)
    prompt, response = _prompt(fields.text("prompt")), unsigned(fields.text("response"), reading)
    lists = [name for name in _ATTRIBUTES if isinstance(row.get(name), list)]
    if lists:
        scores = _of_each_annotator(fields)
        fields.done()
        return [
            CriteriaRating(prompt, response, one, unnamed_annotator(reading, place, prompt.text, response.text))
            for place, one in enumerate(scores, start=1)
        ]
    mean = {name: fields.whole(name, 0, 4) + LOWEST for name in _ATTRIBUTES}
    fields.done()
    return [CriteriaRating(prompt, response, mean, annotator_of(reading))]


def _of_each_annotator(fields: Fields) -> list[dict[str, int]]:
    lists = {name: fields.list(name) for name in _ATTRIBUTES}
    if len({len(one) for one in lists.values()}) > 1:
        fields.complain(", ".join(_ATTRIBUTES), "lists of different lengths")
        return []
    each = [
        Fields(dict(zip(lists, one, strict=True)), problems=fields.problems)
        for one in zip(*lists.values(), strict=True)
    ]
    return [{name: one.whole(name, 0, 4) + LOWEST for name in _ATTRIBUTES} for one in each]


def _preference(row: JsonView, reading: Reading) -> list[Judgement]:
    fields = Fields(row)
    prompt = _prompt(fields.text("prompt"))
    responses = [unsigned(fields.text(name), reading) for name in ("response_1", "response_2")]
    strength = fields.whole("preference_strength", -_MUCH, _MUCH)
    votes = [
        (one, one.whole("strength", -_MUCH, _MUCH), _joined(one, "statement", "elaboration"))
        for one in _listed(fields, "three_most_similar_preferences")
    ]
    note = _joined(fields, "preference_statement", "preference_elaboration")
    fields.done()
    return _votes(prompt, responses, strength, [(vote, said) for _, vote, said in votes], note, reading)


def _preference_3(row: JsonView, reading: Reading) -> list[Judgement]:
    fields = Fields(row)
    prompt = prompt_of(fields.messages("context"))
    responses = [unsigned(fields.text(name), reading) for name in ("response1", "response2")]
    strength = fields.whole("overall_preference", -_MUCH, _MUCH)
    votes = [
        (one.whole("score", -_MUCH, _MUCH), _joined(one, "reasoning"))
        for one in _listed(fields, "individual_preference")
        if one.row.get("score") is not None
    ]
    fields.done()
    return _votes(prompt, responses, strength, votes, "", reading)


def _votes(
    prompt: Prompt,
    responses: Sequence[Response],
    overall: int,
    votes: Sequence[tuple[int, str]],
    note: str,
    reading: Reading,
) -> list[Judgement]:
    """Each annotator's vote, or what the set says of all of them where it has no votes.

    Never both: the overall strength is made of the votes. Below 0 the first response is the better one.
    """
    first, second = responses
    if not votes:
        return [comparison_by(-overall, prompt, first, second, annotator_of(reading), note=note)]
    reading.passes_over("overall strengths that are made of the votes, which are read one by one")
    texts = (prompt.text, first.text, second.text)
    return [
        comparison_by(-vote, prompt, first, second, unnamed_annotator(reading, place, *texts), note=said)
        for place, (vote, said) in enumerate(votes, start=1)
    ]


def _listed(fields: Fields, name: str) -> Sequence[Fields]:
    return fields.objects(name) if fields.row.get(name) is not None else ()


def _joined(fields: Fields, *names: str) -> str:
    return " ".join(filter(None, (fields.words(name) for name in names)))


_HELPSTEER2 = "huggingface.co/datasets/nvidia/HelpSteer2 at 990b271"
_STRENGTH = (
    "-3 the first is much better, -2 better, -1 slightly better, 0 a tie, 1 to 3 the same of the second; its size is "
    "the margin"
)

HELPSTEER2 = Layout(
    name="helpsteer2",
    sets="nvidia/HelpSteer2 and nvidia/HelpSteer, ratings; nvidia/HelpSteer2, disagreements",
    known_by=("prompt", "response", *_ATTRIBUTES),
    columns=(
        *columns_of(
            "card", prompt="the prompt, a conversation whose turns `<extra_id_1>` sets apart", response="the response"
        ),
        *(
            PublishedColumn(
                name,
                f"a score by the criterion {name}: 0 to 4 becomes 1 to 5; of a list, one annotator's each (nobody says "
                "which annotators of two rows are the same, so their names are good for one response)",
                "card",
                "json",
            )
            for name in _ATTRIBUTES
        ),
    ),
    sources={"card": f"{_HELPSTEER2}, Dataset Description and Disagreements"},
    read=_ratings,
)

HELPSTEER2_PREFERENCE = Layout(
    name="helpsteer2-preference",
    sets="nvidia/HelpSteer2, preference",
    known_by=("prompt", "response_1", "response_2", "preference_strength"),
    columns=(
        *columns_of(
            "card",
            prompt="the prompt, as in `helpsteer2`",
            response_1="the first response",
            response_2="the second response",
            three_most_similar_preferences=(
                f"a comparison by each annotator, whose name is good for this pair: `strength` {_STRENGTH}; statement "
                "and elaboration are the note",
                "json",
            ),
            preference_strength=("the same comparison by all, where there are no votes", "number"),
            preference_statement="the note, with it",
            preference_elaboration="the note, with it",
        ),
        PublishedColumn("all_preferences_unprocessed", "", "card", "json"),
        *unread("card", "split"),
    ),
    sources={"card": f"{_HELPSTEER2}, Preferences"},
    read=_preference,
)

HELPSTEER3 = Layout(
    name="helpsteer3",
    sets="nvidia/HelpSteer3, preference",
    known_by=("context", "response1", "response2", "overall_preference"),
    columns=(
        PublishedColumn("context", "the prompt, a conversation", "NeMo", "json"),
        PublishedColumn("response1", "the first response", "NeMo"),
        PublishedColumn("response2", "the second response", "NeMo"),
        PublishedColumn(
            "individual_preference",
            f"a comparison by each annotator, whose name is good for this pair: `score` {_STRENGTH}; `reasoning` is "
            "the note",
            "loaders",
            "json",
        ),
        PublishedColumn(
            "overall_preference", "the same comparison by all, where there are no votes", "NeMo, copy", "number"
        ),
        *unread("copy", "domain", "language"),
    ),
    sources={
        "NeMo": "nemo_reinforcer/data/hf_datasets/helpsteer3.py of NeMo RL: below 0 prefers response1",
        "copy": "huggingface.co/datasets/AIR-hl/helpsteer3_preference, which quotes the card",
        "loaders": "public loaders that read `score` and `reasoning` of each vote, above 0 for response2",
    },
    read=_preference_3,
)
