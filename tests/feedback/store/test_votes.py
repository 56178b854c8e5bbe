"""Votes are kept as many as they are, and texts are known by what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_env.errors import NotAsked
from rlhf_env.feedback.asking.agreement import agreement_of
from rlhf_env.feedback.interchange import Format, read_judgements, write_judgements
from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.feedback.kinds import Comparison
from rlhf_env.feedback.store.items import Item
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.types import Prompt


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with PreferenceStore(tmp_path / "s.sqlite") as opened:
        yield opened


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    def written(*lines: str, name: str = "votes.csv") -> Path:
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return tmp_path / name

    return written


def test_equal_votes_are_as_many_as_there_are_and_the_file_again_adds_none(store: Any, table: Any) -> None:
    named = table(
        "prompt,chosen,rejected,annotator", *(f"Hi?,A,B,{who}" for who in ("ann", "ben", "cy")), "Hi?,B,A,dee"
    )
    nameless = table("prompt,chosen,rejected", "Hi?,A,B", "Hi?,A,B", "Hi?,A,B", name="nameless.csv")
    for file, votes in ((named, 4), (nameless, 3)):
        assert store.add(read_judgements(file)) == votes
        assert store.add(read_judgements(file)) == 0
    assert [it.annotator for it in store.judgements()] == ["ann", "ben", "cy", "dee", *["nameless.csv"] * 3]
    assert (store.counts().judgements["preferences"], store.counts().responses) == (7, 2)
    again = table("", name="all.jsonl")
    write_judgements(again, store.judgements(), "jsonl")
    assert store.add(read_judgements(again)) == 0, "its own export is nothing new"


def test_two_files_about_the_same_pairs_are_about_the_same_texts(store: Any, table: Any) -> None:
    rows = [[f"q{i}", f"good {i}", f"bad {i}"] for i in range(12)]
    header = "prompt,chosen,rejected"
    files = [table(header, *map(",".join, rows), name="alice.csv")]
    files.append(
        table(
            header,
            *(",".join(row if i > 2 else [row[0], row[2], row[1]]) for i, row in enumerate(rows)),
            name="bob.csv",
        )
    )
    store.add(*map(read_judgements, files))
    assert (store.counts().prompts, store.counts().responses, store.counts().annotators) == (12, 24, 2)
    for judgements in (list(store.judgements()), [it for file in files for it in read_judgements(file)]):
        (agreement,) = agreement_of(judgements, np.random.default_rng(0), resamples=10)
        assert (agreement.units, agreement.agreement.value) == (12, 0.75)


def test_a_text_without_an_author_is_the_one_that_is_there(store: Any, table: Any) -> None:
    """What a policy wrote and a table brings back, judged by hand, is what the policy wrote."""
    policy = Author("policy", "sft", 0.7)
    texts = [Response(text, policy, ids=(i,), prompt_ids=(9,), finish_reason="stop") for i, text in enumerate("AB")]
    store.add_response(Prompt("task/1", "Hi?"), *texts)
    store.add(read_judgements(table("prompt,chosen,rejected", "Hi?,B,A")))
    (vote,) = store.judgements()
    assert (vote.prompt.id, vote.responses) == ("task/1", (texts[1], texts[0]))
    assert (store.counts().prompts, store.counts().responses) == (1, 2)


@pytest.mark.parametrize("format", ["jsonl", "csv", "trl", "trl-conversational", "argilla", "label-studio"])
def test_columns_are_kept_and_exported(store: Any, table: Any, tmp_path: Path, format: Format) -> None:
    header = "prompt,chosen,rejected,annotator,criterion,weight,margin,note"
    store.add(read_judgements(table(header, "Hi?,A,B,ann,kind,0.5,3,because")))
    (vote,) = store.judgements()
    assert (vote.annotator, vote.criterion, vote.weight, vote.margin, vote.note) == ("ann", "kind", 0.5, 3, "because")
    file = (
        tmp_path / f"out{'.csv' if format == 'csv' else '.json' if format in ('argilla', 'label-studio') else '.jsonl'}"
    )
    write_judgements(file, store.judgements(), format)
    (back,) = read_judgements(file)
    assert back == vote
    if format == "trl":
        assert json.loads(file.read_text())["margin"] == 3


def test_a_margin_may_be_the_difference_of_ratings(table: Any) -> None:
    (pair,) = read_judgements(table("prompt,chosen,rejected,chosen_rating,rejected_rating", "q,a,b,5,2"))
    assert isinstance(pair, Comparison) and pair.margin == 3.0


def test_who_gave_votes_is_known_as_far_as_it_is(store: Any, table: Any) -> None:
    store.add(read_judgements(table("prompt,chosen,rejected,annotator", "Hi?,A,B,ann", "Hi?,A,B,ben")), origin="file")
    store.next_item("ann", origin="page")
    store.next_item("robot", origin="simulated")
    store.next_item("robot", origin="page")
    assert store.origins() == {"ann": "page", "ben": "file", "robot": "simulated"}


def test_what_was_never_asked_is_refused(store: Any) -> None:
    pair = (Response("a", Author("human", "z")), Response("b", Author("human", "z")))
    (item,) = store.add_items([Item(kind="comparison", prompt=Prompt("p", "q"), responses=pair, overlap=3)])
    with pytest.raises(NotAsked, match="never put before 'ann'"):
        store.submit(item, "ann", "first", key="k")
    ann, ben = (store.next_item(name) for name in ("ann", "ben"))
    assert ann.ticket != ben.ticket
    with pytest.raises(NotAsked, match="not put before 'ben' like that"):
        store.submit(item, "ben", "first", key="k", ticket=ann.ticket)
    assert store.submit(item, "ben", "first", key="k", ticket=ben.ticket).new
    assert [it.annotator for it in store.judgements()] == ["ben"]
