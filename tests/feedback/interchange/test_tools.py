"""What annotation tools write, read as their own documentation says; what is passed over is counted and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.errors import DataError
from rlhf_env.feedback.interchange import LabelConfig, Reading, judgements_in
from rlhf_env.feedback.judgements import Judgement
from rlhf_env.feedback.kinds import Comparison, Ranking, Rating

PAIR = {"prompt": "Hi?", "answer1": "A", "answer2": "B"}
LEFT = {"from_name": "pw", "to_name": "answer1,answer2", "type": "pairwise", "value": {"selected": "left"}}
CONFIG = """<View><Text name="p" value="$question_text"/><Text name="left" value="$second_try"/>
<Text name="right" value="$first_try"/><Pairwise name="pw" toName="left,right"/>
<Rating name="stars" toName="left" maxRating="10"/><Number name="grade" toName="right" min="1" max="5"/></View>"""


def read(folder: Path, content: Any, name: str = "tasks.json", **how: Any) -> tuple[list[Judgement], dict[str, int]]:
    """The judgements, and what was passed over."""
    file = folder / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    reading = Reading(source=name, **how)
    return judgements_in(file, reading), dict(reading.passed_over)


def task(*results: Any, data: Any = PAIR, **annotation: Any) -> dict[str, Any]:
    return {"id": 1, "data": data, "annotations": [{"id": 5, "completed_by": 1, "result": list(results), **annotation}]}


def winner(judgement: Judgement) -> str:
    assert isinstance(judgement, Comparison) and judgement.preference
    return judgement.preference.chosen.text


# ---------------------------------------------------------------- Label Studio


@pytest.mark.parametrize(
    ("data", "to_name", "selected", "wins"),
    [
        ({"prompt": "q", "answer2": "B", "answer1": "A"}, "answer1,answer2", "left", "A"),
        (PAIR, "answer2,answer1", "left", "B"),
        (PAIR, "t2,t1", "right", "A"),
        ({**PAIR, "answer_id": "77", "text_source": "web"}, "t1,t2", "left", "A"),
        ({"prompt": "q", "mine": "A", "yours": "B"}, "yours,mine", "left", "B"),
    ],
)
def test_left_is_the_first_of_to_name(tmp_path: Path, data: Any, to_name: str, selected: str, wins: str) -> None:
    result = {**LEFT, "to_name": to_name, "value": {"selected": selected}}
    (judgement,), passed = read(tmp_path, [task(result, data=data)])
    assert (winner(judgement), judgement.criterion, passed) == (wins, "pw", {})
    assert {response.text for response in judgement.responses} == {"A", "B"}


def test_sides_that_nobody_can_tell_need_the_configuration(tmp_path: Path) -> None:
    data = {"question_text": "Hi?", "first_try": "A", "second_try": "B"}
    stars = {"from_name": "stars", "to_name": "left", "type": "rating", "value": {"rating": 4}}
    grade = {"from_name": "grade", "to_name": "right", "type": "number", "value": {"number": 2}}
    given = [task({**LEFT, "to_name": "left,right"}, stars, grade, data=data)]
    with pytest.raises(DataError, match="question_text"):
        read(tmp_path, given)
    (tmp_path / "config.xml").write_text(CONFIG)
    config = LabelConfig.read(tmp_path / "config.xml")
    (pair, graded), passed = read(tmp_path, given, label_config=config)
    assert (winner(pair), pair.prompt.text) == ("B", "Hi?")
    assert isinstance(graded, Rating) and (graded.response.text, graded.score, graded.criterion) == ("A", 2, "grade")
    assert passed == {"Label Studio 'stars': ratings of a scale that is not 1 to 5": 1}
    minimal = [{**data, "pw": [{"selected": "left"}], "annotator": 3, "annotation_id": 9, "lead_time": 1.5}]
    (least,), _ = read(tmp_path, minimal, label_config=config)
    assert (winner(least), least.annotator, least.seconds) == ("B", "label-studio user 3", 1.5)
    header = "question_text,first_try,second_try,pw,annotator,annotation_id,lead_time\n"
    table = header + 'Hi?,A,B,"[{""selected"": ""left""}]",3,9,1.5\n'
    (row,), _ = read(tmp_path, table, "result.csv", label_config=config)
    assert (winner(row), row.annotator, row.seconds) == ("B", "label-studio user 3", 1.5)


def test_each_result_is_a_judgement_and_words_are_its_note(tmp_path: Path) -> None:
    why = {"from_name": "why", "to_name": "p", "type": "textarea", "value": {"text": ["kinder", "shorter"]}}
    reason = {"from_name": "reason", "to_name": "p", "type": "choices", "value": {"choices": ["helpful"]}}
    stars = {"from_name": "quality", "to_name": "t1", "type": "rating", "value": {"rating": 4}}
    spans = {"from_name": "ner", "to_name": "p", "type": "labels", "value": {"start": 0, "end": 1, "labels": ["x"]}}
    (pair, rating), passed = read(tmp_path, [task(reason, why, spans, LEFT, stars)])
    assert winner(pair) == "A"
    assert isinstance(rating, Rating) and (rating.response.text, rating.score, rating.criterion) == ("A", 4, "quality")
    assert pair.note == "reason: helpful\nwhy: kinder, shorter"  # type: ignore[attr-defined]
    assert passed == {"Label Studio 'ner': results of the type 'labels'": 1}


def test_what_is_no_annotation_is_counted(tmp_path: Path) -> None:
    given = task(LEFT)
    given |= {"predictions": [{"result": [LEFT]}], "drafts": [{"result": [LEFT]}, {"result": [LEFT]}]}
    given["annotations"] += [
        {"id": 6, "completed_by": 2, "was_cancelled": True, "result": [LEFT]},
        {"id": 7, "completed_by": 2, "result": []},
        {"id": 8, "completed_by": None, "result": [LEFT]},
        {"id": 9, "completed_by": {"id": 4, "email": "zoe@example.org"}, "result": [LEFT]},
    ]
    made, passed = read(tmp_path, [given])
    nobody = "label-studio annotation 8, by somebody who was deleted"
    assert [it.annotator for it in made] == ["label-studio user 1", nobody, "label-studio user 4"]
    assert passed == {
        "Label Studio: predictions": 1,
        "Label Studio: drafts": 2,
        "Label Studio: skipped annotations": 1,
        "Label Studio: annotations without a result": 1,
    }


def test_buckets_are_groups_unless_an_order_is_given(tmp_path: Path) -> None:
    items = [{"id": str(i), "body": body} for i, body in enumerate("ABC", start=1)]
    data = {"prompt": "Hi?", "items": items}
    ranker = {"from_name": "rank", "to_name": "items", "type": "ranker"}
    buckets = {**ranker, "value": {"ranker": {"bad": ["1", "3"], "good": ["2"], "_": []}}}
    with pytest.raises(DataError, match=r"'bad', 'good', which are groups without an order: --buckets bad,good gives"):
        read(tmp_path, [task(buckets, data=data)])
    (ranked,), _ = read(tmp_path, [task(buckets, data=data)], buckets=("good", "bad"))
    assert isinstance(ranked, Ranking) and (ranked.ranks, ranked.criterion) == ((2, 1, 2), "rank")
    order = {**ranker, "value": {"ranker": {"rank": ["3", "1", "2"]}}}
    (ranked,), _ = read(tmp_path, [task(order, data=data)])
    assert isinstance(ranked, Ranking) and ranked.ranks == (2, 3, 1)


# ---------------------------------------------------------------- Argilla

FIELDS = {"prompt": "Hi?", "response_1": "A", "response_2": "B"}


def record(responses: Any, fields: Any = FIELDS, **more: Any) -> dict[str, Any]:
    return {"id": "r1", "fields": fields, "metadata": {}, "suggestions": {}, "responses": responses, **more}


def said(value: Any, user: Any = "u", **more: Any) -> list[dict[str, Any]]:
    return [{"value": value, "user_id": user, **more}]


def test_questions_are_criteria_and_comments_are_notes(tmp_path: Path) -> None:
    responses = {
        "more_helpful": said("response_1"),
        "more_harmless": said("response_2"),
        "comments": said("I like it"),
        "topics": said(["food", "travel"]),
        "marks": said([{"start": 0, "end": 1, "label": "x"}]),
    }
    (one, two), passed = read(tmp_path, [record(responses, suggestions={"more_helpful": {"value": "response_2"}})])
    assert [(it.criterion, winner(it)) for it in (one, two)] == [("more_helpful", "A"), ("more_harmless", "B")]
    assert one.note == "comments: I like it\ntopics: food, travel"  # type: ignore[attr-defined]
    assert passed == {"Argilla 'marks': spans": 1, "Argilla: suggestions": 1}


def test_verdicts_and_labels_that_are_none(tmp_path: Path) -> None:
    values = ["both bad", "Tie", "response_2", "a little better"]
    made, passed = read(tmp_path, [record({"better": said(value, f"u{i}")}) for i, value in enumerate(values)])
    assert [it.verdict for it in made] == ["both bad", "tie", "second"]  # type: ignore[attr-defined]
    assert passed == {"Argilla 'better': 'a little better' is no answer that is known": 1}


def test_each_layout_of_argilla_says_the_same(tmp_path: Path) -> None:
    """2.x nested and flat, 1.x records and data sets: the submitted answer of one user, the draft of another."""
    answers = [
        {"value": "response_1", "user_id": "u1", "status": "submitted"},
        {"value": "response_2", "user_id": "u2", "status": "draft"},
    ]
    flat = {"better.responses": ["response_1", "response_2"], "better.responses.users": ["u1", "u2"]}
    values = [{"better": {"value": it["value"]}} for it in answers]
    of_1x = [
        {"user_id": it["user_id"], "status": it["status"], "values": v} for it, v in zip(answers, values, strict=True)
    ]
    for layout in (
        record({"better": answers}),
        {"id": "r1", **FIELDS, **flat, "better.responses.status": ["submitted", "draft"], "better.suggestion": None},
        {"external_id": "r1", "fields": FIELDS, "responses": of_1x, "suggestions": []},
        {**FIELDS, "better": answers, "better-suggestion": None, "external_id": "r1", "metadata": "{}"},
    ):
        (judgement,), passed = read(tmp_path, [layout])
        assert (winner(judgement), judgement.annotator, judgement.criterion) == ("A", "argilla user u1", "better")
        assert passed == {"Argilla: answers of the status draft": 1}


def test_ratings_say_which_response_and_on_which_scale(tmp_path: Path) -> None:
    responses = {"quality_response_2": said(4), "tone_1": said(2), "overall": said(3), "wide_1": said(9)}
    made, passed = read(tmp_path, [record(responses)])
    assert [(it.response.text, it.score, it.criterion) for it in made] == [  # type: ignore[attr-defined]
        ("B", 4, "quality"),
        ("A", 2, "tone"),
    ]
    assert passed == {
        "Argilla 'overall': ratings of which the question does not name the response": 1,
        "Argilla 'wide_1': ratings of a scale that is not 1 to 5": 1,
    }


def test_rankings_may_tie_and_name_fields_of_any_name(tmp_path: Path) -> None:
    fields = {"prompt": "Hi?", "mine": "A", "yours": "B", "theirs": "C"}
    ranks = [{"value": "theirs", "rank": 1}, {"value": "mine", "rank": 2}, {"value": "yours", "rank": 2}]
    (ranked,), _ = read(tmp_path, [record({"order": said(ranks)}, fields)])
    assert isinstance(ranked, Ranking)
    assert ([it.text for it in ranked.responses], ranked.ranks) == (["A", "B", "C"], (2, 2, 1))


def test_what_a_tag_is_taken_for_is_said(tmp_path: Path) -> None:
    """A tag that is no column is the text with the same ending: nobody said so, and the import says it."""
    result = {"from_name": "pw", "to_name": "t1,t2", "type": "pairwise", "value": {"selected": "right"}}
    task = {"id": 1, "data": {"prompt": "Hi?", "answer2": "A", "answer1": "B"}}
    annotated = [{**task, "annotations": [{"id": 1, "completed_by": 3, "result": [result]}]}]
    (tmp_path / "tasks.json").write_text(json.dumps(annotated))
    reading = Reading(source="tasks.json")
    (preference,) = judgements_in(tmp_path / "tasks.json", reading)
    assert isinstance(preference, Comparison) and preference.preference
    assert preference.preference.chosen.text == "A"
    assert [words.partition(",")[0] for words in reading.assumed] == [
        "the tag 't1' shows the column 'answer1'",
        "the tag 't2' shows the column 'answer2'",
    ]
    times = {"created_at": "x", "updated_at": "x", "lead_time": 1.0, "annotation_id": 1, "annotator": 1}
    row = {"id": 1, "prompt": "Hi?", "answer1": "A", "answer2": "B", "pw": "left", **times}
    (tmp_path / "min.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match="JSON-MIN and CSV do not say which text is on which side: give the labeling"):
        judgements_in(tmp_path / "min.json", Reading(source="min.json"))
