"""The one loop: `train()` collects and updates until the budget is spent."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlhf_env.errors import ConfigError, RewardError, RlhfEnvError, RunFailed, WriterFailed
from rlhf_env.learning.agent import Agent, Metrics, agent_state, asking, called, does_not_fit, give_back
from rlhf_env.learning.checkpoints import require_storable
from rlhf_env.learning.engine import Engine
from rlhf_env.learning.processes import Processes
from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.run_folder import RunFolder
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.learning.shards import has_shards, made_whole
from rlhf_env.learning.signals import Interrupted, catch_signals
from rlhf_env.learning.sources import WRITER, EnvSource, Source
from rlhf_env.learning.spending import Budget, Spending
from rlhf_env.learning.stopping import StoppingRule
from rlhf_env.shown_text import type_in_words
from rlhf_env.types import JsonObject, JsonView
from rlhf_env.working_folder import same_folder

Row = JsonObject

_IDLE_LIMIT = 200


@dataclass(frozen=True)
class Training:
    """How `train` ended: `reason` ("budget", or what `stop_when` said).

    `rows`: the metrics of this call, where there is no run folder that has them (`read_metrics`): a run of a million
    updates keeps them in a file, not in memory.
    """

    reason: str
    rows: Sequence[Row]


def train(
    agent: Agent,
    source: Source,
    budget: Budget,
    *,
    spending: Spending,
    engine: Engine,
    run: RunFolder | None = None,
    resume: bool = False,
    checkpoint_every: int = 0,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    evaluate_every: int = 0,
    stop_when: Callable[[Row], str | None] | StoppingRule | None = None,
    worth: Callable[[Row], float | None] | None = None,
    on_update: Callable[[Row, float], None] | None = None,
    on_rollout: Callable[[int, Rollout], None] | None = None,
    rollouts_every: int = 1,
) -> Training:
    """Collect and update until `budget` is spent.

    Args:
        run: where metrics and checkpoints go; without it nothing is written.
        resume: go on from the run folder's newest valid checkpoint, if there is one.
        checkpoint_every: updates between checkpoints (0: only at the end and on interruption).
        evaluate, evaluate_every: numbers to log beside the update's own, every so many updates (and never at 0).
        stop_when: reads each row of metrics, once; a reason to stop early, or None. What a `StoppingRule` remembers
            is saved.
        worth: of a row, how good the agent was that it measured; None where it did not. The best agent so far is kept
            in the run folder beside the last one.
        on_update: called with each row and the share of the budget spent (progress bars).
        on_rollout, rollouts_every: called with the number of the update and its rollout, every so many updates, when
            the agent has learned from it; `engine.credited` then has the advantages, if the agent has told them.

    Raises Interrupted after SIGINT or SIGTERM, with the run saved; RewardError, ConfigError for a prompt that cannot be
    used, and WriterFailed, with the run saved as of the last update; RunFailed when the budget is in a currency this
    agent does not spend; whatever else goes wrong, with the last checkpoint left as it is.

    Of several processes (`engine.processes`), all call this alike, and the first has the run folder. What depends on
    more than the rollouts - time, files, signals, rules of others - is decided by the first, or by all together.
    """
    processes = engine.processes
    has_folder = processes.first_of(run is not None)
    rows: list[Row] = []
    saved: int | None = None
    best: float | None = None  # what the best agent so far is worth
    idle = 0  # updates in a row that spent nothing of the budget
    reason: str | None = None

    def state() -> JsonObject:
        content = {"agent": agent_state(agent), "source": source.state_dict(), "spending": spending.as_dict()}
        return content | ({"stopping": stop_when.state_dict()} if isinstance(stop_when, StoppingRule) else {})

    def whole(content: JsonView) -> JsonView:
        """With whole tensors in the process that writes them."""
        if not has_shards(content):
            return content
        processes.at("gathering the model, to save it")
        with processes.together():
            gathered_here: JsonView = made_whole(content, keep=run is not None)
        return gathered_here

    def save(content: JsonView) -> None:
        nonlocal saved
        updates = int(content["spending"]["updates"])
        if has_folder and saved != updates:
            processes.require_together(content["agent"])
            content = whole(content)
            if run is not None:
                run.save(updates, content, torch.get_num_threads(), engine.hardware)
            processes.barrier()  # nobody ends while it is written: a launcher then ends all
            saved = updates

    def restored() -> tuple[JsonObject, list[Row]] | None:
        """The state of the newest checkpoint, and the rows until then."""
        found = None if run is None else run.restore(torch.get_num_threads(), engine.hardware)
        return None if run is None or found is None else (found[0], read_metrics(run.path))

    if resume and (before_now := processes.from_first(restored, at="reading the checkpoint")) is not None:
        _go_on(before_now[0], agent, source, spending, stop_when)
        saved = spending.updates
        for row in before_now[1]:
            best = _better(best, row, worth)
            if row["update"] == saved > 0 and stop_when is not None and (reason := stop_when(row)):
                return Training(reason, rows)

    if run is not None:
        require_storable(state())  # not after an hour of training

    with catch_signals(with_launcher=processes.size > 1) as caught:
        while (spent := budget.spent_fraction(spending)) < 1.0:
            started, computing = time.perf_counter(), _processor_seconds()
            engine.progress = spent
            before = state()  # what is lost in a rollout that fails, random draws too, is taken back
            try:
                if isinstance(source, EnvSource):
                    source.follow(budget)
                with same_folder("the agent or the task"):
                    rollout = source.next(agent)
            except (RewardError, ConfigError, WriterFailed):
                save(before)
                raise
            rollout.require_finite()  # agents of plugins may not look
            collected = time.perf_counter()
            metrics: Metrics = {}
            shown = on_rollout is not None and (spending.updates + 1) % rollouts_every == 0
            engine.wants_credit, engine.credited = shown, None
            if len(rollout):  # otherwise none of its texts has a score: there is nothing to learn
                with same_folder("the agent"), asking(agent, "update"):
                    metrics = _named(agent.update(rollout), agent)
                metrics |= _named(engine.take_measured(), agent)
            # One clock: budgets and schedules go by it.
            now, computed = time.perf_counter(), _processor_seconds() - computing
            took, collecting = processes.first_of((now - started, collected - started))
            spending.add(updates=1, seconds=took)
            if on_rollout is not None and shown:
                on_rollout(spending.updates, rollout)
            engine.credited = None  # it would keep a rollout alive
            row = {
                "update": spending.updates,
                **describe(rollout),
                **metrics,
                **{f"spent/{name}": amount for name, amount in spending.as_dict().items() if name != "updates"},
                "time/collect_share": collecting / took,
                "time/tokens_per_second": int(rollout.actions.sum()) / took,
                "time/processor_seconds": computed,
            }
            if evaluate is not None and evaluate_every and spending.updates % evaluate_every == 0:
                try:
                    row |= {f"eval/{name}": value for name, value in evaluate().items()}
                except (RewardError, ConfigError):  # the update is done and not lost, only its evaluation
                    if run is not None:
                        run.log(row)
                    save(state())
                    raise
            if run is not None:
                run.log(row)
            elif not has_folder:
                rows.append(row)
            if has_folder and (better := _better(best, row, worth)) != best:
                best, content = better, whole(state())
                if run is not None:
                    run.save_best(spending.updates, content, torch.get_num_threads(), engine.hardware)
            if on_update is not None:
                on_update(row, budget.spent_fraction(spending))
            try:
                reason = _agreed(processes, stop_when, row)
            except RunFailed:  # of the rule: the update is done and not lost
                save(state())
                raise
            stopped_by = processes.largest(caught[0] if caught else 0)
            if checkpoint_every and spending.updates % checkpoint_every == 0:
                save(state())
            if stopped_by or reason:
                break
            idle = idle + 1 if budget.spent_fraction(spending) == spent else 0
            if idle >= _IDLE_LIMIT:
                limits = ", ".join(budget.limits())
                raise RunFailed(f"{idle} updates spent nothing of the budget ({limits}): this run would never end")
        save(state())
        if stopped_by := processes.largest(caught[0] if caught else 0):  # in the last save, too
            where = f", saved in {run.path}" if run is not None else ""
            raise Interrupted(stopped_by, f"stopped after update {spending.updates}{where}")
    return Training(reason or "budget", rows)


def _processor_seconds() -> float:
    """Of this process on all its threads, and of those that it started and that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _agreed(processes: Processes, stop_when: Callable[[Row], str | None] | None, row: Row) -> str | None:
    """Why the run is to end now, in all processes what the first says: a rule may look at the time."""
    if stop_when is None:
        return None
    reason = stop_when(row)  # each remembers what it has seen
    return processes.first_of(reason)


def _better(best: float | None, row: Row, worth: Callable[[Row], float | None] | None) -> float | None:
    """The larger of `best` and what `row` is worth; the agent before training is no candidate."""
    value = worth(row) if worth is not None and row["update"] > 0 else None
    if value is None or not math.isfinite(value):
        return best
    return value if best is None or value > best else best


def _go_on(state: JsonView, agent: Agent, source: Source, spending: Spending, stop_when: object) -> None:
    """Give everything its state back. Raises DataError for a checkpoint of another model or agent."""
    try:
        give_back(agent, state["agent"])
        source.load_state_dict(state["source"])
        spending.load(state["spending"])
        if isinstance(stop_when, StoppingRule) and "stopping" in state:
            stop_when.load_state_dict(state["stopping"])
    except RlhfEnvError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # theirs: any may come
        raise does_not_fit(error) from error


def describe(rollout: Rollout) -> Row:
    """What any rollout with scores says about itself: reward and its parts, lengths, how texts ended.

    Rewards are those of the texts that have a score: not of a text that was cut from outside, or that a part failed on.
    `rollout/entropy` is that of the policy in nats a token, sampled: the mean of -log p over the tokens that it drew.
    What the source has `measured` stands beside it.
    """
    measured = {
        name if name.startswith(WRITER) else f"rollout/{name}": value for name, value in rollout.measured.items()
    }
    scored = rollout.scored
    cut = float(rollout.truncated.double().mean()) if len(rollout) else 0.0
    if not bool(scored.any()) and not cut:
        return measured
    summary: Row = {
        "rollout/length": float(rollout.actions.sum(dim=1).double().mean()),
        "rollout/cut_at_limit": float(np.mean([e.finish_reason == "length" for e in rollout.episodes])),
        **({"rollout/cut_from_outside": cut} if cut else {}),
        **measured,
    }
    if rollout.stated and bool(rollout.actions.any()):
        summary["rollout/entropy"] = -float(rollout.logprobs.sum() / rollout.actions.sum())
    if not bool(scored.any()):
        return summary
    totals = rollout.returns()[scored]
    summary |= {
        "rollout/reward": float(totals.mean()),
        "rollout/reward_std": float(totals.std(unbiased=False)),
        "histogram/reward": histogram(totals),
    }
    # Of the rows that a part has scored: those that it had nothing to say about are no zeros.
    parts = {name: (values := rollout.part(name))[~values.isnan()] for name in rollout.parts}
    for name, values in parts.items():
        summary[f"rollout/part/{name}_std"] = float(values.std(unbiased=False))
        summary[f"histogram/part/{name}"] = histogram(values)
    # After the spreads: where one part is called "a" and another "a_std", the second has its mean under its own name.
    return summary | {f"rollout/part/{name}": float(values.mean()) for name, values in parts.items()}


def histogram(values: Tensor, bins: int = 10) -> JsonObject:
    """`values` counted in `bins` of equal width: few numbers, for a row of metrics is kept for ever.

    From the least (`low`) to the largest (`high`); where all are equal, or differ only by rounding, half a unit to
    either side.
    """
    numbers = values.cpu().numpy()
    low, high = float(numbers.min()), float(numbers.max())
    # numpy refuses bins that are narrower than the spacing of floats.
    rounding = high - low <= 1e-12 * max(abs(low), abs(high))
    counts, edges = np.histogram(numbers, bins=bins, range=(low - 0.5, low + 0.5) if rounding else None)
    return {"low": float(edges[0]), "high": float(edges[-1]), "counts": counts.tolist()}


def _named(metrics: object, agent: Agent) -> Metrics:
    """Agents' metrics go under train/ unless they name a section themselves. Raises RunFailed for what are none."""
    who = f"{called(agent)}: update()"
    if not isinstance(metrics, Mapping):
        raise RunFailed(
            f"{who} gave {type_in_words(metrics)}: a dict of numbers by name is needed, {{}} where there are none"
        )
    named: Metrics = {}
    for name, value in metrics.items():
        if not isinstance(name, str) or not isinstance(value, (int, float, np.number)):
            remedy = "float(...) makes one of a tensor of one number"
            raise RunFailed(
                f"{who} gave {type_in_words(value)} as {name!r}: names are texts and values numbers; {remedy}"
            )
        named[name if "/" in name else f"train/{name}"] = value if isinstance(value, (int, float)) else float(value)
    return named
