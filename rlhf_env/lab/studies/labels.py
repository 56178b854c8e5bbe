"""Which pair next? How many labels a reward model needs, by how the pairs to be labelled are chosen.

Every seed draws a pool of pairs and one verdict on each. The strategies share both, and the first batch; from then on
each asks, batch by batch, for the pairs that `rlhf_env.feedback.asking.selection` puts first. Held-out pairs are of
other prompts and the same for all. Accuracy is agreement with gold there: the annotator's noise is in the training
pairs, not in the measure.

What learns is the head of a reward model, on features of a trunk that stays as it is:

    P(first preferred) = sigmoid(w . (f(first) - f(second))),    w by maximum likelihood with a ridge penalty

which has one optimum, found in milliseconds, so that no optimiser's luck enters the comparison. A trunk that learns
too reaches more with many labels; whether the strategies compare alike there is not shown here.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Lt, MinLen
from rich.table import Table
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from rlhf_env import plugins
from rlhf_env.errors import ConfigError, DataError, Problem
from rlhf_env.feedback.asking.selection import disagreement_priority, random_priority, uncertainty_priority
from rlhf_env.feedback.reward_models.calibration import win_probability
from rlhf_env.lab.statistics import Estimate, PairedComparison, compare, estimate, mean
from rlhf_env.policies.precision import as_float64
from rlhf_env.settings import AtLeastOne, Positive, fault, settings
from rlhf_env.types import Episode, Float
from rlhf_env.whole_files import write_json, write_whole

World = Literal["chitchat", "made-up"]
TellLabels = Callable[[float, str], None]
"""Called with the share of the work done and a short note."""

STRATEGIES = ("random", "uncertainty", "disagreement")


@settings
class LabelStudy:
    """What is compared.

    The annotator judges as Bradley and Terry say. Each seed draws its own pool of pairs, and buys the labels of some of
    them in rounds, the first at random.
    """

    world: World = "chitchat"
    """"chitchat" has the shipped base model answer prompts, every two answers to a prompt being a pair, and the gold
    reward `upbeat`; "made-up" draws as many pairs of random features with a linear gold."""
    prompts: AtLeastOne = 1800
    """Prompts that are answered."""
    held_out: AtLeastOne = 500
    """How many of them are measured on."""
    temperatures: Annotated[tuple[float, ...], MinLen(2)] = (0.7, 1.0, 1.4)
    """Each prompt is answered once at each of these."""
    max_new_tokens: AtLeastOne = 28
    """The longest answer, in tokens."""
    pool: AtLeastOne = 3000
    """Pairs that a seed draws from those not held out."""
    batch: AtLeastOne = 100
    """Labels that are bought in a round."""
    rounds: AtLeastOne = 15
    """How many rounds there are."""
    seeds: AtLeastOne = 12
    """How many times all of it is done."""
    temperature: Positive = 0.5
    """The annotator's noise, in units of gold."""
    members: Annotated[int, Ge(2)] = 8
    """Members of an ensemble, each fitted to its own bootstrap of the labels: two or more can disagree."""
    ridge: Positive = 100.0
    """This times |w|^2 / 2 is the penalty, for features of mean 0 and standard deviation 1."""
    targets: Annotated[tuple[Annotated[float, Gt(0.5), Lt(1)], ...], MinLen(1)] = (0.70, 0.72, 0.74)
    """The accuracies to be reached."""
    seed: int = 0
    """What everything is drawn from."""

    def problems(self) -> Iterator[Problem]:
        if self.held_out >= self.prompts:
            yield fault("held_out", f"must leave prompts to learn from: {self.held_out} of {self.prompts} are held out")
        if self.batch * self.rounds > self.pool:
            yield fault("pool", f"must be at least the {self.batch * self.rounds} labels bought, got {self.pool}")

    @property
    def labels(self) -> tuple[int, ...]:
        """How many labels have been bought after each round."""
        return tuple(self.batch * done for done in range(1, self.rounds + 1))


QUICK = LabelStudy(world="made-up", pool=1200, batch=40, rounds=12, ridge=1.0, targets=(0.80, 0.85, 0.90))
"""Seconds instead of minutes, and no language model."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Pairs to learn from and held-out ones: features of the first less the second float64[P, D], gold likewise [P]."""

    features: Float
    gold: Float
    unseen_features: Float
    unseen_gold: Float


# ---------------------------------------------------------------- pairs


def make_pool(study: LabelStudy, tell: TellLabels = lambda done, note: None) -> Pool:
    """The pairs of a study. Raises MissingExtra where the world "chitchat" lacks its corpus or lexicon."""
    features, gold = _made_up(study) if study.world == "made-up" else _chitchat(study, tell)
    seen = study.prompts - study.held_out
    known = features[:, :seen].reshape(-1, features.shape[2])
    features = (features - known.mean(axis=0)) / np.where(known.std(axis=0) > 0, known.std(axis=0), 1.0)
    couples = list(itertools.combinations(range(len(features)), 2))

    def paired(rows: slice) -> tuple[Float, Float]:
        worth = np.concatenate([gold[a, rows] - gold[b, rows] for a, b in couples])
        apart = np.concatenate([features[a, rows] - features[b, rows] for a, b in couples])
        differ = worth != 0  # equals, and answers that say the same, have no right verdict
        return apart[differ], worth[differ]

    (apart, worth), (unseen, unseen_worth) = paired(slice(seen)), paired(slice(seen, None))
    if len(worth) < study.pool or not len(unseen_worth):
        raise DataError(
            f"{len(worth)} pairs of unequal gold to learn from and {len(unseen_worth)} to measure on: the study needs "
            f"{study.pool} and 1: raise prompts or lower pool"
        )
    return Pool(apart, worth, unseen, unseen_worth)


def _made_up(study: LabelStudy) -> tuple[Float, Float]:
    """float64[answers, prompts, D] and [answers, prompts]: few features vary much, many a little, all of them count."""
    rng = np.random.default_rng([study.seed, 1])
    spread = np.geomspace(1.0, 0.1, 30)
    features = spread * rng.standard_normal((len(study.temperatures), study.prompts, len(spread)))
    return features, features @ (rng.choice([-1.0, 1.0], size=len(spread)) / np.linalg.norm(spread))


def _chitchat(study: LabelStudy, tell: TellLabels) -> tuple[Float, Float]:
    """As `_made_up`, of answers of the shipped base model to training prompts."""
    from rlhf_env.envs.tasks import load_task
    from rlhf_env.envs.tokenizers import load_tokenizer
    from rlhf_env.feedback.asking.collecting import sample_responses
    from rlhf_env.policies.language_model import LanguageModel

    name = "rlhf-env/chitchat"
    task, tokenizer, policy = load_task("chitchat"), load_tokenizer(name), LanguageModel.from_pretrained(name)
    policy.reseed(study.seed)
    prompts = [task.prompt(index, {}) for index in range(study.prompts)]
    episodes: list[Episode] = []
    total = len(prompts) * len(study.temperatures)
    limit = study.max_new_tokens
    for episode, _ in sample_responses(
        policy, tokenizer, prompts, study.temperatures, name="base", max_new_tokens=limit
    ):
        episodes.append(episode)
        if len(episodes) % 64 == 0:
            tell(0.6 * len(episodes) / total, f"{len(episodes):,} answers")
    features = []
    for start in range(0, total, 64):
        features.append(trunk_features(policy, episodes[start : start + 64]))
        tell(0.6 + 0.2 * start / total, "what the trunk makes of them")
    gold = plugins.build_plugin("reward", "upbeat", {})
    worth = []
    for start in range(0, total, 64):
        worth.append(gold(episodes[start : start + 64]))
        tell(0.8 + 0.2 * start / total, "what they are worth")
    shape = (len(study.temperatures), len(prompts))
    return np.concatenate(features).reshape(*shape, -1), np.concatenate(worth).reshape(shape)


def trunk_features(policy: Any, episodes: Sequence[Episode]) -> Float:
    """float64[B, 2 H + 6] from one reading of each text by a `LanguageModel`.

    The state after the last token; the mean of the states after the reply's tokens; mean and least log-probability of a
    token of the reply, and its length, each also squared (too probable is as bad as too improbable).
    """
    import torch
    import torch.nn.functional as F

    from rlhf_env.policies.language_model import padded

    tokens, mask, where = (F.pad(it, (0, 1)) for it in padded(episodes, policy.pad_id))
    with torch.no_grad():
        seen = policy.evaluate(tokens, mask, where)
    hidden, logprobs = as_float64(seen.hidden).numpy(), as_float64(seen.logprobs).numpy()
    rows = []
    for row, episode in enumerate(episodes):
        start, end = len(episode.prompt_ids), len(episode.ids)
        said = logprobs[row, start:end]
        numbers = np.array([said.mean(), said.min(), float(len(said))])
        # The state in which a token is chosen is the one after the token before it.
        after = hidden[row, start + 1 : end + 1]
        rows.append(np.concatenate([after[-1], after.mean(axis=0), numbers, numbers**2]))
    return np.array(rows)


# ---------------------------------------------------------------- learning


def fit_head(features: Float, first_wins: Float, *, ridge: float, weight: Float | None = None) -> Float:
    """float64[D]: the w that minimises  sum_i weight_i (-log P(verdict_i)) + ridge / 2 |w|^2, by Newton's method.

    `features` float64[N, D] of the first less the second response, `first_wins` float64[N] 1 or 0. Steps are halved
    until they help, so that it arrives from anywhere.
    """
    weight = np.ones(len(features)) if weight is None else weight
    sign = 2.0 * first_wins - 1.0

    def cost(head: Float) -> float:
        return float(weight @ np.logaddexp(0.0, -sign * (features @ head)) + ridge / 2 * head @ head)

    head = np.zeros(features.shape[1])
    for _ in range(50):
        p = win_probability(features @ head)
        slope = features.T @ (weight * (p - first_wins)) + ridge * head
        curvature = (features * (weight * p * (1 - p))[:, None]).T @ features + ridge * np.eye(len(head))
        step = np.linalg.solve(curvature, slope)
        if slope @ step < 1e-16:  # twice what is left to gain
            break
        size = 1.0
        while size > 1e-6 and cost(head - size * step) > cost(head):
            size /= 2
        head = head - size * step
    return head


def learning_curve(pool: Pool, strategy: str, study: LabelStudy, seed: int) -> Float:
    """float64[rounds]: accuracy on the held-out pairs after each round of one strategy."""
    shared = np.random.default_rng([study.seed, seed, 2])
    rows = shared.permutation(len(pool.gold))[: study.pool]
    features, gold = pool.features[rows], pool.gold[rows]
    first_wins = np.asarray(shared.random(len(rows)) < win_probability(gold / study.temperature), dtype=np.float64)
    rng = np.random.default_rng([study.seed, seed, 3])
    bought = np.arange(study.batch)  # the rows are in a random order already
    accuracy = []
    for _ in range(study.rounds):
        head = fit_head(features[bought], first_wins[bought], ridge=study.ridge)
        delta = pool.unseen_features @ head
        accuracy.append(np.mean((np.sign(delta) * np.sign(pool.unseen_gold) + 1) / 2))
        open_ = np.setdiff1d(np.arange(len(rows)), bought)
        if strategy == "random":
            priority = random_priority(len(open_), rng)
        elif strategy == "uncertainty":
            priority = uncertainty_priority(features[open_] @ head, np.zeros(len(open_)))
        elif strategy == "disagreement":
            members = [
                fit_head(
                    features[bought],
                    first_wins[bought],
                    ridge=study.ridge,
                    weight=rng.poisson(1.0, len(bought)).astype(np.float64),
                )
                for _ in range(study.members)
            ]
            scores = np.array(members) @ features[open_].T
            priority = disagreement_priority(scores, np.zeros_like(scores))
        else:
            raise ConfigError(f"strategy: {strategy!r} is none of {', '.join(STRATEGIES)}")
        bought = np.concatenate([bought, open_[np.argsort(-priority, kind="stable")[: study.batch]]])
    return np.array(accuracy)


# ---------------------------------------------------------------- what it comes to


def rising(values: Float) -> Float:
    """The non-decreasing sequence nearest to `values` in least squares (pool adjacent violators: Ayer et al. 1955).

    A curve measured with noise crosses a level several times; the risen one crosses it once.
    """
    blocks: list[tuple[float, int]] = []
    for value in values:
        blocks.append((float(value), 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (high, many), (low, few) = blocks[-2:]
            blocks[-2:] = [((high * many + low * few) / (many + few), many + few)]
    return np.array([value for value, count in blocks for _ in range(count)])


def labels_needed(labels: Sequence[int], accuracy: Float, target: float) -> float | None:
    """Where the risen curve first reaches `target`, between rounds in a straight line; None where it never does.

    A curve that begins above it needs at most the first batch, which is the answer.
    """
    curve = rising(accuracy)
    reached = np.flatnonzero(curve >= target)
    if not len(reached):
        return None
    at = int(reached[0])
    if at == 0:
        return float(labels[0])
    share = (target - curve[at - 1]) / (curve[at] - curve[at - 1])
    return float(labels[at - 1] + share * (labels[at] - labels[at - 1]))


@dataclass(frozen=True)
class Need:
    """What one strategy needs to reach one accuracy. A seed that never got there (`missed`) counts with all labels
    bought, which makes `labels` and what is saved lower bounds. `saved` is against random, in labels; None for it."""

    target: float
    labels: Estimate
    missed: int
    saved: PairedComparison | None


@dataclass(frozen=True)
class Found:
    """`curves`: accuracy after each round, with 95 % intervals over seeds. `needs`: per strategy, one a target.

    `overall`: labels saved against random, the mean over all targets. Its p-values are corrected for the strategies
    compared; those of single targets for the strategies at that target, and not for looking at several targets.
    `annotator`: how often the annotator's verdicts agree with gold on the pairs of the pool.
    """

    study: LabelStudy
    annotator: float
    curves: Mapping[str, tuple[Estimate, ...]]
    needs: Mapping[str, tuple[Need, ...]]
    overall: Mapping[str, PairedComparison]

    @property
    def sentence(self) -> str:
        """What may be said."""
        better = [name for name, it in self.overall.items() if it.verdict == "better"]
        worse = [name for name, it in self.overall.items() if it.verdict == "worse"]
        said = [f"{' and '.join(better)} needed fewer labels than random"] if better else []
        said += [f"{' and '.join(worse)} needed more labels than random"] if worse else []
        said += [] if better or worse else ["no strategy was shown to need fewer labels than random, or more"]
        return "; ".join(said)


def conclude_labels(study: LabelStudy, accuracies: Mapping[str, Float], annotator: float) -> Found:
    """From `accuracies` float64[S, rounds] of each strategy, in seeds that they share."""
    stream = np.random.default_rng([study.seed, 4])
    needed = {
        name: [[labels_needed(study.labels, curve, target) for target in study.targets] for curve in curves]
        for name, curves in accuracies.items()
    }
    most = float(study.labels[-1])
    counted = {
        name: np.array([[most if it is None else it for it in row] for row in rows]) for name, rows in needed.items()
    }
    saved = [
        compare({name: -values[:, place] for name, values in counted.items()}, "random", stream=stream)
        for place in range(len(study.targets))
    ]
    needs = {
        name: tuple(
            Need(
                target,
                estimate(mean, counted[name][:, place], stream=stream),
                sum(row[place] is None for row in needed[name]),
                saved[place].get(name),
            )
            for place, target in enumerate(study.targets)
        )
        for name in accuracies
    }
    curves = {
        name: tuple(estimate(mean, it, stream=stream, resamples=500) for it in values.T)  # to look at, not to test
        for name, values in accuracies.items()
    }
    overall = compare({name: -values for name, values in counted.items()}, "random", stream=stream)
    return Found(study, annotator, curves, needs, overall)


def run_label_study(study: LabelStudy, folder: Path, tell: TellLabels = lambda done, note: None) -> Found:
    """The study in `folder`: pool.safetensors, cells/ (a curve a file), labels.json.

    What is there is not done again. Raises ConfigError where the folder holds a study of other settings.
    """
    note, settings = folder / "study.json", json.loads(json.dumps(asdict(study)))
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != settings:
        raise ConfigError(f"{folder} holds a study of other settings (see {note}): choose another folder with --out")
    write_json(note, settings)
    share = 0.4 if study.world == "chitchat" else 0.0
    pool = _kept_pool(study, folder / "pool.safetensors", lambda done, said: tell(share * done, said))
    cells = [(seed, name) for seed in range(study.seeds) for name in STRATEGIES]
    curves: dict[str, list[Float]] = {name: [] for name in STRATEGIES}
    for done, (seed, name) in enumerate(cells):
        tell(share + (1 - share) * done / len(cells), f"seed {seed}, {name}")
        file = folder / "cells" / f"{name}--seed-{seed}.json"
        if not file.exists():
            write_json(file, {"labels": study.labels, "accuracy": learning_curve(pool, name, study, seed).tolist()})
        curves[name].append(np.array(json.loads(file.read_text(encoding="utf-8"))["accuracy"]))
    accuracies = {name: np.array(values) for name, values in curves.items()}
    annotator = float(win_probability(np.abs(pool.gold) / study.temperature).mean())
    found = conclude_labels(study, accuracies, annotator)
    write_json(folder / "labels.json", {**asdict(found), "labels": study.labels, "sentence": found.sentence})
    return found


def _kept_pool(study: LabelStudy, file: Path, tell: TellLabels) -> Pool:
    """The pool in `file`, made where there is none: all of it or nothing."""
    if not file.exists():
        pool = make_pool(study, tell)
        write_whole(file, save({name: np.ascontiguousarray(value) for name, value in vars(pool).items()}))
    try:
        return Pool(**load_file(file))
    except (SafetensorError, TypeError) as error:
        raise DataError(f"{file} is damaged ({error}): remove it to have it made again") from error


def label_table(found: Found) -> Table:
    """Labels needed by strategy and accuracy, with intervals, and what each saves against random."""
    study = found.study
    table = Table(
        title=f"Labels needed, {study.seeds} seeds; verdicts agree with gold in {100 * found.annotator:.0f} of 100",
        caption="Small print: 95 % intervals over seeds; saved: paired differences to random, seed by seed, and a "
        "verdict (sign flips, Holm). >: some seeds never got there and count with all labels. Accuracy: with gold, on "
        "held-out pairs.",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("Accuracy")
    for name in found.needs:
        table.add_column(name, justify="right")
    for place, target in enumerate(study.targets):
        cells = []
        for needs in found.needs.values():
            need = needs[place]
            bound = "> " if need.missed else ""
            cells.append(f"{bound}{_range(need.labels)}" + (f"\n{_saved(need.saved)}" if need.saved else ""))
        table.add_row(f"{target:.2f}", *cells, end_section=place == len(study.targets) - 1)
    table.add_row("all", *(_saved(found.overall[name]) if name in found.overall else "" for name in found.needs))
    last = {name: curve[-1] for name, curve in found.curves.items()}
    table.add_row(f"after {study.labels[-1]:,}", *(_range(it, ".3f") for it in last.values()))
    return table


def _range(it: Estimate, form: str = ",.0f") -> str:
    inside = "" if it.low is None or it.high is None else f" [{it.low:{form}}, {it.high:{form}}]"
    return f"{it.value:{form}}{inside}"


def _saved(it: PairedComparison) -> str:
    return f"saved {_range(it.difference)}\n{it.verdict}"
