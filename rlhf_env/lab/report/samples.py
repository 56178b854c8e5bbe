"""Replies side by side: of each agent, and before and after training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlhf_env.lab.benchmark.results import CONTROLS, REFERENCE, Cell, Results, Sample
from rlhf_env.lab.drawing import typeset
from rlhf_env.shown_text import for_terminal


def rich_samples(results: Results, count: int = 3) -> RenderableType:
    """Replies to the first `count` prompts of each task's evaluation, one block per prompt, for a terminal.

    Nothing that a model wrote reaches the terminal as a control: see `for_terminal`.
    """
    blocks: list[RenderableType] = []
    for task in results.tasks:
        for prompt, replies in samples_side_by_side(results, task)[:count]:
            table = Table(box=None, pad_edge=False, padding=(0, 1), title_justify="left", show_header=False)
            table.title = Text.assemble(("» ", "dim"), (for_terminal(prompt) or "(empty prompt)", "bold"))
            table.add_column(overflow="fold", max_width=16)
            table.add_column(overflow="fold", ratio=1)
            table.add_column(justify="right", no_wrap=True)
            for reply in replies:
                text = for_terminal(reply.sample.response) if reply.sample else "(no reply)"
                shown = Text(text) if text else Text("(empty reply)", style="dim italic")
                table.add_row(Text(for_terminal(reply.agent), style="cyan"), shown, Text(reply.scores, style="dim"))
            blocks += [table, Text("")]
    return Group(*blocks)


@dataclass(frozen=True)
class AgentReply:
    """What one agent answered to a prompt, or None if its runs have no sample for it."""

    agent: str
    seed: int | None
    sample: Sample | None

    @property
    def scores(self) -> str:
        if self.sample is None:
            return ""
        measured = (("gold", self.sample.gold), ("proxy", self.sample.proxy))
        return " · ".join(f"{name} {typeset(f'{value:.2f}')}" for name, value in measured if value is not None)


def samples_side_by_side(results: Results, task: str) -> list[tuple[str, list[AgentReply]]]:
    """Each prompt asked with every agent's reply, the reference first; from its first seed that has samples."""
    agents = sorted(results.agents_on(task), key=lambda agent: agent != "reference")
    cells = {agent: next((cell for cell in results.of(task, agent) if cell.samples), None) for agent in agents}
    longest = max((cell.samples for cell in cells.values() if cell), key=len, default=())
    return [
        (prompt.prompt, [_reply(agent, cells[agent], i, prompt.prompt) for agent in agents])
        for i, prompt in enumerate(longest)
    ]


@dataclass(frozen=True)
class ReplyChange:
    """A prompt answered by the reference, as the policy was before training, and after it; `why` this one."""

    why: str
    prompt: str
    before: AgentReply
    after: AgentReply


def before_and_after(results: Results, task: str) -> dict[str, list[ReplyChange]]:
    """By agent: its best, median and worst reply, and the two that changed most, in reward and in words.

    Of the first seed with samples, by gold reward (without one, proxy). Words: 1 - `difflib`'s ratio of common ones.
    """
    changes: dict[str, list[ReplyChange]] = {}
    for agent in [agent for agent in results.agents_on(task) if agent not in CONTROLS]:
        cell = next((cell for cell in results.of(task, agent) if cell.samples), None)
        if cell is None:
            continue
        started = next(
            (other for other in results.of(task, REFERENCE) if other.seed == cell.seed and other.samples), None
        )
        pairs = [
            (_reply(REFERENCE, started, i, sample.prompt), AgentReply(agent, cell.seed, sample))
            for i, sample in enumerate(cell.samples)
        ]
        picked: dict[int, list[str]] = {}
        for why, place in _worth_showing(
            [(before.sample, sample) for (before, _), sample in zip(pairs, cell.samples, strict=True)]
        ):
            picked.setdefault(place, []).append(why)
        changes[agent] = [
            ReplyChange(", ".join(whys), cell.samples[place].prompt, *pairs[place]) for place, whys in picked.items()
        ]
    return changes


def _worth_showing(pairs: Sequence[tuple[Sample | None, Sample]]) -> Iterator[tuple[str, int]]:
    """Which of (before, after) to show, and why. Of equals the first."""
    measure = next((name for name in ("gold", "proxy") if all(getattr(s, name) is not None for _, s in pairs)), None)
    if measure is not None:
        scores = [float(getattr(after, measure)) for _, after in pairs]
        ranked = sorted(range(len(pairs)), key=lambda i: -scores[i])
        yield from (("best", ranked[0]), ("median", ranked[len(ranked) // 2]), ("worst", ranked[-1]))
        moved = {
            i: abs(scores[i] - float(getattr(before, measure)))
            for i, (before, _) in enumerate(pairs)
            if before is not None and getattr(before, measure) is not None
        }
        if moved:
            yield f"most changed in {measure}", max(moved, key=lambda i: moved[i])
    rewritten = {i: _distance(before.response, after.response) for i, (before, after) in enumerate(pairs) if before}
    if rewritten:
        yield "most changed in words", max(rewritten, key=lambda i: rewritten[i])


def _distance(text: str, other: str) -> float:
    return 1.0 - SequenceMatcher(None, text.split(), other.split(), autojunk=False).ratio()


def _reply(agent: str, cell: Cell | None, index: int, prompt: str) -> AgentReply:
    """Same place and same prompt: a run that was asked something else has no reply here."""
    if cell is None or index >= len(cell.samples) or cell.samples[index].prompt != prompt:
        return AgentReply(agent, None, None)
    return AgentReply(agent, cell.seed, cell.samples[index])
