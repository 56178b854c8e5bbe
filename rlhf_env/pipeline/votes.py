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
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from rlhf_env import assets
from rlhf_env.errors import ConfigError, DataError, MissingExtra, Problem
from rlhf_env.feedback.asking.agreement import agreement_of
from rlhf_env.feedback.asking.weighing import Learnable, Reliability, WeighedVotes, weigh_votes
from rlhf_env.feedback.judgements import Judgement, Preference
from rlhf_env.feedback.kinds import Comparison, preferences_of
from rlhf_env.feedback.reward_models.card import Scorecard
from rlhf_env.feedback.reward_models.config import RewardModelConfig
from rlhf_env.feedback.reward_models.ensemble import RewardEnsemble
from rlhf_env.feedback.reward_models.fairness import Counterfactual, Gap, Groups, PromptAndResponse, fairness_gaps
from rlhf_env.feedback.reward_models.fitting import fit_ensemble, fit_reward_model
from rlhf_env.feedback.reward_models.losses import ImportanceWeights, reweighted
from rlhf_env.feedback.reward_models.model import RewardModel
from rlhf_env.feedback.reward_models.scorecard import make_scorecard, mean_ratings
from rlhf_env.feedback.reward_models.scorer import LimitedScorer, require_readable
from rlhf_env.lab.progress import stage
from rlhf_env.lab.report.scorecard_page import write_page
from rlhf_env.learning.run_folder import versions
from rlhf_env.pipeline.judged import Judged, far_apart, held_out_of, learnable_of, read_judged
from rlhf_env.pipeline.reward_settings import RewardModelSettings
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.policy import Sampling
from rlhf_env.shown_text import near
from rlhf_env.types import JsonObject
from rlhf_env.whole_files import folder_written, write_json, write_whole

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_CARDS = ("reward_model.json", "reward_ensemble.json")


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
    ready = _prepare(source, out, wanted, overwrite=overwrite)
    _say_what_is_learned(console, source, ready)
    scorer = _fit(ready, wanted, console)
    card, gaps = _measure(scorer, ready, wanted, console)
    record = _record(source, ready, scorer, card, gaps)
    with folder_written(out, replace=overwrite) as folder:
        scorer.save(folder)  # first: it writes a whole folder, in place of an empty one
        write_whole(folder / "settings.toml", wanted.to_toml())
        write_json(folder / "record.json", record)
        page = None if card is None else _write_scorecard(card, folder, name=out.name)
    fitted = FittedRewardModel(out, scorer, card, record)
    _say_how_good_it_is(console, fitted, ready, gaps)
    if page:
        console.print(f"No page: {page}", markup=False, highlight=False, soft_wrap=True)
    return fitted


# ---------------------------------------------------------------- before anything is fitted


@dataclass(frozen=True)
class _Ready:
    """What is fitted to, and what is measured on."""

    judged: Judged
    trunk: Path
    learnable: Sequence[Learnable]
    unseen: Sequence[Judgement]
    votes: WeighedVotes
    groups: Groups | None
    weights: ImportanceWeights | None
    left_out: Counter[str]


def _prepare(source: Path, out: Path, wanted: RewardModelSettings, *, overwrite: bool) -> _Ready:
    problems: list[str] = []
    with _collected(problems):
        _require_place(out, overwrite=overwrite)
    trunk = Path()
    with _collected(problems, "base"):
        trunk = base_folder(wanted.base)
        RewardModel.from_trunk(trunk, head=wanted.reward_model.head)
    groups = None
    with _collected(problems, "groups"):
        groups = None if wanted.groups is None else Groups.read(wanted.groups)
    judged = None
    with _collected(problems):
        if not source.exists():
            raise DataError(f"{source}: there is no such file: a preference store, or a file of judgements, is needed")
        judged = read_judged(source, wanted)
        left_out = Counter(judged.left_out)
        training, unseen = held_out_of(judged, wanted.held_out, source)
        all_of_it = learnable_of([*training, *unseen], wanted, Counter())  # before a fit finds half of it wanting
        learnable = learnable_of(training, wanted, left_out) if all_of_it else []
    if problems or judged is None:
        raise ConfigError(*problems)
    scorer = RewardModel.from_trunk(trunk, head=wanted.reward_model.head)
    learnable, unseen = _readable(scorer, learnable, unseen, wanted, source, left_out)
    votes = weigh_votes(learnable, wanted.votes, whole_orders=wanted.loss == "plackett-luce")
    learnable = list(votes.learnable)
    if votes.undecided:
        left_out["pairs on which as many votes say one as the other"] += votes.undecided
    if wanted.diverse is not None:
        before = len(learnable)
        learnable = far_apart(learnable, wanted.diverse)
        left_out["judgements whose texts lie near those that were chosen (diverse)"] += before - len(learnable)
    weights = None
    if wanted.wanted is not None and wanted.drawn is not None:
        learnable, weights = _importance(learnable, wanted, left_out)
    if not learnable:
        raise DataError(f"{source}: nothing is left to learn from: {_counted(left_out)}")
    return _Ready(judged, trunk, learnable, unseen, votes, groups, weights, left_out)


def base_folder(name: str) -> Path:
    """The folder of the model that a reward model is built on: a folder, a shipped model, or a hub name."""
    folder = Path(assets.resolve(name)).expanduser()
    if folder.exists() or name.startswith(("/", ".", "~")):
        return folder
    from huggingface_hub import constants, snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]))
    except Exception as error:  # the library and the network raise many kinds
        why = f"no such folder, and the hub did not give it ({type(error).__name__})"
        if constants.HF_HUB_OFFLINE:
            why = "no such folder, not in this machine's hub cache, and HF_HUB_OFFLINE forbids fetching it"
        raise DataError(f"model {name!r}: {why}") from None


@contextlib.contextmanager
def _collected(problems: list[str], key: str | None = None) -> Iterator[None]:
    """Problems raised inside are added to `problems`, led by the setting `key` that they are about."""
    try:
        yield
    except ConfigError as error:
        for problem in error.problems:
            keys = getattr(problem, "keys", ())
            problems.append(Problem(problem, keys or ((key,) if key else ())).led_by(key or "") if key else problem)


def _require_place(out: Path, *, overwrite: bool) -> None:
    """Raise ConfigError where `out` cannot become the folder of a reward model."""
    there = out.is_dir() and any(out.iterdir())
    if out.exists() and not out.is_dir():
        raise ConfigError(Problem(f"{out} is a file: name another folder", ("out",)))
    if there and not any((out / card).is_file() for card in _CARDS):
        raise ConfigError(Problem(f"{out} holds something else than a reward model: name another folder", ("out",)))
    if there and not overwrite:
        raise ConfigError(Problem(f"{out} holds a reward model already: name another folder, or --overwrite", ("out",)))
    above = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    parent = out.absolute().parent if above == out else above
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        why = "is no folder" if not parent.is_dir() else "may not be written in"
        raise ConfigError(Problem(f"{out} cannot be made: {near(parent)} {why}", ("out",)))


def _sides(learnable: Sequence[Learnable]) -> list[PromptAndResponse]:
    return [
        (one.prompt, response)
        for one in learnable
        for response in ((one.chosen, one.rejected) if isinstance(one, Preference) else one.responses)
    ]


def _readable(
    scorer: RewardModel,
    learnable: Sequence[Learnable],
    unseen: Sequence[Judgement],
    wanted: RewardModelSettings,
    source: Path,
    left_out: Counter[str],
) -> tuple[list[Learnable], list[Judgement]]:
    """Both without what is too long for the model, where that is wanted; DataError that names every such line."""
    if wanted.over_long == "refuse":
        require_readable(scorer, [*_sides(learnable), *_sides(unseen)], path=source)
    if wanted.over_long == "refuse" or not isinstance(scorer, LimitedScorer) or scorer.context is None:
        return list(learnable), list(unseen)
    most = scorer.context

    def fitting(some: Sequence[Learnable]) -> list[Learnable]:
        kept = [one for one in some if max(scorer.lengths(_sides([one]))) <= most]
        if len(kept) < len(some):
            left_out[f"judgements of texts longer than the model's context of {most} tokens"] += len(some) - len(kept)
        return kept

    return fitting(learnable), [one for one in fitting(unseen) if not isinstance(one, Preference)]


def _importance(
    learnable: Sequence[Learnable], wanted: RewardModelSettings, left_out: Counter[str]
) -> tuple[list[Learnable], ImportanceWeights]:
    pairs = [one for one in learnable if isinstance(one, Preference)]
    without_ids = sum(side.ids is None for pair in pairs for side in (pair.chosen, pair.rejected))
    others = len(learnable) - len(pairs)
    if others or without_ids:
        what = (
            f"{without_ids:,} responses have no token ids, so no policy wrote them"
            if without_ids
            else f"{others:,} of the judgements are no pairs: loss = 'bradley-terry' makes pairs of all"
        )
        raise DataError(
            Problem(f"wanted: importance weights are of pairs of texts that a policy wrote: {what}", ("wanted",))
        )
    policies = []
    problems: list[str] = []
    for key in ("wanted", "drawn"):
        with _collected(problems, key):
            sampling = Sampling(temperature=getattr(wanted, f"{key}_temperature"))
            name = str(getattr(wanted, key))
            policies.append(LanguageModel.from_pretrained(name, dtype=_DTYPES[wanted.dtype], sampling=sampling))
    if problems:
        raise ConfigError(*problems)
    kept, weights = reweighted(pairs, *policies, cap=wanted.weight_cap)
    if len(kept) < len(pairs):
        left_out["pairs that the wanted policy would never write"] += len(pairs) - len(kept)
    return list(kept), weights


# ---------------------------------------------------------------- the fit, and how good it is


def _fit(ready: _Ready, wanted: RewardModelSettings, console: Console) -> RewardModel | RewardEnsemble:
    config = wanted.reward_model
    if wanted.loss == "plackett-luce":
        config = RewardModelConfig(**{**asdict(config), "ranking_loss": "plackett-luce"})
    counterfactuals: Sequence[Counterfactual] = ()
    if ready.groups is not None:
        counterfactuals = ready.groups.counterfactuals(dict.fromkeys(_sides(ready.learnable)))
        if not counterfactuals:
            raise DataError(Problem("groups: no text names any of the groups: nothing to be fair about", ("groups",)))
    generator = torch.Generator().manual_seed(wanted.seed)
    with stage(console, f"Fitting to {_spoken_count(ready.learnable)}") as tell:

        def progress(done: int, steps: int, loss: float) -> None:
            tell(done / steps, f"loss {loss:.3f}")

        if wanted.models > 1:
            return fit_ensemble(
                ready.learnable,
                ready.trunk,
                config,
                models=wanted.models,
                generator=generator,
                counterfactuals=counterfactuals,
                dtype=_DTYPES[wanted.dtype],
                progress=progress,
            )
        return fit_reward_model(
            ready.learnable,
            ready.trunk,
            config,
            generator=generator,
            counterfactuals=counterfactuals,
            dtype=_DTYPES[wanted.dtype],
            progress=progress,
        )[0]


def _measure(
    scorer: RewardModel | RewardEnsemble, ready: _Ready, wanted: RewardModelSettings, console: Console
) -> tuple[Scorecard | None, list[Gap]]:
    rng = np.random.default_rng(wanted.seed)
    unseen = list(preferences_of(ready.unseen))
    card = None
    if unseen:
        with console.status("Writing the scorecard"):
            gold = mean_ratings(ready.unseen, criterion=ready.judged.criterion)
            card = make_scorecard(scorer, unseen, gold=gold, gold_is="people's ratings", rng=rng)
    gaps: list[Gap] = []
    if ready.groups is not None:
        with contextlib.suppress(DataError):  # no held-out text names a group
            gaps = fairness_gaps(scorer, ready.groups, _sides(unseen or ready.learnable), rng)
    return card, gaps


def _write_scorecard(card: Scorecard, folder: Path, *, name: str) -> str:
    """Why there is no page; "" where there is one."""
    card.save(folder / "scorecard.json")
    try:
        write_page(card, folder / "scorecard.html", name=name)
    except MissingExtra as missing:  # pictures are an extra; the numbers are not
        return str(missing)
    return ""


def _record(
    source: Path, ready: _Ready, scorer: RewardModel | RewardEnsemble, card: Scorecard | None, gaps: Sequence[Gap]
) -> JsonObject:
    models = scorer.models if isinstance(scorer, RewardEnsemble) else [scorer]
    records = [model.record for model in models if isinstance(model, RewardModel) and model.record is not None]
    return {
        "source": str(near(source.absolute())),
        "criterion": ready.judged.criterion,
        "judgements": len(ready.judged.judgements),
        "fitted_to": sum(record.pairs + record.validation_pairs for record in records[:1]),
        "prompts": len({one.prompt.text for one in ready.learnable}),
        "held_out_prompts": len({one.prompt.text for one in ready.unseen}),
        "votes": ready.votes.votes,
        "judged_by_several": ready.votes.shared,
        "left_out": dict(ready.left_out),
        "annotators": [{**asdict(one), "against": one.against} for one in ready.votes.reliabilities],
        "importance": None
        if ready.weights is None
        else {"effective_sample_size": ready.weights.effective_sample_size, "capped": ready.weights.capped},
        "accuracy": None if card is None else asdict(card.accuracy),
        "fairness_gaps": [asdict(gap) for gap in gaps],
        "epochs": [[asdict(epoch) for epoch in record.epochs] for record in records],
        "versions": versions(),
    }


# ---------------------------------------------------------------- what is said


def _teller(console: Console) -> Callable[[str], None]:
    return lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)


def _say_what_is_learned(console: Console, source: Path, ready: _Ready) -> None:
    say = _teller(console)
    votes, prompts = ready.votes, len({one.prompt.text for one in ready.learnable})
    unseen = len({one.prompt.text for one in ready.unseen})
    people = len(votes.reliabilities)
    say(
        f"{source}: {len(ready.judged.judgements):,} judgements by {ready.judged.criterion!r}"
        f"{f', of {people} annotators' if people > 1 else ''}; {prompts:,} prompts to fit to, {unseen:,} held out"
    )
    for why, count in ready.left_out.most_common():
        say(f"  left out: {why}: {count:,}")
    for what in ready.judged.assumed:
        say(f"  assumed: {what}")
    if ready.weights is not None:
        weights = ready.weights
        say(
            f"  importance weights: effective sample size {weights.effective_sample_size:.1f} of "
            f"{len(weights.values):,} pairs; {weights.capped:,} weights cut at the cap"
        )
    _say_who_is_reliable(say, votes)


def _say_who_is_reliable(say: Callable[[str], None], votes: WeighedVotes, most: int = 12) -> None:
    known = [one for one in votes.reliabilities if one.agreed is not None]
    if not votes.shared:
        return
    say(f"  {votes.shared:,} of them were judged by several people; with the majority of the others agreed:")
    for one in known[:most]:
        accuracy = "" if one.accuracy is None else f"; right in {one.accuracy:.2f}, as Dawid-Skene estimates"
        say(f"    {one.annotator}: {_share_of(one)} on {one.votes:,}{accuracy}")
    if len(known) > most:
        say(f"    and {len(known) - most} more, who agreed more often: record.json has all")
    if 0 < len(known) < 3:
        say("    Of two people nobody can tell who is right where they differ: ask a third.")
    if against := [one.annotator for one in known if one.against]:
        say(f"  Against the rest: {', '.join(against)}: their votes mean the opposite, or they misread the question.")


def _share_of(one: Reliability) -> str:
    return "-" if one.agreed is None else f"{one.agreed:.2f} [{one.low:.2f}, {one.high:.2f}]"


def _say_how_good_it_is(console: Console, fitted: FittedRewardModel, ready: _Ready, gaps: Sequence[Gap]) -> None:
    say = _teller(console)
    card = fitted.scorecard
    if card is None:
        why = "nothing was held out" if not ready.unseen else "nobody preferred one of two answers to a held-out prompt"
        say(f"Accuracy: unknown: {why}.")
    else:
        accuracy = card.accuracy
        say(
            f"Accuracy on held-out prompts: {accuracy.value:.3f} (95 % interval {accuracy.low:.3f} to "
            f"{accuracy.high:.3f}; {card.pairs:,} pairs on {card.prompts:,} prompts; 0.5 is a coin)"
        )
        say(f"The annotators' own ceiling: {_ceiling(card, ready.unseen)}")
        say(
            f"Calibration error: {card.calibration_error:.3f} (by chance {card.calibration_error_by_chance:.3f} if the "
            "stated odds were right)"
        )
    for gap in gaps:
        low, high = gap.absolute_interval
        say(
            f"Fairness, {gap.first} and {gap.second}: scores differ by {gap.absolute:.3f} log-odds "
            f"[{low:.3f}, {high:.3f}] on {gap.texts:,} texts"
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
        return "unknown: nobody judged a held-out pair that somebody else had judged"
    agreement = card.agreement
    low, high = card.intervals["people"]
    pairs = [Comparison.of(pair) for pair in preferences_of(unseen)]
    found = agreement_of(pairs, np.random.default_rng(0))
    alpha = (
        "" if not found or math.isnan(found[0].alpha.value) else f"; Krippendorff's alpha {found[0].alpha.value:.2f}"
    )
    return (
        f"{agreement.people:.3f} [{low:.3f}, {high:.3f}]: one vote with the majority of the others, on "
        f"{agreement.pairs:,} pairs; the model with that majority {agreement.model:.3f}{alpha}"
    )


def _spoken_count(learnable: Sequence[Learnable]) -> str:
    pairs = sum(isinstance(one, Preference) for one in learnable)
    if pairs == len(learnable):
        return f"{pairs:,} pairs"
    return f"{len(learnable):,} judgements"


def _counted(left_out: Counter[str]) -> str:
    return "; ".join(f"{why} ({count:,})" for why, count in left_out.most_common())
