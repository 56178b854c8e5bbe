"""Pairs with a winner and answers with a label: TRL's layouts, and the transcripts of Anthropic's hh-rlhf.

They are read by `rows.py`, as this project's own lines are, and one file may hold several of them.
"""

from __future__ import annotations

from rlhf_env.feedback.interchange.dialogues import transcript
from rlhf_env.feedback.interchange.gathering import Reading
from rlhf_env.feedback.interchange.layouts.layout import UNCHECKED, Layout, columns_of
from rlhf_env.feedback.interchange.rows import judgement_of
from rlhf_env.feedback.judgements import Judgement
from rlhf_env.types import JsonView

_TRL = "TRL's documentation, Dataset formats and types, since 0.11"


def _read(row: JsonView, reading: Reading) -> list[Judgement]:
    return [judgement_of(row, reading)]


HH_RLHF = Layout(
    name="hh-rlhf",
    sets="Anthropic/hh-rlhf, all of it but the red-team attempts",
    known_by=("chosen", "rejected"),
    columns=columns_of(
        "card",
        chosen="a transcript, turns after `Human:` and `Assistant:`. The last turn is the better response, those "
        "before it the prompt, a conversation",
        rejected="the same transcript with another last turn; one that differs before it is refused by its line",
    ),
    sources={
        "card": f"huggingface.co/datasets/Anthropic/hh-rlhf, and examples/datasets/hh-rlhf-helpful-base.py of TRL; "
        f"the card's revision: {UNCHECKED}"
    },
    read=_read,
    fits=lambda row: "prompt" not in row and all(transcript(row[side]) for side in ("chosen", "rejected")),
    mixes=True,
)

TRL_PAIRS = Layout(
    name="trl-pairs",
    sets="TRL's preference format, explicit or conversational, and most sets for DPO",
    known_by=("prompt", "chosen", "rejected"),
    columns=columns_of(
        "TRL",
        prompt="the prompt, a text or a conversation",
        chosen="the better response, or the conversation that ends with it",
        rejected="the other response",
        margin=("the margin", "number"),
        score_chosen=(
            "with `score_rejected` (or `chosen_rating`, `rejected_rating`): the difference is the margin",
            "number",
        ),
        score_rejected=("see `score_chosen`", "number"),
    ),
    sources={"TRL": f"{_TRL}; `margin` is the reward trainer's; the names of scores: those of sets in use"},
    read=_read,
    mixes=True,
)

TRL_UNPAIRED = Layout(
    name="trl-unpaired",
    sets="TRL's unpaired preference format",
    known_by=("prompt", "completion", "label"),
    columns=columns_of(
        "TRL", prompt="the prompt", completion="the response", label=("a rating: true is 5, false is 1", "flag")
    ),
    sources={"TRL": _TRL},
    read=_read,
    mixes=True,
)
