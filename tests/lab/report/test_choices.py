"""What agents chose along training: shares of levels and of options, and that the page shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_env.lab.benchmark.reading import read_results
from rlhf_env.lab.report import choices, figures
from rlhf_env.lab.report.report import write_report

from .made_up import cell, texts_of, write

UPDATES = 60  # two in each of the parts that a picture has


def logged(folder: Path, rows_of: dict[tuple[str, int], list[dict[str, Any]]]) -> Path:
    """Results of these runs, with what they logged: a row for each update of 100 tokens."""
    write(folder, [cell(agent, seed) for agent, seed in rows_of])
    for (agent, seed), rows in rows_of.items():
        run = folder / "cells" / "chitchat" / agent / f"seed-{seed}"
        numbered = [{"update": i + 1, "spent/generated_tokens": 100 * (i + 1), **row} for i, row in enumerate(rows)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in numbered), encoding="utf-8")
    return folder


def test_levels_are_shares_over_seeds(tmp_path: Path) -> None:
    """Seed 0 rises from 1 to 3 at half time, seed 1 stays at 1: from then on, half of the rollouts have each."""
    rises = [{"curriculum/level": 1.0 if i < UPDATES // 2 else 3.0} for i in range(UPDATES)]
    stays = [{"curriculum/level": 1.0}] * UPDATES
    folder = logged(tmp_path / "demo", {("ppo", 0): rises, ("ppo", 1): stays, ("dpo", 0): [{}] * UPDATES})
    results = read_results(folder)
    shares = choices.levels_chosen(results, "chitchat", "ppo")
    assert list(shares) == [1, 3]
    np.testing.assert_allclose(shares[1][:14], 1.0)
    np.testing.assert_allclose(shares[1][16:], 0.5)
    np.testing.assert_allclose(shares[1] + shares[3], 1.0)
    assert choices.levels_chosen(results, "chitchat", "dpo") == {}


def test_options_are_shares_by_segment(tmp_path: Path) -> None:
    """The first segment goes over to option 2; no text had a second one in the first half."""
    rows: list[dict[str, Any]] = []
    for i in range(UPDATES):
        late = i >= UPDATES // 2
        row = {"options/segment_1/option_1": 0.1 if late else 0.9, "options/segment_1/option_2": 0.9 if late else 0.1}
        more = {"options/segment_2/option_1": 0.25, "options/segment_2/option_2": 0.75}
        rows.append(row | more if late else row)
    results = read_results(logged(tmp_path / "demo", {("ppo", 0): rows, ("dpo", 0): [{}] * UPDATES}))
    first, second = choices.options_chosen(results, results.of("chitchat", "ppo")[0])
    np.testing.assert_allclose(first[:, :14], [[0.9] * 14, [0.1] * 14])
    np.testing.assert_allclose(first[:, 16:], [[0.1] * 14, [0.9] * 14])
    assert np.isnan(second[:, :14]).all()
    np.testing.assert_allclose(second[:, 16:], [[0.25] * 14, [0.75] * 14])
    assert choices.options_chosen(results, results.of("chitchat", "dpo")[0]) == []


def test_the_page_shows_levels_and_options(tmp_path: Path) -> None:
    option = {f"options/segment_{place}/option_{z}": 0.5 for place in (1, 2) for z in (1, 2)}
    runs = {("ppo", seed): [{"curriculum/level": 2.0, **option}] * UPDATES for seed in range(3)}
    folder = logged(tmp_path / "demo", {**runs, ("dpo", 0): [{}] * UPDATES})
    drawn = {it.name: it for it in figures.pictures(read_results(folder)) if it.section in ("levels", "options")}
    # Of options, the first two seeds; nothing of an agent that has neither.
    assert set(drawn) == {"chitchat--levels-ppo", "chitchat--options-ppo-0", "chitchat--options-ppo-1"}
    assert "At the end: level 2 100%." in drawn["chitchat--levels-ppo"].description
    assert "segment 2 50%, 50%" in drawn["chitchat--options-ppo-0"].description
    page = write_report(folder).read_text(encoding="utf-8")
    shown = texts_of(page)
    for words in ("Levels along training", "Options by place and time", "segment 2", "option 2", "level 2"):
        assert words in shown
    assert (folder / "figures" / "chitchat--options-ppo-0.svg").is_file()
