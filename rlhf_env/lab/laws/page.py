"""docs/laws.md: the table of all verdicts, and what each law measures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlhf_env.lab.laws.records import load_law
from rlhf_env.lab.laws.running import counted, shown_analysis, shown_effect, shown_interval
from rlhf_env.types import JsonView

_BEFORE = """# Laws

Claims of papers, each decided by a program of one screen. `rlhf-env lab laws NAME` does it again; `rlhf-env lab laws
--markdown > docs/laws.md` makes this page from the results that come with the library (`rlhf_env/lab/laws/results/`).

**How a law is decided.** It measures one number a seed, the *effect*, signed so that the claim predicts it to be
above 0, and names the *smallest effect that matters*. A pilot on seeds of its own says how far seeds differ, and so
how many it takes to see that effect with a power of 0.9 (`--plan` stops here); this is printed, and written to
`runs/laws/NAME.plan.json`, before the run begins. Then

- **confirmed**: the 95 % interval of the mean lies above 0, and the mean is at least the smallest effect that
  matters;
- **refuted**: the interval lies below the smallest effect that matters - the effect is absent, too small, or the
  other way round;
- **inconclusive**: neither; the command says how many seeds would decide;
- **not run yet**: the pilot and its analysis are there, the run is not.

Along its *axis* a law is measured at other places, with the same rules: where the sign turns, the claim has its
limit. In one law of forty the verdict "confirmed" is luck where nothing is there: the verdicts are not corrected for
being many.

**What a verdict is about.** A law is decided in the world that it names: mostly one in which all expectations are
sums, so that sampling, optimisers and models do not blur what the claim says - and cannot rescue it either.
"Confirmed" says that the mechanism does what the paper says in such a world, and "refuted" that it does not there;
neither says how large the effect is in a large model.
"""


def laws_page(records: Sequence[JsonView]) -> str:
    """The page, in Markdown."""
    parts = [
        _BEFORE,
        f"## Verdicts\n\n{counted(records)}. The smallest effect that matters stands in brackets.\n",
        _table(records),
    ]
    return "\n".join([*parts, "## What each measures\n", *(_section(one) for one in records)])


def _table(records: Sequence[JsonView]) -> str:
    lines = ["| Law | Claim | Verdict | Effect | Seeds | Along its axis |", "|---|---|---|---:|---:|---|"]
    for one in records:
        cells = (
            f"[`{one['name']}`](#{one['name']})",
            f"{one['claim']} ({one['source']})",
            f"**{one['verdict']}**",
            shown_effect(one),
            str(len(one["effects"])) if "effects" in one else "",
            one.get("turns", ""),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _section(record: JsonView) -> str:
    return "\n".join(_paragraphs(record)) + "\n"


def _paragraphs(record: JsonView) -> Iterator[str]:
    law = load_law(record["name"])
    yield f"### {law.name}\n"
    yield f"{law.prediction}\n"
    if "analysis" in record:
        yield f"Before the run: {shown_analysis(record)}.\n"
    if record.get("places"):
        yield f"| {law.axis} | effect | |"
        yield "|---:|---:|---|"
        for place in record["places"]:
            yield f"| {place['at']:g} | {shown_interval(place['effect'])} | {place['verdict']} |"
        yield ""
    if law.teaches:
        yield f"{law.teaches}\n"
