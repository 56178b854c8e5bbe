"""README's table of speed is the prints in benchmarks/results, and `make bench-speed` runs what is there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="a source distribution has no benchmarks")
sys.path.insert(0, str(BENCHMARKS))

PRINT = """on a processor, 2 cores
processor time, theirs / ours                                     median     min     max  at least  roofline
generate S: 32 prompts of 32, 64 new tokens each                    1.50    1.37    2.20      2.20      0.31
    ours spends 40% on attention, 31% on matrix products
generate S: 32 prompts of 32, 64 new tokens each                    1.85    1.60    2.17      2.20      0.33
TRL DPO, S, 8 pairs of 32 + 64, cached                              2.92    2.86    3.65
TRL DPO, S, 8 pairs of 32 + 64, live                                2.33    2.15    2.45                0.25
"""


def test_readme_has_the_table_of_the_prints() -> None:
    from readme_table import of_results

    assert of_results() in (ROOT / "README.md").read_text(encoding="utf-8"), "python benchmarks/readme_table.py"


def test_the_sizes_are_those_that_are_told() -> None:
    """Without weights: a model on the device "meta" has shapes alone."""
    import side_by_side
    import written_side
    from transformers import LlamaForCausalLM

    def million(size: str) -> str:
        with torch.device("meta"):
            made = [LlamaForCausalLM(it.config_of(size)) for it in (written_side, side_by_side)]
        return " or ".join(map(str, sorted({round(model.num_parameters() / 1e6, 1) for model in made})))

    words = f"S has {million('S')} million parameters, M {million('M')}, L {million('L')}."
    for page in ("README.md", "docs/speed.md"):
        assert words in " ".join((ROOT / page).read_text(encoding="utf-8").split())


def test_the_cells_of_the_benchmark_are_as_many_as_are_told(tmp_path: Path) -> None:
    from grid import FILE, every_cell

    cells = every_cell(FILE, tmp_path)
    assert f"the {len(cells)} cells of `rlhf-env bench" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_line_gives_its_median_its_mark_and_its_distance_and_the_last_of_a_name_counts() -> None:
    from readme_table import Found, last, read

    prints = read(PRINT)
    assert last(prints, "generate S: 32 prompts") == Found("1.85", "2.20", "0.33")
    assert last(prints, "TRL DPO, S, 8 pairs of 32 + 64, cached") == Found("2.92", "", "")
    assert last(prints, "TRL DPO, S, 8 pairs of 32 + 64, live") == Found("2.33", "", "0.25")
    assert last(prints, "generate S: 3") is None  # not a shorter number
    exact = {"writing, now": Found("1.02", "", ""), "writing, now, without it": Found("0.78", "", "")}
    assert last(exact, "writing, now") == exact["writing, now"]  # and not what has a longer name
    assert last(prints, "generate M: 32 prompts") is None


def test_what_was_not_measured_on_a_processor_is_a_dash_there() -> None:
    from readme_table import read, table

    lines = table({"old": read(PRINT), "new": {}}).splitlines()
    assert lines[0] == "| beside | work | mark | old | roofline | new |"
    assert lines[2].endswith("| 2.2 / - / - | 1.85 / - / - | 0.33 / - / - | - |")


def test_every_script_that_bench_speed_runs_is_there_and_says_what_it_does() -> None:
    listed = re.search(
        r"^BENCHMARKS := ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert listed is not None
    names = listed[1].replace("\\", " ").split()
    assert len(names) == len(set(names)) >= 20
    for name in names:
        assert (BENCHMARKS / f"{name}.py").read_text(encoding="utf-8").startswith('"""'), name
