"""What a reward model is fitted to and measured on: read, chosen, weighed, as the base model can read it."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rlhf_env import assets
from rlhf_env.errors import ConfigError, DataError, Problem
from rlhf_env.feedback.asking.weighing import Learnable, WeighedVotes, weigh_votes
from rlhf_env.feedback.judgements import Judgement, Preference
from rlhf_env.feedback.reward_models.fairness import Groups, PromptAndResponse
from rlhf_env.feedback.reward_models.losses import ImportanceWeights, reweighted
from rlhf_env.feedback.reward_models.model import RewardModel
from rlhf_env.feedback.reward_models.scorer import fit_to_scorer, require_readable
from rlhf_env.learning.devices import find_device, placed, require_dtype
from rlhf_env.learning.run_models import model_folder
from rlhf_env.pipeline.judged import SelectedJudgements, far_apart, held_out_of, learnable_of, read_judged
from rlhf_env.pipeline.reward_settings import RewardModelSettings, no_such_file
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.loading import model_files
from rlhf_env.policies.policy import Sampling
from rlhf_env.shown_text import near

WEIGHT_TYPES = {"float32": torch.float32, "float64": torch.float64}
_CARDS = ("reward_model.json", "reward_ensemble.json")


@dataclass(frozen=True)
class Material:
    """What is fitted to, and what is measured on."""

    selected: SelectedJudgements
    trunk: Path
    learnable: Sequence[Learnable]
    unseen: Sequence[Judgement]
    votes: WeighedVotes
    groups: Groups | None
    weights: ImportanceWeights | None
    left_out: Counter[str]


def prepare_material(source: Path, out: Path, wanted: RewardModelSettings, *, overwrite: bool) -> Material:
    """Read, choose, weigh. Raises ConfigError with all that is wrong with what was given; nothing is written."""
    problems: list[str] = []
    with _collected(problems):
        _require_place(out, overwrite=overwrite)
    with _collected(problems):
        require_dtype(find_device(wanted.device), WEIGHT_TYPES[wanted.dtype])
    trunk = Path()
    with _collected(problems, "base"):
        trunk = model_files(wanted.base)
        RewardModel.from_trunk(trunk, head=wanted.reward_model.head)
    groups = None
    with _collected(problems, "groups"):
        groups = None if wanted.groups is None else Groups.read(wanted.groups)
    judged = None
    with _collected(problems):
        if not source.exists():
            raise DataError(no_such_file(source))
        judged = read_judged(source, wanted)
        left_out = Counter(judged.left_out)
        learnable_of(judged.judgements, wanted, Counter())  # what is wrong with all is not said of a part
        training, unseen = held_out_of(judged, wanted.held_out, source)
        learnable = learnable_of(training, wanted, left_out)
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
    return Material(judged, trunk, learnable, unseen, votes, groups, weights, left_out)


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


def sides_of(learnable: Sequence[Learnable]) -> list[PromptAndResponse]:
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
    """Both as the model can read them: what is too long is left out or cut, or DataError names it."""
    if wanted.over_long == "refuse":
        require_readable(scorer, [*sides_of(learnable), *sides_of(unseen)], path=source)
        return list(learnable), list(unseen)
    kept, count = fit_to_scorer(scorer, learnable, wanted.over_long, path=source)
    kept_unseen, count_unseen = fit_to_scorer(scorer, unseen, wanted.over_long, path=source)
    for one, what in ((count, "to fit to"), (count_unseen, "held out")):
        if one.left_out:
            left_out[f"judgements {what} of texts longer than the model's context of {scorer.context}"] += one.left_out
        if one.cut:
            left_out[f"ends of texts longer than the model's context of {scorer.context}, cut ({what})"] += one.cut
    return list(kept), kept_unseen


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
            name = model_folder(assets.resolve(str(getattr(wanted, key))))
            policy = LanguageModel.from_pretrained(name, dtype=WEIGHT_TYPES[wanted.dtype], sampling=sampling)
            policies.append(placed(policy, find_device(wanted.device)))
    if problems:
        raise ConfigError(*problems)
    kept, weights = reweighted(pairs, *policies, cap=wanted.weight_cap)
    if len(kept) < len(pairs):
        left_out["pairs that the wanted policy would never write"] += len(pairs) - len(kept)
    return list(kept), weights


def _counted(left_out: Counter[str]) -> str:
    return "; ".join(f"{why} ({count:,})" for why, count in left_out.most_common())
