"""A reward model from people's votes: a store or a file of judgements in, a folder that `[rewards]` takes out.

    fitted = fit_to_votes("prefs.sqlite", "runs/taste", RewardModelSettings(base="rlhf-env/chitchat"))
    fitted.scorer.score_responses(...)

The folder has the reward model itself, `scorecard.json` and `scorecard.html` (how good it is on prompts that were held
out), `settings.toml` (every setting, as `--config` takes it) and `record.json` (counts, annotators, versions).
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from rlhf_env.errors import DataError, MissingExtra, Problem
from rlhf_env.feedback.asking.agreement import agreement_of
from rlhf_env.feedback.asking.weighing import Learnable, Reliability, WeighedVotes, weigh_votes
from rlhf_env.feedback.judgements import Judgement, Preference
from rlhf_env.feedback.kinds import Comparison, preferences_of
from rlhf_env.feedback.reward_models.calibration import Accuracy
from rlhf_env.feedback.reward_models.card import Scorecard
from rlhf_env.feedback.reward_models.ensemble import RewardEnsemble
from rlhf_env.feedback.reward_models.fairness import Counterfactual, Gap, fairness_gaps
from rlhf_env.feedback.reward_models.fitting import fit_ensemble, fit_reward_model
from rlhf_env.feedback.reward_models.model import RewardModel
from rlhf_env.feedback.reward_models.scorecard import clustered_accuracy, make_scorecard, mean_ratings
from rlhf_env.feedback.reward_models.scorer import pair_log_odds
from rlhf_env.lab.progress import stage
from rlhf_env.lab.report.scorecard_page import write_page
from rlhf_env.learning.run_record import versions
from rlhf_env.pipeline.material import WEIGHT_TYPES, Material, prepare_material, sides_of
from rlhf_env.pipeline.reward_settings import RewardModelSettings
from rlhf_env.shown_text import for_terminal, near
from rlhf_env.types import JsonObject
from rlhf_env.whole_files import folder_written, write_json, write_whole


@dataclass(frozen=True)
class FittedRewardModel:
    """A reward model that was fitted to votes, and what is known of it."""

    folder: Path
    scorer: RewardModel | RewardEnsemble
    scorecard: Scorecard | None
    """On the prompts that were held out; None where nothing was, or nobody preferred one of two answers to them."""
    record: JsonObject
    """What `record.json` holds."""

    @property
    def rewards_table(self) -> str:
        """The lines of an experiment file that use it, the path relative to the working directory."""
        return (
            f"[rewards.bradley_terry]\nweight = 1.0\nmodel = {json.dumps(str(near(self.folder)), ensure_ascii=False)}"
        )


def fit_to_votes(
    source: str | Path,
    out: str | Path,
    wanted: RewardModelSettings,
    *,
    console: Console | None = None,
    overwrite: bool = False,
) -> FittedRewardModel:
    """Fit a reward model to the judgements of a preference store, or of a file that `preferences import` reads.

    `out` appears whole at the end, or not at all; with `overwrite` in place of an older reward model. Deterministic
    given `wanted.seed`. Raises ConfigError with all that is wrong with what was given, before anything is fitted.
    """
    console = console or Console(quiet=True)
    source, out = Path(source), Path(out)
    material = prepare_material(source, out, wanted, overwrite=overwrite)
    _say_what_is_learned(console, source, material)
    scorer = _fit(material, wanted, console)
    measured = _measure(scorer, material, wanted, console)
    card = measured.card
    record = _record(source, material, scorer, measured)
    with folder_written(out, replace=overwrite) as folder:
        scorer.save(folder)  # first: it writes a whole folder, in place of an empty one
        write_whole(folder / "settings.toml", wanted.to_toml(relative_to=out))
        write_json(folder / "record.json", record)
        page = None if card is None else _write_scorecard(card, folder, name=out.name)
    fitted = FittedRewardModel(out, scorer, card, record)
    _say_how_good_it_is(console, fitted, material, measured, wanted)
    if page:
        console.print(f"No page: {page}", markup=False, highlight=False, soft_wrap=True)
    return fitted


# ---------------------------------------------------------------- the fit, and how good it is


def _fit(material: Material, wanted: RewardModelSettings, console: Console) -> RewardModel | RewardEnsemble:
    config = wanted.reward_model
    if wanted.loss == "plackett-luce":
        config = replace(config, ranking_loss="plackett-luce")
    elif wanted.loss == "ranking-pairs":
        config = replace(config, ranking_loss="pairs")
    counterfactuals: Sequence[Counterfactual] = ()
    if material.groups is not None:
        counterfactuals = material.groups.counterfactuals(dict.fromkeys(sides_of(material.learnable)))
        if not counterfactuals:
            raise DataError(Problem("groups: no text names any of the groups: nothing to be fair about", ("groups",)))
    generator = torch.Generator().manual_seed(wanted.seed)
    with stage(console, f"Fitting to {_spoken_count(material.learnable)}") as tell:

        def progress(done: int, steps: int, loss: float) -> None:
            tell(done / steps, f"loss {loss:.3f}")

        if wanted.models > 1:
            return fit_ensemble(
                material.learnable,
                material.trunk,
                config,
                models=wanted.models,
                generator=generator,
                counterfactuals=counterfactuals,
                dtype=WEIGHT_TYPES[wanted.dtype],
                device=wanted.device,
                progress=progress,
            )
        return fit_reward_model(
            material.learnable,
            material.trunk,
            config,
            generator=generator,
            counterfactuals=counterfactuals,
            dtype=WEIGHT_TYPES[wanted.dtype],
            device=wanted.device,
            progress=progress,
        )[0]


@dataclass(frozen=True)
class _Measured:
    """How good the reward model is on the prompts that were held out."""

    card: Scorecard | None
    weighed: Accuracy | None
    """The accuracy on what the votes together say; None where that is no other than each vote."""
    gaps: Sequence[Gap]


def _measure(
    scorer: RewardModel | RewardEnsemble, material: Material, wanted: RewardModelSettings, console: Console
) -> _Measured:
    rng = np.random.default_rng(wanted.seed)
    unseen = list(preferences_of(material.unseen))
    card = None
    if unseen:
        with console.status("Writing the scorecard"):
            gold = mean_ratings(material.unseen, criterion=material.selected.criterion)
            card = make_scorecard(scorer, unseen, gold=gold, gold_is="people's ratings", rng=rng)
    gaps: list[Gap] = []
    if material.groups is not None:
        with contextlib.suppress(DataError):  # no held-out text names a group
            gaps = fairness_gaps(scorer, material.groups, sides_of(unseen or material.learnable), rng)
    return _Measured(card, _accuracy_on_weighed(scorer, material, wanted), gaps)


def _accuracy_on_weighed(
    scorer: RewardModel | RewardEnsemble, material: Material, wanted: RewardModelSettings
) -> Accuracy | None:
    """On what the votes on held-out pairs say together. Who is right how often is known from all votes: nothing that
    the model was fitted to came from those on held-out prompts."""
    unseen = list(preferences_of(material.unseen))
    if wanted.votes == "each" or not weigh_votes(unseen, "majority").shared:
        return None
    every = preferences_of(material.selected.judgements)
    prompts = {pair.prompt.text for pair in unseen}
    weighed = [
        one
        for one in weigh_votes(every, wanted.votes).learnable
        if isinstance(one, Preference) and one.prompt.text in prompts
    ]
    likelier: dict[object, Preference] = {}
    for pair in weighed:  # of both orders of a pair, the one that weighs more
        key = (pair.prompt.text, frozenset((pair.chosen.text, pair.rejected.text)))
        likelier[key] = max(likelier.get(key, pair), pair, key=lambda one: one.weight)
    if not likelier:
        return None
    right = pair_log_odds(scorer, list(likelier.values()))
    return clustered_accuracy((right > 0) + 0.5 * (right == 0), [pair.prompt.text for pair in likelier.values()])


def _write_scorecard(card: Scorecard, folder: Path, *, name: str) -> str:
    """Why there is no page; "" where there is one."""
    card.save(folder / "scorecard.json")
    try:
        write_page(card, folder / "scorecard.html", name=name)
    except MissingExtra as missing:  # pictures are an extra; the numbers are not
        return str(missing)
    return ""


def _record(source: Path, material: Material, scorer: RewardModel | RewardEnsemble, measured: _Measured) -> JsonObject:
    models = scorer.models if isinstance(scorer, RewardEnsemble) else [scorer]
    records = [model.record for model in models if isinstance(model, RewardModel) and model.record is not None]
    return {
        "source": str(near(source.absolute())),
        "criterion": material.selected.criterion,
        "judgements": len(material.selected.judgements),
        "fitted_to": _units(material.learnable),
        "prompts": len({one.prompt.text for one in material.learnable}),
        "held_out_prompts": len({one.prompt.text for one in material.unseen}),
        "votes": material.votes.votes,
        "judged_by_several": material.votes.shared,
        "left_out": dict(material.left_out),
        "annotators": [{**asdict(one), "against": one.against} for one in material.votes.reliabilities],
        "importance": None
        if material.weights is None
        else {"effective_sample_size": material.weights.effective_sample_size, "capped": material.weights.capped},
        "accuracy": None if measured.card is None else asdict(measured.card.accuracy),
        "accuracy_on_weighed_votes": None if measured.weighed is None else asdict(measured.weighed),
        "fairness_gaps": [asdict(gap) for gap in measured.gaps],
        "epochs": [[asdict(epoch) for epoch in record.epochs] for record in records],
        "versions": versions(),
    }


# ---------------------------------------------------------------- what is said


def _teller(console: Console) -> Callable[[str], None]:
    return lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)


def _say_what_is_learned(console: Console, source: Path, material: Material) -> None:
    say = _teller(console)
    votes, selected = material.votes, material.selected
    prompts, unseen = (len({one.prompt.text for one in some}) for some in (material.learnable, material.unseen))
    people = len(votes.reliabilities)
    say(
        f"{source}: {_count(len(selected.judgements), 'judgement')} by the criterion {selected.criterion!r}"
        f"{f', of {people:,} annotators' if people > 1 else ''}; {_count(prompts, 'prompt')} to fit to, "
        f"{unseen:,} held out"
    )
    for why, count in material.left_out.most_common():
        say(f"  left out: {for_terminal(why)}: {count:,}")
    for what in material.selected.assumed:
        say(f"  assumed: {for_terminal(what)}")
    if material.weights is not None:
        weights = material.weights
        say(
            f"  importance weights: effective sample size {weights.effective_sample_size:.1f} of "
            f"{len(weights.values):,} pairs; {weights.capped:,} weights cut at the cap"
        )
    _say_who_is_reliable(say, votes)


def _say_who_is_reliable(say: Callable[[str], None], votes: WeighedVotes, most: int = 12) -> None:
    known = [one for one in votes.reliabilities if one.agreed is not None]
    if not votes.shared:
        return
    estimated = "; by Dawid-Skene, how often they are right" if any(one.accuracy is not None for one in known) else ""
    say(f"  judged by several people: {votes.shared:,}. Who agreed with the majority of the others{estimated}:")
    for one in known[:most]:
        accuracy = "" if one.accuracy is None else f"; {one.accuracy:.2f}"
        say(f"    {for_terminal(one.annotator)}: {_share_of(one)} of {one.compared:,}{accuracy}")
    if len(known) > most:
        say(f"    and {len(known) - most} more, who agreed more often: record.json has all")
    if 0 < len(known) < 3:
        say("    Of two people nobody can tell who is right where they differ: ask a third.")
    if against := [one.annotator for one in known if one.against]:
        say(
            f"  Against the rest: {for_terminal(', '.join(against))}: their votes mean the opposite, or they misread "
            "the question."
        )


def _share_of(one: Reliability) -> str:
    return "-" if one.agreed is None else f"{one.agreed:.2f} [{one.low:.2f}, {one.high:.2f}]"


def _say_how_good_it_is(
    console: Console, fitted: FittedRewardModel, material: Material, measured: _Measured, wanted: RewardModelSettings
) -> None:
    say = _teller(console)
    card = fitted.scorecard
    if card is None:
        why = (
            "nothing was held out"
            if not material.unseen
            else "nobody preferred one of two answers to a held-out prompt"
        )
        say(f"Accuracy: unknown: {why}.")
    else:
        accuracy = card.accuracy
        say(
            f"Accuracy on held-out prompts: {accuracy.value:.3f} (95 % interval {accuracy.low:.3f} to "
            f"{accuracy.high:.3f}; {_count(card.pairs, 'vote')} on {_count(card.prompts, 'prompt')}; 0.5 is a coin)"
        )
        if (weighed := measured.weighed) is not None:
            say(
                f"  on what the votes say together ({wanted.votes}): {weighed.value:.3f} ({weighed.low:.3f} to "
                f"{weighed.high:.3f}; {_count(weighed.pairs, 'pair')})"
            )
        say(f"The annotators' own ceiling, {_ceiling(card, material.unseen)}")
        say(
            f"Calibration error: {card.calibration_error:.3f} (by chance {card.calibration_error_by_chance:.3f} if the "
            "stated odds were right)"
        )
    for gap in measured.gaps:
        low, high = gap.absolute_interval
        say(
            f"Fairness, {gap.first} and {gap.second}: scores differ by {gap.absolute:.3f} log-odds "
            f"[{low:.3f}, {high:.3f}] on {_count(gap.texts, 'text')}"
        )
    folder = near(fitted.folder)
    more = "" if card is None else f"; scorecard: {folder / 'scorecard.html'}"
    say(f"Reward model: {folder}{more}")
    say(f"\nTo train on it, in an experiment file:\n\n{fitted.rewards_table}")
    if fitted.scorer.members > 1:
        say('\n([rewards.ensemble] in its place takes what the members agree on: combination = "uncertainty")')


def _ceiling(card: Scorecard, unseen: Sequence[Judgement]) -> str:
    """How far annotators agree with each other on the held-out prompts, in words."""
    if card.agreement is None:
        return "how often they agree with each other: unknown, since no held-out pair was judged by two people"
    agreement = card.agreement
    low, high = card.intervals["people"]
    pairs = [Comparison.of(pair) for pair in preferences_of(unseen)]
    found = agreement_of(pairs, np.random.default_rng(0))
    alpha = (
        "" if not found or math.isnan(found[0].alpha.value) else f"; Krippendorff's alpha {found[0].alpha.value:.2f}"
    )
    return (
        f"one vote against the majority of the others: {agreement.people:.3f} [{low:.3f}, {high:.3f}] on "
        f"{_count(agreement.pairs, 'pair')}; the model against the same: {agreement.model:.3f}{alpha}"
    )


def _spoken_count(learnable: Sequence[Learnable]) -> str:
    return _count(_units(learnable), "pair" if all(isinstance(one, Preference) for one in learnable) else "judgement")


def _units(learnable: Sequence[Learnable]) -> int:
    """How many judgements they are: both orders of a pair are one, and so are all pairs of a ranking."""
    return len({(isinstance(one, Preference) and one.group) or i for i, one in enumerate(learnable)})


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
