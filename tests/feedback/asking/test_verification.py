"""Which of a reward model's opinions are put before people, and how often people share them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rlhf_env.cli.main import app
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.asking.tournament import contests
from rlhf_env.feedback.asking.verification import Candidate, checks_of, opinions, outcomes, recorded
from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.feedback.kinds import Comparison, Verdict
from rlhf_env.feedback.reward_models.calibration import wilson_interval
from rlhf_env.feedback.store.items import Item, VerificationItem
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.types import Episode, Float, Prompt

POLICY, PERSON, FILE = Author("policy", "sft", 1.0), Author("human", "Zoë"), Author("dataset", "old.jsonl")


class Lookup:
    """A reward model that knows its scores by heart, `heads` of them."""

    def __init__(self, *heads: dict[str, float], unit: float = 1.0) -> None:
        self.heads, self.log_odds_per_point = heads, unit

    @property
    def members(self) -> int:
        return len(self.heads)

    def score_members(self, episodes: Sequence[Episode]) -> Float:
        return np.array([[head[it.response] for it in episodes] for head in self.heads])

    def score(self, episodes: Sequence[Episode]) -> Float:
        return np.asarray(self.score_members(episodes).mean(axis=0))

    def score_responses(self, responses: Sequence[tuple[Prompt, Response]]) -> Float:
        return np.array([np.mean([head[it.text] for head in self.heads]) for _, it in responses])


def prompt(number: int) -> Prompt:
    return Prompt(f"p{number}", f"question {number}")


def written(text: str, author: Author = POLICY) -> Response:
    return Response(text, author)


def sampled(text: str) -> Response:
    return Response(text, POLICY, (5, *text.encode(), 2), (1,), "stop")


def candidate(number: int, scores: dict[Response, float] | dict[Response, list[float]]) -> Candidate:
    rows = np.atleast_2d(np.array(list(scores.values()), dtype=np.float64).T)
    return Candidate(prompt(number), tuple(scores), rows)


def chosen(
    candidates: Sequence[Candidate], reason: str, preferences: Sequence[Any] = (), **more: Any
) -> list[VerificationItem]:
    made = checks_of(candidates, preferences, np.random.default_rng(0), model="rm", **more)
    return [check for check in made if check.reason == reason]


def pair_of(check: VerificationItem) -> tuple[str, str]:
    """The favoured text, and the other."""
    texts = [response.text for response in check.item.responses]
    return check.favoured.text, next(text for text in texts if text != check.favoured.text)


def test_members_are_brought_to_log_odds() -> None:
    """Two models of 2 heads and 1, in units of 2 and 0.5 log-odds a point; by heads only where there are token ids."""
    two = Lookup({"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 3.0}, unit=2.0)
    one = Lookup({"a": 4.0, "b": -4.0}, unit=0.5)
    heard: list[float] = []
    given = [(prompt(0), sampled("a")), (prompt(1), sampled("a")), (prompt(0), sampled("b")), (prompt(0), sampled("a"))]
    (found,) = opinions([two, one], given, on_progress=heard.append)
    assert [it.text for it in found.responses] == ["a", "b"], "the second prompt has nothing to compare"
    assert found.scores == pytest.approx(np.array([[2.0, 0.0], [0.0, 6.0], [2.0, -2.0]]), abs=1e-12)
    assert heard == [1.0]
    (found,) = opinions([two, one], [(prompt(0), written("a")), (prompt(0), sampled("b"))])
    assert found.scores == pytest.approx(np.array([[1.0, 3.0], [2.0, -2.0]]), abs=1e-12)
    with pytest.raises(DataError, match="no prompt in the store has two different responses"):
        opinions([one], [(prompt(0), written("a"))])


def test_disagreement_is_of_members_not_of_doubt() -> None:
    """Both members sure of opposite things: 0.5 of its bits are theirs. Both in doubt: none. One member: nothing."""
    split = candidate(0, {written("a"): [3.0, 0.0], written("b"): [0.0, 3.1], written("c"): [-9.0, -9.0]})
    doubt = candidate(1, {written("d"): [0.0, 0.0], written("e"): [0.01, 0.01]})
    (found,) = chosen([doubt, split], "disagreement")
    assert pair_of(found) == ("b", "a")
    assert found.log_odds == pytest.approx(0.05, abs=1e-12)
    assert chosen([candidate(0, {written("a"): 1.0, written("b"): 0.0})], "disagreement") == []


def test_above_people_takes_policies_over_the_best_of_people_and_data() -> None:
    some = candidate(0, {written("p"): 2.0, written("q"): 1.5, written("h", PERSON): 0.0, written("f", FILE): 1.0})
    below = candidate(1, {written("r"): 0.9, written("i", PERSON): 1.0})
    most = candidate(2, {written("s"): 9.0, written("j", PERSON): 1.0})
    nobody = candidate(3, {written("t"): 9.0, written("u"): 0.0})
    found = chosen([some, below, most, nobody], "above people")
    assert [pair_of(it) for it in found] == [("s", "j"), ("p", "f")]
    assert [it.log_odds for it in found] == [8.0, 1.0]


def test_repetitive_and_long_are_favourites_in_the_tail() -> None:
    """Of 43 responses, the top twentieth: beside the best one that is less so. A long loser is nobody's favourite."""
    plain = [candidate(i, {written(f"one {i}"): 1.0, written(f"two {i}"): 0.0}) for i in range(17)]
    again = "yes yes yes yes"
    odd = candidate(90, {written("no"): 0.5, written(again): 3.0, written("perhaps yes"): 1.0})
    tall = "different words make this a long reply " + " ".join(f"word{i}" for i in range(20))
    wordy = candidate(91, {written(tall): 2.0, written("short"): 0.0})
    losers = [candidate(92 + i, {written("a better one"): 2.0, written(f"{tall} indeed {i}"): 0.0}) for i in range(2)]
    everything = [*plain, odd, wordy, *losers]
    assert [pair_of(it) for it in chosen(everything, "repetitive")] == [(again, "perhaps yes")]
    assert [pair_of(it) for it in chosen(everything, "long")] == [(tall, "short")]


def judged(number: int, first: str, second: str, verdict: Verdict, criterion: str = "overall") -> Comparison:
    return Comparison(prompt(number), written(first), written(second), verdict, "z", criterion)


def test_contradicted_is_a_confident_model_against_a_judgement() -> None:
    """At confidence 0.8 the bound is log 4: just above and just below it, and agreeing."""
    margins = [math.log(4) + 0.01, math.log(4) - 0.01, 3.0, 5.0]
    some = [candidate(i, {written(f"a{i}"): margin, written(f"b{i}"): 0.0}) for i, margin in enumerate(margins)]
    verdicts: list[Verdict] = ["second", "second", "second", "first"]
    said = [judged(i, f"a{i}", f"b{i}", verdict).preference for i, verdict in enumerate(verdicts)]
    found = chosen(some, "contradicted", [*said, judged(9, "x", "y", "first").preference], confidence=0.8)
    assert [pair_of(it) for it in found] == [("a2", "b2"), ("a0", "b0")]
    assert len(chosen(some, "contradicted", said, confidence=0.5)) == 3
    with pytest.raises(ConfigError, match="between 1/2 and 1"):
        chosen(some, "contradicted", said, confidence=1.0)


def test_reasons_take_turns_with_one_pair_of_a_prompt(tmp_path: Path) -> None:
    some = [
        candidate(i, {written(f"p{i}"): 3.0 + i, written(f"h{i}", PERSON): 0.0, written(f"{i}"): 0.1}) for i in range(6)
    ]
    made = checks_of(some, [], np.random.default_rng(0), model="rm", count=2, overlap=3, criterion="kind", seed=4)
    assert [it.reason for it in made] == ["above people", "long", "random"] * 2
    priorities = [it.item.priority for it in made]
    assert priorities == sorted(priorities, reverse=True)
    assert 1 < priorities[-1] < priorities[0] == 2
    assert {(it.item.overlap, it.item.criterion, it.item.seed, it.item.purpose) for it in made} == {
        (3, "kind", 4, "verification")
    }
    with PreferenceStore(tmp_path / "s.sqlite") as store:
        (ordinary,) = store.add_items(
            [Item(kind="comparison", prompt=prompt(99), responses=(written("x"), written("y")))]
        )
        names = store.add_checks(made)
        kept = {(name, it.reason, it.favoured, it.log_odds) for name, it in store.checks()}
        assert kept == {(name, it.reason, it.favoured, it.log_odds) for name, it in zip(names, made, strict=True)}
        order = []
        while (lent := store.next_item("ann")) is not None:
            order.append(lent.id)
            store.submit(lent.id, "ann", "tie", key=str(lent.id))
    assert order == [*dict.fromkeys(names), ordinary], "in the order of their urgency, before what was asked otherwise"


def check(number: int, log_odds: float, reason: str = "random", model: str = "rm") -> VerificationItem:
    favoured = written(f"a{number}")
    item = Item(
        kind="comparison", prompt=prompt(number), responses=(written(f"b{number}"), favoured), purpose="verification"
    )
    return VerificationItem(item=item, model=model, reason=reason, favoured=favoured, log_odds=log_odds)


def vote(store: PreferenceStore, item: int, annotator: str, wanted: str) -> None:
    """`wanted` begins the text of the response to vote for, or is a verdict."""
    with store._writing():
        store._lend(item, annotator, store._annotator(annotator), store._clock() + 600.0)
    asked = dict(store.items())[item]
    shown = [asked.responses[place].text for place in asked.order_for(annotator)]
    answer = ["first", "second"][[text[0] for text in shown].index(wanted)] if len(wanted) == 1 else wanted
    store.submit(item, annotator, answer, key=f"{annotator} {item}")


def test_how_often_people_agree(tmp_path: Path) -> None:
    """Prompt 0: 1 of 2 votes; prompt 1: a tie, and nobody can say; prompt 2: yes. The mean is 2/3 on 3 prompts."""
    with PreferenceStore(tmp_path / "s.sqlite") as store:
        again = check(0, 2.0, "contradicted", "other")
        odds = [math.log(4), math.log(9), 0.0]
        made = [check(i, x) for i, x in enumerate(odds)]
        overlap = [VerificationItem(**{**vars(it), "item": Item(**{**vars(it.item), "overlap": 3})}) for it in made]
        zero, one, two = store.add_checks(overlap)
        assert store.add_checks([again]) == [zero], "one vote serves both"
        assert store.add_checks([check(0, odds[0])]) == [zero]
        assert [it.votes for it in outcomes(store)] == [0, 0]
        assert str(outcomes(store)[0]) == "-"
        vote(store, zero, "ann", "a")
        vote(store, zero, "ben", "b")
        vote(store, one, "ann", "tie")
        vote(store, one, "ben", "cannot say")
        vote(store, two, "cid", "a")
        other, ours = outcomes(store)
        assert (other.model, other.reason, other.pairs, other.votes) == ("other", "contradicted", 1, 2)
        assert other.agreement == 0.5
        assert other.why == "a judgement said the opposite of a confident model"
        assert (ours.model, ours.reason, ours.pairs, ours.votes) == ("rm", "random", 3, 4)
        assert ours.agreement == pytest.approx(2 / 3, abs=1e-12)
        assert ours.stated == pytest.approx((0.8 + 0.9 + 0.5) / 3, abs=1e-12)
        assert (ours.low, ours.high) == pytest.approx(wilson_interval(2 / 3, 3), abs=1e-12)
        store.undo("cid", two)
        assert outcomes(store)[1].votes == 3


def test_verdicts_are_preferences_but_neither_results_nor_grounds_for_checks(tmp_path: Path) -> None:
    """They go back into the store, where it is known what they were for; what a model chose says nothing of authors."""
    with PreferenceStore(tmp_path / "s.sqlite") as store:
        (item,) = store.add_checks([check(0, 1.0)])
        vote(store, item, "ann", "a")
        store.add([judged(1, "x", "y", "first"), judged(2, "x", "y", "first", "kind")])
        assert [(it, purpose(store, it)) for it, _ in store.votes()] == [
            (item, "verification"),
            (None, None),
            (None, None),
        ]
        assert [it.chosen.text for it in store.preferences()] == ["a0", "x", "x"]
        assert [it.chosen.text for it in recorded(store)] == ["x"]
        assert {criterion: len(made) for criterion, made in contests(store).items()} == {"overall": 1, "kind": 1}


def purpose(store: PreferenceStore, item: int | None) -> str | None:
    return None if item is None else dict(store.items())[item].purpose


def test_what_is_no_check() -> None:
    with pytest.raises(DataError, match=r"item: expected a comparison of the purpose verification; favoured: none"):
        VerificationItem(
            item=Item(kind="comparison", prompt=prompt(0), responses=(written("a"), written("b"))),
            model="m",
            reason="r",
            favoured=written("c"),
            log_odds=1.0,
        )
    with pytest.raises(DataError, match="log_odds"):
        check(0, -1.0)


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a store to the queue to what came out, with two models that are loaded by name."""
    from rlhf_env.feedback.reward_models import loading

    path = tmp_path / "s.sqlite"
    texts = [f"{side}{i}" for i in range(5) for side in "ab"]
    models = {
        "one": Lookup({text: float(text[0] == "a") * 2 for text in texts}),
        "two": Lookup({text: float(text[0] == "b") for text in texts}),
    }
    monkeypatch.setattr(loading, "load_scorer", lambda name, device="auto": models[name])

    def run(*words: str) -> str:
        said = CliRunner().invoke(app, ["preferences", *words])
        assert said.exit_code == 0, said.output
        return said.stdout

    with PreferenceStore(path) as store:
        for i in range(5):
            store.add_response(prompt(i), written(f"a{i}"), written(f"b{i}"))
        store.add([judged(i, f"a{i}", f"b{i}", "second") for i in range(2)])
    asked = run("verify", str(path), "--model", "one", "--model", "two", "--count", "3", "--name", "my \x1b[31mmodel")
    assert "disagreement      3 pairs, the first by 0.50 log-odds" in asked
    assert "contradicted      0 pairs\n" in asked, "0.5 log-odds are no confidence"
    assert (
        run("verify", str(path), "--model", "one", "--confidence", "0.85")
        .splitlines()[4]
        .startswith("contradicted      2 pairs, the first by 2.00")
    )
    with PreferenceStore(path) as store:
        for item, _ in list(store.items()):
            vote(store, item, "ann", "b")
    header, *rows = run("verified", str(path)).split("my model\n")[1].splitlines()
    assert header.split() == ["pairs", "votes", "annotators", "agree", "expected"]
    assert rows[0].split() == ["disagreement", "3", "3", "0.00", "[0.00,", "0.56]", "0.62"]
    (tmp_path / "empty.sqlite").unlink(missing_ok=True)
    PreferenceStore(tmp_path / "empty.sqlite").close()
    assert run("verified", str(tmp_path / "empty.sqlite")).startswith("no reward model was put before annotators yet")
