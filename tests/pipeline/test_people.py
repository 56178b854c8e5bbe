"""Stages in which people judge: they make the items, say where, wait, and go on when enough votes are in."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from faults.processes import rlhf_env, warm_up

from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.pipeline.running import intentions, run_pipeline

MakeFile = Callable[..., Path]
FILE = """\
name = "small"

[defaults]
policy = { model = "trunk" }
task = { name = "file", path = "prompts.jsonl" }
environment = { num_envs = 8, max_new_tokens = 6, max_prompt_tokens = 12 }
evaluation = { prompts = 4 }

[[stage]]
name = "answers"
kind = "responses"
prompts = 6
temperatures = [0.8, 1.5]

[[stage]]
name = "votes"
kind = "annotate"
from = "answers"
guidelines = "Which is shorter?"
votes = 5

[[stage]]
name = "taste"
kind = "reward_model"
from = "votes"
held_out = 0.0
reward_model = { epochs = 1, validation = 0.0 }
"""


def vote(file: Path, count: int, name: str = "ann") -> None:
    """So many votes of a person, for the shorter answer."""
    with PreferenceStore(file) as store:
        for number in range(count):
            asked = store.next_item(name, origin="page")
            assert asked is not None
            one, other = (len(response.text) for response in asked.item.responses)
            answer = "first" if one < other else "second"
            store.submit(asked.id, name, answer, key=f"{name} {asked.id} {number}", ticket=asked.ticket, origin="page")


def test_people_judge_between_two_calls(pipeline: MakeFile, tmp_path: Path) -> None:
    warm_up()
    file, out = pipeline(text=FILE), tmp_path / "out"
    words = ["pipeline", str(file), "--out", str(out)]
    store = out / "votes" / "preferences.sqlite"
    first = rlhf_env(*words)
    assert (first.status, first.stderr) == (4, ""), "a status of its own"
    assert "Stage 'votes' waits: 0 of 5 votes are in. People vote at http://127.0.0.1:8765/#token=" in first.stdout
    assert f"rlhf-env annotate --store {store}" in first.stdout
    assert f"then call again: rlhf-env {' '.join(words)}" in first.stdout
    assert not (out / "taste").exists()
    with PreferenceStore(store) as opened:
        assert [it.guidelines for it in opened.criteria()] == ["Which is shorter?"]

    vote(store, 3)
    assert {it.name: it.step for it in intentions(file, out)} == {"answers": "skip", "votes": "resume", "taste": "run"}
    assert "3 of 5 votes" in run_pipeline(file, out).waiting

    vote(store, 2)
    ended = run_pipeline(file, out)
    assert ended.waiting == ""
    assert ended.stages["votes"].numbers["labels"] == 5
    assert ended.stages["taste"].status == "finished"

    # More votes are no damage: the model is fitted to them too.
    before = ended.stages["taste"].identity
    vote(store, 1)
    ended = run_pipeline(file, out)
    assert ended.stages["votes"].numbers["labels"] == 6
    assert ended.stages["taste"].numbers["labels_used"] == 6
    assert ended.stages["taste"].identity != before
    # How many are enough, and where the page is, changes nothing that was made.
    file.write_text(file.read_text().replace("votes = 5", "votes = 6\nport = 0"))
    assert {it.step for it in intentions(file, out)} == {"skip", "look"}


def test_the_page_is_served_until_enough_votes_are_in(pipeline: MakeFile, tmp_path: Path) -> None:
    pytest.importorskip("starlette", reason="the extra 'annotate' is not installed")
    pytest.importorskip("uvicorn", reason="the extra 'annotate' is not installed")
    file, out = pipeline(("votes = 5", "votes = 2\nserve = true\nport = 0"), text=FILE), tmp_path / "out"

    def later() -> None:
        store = out / "votes" / "preferences.sqlite"
        deadline = time.monotonic() + 120
        while not store.is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        vote(store, 2)

    person = threading.Thread(target=later)
    person.start()
    ended = run_pipeline(file, out)
    person.join()
    assert ended.waiting == ""
    assert ended.stages["votes"].numbers["labels"] == 2


def test_people_evaluate_blind(pipeline: MakeFile, tmp_path: Path) -> None:
    changes = """
[[stage]]
name = "ppo"
kind = "train"
agent = { name = "ppo", lr = 1e-2, group_size = 4 }
rewards = { length = { target = 3 } }
budget = { updates = 2 }

[[stage]]
name = "blind"
kind = "evaluate"
from = "ppo"
by = "people"
"""
    head = FILE[: FILE.index("[[stage]]")]
    file, out = pipeline(text=head + changes), tmp_path / "out"
    assert "of 4 votes" in run_pipeline(file, out).waiting
    store = out / "blind" / "preferences.sqlite"
    with PreferenceStore(store) as opened:
        assert {response.author.name for _, response in opened.responses()} == {"ppo", "reference"}
        assert {item.purpose for _, item in opened.items()} == {"evaluation"}
    vote(store, 4)
    ended = run_pipeline(file, out)
    assert ended.waiting == ""
    numbers = ended.stages["blind"].numbers
    assert numbers["labels"] == 4
    assert numbers["win_low"] <= numbers["win_rate"] <= numbers["win_high"]
