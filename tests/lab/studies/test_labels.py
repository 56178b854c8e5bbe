"""Labels needed: the head against its own optimality condition, curves by hand, strategies that share what they should,
and a study that is killed and goes on."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rlhf_env.cli import main as cli
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.lab.studies import labels
from rlhf_env.lab.studies.labels import (
    QUICK,
    LabelStudy,
    conclude_labels,
    fit_head,
    label_table,
    labels_needed,
    learning_curve,
    make_pool,
    rising,
    run_label_study,
    trunk_features,
)
from rlhf_env.policies.tiny import tiny_language_model
from rlhf_env.testing import make_episode
from rlhf_env.types import Float

SMALL = replace(QUICK, prompts=200, held_out=80, pool=200, batch=10, rounds=3, seeds=2, members=3, targets=(0.6, 0.7))


class TestHead:
    def test_it_is_the_ridge_optimum(self) -> None:
        """At the minimum the slope of weighted log-loss plus penalty is 0, with weights as much as without."""
        rng = np.random.default_rng(0)
        features, wins = rng.standard_normal((50, 6)), (rng.random(50) < 0.7).astype(float)
        for weight in (np.ones(50), rng.poisson(1.0, 50).astype(float)):
            head = fit_head(features, wins, ridge=0.5, weight=weight)
            p = 1 / (1 + np.exp(-features @ head))
            np.testing.assert_allclose(features.T @ (weight * (wins - p)), 0.5 * head, atol=1e-7)
        twice = fit_head(np.repeat(features, 2, axis=0), np.repeat(wins, 2), ridge=1.0)
        np.testing.assert_allclose(twice, fit_head(features, wins, ridge=0.5), atol=1e-8)

    def test_it_arrives_where_full_steps_do_not(self) -> None:
        """Verdicts nearly separable, by features of sizes far apart: Newton's full steps overshoot for ever."""
        features = np.array([[19.0, 91.0], [0.0, 1.0], [3.0, -180.0], [-3.0, -2.0]])
        wins = np.array([1.0, 0.0, 1.0, 0.0])
        head = fit_head(features, wins, ridge=1e-4)
        p = (1 + np.tanh(features @ head / 2)) / 2
        np.testing.assert_allclose(features.T @ (wins - p), 1e-4 * head, rtol=0, atol=1e-6)


class TestCurves:
    def test_pooling_by_hand(self) -> None:
        assert rising(np.array([1.0, 3.0, 2.0, 2.5, 5.0])).tolist() == [1.0, 2.5, 2.5, 2.5, 5.0]
        assert rising(np.array([3.0, 2.0, 1.0])).tolist() == [2.0, 2.0, 2.0]
        assert rising(np.array([1.0, 2.0])).tolist() == [1.0, 2.0]

    def test_labels_needed_by_hand(self) -> None:
        curve = np.array([0.6, 0.7, 0.68, 0.8])  # risen: 0.6, 0.69, 0.69, 0.8
        assert labels_needed((10, 20, 30, 40), curve, 0.645) == pytest.approx(15.0)
        assert labels_needed((10, 20, 30, 40), curve, 0.69) == pytest.approx(20.0)
        assert labels_needed((10, 20, 30, 40), curve, 0.745) == pytest.approx(35.0)
        assert labels_needed((10, 20, 30, 40), curve, 0.5) == 10.0
        assert labels_needed((10, 20, 30, 40), curve, 0.81) is None

    def test_conclusions_are_paired_by_seed(self) -> None:
        """Seeds differ by 40 labels; within each, one strategy needs 10 fewer than random and the other as many."""
        study = replace(QUICK, batch=40, rounds=4, pool=200, targets=(0.7,), seeds=8)
        at = np.array(study.labels)

        def crossing(needed: float) -> Float:
            return np.asarray(0.7 + 0.001 * (at - needed))

        starts = np.linspace(60.0, 100.0, 8)
        found = conclude_labels(
            study,
            {
                "random": np.array([crossing(it) for it in starts]),
                "uncertainty": np.array([crossing(it - 10) for it in starts]),
                "disagreement": np.array([crossing(it + (-1) ** i) for i, it in enumerate(starts)]),
            },
            0.8,
        )
        assert found.needs["random"][0].labels.value == pytest.approx(80.0)
        assert found.needs["random"][0].saved is None
        saved = found.needs["uncertainty"][0].saved
        assert saved is not None
        assert saved.difference.value == pytest.approx(10.0)
        assert (saved.verdict, found.overall["disagreement"].verdict) == ("better", "inconclusive")
        assert found.sentence == "uncertainty needed fewer labels than random"
        assert saved.adjusted == pytest.approx(2 * 2 / 2**8)  # both signs of all eight, for two comparisons

    def test_a_seed_that_never_gets_there_counts_with_all_labels(self) -> None:
        study = replace(QUICK, batch=10, rounds=3, pool=200, targets=(0.9,), seeds=2)
        flat, steep = np.array([0.5, 0.6, 0.7]), np.array([0.5, 0.9, 0.95])
        curves = {"random": np.array([flat, steep]), "uncertainty": np.array([steep, steep])}
        found = conclude_labels(study, curves, 0.8)
        need = found.needs["random"][0]
        assert (need.missed, need.labels.value) == (1, 25.0)
        assert found.overall["uncertainty"].verdict == "inconclusive"
        assert found.sentence.startswith("no strategy was shown")


class TestStudy:
    def test_strategies_share_the_first_batch_and_differ_after_it(self) -> None:
        pool = make_pool(SMALL)
        curves = {
            (name, seed): learning_curve(pool, name, SMALL, seed) for name in labels.STRATEGIES for seed in (0, 1)
        }
        for seed in (0, 1):
            assert len({curves[name, seed][0] for name in labels.STRATEGIES}) == 1
            assert len({curves[name, seed].tobytes() for name in labels.STRATEGIES}) == 3
        assert curves["random", 0][0] != curves["random", 1][0]
        again = learning_curve(pool, "disagreement", SMALL, 1)
        assert again.tolist() == curves["disagreement", 1].tolist()
        with pytest.raises(ConfigError, match="none of random"):
            learning_curve(pool, "guess", SMALL, 0)

    def test_uncertainty_asks_for_what_cannot_be_told_apart(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Those bought second have the smallest margins under the first head of all that are open."""
        pool, asked = make_pool(SMALL), []
        fit = fit_head

        def watched(features: Float, first_wins: Float, **rest: Any) -> Float:
            head = fit(features, first_wins, **rest)
            asked.append((features, head))
            return head

        monkeypatch.setattr(labels, "fit_head", watched)
        learning_curve(pool, "uncertainty", SMALL, 0)
        (first, head), (second, _), _ = asked
        assert (second[:10] == first).all()
        rows = np.random.default_rng([SMALL.seed, 0, 2]).permutation(len(pool.gold))[: SMALL.pool]
        margins = np.sort(np.abs(pool.features[rows[10:]] @ head))
        np.testing.assert_allclose(np.sort(np.abs(second[10:] @ head)), margins[:10], atol=1e-12)

    @pytest.mark.parametrize("strategy", labels.STRATEGIES)
    def test_no_pair_is_asked_about_twice(self, strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """When all of the pool has been bought, each pair of it has been."""
        study, bought = replace(SMALL, batch=50, rounds=4), []
        fit = fit_head

        def watched(features: Float, first_wins: Float, **rest: Any) -> Float:
            bought.append(features)
            return fit(features, first_wins, **rest)

        monkeypatch.setattr(labels, "fit_head", watched)
        learning_curve(make_pool(study), strategy, study, 0)
        assert len(np.unique(bought[-1], axis=0)) == len(bought[-1]) == study.pool

    def test_pool_and_held_out_pairs_are_of_other_prompts(self) -> None:
        """Three answers to a prompt are three pairs; features are scaled on what is learned from alone."""
        pool = make_pool(SMALL)
        assert (pool.features.shape, pool.unseen_features.shape) == ((360, 30), (240, 30))
        raw, gold = labels._made_up(SMALL)
        spread = raw[:, :120].reshape(-1, 30).std(axis=0)
        np.testing.assert_allclose(pool.features[0], (raw[0, 0] - raw[1, 0]) / spread, atol=1e-12)
        np.testing.assert_allclose(pool.unseen_features[0], (raw[0, 120] - raw[1, 120]) / spread, atol=1e-12)
        np.testing.assert_allclose(pool.unseen_gold[-1], gold[1, -1] - gold[2, -1], atol=1e-12)
        with pytest.raises(DataError, match="raise prompts or lower pool"):
            make_pool(replace(SMALL, pool=400))

    def test_killed_it_goes_on_and_ends_the_same(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = run_label_study(SMALL, tmp_path / "whole")
        curve, calls = learning_curve, iter([None, None])

        def killed(*rest: Any) -> Float:
            next(calls)
            return curve(*rest)

        with monkeypatch.context() as patch:
            patch.setattr(labels, "learning_curve", killed)
            with pytest.raises(StopIteration):
                run_label_study(SMALL, tmp_path / "killed")
        assert len(list((tmp_path / "killed" / "cells").iterdir())) == 2
        did: list[Any] = []
        with monkeypatch.context() as patch:
            patch.setattr(labels, "make_pool", None)  # it is there
            patch.setattr(labels, "learning_curve", lambda *rest: did.append(rest[1:]) or curve(*rest))
            assert run_label_study(SMALL, tmp_path / "killed").sentence == whole.sentence
        assert len(did) == 4
        results = [(tmp_path / name / "labels.json").read_text() for name in ("whole", "killed")]
        assert results[0] == results[1]
        found = json.loads(results[0])
        assert found["labels"] == [10, 20, 30]
        assert set(found["needs"]) == set(labels.STRATEGIES)
        with pytest.raises(ConfigError, match="other settings"):
            run_label_study(replace(SMALL, ridge=2.0), tmp_path / "killed")
        (tmp_path / "killed" / "pool.safetensors").write_bytes(b"half")
        with pytest.raises(DataError, match="remove it"):
            run_label_study(SMALL, tmp_path / "killed")

    def test_settings_that_cannot_be_are_refused_together(self) -> None:
        with pytest.raises(ConfigError) as caught:
            LabelStudy(rounds=0, members=1, temperature=0.0, temperatures=(1.0,), targets=(0.4,))
        named = {problem.split(":")[0].split(" ")[0] for problem in caught.value.problems}
        assert named == {"rounds", "members", "temperature", "temperatures", "targets[0]"}
        with pytest.raises(ConfigError, match="world must be one of"):
            LabelStudy(world="mars")  # type: ignore[arg-type]
        with pytest.raises(ConfigError) as caught:
            LabelStudy(prompts=10, held_out=10, pool=10)
        assert len(caught.value.problems) == 2


def test_features_of_the_trunk_by_hand() -> None:
    """Each text alone, through the model's own code: padding and batch mates change nothing."""
    import torch

    policy = tiny_language_model("gpt2", dtype="float64", init_std=0.2)
    episodes = [make_episode("ab", text) for text in ("x", "some words", "yes.")]
    found = trunk_features(policy, episodes)
    for row, episode in zip(found, episodes, strict=True):
        ids = torch.from_numpy(episode.ids)[None]
        with torch.no_grad():
            read = policy.model(input_ids=ids, output_hidden_states=True)
        states, start = read.hidden_states[-1][0].numpy(), len(episode.prompt_ids)
        said = read.logits[0].log_softmax(-1)[range(start - 1, ids.shape[1] - 1), ids[0, start:]].numpy()
        numbers = np.array([said.mean(), said.min(), len(said)])
        expected = np.concatenate([states[-1], states[start:].mean(axis=0), numbers, numbers**2])
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-10)


class TestCommand:
    @pytest.fixture
    def ran(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> Iterator[tuple[str, Path]]:
        monkeypatch.setattr(labels, "QUICK", SMALL)
        monkeypatch.setattr(sys, "argv", ["rlhf-env", "lab", "labels", "--quick", "--out", str(tmp_path / "run")])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert (ended.value.code or 0, said.err) == (0, "")
        yield said.out, tmp_path / "run"

    def test_numbers_and_picture(self, ran: tuple[str, Path]) -> None:
        pytest.importorskip("matplotlib")
        said, folder = ran
        assert "In short: " in said
        for words in (*labels.STRATEGIES, "0.60", "0.70", "after 30"):
            assert words in said
        names = {it.name for it in folder.iterdir()}
        assert names == {"study.json", "pool.safetensors", "cells", "labels.json", "labels.svg", "labels.png"}
        drawn = (folder / "labels.svg").read_text()
        for words in (*labels.STRATEGIES, "Labels saved against random", "at 0.70", "over all"):
            assert words in drawn
        assert (folder / "labels.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_marks_bounds() -> None:
    study = replace(SMALL, targets=(0.65,))
    flat, steep = np.full((2, 3), 0.6), np.array([[0.6, 0.7, 0.8]] * 2)
    console = Console(width=130, record=True, file=io.StringIO())
    console.print(label_table(conclude_labels(study, {"random": flat, "uncertainty": steep}, 0.8)))
    said = console.export_text()
    assert "> 30" in said
    assert "saved 15" in said
