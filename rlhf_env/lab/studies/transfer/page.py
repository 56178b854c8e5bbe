"""The table of a study of transfer, and docs/transfer.md."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from rlhf_env.lab.studies.transfer.sizes import CONTROL, RANKED_SETTINGS, TASKS
from rlhf_env.lab.studies.transfer.study import MeasuredSize, Transfer, TransferFindings

_BEFORE = """# Does a ranking of agents transfer?

Whoever compares agents on a small model wants to know whether the order holds on a large one. `rlhf-env lab
transfer` runs the same eight settings on the same two tasks at three sizes and correlates the rankings; this page
is `rlhf-env lab transfer --shipped --markdown`, made from the scores that come with the library.

**What was fixed before the run.** The settings are the eight agents of `examples/benchmark.toml`, not tuned for
this question; step sizes come from the examples, raised for smollm2, whose runs are short
(`rlhf_env/lab/studies/transfer/sizes.py`). Within a size every run writes as many tokens; `best_of_n` trains
nothing, and pays when it is evaluated. A setting's score is the task's own score at the end, mean over seeds, and
the ranking orders these means, ties sharing their place. *letters* pays for four times the letter e and nothing
else; *alternation* for vowels and consonants in turn, as in "banana". Both are computed from the characters, so
that a model of letters and one of words can be asked the same. Prompts are a letter and a colon: what is told here
is of the training's own prompts.

**What was changed after a first look.** The shipped model had 4,000 tokens a run at first, with which ppo, grpo and
rloo all ended with "Haha." to every prompt of *alternation*: a tie at 0.75. After that one seed its budget was set
to 1,600, and the seed was run anew.

**Three sizes are three models**, and differ by more than size: *tiny* is random at first and writes letters,
another one for each seed; *base*, the shipped model, and *smollm2* have read text and write pieces of words;
*smollm2* learns by adapters, from far fewer tokens.

**Two intervals.** *Other seeds*: 95 % of what the correlation comes to when seeds are redrawn within each setting;
it says how much of the number is luck of the seeds. It is no interval of the truth: where settings are close, noise
alone makes an order, which pulls the measured correlation towards 0, and redrawing pulls it there again. *Expected
scores*: the correlations that are possible when every expected score lies in its Student interval, all of both
sizes together with 95 %. In the simulations of `tests/lab/studies/test_transfer.py` (18 cases of 20 studies:
normal, skewed and heavy-tailed scores, ties included) it misses the truth at most once in 20, also where the first
one misses it in more than half. The verdict goes by it: **transfers** if it lies above 0, **turns around** if
below, else **inconclusive**. With two or three seeds it is of little use: it reaches from near -1 to near 1
whatever was measured. Verdicts are not corrected for being several.
"""


def transfer_table(findings: TransferFindings) -> Table:
    """A row a task and pair of sizes."""
    table = Table(
        title=f"Spearman's correlation of the rankings of {len(RANKED_SETTINGS)} settings",
        caption="Other seeds: 95 % of what redrawn seeds give. Expected scores: the correlations possible within the "
        "intervals of all expected scores, 95 % together; the verdict goes by it.",
        title_justify="left",
        caption_justify="left",
    )
    for heading in ("Task", "Sizes", "Seeds", "Correlation", "Other seeds", "Expected scores", "Verdict"):
        table.add_column(heading, justify="right" if heading in ("Correlation", "Seeds") else "left")
    for transfer in findings.transfers:
        table.add_row(*_cells(findings, transfer))
    return table


def _cells(findings: TransferFindings, transfer: Transfer) -> tuple[str, ...]:
    it = transfer.agreement
    seeds = (_size(findings, name).seeds(transfer.task) for name in (transfer.small, transfer.large))
    return (
        transfer.task,
        f"{transfer.small} and {transfer.large}",
        " and ".join(str(count) for count in seeds),
        "no order" if it.rho is None else f"{it.rho:.2f}",
        _range(it.redrawn),
        _range(it.compatible),
        it.verdict,
    )


def _range(ends: tuple[float, float] | None) -> str:
    return "-" if ends is None else f"{ends[0]:.2f} to {ends[1]:.2f}"


def _size(findings: TransferFindings, name: str) -> MeasuredSize:
    return next(size for size in findings.sizes if size.name == name)


def places_table(findings: TransferFindings, task: str) -> Table:
    """A row a setting: its place and its mean score at each size."""
    sizes = [size for size in findings.sizes if task in size.scores]
    table = Table(
        title=task,
        caption="Place: mean ± standard deviation over seeds.",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("Setting")
    for size in sizes:
        table.add_column(f"{size.name}, {size.parameters}", justify="right")
    for row in _places(sizes, task):
        table.add_row(*row)
    return table


def _places(sizes: list[MeasuredSize], task: str) -> Iterator[tuple[str, ...]]:
    """By place at the smallest size; the control last, without one."""
    order = sorted(RANKED_SETTINGS, key=lambda agent: sizes[0].places(task)[agent]) if sizes else []
    for agent in order:
        column = list(RANKED_SETTINGS).index(agent)
        cells = []
        for size in sizes:
            scores = size.table(task)[:, column]
            spread = f" ± {scores.std(ddof=1):.2f}" if len(scores) > 1 else ""
            cells.append(f"{size.places(task)[agent]:g}: {scores.mean():.2f}{spread}")
        yield agent, *cells
    if any(size.control.get(task) for size in sizes):
        means = [size.control.get(task) for size in sizes]
        yield CONTROL, *(f"{sum(of) / len(of):.2f}" if of else "-" for of in means)


def transfer_counts(findings: TransferFindings) -> str:
    """The verdicts, counted, and the range of the correlations; "" where no two sizes have a complete seed."""
    known = [it.agreement.rho for it in findings.transfers if it.agreement.rho is not None]
    verdicts = [it.agreement.verdict for it in findings.transfers]
    words = ("transfers", "turns around", "inconclusive")
    counted = ", ".join(f"{verdicts.count(word)} {word}" for word in words if word in verdicts)
    if not known:
        return ""
    return f"{len(verdicts)} comparisons of rankings: {counted}; correlations from {min(known):.2f} to {max(known):.2f}"


def transfer_in_words(findings: TransferFindings) -> str:
    """What the study says, in a few sentences."""
    counts = transfer_counts(findings)
    said = [f"{counts}." if counts else "No two sizes have a complete seed yet."]
    if findings.missing:
        said.append(f"Missing yet: {'; '.join(findings.missing)}: `rlhf-env lab transfer` goes on from there.")
    return " ".join(said)


def transfer_page(findings: TransferFindings) -> str:
    """docs/transfer.md."""
    return "\n".join([_BEFORE, *_body(findings)]) + "\n"


def _body(findings: TransferFindings) -> Iterator[str]:
    yield "## What came of it\n"
    yield transfer_in_words(findings)
    yield "\n![Places of the settings at each size](transfer.png)\n"
    yield "| task | sizes | seeds | correlation | other seeds | expected scores | verdict |"
    yield "|---|---|---:|---:|---|---|---|"
    for transfer in findings.transfers:
        yield f"| {' | '.join(_cells(findings, transfer))} |"
    for task in TASKS:
        sizes = [size for size in findings.sizes if task in size.scores]
        if not sizes:
            continue
        yield f"\n## {task.capitalize()}\n\nPlace, mean score, standard deviation over seeds.\n"
        yield f"| setting | {' | '.join(f'{size.name}, {size.parameters}' for size in sizes)} |"
        yield "|---|" + "---|" * len(sizes)
        for row in _places(sizes, task):
            yield f"| {' | '.join(row)} |"
    yield "\n## What it took\n"
    yield "| size | model | tokens a run | seeds | processor minutes of training |"
    yield "|---|---|---:|---:|---:|"
    for size in findings.sizes:
        done = min(size.seeds(task) for task in TASKS)
        minutes = f"{size.processor_seconds / 60:.1f}"
        yield f"| {size.name} | {size.title} | {size.tokens:,} | {done} of {size.planned} | {minutes} |"
