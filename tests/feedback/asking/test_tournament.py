"""Win rates and Bradley-Terry ratings, against closed forms and the equations that a maximum solves."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rlhf_env.cli.main import app
from rlhf_env.errors import ConfigError
from rlhf_env.feedback.asking.tournament import ELO, Contender, blind_pairs, contests, strengths, tournament
from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.feedback.kinds import Comparison, Verdict
from rlhf_env.feedback.reward_models.calibration import wilson_interval
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.types import Prompt

ANN, BOB, CID = (Author("policy", name, 1.0) for name in ("ann", "bob", "cid"))


def judged(number: int, first: Author, second: Author, verdict: Verdict, annotator: str = "z") -> Comparison:
    responses = Response("a", first), Response("b", second)
    return Comparison(Prompt(f"p{number}", f"q{number}"), *responses, verdict, annotator)


def run(comparisons: Sequence[Comparison], resamples: int = 20) -> list[Contender]:
    return tournament(comparisons, np.random.default_rng(0), resamples=resamples)


def test_two_authors_in_closed_form() -> None:
    """6 wins, 2 losses, 2 ties, in either order: 7 of 10, and log odds of (7 + 1/2) to (3 + 1/2)."""
    verdicts: list[Verdict] = ["first"] * 3 + ["second"] + ["tie"]
    there = [judged(i, ANN, BOB, verdict) for i, verdict in enumerate(verdicts)]
    swapped: dict[Verdict, Verdict] = {"first": "second", "second": "first", "tie": "tie"}
    back = [judged(i + 5, BOB, ANN, swapped[verdict]) for i, verdict in enumerate(verdicts)]
    nothing = [judged(50, ANN, BOB, "cannot say"), judged(51, ANN, ANN, "first")]
    ann, bob = run([*there, *back, *nothing])
    assert (ann.author, bob.author, ann.comparisons, bob.comparisons) == (ANN, BOB, 10, 10)
    assert ann.win_rate.value == pytest.approx(0.7, abs=1e-12)
    assert bob.win_rate.value == pytest.approx(0.3, abs=1e-12)
    apart = 400 * math.log10(7.5 / 3.5)
    assert ann.rating.value == pytest.approx(apart / 2, abs=1e-9)
    assert bob.rating.value == pytest.approx(-apart / 2, abs=1e-9)
    assert (bob.rating.low, bob.rating.high) == pytest.approx((-ann.rating.high, -ann.rating.low), abs=1e-9)
    assert (bob.win_rate.low, bob.win_rate.high) == pytest.approx((1 - ann.win_rate.high, 1 - ann.win_rate.low))


def test_strengths_expect_the_wins_that_were_seen() -> None:
    """At the maximum everybody's expected wins are their wins (Hunter 2004, equation 3), halves included."""
    wins = np.random.default_rng(1).integers(0, 30, size=(5, 5)).astype(np.float64)
    wins[0] = [0, 900, 40, 0, 1]
    wins[:, 0] = 0  # never lost; and never met the fourth
    wins[3, 3] = wins[1, 1] = wins[2, 2] = wins[4, 4] = 0
    found = strengths(wins)
    for i in range(5):
        met = [j for j in range(5) if wins[i, j] + wins[j, i] > 0]
        expected = sum((wins[i, j] + wins[j, i] + 1) / (1 + math.exp(found[j] - found[i])) for j in met)
        assert expected == pytest.approx(wins[i].sum() + len(met) / 2, rel=1e-10)
    assert found.sum() == pytest.approx(0, abs=1e-12)
    assert np.argmax(found) == 0 and np.isfinite(found).all()


def test_who_never_met_has_no_common_rating() -> None:
    dan = Author("human", "dan")
    found = run([judged(0, ANN, BOB, "first"), judged(1, CID, dan, "first")])
    assert all(math.isnan(contender.rating.value) for contender in found)
    assert [contender.win_rate.value for contender in found] == [1, 1, 0, 0]
    assert run([]) == []


def test_intervals_hold_the_truth_and_know_that_judgements_of_a_prompt_repeat_each_other() -> None:
    """The same five judgements on each prompt are no more evidence than one: intervals by judgement would halve."""
    rng = np.random.default_rng(2)
    strength = {ANN: 0.8, BOB: 0.0, CID: -0.8}
    made = []
    for i in range(300):
        one, other = rng.permutation(3)[:2]
        pair = [ANN, BOB, CID][one], [ANN, BOB, CID][other]
        wins = rng.random() < 1 / (1 + math.exp(strength[pair[1]] - strength[pair[0]]))
        made.append((i, *pair, "first" if wins else "second"))
    once = run([judged(*it) for it in made], resamples=200)
    assert [contender.author for contender in once] == [ANN, BOB, CID]
    for contender in once:
        assert contender.rating.low < ELO * strength[contender.author] < contender.rating.high
        assert contender.rating.low < contender.rating.value < contender.rating.high
    five = run([judged(*it, annotator=f"z{z}") for it in made for z in range(5)], resamples=200)
    for alone, repeated in zip(once, five, strict=True):
        widths = [found.win_rate.high - found.win_rate.low for found in (alone, repeated)]
        assert 0.8 < widths[1] / widths[0] < 1.25


def test_prompts_that_came_out_alike_are_no_certainty() -> None:
    """Three wins of three are not 100 % [100 %, 100 %], as resampling them would have it."""
    ann, bob = run([judged(i, ANN, BOB, "first") for i in range(3)])
    assert (ann.win_rate.value, ann.win_rate.low, ann.win_rate.high) == (1.0, *wilson_interval(1.0, 3))
    assert (bob.win_rate.low, bob.win_rate.high) == wilson_interval(0.0, 3)
    assert math.isnan(ann.rating.low) and math.isnan(ann.rating.high)
    assert ann.rating.value == pytest.approx(200 * math.log10(3.5 / 0.5), abs=1e-9)


def said(author: Author, **answers: str) -> list[tuple[Prompt, Response]]:
    return [(Prompt(f"{author.name} {name}", f"question {name}"), Response(it, author)) for name, it in answers.items()]


def test_blind_pairs_are_every_two_answers_to_one_prompt() -> None:
    """Prompts are one by their text; the first of several answers counts, and what says the same is no pair."""
    ann = [*said(ANN, p="a", q="same", r="alone"), *said(ANN, p="a second thought")]
    found = blind_pairs([ann, said(BOB, p="b", q="same"), said(CID, p="c", q="other")], overlap=2, seed=5)
    texts = {tuple(response.text for response in item.responses) for item in found.items}
    assert texts == {("a", "b"), ("a", "c"), ("b", "c"), ("same", "other")}
    assert len(found.items) == 5, "on the second prompt both say the same against the third"
    assert (found.prompts, found.same) == (2, 1)
    assert {(it.purpose, it.overlap, it.seed, it.kind) for it in found.items} == {("evaluation", 2, 5, "comparison")}
    with pytest.raises(ConfigError, match="no two of them answer the same prompt"):
        blind_pairs([said(ANN, p="a"), said(BOB, q="b")])


def test_the_command_that_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON lines and a run's samples; each by its name, all of it judged blind through the store."""
    monkeypatch.chdir(tmp_path)
    lines = [{"prompt": f"q{i}", "response": f"ours {i}"} for i in range(3)]
    Path("mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    Path("run.json").write_text(
        json.dumps({"samples": [{"prompt": f"q{i}", "response": f"run {i}"} for i in range(2)]})
    )
    asked = CliRunner().invoke(app, ["preferences", "evaluate", "s.sqlite", "mine.jsonl", "ppo=run.json"])
    assert asked.stdout == (
        "2 pairs on 2 prompts asked for, 0 left out that say the same; 0 of 2 votes on 2 items, 0 complete\n"
    )
    with PreferenceStore("s.sqlite") as store:
        while (asked_for := store.next_item("z")) is not None:
            wins = [response.text[:3] for response in asked_for.item.responses].index("run")
            store.submit(asked_for.id, "z", ("first", "second")[wins], key=str(asked_for.id))
        (made,) = contests(store).values()
    winner, loser = run(made)
    assert (winner.author, loser.author) == (Author("policy", "ppo"), Author("policy", "mine"))
    assert (winner.win_rate.value, winner.name) == (1.0, "policy ppo")
    Path("bad.json").write_text("[]")
    for words, says in (
        (["mine.jsonl"], "two or more sources are needed"),
        (["mine.jsonl", "mine.jsonl"], "each with a name of its own"),
        (["mine.jsonl", "bad.json"], "no samples of a run"),
        (["mine.jsonl", "there-is-none.jsonl"], "there-is-none.jsonl"),
    ):
        refused = CliRunner().invoke(app, ["preferences", "evaluate", "t.sqlite", *words])
        assert isinstance(refused.exception, ConfigError)
        assert says in str(refused.exception)
    assert not Path("t.sqlite").exists()


RUN = """
task = { name = "echo" }
policy = { model = "tiny", tokenizer = "alphabet:abcd:=" }
environment = { max_new_tokens = 4 }
agent = { name = "%s" }
"""


def test_run_folders_write_on_their_held_out_prompts(tmp_path: Path) -> None:
    """Two runs that need no checkpoint; what they wrote keeps its token ids, so that reward models can read it."""
    for name in ("reference", "random"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "experiment.toml").write_text(RUN % name)
    path, sources = tmp_path / "s.sqlite", [str(tmp_path / name) for name in ("reference", "random")]
    asked = CliRunner().invoke(app, ["preferences", "evaluate", str(path), *sources, "--prompts", "3"])
    assert asked.exit_code == 0, asked.output
    with PreferenceStore(path) as store:
        items = [item for _, item in store.items()]
    assert len({item.prompt.text for item in items}) == len(items) > 1
    for item in items:
        assert [response.author.name for response in item.responses] == ["reference", "random"]
        assert all(response.episode(item.prompt).response == response.text for response in item.responses)


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "prefs.sqlite"
    with PreferenceStore(path) as store:
        store.add([judged(i, ANN, BOB, "first" if i % 4 else "second") for i in range(8)])
    said = CliRunner().invoke(app, ["preferences", "tournament", str(path)])
    assert said.exit_code == 0, said.output
    ann, bob = said.output.splitlines()[1:]
    assert ann.split()[:5] == ["policy", "ann", "at", "1", "8"]
    assert "0.750 [" in ann and "0.250 [" in bob
    assert f"{200 * math.log10(6.5 / 2.5):.0f} [" in ann
    said = CliRunner().invoke(app, ["preferences", "tournament", str(path), "--json"])
    found = {row["author"]["name"]: (row["comparisons"], row["win_rate"]["value"]) for row in json.loads(said.output)}
    assert found == {"ann": (8, 0.75), "bob": (8, 0.25)}
    said = CliRunner().invoke(app, ["preferences", "tournament", str(path), "--criterion", "kind"])
    assert said.output == "no two authors were compared by kind yet\n"
