"""Decide a law: pilot, analysis, run, verdict; and the table of all verdicts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from rlhf_env.lab.laws.form import Analysis, Claim, analyse, conclude_claim, run_law
from rlhf_env.lab.laws.records import as_record, write_record
from rlhf_env.types import JsonObject, JsonView


def plan(
    law: Claim,
    folder: Path,
    *,
    jobs: int = 0,
    tell: Callable[[float, str], None] = lambda share, note: None,
    on_analysis: Callable[[Analysis], None] = lambda analysis: None,
) -> Analysis:
    """Run the pilot alone, and leave `folder`/NAME.plan.json with the analysis and no verdict."""
    tell(0.0, f"{law.name}: pilot")
    analysis = analyse(law, jobs=jobs, tell=tell)
    write_record(folder, as_record(law, analysis))
    on_analysis(analysis)
    return analysis


def decide(
    law: Claim,
    folder: Path,
    *,
    seeds: int | None = None,
    jobs: int = 0,
    tell: Callable[[float, str], None] = lambda share, note: None,
    on_analysis: Callable[[Analysis], None] = lambda analysis: None,
) -> JsonObject:
    """Run the law, and leave `folder`/NAME.plan.json before the run begins, NAME.json after it.

    `seeds` overrides what the analysis asks for. `jobs`: how many processes train models, of laws that do (0: this one
    does). `on_analysis` hears of the analysis before the run.
    """
    began = _processor_seconds()
    analysis = plan(law, folder, jobs=jobs, tell=tell, on_analysis=on_analysis)
    effects, places = run_law(law, analysis, seeds=seeds, jobs=jobs, tell=tell)
    outcome = conclude_claim(law, analysis, effects, places, _processor_seconds() - began)
    record = as_record(law, analysis, outcome)
    write_record(folder, record)
    return record


def _processor_seconds() -> float:
    """Of this process and of those that it has seen end."""
    user, system, of_children, system_of_children, _ = os.times()
    return user + system + of_children + system_of_children


def law_table(records: Sequence[JsonView]) -> Table:
    """A row a law: its verdict, effect, seeds, claim, and where the sign turns. It fits 80 columns."""
    table = Table(
        title=counted(records),
        caption="Effect: signed so that the claim predicts it above 0, with its 95 % interval over seeds; in brackets "
        "the smallest that matters. `rlhf-env lab laws NAME` says what is measured, and measures it again.",
        title_justify="left",
        caption_justify="left",
        show_lines=True,
    )
    table.add_column("Law", no_wrap=True)
    table.add_column("Effect", justify="right", no_wrap=True)
    table.add_column("Claim", overflow="fold")
    for one in records:
        effect = [shown_effect(one).replace(" (", "\n("), f"{len(one['effects'])} seeds"] if "effects" in one else []
        turns = f"\nAlong its axis: {one['turns']}" if one.get("turns") else ""
        law = Text.assemble((one["name"], "bold"), f"\n{one['verdict']}")
        table.add_row(law, Text("\n".join(effect)), Text(one["claim"] + turns))
    return table


def counted(records: Sequence[JsonView]) -> str:
    """How many laws there are, and how many have which verdict."""
    counts = {
        word: sum(one["verdict"] == word for one in records)
        for word in ("confirmed", "refuted", "inconclusive", "not run yet")
    }
    return f"{len(records)} laws: " + ", ".join(f"{number} {word}" for word, number in counts.items() if number)


def law_in_words(record: JsonView) -> str:
    """What the run of one law says."""
    lines = [f"{record['verdict']}: {shown_effect(record)} from {len(record['effects'])} seeds"]
    if record["would_decide"] is not None:
        lines.append(f"about {record['would_decide']} seeds would decide, if they differ as these do")
    if record["places"]:
        lines += [f"along: {record['axis']}"]
        lines += [
            f"  {place['at']:g}: {shown_interval(place['effect'])}, {place['verdict']}" for place in record["places"]
        ]
        lines.append(record["turns"])
    return "\n".join(lines)


def shown_analysis(record: JsonView) -> str:
    """The analysis of a record, in the words that were printed before the run."""
    return Analysis(**record["analysis"]).sentence


def shown_effect(record: JsonView) -> str:
    """The effect with its interval and the smallest that matters; empty where there is none."""
    if "effect" not in record:
        return ""
    return f"{shown_interval(record['effect'])} ({record['smallest']:g})"


def shown_interval(effect: JsonView) -> str:
    """A mean with its interval, three digits each."""
    value, low, high = (effect[name] for name in ("value", "low", "high"))
    return _number(value) if low is None else f"{_number(value)} ({_number(low)} to {_number(high)})"


def _number(value: float) -> str:
    """Three digits; what is 0 but for rounding is written as 0."""
    return f"{value:.3g}" if abs(value) > 1e-9 else "0"
