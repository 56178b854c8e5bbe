"""A language model as a judge: what it is asked, how its words are read, what it costs; nothing is asked twice."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rlhf_rewards.judge import Judge
from rlhf_rewards.judge_pairs import JudgePairs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from chat_server import api, between, completion, judging, questions, says
from faults.reward_server import Server, hang_up, say

from rlhf_env import web_calls
from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.envs.toy_tasks import Count
from rlhf_env.errors import ConfigError, RewardError
from rlhf_env.feedback.judging.answer_cache import AnswerCache, Completion, default_cache
from rlhf_env.feedback.judging.chat_model import Spent
from rlhf_env.feedback.judging.rubrics import RUBRICS, score_in, side_in
from rlhf_env.testing import check_reward, make_episode


def length_score(question: str) -> str:
    """2 points for each letter of the response."""
    response = between(question, "The response", "End of the response")
    return f"It is {len(response)} letters long, not score: 9.\n**Score: {2 * len(response)}**"


def longer(question: str) -> str:
    first, second = (
        between(question, "Response A", "Response B"),
        between(question, "Response B", "End of the responses"),
    )
    return "Verdict: " + ("tie" if len(first) == len(second) else "A" if len(first) > len(second) else "B")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(web_calls, "_FIRST_PAUSE", 0.004)
    with judging(length_score) as one:
        yield one


def judge(server: Server, tmp_path: Path, **settings: Any) -> Judge:
    return Judge(url=api(server), model="m", cache=str(tmp_path / "answers.sqlite"), **settings)


TEXTS = [make_episode("q", "ab"), make_episode("q", "abcd"), make_episode("q", "{prompt}"), make_episode("q", "ab")]


def test_a_score_is_where_it_lies_on_the_scale(server: Server, tmp_path: Path) -> None:
    one = judge(server, tmp_path, lowest=0.0, highest=20.0, fields={"top_p": 0.5}, max_tokens=99)
    assert one(TEXTS) == [0.2, 0.4, 0.8, 0.2]
    assert one.take_logged() == {
        "judge/requests": [3.0],  # of two equal texts one
        "judge/prompt_tokens": [21.0],
        "judge/completion_tokens": [9.0],
        "judge/cached": [0.0],
        "judge/abstained": [0.0] * 4,
    }
    path, headers, body = server.seen[0]
    assert path == "/v1/chat/completions" and "Authorization" not in headers
    asked = json.loads(body)
    assert asked.keys() == {"model", "messages", "temperature", "max_tokens", "top_p"}
    assert (asked["model"], asked["temperature"], asked["max_tokens"], asked["top_p"]) == ("m", 0.0, 99, 0.5)
    # What stands in a text is not taken for a place of the rubric.
    assert any(between(it, "The response", "End of the response") == "{prompt}" for it in questions(server))
    assert all("from 0 (useless) to 20 (could" in it for it in questions(server))


def test_what_was_answered_is_not_asked_again_by_whoever(server: Server, tmp_path: Path) -> None:
    scores = judge(server, tmp_path)(TEXTS)
    again = judge(server, tmp_path)
    assert again(TEXTS) == scores and len(server.seen) == 3
    assert again.spent() == Spent(requests=0, cached=3)
    # Whatever decides the answer makes it another question.
    others: list[dict[str, Any]] = [{"temperature": 0.5}, {"max_tokens": 5}, {"highest": 12.0}, {"fields": {"seed": 1}}]
    others += [{"rubric": "harmless"}, {"cache_mb": 0}]
    for number, other in enumerate(others, start=1):
        judge(server, tmp_path, **other)(TEXTS[:1])
        assert len(server.seen) == 3 + number, other
    Judge(url=api(server), model="other", cache=str(tmp_path / "answers.sqlite"))(TEXTS[:1])
    assert len(server.seen) == 4 + len(others)
    # How long it is waited for does not.
    judge(server, tmp_path, attempts=1, patience=5.0, deadline=5.0, connections=1)(TEXTS)
    assert len(server.seen) == 4 + len(others)


def test_votes_are_different_draws_and_their_mean_counts(server: Server, tmp_path: Path) -> None:
    said = iter(["Score: 4", "no idea", "Score: 7", "Score: 11", "nothing", ""])
    server.answers = [says(lambda _: next(said))]
    one = judge(server, tmp_path, votes=3, temperature=1.0, connections=1)
    assert one(TEXTS[:2]) == [0.5, None]  # (3/9 + 6/9) / 2; 11 is not on the scale
    assert one.take_logged()["judge/abstained"] == [0.0, 1.0]
    assert len(set(questions(server))) == 2 and len(server.seen) == 6
    assert one(TEXTS[:2]) == [0.5, None] and len(server.seen) == 6
    mix = load_rewards({"judge": one, "length": {"weight": 0.5, "target": 2}}, Count("a", 4))  # type: ignore[dict-item]
    spoken, silent = mix.score(TEXTS[:2])
    assert set(spoken.raw) == {"judge", "length"} and silent.abstained == ("judge",) and set(silent.raw) == {"length"}


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("Score: 10", 1.0),
        ("score = 1", 0.0),
        ("The score is 5.5.", 0.5),
        ('{"reason": "good", "score": 10}', 1.0),
        ("**Score:** 10/10", 1.0),
        ("Score: [[10]]", 1.0),
        ("I say [[10]]", 1.0),
        ("Score: 3\nNo, wait.\nScore: 10", 1.0),
        ("Score: 0", None),
        ("Score: 10.5", None),
        ("Score: ten", None),
        ("Scores: none", None),
        ("10", None),
        ("Score: nan", None),
        ("Score: 1" + "0" * 400, None),
        ("", None),
    ],
    ids=lambda it: str(it)[:20],
)
def test_how_a_score_is_read(said: str, score: float | None) -> None:
    assert score_in(said, 1.0, 10.0) == score


@pytest.mark.parametrize(
    ("said", "side"),
    [
        ("Verdict: A", "first"),
        ("**Verdict: B**", "second"),
        ("verdict: Response B", "second"),
        ("Verdict: [[tie]]", "tie"),
        ("[[A]]", "first"),
        ("Verdict: A\nVerdict: tie", "tie"),
        ('{"verdict": "B"}', "second"),
        ("Verdict: Apples", None),
        ("Verdict: neither", None),
        ("A", None),
        ("", None),
    ],
)
def test_how_a_verdict_is_read(said: str, side: str | None) -> None:
    assert side_in(said) == side


def test_a_pair_is_won_in_both_orders_or_not_at_all(tmp_path: Path) -> None:
    def pairs(**settings: Any) -> JudgePairs:
        return JudgePairs(url=api(server), model="m", cache_mb=0, **settings)

    group = [make_episode("q", text) for text in ("a", "abc", "ab", "ba")]
    with judging(longer) as server:
        assert pairs().group_rewards(group) == [0.0, 1.0, 0.5, 0.5]
        assert len(server.seen) == 12 and pairs().group_rewards(group[:1]) == [None]
    with judging(lambda _: "Verdict: A") as server:  # whatever is shown first
        assert pairs().group_rewards(group) == [0.5] * 4
        assert pairs(swap=False).group_rewards(group) == [1.0, 2 / 3, 1 / 3, 0.0]
    with judging(lambda it: longer(it) if "abc" in it else "?") as server:
        one = pairs()
        assert one.group_rewards(group) == [0.0, 1.0, 0.0, 0.0]
        assert sum(one.take_logged()["judge_pairs/abstained"]) == 3
        mix = load_rewards({"judge_pairs": one}, Count("a", 4))
        assert [it.total for it in mix.score(group, 4)] == [0.0, 1.0, 0.0, 0.0]


def test_it_passes_what_every_reward_must(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = ("Score: 4", "Verdict: A", "Verdict: B", "Score: 10", "?")
    monkeypatch.setattr(web_calls.Server, "post", lambda _, body, *__: completion(said[sum(body) % 5]))
    check_reward(judge(server, tmp_path))
    check_reward(JudgePairs(url=api(server), model="m", cache=str(tmp_path / "answers.sqlite")))


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "canary-key")
    one = judge(server, tmp_path, token_env="JUDGE_KEY")
    one(TEXTS)
    assert server.seen[0][1]["Authorization"] == "Bearer canary-key"
    server.answers = [say(401, b'{"error": {"message": "Incorrect API key provided: canary-key"}}')]
    with pytest.raises(RewardError, match="401 Unauthorized: Incorrect API key provided: ") as caught:
        one([make_episode("q", "new")])
    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert "canary" not in f"{caught.value} {one!r}" and b"canary" not in kept and b"useless" not in kept


def test_a_text_that_the_server_refuses_is_skipped_and_its_fellows_are_not(server: Server, tmp_path: Path) -> None:
    def some(asked: Any) -> None:
        long = b"abcd" in asked.body
        (say(400, b'{"error": {"message": "too long"}}') if long else says(length_score))(asked)

    server.answers = [some]
    table: dict[str, Any] = {"url": api(server), "model": "m", "cache": str(tmp_path / "a.sqlite"), "highest": 20.0}
    skipping = load_rewards({"judge": {**table, "on_error": "skip", "max_bad_fraction": 0.5}}, Count("a", 4))
    scores = skipping.score(TEXTS[:3])
    assert [bool(it.raw) for it in scores] == [True, False, True]
    assert scores[1].failed["judge"].endswith("/v1/chat/completions: 400 Bad Request: too long")
    with pytest.raises(RewardError, match=r"reward 'judge' POST .*400 Bad Request: too long, when it was to score 3"):
        load_rewards({"judge": table}, Count("a", 4)).score(TEXTS[:3])


@pytest.mark.parametrize(
    ("answer", "says_", "asked"),
    [
        (say(500), "500 Internal Server Error; asked 2 times", 2),
        (hang_up, "RemoteDisconnected: .*; asked 2 times", 2),
        (say(200, b"<html>"), "the answer is not JSON", 1),
        (say(200, b'{"choices": []}'), "the answer is no chat completion", 1),
        (say(200, b'{"scores": [1]}'), "the answer is no chat completion", 1),
        (say(200, b"[1]"), "the answer is no chat completion", 1),
        (say(307, Location="http://127.0.0.1:1/"), "redirects are not followed", 1),
    ],
    ids=["500", "hung up", "html", "no choice", "another API", "a list", "redirect"],
)
def test_a_server_that_does_not_answer_ends_the_run(
    server: Server, tmp_path: Path, answer: Any, says_: str, asked: int
) -> None:
    server.answers = [answer]
    table = {"url": api(server), "model": "m", "cache_mb": 0, "attempts": 2, "connections": 1}
    with pytest.raises(RewardError, match=says_):
        load_rewards({"judge": table}, Count("a", 4)).score(TEXTS)
    assert len(server.seen) == asked  # the other texts are not tried


def test_usage_that_is_none_counts_nothing(server: Server, tmp_path: Path) -> None:
    for usage in (None, [], {"prompt_tokens": "many"}, {"prompt_tokens": -1, "completion_tokens": 10**30}):
        server.answers = [say(200, completion("Score: 1", usage=usage))]
        one = judge(server, tmp_path, cache_mb=0)
        assert one(TEXTS[:1]) == [0.0]
        assert one.spent() == Spent(requests=1)
    server.answers = [say(200, completion(None))]  # it refused, or wanted to call a tool
    assert judge(server, tmp_path)(TEXTS[:1]) == [None]


def test_a_rubric_of_ones_own_reads_columns(server: Server, tmp_path: Path) -> None:
    rubric = tmp_path / "mine.txt"
    rubric.write_text('{prompt}|{response}|{answer}|{"score": N}|{ }')
    server.answers = [say(200, completion("Score: 10"))]
    one = judge(server, tmp_path, rubric=str(rubric))
    assert one([make_episode("q", "{answer} {prompt}", meta={"answer": 4})]) == [1.0]
    assert questions(server) == ['q|{answer} {prompt}|4|{"score": N}|{ }']
    with pytest.raises(RewardError, match=r"place \{answer\} is a column that \"made/'q'\" has not: it has none"):
        one([make_episode("q", "x")])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "http": ({"url": "http://judge.example.org/v1"}, "url must be https://: by http://, texts and token would cross"),
    "no address": ({"url": "localhost:8000/v1"}, "url must be http://HOST/PATH or https://HOST/PATH"),
    "no key": ({"token_env": "NO_SUCH_KEY"}, "token_env names no environment variable with a token in it, got NO_SUCH"),
    "votes": ({"votes": 3}, "votes = 3 at temperature 0 asks for the same answer again"),
    "scale": ({"lowest": 5.0, "highest": 5.0}, "highest must be above lowest, 5, got 5"),
    "fields": ({"fields": {"stream": True}}, "fields has 'stream', which is not for them to say"),
    "no rubric": (
        {"rubric": "helpfull"},
        "rubric 'helpfull' is no file, and none of help.*did you mean 'helpful'",
    ),
    "a pair's": ({"rubric": "PAIR"}, r"rubric .*pair.txt has no place \{response\}: what scores a response needs"),
    "bytes": ({"rubric": "BYTES"}, "rubric .*bytes.txt is not UTF-8: byte 1"),
    "a folder": ({"rubric": "FOLDER"}, "rubric cannot read .*: Is a directory"),
}


@pytest.mark.parametrize("what", WRONG)
def test_settings_that_cannot_be_meant(what: str, tmp_path: Path) -> None:
    settings, said = WRONG[what]
    (tmp_path / "pair.txt").write_text("{prompt} {first} {second}")
    (tmp_path / "bytes.txt").write_bytes(b"a\xff")
    places = {"PAIR": tmp_path / "pair.txt", "BYTES": tmp_path / "bytes.txt", "FOLDER": tmp_path}
    given = {key: str(places.get(it, it)) if isinstance(it, str) else it for key, it in settings.items()}
    with pytest.raises(ConfigError, match=f"reward 'judge': {said}"):
        load_rewards({"judge": {"url": "https://judge.example.org/v1", "model": "m", **given}}, Count("a", 4))


def test_where_http_is_allowed() -> None:
    for url in ("http://localhost:1/v1", "http://127.0.0.2/v1", "http://[::1]:1/v1", "https://judge.example.org/v1"):
        Judge(url=url, model="m")
    Judge(url="http://judge.example.org/v1", model="m", unencrypted=True)
    for url in ("http://localhost.example.org/v1", "http://127.0.0.1.example.org/v1", "http://10.0.0.1/v1"):
        with pytest.raises(ConfigError, match="must be https://"):
            Judge(url=url, model="m")
    with pytest.raises(ConfigError, match="rubric 'correct' scores one response and compares none: helpful, harm"):
        JudgePairs(url="https://judge.example.org/v1", model="m", rubric="correct")
    assert RUBRICS == ("helpful", "correct", "harmless")


def test_the_oldest_answers_go_and_nothing_else_is_lost(tmp_path: Path) -> None:
    most = 200_000
    cache = AnswerCache(tmp_path / "c.sqlite", most)
    for number in range(300):
        cache.put(number.to_bytes(32, "big"), Completion(f"{number}" + "x" * 2000, number, 1))
    there = [number for number in range(300) if cache.get(number.to_bytes(32, "big")) is not None]
    assert there == list(range(300 - len(there), 300)) and 60 < len(there) < 100
    assert cache.get((299).to_bytes(32, "big")) == Completion("299" + "x" * 2000, 299, 1)
    assert (tmp_path / "c.sqlite").stat().st_size < 2 * most
    cache.put((299).to_bytes(32, "big"), Completion("another"))  # what is there stays
    other = AnswerCache(tmp_path / "c.sqlite", most)
    assert other.get((299).to_bytes(32, "big")) == Completion("299" + "x" * 2000, 299, 1)
    cache.put(b"odd", Completion("\ud800\0é"))
    assert other.get(b"odd") == Completion("?\0é")


def test_a_cache_that_is_none_is_said(server: Server, tmp_path: Path) -> None:
    (tmp_path / "answers.sqlite").write_bytes(b"no database" * 500)
    with pytest.raises(ConfigError, match=r"cache = '.*answers.sqlite' cannot be used for a judge's answers: .*_mb"):
        judge(server, tmp_path)(TEXTS)
    with pytest.raises(ConfigError, match="cannot be used for a judge's answers"):
        Judge(url=api(server), model="m", cache=str(tmp_path / "answers.sqlite" / "in it"))(TEXTS)
    with sqlite3.connect(tmp_path / "other.sqlite") as other:
        other.execute("CREATE TABLE answers (a)")
    with pytest.raises(ConfigError, match="cannot be used for a judge's answers"):
        Judge(url=api(server), model="m", cache=str(tmp_path / "other.sqlite"))(TEXTS)
    assert default_cache() == Path(os.environ["RLHF_ENV_CACHE"]) / "judges.sqlite"


def test_several_threads_ask_no_more_than_they_may(server: Server, tmp_path: Path) -> None:
    mix = load_rewards({"one": judge(server, tmp_path, connections=3), "length": {"target": 2}}, Count("a", 4))  # type: ignore[dict-item]
    texts = [make_episode("q", "a" * (1 + number % 4)) for number in range(12)]
    with mix.scoring() as scoring:
        for start in range(0, 12, 2):
            scoring.begin(texts[start : start + 2])
        found = [it.raw["one"] for it in scoring.finish()]
    assert found == pytest.approx([(2 * (1 + number % 4) - 1) / 9 for number in range(12)])
    assert np.isfinite(found).all()
