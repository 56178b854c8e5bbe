"""UltraFeedback (Cui et al. 2023, 2310.01377): four completions rated by GPT-4, and pairs that others made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlhf_env.feedback.interchange.gathering import Reading
from rlhf_env.feedback.interchange.layouts.fields import Fields, annotator_of, by_policy, prompt_of
from rlhf_env.feedback.interchange.layouts.layout import UNCHECKED, Layout, PublishedColumn, columns_of, unread
from rlhf_env.feedback.interchange.layouts.scores import comparisons_of
from rlhf_env.feedback.interchange.rows import preference_of
from rlhf_env.feedback.judgements import Author, Judgement, Response
from rlhf_env.feedback.kinds import Comparison, CriteriaRating
from rlhf_env.types import JsonView

_JUDGE = "gpt-4"
_NO_RATING = ("N/A", "", None)


def _read(row: JsonView, reading: Reading) -> list[Judgement]:
    fields = Fields(row)
    prompt = prompt_of(fields.text("instruction"))
    judge = annotator_of(reading, _JUDGE)
    made: list[tuple[Response, dict[str, int]]] = []
    overall: list[tuple[Response, float]] = []
    for completion in fields.objects("completions"):
        response = by_policy(completion.text("response"), completion.words("model"), reading)
        made.append((response, _ratings(completion, reading)))
        if completion.row.get("overall_score") in _NO_RATING:
            reading.passes_over("completions without an overall_score")
        else:
            overall.append((response, completion.number("overall_score")))
    fields.done()
    rated = [CriteriaRating(prompt, response, scores, judge) for response, scores in made if scores]
    return [*rated, *comparisons_of(prompt, overall, judge, reading)]


def _ratings(completion: Fields, reading: Reading) -> dict[str, int]:
    """The rating of each aspect. "N/A" is none: it is passed over, and is not the lowest."""
    annotations = completion.inside("annotations")
    scores = {}
    for aspect in annotations.row:
        if annotations.row[aspect] is None:
            continue  # Parquet has every aspect that any row has
        rating = annotations.inside(aspect)
        given = rating.row.get("Rating")
        if given in _NO_RATING:
            reading.passes_over(f"ratings of {aspect} that are N/A")
        elif isinstance(given, str) and given.isdecimal():
            scores[aspect] = Fields({"Rating": int(given)}, f"completions: {aspect}: ", completion.problems).whole(
                "Rating", 1, 5
            )
        else:
            scores[aspect] = rating.whole("Rating", 1, 5)
    return scores


ULTRAFEEDBACK = Layout(
    name="ultrafeedback",
    sets="openbmb/UltraFeedback",
    known_by=("instruction", "completions"),
    columns=(
        *columns_of("README", instruction="the prompt"),
        PublishedColumn(
            "completions",
            "each is a response (`model` its author). `annotations`: a rating by criteria, `Rating` of each aspect "
            "from 1 "
            'to 5; "N/A" is passed over and counted. `overall_score`: a comparison of every two, one group, the '
            "difference as its margin. The annotator is gpt-4",
            "README, loaders",
            "json",
        ),
        *unread("README", "source", "models", "correct_answers", "incorrect_answers"),
    ),
    sources={
        "README": "github.com/OpenBMB/UltraFeedback at 16d7132, Dataset Format",
        "loaders": "public loaders: `overall_score` is the critique's rating up to 10; `fine-grained_score`, the "
        "mean of the ratings, is not read. Hundreds of the scores of 10 are wrong, says "
        "argilla/ultrafeedback-binarized-preferences at ab666e4: `--criterion helpfulness` leaves them out",
    },
    read=_read,
)


def _pair(
    row: JsonView, reading: Reading, ratings: Sequence[str], models: Sequence[str], sides: Sequence[str]
) -> list[Judgement]:
    """A pair that was made of two ratings. Where they are equal it is a tie, whatever the columns are called."""
    fields = Fields(row)
    better, worse = (fields.number(name) if row.get(name) is not None else None for name in ratings)
    written = [fields.words(name) for name in models]
    fields.done()
    plain = {**row, "chosen": row.get(sides[0]), "rejected": row.get(sides[1])}
    plain |= {"score_chosen": better, "score_rejected": worse}
    signed = replace(reading, annotator=annotator_of(reading, _JUDGE))
    comparison = Comparison.of(preference_of(plain, signed))
    authors = [Author("policy", name) if name else None for name in written]
    first, second = (
        response if author is None else replace(response, author=author)
        for response, author in zip(comparison.responses, [*authors, None, None], strict=False)
    )
    comparison = replace(comparison, first=first, second=second)
    return [replace(comparison, verdict="tie", margin=None) if better is not None and better == worse else comparison]


def _binarized(row: JsonView, reading: Reading) -> list[Judgement]:
    return _pair(row, reading, ("score_chosen", "score_rejected"), (), ("chosen", "rejected"))


def _argilla(row: JsonView, reading: Reading) -> list[Judgement]:
    models = ("chosen-model", "rejected-model")
    return _pair(row, reading, ("chosen-rating", "rejected-rating"), models, ("chosen", "rejected"))


def _argilla_1(row: JsonView, reading: Reading) -> list[Judgement]:
    row = {**row, "prompt": row.get("instruction")}
    ratings, sides = ("chosen_avg_rating", "rejected_avg_rating"), ("chosen_response", "rejected_response")
    return _pair(row, reading, ratings, ("chosen_model",), sides)


_TIE = "the difference is the margin; where both are equal the pair is a tie"

ULTRAFEEDBACK_BINARIZED = Layout(
    name="ultrafeedback-binarized",
    sets="HuggingFaceH4/ultrafeedback_binarized",
    known_by=("prompt", "prompt_id", "chosen", "rejected", "messages", "score_chosen", "score_rejected"),
    columns=(
        PublishedColumn("prompt", "must be how both conversations begin", "features"),
        PublishedColumn("chosen", "the prompt, and the better response as its last message", "features", "json"),
        PublishedColumn("rejected", "the same of the other response", "features", "json"),
        PublishedColumn("score_chosen", f"{_TIE}. The annotator is gpt-4", "argilla", "number"),
        PublishedColumn("score_rejected", "see `score_chosen`", "argilla", "number"),
        *unread("features", "prompt_id"),
        PublishedColumn("messages", "", "features", "json"),
    ),
    sources={
        "features": "huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized, as its copies list its features "
        "(RLAIF/testing_ultrafeedback_binarized_v1); that scores may be equal: " + UNCHECKED,
        "argilla": "argilla/ultrafeedback-binarized-preferences at ab666e4, which says what the scores are",
    },
    read=_binarized,
)

ULTRAFEEDBACK_ARGILLA = Layout(
    name="ultrafeedback-argilla",
    sets="argilla/ultrafeedback-binarized-preferences-cleaned",
    known_by=("prompt", "chosen", "rejected", "chosen-rating", "rejected-rating"),
    columns=(
        PublishedColumn("prompt", "must be how both conversations begin", "card"),
        PublishedColumn("chosen", "the prompt, and the better response as its last message", "card", "json"),
        PublishedColumn("rejected", "the same of the other response", "card", "json"),
        PublishedColumn("chosen-rating", f"{_TIE}. The annotator is gpt-4", "card", "number"),
        PublishedColumn("rejected-rating", "see `chosen-rating`", "card", "number"),
        PublishedColumn("chosen-model", "the author of the better response", "card"),
        PublishedColumn("rejected-model", "the author of the other one", "card"),
        *unread("card", "source"),
    ),
    sources={"card": "huggingface.co/datasets/argilla/ultrafeedback-binarized-preferences-cleaned at a6d5cfd"},
    read=_argilla,
)

ULTRAFEEDBACK_ARGILLA_1 = Layout(
    name="ultrafeedback-argilla-1",
    sets="argilla/ultrafeedback-binarized-preferences",
    known_by=("instruction", "chosen_response", "rejected_response", "chosen_avg_rating", "rejected_avg_rating"),
    columns=(
        *columns_of(
            "card",
            instruction="the prompt",
            chosen_response="the better response",
            rejected_response="the other response",
            chosen_avg_rating=(f"{_TIE}. The annotator is gpt-4", "number"),
            rejected_avg_rating=("see `chosen_avg_rating`", "number"),
            chosen_model="the author of the better response",
        ),
        *unread("card", "source"),
    ),
    sources={"card": "huggingface.co/datasets/argilla/ultrafeedback-binarized-preferences at ab666e4"},
    read=_argilla_1,
)
