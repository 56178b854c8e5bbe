"""Over-optimisation: fits that find what was planted, best-of-n against enumeration, and the study on a toy world."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rlhf_rewards.ensemble import Ensemble

from rlhf_env.envs.tasks import held_out, load_task
from rlhf_env.errors import ConfigError, DataError, RunFailed
from rlhf_env.feedback.offline import load_preferences
from rlhf_env.feedback.reward_models.config import RewardModelConfig
from rlhf_env.feedback.reward_models.model import RewardModel
from rlhf_env.lab.studies.overoptimization import proxies
from rlhf_env.lab.studies.overoptimization.cells import runs
from rlhf_env.lab.studies.overoptimization.findings import Findings, as_markdown, conclude_study, save_findings
from rlhf_env.lab.studies.overoptimization.laws import (
    Curve,
    Law,
    best_of_n_kl,
    best_of_n_weights,
    estimated_best_of_n_kl,
    explained,
    fit_law,
    fit_with_intervals,
)
from rlhf_env.lab.studies.overoptimization.proxies import first_layers, fit_result, labelled_pairs
from rlhf_env.lab.studies.overoptimization.run import run_study
from rlhf_env.lab.studies.overoptimization.study import Climb, Proxy, Study, TestedChange
from rlhf_env.lab.studies.overoptimization.texts import pool_of
from rlhf_env.policies.tiny import tiny_language_model

D = np.linspace(0.0, 4.0, 9)
QUIET = Console(quiet=True)


# ---------------------------------------------------------------- laws


@pytest.mark.parametrize("form", ["best-of-n", "rl"])
def test_a_fit_recovers_what_was_planted(form: Any) -> None:
    law = Law(form, 1.3, 0.7)
    found = fit_law(form, D, law(D))
    assert (found.a, found.b) == pytest.approx((1.3, 0.7), abs=1e-12)
    assert explained(found, D, law(D)) == pytest.approx(1.0, abs=1e-12)


def test_the_laws_at_points_worked_out_by_hand() -> None:
    assert Law("best-of-n", 2.0, 0.5)(np.array([0.0, 1.0, 2.0])) == pytest.approx([0.0, 1.5, 2.0], abs=1e-12)
    rl = Law("rl", 2.0, 0.5)(np.array([0.0, 1.0, math.e]))
    assert rl == pytest.approx([0.0, 2.0, 1.5 * math.e], abs=1e-12)


@pytest.mark.parametrize("form", ["best-of-n", "rl"])
@pytest.mark.parametrize(("a", "b"), [(1.0, 0.6), (0.8, 0.9), (1.5, 0.5)])
def test_the_peak_is_where_the_curve_is_highest(form: Any, a: float, b: float) -> None:
    law = Law(form, a, b)
    fine = np.linspace(0.0, 12.0, 240_001)
    highest = int(law(fine).argmax())
    assert law.peak == pytest.approx(fine[highest], abs=1e-4)
    assert law.best_within(12.0) == pytest.approx((law.peak, law(fine)[highest]), abs=1e-8)
    assert law.peak is not None
    end = law.peak / 2
    assert law.best_within(end) == pytest.approx((end, float(law(np.array(end)))), abs=1e-12), "still rising at the end"


def test_curves_without_a_peak_say_so() -> None:
    assert Law("rl", 1.0, -0.2).peak is None
    assert Law("best-of-n", -1.0, 0.2).peak is None
    assert Law("best-of-n", -1.0, 0.2).best_within(3.0) == (0.0, 0.0)
    assert Law("rl", 700.0, 0.5).peak is None  # beyond what a float holds
    with pytest.raises(DataError, match="two different distances"):
        fit_law("rl", np.array([0.0, 1.0, 1.0]), np.zeros(3))


def planted(stream: np.random.Generator, seeds: int, law: Law, noise: float = 0.15, spread: float = 0.2) -> list[Curve]:
    """Seeds differ in their own a, as proxies do, and each point has noise of its own."""
    curves = []
    for _ in range(seeds):
        own = replace(law, a=law.a + spread * stream.standard_normal())
        curves.append(Curve(D, (own(D) + noise * (D > 0) * stream.standard_normal(len(D)))[:, None]))
    return curves


def test_intervals_cover_what_was_planted() -> None:
    """Nominal 95 %, 8 seeds, 80 experiments: fewer than 69 would come by chance once in 500 times."""
    law, stream = Law("rl", 1.2, 0.8), np.random.default_rng(0)
    covered = np.zeros(3)
    for _ in range(80):
        fit = fit_with_intervals("rl", planted(stream, 8, law), stream=stream, resamples=100)
        truths = {"a": law.a, "b": law.b, "peak": law.peak}
        for i, (name, truth) in enumerate(truths.items()):
            interval = getattr(fit, name)
            assert truth is not None
            covered[i] += interval.low <= truth <= interval.high
    assert covered.min() >= 69, covered
    assert covered.min() < 80, covered


def test_prompts_are_redrawn_where_there_are_several() -> None:
    """Seeds that agree to the last bit: what is left to draw is prompts."""
    stream = np.random.default_rng(1)
    effects = stream.standard_normal(12)
    reward = Law("best-of-n", 1.0, 0.2)(D)[:, None] + D[:, None] * effects
    same = [Curve(D, reward)] * 4
    fit = fit_with_intervals("best-of-n", same, stream=stream, resamples=300)
    assert fit.a.low is not None
    assert fit.a.high is not None
    assert fit.law.a == pytest.approx(1.0 + effects.mean(), abs=1e-10)
    spread = effects.std() / math.sqrt(12)
    assert 2.5 * spread < fit.a.high - fit.a.low < 8.0 * spread
    means = [Curve(D, reward.mean(axis=1, keepdims=True))] * 4
    fit = fit_with_intervals("best-of-n", means, stream=stream, resamples=50)
    assert fit.a.low is not None
    assert fit.a.high == pytest.approx(fit.a.low, abs=1e-12)


@pytest.mark.parametrize(
    ("law", "noise", "spread", "said"),
    [
        (Law("rl", 1.2, 0.8), 0.1, 0.03, []),
        (Law("rl", 1.2, 0.8), 0.1, 0.5, ["the form fits, and seeds differ"]),
        (Law("rl", 1.2, 0.8), 3.0, 0.0, ["the form does not describe", "the interval of b includes 0"]),
        (Law("rl", 1.0, 0.3), 0.01, 0.0, ["lies outside the data, which end at 4.00"]),
        (Law("rl", 0.5, -0.5), 0.01, 0.0, ["b is negative", "no peak"]),
    ],
)
def test_where_a_fit_fails_is_said(law: Law, noise: float, spread: float, said: list[str]) -> None:
    stream = np.random.default_rng(3)
    doubts = fit_with_intervals("rl", planted(stream, 8, law, noise, spread), stream=stream, resamples=200).doubts
    assert bool(doubts) == bool(said), doubts
    for words in said:
        assert any(words in doubt for doubt in doubts), doubts


def test_one_seed_has_no_interval() -> None:
    stream = np.random.default_rng(0)
    fit = fit_with_intervals("rl", planted(stream, 1, Law("rl", 1.2, 0.8)), stream=stream)
    assert (fit.a.low, fit.peak.high) == (None, None)
    assert any("interval of b" in doubt for doubt in fit.doubts)


# ---------------------------------------------------------------- best-of-n


@pytest.mark.parametrize("scores", [[3.0, 1.0, 2.0, 7.0, -1.0], [3.0, 1.0, 3.0, 1.0, 0.5], [2.0] * 5])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_weights_against_every_draw(scores: list[float], n: int) -> None:
    """The mean over all subsets of the pool, ties shared alike."""
    expected = np.zeros(5)
    draws = list(combinations(range(5), n))
    for draw in draws:
        best = max(scores[i] for i in draw)
        tied = [i for i in range(5) if scores[i] == best and best in [scores[j] for j in draw]]
        expected[tied] += 1.0 / len(tied) / len(draws)
    assert best_of_n_weights(np.array(scores), n) == pytest.approx(expected, abs=1e-12)


def test_the_estimate_is_unbiased_against_enumeration() -> None:
    """Every pool of 4 of a 3-atom distribution, weighed by its probability, gives best-of-n's exact mean."""
    p, scores, gold = np.array([0.5, 0.3, 0.2]), np.array([0.0, 1.0, 2.0]), np.array([1.0, -2.0, 5.0])
    for n in (1, 2, 3):
        cumulated = np.cumsum(p) ** n
        exact = float(np.diff(cumulated, prepend=0.0) @ gold)
        expected = sum(
            float(p[list(pool)].prod() * (best_of_n_weights(scores[list(pool)], n) @ gold[list(pool)]))
            for pool in product(range(3), repeat=4)
        )
        assert expected == pytest.approx(exact, abs=1e-12)


def test_no_more_can_be_drawn_than_there_are() -> None:
    with pytest.raises(DataError, match="best of 4 from a pool of 3"):
        best_of_n_weights(np.zeros(3), 4)


def test_the_estimated_kl_is_the_analytic_one_where_nothing_repeats() -> None:
    scores = np.random.default_rng(0).standard_normal(40)
    for n in (1, 2, 7, 40):
        assert estimated_best_of_n_kl(scores, np.full(40, -60.0), n) == pytest.approx(best_of_n_kl(n), abs=1e-10)


def test_the_estimated_kl_against_the_exact_one_where_replies_repeat() -> None:
    p = np.array([0.04, 0.06, 0.1, 0.15, 0.25, 0.4])
    drawn = np.random.default_rng(0).choice(len(p), size=6000, p=p)
    for n in (1, 2, 4, 16):
        best = np.diff(np.cumsum(p) ** n, prepend=0.0)
        exact = float(best @ np.log(best / p))
        estimated = estimated_best_of_n_kl(drawn.astype(float), np.log(p)[drawn], n)
        assert estimated == pytest.approx(exact, abs=0.02)
        assert exact <= best_of_n_kl(n) + 1e-12
    assert best_of_n_kl(16) - exact > 0.5, "the bound is far from tight here"


# ---------------------------------------------------------------- the study, in a toy world


def toy_study(model: Path) -> Study:
    """Six symbols, prompts of two of them; gold likes replies of four tokens."""
    words = ["".join(pair) for pair in product("abcd", repeat=2)] + ["".join(it) for it in product("ab", repeat=4)]
    noisy = Proxy(labels=14, layers=2, flips=0.25)
    pg = Climb(agent={"name": "rloo", "lr": 5e-2}, updates=6, every=2, num_envs=8)
    return Study(
        seeds=2,
        task={"name": "prompts", "prompts": words, "held_out_fraction": 0.3},
        policy=str(model),
        gold={"length": {"weight": 2.0, "target": 4}},
        max_new_tokens=6,
        max_prompt_tokens=6,
        pair_prompts=18,
        temperatures=(1.0, 1.5),
        measured_prompts=6,
        pool=4,
        proxies={
            "base": Proxy(labels=14, layers=1),
            "noisy": noisy,
            "worst-case": replace(noisy, members=2, combination="worst"),
        },
        fitting=RewardModelConfig(epochs=1, batch_size=8, validation=0.0),
        climbs={
            "rloo": pg,
            "dpo": replace(pg, agent={"name": "dpo", "lr": 1e-2}, offline=True, beta=0.1),
        },
        claims=(
            TestedChange(claim="noise", proxy="noisy", than="base", what="distance", expected="worse"),
            TestedChange(claim="worst", proxy="worst-case", than="noisy", what="gold", expected="better"),
        ),
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tokenizers
    from tokenizers import decoders, models
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    vocab = {symbol: i for i, symbol in enumerate(["a", "b", "c", "d", "<pad>", "<end>"])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>").save_pretrained(folder)
    tiny_language_model(vocab_size=6, hidden_size=16, heads=2, end_id=5, pad_id=4).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def study(model: Path) -> Study:
    return toy_study(model)


@pytest.fixture(scope="module")
def finished(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    run_study(study, folder, jobs=0, console=QUIET)
    return folder


@pytest.fixture(scope="module")
def findings(study: Study, finished: Path) -> Findings:
    return conclude_study(study, finished, resamples=50)


def stamps(folder: Path) -> Mapping[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file() and file.name != "study.json"}


def test_every_job_leaves_its_file(study: Study, finished: Path) -> None:
    assert {file.name for file in (finished / "texts").iterdir()} == {
        "pool-0-2.jsonl",
        "pool-2-4.jsonl",
        "pairs-1.jsonl",
        "pairs-1.5.jsonl",
    }
    names = {cell.key for cell in runs(study, finished)}
    assert len(names) == 2 * 4, "rloo on three proxies, dpo on the base, two seeds"
    assert {file.stem for file in (finished / "results").iterdir()} == names
    assert not list(finished.rglob("checkpoints")), "measurements are kept, weights are not"
    for seed in range(2):
        assert len(load_preferences(finished / "proxies" / f"pairs-seed-{seed}.jsonl")) == 14


def test_what_is_there_is_not_done_again_and_what_is_missing_is(study: Study, finished: Path) -> None:
    results = sorted((finished / "results").iterdir())
    fits = sorted((finished / "proxies").glob("*.json"))
    lost = [results[3], fits[0]]
    before = {file: json.loads(file.read_text()) for file in lost}
    kept = stamps(finished)
    for file in lost:
        file.unlink()
    shutil.rmtree(finished / "cells" / before[results[3]]["run"].removeprefix("cells/"))
    run_study(study, finished, jobs=0, console=QUIET)
    after = stamps(finished)
    redone = {file for file, stamp in after.items() if kept.get(file) != stamp}
    assert {file for file in redone if file.parent.name in ("results", "texts")} == {results[3]}
    assert {file for file in redone if file in fits} == {fits[0]}
    for file, was in before.items():
        now = json.loads(file.read_text())
        for either in (was, now):
            either.get("spending", {}).pop("seconds", None)
        assert now == was, "the same numbers again"


def test_another_study_is_refused(study: Study, finished: Path) -> None:
    with pytest.raises(ConfigError, match="holds a study of other settings"):
        run_study(replace(study, seeds=3), finished, jobs=0, console=QUIET)


def test_a_reward_model_that_fails_ends_the_study_and_says_why(
    study: Study, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished / "texts", tmp_path / "texts")

    def fails(*_arguments: Any, **_options: Any) -> Any:
        raise DataError("no such luck")

    monkeypatch.setattr(proxies, "fit_reward_model", fails)
    with pytest.raises(RunFailed, match="14-labels-1-layers-0-flipped · seed-0: no such luck"):
        run_study(study, tmp_path, jobs=0, console=QUIET)


def test_seeds_have_their_own_pairs_and_flips_change_labels_alone(study: Study, finished: Path) -> None:
    def told(seed: int, flips: float) -> list[tuple[str, str, str, str]]:
        return [
            (it.prompt.text, it.first.text, it.second.text, it.verdict)
            for it in labelled_pairs(study, finished, seed, flips)
        ]

    clean, flipped, other = told(0, 0.0), told(0, 0.5), told(1, 0.0)
    assert [it[:3] for it in clean] == [it[:3] for it in flipped]
    assert [it[3] for it in clean] != [it[3] for it in flipped]
    assert [it[0] for it in clean] != [it[0] for it in other]
    assert len({it[0] for it in clean}) == len(clean), "one pair of a prompt"


def test_members_have_their_own_sample_of_the_pairs_and_their_own_start(
    study: Study, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[tuple[int, int], tuple[list[str], int]] = {}

    def noted(preferences: Any, *_rest: Any, generator: Any, **_options: Any) -> Any:
        seen[at] = [it.prompt.text for it in preferences], generator.initial_seed()
        raise DataError("seen")

    monkeypatch.setattr(proxies, "fit_reward_model", noted)
    (alone,) = study.proxies["noisy"].fits
    for fitting in (alone, *study.proxies["worst-case"].fits):
        for seed in range(2):
            at = seed, fitting.bootstrap
            with pytest.raises(DataError, match="seen"):
                proxies.ProxyFit(study, seed, fitting).work(finished, lambda _row, _fraction: None)
    assert len({start for _, start in seen.values()}) == 6
    for (seed, bootstrap), (prompts, _) in seen.items():
        assert len(prompts) == 14
        assert (len(set(prompts)) == 14) is (bootstrap == 0), "with replacement"
        assert set(prompts) <= set(seen[seed, 0][0])
    assert seen[0, 1][0] != seen[0, 2][0]


def test_a_trunk_of_fewer_layers_is_what_is_saved(study: Study, finished: Path) -> None:
    small, large = (study.proxies[name].fits[0] for name in ("base", "noisy"))
    sizes = [fit_result(study, finished, 0, fitting)["parameters"] for fitting in (small, large)]
    assert sizes[0] < sizes[1]
    model = RewardModel.load(finished / "proxies" / f"{small.name}--seed-0")
    assert sum(it.numel() for it in model.parameters()) == sizes[0]
    with pytest.raises(ConfigError, match=r"layers: 2 of a trunk .* that has 1 layers"):
        first_layers(model, 2)


def test_members_of_an_ensemble_differ(study: Study, finished: Path) -> None:
    one, other = (fit_result(study, finished, 0, it)["pool"] for it in study.proxies["worst-case"].fits)
    assert not np.allclose(one, other)
    (alone,) = study.proxies["noisy"].fits
    assert fit_result(study, finished, 0, alone)["pool"] not in (one, other)


def test_the_axis_and_the_units(study: Study, finished: Path, findings: Findings) -> None:
    pool = np.array([reply.gold for reply in pool_of(study, finished)])
    line = findings.line("worst-case", "rloo")
    assert line is not None
    raw = json.loads((finished / "results" / "worst-case--rloo--seed-1.json").read_text())["curve"]
    points = line.points[1]
    assert points.distance**2 == pytest.approx([max(it["kl"], 0.0) for it in raw], abs=1e-12)
    assert points.gold == pytest.approx([(it["gold"] - pool.mean()) / pool.std() for it in raw], abs=1e-12)
    # The pool's scores, put together from the members, are what the reward that was climbed says.

    task = held_out(load_task(study.task))
    folders = [finished / "proxies" / f"{it.name}--seed-1" for it in study.proxies["worst-case"].fits]
    said = Ensemble(folders, "worst")([reply.episode(task) for reply in pool_of(study, finished)])
    assert points.proxy == pytest.approx([(it["proxy"] - said.mean()) / said.std() for it in raw], abs=1e-6)


def test_best_of_n_comes_from_the_pool(study: Study, finished: Path, findings: Findings) -> None:
    assert [it.n for it in findings.best_of] == [1, 2, 3, 4]
    first, last = findings.best_of[0], findings.best_of[-1]
    assert (first.bound, first.gold.value) == pytest.approx((0.0, 0.0), abs=1e-12)
    assert last.proxy.value > 0.0
    (fitting,) = study.proxies["base"].fits
    pool = pool_of(study, finished)
    assert [reply.prompt for reply in pool] == [index for index in range(6) for _ in range(4)]
    gold = np.array([reply.gold for reply in pool])
    best = []
    for seed in range(2):
        scores = np.array(fit_result(study, finished, seed, fitting)["pool"]).reshape(6, 4)
        for row, scored in zip(gold.reshape(6, 4), scores, strict=True):
            best.append(row[np.isclose(scored, scored.max(), rtol=0, atol=1e-12)].mean())
    assert last.gold.value == pytest.approx((np.mean(best) - gold.mean()) / gold.std(), abs=1e-10)


def test_what_is_written(finished: Path, findings: Findings, tmp_path: Path) -> None:
    file = save_findings(findings, tmp_path)
    told, numbers = file.read_text(encoding="utf-8"), json.loads(file.with_suffix(".json").read_text())
    assert [it["conclusion"] for it in numbers["claims"]] == ["no claim from 2 seeds"] * 2
    assert told.count("no claim from 2 seeds") == 2
    assert {(it["proxy"], it["agent"]) for it in numbers["lines"]} >= {("base", "dpo"), ("noisy", "best-of-n")}
    assert len(numbers["lines"][0]["seeds"][0]["gold"]) == 4
    assert "| base | 14 | 1 | 0 % | 1 |" in told


def test_a_failed_run_is_told_of(study: Study, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    cell = runs(study, (tmp_path / "copy").resolve())[0]
    cell.failed(tmp_path / "copy", "it went to pieces")
    failed = conclude_study(study, tmp_path / "copy", resamples=20)
    assert "- rloo on base, seed 0: it went to pieces" in as_markdown(failed)


def test_a_study_that_is_not_there(study: Study, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no finished study"):
        conclude_study(study, tmp_path)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError) as caught:
        Study(seeds=0, pool=1, pair_prompts=10, comparer="none")
    told = str(caught.value)
    for words in ("seeds must be", "pool must be", "pair_prompts must be at least", "comparer must be"):
        assert words in told


def test_the_figure(findings: Findings, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from rlhf_env.lab.studies.overoptimization.figure import save_picture

    png, svg = save_picture(findings, tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    told = svg.read_text(encoding="utf-8")
    for words in ("Agents on one proxy", "rloo", "dpo", "best-of-n", "worst-case"):
        assert words in told
