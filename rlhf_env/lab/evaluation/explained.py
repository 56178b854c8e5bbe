"""Every number that a run logs, explained: for `rlhf-env metrics`, the page docs/metrics.md, and whoever shows one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import groupby

from rlhf_env.errors import ConfigError, did_you_mean
from rlhf_env.lab.evaluation.metric import Metric
from rlhf_env.lab.evaluation.metrics import METRICS, meaning_of
from rlhf_env.learning.logged import LOGGED, Logged, number_called

_HEAD = """\
# Metrics: what every logged number means

A run writes one row per update to `metrics.jsonl` in its folder, and to every tracker; `rlhf-env watch` and
`report.html` draw them. A key is a section and a name; `*` stands for a name that is yours, such as that of a part of
the reward. `rlhf-env metrics KEY` explains one of them in the terminal, and `rlhf-env metrics --markdown` writes this
page.
"""
SECTIONS = {
    "update": "Where the run is",
    "rollout": "The texts of this update (`rollout/`)",
    "writer": "Another engine that writes (`writer/`)",
    "histogram": "How rewards are spread (`histogram/`)",
    "spent": "What it has cost so far (`spent/`)",
    "time": "Where the time goes (`time/`)",
    "train": "Learning (`train/`)",
    "rewards": "Implicit rewards of pairs (`rewards/`)",
    "options": "Options by place (`options/`)",
    "replay": "Experience replay (`replay/`)",
    "prompts": "Sampling of prompts (`prompts/`)",
    "dynamic": "Dynamic sampling (`dynamic/`)",
    "tasks": "Sampling of tasks (`tasks/`)",
    "curriculum": "Curriculum (`curriculum/`)",
    "backward": "Backward curriculum (`backward/`)",
    "temperature": "Temperature of writing (`temperature/`)",
    "eval": "Evaluation (`eval/`)",
}


def logged_numbers(metrics: Sequence[Metric] = METRICS) -> tuple[Logged, ...]:
    """Those of a run's log, and below them those of evaluations."""
    measured = [
        Logged(f"eval/{entry.name}", f"{entry.meaning[:1].upper()}{entry.meaning[1:]}{_unit(entry)}.")
        for entry in metrics
        if not entry.spent
    ]
    return (
        *LOGGED,
        *measured,
        Logged("eval/part/*", "Mean of that part of the reward, unweighted."),
        Logged("eval/earned/*", "Where parts are of some tasks alone: what that one comes to in the objective."),
        Logged("eval/task/*/objective", "Of a mixture: the objective on that task's prompts; so for proxy and gold."),
        Logged("eval/task/*/replies", "Of a mixture: how many replies are to prompts of that task."),
        Logged("eval/*_std", "Spread of that number over the replies."),
        Logged("eval/*_low", "Lower end of its 95 % interval over prompts."),
        Logged("eval/*_high", "Upper end of its 95 % interval over prompts."),
    )


def meaning_of_number(key: str, metrics: Sequence[Metric] = METRICS) -> Logged | None:
    """What the number under `key` is, of training or of an evaluation; None where nobody has said."""
    if key.startswith("eval/"):
        words = meaning_of(key, metrics)
        return Logged(key, f"{words[:1].upper()}{words[1:]}.") if words else None
    return number_called(key)


def numbers_matching(key: str) -> list[Logged]:
    """Those that `key` names: one key, or a pattern with `*`. Raises ConfigError where it names none."""
    found = [entry for entry in logged_numbers() if fnmatchcase(entry.key, key)]
    if not found and (one := meaning_of_number(key)) is not None:
        found = [one]
    if not found:
        known = [entry.key for entry in logged_numbers()]
        raise ConfigError(
            f"no number is logged as {key!r}{did_you_mean(key, known)}; an agent of yours says what its are"
        )
    return found


def said_of(entry: Logged, *, whose: bool = True) -> str:
    """What the number is, what to look at it for, and (with `whose`) which agents log it."""
    of = f"Of {', '.join(f'`{name}`' for name in entry.of)}." if entry.of and whose else ""
    return " ".join(part for part in (entry.meaning, entry.look, of) if part)


def numbers_page(metrics: Sequence[Metric] = METRICS) -> str:
    """docs/metrics.md, in Markdown."""
    return "\n".join([_HEAD, *_tables(logged_numbers(metrics))]).rstrip() + "\n"


def _tables(entries: Sequence[Logged]) -> Iterator[str]:
    places = list(SECTIONS)
    ordered = sorted(entries, key=lambda entry: places.index(_section(entry)))
    for section, group in groupby(ordered, key=_section):
        yield from (f"## {SECTIONS[section]}", "", "| key | meaning |", "|---|---|")
        for entry in group:
            yield f"| `{entry.key}` | {said_of(entry).replace('|', chr(92) + '|')} |"
        yield ""


def _section(entry: Logged) -> str:
    return entry.key.partition("/")[0]


def _unit(metric: Metric) -> str:
    return f" ({metric.unit})" if metric.unit else ""
