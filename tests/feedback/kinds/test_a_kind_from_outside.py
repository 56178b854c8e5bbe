"""A kind of judgement that a plugin offers goes everywhere: stored, exported, imported, learned from, on the page.

The kind is `acceptance` (`conftest.py`): one response, a choice of two and a comment. Nothing in the house knows of it
beside its one entry.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_env import plugins
from rlhf_env.cli import main as cli
from rlhf_env.errors import ConfigError, DataError, PluginError
from rlhf_env.feedback.asking.agreement import agreement_of
from rlhf_env.feedback.asking.collecting import items_of, judge_items
from rlhf_env.feedback.interchange import Format, read_judgements, without_emails, write_judgements
from rlhf_env.feedback.judgements import Author, Judgement, Response
from rlhf_env.feedback.kinds import (
    Form,
    JudgementKind,
    Option,
    Rating,
    TextInput,
    kind_named,
    kind_names,
    preferences_of,
)
from rlhf_env.feedback.reward_models.config import RewardModelConfig
from rlhf_env.feedback.reward_models.fitting import fit_reward_model
from rlhf_env.feedback.store.items import Item
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.types import Episode, Prompt

PERSON = Author("human", "zoe@example.org")
PROMPT = Prompt("p", "question", {"level": 1})
ODD = 'a "word", \n=1+1 \u202e'


def accepted(kind: JudgementKind, text: str, accepted: bool, annotator: str = "ann", comment: str = "") -> Judgement:
    answer = {"accepted": accepted, "comment": comment}
    when: dict[str, Any] = {"created": "2024-05-01T10:00:00+00:00", "seconds": 2.5, "weight": 0.5}
    return kind(PROMPT, [Response(text, PERSON)], answer, annotator=annotator, criterion="kind", **when)


def judged(kind: JudgementKind) -> list[Judgement]:
    return [
        accepted(kind, "yes", True, comment=ODD),
        accepted(kind, "no", False),
        accepted(kind, "yes", True, "bob"),
        accepted(kind, "no", True, "bob", "tie"),
    ]


def test_stored_and_read_back_without_a_new_column(acceptance: JudgementKind, tmp_path: Path) -> None:
    given = judged(acceptance)
    with PreferenceStore(tmp_path / "s.sqlite") as store:
        assert [store.add(given), store.add(given)] == [4, 0]
        assert list(store.judgements()) == list(store.judgements(kind="acceptance")) == given
        counts = store.counts().judgements
        assert (counts["acceptances"], counts["accepted"], counts["refused"], counts["ratings"]) == (4, 3, 1, 0)
    with sqlite3.connect(tmp_path / "s.sqlite") as file:
        (payload,) = file.execute("SELECT payload FROM judgements LIMIT 1").fetchone()
    assert json.loads(payload) == {"accepted": True, "comment": ODD}


def test_a_store_without_the_plugin_says_what_is_missing(acceptance: JudgementKind, tmp_path: Path) -> None:
    with PreferenceStore(tmp_path / "s.sqlite") as store:
        store.add(judged(acceptance))
        del plugins.host()._entries["judgement", "acceptance"]
        assert store.counts().judgements["acceptance"] == 4
        with pytest.raises(DataError, match="kind: 'acceptance' is none of comparison, rating, ranking, criteria"):
            list(store.judgements())


@pytest.mark.parametrize(
    ("format", "suffix"), [("jsonl", "jsonl"), ("csv", "csv"), ("argilla", "json"), ("label-studio", "json")]
)
def test_exported_and_imported_again(acceptance: JudgementKind, tmp_path: Path, format: Format, suffix: str) -> None:
    given = [*judged(acceptance), Rating(PROMPT, Response("yes", PERSON), 4, "cid")]
    file = tmp_path / f"file.{suffix}"
    assert write_judgements(file, given, format) == len(given)
    assert read_judgements(file) == given
    write_judgements(file, without_emails(given), format)
    assert "zoe@example.org" not in file.read_text()
    assert "person 1" in file.read_text()


def test_what_another_program_adds_is_read_by_the_names_of_its_fields(
    acceptance: JudgementKind, tmp_path: Path
) -> None:
    file = tmp_path / "file.json"
    write_judgements(file, judged(acceptance)[:1], "argilla")
    (record,) = json.loads(file.read_text())
    assert set(record["responses"]) == {"acceptance.accepted", "acceptance.comment"}
    for field, value in (("accepted", False), ("comment", "response_1")):
        record["responses"][f"acceptance.{field}"].append({"value": value, "user_id": "u2"})
    file.write_text(json.dumps([record]))
    mine, theirs = read_judgements(file)
    assert mine == judged(acceptance)[0]
    assert acceptance.answer_of(theirs) == {"accepted": False, "comment": "response_1"}, "a text is no comparison"
    assert theirs.annotator == "argilla user u2"


def test_it_becomes_pairs_and_good_and_bad_answers(acceptance: JudgementKind, tmp_path: Path) -> None:
    """Within one person: Ann accepts one of two, Bob both."""
    (pair,) = preferences_of(judged(acceptance))
    assert (pair.chosen.text, pair.rejected.text, pair.annotator, pair.criterion) == ("yes", "no", "ann", "kind")
    assert pair.weight == 0.5
    write_judgements(tmp_path / "unpaired.jsonl", judged(acceptance), "trl-unpaired")
    rows = [json.loads(line) for line in (tmp_path / "unpaired.jsonl").read_text().splitlines()]
    assert [(row["completion"], row["label"]) for row in rows] == [
        ("yes", True),
        ("no", False),
        ("yes", True),
        ("no", True),
    ]


def test_a_reward_model_learns_from_it(acceptance: JudgementKind, trunk: Path) -> None:
    learned = list(acceptance.lessons_of(judged(acceptance)[1]))
    assert [(it.score, it.weight, [one.text for one in it.responses]) for it in learned] == [(1, 0.5, ["no"])]
    config = RewardModelConfig(epochs=8, validation=0.0, learning_rate=3e-3, batch_size=4)
    model, record = fit_reward_model(judged(acceptance)[:2], trunk, config, generator=torch.Generator().manual_seed(0))
    good, bad = model.score_responses([(PROMPT, Response(text, PERSON)) for text in ("yes", "no")])
    assert record.pairs == 2
    assert good > bad


def test_how_far_people_agree(acceptance: JudgementKind) -> None:
    (found,) = agreement_of(judged(acceptance), np.random.default_rng(0), resamples=10)
    assert (found.kind, found.criterion, found.judgements, found.units) == ("acceptance", "kind", 4, 2)
    assert found.agreement.value == 0.5


# -------------------------------------------------------------------- asked about


class Judge:
    """A simulated annotator who accepts short answers."""

    name = "short"

    def compare(self, pairs: object, _rng: object) -> list[Any]:
        raise AssertionError

    def judge(self, kind: str, episodes: Sequence[Episode], _rng: object) -> object:
        return {"accepted": len(episodes[0].response_ids) < 3, "comment": kind}


def test_items_are_made_and_judged_by_a_simulated_annotator(
    acceptance: JudgementKind, tmp_path: Path, episode: Any, author: Author
) -> None:
    texts = [Response.from_episode(episode([5] * words), author) for words in (1, 4)]
    items = items_of([(PROMPT, text) for text in texts], "acceptance", np.random.default_rng(0), per_prompt=None)
    assert len(items) == 2
    with PreferenceStore(tmp_path / "s.sqlite") as store:
        store.add_items(items)
        assert [item for _, item in store.items()] == items
        assert judge_items(store, Judge(), np.random.default_rng(0)) == 2
        answers = {it.responses[0]: acceptance.answer_of(it) for it in store.judgements()}
    assert answers == {text: {"accepted": text is texts[0], "comment": "acceptance"} for text in texts}


def test_the_commands_know_it(
    acceptance: JudgementKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "s.sqlite")
    (tmp_path / "theirs.csv").write_text("prompt,response\nq,a\n")
    import_them = ["responses", store, str(tmp_path / "theirs.csv")]
    for words in (import_them, ["ask", store, "--kind", "acceptance"], ["show", store]):
        monkeypatch.setattr(sys, "argv", ["rlhf-env", "preferences", *words])
        with pytest.raises(SystemExit, match="0"):
            cli.main()
    said = capsys.readouterr().out
    assert "1 items asked for" in said
    assert "acceptances         0\naccepted            0\nrefused             0\n" in said


def test_the_page_serves_its_form_and_takes_its_vote(acceptance: JudgementKind, tmp_path: Path) -> None:
    pytest.importorskip("starlette", reason="the extra 'annotate' is not installed")
    from starlette.testclient import TestClient

    from rlhf_env.feedback.page.keys import Keys
    from rlhf_env.feedback.page.server import PageConfig, page

    path, own = tmp_path / "s.sqlite", "http://127.0.0.1:8765"
    with PreferenceStore(path) as store:
        store.add_items([Item(kind="acceptance", prompt=PROMPT, responses=(Response("yes", PERSON),))])
    keys = Keys.of(path)
    with TestClient(page(PageConfig(store=path), keys, port=8765), base_url=own, headers={"Origin": own}) as client:
        entered = client.post("/api/enter", json={"token": keys.token, "annotator": "Ann"}).json()
        client.headers["X-CSRF-Token"] = entered["csrf"]
        item = client.post("/api/next", json={}).json()["item"]
        choice, words = item["form"]["inputs"]
        assert item["form"]["question"] == "Would you send this response?"
        assert (choice["type"], choice["name"], choice["label"]) == ("choice", "accepted", "Send it")
        assert [(it["value"], it["label"]) for it in choice["options"]] == [
            (True, "As it is"),
            (False, "Not like this"),
        ]
        assert (words["type"], words["name"], words["label"]) == ("text", "comment", "Why?")
        vote = {"item": item["id"], "ticket": item["ticket"], "key": "k", "seconds": 1}
        for answer, problem in (
            ("yes", "answer: expected an object with accepted, comment"),
            ({"comment": ""}, "accepted: missing"),
            ({"accepted": True, "shape": 1}, "shape: no such field of the kind 'acceptance'"),
            ({"accepted": "yes"}, "accepted: 'yes' is none of True, False"),
        ):
            refused = client.post("/api/vote", json={**vote, "answer": answer})
            assert (refused.status_code, problem in refused.json()["problems"][0]) == (422, True), refused.json()
        answer = {choice["name"]: choice["options"][1]["value"], words["name"]: ODD}
        assert client.post("/api/vote", json={**vote, "answer": answer}).json()["new"] is True
    with PreferenceStore(path) as store:
        (kept,) = store.judgements()
    assert acceptance.answer_of(kept) == {"accepted": False, "comment": ODD}
    assert (kept.annotator, kept.responses) == ("Ann", (Response("yes", PERSON),))


# -------------------------------------------------------------------- what is wrong


def test_what_is_registered_has_to_be_a_kind_of_that_name(acceptance: JudgementKind) -> None:
    assert kind_names() == ["comparison", "rating", "ranking", "criteria", "abstention", "acceptance"]
    plugins.register_judgement("guess", acceptance)
    with pytest.raises(PluginError, match="judgement 'guess': expected a JudgementKind of that name"):
        kind_named("guess")
    plugins.register_judgement("rating", acceptance)
    assert kind_named("rating").judgement is Rating, "a built-in kind stays what it is"


def test_inputs_have_names_of_their_own() -> None:
    words = TextInput(name="a")
    for inputs in ((), (words, words), (words, TextInput())):
        with pytest.raises(ConfigError, match="form: its inputs are"):
            Form(question="?", inputs=inputs)
    assert Form(question="?", inputs=(TextInput(),)).inputs[0].name == ""
    assert Option(value=1, label="one").under is None
