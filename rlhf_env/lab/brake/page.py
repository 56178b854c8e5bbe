"""The table of all rules, what it comes to in words, and docs/brake.md."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from rlhf_env.lab.brake.judging import FALSE_STOPS, WELL_KEPT, BrakeVerdict, Tally
from rlhf_env.lab.brake.study import BrakeFindings
from rlhf_env.learning.stopping import Brake

_BEFORE = """# The brake: when to stop

A learned reward can be climbed past the peak of the true one. `rlhf-env lab brake` asks which rule would have ended
such runs in time, and what that costs; this page is `rlhf-env lab brake --markdown`.

**The runs.** Each has a gold reward that training does not see, measured at every fourth update. *Letters*: a tiny
model writes texts over five letters by the real loop, 72 updates of 48 texts, by `rloo` without and by `grpo` with a KL
penalty; its reward is gold itself, or fitted to 50 to 2,000 noisy labels, or gold with something else that pays
(length, repetition, a letter). *Exact*: one softmax over 2,000 responses, tilted step by step by a proxy of 25 to 1,000
labels. What the owner of a run would have seen is saved once (`runs/brake/records`), and every rule is replayed on it.

**The bar.** A run is *well kept* if the policy its owner is left with has at least 90 % of the run's peak gold (up to
0.1 standard deviations, the noise of the measurement). A *false stop* ended a run before its gold had first come so
far. A rule is to keep well at least 80 % of the runs, with at most 5 % false stops. Its settings are chosen on the
even seeds - the most well kept among those within 5 % false stops - and **all that is told below is of the odd
seeds**, with 95 % intervals (Wilson).

**Who is asked.** "Scores" and "votes" are judgements of an annotator on texts of the evaluation, with an error of
Bradley and Terry's kind (scale 0.5 standard deviations of gold), each paid for: the price is in judgements a run. They
keep the policy that was judged best; rules without judgements keep the one at which they stopped. *Rescued*: well
kept, of the runs that would have ended below 90 % of their peak. *Updates*: the share of the budget that was spent.
"""


def brake_table(findings: BrakeFindings) -> Table:
    """One row a rule, on the held-out half."""
    runs = findings.verdicts[0].on_held_out.runs
    table = Table(
        title=f"{findings.runs} runs, {findings.need_brake} end below 90 % of their peak gold; {runs} held out",
        caption=f"The bar: at least {WELL_KEPT:.0%} well kept, at most {FALSE_STOPS:.0%} false stops.",
        title_justify="left",
        caption_justify="left",
    )
    for heading in ("Rule", "Settings", "Well kept", "False stops", "Judgements", "Updates", "Rescued", "Bar"):
        table.add_column(heading, justify="left" if heading in ("Rule", "Settings") else "right")
    for verdict in findings.verdicts:
        table.add_row(*_cells(verdict))
    return table


def _cells(verdict: BrakeVerdict) -> tuple[str, ...]:
    it = verdict.on_held_out
    return (
        verdict.family,
        verdict.picked_settings,
        _share(it.kept_well, it.runs, it.interval),
        _share(it.false_stops, it.runs, it.false_interval),
        f"{it.labels:.0f}" if verdict.asks else "",
        f"{it.updates:.0%}",
        f"{it.rescued} of {it.runs - it.sound}",
        "met" if it.holds else "",
    )


def _share(count: int, of: int, interval: tuple[float, float]) -> str:
    return f"{count / of:.0%} ({interval[0]:.0%} to {interval[1]:.0%})"


def brake_in_words(findings: BrakeFindings) -> str:
    """What the study says, in a few sentences."""
    winner = findings.winner
    best = _best_silent(findings)
    never = findings.verdicts[0].on_held_out
    said = [
        f"Never stopping keeps {_share(never.kept_well, never.runs, never.interval)} of the held-out runs well.",
        f"The signal that asks nobody and was best where settings are chosen, {best.family}, keeps {_told(best)}"
        + (": the bar is met." if best.on_held_out.holds else ": the bar is not met."),
    ]
    if winner is None:
        most = max((it for it in findings.verdicts if it.asks), key=lambda it: it.on_choice.kept_well)
        said.append(
            f"No rule meets the bar where settings are chosen. The best that asks, {most.family}, keeps {_told(most)}."
        )
    elif winner.on_choice.labels:
        said.append(
            f"Of the rules that meet the bar where settings are chosen, the cheapest is {winner.family} "
            f"({winner.picked_settings}). On the held-out half it keeps {_told(winner)}, "
            f"for {winner.on_held_out.labels:.0f} judgements a run: the bar is "
            + ("met there too." if winner.on_held_out.holds else "not met there.")
        )
    if winner is not None and winner.on_held_out.holds:
        certain = winner.on_held_out.interval[0] >= WELL_KEPT and winner.on_held_out.false_interval[1] <= FALSE_STOPS
        said.append(
            "Its intervals lie within the bar."
            if certain
            else "Its intervals reach beyond the bar: other runs could say no."
        )
    return " ".join(said)


def _best_silent(findings: BrakeFindings) -> BrakeVerdict:
    """Of those that ask nobody, by the half on which settings are chosen."""
    silent = [it for it in findings.verdicts if not it.asks and it.family != "never stop"]
    few = [it for it in silent if it.on_choice.false_stops <= FALSE_STOPS * it.on_choice.runs]
    return max(few or silent, key=lambda it: (it.on_choice.kept_well, -it.on_choice.false_stops))


def _told(verdict: BrakeVerdict) -> str:
    it = verdict.on_held_out
    return (
        f"{_share(it.kept_well, it.runs, it.interval)} well, with {_share(it.false_stops, it.runs, it.false_interval)} "
        "false stops"
    )


def brake_page(findings: BrakeFindings) -> str:
    """docs/brake.md."""
    return "\n".join([_BEFORE, *_body(findings)]) + "\n"


def _body(findings: BrakeFindings) -> Iterator[str]:
    runs = findings.verdicts[0].on_held_out
    exact = [it.runs for group, it in findings.verdicts[0].by_group.items() if group.startswith("exact")]
    yield f"""## What came of it

{findings.runs} runs, {findings.need_brake} of which end below 90 % of their peak; {runs.runs} are held out, and
{runs.sound} of these needed no brake. Of the held-out runs {sum(exact)} are exact ones.

{brake_in_words(findings)}

| rule | settings (chosen of) | well kept | false stops | judgements | updates | rescued | sound, made worse | bar |
|---|---|---|---|---|---|---|---|---|"""
    for verdict in findings.verdicts:
        family, settings, kept, false, labels, updates, rescued, bar = _cells(verdict)
        it = verdict.on_held_out
        worse = f"{it.needless} of {it.sound}"
        tried = f"{settings} ({verdict.tried})" if settings else ""
        yield f"| {family} | {tried} | {kept} | {false} | {labels} | {updates} | {rescued} | {worse} | {bar} |"
    shown = _shown(findings)
    yield "\n## By kind of run\n\nWell kept, of the held-out runs of each kind.\n"
    yield "| runs | " + " | ".join(verdict.family for verdict in shown) + " |"
    yield "|---|" + "---|" * len(shown)
    for group in findings.verdicts[0].by_group:
        cells = [_of(verdict.by_group[group]) for verdict in shown]
        yield f"| {group} | " + " | ".join(cells) + " |"
    others = [verdict for verdict in findings.verdicts if verdict.elsewhere is not None]
    if others:
        yield f"""
## On runs of the over-optimisation study

The same settings on {findings.elsewhere} runs of `rlhf-env lab overoptimization`, the shipped model on real
prompts, whose gold is measured at every third update (24 updates; of single texts gold is not kept, so nobody
could be asked).

| rule | well kept | false stops |
|---|---|---|"""
    for verdict in others:
        if verdict.elsewhere is not None:
            there = verdict.elsewhere
            yield f"| {verdict.family} | {_of(there)} | {there.false_stops} of {there.runs} |"
    yield from _rule_of_an_experiment()


def _shown(findings: BrakeFindings) -> list[BrakeVerdict]:
    """Never stopping, the best that asks nobody, and of those that ask the cheapest that meets the bar, or the best."""
    asking = [it for it in findings.verdicts if it.asks]
    other = findings.winner
    if other is None or not other.asks:
        other = max(asking, key=lambda it: it.on_choice.kept_well)
    return [findings.verdicts[0], _best_silent(findings), other]


def _rule_of_an_experiment() -> Iterator[str]:
    """How an experiment names it, with the defaults that it comes with."""
    yield f"""
## In an experiment

`[stopping.brake]` is the rule of the rows "scores"; its defaults are what was chosen for 64 texts:

```toml
[evaluation]
every = 8
prompts = 64
best = "gold"

[evaluation.rewards]
upbeat = 1.0   # whatever training does not see: a reward of yours, a judge, a server

[stopping.brake]
drop = {Brake.drop:g}
evaluations = {Brake.evaluations}
```

Every evaluation costs its prompts' number in judgements; "Judgements" above is what a run came to."""


def _of(it: Tally) -> str:
    return f"{it.kept_well} of {it.runs}"
