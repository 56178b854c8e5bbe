"""Does a ranking transfer: the correlation and its two intervals, the grids of the sizes, and what is told of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.reward_models.ranks import spearman
from rlhf_env.lab.benchmark.grid import Grid
from rlhf_env.lab.benchmark.reading import read_results
from rlhf_env.lab.studies.transfer.alternation import alternation
from rlhf_env.lab.studies.transfer.page import transfer_counts, transfer_page
from rlhf_env.lab.studies.transfer.ranking import average_ranks, rank_agreement
from rlhf_env.lab.studies.transfer.sizes import CONTROL, RANKED_SETTINGS, SIZES, TASKS
from rlhf_env.lab.studies.transfer.study import (
    SHIPPED_RUNS,
    conclude_transfer,
    measured_sizes,
    run_size,
    shipped_findings,
    sizes_to_run,
)
from rlhf_env.types import Float

HOUSE = Path(__file__).resolve().parents[3]
LADDER = np.arange(8.0)  # expected scores of eight settings, a step apart


def stream(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---------------------------------------------------------------- the correlation


def test_equal_scores_share_their_rank() -> None:
    np.testing.assert_array_equal(average_ranks(np.array([0.5, -1.0, 0.5, 7.0])), [2.5, 1.0, 2.5, 4.0])


def test_spearman_is_scipys_ties_included() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = stream()
    for _ in range(100):
        a, b = rng.integers(5, size=(2, 8)).astype(np.float64)
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    a, b = rng.standard_normal((2, 30))
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


def test_rankings_without_doubt_have_intervals_without_width() -> None:
    scores = LADDER + 1e-3 * stream().standard_normal((5, 8))
    same = rank_agreement(scores, 100.0 * scores[:3], stream=stream())
    assert same.redrawn is not None and same.compatible is not None
    assert (same.rho, *same.redrawn, *same.compatible) == pytest.approx([1.0] * 5, abs=1e-12)
    assert same.verdict == "transfers"
    turned = rank_agreement(scores, -scores, stream=stream())
    assert turned.compatible is not None
    assert (turned.rho, *turned.compatible) == pytest.approx([-1.0] * 3, abs=1e-12)
    assert turned.verdict == "turns around"


def test_settings_are_matched_by_column_and_not_by_rank() -> None:
    scores = LADDER + 1e-3 * stream().standard_normal((4, 8))
    turned = scores[:, [1, 0, 2, 3, 4, 5, 6, 7]]
    found = rank_agreement(scores, turned, stream=stream())
    assert found.rho == pytest.approx(1.0 - 6.0 * 2.0 / (8.0 * 63.0), abs=1e-12)  # two places off by one: sum d^2 = 2


def test_one_seed_has_a_number_and_no_interval_and_equal_scores_no_order() -> None:
    alone = rank_agreement(LADDER[None], LADDER[None], stream=stream())
    assert alone.rho == pytest.approx(1.0, abs=1e-12)
    assert (alone.redrawn, alone.compatible, alone.verdict) == (None, None, "inconclusive")
    flat = rank_agreement(np.zeros((4, 8)), LADDER + np.zeros((4, 8)), stream=stream())
    assert (flat.rho, flat.redrawn, flat.verdict) == (None, None, "inconclusive")


def test_scores_that_cannot_be_ranked_are_refused() -> None:
    with pytest.raises(DataError, match="not finite"):
        rank_agreement(np.full((2, 8), math.nan), np.zeros((2, 8)), stream=stream())
    with pytest.raises(DataError, match="same settings"):
        rank_agreement(np.zeros((2, 8)), np.zeros((2, 7)), stream=stream())


# ---------------------------------------------------------------- what the intervals cover


def _noise(shape: str, seeds: int, rng: np.random.Generator) -> Float:
    """float64[S, 8], mean 0 and variance 1."""
    if shape == "normal":
        return rng.standard_normal((seeds, 8))
    if shape == "skewed":
        return rng.exponential(size=(seeds, 8)) - 1.0
    return np.asarray(rng.standard_t(3, size=(seeds, 8)) / math.sqrt(3.0))


def _covered(shape: str, seeds: tuple[int, int], truth: tuple[Float, Float], scale: float, times: int) -> list[float]:
    """How often each of the two intervals holds the correlation of the true rankings."""
    rng, expected = stream(5), spearman(*truth)
    assert expected is not None
    held = np.zeros(2)
    for _ in range(times):
        scores = (mean + scale * _noise(shape, count, rng) for mean, count in zip(truth, seeds, strict=True))
        found = rank_agreement(*scores, stream=rng)
        assert found.redrawn is not None and found.compatible is not None
        held += [low - 1e-9 <= expected <= high + 1e-9 for low, high in (found.redrawn, found.compatible)]
    return (held / times).tolist()


MIXED = np.array([2.0, 0.0, 1.0, 5.0, 3.0, 4.0, 7.0, 6.0])
TIED = np.array([0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0])


@pytest.mark.parametrize("shape", ["normal", "skewed", "heavy"])
@pytest.mark.parametrize(("seeds", "scale"), [((5, 5), 1.0), ((10, 3), 3.0)], ids=["near", "far"])
def test_the_interval_of_expected_scores_covers(shape: str, seeds: tuple[int, int], scale: float) -> None:
    for truth in ((LADDER, LADDER), (LADDER, MIXED), (LADDER, TIED)):
        assert _covered(shape, seeds, truth, scale, 20)[1] >= 0.95


def test_redrawn_seeds_miss_a_true_one_where_noise_is_larger_than_the_gaps() -> None:
    redrawn, compatible = _covered("normal", (5, 5), (LADDER, LADDER), 3.0, 40)
    assert redrawn < 0.5 < 0.95 <= compatible
    assert _covered("normal", (5, 5), (LADDER, LADDER), 0.3, 20) == [1.0, 1.0]


# ---------------------------------------------------------------- the grids


def test_what_alternates_is_paid() -> None:
    texts = ["baba", "BaNa", "bbbb", "b", "", "ab", "a b c", "eve!"]
    assert alternation(texts) == pytest.approx([1.0, 1.0, 0.0, 0.0, 0.0, 1 / 3, 0.0, 2 / 3], abs=1e-15)


def test_sizes_differ_by_the_model_its_steps_and_its_budget_alone() -> None:
    assert len(RANKED_SETTINGS) >= 8 and len(TASKS) == 2 and len(SIZES) == 3
    of_sizes = []
    for size in SIZES.values():
        cells = size.grid().cells()
        assert len(cells) == (len(RANKED_SETTINGS) + 1) * len(TASKS) * size.seeds
        budgets = {cell.experiment.budget.limits()["generated_tokens"] for cell in cells}
        assert budgets == {size.tokens}
        shown = {
            (cell.task, cell.agent): (
                {name: value for name, value in cell.experiment.agent.items() if name != "lr"},
                cell.experiment.task,
                cell.experiment.rewards,
                cell.experiment.environment.max_new_tokens,
            )
            for cell in cells
        }
        of_sizes.append(shown)
    assert of_sizes[0] == of_sizes[1] == of_sizes[2]


def test_a_size_runs_and_the_reward_is_found(tmp_path: Path) -> None:
    size = replace(SIZES["tiny"], tokens=200, texts=8, asked=8, seeds=1)
    grid = replace(size.grid(), agents={"reinforce": {}, CONTROL: {}})
    run_size(grid, tmp_path / "tiny", jobs=0)
    results = read_results(tmp_path / "tiny")
    assert [cell.error for cell in results.cells] == [None] * 4
    assert {results.measure(task) for task in TASKS} == {"proxy"}
    assert measured_sizes(tmp_path) == []  # six settings are missing: no seed is complete


def _result(folder: Path, agent: str, task: str, seed: int, score: float | None) -> None:
    file = folder / "results" / f"{task}--{agent}--seed-{seed}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    status = {"status": "finished", "evaluation": {"proxy": score}} if score is not None else {"status": "failed"}
    plain = {"format": 1, "benchmark": "transfer", "task": task, "agent": agent, "seed": seed, **status}
    file.write_text(json.dumps(plain), encoding="utf-8")


def _write(folder: Path, size: str, seeds: int, score: Mapping[str, float]) -> None:
    for agent, seed in ((agent, seed) for agent in RANKED_SETTINGS for seed in range(seeds)):
        _result(folder / size, agent, "letters", seed, score[agent] + 1e-4 * seed)


def test_complete_seeds_count_and_a_failed_run_has_the_worst_score(tmp_path: Path) -> None:
    order = {agent: float(i) for i, agent in enumerate(RANKED_SETTINGS)}
    _write(tmp_path, "tiny", 3, order)
    _write(tmp_path, "base", 3, order)
    (tmp_path / "base" / "results" / "letters--kto--seed-2.json").unlink()
    last = list(RANKED_SETTINGS)[-1]
    for seed in range(3):
        _result(tmp_path / "tiny", last, "letters", seed, None)
    found = conclude_transfer(measured_sizes(tmp_path))
    tiny, base = found.sizes
    assert (tiny.seeds("letters"), base.seeds("letters"), base.seeds("alternation")) == (3, 2, 0)
    assert set(tiny.scores["letters"][last]) == {0.0}
    assert [(it.task, it.small, it.large) for it in found.transfers] == [("letters", "tiny", "base")]
    ranks = [1.0 + i for i in range(8)]
    moved = [2.0, *(rank + 1.0 for rank in ranks[1:-1]), 1.0]
    assert found.transfers[0].agreement.rho == pytest.approx(spearman(np.array(moved), np.array(ranks)), abs=1e-12)
    assert "base: 0 of 6 seeds complete" in found.missing and "smollm2: 0 of 3 seeds complete" in found.missing
    page = transfer_page(found)
    assert "| letters | tiny and base | 3 and 2 |" in page and "goes on from there" in page


def test_a_size_that_is_not_there_and_a_model_that_is_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'base'"):
        sizes_to_run(["bass"], tmp_path, tmp_path)
    with pytest.raises(ConfigError, match=r"holds no model: `python examples/real_model/fetch\.py`"):
        sizes_to_run([], tmp_path, tmp_path / "smollm2")
    grids = sizes_to_run(["tiny", "base"], tmp_path, tmp_path / "smollm2")
    assert [isinstance(grid, Grid) for grid, _ in grids] == [True, True]


# ---------------------------------------------------------------- what is shipped


def test_the_page_is_made_of_the_shipped_scores_which_give_the_shipped_verdicts() -> None:
    found = shipped_findings()
    kept = json.loads(SHIPPED_RUNS.read_text(encoding="utf-8"))["transfers"]
    assert [it.agreement.verdict for it in found.transfers] == [it["verdict"] for it in kept]
    assert (HOUSE / "docs" / "transfer.md").read_text(encoding="utf-8") == transfer_page(found)


def test_the_readme_tells_the_shipped_verdicts() -> None:
    words = " ".join((HOUSE / "README.md").read_text(encoding="utf-8").split())
    assert transfer_counts(shipped_findings()) in words


def test_scores_that_are_damaged_are_named(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"format": 9}', encoding="utf-8")
    with pytest.raises(DataError, match=r"results\.json does not hold scores of this study: format 9"):
        shipped_findings(tmp_path / "results.json")
