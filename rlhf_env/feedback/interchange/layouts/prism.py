"""PRISM (Kirk et al. 2024, 2404.16019): people score the answers of several models from 1 to 100, turn by turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rlhf_env.errors import DataError
from rlhf_env.feedback.interchange.dialogues import Messages
from rlhf_env.feedback.interchange.gathering import Located, Reading
from rlhf_env.feedback.interchange.layouts.fields import Fields, annotator_of, by_policy, prompt_of
from rlhf_env.feedback.interchange.layouts.layout import UNCHECKED, Layout, PublishedColumn, columns_of, unread
from rlhf_env.feedback.interchange.layouts.scores import comparisons_of
from rlhf_env.feedback.judgements import Judgement
from rlhf_env.types import JsonView

_LOWEST, _HIGHEST = 1, 100


@dataclass
class _Turn:
    """What a person asked, and what was answered: (text, model, score, whether the conversation went on with it)."""

    asked: str
    answers: list[tuple[str, str, int | None, bool]] = field(default_factory=list)


def _answer(fields: Fields, text: str) -> tuple[str, str, int | None, bool]:
    score = fields.row.get("score")
    return (
        fields.text(text),
        fields.words("model_name"),
        None if score is None else fields.whole("score", _LOWEST, _HIGHEST),
        fields.flag("if_chosen"),
    )


def _judged(turns: Sequence[_Turn], who: str, reading: Reading, created: str) -> list[Judgement]:
    """The answers of each turn, after the conversation as it went on."""
    made: list[Judgement] = []
    before: Messages = []
    for number, turn in enumerate(turns):
        scored = [
            (by_policy(text, model, reading), float(score))
            for text, model, score, _ in turn.answers
            if score is not None
        ]
        if len(scored) < len(turn.answers):
            reading.passes_over("answers without a score", len(turn.answers) - len(scored))
        if len(scored) == 1:
            reading.passes_over("turns with one answer, whose score has nothing to be compared with")
        talk = [*before, {"role": "user", "content": turn.asked}]
        prompt = prompt_of(talk)
        made += comparisons_of(prompt, scored, who, reading, created=created)
        went_on = [text for text, _, _, chosen_to_go_on in turn.answers if chosen_to_go_on]
        if len(went_on) != 1:
            if number + 1 < len(turns):
                reading.passes_over(
                    "turns after one of which it is not known which answer the conversation went on with",
                    len(turns) - number - 1,
                )
            break
        before = [*talk, {"role": "assistant", "content": went_on[0]}]
    return made


def _conversation(row: JsonView, reading: Reading) -> list[Judgement]:
    fields = Fields(row)
    who = fields.text("user_id")
    created = fields.words("generated_datetime")
    turns: dict[int, _Turn] = {}
    for message in fields.objects("conversation_history"):
        number = message.whole("turn", 0, 10**6)
        if message.row.get("role") == "user":
            turns[number] = _Turn(message.text("content"))
        elif message.row.get("role") != "model":
            message.complain("role", f"{message.row.get('role')!r} is none of user, model")
        elif number not in turns:
            message.complain("turn", f"an answer in turn {number}, in which nobody asked anything")
        else:
            turns[number].answers.append(_answer(message, "content"))
    fields.done()
    return _judged([turns[number] for number in sorted(turns)], annotator_of(reading, who), reading, created)


@dataclass(frozen=True)
class _Utterance:
    """One row: an answer, and what it answers."""

    turn: int
    asked: str
    answer: tuple[str, str, int | None, bool]
    who: str
    created: str


def _utterance(row: JsonView) -> _Utterance:
    fields = Fields(row)
    made = _Utterance(
        turn=fields.whole("turn", 0, 10**6),
        asked=fields.text("user_prompt"),
        answer=_answer(fields, "model_response"),
        who=fields.text("user_id"),
        created=fields.words("generated_datetime"),
    )
    fields.done()
    return made


def _by_conversation(rows: Iterator[Located], reading: Reading) -> list[Located]:
    """The utterances of each conversation, wherever they stand: a later turn is asked after the earlier ones."""
    together: dict[str, list[_Utterance]] = {}
    units: list[Located] = []
    for where, row in rows:
        try:
            if isinstance(row, DataError):
                raise row
            one = _utterance(row)
        except DataError as error:
            units.append((where, error))
            continue
        key = repr(row.get("conversation_id"))
        if key not in together:
            together[key] = []
            units.append((where, together[key]))
        elif any(other.turn == one.turn and other.asked != one.asked for other in together[key]):
            units.append((where, DataError(f"user_prompt: another one than that of other answers of turn {one.turn}")))
            continue
        together[key].append(one)
    return units


def _utterances(said: Sequence[_Utterance], reading: Reading) -> list[Judgement]:
    turns: dict[int, _Turn] = {}
    for one in said:
        turns.setdefault(one.turn, _Turn(one.asked)).answers.append(one.answer)
    who = annotator_of(reading, said[0].who)
    return _judged([turns[number] for number in sorted(turns)], who, reading, said[0].created)


_SOURCES = {
    "card": "data/prism_datacard.md of github.com/HannahKirk/prism-alignment at 2572ed9: a sliding scale from "
    "Terrible (1) to Perfect (100); the conversation goes on with the highest-rated model",
    "loaders": "code that reads the set, such as PRISM/prepare.py of facebookresearch/LoRe",
}
_PAIRS = (
    "of every two answers of one turn a comparison, all of one group: the higher score is better, equal ones are a "
    "tie, the difference is the margin"
)

PRISM_UTTERANCES = Layout(
    name="prism-utterances",
    sets="HannahRoseKirk/prism-alignment, utterances",
    known_by=("conversation_id", "user_id", "turn", "user_prompt", "model_response", "score", "if_chosen"),
    columns=(
        *columns_of(
            "card",
            conversation_id="rows of one conversation are read together",
            user_id="the annotator",
            user_prompt="the prompt, a conversation; after the first turn with what was said before",
            model_response="a response",
            score=(_PAIRS, "number"),
        ),
        *columns_of(
            "loaders",
            turn=("the order of the turns, from 0", "number"),
            if_chosen=("which answer is in the prompts of later turns", "flag"),
            model_name="the author of the response",
            generated_datetime="when",
        ),
        *unread(
            "loaders",
            "utterance_id",
            "interaction_id",
            "within_turn_id",
            "model_provider",
            "included_in_balanced_subset",
            "conversation_type",
            "timing_duration_s",
            "timing_duration_mins",
        ),
    ),
    sources=_SOURCES,
    read=_utterances,
    units=_by_conversation,
)

PRISM_CONVERSATIONS = Layout(
    name="prism-conversations",
    sets="HannahRoseKirk/prism-alignment, conversations",
    known_by=("conversation_id", "user_id", "conversation_history"),
    columns=(
        *columns_of("card", user_id="the annotator"),
        PublishedColumn(
            "conversation_history",
            f"messages of the user and of models (`role`, `content`, `model_name`, `turn`). `score`: {_PAIRS}. "
            "`if_chosen`: which answer is in the prompts of later turns",
            "loaders",
            "json",
        ),
        *columns_of("loaders", generated_datetime="when"),
        *unread(
            "loaders",
            "conversation_id",
            "included_in_balanced_subset",
            "conversation_type",
            "opening_prompt",
            "conversation_turns",
            "open_feedback",
            "timing_duration_s",
            "timing_duration_mins",
        ),
        *(PublishedColumn(name, "", UNCHECKED, "json") for name in ("performance_attributes", "choice_attributes")),
    ),
    sources=_SOURCES,
    read=_conversation,
)
