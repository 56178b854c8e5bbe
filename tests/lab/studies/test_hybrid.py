"""The study of hybrid training: its world, equal compute in every way, paired comparison, no seed done twice."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rlhf_env.errors import DataError
from rlhf_env.lab.studies import hybrid
from rlhf_env.lab.studies.hybrid import (
    COMPARED,
    WAYS,
    HybridStudy,
    WayMeasured,
    hybrid_table,
    measure_seed,
    run_hybrid_study,
)

SMALL = HybridStudy(seeds=6, demonstrations=30, pairs=30, base_updates=1, updates=2, step_tokens=120, ppo_tokens=100)


def test_every_way_reads_the_same_texts_and_is_measured(tmp_path: Path) -> None:
    found = measure_seed(SMALL, 3, tmp_path)
    assert list(found) == list(WAYS)
    assert len({it["tokens"] for it in found.values()}) == 1
    assert found["separate"]["perplexity"] == found["head"]["perplexity"]  # pairs move neither's language model
    assert found["shared"]["perplexity"] != found["separate"]["perplexity"]
    for way in WAYS:
        assert found[way]["perplexity"] > 1.0 and 0.0 <= found[way]["accuracy"] <= 1.0
        assert np.isfinite(list(found[way].values())).all()


def test_what_is_measured_on_was_not_seen() -> None:
    training, held_out = set(hybrid._words("training")), set(hybrid._words("held_out"))
    assert not training & held_out
    assert len(training | held_out) == 64


def test_the_annotator_prefers_what_is_right() -> None:
    pairs = hybrid._pairs(hybrid._words("training"), 400, 10.0, np.random.default_rng(0))

    def right(row: Any, side: str) -> float:
        word, said = row["prompt"][:-1], row[side]
        return sum(a == b for a, b in zip(word, said, strict=False)) / max(len(word), len(said))

    agree = np.mean([right(row, "chosen") > right(row, "rejected") for row in pairs])
    assert 0.9 < agree < 1.0
    assert all(right(row, "chosen") != right(row, "rejected") for row in pairs)


def test_ways_are_compared_seed_by_seed_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds differ by 1, ways by 0.1: only pairs show it. A lower perplexity is better."""
    asked: list[int] = []

    def made_up(study: HybridStudy, seed: int, folder: Path, tell: Any) -> WayMeasured:
        asked.append(seed)
        better = {"shared": 0.1, "head": -0.1}
        return {
            way: {
                "perplexity": 5.0 + seed - better.get(way, 0.0),
                "accuracy": seed + better.get(way, 0.0),
                "gold": 0.5,
                "tokens": 10.0,
            }
            for way in WAYS
        }

    monkeypatch.setattr(hybrid, "measure_seed", made_up)
    study = replace(SMALL, seeds=10)
    found = run_hybrid_study(study, tmp_path, lambda share, note: None)
    for measure in ("perplexity", "accuracy"):
        assert found.compared[measure]["shared"].verdict == "better"
        assert found.compared[measure]["head"].verdict == "worse"
        assert found.compared[measure]["shared"].difference.value == pytest.approx(0.1)
    assert found.compared["gold"]["adapters"].verdict == "inconclusive"
    run_hybrid_study(study, tmp_path, lambda share, note: None)
    assert asked == list(range(10)), "seeds that are there are not done again"
    with pytest.raises(DataError, match="is of other settings"):
        run_hybrid_study(replace(study, lr=1.0), tmp_path, lambda share, note: None)
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(hybrid_table(found))
    said = console.export_text()
    for words in (*WAYS, *COMPARED.values(), "better", "worse", "0.100"):
        assert words in said
