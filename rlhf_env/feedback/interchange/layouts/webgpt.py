"""WebGPT's comparisons (Nakano et al. 2021, 2112.09332): two answers that quote pages, and a strength."""

from __future__ import annotations

from rlhf_env.feedback.interchange.gathering import Reading
from rlhf_env.feedback.interchange.layouts.fields import Fields, annotator_of, prompt_of, unsigned
from rlhf_env.feedback.interchange.layouts.layout import Layout, PublishedColumn, columns_of
from rlhf_env.feedback.interchange.layouts.scores import comparison_by
from rlhf_env.feedback.judgements import Judgement
from rlhf_env.types import JsonView

_ROUNDING = 1e-6


def _read(row: JsonView, reading: Reading) -> list[Judgement]:
    fields = Fields(row)
    question = row.get("question")
    prompt = prompt_of(question if isinstance(question, str) else fields.inside("question").text("full_text"))
    responses = [unsigned(fields.text(name), reading) for name in ("answer_0", "answer_1")]
    first, second = (fields.number(name) for name in ("score_0", "score_1"))
    if not fields.problems and abs(first + second) > _ROUNDING:
        fields.complain("score_0, score_1", f"{first:g} and {second:g} do not sum to 0: which answer is preferred?")
    fields.done()
    return [comparison_by(first, prompt, responses[0], responses[1], annotator_of(reading))]


WEBGPT = Layout(
    name="webgpt",
    sets="openai/webgpt_comparisons",
    known_by=("question", "answer_0", "answer_1", "score_0", "score_1"),
    columns=(
        PublishedColumn("question", "the prompt: its `full_text`, or the text", "card", "json"),
        *columns_of(
            "card",
            answer_0="the first response",
            answer_1="the second response",
            score_0=("above 0 the first is better, at 0 a tie; its size is the margin", "number"),
            score_1=("must be the opposite of `score_0`", "number"),
        ),
        *(
            PublishedColumn(name, "", "card", "json")
            for name in ("quotes_0", "quotes_1", "tokens_0", "tokens_1", "dataset")
        ),
    ),
    sources={
        "card": "huggingface.co/datasets/openai/webgpt_comparisons, as copied in "
        "YoungXinyu1802/HuggingFace-Dataset-Card-Analysis at dfb229a"
    },
    read=_read,
)
