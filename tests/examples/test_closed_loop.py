"""The loop closed by hand, in small: the chain ends, votes arrive as they were cast, and blind pairs are counted.

`make closed-loop` is the whole of it: there, a taste has to be learned.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra 'annotate' is not installed")
pytest.importorskip("chitchat_dataset", reason="the extra 'demo' is not installed")
from rlhf_env.feedback.kinds import Comparison
from rlhf_env.feedback.store.store import PreferenceStore

sys.path.insert(0, str(Path(__file__).parents[2] / "examples/closed_loop"))
from browser import CHROMIUM
from loop import Sizes
from person import TASTES, verdict

FOLDER = Path(__file__).parents[2] / "examples/closed_loop"
DOCS = Path(__file__).parents[2] / "docs"
PAGES = [Path(__file__).parents[2] / "README.md", FOLDER / "README.md"]


@pytest.mark.parametrize(
    ("taste", "replies", "key"),
    [
        ("curious", ["I am good.", "What do you like?"], "2"),
        ("curious", ["What do you like?", "I am good."], "1"),
        ("curious", ["What is that?", "Do I like that?"], "1"),  # a question, but about oneself
        ("curious", ["It is late.", "He is good."], "t"),
        ("cheerful", ["That sounds nice!", "That sounds nice."], "1"),
        ("cheerful", ["It was a nice and long day in the big town!", "That is nice!"], "2"),
        ("cheerful", ["Nice nice nice!", "Nice of him!"], "2"),
        ("cheerful", ["Great!", "It is late."], "1"),
    ],
)
def test_a_taste_decides_or_leaves_a_tie(taste: str, replies: list[str], key: str) -> None:
    assert verdict(TASTES[taste], replies) == key


def test_the_pipeline_file_says_what_the_two_files_say() -> None:
    written = {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.toml")}
    pipeline, train, reward_model = (written[name] for name in ("pipeline", "train", "reward_model"))
    stages = {stage["name"]: stage for stage in pipeline["stage"]}
    assert stages["reward_model"]["reward_model"] == reward_model["reward_model"]
    assert stages["reward_model"]["base"] == reward_model["base"]
    del train["rewards"]["bradley_terry"]["model"]  # that of the stage before
    for table in ("rewards", "agent", "budget"):
        assert stages["trained"][table] == train[table]
    for table in ("task", "policy", "environment"):
        assert pipeline["defaults"][table] == train[table]
    sizes = Sizes()
    asked = stages["answers"]["prompts"], stages["votes"]["votes"], stages["blind"]["prompts"], stages["blind"]["votes"]
    assert asked == (sizes.prompts, sizes.votes, sizes.blind, sizes.pairs)
    planned = subprocess.run(
        [sys.executable, "-m", "rlhf_env", "pipeline", FOLDER / "pipeline.toml", "--dry-run"],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert planned.stdout.count("runs: not made yet") == 5, planned.stderr


def _plain(text: str) -> str:
    return " ".join(text.replace("<|turn|>", " ").split())


def _cast(ballot: Path) -> list[tuple[set[str], str | None]]:
    """Of each vote that the person noted: what was read, and the winner (None: a tie)."""
    votes = [json.loads(line) for line in ballot.read_text(encoding="utf-8").splitlines()]
    replies = [[_plain(text) for text in vote["replies"]] for vote in votes]
    keys = [vote["key"] for vote in votes]
    return [(set(both), None if key == "t" else both[int(key) - 1]) for both, key in zip(replies, keys, strict=True)]


def _stored(comparisons: Iterable[Any]) -> list[tuple[set[str], str | None]]:
    return [
        ({_plain(it.first.text), _plain(it.second.text)}, it.preference and _plain(it.preference.chosen.text))
        for it in comparisons
    ]


def test_the_chain_ends_and_counts_what_was_judged(tmp_path: Path) -> None:
    where = ["--out", tmp_path, "--tastes", "curious", "--seeds", "3", "--small"]
    browser = [] if CHROMIUM else ["--no-browser"]
    command = [sys.executable, FOLDER / "loop.py", *where, *browser]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "curious-3"

    with PreferenceStore(folder / "votes.sqlite") as store:
        judged = list(store.comparisons())
    assert len(judged) == 12
    assert _stored(judged) == _cast(folder / "votes.ballot.jsonl")
    assert {it.annotator for it in judged} == {"the person"}

    with PreferenceStore(folder / "blind.sqlite") as store:
        blind = [it for it in store.judgements() if isinstance(it, Comparison)]
    assert len(blind) == 6
    assert _stored(blind) == _cast(folder / "blind.ballot.jsonl")
    assert all({it.first.author.name, it.second.author.name} == {"trained", "reference"} for it in blind)
    won = [it.preference.chosen.author.name == "trained" if it.preference else 0.5 for it in blind]
    asked_in_training = {it.prompt.id for it in judged}
    assert asked_in_training.isdisjoint(it.prompt.id for it in blind)

    ties = sum(it.preference is None for it in judged)
    row = re.search(r"^curious +3 +12 +(\d+) +\S+ +6 +(\S+) \(", done.stdout, re.MULTILINE)
    assert row is not None, done.stdout
    assert (int(row[1]), float(row[2])) == (ties, pytest.approx(sum(won) / 6, abs=0.006))

    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    (kept,) = results["loops"]
    assert (kept["votes"], kept["ties"], kept["pairs"]) == (12, ties, 6) and kept["win_rate"][0] == float(row[2])
    assert 0 < kept["at_the_page"] <= kept["seconds"] and results["processor_minutes"] > 0
    assert done.stdout.splitlines()[-1].endswith(f"these numbers: {tmp_path}/results.json")
    assert "curious-3: rlhf-env train train.toml --out trained" in done.stdout, "while it runs"
    if (DOCS / "example_tables.py").exists():
        replies = runpy.run_path(str(DOCS / "example_tables.py"))["read"](tmp_path)["replies"]
        first = blind[0]
        both = {it.author.name: _plain(it.text) for it in (first.first, first.second)}
        shown = {"prompt": _plain(first.prompt.text), "shipped": both["reference"], "curious": both["trained"]}
        assert replies["first"][0] == shown and len(replies["first"]) == 6
        assert replies["most"]["curious"][1] >= 1

    commands = [shlex.split(line) for line in (folder / "commands.txt").read_text(encoding="utf-8").splitlines()]
    for page in PAGES:
        assert _shown_in(page) == [_without_values(words) for words in commands], f"{page}: other commands than are run"


def _without_values(words: list[str]) -> list[str]:
    """A command without the seed, and without how many prompts."""
    following = [*words[1:], ""]
    return [word for word, then in zip(words, following, strict=True) if not (word.isdigit() or then.isdigit())]


def _shown_in(page: Path) -> list[list[str]]:
    """The commands of the section "closed by hand"."""
    _, _, section = page.read_text(encoding="utf-8").partition("closed by hand\n")
    block = re.search(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert block is not None
    return [_without_values(shlex.split(line, comments=True)) for line in block[1].splitlines()]
