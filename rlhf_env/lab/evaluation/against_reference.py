"""A run's agent against its reference on the same prompts: what it gained, what that cost, and how it changed.

evaluation = evaluate_run("runs/toy-ppo-seed0")
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from rlhf_env import plugins
from rlhf_env.device_names import AUTO
from rlhf_env.envs.rewards import RewardMix
from rlhf_env.envs.success import Success
from rlhf_env.envs.tasks import held_out, well_formed
from rlhf_env.errors import MissingExtra, RewardError, UnknownName
from rlhf_env.feedback.reward_models.calibration import wilson_interval
from rlhf_env.lab.evaluation.another_reference import with_reference
from rlhf_env.lab.evaluation.asked import question_of
from rlhf_env.lab.evaluation.behaviour import (
    Cluster,
    PaidPhrase,
    PhraseChange,
    RateChange,
    clusters,
    format_changes,
    paid_phrases,
    phrase_changes,
    rate_change,
    tone_changes,
)
from rlhf_env.lab.evaluation.evaluator import Evaluator, divergences, log_ratios
from rlhf_env.lab.evaluation.metric import Measured
from rlhf_env.lab.evaluation.metrics import METRICS, entropy
from rlhf_env.lab.evaluation.passing import PassAt, compared
from rlhf_env.lab.evaluation.runs import load_run
from rlhf_env.lab.statistics import Estimate, by_unit, mean_of_seeds
from rlhf_env.learning.agent import Decision, Metrics, Setup
from rlhf_env.learning.experiment_checks import check_success
from rlhf_env.learning.rollout import Rollout
from rlhf_env.shown_text import for_terminal
from rlhf_env.text_measures import distinct_n, repetition, self_bleu
from rlhf_env.types import Episode, Float, JsonObject, JsonView, Observation, ResetOptions, Reward, State, Tokenizer
from rlhf_env.whole_files import write_json

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

TextScores = Callable[[Sequence[tuple[int, str]]], Float]


@dataclass(frozen=True)
class Measure:
    """One number of the agent's texts and of the reference's.

    `difference` is the mean over prompts of agent - reference, with its 95 % interval; None for what is a property of
    all texts together.
    """

    name: str
    agent: float
    reference: float
    difference: Estimate | None = None


@dataclass(frozen=True)
class RunEvaluation:
    """The agent of a run after `update` updates, and its reference, on the same `prompts` different prompts.

    `reference` is the model that was named in the place of the one that the run began with; "" where none was.
    `asked` says in words which these are, whether training uses them too, and how many are left out because an answer
    has no score. Intervals count prompts: where one was
    asked more than once, its answers are one value.
    `win_rate`: of "proxy" and "gold", the share of prompts on which the agent's answer scores higher (equal: 1/2) with
    Wilson's interval. `kl`: KL(agent || reference) in nats per response by two estimators, k1 and k3, and where so few
    texts are possible that it is a sum, "exact". Both estimators are unbiased; where the agent has all but stopped
    writing something that the reference does write, k3 has its mean from texts too rare to be drawn, and comes out too
    small. For an agent whose distance can only be bounded, `kl_bound` instead. `rates` are shares of texts: cut off,
    without the form that the task asks for, positive or negative in tone, refusals, and other formats.
    `phrases` are those gained and lost significantly, `paid` those the proxy reward pays for.

    `samples` answers were written to each prompt: what is tested text by text (`phrases`, `rates`, `clusters`, `paid`)
    is of the first of them, because answers to one prompt are not independent. `decoding` says in words how they were
    drawn, where that was not as in training: rewards and KL are then those of texts drawn so. `pass_at` is how often
    one of k answers is a `success`.
    """

    run: str
    update: int
    agent: str
    reference: str
    prompts: int
    asked: str
    measures: Sequence[Measure]
    win_rate: Mapping[str, Estimate]
    kl: Mapping[str, Estimate]
    kl_bound: float | None
    phrases: Sequence[PhraseChange]
    rates: Sequence[RateChange]
    clusters: Sequence[Cluster]
    paid: Sequence[PaidPhrase]
    samples: int = 1
    decoding: str = ""
    pass_at: Sequence[PassAt] = ()
    success: str = ""

    def save(self, file: str | Path) -> None:
        table = asdict(self)
        unasked = {"samples": self.samples == 1} | {n: not table[n] for n in ("decoding", "pass_at", "success")}
        write_json(Path(file), {name: value for name, value in table.items() if not unasked.get(name)})


def evaluate_run(
    folder: str | Path,
    *,
    prompts: int | None = None,
    samples: int | None = None,
    decoding: JsonView | None = None,
    pass_at: Sequence[int] | None = None,
    success: str | None = None,
    checkpoint: Literal["best", "last"] = "best",
    reference: str | None = None,
    trust_code: bool = False,
    device: str = AUTO,
) -> RunEvaluation:
    """Compare a run's agent with its reference, as `rlhf-env evaluate` does: rewards, KL, win rate, behaviour.

    The run in `folder` is read by `load_run` at that `checkpoint`, with its `trust_code` and `device`. `prompts`,
    `samples`, `decoding`, `pass_at` and `success` are settings of [evaluation]; by default they are the run's own (with
    greedy decoding, one answer to each prompt). `reference` is a model, or another run, to compare with instead of the
    model that the run began with; it must have the same tokenizer.

    Both write with the evaluator's random numbers. Raises ConfigError for a folder that holds no run, DataError for one
    without a checkpoint that can be used.
    """
    run = load_run(folder, checkpoint, trust_code=trust_code, device=device)
    workplace, experiment = run.workplace, run.experiment
    if reference is not None:
        workplace = with_reference(workplace, reference)
    given: JsonObject = {"prompts": prompts, "samples": samples, "success": success}
    given |= {"decoding": None if decoding is None else dict(decoding), "pass_at": pass_at and list(pass_at)}
    if decoding is not None and decoding.get("top_k") == 1 and samples is None:
        given["samples"] = 1  # more would be the same
        given["pass_at"] = given["pass_at"] or [k for k in experiment.evaluation.pass_at if k == 1]
    if changes := {name: value for name, value in given.items() if value is not None}:
        experiment = replace(experiment, evaluation=replace(experiment.evaluation, **changes))
        check_success(experiment)
    settings, workplace = experiment.evaluation, replace(workplace, experiment=experiment)
    evaluator = Evaluator.of(workplace)
    other = ReferenceWriter(workplace.setup)
    ours, theirs = _in_pairs(evaluator.texts(workplace.agent)[0], evaluator.texts(other)[0])
    asked, count = evaluator.asked, len({question_of(episode.prompt) for episode in ours.episodes})
    left_out = settings.prompts * settings.samples - len(ours)
    no_score = f"; {left_out} of them left out, where an answer has no score" if left_out else ""
    # One stream for all intervals: the same run gives the same file.
    stream = np.random.default_rng([settings.seed, *b"intervals"])
    our_first, their_first = (it if settings.samples == 1 else _first_answers(it) for it in (ours, theirs))
    after, before = ([episode.response for episode in rollout.episodes] for rollout in (our_first, their_first))
    rewarded = workplace.rewarded  # not where an agent imitates and nobody asked for a reward
    sums, other_sums = (evaluator.sums(texts.scores) if rewarded else {} for texts in (ours, theirs))
    replies, other_replies = evaluator.measured(ours, workplace.agent), evaluator.measured(theirs, other)
    score = _proxy(evaluator, our_first) if rewarded else None
    tones = tone_of(their_first), tone_of(our_first)
    criterion, drawn = Success.read(settings.success), workplace.evaluation_sampling
    passed = [compared(replies, other_replies, k, criterion) for k in dict.fromkeys(settings.pass_at)]
    return RunEvaluation(
        run=str(folder),
        update=run.update,
        agent=experiment.agent_label,
        reference=reference or "",
        prompts=count if left_out else asked.prompts,
        asked=f"{asked}{no_score}",
        measures=[
            measure
            for measure in _measures(evaluator, replies, other_replies)
            if rewarded or measure.name not in ("proxy", "objective", "part/none")
        ],
        win_rate={
            name: _win_rate(sums[name], other_sums[name], replies.prompts) for name in ("proxy", "gold") if name in sums
        },
        kl=_kl(ours, replies.kl_exact, k3=drawn is None or drawn.exact) if replies.kl_bound is None else {},
        kl_bound=replies.kl_bound,
        phrases=[change for change in phrase_changes(before, after) if change.p < 0.05],
        rates=[*_endings(evaluator, their_first, our_first), *tone_changes(*tones), *format_changes(before, after)],
        clusters=clusters(before, after),
        paid=[] if score is None else paid_phrases(before, after, score, stream=stream),
        samples=settings.samples,
        decoding="" if drawn is None else str(drawn),
        pass_at=[it for it in passed if it is not None],
        success=str(criterion) if settings.pass_at else "",
    )


def _in_pairs(ours: Rollout, theirs: Rollout) -> tuple[Rollout, Rollout]:
    """The answers to prompts where both have a score: a reward may abstain. Raises RewardError where there are none."""
    places: list[dict[tuple[str, int], int]] = []
    for rollout in (ours, theirs):
        times: Counter[str] = Counter()  # a prompt may have been asked more than once
        places.append({})
        for place, episode in enumerate(rollout.episodes):
            times[episode.prompt.id] += 1
            places[-1][episode.prompt.id, times[episode.prompt.id]] = place
    both = [key for key in places[0] if key in places[1]]
    if not both:
        raise RewardError("answers are compared prompt by prompt, and there is no prompt on which both have a score")
    return ours.select([places[0][key] for key in both]), theirs.select([places[1][key] for key in both])


def _first_answers(rollout: Rollout) -> Rollout:
    places: dict[str, int] = {}
    for place, episode in enumerate(rollout.episodes):
        places.setdefault(episode.prompt.id, place)
    return rollout.select(list(places.values()))


class ReferenceWriter:
    """The reference as an agent."""

    trains = False

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    def begin(self) -> ResetOptions:
        return {}

    def act(self, observation: Observation, /) -> Decision:
        return Decision.of(self.setup.reference.write(observation, self.setup.action_length))

    def update(self, _rollout: Rollout, /) -> Metrics:
        return {}

    def state_dict(self) -> State:
        return {"sampling": self.setup.reference.sampling_state()}

    def load_state_dict(self, state: State, /) -> None:
        self.setup.reference.load_sampling_state(state["sampling"])


# ---------------------------------------------------------------- numbers


def _measures(evaluator: Evaluator, ours: Measured, theirs: Measured) -> Iterator[Measure]:
    per_prompt = [_per_prompt(replies) for replies in (ours, theirs)]
    passing = {f"pass_at_{k}" for k in evaluator.workplace.experiment.evaluation.pass_at}
    for name, values in per_prompt[0].items():
        if name not in per_prompt[1]:
            continue
        others = per_prompt[1][name]
        difference = _mean_by_prompt(values - others, ours.prompts)
        yield Measure(name, float(values.mean()), float(others.mean()), difference)
    if (
        ours.kl_bound is None and not ours.resampled
    ):  # replies picked from several do not tell the entropy of the policy
        yield Measure("entropy, nats a token", entropy(ours.rollout), entropy(theirs.rollout))
    together = [_together(replies.rollout) for replies in (ours, theirs)]
    for name, value in together[0].items():
        yield Measure(name, value, together[1][name])
    for metric in evaluator.metrics[len(METRICS) :]:
        if metric.name in passing:
            continue  # these are compared prompt by prompt
        numbers, other_numbers = metric(ours), metric(theirs)
        for name in numbers.keys() & other_numbers.keys() & {metric.name}:
            yield Measure(name, numbers[name], other_numbers[name])


def _per_prompt(replies: Measured) -> dict[str, Float]:
    """float64[N] each: what one text has a value of."""
    rollout = replies.rollout
    # Replies are compared pair by pair: a part that says nothing about some of them is left out.
    parts = [name for name in rollout.parts if name != "divergence"]
    return {
        **replies.rewards,
        **{name: rollout.part(name).numpy() for name in parts if not bool(rollout.part(name).isnan().any())},
        "length": rollout.actions.sum(dim=1).double().numpy(),
        "repetition_2": np.array([repetition(episode.response, 2) for episode in rollout.episodes]),
        **({} if (tone := tone_of(rollout)) is None else {"sentiment": tone}),
    }


def tone_of(rollout: Rollout) -> Float | None:
    """float64[N] in [-1, 1]: how positive each text sounds, by the reward plugin `sentiment`; None without it."""
    try:
        judge: Reward = plugins.host().load("reward", "sentiment")()
    except (MissingExtra, UnknownName):
        return None
    return np.asarray(judge(rollout.episodes), dtype=np.float64)


def _together(rollout: Rollout) -> dict[str, float]:
    texts = [episode.response for episode in rollout.episodes]
    return {
        "perplexity under the reference": perplexity_under_reference(rollout),
        **{f"distinct_{n}": distinct_n(texts, n) for n in (1, 2, 3)},
        "distinct replies": len(set(texts)) / len(texts),
        "self_bleu": self_bleu(texts),
    }


def perplexity_under_reference(rollout: Rollout) -> float:
    """exp(- mean over the agent's tokens of log p_reference), of a rollout of `Evaluator.texts`; end tokens count."""
    stated = rollout.logprobs[rollout.actions].sum()
    divergence = sum(divergences(rollout).tolist())
    return math.exp(-(float(stated) - divergence) / max(int(rollout.actions.sum()), 1))


def _kl(rollout: Rollout, exact: float | None, *, k3: bool = True) -> dict[str, Estimate]:
    """k1 and k3 of Schulman 2020 (see `learning.functional.kl_estimate`), summed over each text.

    Of a token drawn from p, both have the mean KL(p || q) of the state it was drawn in; k3 only if p can draw whatever
    q can.
    """
    prompts = [episode.prompt.text for episode in rollout.episodes]
    k1 = log_ratios(rollout)
    sums = {"k1": k1, **({"k3": [np.expm1(-values) + values for values in k1]} if k3 else {})}
    found = {
        name: _mean_by_prompt(np.array([values.sum() for values in of_texts]), prompts)
        for name, of_texts in sums.items()
    }
    return found if exact is None else {**found, "exact": Estimate(exact, None, None)}


def _mean_by_prompt(values: Float, prompts: Sequence[str]) -> Estimate:
    """The mean of float64[N], one value for each of `prompts`, and its interval over different prompts."""
    return replace(mean_of_seeds(by_unit(values, prompts), paired=True), value=float(values.mean()))


def _win_rate(ours: Float, theirs: Float, prompts: Sequence[str]) -> Estimate:
    shares = by_unit(np.asarray((ours > theirs) + 0.5 * (ours == theirs), dtype=np.float64), prompts)
    share = float(shares.mean())
    return Estimate(share, *wilson_interval(share, len(shares)))


def _endings(evaluator: Evaluator, before: Rollout, after: Rollout) -> Iterator[RateChange]:
    task = held_out(evaluator.workplace.env.task)
    cut = [[episode.finish_reason == "length" for episode in rollout.episodes] for rollout in (before, after)]
    off = [[not well_formed(task, episode) for episode in rollout.episodes] for rollout in (before, after)]
    yield rate_change("cut at the limit", *cut)
    yield rate_change("without the form asked for", *off)


def _proxy(evaluator: Evaluator, rollout: Rollout) -> TextScores | None:
    """The proxy reward of other texts in the place of the rollout's; None without one, or in conversations."""
    mix, tokenizer = evaluator.workplace.env.reward, evaluator.workplace.setup.tokenizer
    if not mix.judges or any(episode.turns for episode in rollout.episodes):
        return None
    parts = {name: (mix.weights[name], mix.parts[name]) for name in mix.judges}
    judge = RewardMix(parts, of_tasks={name: of for name, of in mix.of_tasks.items() if name in parts})

    def score(pairs: Sequence[tuple[int, str]]) -> Float:
        episodes = [_saying(rollout.episodes[i], text, tokenizer) for i, text in pairs]
        return np.array([each.total for each in judge.score(episodes)])

    return score


def _saying(episode: Episode, text: str, tokenizer: Tokenizer) -> Episode:
    """The episode as if its response were `text`. The unchanged text too is encoded anew, so that both are alike."""
    end = [tokenizer.end_id] if episode.finish_reason == "stop" else []
    ids = np.array([*tokenizer.encode(text), *end], dtype=np.int64)
    return replace(episode, response=text, response_ids=ids, actions=np.ones(len(ids), dtype=np.bool_), logprobs=None)


# ---------------------------------------------------------------- the terminal


def evaluation_tables(found: RunEvaluation, rows: int = 8) -> Group:
    """The evaluation as tables: numbers first, then how behaviour changed, `rows` lines of each kind."""
    from rich.console import Group

    return Group(_numbers(found), *(table for table in _behaviour(found, rows) if table.row_count))


def _numbers(found: RunEvaluation) -> Table:
    written = f", written {found.decoding}" if found.decoding else ""
    title = f"{found.agent} after {found.update} updates, on {found.asked}{written}"
    if found.reference:
        title += f"; the reference is {_shown(found.reference)}"
    table = _table(title, "", "agent", "reference", "difference [95 %]")
    for passed in found.pass_at:
        numbers = (_interval(it, ".3f") for it in (passed.agent, passed.reference))
        table.add_row(f"pass@{passed.k}, {found.success}", *numbers, _interval(passed.difference, "+.3f"))
    for name, rate in found.win_rate.items():
        table.add_row(f"win rate, {name}", _interval(rate, ".3f"), "0.500", "")
    for name, kl in found.kl.items():
        table.add_row(f"KL to the reference, {name}", _interval(kl), "" if found.decoding else "0", "nats per response")
    if found.kl_bound is not None:
        table.add_row("KL to the reference, at most", f"{found.kl_bound:.4g}", "0", "nats per response")
    for it in found.measures:
        change = "" if it.difference is None else _interval(it.difference)
        table.add_row(it.name, f"{it.agent:.4g}", f"{it.reference:.4g}", change)
    for share in found.rates:
        if share.before or share.after:
            change = _interval(share.difference, "+.3f")
            table.add_row(f"share, {share.name}", f"{share.after:.3f}", f"{share.before:.3f}", change)
    if found.decoding:
        table.caption = "Drawn otherwise than in training: rewards and KL are those of texts drawn so."
    elif _disagree(found.kl):
        table.caption = (
            "k3 is below k1: the agent never writes what the reference does write at times (such as the end), and no "
            "sample shows k3 that. Believe k1."
        )
    return table


def _behaviour(found: RunEvaluation, rows: int) -> Iterator[Table]:
    gained, lost = ([it for it in found.phrases if (it.z > 0) is up] for up in (True, False))
    for title, changes in (("Phrases gained", gained[:rows]), ("Phrases lost", lost[: -rows - 1 : -1])):
        table = _table(f"{title} (p < 0.05 after Holm)", "phrase", "before", "after", "z")
        for it in changes:
            table.add_row(_shown(it.phrase), f"{it.before:.1%}", f"{it.after:.1%}", f"{it.z:+.1f}")
        yield table
    table = _table(
        "What the reward pays for", "phrase", "pay a text [95 %]", "usual", "before", "after", "times", "brought in", ""
    )
    for paid in [it for it in found.paid if it.exploited or it.pay.value > 0][:rows]:
        table.add_row(
            _shown(paid.phrase),
            _interval(paid.pay, "+.3g"),
            f"{paid.usual:+.3g}",
            f"{paid.before:.1%}",
            f"{paid.after:.1%}",
            f"{paid.times:.1f}",
            f"{paid.brought_in:+.3g}",
            "exploited" if paid.exploited else "",
        )
    yield table
    table = _table("Kinds of answers", "typical", "before", "after")
    for kind in found.clusters[:rows]:
        table.add_row(_shown(kind.typical), f"{kind.before:.1%}", f"{kind.after:.1%}")
    yield table


def _disagree(kl: Mapping[str, Estimate]) -> bool:
    k1, k3 = kl.get("k1"), kl.get("k3")
    return bool(k1 and k3 and k1.low is not None and k3.high is not None and k3.high < k1.low)


def _table(title: str, first: str, *others: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _shown(text: str) -> str:
    """Model text for one cell: a line without escape sequences, not read as markup, and not too long."""
    from rich.markup import escape

    line = for_terminal(text)
    return escape(line if len(line) <= 60 else f"{line[:57]}...")


def _interval(it: Estimate, form: str = ".4g") -> str:
    if it.low is None or it.high is None:
        return format(it.value, form)
    return f"{it.value:{form}} \\[{it.low:{form}}, {it.high:{form}}]"
