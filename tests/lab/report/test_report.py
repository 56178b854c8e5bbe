"""The report says what the results say, shows untrusted text as text, and comes out the same every time."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console, RenderableType

from rlhf_env.errors import DataError, MissingExtra
from rlhf_env.lab import drawing
from rlhf_env.lab.benchmark import comparison
from rlhf_env.lab.benchmark.reading import read_results
from rlhf_env.lab.benchmark.summary import claim, summary_rows
from rlhf_env.lab.drawing import Picture
from rlhf_env.lab.report import figures, series
from rlhf_env.lab.report.formats import latex_table, markdown_table, rich_table
from rlhf_env.lab.report.report import write_report
from rlhf_env.lab.report.samples import before_and_after, rich_samples, samples_side_by_side
from rlhf_env.shown_text import for_page, for_terminal

# --- A benchmark folder with planted numbers, as the laboratory would leave it --------------------------------------

AGENTS = ("best_of_n", "dpo", "grpo", "ppo", "random", "reference")
GOLD = {"best_of_n": 0.62, "dpo": 0.66, "grpo": 0.71, "ppo": 0.69, "random": 0.11, "reference": 0.52}
PROXY = {"best_of_n": 0.9, "dpo": 1.2, "grpo": 1.62, "ppo": 1.45, "random": -2.0, "reference": 0.1}
PROMPTS = ("Hey, how are you?", "What do you like to do?", "I had a long day.", "Where are you from?")
STOCK = ("I am great, thank you! How about you?", "I love it! It sounds so nice.", "", "That is awesome! I like music.")


def cell(agent: str = "ppo", seed: int = 0, *, task: str = "chitchat", **changes: Any) -> dict[str, Any]:
    """One result. Seeds lie 0.01 apart, around the planted value for seed 1."""
    offset = 0.01 * (seed - 1)
    trains = agent in ("dpo", "grpo", "ppo")
    kl = {"reference": 0.0, "random": 60.0, "best_of_n": 2.08}.get(agent, 3.0 + seed)
    return {
        "format": 1,
        "benchmark": "demo",
        "task": task,
        "agent": agent,
        "seed": seed,
        "status": "finished",
        "reason": "budget",
        "error": None,
        "agent_settings": {"learning_rate": 1e-4, "epochs": 2},
        "config_hash": f"{len(agent):02d}{seed:02d}c0ffee",
        "run": f"cells/{task}/{agent}/seed-{seed}",
        "spending": {
            "updates": 60 if trains else 0,
            "generated_tokens": 100_000 + 2_000 * seed if trains else 0,
            "seconds": 61.4 if trains else 0.0,
        },
        "evaluation": {
            "gold": GOLD[agent] + offset,
            "proxy": PROXY[agent] + offset,
            "kl": kl,
            "kl_is_bound": agent == "best_of_n",
            "length": 9.5 + seed,
            "distinct_2": 0.4,
            "inference_tokens": 80.0 if agent == "best_of_n" else 10.0,
        },
        "curve": curve(agent, offset, 100_000 + 2_000 * seed) if trains else curve(agent, offset, 0)[-1:],
        "samples": [
            {
                "prompt": prompt,
                "response": STOCK[(i + len(agent)) % len(STOCK)],
                "gold": 0.5,
                "proxy": 1.25,
                "kl": 2.0,
                "finish_reason": "stop" if i else "length",
            }
            for i, prompt in enumerate(PROMPTS)
        ],
        **changes,
    }


def curve(agent: str, offset: float, tokens: int, points: int = 9) -> list[dict[str, Any]]:
    """From the reference's values to the agent's own."""
    shares = [1 - math.exp(-3.5 * i / (points - 1)) for i in range(points)]
    return [
        {
            "update": 60 * i // (points - 1),
            "generated_tokens": tokens * i // (points - 1),
            "gold": GOLD["reference"] + (GOLD[agent] + offset - GOLD["reference"]) * share / shares[-1],
            "proxy": PROXY["reference"] + (PROXY[agent] + offset - PROXY["reference"]) * share / shares[-1],
            "kl": 3.0 * share,
            "length": 9.5,
        }
        for i, share in enumerate(shares)
    ]


def metrics(agent: str, seed: int, updates: int = 60) -> list[dict[str, Any]]:
    wobble = len(agent) + seed
    return [
        {
            "update": update,
            "rollout/part/bradley_terry": 1.5 * update / updates + 0.1 * math.sin(wobble * update),
            "rollout/part/bradley_terry_std": 1.0,
            "rollout/part/kl": -3.0 * update / updates + 0.1 * math.cos(wobble * update),
            "rollout/part/diversity": 0.6 + 0.05 * math.sin(wobble + update),
            "spent/generated_tokens": 1700 * update,
        }
        for update in range(1, updates + 1)
    ]


def write(folder: Path, cells: Sequence[dict[str, Any]], **extra: dict[str, Any]) -> Path:
    """The folder with these results, a metrics file for those that train, and `extra` as JSON files beside them."""
    (folder / "results").mkdir(parents=True)
    for i, result in enumerate(cells):
        (folder / "results" / f"{i:03d}.json").write_text(json.dumps(result), encoding="utf-8")
        if result["agent"] in ("dpo", "grpo", "ppo") and result["run"].startswith("cells/chitchat"):
            run = folder / result["run"]
            run.mkdir(parents=True)
            (run / "experiment.toml").write_text("", encoding="utf-8")
            rows = metrics(result["agent"], result["seed"])
            (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, data in extra.items():
        (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


def grid(agents: Sequence[str] = AGENTS, seeds: int = 3) -> list[dict[str, Any]]:
    return [cell(agent, seed) for agent in agents for seed in range(seeds)]


def two_tasks(folder: Path) -> Path:
    """Six seeds of three agents on two tasks, one run failed: all that can be compared is. No curves, to be quick."""
    cells = [
        cell(a, s, task=task) for task in ("chitchat", "sums") for a in ("dpo", "ppo", "reference") for s in range(6)
    ]
    for each in cells:
        each.update(run="", curve=[], samples=[])
    cells[9].update(status="failed", error="loss is not finite")
    return write(folder, cells)


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """PNG files of few pixels, to be quick."""
    monkeypatch.setattr(figures, "as_png", partial(figures.as_png, dpi=20))


@pytest.fixture
def rough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer resamples than in a real report."""
    monkeypatch.setattr(comparison, "_RESAMPLES", 100)
    monkeypatch.setattr(comparison, "_REPEATS", 4)


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


def test_an_agent_whose_every_run_failed_still_has_its_row(tmp_path: Path) -> None:
    failed = [cell("dpo", s, status="failed", evaluation=None, spending=None, samples=[], curve=[]) for s in range(2)]
    folder = write(tmp_path / "demo", grid(["ppo"], 2) + failed)
    assert "| dpo (2 of 2 failed) | 0.68 | – | – |" in markdown_table(read_results(folder))
    assert "(no reply)" in texts_of(write_report(folder).read_text(encoding="utf-8"))


def test_seeds_of_unequal_length_are_averaged_where_they_were(tmp_path: Path) -> None:
    long = [{"update": 0, "generated_tokens": 0, "gold": 0.0}, {"update": 2, "generated_tokens": 200, "gold": 2.0}]
    short = [{"update": 0, "generated_tokens": 0, "gold": 0.0}, {"update": 1, "generated_tokens": 100, "gold": 3.0}]
    cells = [cell("ppo", i, curve=curve, spending={}) for i, curve in enumerate((long, short))]
    (line,) = series.evaluation_curves(read_results(write(tmp_path / "demo", cells)), "chitchat", "gold")
    np.testing.assert_allclose(line.x, [0, 100, 200])
    np.testing.assert_allclose(line.mean, [0.0, (1 + 3) / 2, (2 + 3) / 2])  # the short one keeps its 3
    np.testing.assert_allclose(line.low, [0.0, 1.0, 2.0])
    np.testing.assert_allclose(line.high, [0.0, 3.0, 3.0])


def test_a_curve_ends_where_the_table_does(tmp_path: Path) -> None:
    start = {"update": 0, "generated_tokens": 0, "gold": 0.5}
    end = {"spending": {"updates": 7, "generated_tokens": 900}, "evaluation": {"gold": 0.8}}
    results = read_results(write(tmp_path / "demo", [cell("ppo", curve=[start], **end)]))
    (line,) = series.evaluation_curves(results, "chitchat", "gold")
    assert (line.level, list(line.x), list(line.mean)) == (False, [0.0, 900.0], [0.5, 0.8])


def test_a_far_off_control_does_not_flatten_the_others() -> None:
    assert figures.focus({"ppo": [1.0, 2.0], "random": [-50.0]}) == pytest.approx((0.94, 2.06))
    assert figures.focus({"ppo": [1.0, 2.0], "random": [0.5]}) == pytest.approx((0.41, 2.09))
    assert figures.focus({"ppo": [1.0, 2.0], "dpo": [-50.0]}) == pytest.approx((-53.12, 5.12))
    assert figures.focus({"random": [3.0]}) == (2.5, 3.5)


def test_names_at_line_ends_keep_their_distance_and_stay_inside() -> None:
    assert drawing.spaced([10.0, 50.0], gap=14, top=100) == [10.0, 50.0]
    assert drawing.spaced([10.0, 12.0, 13.0], gap=14, top=100) == [10.0, 24.0, 38.0]
    assert drawing.spaced([90.0, 95.0, 99.0], gap=14, top=100) == [72.0, 86.0, 100.0]


def test_before_and_after_are_the_replies_worth_showing(tmp_path: Path) -> None:
    """Five prompts: the best, the middle, the worst; one gold moved most on, one said otherwise in every word."""

    def samples(*said: tuple[str, float]) -> list[dict[str, Any]]:
        return [{"prompt": f"prompt {i}", "response": text, "gold": gold} for i, (text, gold) in enumerate(said)]

    before = samples(("a b", 0.8), ("a b", 0.4), ("a b", 0.5), ("a b", 0.1), ("a b", 0.3))
    after = samples(("a b", 0.9), ("a c", 0.5), ("a b", -0.1), ("a b", 0.6), ("c d e", 0.4))
    cells = [
        cell("reference", 0, samples=samples(("x", 0.0))),
        cell("reference", 1, samples=before),
        cell("ppo", 0, samples=[]),
        cell("ppo", 1, samples=after),
        cell("dpo", 2, samples=after),
    ]
    folder = write(tmp_path / "demo", cells)
    found = before_and_after(read_results(folder), "chitchat")
    assert list(found) == ["dpo", "ppo"], "whoever trains, not the controls"
    shown = [(it.why, it.prompt, it.before.sample.response, it.after.sample.gold) for it in found["ppo"]]
    assert shown == [
        ("best", "prompt 0", "a b", 0.9),
        ("median", "prompt 1", "a b", 0.5),
        ("worst, most changed in gold", "prompt 2", "a b", -0.1),
        ("most changed in words", "prompt 4", "a b", 0.4),
    ]
    assert all(it.before.seed == it.after.seed == 1 for it in found["ppo"]), "both of one seed"
    alone = [(it.why, it.before.sample) for it in found["dpo"]]  # the reference has no seed 2
    assert alone == [("best", None), ("median", None), ("worst", None)]
    page = texts_of(write_report(folder).read_text(encoding="utf-8"))
    assert "Before and after" in page
    assert "worst, most changed in gold" in page


def test_figures_show_what_reward_costs_and_how_replies_drift(tmp_path: Path) -> None:
    cells = grid(["dpo", "ppo", "best_of_n", "reference"], 2)
    for result in cells:
        for point in result["curve"]:
            point["distinct_2"] = 0.8 - 0.1 * point["kl"]
    results = read_results(write(tmp_path / "demo", cells))
    drawn = {picture.name: picture.section for picture in figures.pictures(results)}
    assert {name for name, section in drawn.items() if section == "drift"} == {
        "chitchat--length-curve",
        "chitchat--distinct_2-curve",
    }
    assert {name for name, section in drawn.items() if section == "frontier"} == {
        "chitchat--gold-against-kl",
        "chitchat--proxy-against-kl",
    }
    paths = series.trade_offs(results, "chitchat", "kl", "gold")
    first, last = paths["ppo"][1][0], paths["ppo"][1][-1]
    assert first == pytest.approx([0.0, GOLD["reference"]])
    assert last == pytest.approx([3.0 * (1 - math.exp(-3.5)), GOLD["ppo"]])
    (drift,) = [it for it in series.evaluation_curves(results, "chitchat", "distinct_2") if it.agent == "ppo"]
    assert drift.mean[0] == pytest.approx(0.8)
    assert drift.mean[-1] < 0.6


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


def test_a_chart_is_one_entry_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With that alone it has a section, a place in the list of sections, and files."""

    def draw(subject: figures.Subject) -> Iterator[Picture]:
        if subject.task == "chitchat":
            yield subject.picture("ends", "How many <ended>.", lambda figure: figure.text(0, 0, "hello"), height=90)

    chart = figures.Chart(name="ends", title="How replies end", caption="Of all & each.", draw=draw)
    monkeypatch.setattr(figures, "CHARTS", (*figures.CHARTS, chart))
    folder = write(tmp_path / "demo", [cell(task="chitchat"), cell(task="sums")])
    page = write_report(folder).read_text(encoding="utf-8")
    assert '<a href="#ends">How replies end</a>' in page
    section = page.partition('<section id="ends">')[2].partition("</section>")[0]
    assert "<h2>How replies end</h2>" in section and "Of all &amp; each." in section
    assert section.count("<svg") == 1 and ">hello</text>" in section and "How many &lt;ended>." in section
    assert {file.name for file in (folder / "figures").glob("*ends*")} == {"chitchat--ends.svg", "chitchat--ends.png"}


def test_replies_stand_side_by_side_only_for_the_same_prompt(tmp_path: Path) -> None:
    other = cell("ppo")
    other["samples"][1]["prompt"] = "Something else?"
    results = read_results(write(tmp_path / "demo", [cell("reference"), other]))
    prompts = samples_side_by_side(results, "chitchat")
    assert [prompt for prompt, _ in prompts] == list(PROMPTS)
    assert [reply.agent for reply in prompts[0][1]] == ["reference", "ppo"]
    assert [replies[1].sample is not None for _, replies in prompts] == [True, False, True, True]


# --- The page -------------------------------------------------------------------------------------------------------


def test_the_report_is_the_same_every_time(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, grid(), about=ABOUT, reward_model=REWARD_MODEL) for name in ("a", "b"))
    write_report(first)
    kept = contents(first)
    write_report(first)
    write_report(second)
    assert contents(first) == kept == contents(second)
    assert {"report.html", "table.md", "figures/chitchat--gold-curve.png", "figures/chitchat--kl.svg"} <= kept.keys()


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


@pytest.mark.usefixtures("rough")
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


def test_the_page_needs_nothing_from_anywhere(tmp_path: Path) -> None:
    page = write_report(write(tmp_path / "demo", grid(), about=ABOUT, reward_model=REWARD_MODEL)).read_text("utf-8")
    parsed = parse(page)
    assert not parsed.tags & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page
    for name, value in parsed.attributes:
        assert not (name in ("href", "src", "xlink:href") and not value.startswith("#")), (name, value)
    assert "url(http" not in page
    assert str(tmp_path) not in page
    assert len(parsed.ids) == len(set(parsed.ids))
    shown = " ".join(parsed.texts)
    for expected in (ABOUT["title"], ABOUT["what_gold_is"], "71.3 %", "86.0 %", "3 seeds: numbers, no claim"):
        assert expected in shown
    assert "rlhf-env train cells/chitchat/ppo/seed-0/experiment.toml" in shown


def test_without_gold_the_rest_is_there(tmp_path: Path) -> None:
    cells = grid(["ppo", "reference"])
    for result in cells:
        del result["evaluation"]["gold"]
        for point in (*result["curve"], *result["samples"]):
            del point["gold"]
    folder = write(tmp_path / "demo", cells)
    results = read_results(folder)
    assert "gold" not in summary_rows(results)[0].spreads
    assert "Not measured in this benchmark." in texts_of(write_report(folder).read_text(encoding="utf-8"))
    drawn = {picture.name for picture in figures.pictures(results)}
    assert "chitchat--proxy-curve" in drawn
    assert not {name for name in drawn if "gold" in name}
    assert figures.demo_picture(results, tmp_path / "demo.png").stat().st_size > 1000


def test_reward_parts_come_from_the_metrics_of_the_runs(tmp_path: Path) -> None:
    results = read_results(write(tmp_path / "demo", grid(["ppo", "reference"])))
    assert series.reward_parts(results, "chitchat") == ["bradley_terry", "diversity", "kl"]
    (line,) = series.part_curves(results, "chitchat", "bradley_terry")
    assert (line.agent, line.level) == ("ppo", False)
    assert line.mean[-1] > line.mean[0] + 1


def test_the_picture_for_a_readme_is_wide_and_small(tmp_path: Path) -> None:
    results = read_results(write(tmp_path / "demo", grid()))
    image = figures.demo_picture(results, tmp_path / "demo.png").read_bytes()
    assert int.from_bytes(image[16:20], "big") == 1600
    assert len(image) <= 150_000


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "demo", grid(["ppo"], 1))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=re.escape("rlhf-env[demo]")):
        write_report(folder)
    assert "ppo" in markdown_table(read_results(folder))  # tables need none


# --- Text that others wrote -----------------------------------------------------------------------------------------

PAYLOADS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'><iframe src=javascript:alert(1)></iframe>",
    "</style><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "<a href='javascript:alert(1)'>go</a>",
    "<!--><script>alert(1)</script>",
    "<![CDATA[><script>alert(1)</script>]]>",
    "{{ 7 * 7 }}{% for x in y %}",
    "&lt;b&gt; &amp;",
    "$\\frac{1}$",
    "red; } body { display: none",
    "javascript:alert(1)",
    "<math><mtext></form><form><style><img src=x onerror=alert(1)>",
)


def test_payloads_show_as_text(tmp_path: Path) -> None:
    words = [f"words {i}" for i in range(len(PAYLOADS))]
    harmless = parse(write_report(hostile(tmp_path / "harmless", words)).read_text(encoding="utf-8"))
    folder = hostile(tmp_path / "hostile", PAYLOADS)
    parsed = parse(write_report(folder).read_text(encoding="utf-8"))
    assert parsed.tags == harmless.tags
    assert {name for name, _ in parsed.attributes} == {name for name, _ in harmless.attributes}
    shown = "\n".join(parsed.texts)
    for payload in PAYLOADS:
        # As an agent in the table and among the runs, as prompt and reply, as an error and in the settings.
        assert shown.count(payload) >= 6, payload
    assert shown.count(PAYLOADS[0]) >= 12  # and as task, benchmark, title, gold, command, version, annotator
    for svg in sorted((folder / "figures").glob("*.svg")):
        assert "<script" not in svg.read_text(encoding="utf-8")
    assert "<" not in markdown_table(read_results(folder))


def test_a_name_stays_in_its_cell_of_the_markdown_table(tmp_path: Path) -> None:
    cells = [cell("ppo", 0) | {"agent": "a|b [x](http://y) `c`\n| d", "run": ""}]
    table = markdown_table(read_results(write(tmp_path / "demo", cells)))
    assert table.splitlines()[2].startswith(r"| a\|b \[x\](http://y) \`c\` \| d | 0.68 |")


def test_unseen_characters_are_shown_on_the_page_and_gone_in_the_terminal(tmp_path: Path) -> None:
    nasty = "a\x1b[2J\x1b]0;owned\x07b\u202ec\u200bd\ud800e\x9b31mf\x00g\r\nh"
    cells = [cell("ppo"), cell("reference")]
    for result in cells:
        result["samples"][0].update(prompt=nasty, response=nasty)
    folder = write(tmp_path / "demo", cells)
    page = texts_of(write_report(folder).read_text(encoding="utf-8"))
    for mark in ("⟨U+001B⟩", "⟨U+202E⟩", "⟨U+200B⟩", "⟨U+D800⟩", "⟨U+0000⟩"):
        assert mark in page
    shown = printed(rich_samples(read_results(folder), count=1))
    assert "abcdefg h" in shown
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202e]", shown)


def test_ordinary_text_in_any_script_is_left_alone() -> None:
    for text in ("", "naïve café", "שלום", "日本語", "🙂👍🏽", "1 < 2 & 3"):
        assert for_page(text) == for_terminal(text) == text
    assert for_page("two\nlines\tand a tab") == "two\nlines\tand a tab"
    assert for_terminal("two\nlines\tand a tab") == "two lines and a tab"


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


# --- Reading what was written ---------------------------------------------------------------------------------------

ABOUT = {
    "title": "Four agents learn small talk",
    "what_gold_is": "Upbeat, human-like conversation.",
    "command": "rlhf-env demo",
    "versions": {"rlhf-env": "0.1.0"},
}
REWARD_MODEL = {
    "accuracy": 0.713,
    "low": 0.69,
    "high": 0.735,
    "pairs": 3200,
    "held_out_pairs": 800,
    "ceiling": 0.86,
    "annotator": "simulated",
}


def hostile(folder: Path, payloads: Sequence[str]) -> Path:
    """Payloads wherever somebody else's text can stand: each as an agent and what it says, the first around them."""
    first = payloads[0]
    around = {"task": first, "benchmark": first, "run": ""}
    samples = [{"prompt": text, "response": text, "finish_reason": text} for text in payloads]
    cells = []
    for text in payloads:
        said = {"agent": text, "agent_settings": {text: "x"}, "config_hash": text, "reason": text}
        cells.append(cell("ppo", 0, samples=samples) | said | around)
        cells.append(cell("ppo", 1, status="failed", error=text) | said | around)
    about = {"title": first, "what_gold_is": first, "command": first, "versions": {first: first}}
    return write(folder, cells, about=about, reward_model=REWARD_MODEL | {"annotator": first})


class Parsed(HTMLParser):
    """What a browser would make of a page: elements, attributes, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parse(page: str) -> Parsed:
    return Parsed(page)


def texts_of(page: str) -> str:
    return " ".join(" ".join(parse(page).texts).split())


def printed(renderable: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=110, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
