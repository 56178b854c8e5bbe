"""A judging model as an annotator, and as a reward of a run: its votes in a store, its costs in the metrics."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from chat_server import api, between, judging

from rlhf_env.cli import main as cli
from rlhf_env.errors import DataError, RewardError
from rlhf_env.feedback.asking.annotators import asks_for_gold, load_annotator
from rlhf_env.feedback.asking.judge import JudgeAnnotator
from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.feedback.kinds import Comparison, Rating
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.lab.evaluation.runs import run
from rlhf_env.learning.experiment import Experiment
from rlhf_env.testing import make_episode
from rlhf_env.types import Prompt

RNG = np.random.default_rng(0)


def taste(question: str) -> str:
    """The longer of two; of one, a point for each letter."""
    if "[Response A]" not in question:
        return f"Score: {len(between(question, 'The response', 'End of the response'))}"
    first = between(question, "Response A", "Response B")
    second = between(question, "Response B", "End of the responses")
    return f"Verdict: {'A' if len(first) > len(second) else 'B'}"


def test_it_compares_and_rates() -> None:
    one, two, three = (make_episode("q", text) for text in ("aa", "aaaa", "bbbb"))
    with judging(taste) as server:
        judge = JudgeAnnotator(url=api(server), model="m", cache_mb=0)
        # Of two as long ones, B is said whatever is B: a tie.
        assert judge.compare([(one, two), (two, one), (two, three)], RNG) == ["second", "first", "tie"]
        assert judge.rate([one, two], RNG) == [2, 4]
        with pytest.raises(DataError, match="ends in no score from 1 to 5: change the rubric"):
            judge.rate([make_episode("q", "a" * 6)], RNG)
    with judging(lambda _: "I cannot tell.") as server:
        assert JudgeAnnotator(url=api(server), model="m", cache_mb=0).compare([(one, two)], RNG) == ["cannot say"]
    judge = JudgeAnnotator(url=api(server), model="m", cache_mb=0, attempts=1)
    for ask in (lambda: judge.compare([(one, two)], RNG), lambda: judge.rate([one], RNG)):
        with pytest.raises(RewardError, match="ConnectionRefusedError"):
            ask()


def test_who_goes_by_gold() -> None:
    table = {"name": "judge", "url": "https://judge.example.org/v1", "model": "m"}
    assert load_annotator(table, person="judge 2").name == "judge 2"
    assert not asks_for_gold(table) and asks_for_gold({"name": "simulated"}) and asks_for_gold({"name": "simulatde"})


def test_its_votes_go_to_a_store_without_a_gold_reward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["rlhf-env", "preferences", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert not ended.value.code, said.err
        return said.out

    def written(text: str) -> Response:
        return Response(text, Author("policy", "m", 1.0), ids=(1, 2), prompt_ids=(3,), finish_reason="stop")

    with PreferenceStore(tmp_path / "s.sqlite") as store:
        for number in range(3):
            store.add_response(Prompt(f"q{number}", f"question {number}"), *(written(it) for it in ("a", "bbb")))
    command("ask", "s.sqlite")
    command("ask", "s.sqlite", "--kind", "rating")
    with judging(taste) as server:
        settings = f'[annotator]\nname = "judge"\nurl = "{api(server)}"\nmodel = "m"\ncache = "answers.sqlite"\n'
        (tmp_path / "judge.toml").write_text(settings)
        said = command("simulate", "s.sqlite", "judge.toml")
    ended = "judge 1: 9 questions asked, 0 answered before; 63 prompt tokens, 27 completion tokens\n"
    assert said == f"6 votes; 6 of 6 votes on 6 items, 6 complete\n{ended}"
    with PreferenceStore(tmp_path / "s.sqlite") as store:
        votes = list(store.judgements())
    pairs = [it for it in votes if isinstance(it, Comparison)]
    assert [it.preference and it.preference.chosen.text for it in pairs] == ["bbb"] * 3
    assert all(it.score == len(it.response.text) for it in votes if isinstance(it, Rating))
    assert {it.annotator for it in votes} == {"judge 1"}


def test_a_run_is_charged_for_what_it_asks_and_asks_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "canary-key")
    (tmp_path / "mine.txt").write_text("How many letters has {response}, to {prompt}? Score: N")
    with judging(lambda it: f"Score: {1 + it.count('a')}" if "bbb" not in it else "?") as server:
        (tmp_path / "toy.toml").write_text(f"""\
name = "toy"
[task]
name = "count"
target = 4
[policy]
tokenizer = "alphabet:ab:"
[environment]
num_envs = 8
max_new_tokens = 4
[rewards.judge]
url = "{api(server)}"
model = "m"
rubric = "mine.txt"
cache = "{tmp_path / "answers.sqlite"}"
token_env = "JUDGE_KEY"
[agent]
name = "reinforce"
[budget]
updates = 3
[evaluation]
prompts = 1
""")
        first = run(Experiment.load(tmp_path / "toy.toml"), tmp_path / "one")
        asked = len(server.seen)
        lines = (tmp_path / "one/metrics.jsonl").read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if "rollout/logged/judge/requests" in row]
        assert len(rows) == 3 and 0 < sum(row["rollout/logged/judge/requests"] for row in rows) <= asked
        assert sum(row["rollout/logged/judge/prompt_tokens"] for row in rows) % 7 == 0
        second = run(Experiment.load(tmp_path / "toy.toml"), tmp_path / "two")
        assert len(server.seen) == asked
    assert first.evaluation == second.evaluation
    for file in (it for it in tmp_path.rglob("*") if it.is_file()):
        assert b"canary" not in file.read_bytes(), file
