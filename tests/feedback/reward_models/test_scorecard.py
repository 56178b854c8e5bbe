"""The scorecard: every number by hand, on scorers whose faults are known."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from rlhf_env.cli import main as cli
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.interchange import write_judgements
from rlhf_env.feedback.judgements import Author, Preference, Response
from rlhf_env.feedback.kinds import Comparison, Rating
from rlhf_env.feedback.reward_models.calibration import wilson_interval, win_probability
from rlhf_env.feedback.reward_models.card import Scorecard, measures, scorecard_table
from rlhf_env.feedback.reward_models.model import RewardModel
from rlhf_env.feedback.reward_models.ranks import kendall, kendall_interval, spearman, spearman_interval
from rlhf_env.feedback.reward_models.scorecard import EDITS, MOST_POINTS, make_scorecard, read_data, scorecard_of
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.text_measures import repeated_share
from rlhf_env.types import Episode, Float, Prompt

ZOE = Author("human", "Zoë")


class Scores:
    """A scorer that is any function of the response's text; `unit` log-odds a point."""

    members = 1

    def __init__(self, worth: Callable[[str], float], unit: float = 1.0) -> None:
        self._worth, self.log_odds_per_point = worth, unit

    def score(self, episodes: Sequence[Episode]) -> Float:
        return np.array([self._worth(it.response) for it in episodes], dtype=np.float64)

    def score_members(self, episodes: Sequence[Episode]) -> Float:
        return self.score(episodes)[None]

    def score_responses(self, responses: Sequence[tuple[Prompt, Response]]) -> Float:
        return np.array([self._worth(it.text) for _, it in responses], dtype=np.float64)


def pair(chosen: str, rejected: str, prompt: str = "q", annotator: str = "ann", **meta: Any) -> Preference:
    return Preference(Prompt(prompt, prompt, meta), Response(chosen, ZOE), Response(rejected, ZOE), annotator)


def card(scorer: Any, pairs: Sequence[Preference], **gold: Any) -> Scorecard:
    return make_scorecard(scorer, pairs, rng=np.random.default_rng(0), **gold)


LENGTH = Scores(len)


class TestNumbers:
    def test_accuracy_margin_and_odds(self) -> None:
        pairs = [pair("aaa", "a", "1"), pair("aaaa", "a", "2"), pair("a", "aaa", "3"), pair("aa", "bb", "4")]
        found = card(Scores(len, unit=0.5), pairs)
        assert (found.pairs, found.prompts) == (4, 4)
        assert found.accuracy.value == (1 + 1 + 0 + 0.5) / 4
        assert abs(found.margin - 0.5 * (2 + 3 - 2 + 0) / 4) < 1e-12
        odds = win_probability(np.array([1.0, 1.5, -1.0, 0.0]))
        assert abs(found.brier - np.mean((1 - odds) ** 2)) < 1e-12
        assert sum(it.pairs for it in found.reliability) == 4

    def test_pairs_of_one_prompt_are_not_independent(self) -> None:
        """Ten prompts, each with five pairs of the same fate: as certain as ten pairs, not as fifty."""
        fates = [True] * 7 + [False] * 3
        pairs = [
            pair("a" * (9 + i) if right else "a" * i, "a" * i if right else "a" * (9 + i), f"{prompt}")
            for prompt, right in enumerate(fates)
            for i in range(1, 6)
        ]
        clustered = card(LENGTH, pairs).accuracy
        np.testing.assert_allclose([clustered.low, clustered.high], wilson_interval(0.7, 10), atol=1e-12)
        apart = [replace(it, prompt=Prompt(f"{i}", f"{i}")) for i, it in enumerate(pairs)]
        single = card(LENGTH, apart).accuracy
        np.testing.assert_allclose([single.low, single.high], wilson_interval(0.7, 50), atol=1e-12)

    def test_agreement_against_the_peoples_own(self) -> None:
        """Three people on one pair, two to one: each of the two agrees with half of the others, the third with none.

        The model sides with the majority: right beside the third's two others, half beside the two split pairs.
        """
        votes = [pair("aaa", "a", annotator="x"), pair("aaa", "a", annotator="y"), pair("a", "aaa", annotator="z")]
        found = card(LENGTH, [*votes, pair("aaa", "a", "another")]).agreement
        assert found is not None
        assert (found.pairs, found.votes) == (1, 3)
        assert found.people == pytest.approx((0.5 + 0.5 + 0) / 3)
        assert found.model == pytest.approx((0.5 + 0.5 + 1) / 3)
        assert card(LENGTH, [pair("aaa", "a"), pair("a", "aaa")]).agreement is None  # one person, of two minds

    def test_the_spread_within_a_prompt(self) -> None:
        """Two answers a prompt: the mean variance of the two, in log-odds; what prompts differ by is not in it."""
        pairs = [pair("aaa", "a", "1"), pair("a" * 100, "a" * 104, "2")]
        found = card(Scores(len, unit=0.5), pairs)
        variances = [np.var([1.5, 0.5], ddof=1), np.var([50.0, 52.0], ddof=1)]
        assert found.spread == pytest.approx(np.sqrt(np.mean(variances)))
        assert found.spread_of_all == pytest.approx(np.std([1.5, 0.5, 50.0, 52.0]))
        assert found.spread_of_all > 10 * found.spread
        low, high = found.intervals["spread"]
        assert 0.0 <= low < found.spread < high

    def test_a_taste_for_length_shows(self) -> None:
        pairs = [pair("aa", "a" * (3 + i), f"{i}") for i in range(9)] + [pair("aaaa", "aaa", "9")]
        found = card(LENGTH, pairs)
        assert found.length_correlation == pytest.approx(1.0)
        assert found.longer_preferred == (1.0, 0.1)

    def test_a_taste_for_repetition_shows(self) -> None:
        texts = ["a b c d", "a b a b", "a a a a", "a b c a"]
        pairs = [pair(one, other, f"{one}{other}") for one in texts for other in texts if one != other]
        found = card(Scores(lambda text: -len(set(text))), pairs)
        assert (found.repetition_correlation or 0) > 0.9

    def test_best_of_four_by_gold(self) -> None:
        """Right where the longest is the best: on the first prompt, and half on the second, where two are longest."""
        worth = {"1": {"a": 0, "aa": 1, "aaa": 2, "aaaa": 3}, "2": {"aa": 9, "bb": 1, "a": 2, "b": 3}, "3": {"a": 0}}
        gold = [
            (Prompt(prompt, prompt), Response(text, ZOE), float(value))
            for prompt, values in worth.items()
            for text, value in values.items()
        ]
        found = card(LENGTH, [pair("aa", "a")], gold=gold)
        assert found.best_of_four is not None
        assert (found.best_of_four.value, found.best_of_four.prompts) == (0.75, 2)
        assert found.gold is not None
        assert found.gold.texts == 9

    def test_best_of_four_by_preference(self) -> None:
        pairs = [pair("aaaa", other) for other in ("a", "aa", "aaa")] + [pair("b", other, "2") for other in ("cc", "c")]
        found = card(LENGTH, pairs).best_of_four
        assert found is not None
        assert (found.value, found.prompts) == (1.0, 1)

    def test_the_worst_slice_is_found(self) -> None:
        """Wrong on everything about cats: 20 pairs. Fewer than 20 are no slice, nor are all."""
        cats = [pair("a", "aa", f"cat {i}", topic="cats", all="yes") for i in range(20)]
        dogs = [pair("aa", "a", f"dog {i}", topic="dogs", all="yes") for i in range(40)]
        few = [pair("a", "aa", f"emu {i}", topic="emus", all="yes") for i in range(5)]
        found = card(LENGTH, [*cats, *dogs, *few])
        assert found.worst_slice is not None
        assert found.worst_slice.accuracy.value == 0.0
        assert {it.name for it in found.slices} >= {"topic: cats", "topic: dogs", "the chosen is longer"}
        assert not {it.name for it in found.slices} & {"topic: emus", "all: yes", "annotator: ann"}
        assert next(it for it in found.slices if it.name == "topic: dogs").accuracy.value == 1.0

    def test_flips_are_counted_by_edit(self) -> None:
        """A scorer that counts capitals, on texts whose first letters are turned: 1:0 becomes 0:1, 2:2 becomes 1:3
        (two flips), 3:0 becomes 2:1 (none)."""
        capitals = Scores(lambda text: sum(letter.isupper() for letter in text))
        pairs = [pair("Ab", "bc", "1"), pair("AB", "bC D", "2"), pair("ABC", "bc", "3")]
        flips = card(capitals, pairs).flips
        turned = {"first letter": 2 / 3, "any of them": 2 / 3}
        assert flips == {"whitespace": 0.0, "final punctuation": 0.0, **turned}

    def test_examples_of_flips_are_the_surest_of_the_turned(self) -> None:
        capitals = Scores(lambda text: sum(letter.isupper() for letter in text), unit=0.5)
        pairs = [pair("Ab", "bc", "1"), pair("AB", "bC D", "2"), pair("ABC", "bc", "3"), pair("Xb", "yc", "4")]
        examples = card(capitals, pairs).flip_examples
        assert [(it.edit, it.prompt, it.before, it.after) for it in examples] == [
            ("first letter", "1", 0.5, -0.5),
            ("first letter", "4", 0.5, -0.5),
        ]
        assert (examples[0].chosen, examples[0].rejected) == ("Ab", "bc")

    def test_intervals_are_over_prompts(self) -> None:
        """Each prompt's pairs five times over: no more is known than before. The margin's by hand: deltas 2, 3, -2, 1
        have mean 1 and squared deviations 1, 4, 9, 0."""
        pairs = [pair("aaa", "a", "1"), pair("aaaa", "a", "2"), pair("a", "aaa", "3"), pair("aa", "b", "4")]
        one, five = card(LENGTH, pairs).intervals, card(LENGTH, pairs * 5).intervals
        half = 1.959963984540054 * math.sqrt(14) / 4
        np.testing.assert_allclose(one["margin"], [1 - half, 1 + half], atol=1e-12)
        for name in ("margin", "brier", "longer_preferred"):
            np.testing.assert_allclose(five[name], one[name], atol=1e-12, err_msg=name)
        alike = [pair(f"a{'a' * more}", "", prompt) for prompt in "123" for more in (0, 2)]  # 1 and 3 on every prompt
        np.testing.assert_allclose(card(LENGTH, alike).intervals["margin"], [2, 2], atol=1e-12)
        low, high = one["calibration_error"]
        assert 0 <= low < high <= 1

    def test_every_number_has_its_interval(self) -> None:
        rng = np.random.default_rng(0)
        pairs = [
            pair(*(rng.choice(["a b.", "a a a", "cde f", "Gh", "b"], size=2, replace=False)), f"{i % 7}", who)
            for i in range(30)
            for who in ("ann", "bob")
        ]
        gold = [(it.prompt, it.chosen, float(len(it.chosen.text))) for it in pairs]
        found = card(LENGTH, pairs, gold=gold)
        for it in measures(found):
            assert it.interval or it.value == "-", it.name
        for name, (low, high) in found.intervals.items():
            assert low <= high, name
        assert found.agreement is not None
        assert found.intervals["model"][0] < found.agreement.model < found.intervals["model"][1]

    def test_points_are_drawn_evenly_out_of_all(self) -> None:
        found = card(LENGTH, [pair("a" * (i + 1), "b b", f"{i}") for i in range(900)])
        assert len(found.points) == MOST_POINTS
        assert found.points[0].length == 1
        assert max(it.length for it in found.points) > 890
        assert all(it.score == it.length for it in found.points)

    def test_what_is_not_measured_says_why(self) -> None:
        found = card(LENGTH, [pair("aaa", "a")])
        assert (found.agreement, found.best_of_four, found.gold, found.worst_slice) == (None, None, None, None)
        assert {note.split(":")[0] for note in found.notes} == {"agreement", "best of four", "gold"}
        with pytest.raises(DataError, match="at least one"):
            card(LENGTH, [])

    def test_a_calibrated_scorer_has_the_error_of_chance(self) -> None:
        rng = np.random.default_rng(0)
        pairs = []
        for i, delta in enumerate(rng.integers(1, 4, size=2000)):
            texts = ["a" * (1 + int(delta)), "a"]
            pairs.append(pair(*(texts if rng.random() < win_probability(float(delta)) else texts[::-1]), f"{i}"))
        honest, loud = card(LENGTH, pairs), card(Scores(len, unit=3.0), pairs)
        assert honest.calibration_error < 2 * honest.calibration_error_by_chance < 0.05
        assert loud.calibration_error > 0.05
        assert honest.accuracy == loud.accuracy


class TestRanks:
    def test_by_hand(self) -> None:
        """Ranks 1 2.5 2.5 4 and 1 3 2 4; of six pairs one is tied in a, the other five agree."""
        a, b = np.array([1.0, 2.0, 2.0, 9.0]), np.array([10.0, 30.0, 20.0, 40.0])
        assert spearman(a, b) == pytest.approx(4.5 / math.sqrt(4.5 * 5.0))
        assert kendall(a, b) == pytest.approx(5 / math.sqrt(5 * 6))
        assert spearman(a, -b) == pytest.approx(-4.5 / math.sqrt(4.5 * 5.0))
        assert kendall(a, -b) == pytest.approx(-5 / math.sqrt(5 * 6))

    def test_what_does_not_vary_has_none(self) -> None:
        for a in (np.ones(3), np.zeros(0), np.zeros(1)):
            assert spearman(a, np.arange(len(a))) is None
            assert kendall(a, np.arange(len(a))) is None

    def test_rank_intervals_cover_as_often_as_they_say(self) -> None:
        """Of normal pairs of correlation r, Spearman's is 6/pi asin(r/2) and Kendall's 2/pi asin(r)."""
        rng, inside = np.random.default_rng(0), np.zeros(2)
        truth = 6 / math.pi * math.asin(0.3), 2 / math.pi * math.asin(0.6)
        for _ in range(300):
            a, noise = rng.standard_normal((2, 40))
            b = 0.6 * a + 0.8 * noise
            rho, tau = spearman(a, b), kendall(a, b)
            assert rho is not None
            assert tau is not None
            for i, (low, high) in enumerate((spearman_interval(rho, 40), kendall_interval(tau, 40))):
                inside[i] += low <= truth[i] <= high
        assert (abs(inside / 300 - 0.95) < 0.04).all(), inside / 300
        assert spearman_interval(0.5, 4)[0] < -0.99
        assert kendall_interval(1.0, 9) == (1.0, 1.0)

    def test_repetition_by_hand(self) -> None:
        """Three words and two pairs, one kind of each: 1 - 2 / 5."""
        assert repeated_share(["great", "great", "great"]) == pytest.approx(0.6)
        assert (repeated_share(["one", "two", "three"]), repeated_share([])) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("edit", "before", "after"),
    [
        ("whitespace", "a b", "a  b"),
        ("first letter", "Is it?", "is it?"),
        ("first letter", "", ""),
        ("final punctuation", "Yes.", "Yes"),
        ("final punctuation", "Yes", "Yes."),
        ("final punctuation", "Yes!", "Yes!"),
        ("final punctuation", "", ""),
    ],
)
def test_edits(edit: str, before: str, after: str) -> None:
    assert EDITS[edit](before) == after


class TestFiles:
    @pytest.fixture
    def model(self, trunk: Path, tmp_path: Path) -> Path:
        made = RewardModel.from_trunk(trunk)
        made.heads.data.normal_(generator=torch.Generator().manual_seed(0))
        made.save(tmp_path / "model")
        return tmp_path / "model"

    @pytest.fixture
    def judgements(self) -> list[Comparison | Rating]:
        made: list[Comparison | Rating] = []
        for i in range(30):
            one, other = Response("yes" + "." * i, ZOE), Response("no" + "." * i, ZOE)
            prompt = Prompt(f"{i}", f"q{i}")
            made.append(Comparison(prompt, one, other, "first", "ann", created=f"{i:02}"))
            made.append(Rating(prompt, one, 4, "ann", created=f"{i:02}"))
            made.append(Rating(prompt, one, 5, "bob", created=f"{i:02}"))
            made.append(Rating(prompt, other, 1 + i % 3, "ann", "kind", created=f"{i:02}"))
        return made

    def test_a_store_and_a_file_say_the_same(self, model: Path, judgements: list[Any], tmp_path: Path) -> None:
        with PreferenceStore(tmp_path / "store.sqlite") as store:
            store.add(judgements)
        write_judgements(tmp_path / "data.jsonl", judgements, "jsonl")
        found = [scorecard_of(model, tmp_path / name) for name in ("store.sqlite", "data.jsonl")]
        assert found[0] == found[1]
        assert (found[0].pairs, found[0].gold_is) == (30, "people's ratings")
        assert found[0].gold is not None
        assert found[0].gold.texts == 30
        preferences, ratings = read_data(tmp_path / "data.jsonl", held_out=0.3)
        with PreferenceStore(tmp_path / "store.sqlite") as store:
            assert preferences == store.split(0.3)[1]
        assert {valued[2] for valued in ratings} == {4.5}
        assert {valued[0].text for valued in ratings} == {it.prompt.text for it in preferences}

    def test_json_and_table_hold_everything(self, model: Path, judgements: list[Any], tmp_path: Path) -> None:
        write_judgements(tmp_path / "data.jsonl", judgements, "jsonl")
        found = scorecard_of(model, tmp_path / "data.jsonl")
        found.save(tmp_path / "new" / "card.json")
        saved = json.loads((tmp_path / "new" / "card.json").read_text())
        assert saved["accuracy"]["value"] == found.accuracy.value
        assert set(saved) == {*Scorecard.__dataclass_fields__, "worst_slice"}
        assert Scorecard.load(tmp_path / "new" / "card.json") == found
        for broken in ("{}", "[]", json.dumps({**saved, "pears": 1}), json.dumps({**saved, "reliability": [{}]})):
            (tmp_path / "broken.json").write_text(broken)
            with pytest.raises(DataError, match="make it again"):
                Scorecard.load(tmp_path / "broken.json")
        console = Console(width=120, record=True, file=(tmp_path / "shown").open("w"))
        console.print(scorecard_table(found))
        shown = console.export_text()
        for words in (
            "accuracy",
            "calibration error",
            "Brier",
            "length",
            "repetition",
            "flips",
            "agreement",
            "ratings",
        ):
            assert words in shown

    def test_a_gold_reward_by_name(self, model: Path, tmp_path: Path, episode: Any, preference: Any) -> None:
        rng = np.random.default_rng(0)
        pairs = [
            preference(*(episode(rng.integers(0, 250, size=n).tolist(), name=f"{i}") for n in (3, 6)))
            for i in range(20)
        ]
        with PreferenceStore(tmp_path / "store.sqlite") as store:
            store.add(pairs)
        found = scorecard_of(model, tmp_path / "store.sqlite", gold="repetition")
        assert found.gold is not None
        assert (found.gold_is, found.gold.texts) == ("repetition", 40)
        with pytest.raises(ConfigError, match="did you mean 'repetition'"):
            scorecard_of(model, tmp_path / "store.sqlite", gold="repetitions")

    def test_files_that_hold_nothing_to_measure(self, model: Path, tmp_path: Path) -> None:
        for name in ("absent.jsonl", "absent.sqlite"):
            with pytest.raises(DataError, match="absent"):
                read_data(tmp_path / name)
            assert not (tmp_path / name).exists()
        with PreferenceStore(tmp_path / "store.sqlite") as store:
            store.add([Rating(Prompt("p", "q"), Response("a", ZOE), 3, "ann")])
        with pytest.raises(DataError, match="no pair of responses"):
            read_data(tmp_path / "store.sqlite")

    def test_on_the_command_line(
        self,
        model: Path,
        judgements: list[Any],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def run(*arguments: str) -> tuple[int, str, str]:
            monkeypatch.setattr("sys.argv", ["rlhf-env", "scorecard", *arguments])
            with pytest.raises(SystemExit) as ended:
                cli.main()
            said = capsys.readouterr()
            return int(ended.value.code or 0), said.out, said.err

        data = tmp_path / "data.jsonl"
        write_judgements(data, judgements, "jsonl")
        status, out, err = run(str(model), str(data), "--held-out", "1/2")
        assert (status, err) == (0, "")
        assert "calibration error" in out
        card = json.loads((tmp_path / "model.scorecard.json").read_text())
        assert card["pairs"] == len(read_data(data, held_out=0.5)[0]) < 30
        if importlib.util.find_spec("matplotlib") is not None:
            assert f"{card['pairs']} judgements" in (tmp_path / "model.scorecard.html").read_text()
            status, out, _ = run(str(model), str(data), "--html", str(tmp_path / "pages" / "card.html"))
            assert (status, "pages/card.html" in out) == (0, True)
            assert "30 judgements" in (tmp_path / "pages" / "card.html").read_text()
        for arguments, said in (
            ((str(model), str(data), "--held-out", "half"), "a share such as 0.2 or 1/6"),
            ((str(model), str(tmp_path / "absent.jsonl")), "absent.jsonl"),
            ((str(tmp_path / "pages"), str(data)), "is not a reward model"),
        ):
            status, _, err = run(*arguments)
            assert status == 2
            assert said in err
            assert "Traceback" not in err
