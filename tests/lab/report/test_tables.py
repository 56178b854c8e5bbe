"""The tables of a report, and what a broken folder of results is told."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.errors import DataError
from rlhf_env.lab.benchmark.comparison import conclude
from rlhf_env.lab.benchmark.reading import read_results
from rlhf_env.lab.benchmark.summary import claim, summary_rows
from rlhf_env.lab.report.formats import latex_table, markdown_table, rich_table
from rlhf_env.lab.report.report import write_report

from .made_up import (
    AGENTS,
    cell,
    contents,
    grid,
    printed,
    texts_of,
    two_tasks,
    write,
)

# --- Numbers --------------------------------------------------------------------------------------------------------


def test_mean_and_range_are_over_the_finished_seeds(tmp_path: Path) -> None:
    cells = [
        cell("ppo", 0, evaluation={"gold": 0.1, "kl": 1.0}),
        cell("ppo", 1, evaluation={"gold": 0.2, "kl": 3.0}),
        cell("ppo", 2, evaluation={"gold": 0.6, "kl": None}),
    ]
    (row,) = summary_rows(read_results(write(tmp_path / "demo", cells)))
    assert (row.spreads["gold"].mean, row.spreads["gold"].low, row.spreads["gold"].high) == (
        pytest.approx(0.3, abs=1e-15),
        0.1,
        0.6,
    )
    assert (row.spreads["kl"].mean, row.spreads["kl"].values) == (2.0, (1.0, 3.0))
    assert "proxy" not in row.spreads
    assert row.spreads["generated_tokens"].mean == 102_000


def test_rows_are_by_task_and_agent_with_the_controls_last(tmp_path: Path) -> None:
    cells = [cell(agent, task=task) for task in ("sums", "chitchat") for agent in reversed(AGENTS)]
    rows = summary_rows(read_results(write(tmp_path / "demo", cells)))
    agents = ["best_of_n", "dpo", "grpo", "ppo", "reference", "random"]
    assert [(row.task, row.agent) for row in rows] == [(t, a) for t in ("chitchat", "sums") for a in agents]
    assert [row.control for row in rows[:6]] == [False] * 4 + [True] * 2


@pytest.mark.usefixtures("undrawn")
def test_every_form_of_the_table_holds_the_same_numbers(tmp_path: Path) -> None:
    folder = write(tmp_path / "demo", grid())
    results = read_results(folder)
    page = texts_of(write_report(folder).read_text(encoding="utf-8"))
    terminal = " ".join(printed(rich_table(results)).split())
    assert (folder / "table.md").read_text(encoding="utf-8") == markdown_table(results)
    assert "| grpo | 0.71 (0.70 to 0.72) | 1.62 (1.61 to 1.63) | 4.00 (3.00 to 5.00) |" in markdown_table(results)
    assert "| random | 0.11 (0.10 to 0.12) | −2.00 (−2.01 to −1.99) |" in markdown_table(results)
    for number in ("0.71", "0.70 to 0.72", "≤ 2.08", "−2.01 to −1.99", "102k"):
        assert number in page
        assert number.replace(" to ", "…") in terminal


def test_the_terminal_table_fits_110_columns(tmp_path: Path) -> None:
    cells = [cell(agent, seed, task=task) for task in ("chitchat", "sums") for agent in AGENTS for seed in range(2)]
    shown = printed(rich_table(read_results(write(tmp_path / "demo", cells))))
    assert max(map(len, shown.splitlines())) <= 110
    assert "…0.72" not in shown  # the range of two seeds ends at 0.71,
    assert "0.70…0.71" in shown  # and is not cut


def test_what_a_narrower_terminal_would_cut_is_left_out_and_named(tmp_path: Path) -> None:
    results = read_results(write(tmp_path / "demo", [cell(agent, seed) for agent in AGENTS for seed in range(2)]))
    shown = printed(rich_table(results, 60))
    assert max(map(len, shown.splitlines())) <= 60
    words = " ".join(shown.split())
    assert "Left out, this terminal has 60 columns: " in words
    named = words.partition("60 columns: ")[2].partition(". report.html has them")[0].split(", ")
    assert named[-1] == "Seconds"
    heads = shown.partition("best_of_n")[0].split()
    assert not {name.split()[-1] for name in named} & set(heads)
    assert {"Gold", "KL"} <= set(heads)


def test_without_a_reference_the_terminal_has_the_verdict_against_the_best(tmp_path: Path) -> None:
    cells = [
        cell(agent, seed, evaluation={"gold": level + seed / 100})
        for agent, level in (("ppo", 0.2), ("grpo", 0.6))
        for seed in range(6)
    ]
    words = " ".join(printed(rich_table(read_results(write(tmp_path / "demo", cells)))).split())
    assert re.search(r"ppo .*\bworse\b", words)
    assert "inconclusive: against grpo" in words


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        (1, "1 seed: numbers, no claim"),
        (4, "4 seeds: numbers, no claim"),
        (5, "5 seeds: numbers, no claim (3 agents take 7 seeds)"),
        (7, "7 seeds: verdicts come from paired tests"),
    ],
)
def test_few_seeds_claim_nothing(tmp_path: Path, seeds: int, said: str) -> None:
    results = read_results(write(tmp_path / "demo", grid(["ppo", "dpo", "reference"], seeds)))
    assert claim(results).startswith(said)
    assert said in markdown_table(results)


@pytest.mark.usefixtures("undrawn")
def test_a_failed_run_is_counted_and_scored_at_the_floor(tmp_path: Path) -> None:
    cells = grid(["ppo", "reference"])
    cells[1].update(
        status="failed", error="loss is not finite", evaluation={"gold": -99.0}, curve=cells[1]["curve"][:4]
    )
    folder = write(tmp_path / "demo", cells)
    results = read_results(folder)
    row = summary_rows(results)[0]
    assert (row.failed, row.seeds) == (1, 3)
    assert row.spreads["gold"].values == pytest.approx(
        (0.68, 0.51, 0.70)
    )  # the worst finished run is one of the reference
    assert row.spreads["kl"].values == (3.0, 5.0)  # no other measure is made up
    page = texts_of(write_report(folder).read_text(encoding="utf-8"))
    assert "1 of 3 failed" in page
    assert "1 of 6 runs failed" in page
    assert "loss is not finite" in page
    assert "ppo (1 of 3 failed)" in markdown_table(results)


@pytest.mark.usefixtures("undrawn")
def test_an_agent_whose_every_run_failed_still_has_its_row(tmp_path: Path) -> None:
    failed = [cell("dpo", s, status="failed", evaluation=None, spending=None, samples=[], curve=[]) for s in range(2)]
    folder = write(tmp_path / "demo", grid(["ppo"], 2) + failed)
    assert "| dpo (2 of 2 failed) | 0.68 | – | – |" in markdown_table(read_results(folder))
    assert "(no reply)" in texts_of(write_report(folder).read_text(encoding="utf-8"))


@pytest.mark.usefixtures("undrawn")
def test_the_replies_have_a_table_of_their_own_where_they_were_measured(tmp_path: Path) -> None:
    plain = read_results(write(tmp_path / "plain", grid(["ppo", "reference"], 2)))
    assert "Off form" not in markdown_table(plain)
    cells = grid(["ppo", "reference"], 2)
    for result in cells:
        result["evaluation"] |= {"entropy": 1.25, "cut_at_limit": 0.5, "format_failures": 0.125 * result["seed"]}
        result["evaluation"]["kl_exact"] = 0.75
    folder = write(tmp_path / "measured", cells)
    table = markdown_table(read_results(folder))
    assert "| ppo | 1.25 | – | 50.0% | 6.2% (0.0% to 12.5%) |" in table
    assert "Off form" in texts_of(write_report(folder).read_text(encoding="utf-8"))
    assert "Off form" in latex_table(read_results(folder))
    (row, _) = summary_rows(read_results(folder))
    assert row.spreads["kl"].mean == 0.75, "the sum, where there is one, and not its estimate"


@pytest.mark.usefixtures("rough")
def test_comparisons_come_out_the_same_every_time_from_the_seed_in_the_folder(tmp_path: Path) -> None:
    first, second = two_tasks(tmp_path / "a"), two_tasks(tmp_path / "b")
    write_report(first)
    kept = contents(first)
    assert json.loads(kept["statistics.json"]) == {"seed": 0, "rival": ""}
    write_report(second)
    assert contents(second) == kept
    drawn = {"figures/chitchat--against-reference.svg", "figures/all-tasks--performance-profile.png"}
    assert {"table.md", "table.tex", "figures/all-tasks--interquartile-mean.svg", *drawn} <= kept.keys()
    (first / "statistics.json").write_text('{"seed": 1, "rival": "dpo"}', encoding="utf-8")
    write_report(first)
    assert contents(first)["table.md"] != kept["table.md"]
    assert json.loads((first / "statistics.json").read_text(encoding="utf-8")) == {"seed": 1, "rival": "dpo"}


@pytest.mark.usefixtures("rough", "undrawn")
def test_comparisons_stand_in_every_form_of_the_table(tmp_path: Path) -> None:
    """Offsets of a seed are common to all agents: a difference is the same for every seed, and has no interval."""
    folder = two_tasks(tmp_path / "demo")
    page = texts_of(write_report(folder).read_text(encoding="utf-8"))
    results = read_results(folder)
    markdown, latex = markdown_table(results), latex_table(results)
    assert re.search(
        r"\| chitchat \| dpo \| 0\.6[78] \([^)]*\) \| \+0\.14 \| inconclusive \(p 0\.062\) \|",
        markdown,
    )
    for said in ("+0.14", "p 0.062", "All tasks together", "1 of 6 at the floor", "Does the benchmark hold?"):
        assert said in page
    for said in ("+0.14", "p 0.062", "1 of 6 at the floor", r"95 \% intervals", r"\begin{tabular}{llrrrrr}"):
        assert said in latex
    assert "0.062" in markdown and "**Leaderboard**" in markdown
    assert printed(rich_table(results)).count("inconclusive") == 4 + 1  # and once in the caption
    assert (folder / "table.tex").read_text(encoding="utf-8") == latex
    assert (folder / "table.md").read_text(encoding="utf-8") == markdown


def test_few_seeds_leave_no_room_for_verdicts(tmp_path: Path) -> None:
    folder = write(tmp_path / "demo", grid(["ppo", "reference"], 4))
    page = texts_of(write_report(folder).read_text(encoding="utf-8").split("</style>")[1])
    assert "4 seeds: numbers, no claim" in page
    for absent in ("Leaderboard", "Verdict", "better", "inconclusive", "interval"):
        assert absent not in page, absent
    assert markdown_table(read_results(folder)).count("| Agent |") == 1


@pytest.mark.usefixtures("rough")
def test_the_page_says_where_no_verdict_was_possible(tmp_path: Path) -> None:
    said = (
        "With so few seeds and so many comparisons no difference can be shown, however large "
        "(chitchat: {} p at least {})"
    )
    five = markdown_table(read_results(write(tmp_path / "five", grid(["ppo", "reference"], 5))))
    assert said.format("5 seeds,", "0.062") in five
    eight = markdown_table(read_results(write(tmp_path / "eight", grid(["ppo", "reference"], 8))))
    assert "so few seeds" not in eight


def test_a_name_is_text_in_the_latex_table(tmp_path: Path) -> None:
    cells = [cell("ppo", 0) | {"agent": "a_b & 50% $x$ #1 {y} \\input{/etc/passwd} ~^", "run": ""}]
    (row,) = [
        line for line in latex_table(read_results(write(tmp_path / "demo", cells))).splitlines() if "a\\_b" in line
    ]
    name = r"a\_b \& 50\% \$x\$ \#1 \{y\} \textbackslash{}input\{/etc/passwd\} \textasciitilde{}\textasciicircum{}"
    assert row.startswith(name + " & 0.68 & ")
    assert row.endswith(r" \\")


@pytest.mark.parametrize(
    ("statistics", "said"),
    [
        ({"rival": "dqn"}, "rival 'dqn' is no agent of this benchmark: ppo"),
        ({"seed": -1}, "seed must not be negative"),
        ({"seed": "x"}, "seed must be a whole number"),
    ],
)
def test_a_broken_file_of_statistics_is_named(tmp_path: Path, statistics: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=rf"statistics\.json: {said}"):
        read_results(write(tmp_path / "demo", [cell()], statistics=statistics))


def test_a_name_stays_in_its_cell_of_the_markdown_table(tmp_path: Path) -> None:
    cells = [cell("ppo", 0) | {"agent": "a|b [x](http://y) `c`\n| d", "run": ""}]
    table = markdown_table(read_results(write(tmp_path / "demo", cells)))
    assert table.splitlines()[2].startswith(r"| a\|b \[x\](http://y) \`c\` \| d | 0.68 |")


# --- Files that are wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not a JSON file"),
        ("[]", "must hold a JSON object"),
        ("[" * 100_000, "not a JSON file"),
        (json.dumps(cell() | {"format": 2}), "format 2"),
        (json.dumps(cell() | {"seed": "0"}), "seed must be a whole number; got '0'"),
        (json.dumps(cell() | {"seed": True}), "seed must be a whole number"),
        (json.dumps({k: v for k, v in cell().items() if k != "agent"}), "agent must be a text; it is missing"),
        (json.dumps(cell() | {"status": "odd"}), "status must be 'finished' or 'failed'"),
        (json.dumps(cell(evaluation={"gold": "high"})), "evaluation.gold must be a number"),
        (json.dumps(cell(evaluation={"gold": math.nan})), "NaN is not JSON"),
        (json.dumps(cell()).replace("61.4", "1e999"), "1e999"),
        (json.dumps(cell(spending={"updates": 10**400})), "spending.updates must be a number"),
        (json.dumps(cell(curve=[{"update": 0}, 3])), "curve must be a list of objects"),
        (json.dumps(cell(samples=[{"prompt": "Hey"}])), r"samples\[0\].response must be a text"),
        (json.dumps(cell(run="../../elsewhere")), "outside of the benchmark's folder"),
        (json.dumps(cell(run="/etc")), "outside of the benchmark's folder"),
    ],
)
def test_a_broken_result_is_named(tmp_path: Path, content: str, said: str) -> None:
    folder = write(tmp_path / "demo", [cell("reference")])
    (folder / "results" / "broken.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=f"broken.json: .*{said}"):
        read_results(folder)


def test_two_results_for_one_cell_and_folders_without_any_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"001\.json: a second result for task 'chitchat', agent 'ppo', seed 0"):
        read_results(write(tmp_path / "twice", [cell(), cell() | {"run": ""}]))
    with pytest.raises(DataError, match="several benchmarks: demo, other"):
        read_results(write(tmp_path / "mixed", [cell(), cell("dpo") | {"benchmark": "other"}]))
    with pytest.raises(DataError, match=r"no results/\*\.json"):
        read_results(tmp_path)


def test_a_broken_file_of_metrics_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "demo", [cell()])
    (folder / "cells/chitchat/ppo/seed-0/metrics.jsonl").write_text("{oops\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"seed-0/metrics\.jsonl"):
        write_report(folder)


def test_a_missing_run_folder_costs_only_its_reward_parts(tmp_path: Path) -> None:
    page = write_report(write(tmp_path / "demo", [cell(run="cells/moved/away")])).read_text(encoding="utf-8")
    assert "Learning curves" in page


# --- Tasks within a mixture -----------------------------------------------------------------------------------------


def mixed(folder: Path) -> Path:
    """Six seeds: ppo is better on "sums" by 0.2 and worse on "words" by 0.1, each within 0.01; with curves."""
    cells = []
    for agent, sums, words in (("ppo", 0.7, 0.3), ("grpo", 0.5, 0.4)):
        for seed in range(6):
            own = {"task/sums/gold": sums + 0.002 * seed, "task/words/gold": words + 0.01 * (seed % 2)}
            made = cell(agent, seed, task="mixture", run="", samples=[])
            made["evaluation"] |= {**own, "task/sums/replies": 3.0, "task/words/replies": 1.0}
            made["curve"] = [{"update": at, "generated_tokens": 100 * at, "gold": 0.5, **own} for at in (0, 5)]
            cells.append(made)
    return write(folder, cells)


def test_agents_are_compared_on_each_task_of_a_mixture(tmp_path: Path) -> None:
    results = read_results(mixed(tmp_path / "mixture"))
    assert results.parts_of_mixture("mixture") == ["sums", "words"]
    conclusions = conclude(results)
    sums, words = conclusions.of_mixtures
    assert (sums.task, sums.measure, sums.best) == ("mixture: sums", "gold", "ppo")
    assert (words.task, words.best) == ("mixture: words", "grpo")
    (behind,) = [standing for standing in words.standings if standing.agent == "ppo"]
    difference = behind.against["grpo"].difference
    assert difference.value == pytest.approx(-0.1, abs=1e-12) and behind.against["grpo"].verdict == "worse"
    assert sums.standings[0].score.value == pytest.approx(0.705, abs=1e-12)
    table = markdown_table(results)
    assert "**Tasks within a mixture**" in table
    assert re.search(r"\| mixture: words \| ppo \|.*worse", table) and "| mixture: sums | grpo |" in table


def test_the_report_has_a_curve_for_each_task_of_a_mixture(tmp_path: Path) -> None:
    folder = mixed(tmp_path / "mixture")
    html = write_report(folder).read_text(encoding="utf-8")
    assert 'id="within"' in html and 'href="#within"' in html
    assert (folder / "figures" / "mixture--within-sums.svg").exists()
    assert (folder / "figures" / "mixture--within-words.png").exists()
    assert 'id="within"' not in write_report(two_tasks(tmp_path / "two")).read_text(encoding="utf-8")
