"""Which rule stops in time: the runs, the replay, and how rules are chosen and told of."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlhf_env.errors import ConfigError, DataError, MissingExtra
from rlhf_env.lab.brake import libraries
from rlhf_env.lab.brake.asking import BrakeDecision, WayOfAsking, ask
from rlhf_env.lab.brake.exact import ExactRun
from rlhf_env.lab.brake.judging import RuleToTry, compare_brakes, pick, tally
from rlhf_env.lab.brake.page import brake_in_words, brake_page
from rlhf_env.lab.brake.records import SavedRun, read_records, read_study
from rlhf_env.lab.brake.runs import BrakeRun
from rlhf_env.lab.brake.signals import SIGNALS
from rlhf_env.lab.brake.study import BrakeFindings
from rlhf_env.lab.brake.texts import GoldOfLetters, ProxyDesign, ProxyOfLetters

SAMPLE = tuple(
    "".join("abcde"[i] for i in row[: 1 + row[12] * 2])
    for row in np.random.default_rng(0).integers(5, size=(400, 13)).tolist()
)


def record(gold: Sequence[float], seed: int = 0, **numbers: Sequence[float]) -> SavedRun:
    """A run of one row an evaluation."""
    rows = [
        {"update": i, "eval/objective": float(i), **{name.replace("__", "/"): of[i] for name, of in numbers.items()}}
        for i in range(len(gold))
    ]
    texts = np.array(gold)[:, None] + np.zeros((1, 192))
    return SavedRun(f"run-{seed}", "made up", seed, rows, texts, np.array(gold))


def test_a_proxy_of_few_labels_is_right_where_the_reference_writes_and_wrong_beyond() -> None:
    gold = GoldOfLetters(3, SAMPLE)
    proxy = ProxyOfLetters(gold, ProxyDesign(labels=1000), 3)
    assert np.corrcoef(proxy.of(SAMPLE), gold.of(SAMPLE))[0, 1] > 0.6
    tops = [max((letter * 12 for letter in "abcde"), key=lambda text: scorer.of([text])[0]) for scorer in (gold, proxy)]
    assert proxy.of([tops[1]])[0] > 3.0 > gold.of([tops[1]])[0]
    assert proxy.disagreement is not None and proxy.disagreement > 0.0


def test_a_flaw_pays_what_it_says_in_standard_deviations() -> None:
    gold = GoldOfLetters(0, SAMPLE)
    proxy = ProxyOfLetters(gold, ProxyDesign(flaw="length", pays=0.5), 0)
    paid, lengths = proxy.of(SAMPLE) - gold.of(SAMPLE), np.array([len(text) for text in SAMPLE])
    np.testing.assert_allclose(paid, 0.5 * (lengths - lengths.mean()) / lengths.std(), atol=1e-12)


def test_a_run_of_the_loop_leaves_what_its_owner_saw_and_gold_beside_it() -> None:
    made = BrakeRun("50 labels", 0, "rloo", updates=4).made()
    rows = made["rows"]
    assert [row["update"] for row in rows] == [0, 1, 2, 3, 4]
    assert not any("gold" in key for row in rows for key in row)
    assert np.array(made["gold"]).shape == (2, 192)
    assert {"rollout/kl", "texts/rewards", "texts/disagreement", "train/grad_norm"} <= rows[4].keys()
    np.testing.assert_allclose(np.mean(rows[4]["texts/rewards"]), rows[4]["rollout/part/proxy"], atol=1e-3)


def test_an_exact_run_has_the_gold_of_the_policy_it_is_tilted_to(tmp_path: Path) -> None:
    run = ExactRun("exact: gold", 1)
    run.work(tmp_path, lambda row, share: None)
    (found,) = read_records([run.result_file(tmp_path)])
    assert found.gold[0] == pytest.approx(0.0, abs=0.25)
    assert found.gold[-1] > 1.0
    assert not found.needs_brake
    assert found.rows[-1]["eval/proxy"] == pytest.approx(found.gold[-1], abs=1e-3)


@pytest.mark.parametrize(
    ("gold", "kept", "well", "false"),
    [
        ([0.0, 1.0, 2.0, 0.0], 2, True, False),
        ([0.0, 1.0, 2.0, 0.0], 1, False, True),  # it would have become better
        ([0.0, 1.0, 2.0, 0.0], 3, False, False),  # too late is no false stop
        ([0.0, 0.02, 0.05, 0.0], 1, True, False),  # all within the noise
    ],
    ids=str,
)
def test_a_stop_is_false_only_before_the_peak(gold: list[float], kept: int, well: bool, false: bool) -> None:
    found = tally([record(gold)], lambda run: BrakeDecision(kept, kept))
    assert (found.kept_well, found.false_stops) == (well, false)


def test_of_rules_with_few_false_stops_the_one_is_picked_that_keeps_most() -> None:
    runs = [record([0.0, 1.0, 2.0, 0.0], seed) for seed in range(10)]
    late, right, early = (RuleToTry(str(at), lambda run, at=at: BrakeDecision(at, at)) for at in (3, 2, 1))
    assert pick([late, early, right], runs)[0] is right
    assert pick([late, early], runs)[0] is late


def test_signals_read_rows_alone_and_say_nothing_where_a_number_is_missing() -> None:
    run = record([0.0, 1.0, 2.0], rollout__kl=[0.0, 1.0, 3.0], rollout__entropy=[2.0, 1.0, 0.5])
    assert SIGNALS["KL budget (`max_kl`)"](run).tolist() == [0.0, 1.0, 3.0]
    assert SIGNALS["entropy, share gone"](run).tolist() == [0.0, 0.5, 0.75]
    assert np.isnan(SIGNALS["disagreement of an ensemble"](run)).all()
    assert math.isfinite(SIGNALS["our `health` warnings"](run)[-1])


@pytest.mark.parametrize("kind", ["scores", "votes against the reference", "votes against the best so far"])
def test_an_annotator_who_is_asked_enough_stops_a_fall_and_keeps_the_best(kind: str) -> None:
    drop = 0.3 if kind != "votes against the best so far" else 0.2
    falls = record([0.0, 1.0, 3.0, 1.0, -2.0, -3.0])
    found = ask(falls, WayOfAsking(kind, 64, drop, 1, 1))
    assert found.stopped in (3, 4)
    assert found.kept in (2, 3) if kind == "votes against the reference" else found.kept == 2
    assert found.labels in (64 * 5, 64 * 4, 64 * 3)


def test_rules_are_told_of_on_the_runs_they_were_not_chosen_on() -> None:
    runs = [
        record([0.0, 1.0, 2.0, 0.0], seed, rollout__kl=[0.0, 1.0, 2.0, 9.0 if seed % 2 == 0 else 1.5])
        for seed in range(20)
    ]
    verdicts = {it.family: it for it in compare_brakes(runs, libraries=False)}
    by_kl = verdicts["KL budget (`max_kl`)"]
    assert (by_kl.on_choice.runs, by_kl.on_held_out.runs) == (10, 10)
    assert by_kl.on_choice.kept_well == by_kl.on_held_out.kept_well == 10
    assert by_kl.on_held_out.holds and not verdicts["never stop"].on_held_out.holds
    page = brake_page(BrakeFindings(20, 20, 0, list(verdicts.values())))
    assert "| KL budget (`max_kl`) |" in page and "The bar" in page
    with pytest.raises(DataError, match="even seeds"):
        compare_brakes(runs[:1], libraries=False)


def test_the_held_out_half_has_no_say_in_which_rule_is_named() -> None:
    """The one named is cheapest where settings are chosen, and the other half says no to it."""
    runs = [record([0.0, 1.0, 2.0, 0.0], seed, rollout__kl=[0.0, 1.0, 2.0, 9.0]) for seed in range(20)]
    never, *others = compare_brakes(runs, libraries=False)
    meets, fails = (replace(never.on_choice, kept_well=kept, labels=8.0) for kept in (10, 0))
    asking = next(it for it in others if it.asks)
    silent = [replace(it, on_choice=fails, on_held_out=meets) for it in others if not it.asks]
    named = replace(asking, on_choice=meets, on_held_out=fails)
    dear = replace(asking, family="dear", on_choice=replace(meets, labels=64.0), on_held_out=replace(meets, labels=1.0))
    findings = BrakeFindings(20, 20, 0, [never, *silent, dear, named])
    assert findings.winner is named
    assert "the bar is not met there" in brake_in_words(findings)


def test_a_record_or_a_study_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"rows": []}), encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.json is no record of a run"):
        read_records([tmp_path / "a.json"])
    with pytest.raises(ConfigError, match="no finished runs of an over-optimisation study"):
        read_study(tmp_path)


def test_without_the_other_libraries_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "installed", lambda: ["rlwatch"])
    with pytest.raises(MissingExtra, match=r"reward_scope.*rlhf-env\[brake\]"):
        libraries.require_libraries()


def test_other_peoples_detectors_are_called_on_the_rows() -> None:
    pytest.importorskip("rlwatch")
    pytest.importorskip("reward_scope")
    calm = [{"update": i, "rollout/kl": 1.0 + 0.01 * (i % 3), "eval/objective": 0.0} for i in range(60)]
    jumps = [*calm[:-1], {**calm[-1], "rollout/kl": 50.0}]
    made = [SavedRun("r", "g", 0, rows, None, np.zeros(60)) for rows in (calm, jumps)]
    assert [libraries.rlwatch_alerts(run)[-1] for run in made] == [0.0, 1.0]
    text = {"texts/shown": ["abcabcabcabc"] * 4, "texts/rewards": [1.0] * 4}
    repeats = SavedRun("r", "g", 0, [{**row, **text} for row in calm[:20]], None, np.zeros(20))
    assert libraries.reward_scope_alerts(repeats)[-1] > 0.0


def test_what_the_readme_says_of_it_stands_in_its_table() -> None:
    root = Path(__file__).resolve().parents[3]
    rows = {
        cells[1].strip(): cells
        for line in (root / "docs" / "brake.md").read_text(encoding="utf-8").splitlines()
        if line.count("|") == 10 and (cells := line.split("|"))
    }
    (said,) = re.findall(
        r"`rlhf-env lab brake` asks.*?has its price", (root / "README.md").read_text("utf-8"), re.DOTALL
    )
    page = " ".join((root / "docs" / "brake.md").read_text(encoding="utf-8").split())
    ((runs, held_out),) = re.findall(r"(\d+) runs, \d+ of which end below 90 % of their peak; (\d+) are held out", page)
    assert f"on {runs} small runs, half of them held out" in said and int(runs) == 2 * int(held_out)
    assert f"with no false stop in {held_out}" in " ".join(said.split())
    assert rows["scores, 64 a time"][4].split("%")[0].strip() == "0"
    signals = [row for row in rows if not row.startswith(("scores", "votes", "never", "rule", "---"))]
    best = max(signals, key=lambda row: int(rows[row][3].split("%")[0]))
    told = re.findall(r"(\d+) % \((\d+) to (\d+)\)", " ".join(said.split()))
    named = ["never stop", best, "scores, 64 a time", "votes against the best so far, 8 a time"]
    assert [tuple(re.findall(r"\d+", rows[row][3])) for row in named] == told
    assert f"for {rows[named[-1]][5].strip()} judgements a run" in said.replace("\n", " ")
