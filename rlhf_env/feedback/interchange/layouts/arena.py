"""Battles: two models answer a person, who says which was better. Chatbot Arena, MT-bench, and Kaggle's tables."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from rlhf_env.errors import DataError
from rlhf_env.feedback.interchange.dialogues import Messages, answer_in, divided
from rlhf_env.feedback.interchange.gathering import Reading
from rlhf_env.feedback.interchange.layouts.fields import Fields, annotator_of, asked, by_policy, prompt_of
from rlhf_env.feedback.interchange.layouts.layout import UNCHECKED, Layout, PublishedColumn, columns_of, unread
from rlhf_env.feedback.interchange.rows import with_columns
from rlhf_env.feedback.judgements import Judgement
from rlhf_env.feedback.kinds import Comparison, Verdict
from rlhf_env.types import JsonView

_WINNERS: Mapping[str, Verdict] = {
    "model_a": "first",
    "model_b": "second",
    "tie": "tie",
    "tie (inconsistent)": "cannot say",
    "tie (bothbad)": "both bad",
    "both_bad": "both bad",
}
_MODELS = ("model_a", "model_b")
_APART = "battles of several turns, whose answers come after different conversations: there is no one prompt"


def _battle(row: JsonView, reading: Reading) -> list[Judgement]:
    return _fought(row, reading)


def _mt_bench(row: JsonView, reading: Reading) -> list[Judgement]:
    """Both conversations have both turns, and `turn` says after which of them the judge decided."""
    fields = Fields(row)
    turn = fields.whole("turn", 1, 2)
    fields.done()
    return _fought(row, reading, turn=turn)


def _fought(row: JsonView, reading: Reading, turn: int | None = None) -> list[Judgement]:
    fields = Fields(row)
    winner = row.get("winner")
    verdict = _WINNERS.get(winner) if isinstance(winner, str) else None
    if verdict is None:
        fields.complain("winner", f"{winner!r} is none of {', '.join(_WINNERS)}")
    talks: list[Messages] = []
    for side in ("conversation_a", "conversation_b"):
        if side not in row:
            fields.complain(side, "missing")
        else:
            talks.append(fields.messages(side))
    models = [fields.text(name) for name in _MODELS]
    fields.done()
    assert verdict is not None
    if turn is not None:
        talks = [_through(talk, turn) for talk in talks]
    try:
        prompt, *answers = divided(*talks)
    except DataError:
        if talks[0][:1] != talks[1][:1] or min(map(len, talks)) < 2:
            raise DataError("conversation_a, conversation_b: they do not begin with the same question") from None
        reading.passes_over(_APART)
        return []
    about = with_columns(row, {})
    tstamp = row.get("tstamp")
    if isinstance(tstamp, (int, float)) and not isinstance(tstamp, bool) and 0 <= tstamp < 2**33:
        about.setdefault("created", datetime.fromtimestamp(tstamp, UTC).isoformat(timespec="microseconds"))
    first, second = (
        by_policy(answer_in(answer), model, reading) for answer, model in zip(answers, models, strict=True)
    )
    who = about.pop("annotator", None) or _judge(row) or annotator_of(reading)
    return [Comparison(prompt_of(prompt), first, second, verdict, who, **about)]


def _judge(row: JsonView) -> str:
    """The set's name for who judged; MT-bench's own file has [model, prompt] for a model."""
    judge = row.get("judge") or row.get("judge_hash") or ""
    return ", ".join(map(str, judge)) if isinstance(judge, list) else str(judge)


def _through(talk: Messages, turn: int) -> Messages:
    """The conversation up to the answer of its turn."""
    answers = [place for place, message in enumerate(talk) if message["role"] == "assistant"]
    return talk[: answers[turn - 1] + 1] if len(answers) >= turn else talk


def _kaggle(row: JsonView, reading: Reading) -> list[Judgement]:
    fields = Fields(row)
    votes = {name: fields.flag(f"winner_{name}") for name in (*_MODELS, "tie")}
    if not fields.problems and sum(votes.values()) != 1:
        said = ", ".join(name for name, is_so in votes.items() if is_so) or "none"
        fields.complain("winner_model_a, winner_model_b, winner_tie", f"one of them must be 1, they say {said}")
    talks = {name: fields.list(name) for name in ("prompt", "response_a", "response_b")}
    models = [fields.words(name) for name in _MODELS]
    if not fields.problems and len(talks["prompt"]) > 1:
        reading.passes_over(_APART)
        return []
    texts = {}
    for name, turns in talks.items():
        if len(turns) == 1 and isinstance(turns[0], str):
            texts[name] = turns[0]
        elif not fields.problems or len(turns) != 0:
            fields.complain(name, f"expected a list with one text for each turn, got {list(turns)!r:.60}")
    fields.done()
    winner = next(name for name, is_so in votes.items() if is_so)
    responses = [by_policy(texts[f"response_{side}"], model, reading) for side, model in zip("ab", models, strict=True)]
    who = annotator_of(reading)
    return [Comparison(asked(texts["prompt"]), responses[0], responses[1], _WINNERS[winner], who)]


def _wsdm(row: JsonView, reading: Reading) -> list[Judgement]:
    fields = Fields(row)
    winner = row.get("winner")
    if winner not in _MODELS:
        fields.complain("winner", f"{winner!r} is none of {', '.join(_MODELS)}")
    prompt = asked(fields.text("prompt"))
    sides = [by_policy(fields.text(f"response_{side}"), fields.words(f"model_{side}"), reading) for side in "ab"]
    fields.done()
    return [Comparison(prompt, sides[0], sides[1], _WINNERS[str(winner)], annotator_of(reading))]


_WINNER = (
    "model_a the first, model_b the second; tie; tie (bothbad) and both_bad are both bad; tie (inconsistent), of a "
    "model that contradicted itself when the two were swapped, is cannot say"
)
_TALKS = (
    *columns_of("features", model_a="the author of the first response", model_b="the author of the second"),
    PublishedColumn("winner", _WINNER, "FastChat"),
    PublishedColumn("conversation_a", "the prompt, and the first response as its last message", "features", "json"),
    PublishedColumn("conversation_b", "the same prompt, and the second response", "features", "json"),
)
_CIRCUMSTANCES = columns_of(
    "own",
    annotator="the annotator",
    criterion="the criterion",
    weight=("the weight", "number"),
    margin=("the margin", "number"),
    created="when",
    seconds=("how long it took", "number"),
    note="the note",
)
_OWN = "this project's own names, which rows of any battle may have"
_FASTCHAT = "fastchat/llm_judge/compute_agreement.py of lm-sys/FastChat at 0283a0b; both_bad, bothbad: " + UNCHECKED

BATTLE = Layout(
    name="battle",
    sets="lmsys/arena-human-preference-100k and -140k, and battles of one's own",
    known_by=("model_a", "model_b", "winner"),
    columns=(
        *_TALKS,
        *columns_of("features", judge="the annotator", judge_hash="the annotator"),
        *_CIRCUMSTANCES,
        *unread("features", "question_id", "turn", "language"),
        PublishedColumn("tstamp", "when, in seconds since 1970", "features", "number"),
    ),
    sources={"features": f"as `chatbot-arena`; judge_hash: {UNCHECKED}", "FastChat": _FASTCHAT, "own": _OWN},
    read=_battle,
)

CHATBOT_ARENA = Layout(
    name="chatbot-arena",
    sets="lmsys/chatbot_arena_conversations",
    known_by=("model_a", "model_b", "winner", "conversation_a", "conversation_b", "anony", "tstamp"),
    columns=(
        *_TALKS,
        *columns_of(
            "features",
            judge="the annotator",
            judge_hash="the annotator",
            tstamp=("when, in seconds since 1970", "number"),
        ),
        *unread("features", "question_id", "turn", "anony", "language"),
        *(PublishedColumn(name, "", "features", "json") for name in ("openai_moderation", "toxic_chat_tag")),
    ),
    sources={
        "features": "features of huggingface.co/datasets/lmsys/chatbot_arena_conversations as in the copy "
        "agie-ai/lmsys-chatbot_arena_conversations at d45bf83",
        "FastChat": _FASTCHAT,
    },
    read=_battle,
)

MT_BENCH = Layout(
    name="mt-bench",
    sets="lmsys/mt_bench_human_judgments",
    known_by=("question_id", "model_a", "model_b", "winner", "judge", "conversation_a", "conversation_b", "turn"),
    columns=(
        *_TALKS,
        *columns_of(
            "features",
            judge=("the annotator; of a list, joined by commas", "json"),
            turn=(
                "1: the answers to the first question are judged; 2: passed over, because each model answers after "
                "its own first answer",
                "number",
            ),
        ),
        *unread("features", "question_id"),
    ),
    sources={
        "features": "huggingface.co/datasets/lmsys/mt_bench_human_judgments at 6085f5b. That both conversations have "
        "both "
        f"turns whatever `turn` is: {UNCHECKED} (a conversation of one turn is read, too)",
        "FastChat": _FASTCHAT,
    },
    read=_mt_bench,
    fits=lambda row: "tstamp" not in row,
)

KAGGLE_ARENA = Layout(
    name="kaggle-arena",
    sets="LMSYS - Chatbot Arena Human Preference Predictions (Kaggle), lmsys/lmsys-arena-human-preference-55k",
    known_by=("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"),
    columns=(
        PublishedColumn(
            "prompt",
            "the prompt, a conversation: a JSON list of turns in a text. Of several turns the row is passed over",
            "loaders",
            "json",
        ),
        PublishedColumn("response_a", "the first response, a list of as many", "loaders", "json"),
        PublishedColumn("response_b", "the second response", "loaders", "json"),
        *columns_of(
            "data page",
            model_a="the author of the first",
            model_b="the author of the second",
            winner_model_a=("1: the first is better", "flag"),
            winner_model_b=("1: the second is better", "flag"),
            winner_tie=("1: a tie (both bad among them: nobody can tell)", "flag"),
        ),
        *unread("data page", "id"),
    ),
    sources={
        "data page": "the competition's data page, in mlebench/competitions/lmsys-chatbot-arena of openai/mle-bench "
        "at 93ef344. "
        f"That winner_tie holds both kinds of tie: {UNCHECKED}",
        "loaders": "solutions of the competition, which parse the lists from text",
    },
    read=_kaggle,
)

WSDM = Layout(
    name="wsdm",
    sets="WSDM Cup - Multilingual Chatbot Arena (Kaggle)",
    known_by=("prompt", "response_a", "response_b", "winner", "model_a", "model_b"),
    columns=(
        *columns_of(
            "data page",
            prompt="the prompt, a conversation of one turn",
            response_a="the first response",
            response_b="the second response",
            winner="model_a the first, model_b the second",
            model_a="the author of the first",
            model_b="the author of the second",
        ),
        *unread("data page", "id", "language"),
    ),
    sources={"data page": "the competition's data page, as quoted in the README of Ekaterina-Gorodkova/Project_DL"},
    read=_wsdm,
)
