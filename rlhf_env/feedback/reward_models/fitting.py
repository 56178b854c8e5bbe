"""Fitting a reward model to judgements: pairs, rankings and ratings, by maximum likelihood and with what restrains it.

Left out: more than one process.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlhf_env import assets
from rlhf_env.errors import ConfigError, DataError, RunFailed, under
from rlhf_env.feedback.judgements import Judgement, Preference
from rlhf_env.feedback.kinds import HIGHEST, LOWEST, Lesson, kind_of, lesson_of_pair
from rlhf_env.feedback.reward_models import losses
from rlhf_env.feedback.reward_models.calibration import accuracy_with_interval
from rlhf_env.feedback.reward_models.config import Epoch, RewardModelConfig, TrainingRecord
from rlhf_env.feedback.reward_models.ensemble import RewardEnsemble
from rlhf_env.feedback.reward_models.fairness import Counterfactual
from rlhf_env.feedback.reward_models.model import RewardModel, Text, distinct_texts
from rlhf_env.feedback.store.split import split_by_prompt
from rlhf_env.learning.devices import find_device, free_on
from rlhf_env.learning.memory_need import fitting_need
from rlhf_env.learning.run_models import model_folder
from rlhf_env.policies.loading import base_and_adapter
from rlhf_env.policies.lora import add_adapter, merge_adapter
from rlhf_env.policies.sizes import in_bytes, size_of
from rlhf_env.types import JsonObject

FittingProgress = Callable[[int, int, float], None]
"""Called after every gradient step with (steps done, steps planned, loss of the step)."""


def fit_reward_model(
    judgements: Sequence[Preference | Judgement],
    trunk: str | Path | RewardModel,
    config: RewardModelConfig,
    *,
    generator: torch.Generator,
    counterfactuals: Sequence[Counterfactual] = (),
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    progress: FittingProgress | None = None,
) -> tuple[RewardModel, TrainingRecord]:
    """Fit a reward model to judgements of any kind.

    `trunk` is a model folder, or a RewardModel to train further (it is changed, and keeps its heads). Pairs of one
    `group` stay in one batch, and so do the responses of a ranking. Ratings bring the thresholds between classes with
    them, which are fitted along and dropped. `counterfactuals` are what `config.fairness` acts on.

    Deterministic given `generator`, which draws the order of the judgements, the dropout and, with several members,
    their first heads and their bootstrap. Keep held-out judgements away: `PreferenceStore.split`. Raises DataError when
    there is nothing to fit, RunFailed when it diverges.
    """
    if isinstance(trunk, RewardModel):
        model = trunk
    else:
        if config.epochs:
            _say_if_memory_is_short(trunk, config, dtype, device)
        model = RewardModel.from_trunk(trunk, members=config.members, head=config.head, dtype=dtype, device=device)
        if config.members > 1:
            model.scatter_heads(generator)
    if config.lora is not None:
        with under("lora"):
            add_adapter(model.trunk, config.lora, int(torch.randint(2**31, (), generator=generator)))
    # The salt makes this division independent of the one that took the held-out prompts away. It looks at prompts only.
    fitting, validating = split_by_prompt(judgements, config.validation, salt="validation")
    if not fitting:
        raise DataError(f"no judgements to fit a reward model to: got {len(judgements)}")
    if config.fairness and not counterfactuals:
        raise DataError("fairness is above 0, and there are no counterfactual texts to be fair about")
    lessons, unseen = _lessons(model, fitting, config), _lessons(model, validating, config)
    swaps = list(zip(*(iter(model.read([side for pair in counterfactuals for side in pair])),) * 2, strict=True))
    texts = [text for lesson in (*lessons, *unseen) for text in lesson.texts]
    to_learn = [text for lesson in lessons for text in lesson.texts] + [text for it in swaps for text in it]
    model.check([*texts, *to_learn])

    objective = _Objective(model, config, generator)
    units = _units(lessons)
    weight = _member_weights(lessons, units, len(model.heads), generator).to(model.heads)
    units_at_once = max(1, round(config.batch_size * len(units) / len(lessons)))
    steps_an_epoch = math.ceil(len(units) / units_at_once)
    steps = (config.head_epochs + config.epochs) * steps_an_epoch
    model.mean, model.std = np.zeros(len(model.heads)), 1.0
    if config.head_epochs or (model.hidden is not None and model.record is None):
        objective.remember(to_learn)

    epochs: list[Epoch] = []
    best, best_weights = 0, {}
    done = 0
    for passes, head_alone in ((config.head_epochs, True), (config.epochs, False)):
        if not passes:
            continue
        if not head_alone:
            objective.forget()
        optimizer = _optimizer(objective, config, head_alone=head_alone)
        shape = _warmup_then_linear(passes * steps_an_epoch, config.warmup)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
        begun = len(epochs)
        for index in range(begun, begun + passes):
            costs = []
            order = torch.randperm(len(units), generator=generator).tolist()
            for start in range(0, len(order), units_at_once):
                batch = [i for unit in order[start : start + units_at_once] for i in units[unit]]
                optimizer.zero_grad()
                costs.append(objective.accumulate(lessons, weight, batch))
                if config.fairness:
                    drawn = torch.randint(len(swaps), (config.batch_size,), generator=generator).tolist()
                    costs[-1] += objective.accumulate_fairness([swaps[i] for i in drawn])
                if not math.isfinite(costs[-1]):
                    raise RunFailed(f"the reward model diverged at step {done + 1}: lower learning_rate")
                nn.utils.clip_grad_norm_(objective.parameters(), config.max_gradient_norm)
                optimizer.step()
                schedule.step()
                done += 1
                if progress is not None:
                    progress(done, steps, costs[-1])
            epochs.append(Epoch(float(np.mean(costs)), *_validate(model, objective, unseen)))
            now, then = epochs[index].validation_loss, epochs[best].validation_loss
            if index == 0 or now is None or then is None or now < then:
                best, best_weights = index, {name: value.clone() for name, value in model.state_dict().items()}
            elif index - max(best, begun - 1) >= config.patience:
                break
        model.load_state_dict(best_weights)
    if config.lora is not None:
        model.trunk = merge_adapter(model.trunk)
    model.normalise(texts)
    model.record = TrainingRecord(config, len(fitting), len(validating), done, tuple(epochs), best)
    return model, model.record


def _say_if_memory_is_short(trunk: str | Path, config: RewardModelConfig, dtype: torch.dtype, device: str) -> None:
    """Warn of a fit that will need more memory than its device has free, as far as the trunk's configuration tells."""
    folder = model_folder(assets.resolve(str(trunk)))
    size, free = size_of(base_and_adapter(folder)[0], head=False), free_on(find_device(device))
    if size is None or free is None or size.weights(dtype) > free:  # weights that do not fit are refused
        return
    need = fitting_need(size, dtype, config.lora)
    if need.total > free:
        less = "" if config.lora else "lora trains adapters alone; "
        said = f"fitting the reward model will need about {need}, and {in_bytes(free)} are free: {less}epochs = 0 fits "
        warnings.warn(f"{said}the head alone; a smaller base needs less", RuntimeWarning, stacklevel=3)


@dataclass(frozen=True)
class _Lesson:
    """A judgement as the model reads it: texts, best first; one text has a `rating` from 0."""

    texts: tuple[Text, ...]
    weight: float
    rating: int = -1
    group: str = ""
    margin: float = 0.0


def _lessons(
    model: RewardModel, judgements: Sequence[Preference | Judgement], config: RewardModelConfig
) -> list[_Lesson]:
    """What there is to learn, in order. A ranking with ties is the pairs that it decides."""
    whole_orders = config.ranking_loss == "plackett-luce"
    lessons: list[Lesson] = []
    problems: list[str] = []
    for judgement in judgements:
        if isinstance(judgement, Preference):
            lessons.append(lesson_of_pair(judgement))
            continue
        try:
            lessons += kind_of(judgement).lessons_of(judgement, whole_orders=whole_orders)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(*problems)
    texts = iter(model.read([(lesson.prompt, response) for lesson in lessons for response in lesson.responses]))
    return [
        _Lesson(
            texts=tuple(next(texts) for _ in lesson.responses),
            weight=lesson.weight,
            rating=-1 if lesson.score is None else lesson.score - LOWEST,
            group=lesson.group,
            margin=lesson.margin,
        )
        for lesson in lessons
    ]


def _units(lessons: Sequence[_Lesson]) -> list[list[int]]:
    """Which lessons stay together: those of one group, each other one by itself."""
    units: dict[object, list[int]] = {}
    for i, lesson in enumerate(lessons):
        units.setdefault(lesson.group or i, []).append(i)
    return list(units.values())


def _member_weights(
    lessons: Sequence[_Lesson], units: Sequence[Sequence[int]], members: int, generator: torch.Generator
) -> Tensor:
    """float64[M, N]: the weights of the lessons; of several members each has its own (Poisson) bootstrap of units."""
    weight = torch.tensor([lesson.weight for lesson in lessons], dtype=torch.float64).expand(members, -1).clone()
    if members > 1:
        times = torch.poisson(torch.ones(members, len(units), dtype=torch.float64), generator=generator)
        for column, unit in enumerate(units):
            weight[:, list(unit)] *= times[:, column, None]
    return weight


class _Objective(nn.Module):
    """The model, the thresholds that ratings need, and the loss of lessons under both."""

    def __init__(self, model: RewardModel, config: RewardModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.model, self.config = model, config
        self._dropout: JsonObject = {"dropout": config.dropout, "generator": generator}
        # The lowest threshold and the logarithms of the steps between them: they stay in order. Steps of 1 at first.
        start = torch.zeros(HIGHEST - LOWEST)
        start[0] = -(HIGHEST - LOWEST - 1) / 2
        self.thresholds = nn.Parameter(start.to(model.heads))
        self._features: Tensor | None = None  # of the texts in _places, while the trunk is left as it is
        self._places: dict[int, int] = {}

    def remember(self, texts: Sequence[Text]) -> None:
        """Have the trunk read these texts (the very objects) once and for all, until it is to `forget` them."""
        read, places = distinct_texts(texts)
        self._features = self.model.frozen_features(read)
        self._places = {id(text): place for text, place in zip(texts, places, strict=True)}
        if self.model.hidden is not None and self.model.record is None:
            self.model.hidden.measure(self._features)

    def forget(self) -> None:
        self._features = None

    def accumulate(self, lessons: Sequence[_Lesson], weight: Tensor, batch: Sequence[int]) -> float:
        """Add the gradient of the batch's loss to the parameters; returns the loss. Micro-batches change neither.

        `weight` [M, N] of all lessons; the loss is the mean over members of the weighted mean over the batch.
        """
        whole = weight[:, list(batch)].sum(dim=1).clamp(min=torch.finfo(weight.dtype).tiny)
        by_length = sorted(batch, key=lambda i: max(map(len, lessons[i].texts)))
        total = 0.0
        for start in range(0, len(by_length), self.config.micro_batch_size):
            rows = by_length[start : start + self.config.micro_batch_size]
            scores = iter(self._scores([text for i in rows for text in lessons[i].texts]).unbind(dim=1))
            by_row = {i: torch.stack([next(scores) for _ in lessons[i].texts], dim=1) for i in rows}
            loss = sum(
                (
                    weight[:, same]
                    * self._terms(torch.stack([by_row[i] for i in same], dim=1), [lessons[i] for i in same])
                )
                .sum(dim=1)
                .div(whole)
                .mean()
                for same in _of_one_size(rows, lessons)
            )
            assert isinstance(loss, Tensor)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def accumulate_fairness(self, swaps: Sequence[tuple[Text, Text]]) -> float:
        """Add the gradient of `fairness` times the counterfactual penalty, a mean over members and `swaps`."""
        total = 0.0
        for start in range(0, len(swaps), self.config.micro_batch_size):
            some = swaps[start : start + self.config.micro_batch_size]
            one, other = self._scores([side[i] for i in (0, 1) for side in some]).chunk(2, dim=1)
            share = self.config.fairness * len(some) / len(swaps)
            loss = share * losses.counterfactual_penalty(one, other).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def likelihood(
        self, scores: Tensor, lessons: Sequence[_Lesson], *, margin: Tensor | float = 0.0, label_smoothing: float = 0.0
    ) -> Tensor:
        """[M, N]: the negative log-likelihood of lessons of K texts each; scores [M, N, K]."""
        texts = scores.shape[-1]
        if texts == 1:
            ratings = torch.tensor([lesson.rating for lesson in lessons], device=scores.device)
            steps = torch.cat([self.thresholds[:1], self.thresholds[1:].exp()])
            return losses.likert_loss(scores[..., 0], ratings, steps.cumsum(0).to(scores.dtype))
        if texts > 2 and self.config.whole_rankings:
            return losses.plackett_luce_loss(scores)
        return losses.ranking_pairs_loss(scores, margin=margin, label_smoothing=label_smoothing)

    def _scores(self, texts: Sequence[Text]) -> Tensor:
        """[M, len(texts)]; a text that comes several times (the pairs of a group share theirs) is read once."""
        if self._features is not None:
            return self.model.judge(self._features[[self._places[id(text)] for text in texts]], **self._dropout)
        read, places = distinct_texts(texts)
        return self.model.raw(read, **self._dropout)[:, places]

    def _terms(self, scores: Tensor, lessons: Sequence[_Lesson]) -> Tensor:
        """[M, N]: what lessons of K texts each cost, penalties included; scores [M, N, K]."""
        config = self.config
        # What each pair asks for by itself, beside what all are asked for; [N, 1], of a lesson's pairs all the same.
        margin = config.margin + scores.new_tensor([lesson.margin for lesson in lessons])[:, None]
        terms = self.likelihood(scores, lessons, margin=margin, label_smoothing=config.label_smoothing)
        if config.centring and scores.shape[-1] > 1:
            better, worse = (list(side) for side in zip(*combinations(range(scores.shape[-1]), 2), strict=True))
            terms = terms + config.centring * losses.centring_penalty(scores[..., better], scores[..., worse]).mean(-1)
        if config.magnitude:
            terms = terms + config.magnitude * losses.magnitude_penalty(scores).mean(-1)
        return terms


def _of_one_size(rows: Sequence[int], lessons: Sequence[_Lesson]) -> Iterator[list[int]]:
    """The rows, those with equally many texts together."""
    for size in sorted({len(lessons[i].texts) for i in rows}):
        yield [i for i in rows if len(lessons[i].texts) == size]


@torch.no_grad()
def _validate(
    model: RewardModel, objective: _Objective, lessons: Sequence[_Lesson]
) -> tuple[float | None, float | None]:
    """(loss, accuracy) of the members' mean, without margin or penalties; None for what cannot be measured."""
    if not lessons:
        return None, None
    scores = iter(torch.from_numpy(model.score_texts([text for lesson in lessons for text in lesson.texts])))
    by_row = [torch.stack([next(scores) for _ in lesson.texts]) for lesson in lessons]
    cost = sum(
        lesson.weight * float(objective.likelihood(row[None, None], [lesson]))
        for row, lesson in zip(by_row, lessons, strict=True)
    ) / sum(lesson.weight for lesson in lessons)
    pairs = [(row[i], row[j]) for row in by_row for i, j in combinations(range(len(row)), 2)]
    if not pairs:
        return cost, None
    chosen, rejected = np.array(pairs).T
    return cost, accuracy_with_interval(chosen, rejected).value


def _optimizer(objective: _Objective, config: RewardModelConfig, *, head_alone: bool = False) -> torch.optim.Optimizer:
    """AdamW; gains, heads and thresholds do not decay towards zero, matrices do."""
    spared = {id(objective.model.heads)}
    left = {id(parameter) for parameter in objective.model.trunk.parameters()} if head_alone else set()
    parameters = [p for p in objective.parameters() if p.requires_grad and id(p) not in left]
    decays: Callable[[Any], bool] = lambda parameter: parameter.ndim > 1 and id(parameter) not in spared  # noqa: E731
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if decays(p)], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if not decays(p)], "weight_decay": 0.0},
        ],
        lr=config.head_learning_rate if head_alone else config.learning_rate,
    )


def _warmup_then_linear(steps: int, warmup: float) -> Callable[[int], float]:
    rising = round(warmup * steps)
    return lambda step: (step + 1) / (rising + 1) if step < rising else (steps - step) / (steps - rising)


def fit_ensemble(
    judgements: Sequence[Preference | Judgement],
    trunk: str | Path,
    config: RewardModelConfig,
    *,
    models: int,
    generator: torch.Generator,
    counterfactuals: Sequence[Counterfactual] = (),
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    progress: FittingProgress | None = None,
) -> RewardEnsemble:
    """`models` separate reward models of one trunk, fitted to the same judgements from different first heads and in
    different orders, as in Coste et al. 2024.

    Heads on a shared trunk cost a fraction of it: `config.members` of a single `fit_reward_model`. They agree more.
    """
    if models < 1:
        raise ConfigError(f"models: {models!r} is not a number of at least 1")
    fitted = []
    for index in range(models):
        model = RewardModel.from_trunk(trunk, members=config.members, head=config.head, dtype=dtype, device=device)
        model.scatter_heads(generator)
        fit_reward_model(
            judgements,
            model,
            config,
            generator=generator,
            counterfactuals=counterfactuals,
            progress=None if progress is None else _share_of(progress, index, models),
        )
        fitted.append(model)
    return RewardEnsemble(fitted)


def _share_of(progress: FittingProgress, index: int, models: int) -> FittingProgress:
    """The progress of one of several fits of equal length, as that of all."""
    return lambda done, steps, loss: progress(index * steps + done, models * steps, loss)
