"""Nectar: seven answers to a prompt, put in order by GPT-4."""

from __future__ import annotations

from rlhf_env.feedback.interchange.dialogues import asked_in
from rlhf_env.feedback.interchange.gathering import Reading
from rlhf_env.feedback.interchange.layouts.fields import Fields, annotator_of, by_policy, prompt_of
from rlhf_env.feedback.interchange.layouts.layout import Layout, PublishedColumn, columns_of, unread
from rlhf_env.feedback.judgements import Judgement
from rlhf_env.feedback.kinds import Ranking
from rlhf_env.types import JsonView

_JUDGE = "gpt-4"


def _read(row: JsonView, reading: Reading) -> list[Judgement]:
    fields = Fields(row)
    prompt = prompt_of(asked_in(fields.text("prompt")))
    answers = [
        (by_policy(one.text("answer"), one.words("model"), reading), one.number("rank"))
        for one in fields.objects("answers")
    ]
    fields.done()
    places = sorted({rank for _, rank in answers})
    ranks = tuple(1 + places.index(rank) for _, rank in answers)
    return [Ranking(prompt, tuple(response for response, _ in answers), ranks, annotator_of(reading, _JUDGE))]


NECTAR = Layout(
    name="nectar",
    sets="berkeley-nest/Nectar",
    known_by=("prompt", "answers"),
    columns=(
        *columns_of("card", prompt="the prompt, a transcript as in `hh-rlhf` that ends with the assistant's turn"),
        PublishedColumn(
            "answers", "a ranking: `answer` a response, `model` its author. The annotator is gpt-4", "card", "json"
        ),
        PublishedColumn("answers.rank", "the place, 1 the best; equal ranks are a tie", "loaders", "json"),
        *unread("card", "turns", "num_responses", "source", "good_natured"),
    ),
    sources={
        "card": "huggingface.co/datasets/berkeley-nest/Nectar at 3c6b4c4, Schema, which does not say which end of "
        "`rank` is the best",
        "loaders": "three public loaders take the lowest rank for the best (one of them, convmerge's, says so in "
        "words); axolotl's DPO strategy takes the highest",
    },
    read=_read,
)
