"""What a reward model is made of and how it is fitted: settings, and the record of a fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Lt

from rlhf_env.errors import Problem
from rlhf_env.lora_settings import Lora
from rlhf_env.settings import AtLeastOne, NonNegative, Positive, ShareBelowOne, Whole, fault, settings

RankingLoss = Literal["auto", "pairs", "plackett-luce"]
HeadKind = Literal["linear", "reply"]
Combination = Literal["mean", "worst", "uncertainty", "entropic"]  # of the members of an ensemble


@settings
class RewardModelConfig:
    """How a reward model is fitted; see `losses.py` for what is minimised.

    The learning rate rises over the first `warmup` of all steps, then falls in a straight line to 0. A batch is worked
    off in micro-batches of judgements of like length: same gradient, less padding, less memory.
    """

    learning_rate: Positive = 3e-4
    """The highest learning rate of the passes over trunk and head."""
    epochs: Whole = 2
    """Passes over trunk and head. With 0 the trunk stays as it is for good."""
    head: HeadKind = "linear"
    """What the score is read from: "linear", the state of the last token; or "reply", that and the mean state of the
    response and how likely the trunk, as a language model, finds it, through one hidden layer beside the linear one."""
    head_epochs: Whole = 0
    """Passes, before the others, that leave the trunk as it is and fit the head alone: the trunk reads each text once,
    so that they cost little (Kumar et al. 2022, 2202.10054, say why it also helps the passes after them)."""
    head_learning_rate: Positive = 1e-3
    """The highest learning rate of those passes."""
    batch_size: AtLeastOne = 32
    """Judgements of a gradient step: pairs, rankings, ratings."""
    micro_batch_size: AtLeastOne = 8
    """Judgements of a backward pass."""
    weight_decay: NonNegative = 0.01
    """AdamW's weight decay, of matrices only."""
    warmup: ShareBelowOne = 0.1
    """The share of the steps over which the learning rate rises."""
    max_gradient_norm: Positive = 1.0
    """The gradient is scaled down to this norm."""
    dropout: ShareBelowOne = 0.0
    """Dropout on the state the head reads (the trunk's own dropout is never on)."""
    margin: float = 0.0
    """By how much the preferred answer's score should be above the other's, in the loss of a pair; the margin that a
    judgement has itself (`Preference.margin`) is added."""
    label_smoothing: Annotated[float, Ge(0), Lt(0.5)] = 0.0
    """The chance that the label of a pair is wrong; from 0.5 on labels would mean nothing."""
    ranking_loss: RankingLoss = "auto"
    """What a ranking costs: the mean over its pairs ("pairs"), or its Plackett-Luce likelihood, for which rankings must
    have no ties. "auto": Plackett-Luce, which takes fewer rankings for the same error (`rlhf-env lab laws
    plackett-luce`); the pairs of a ranking with ties, and of every ranking with `margin` or `label_smoothing`, which
    Plackett-Luce does not know."""
    centring: NonNegative = 0.0
    """Weight of the mean square of a pair's sum: it only moves the mean of the scores to 0."""
    magnitude: NonNegative = 0.0
    """Weight of the mean square of the scores, against overfitting."""
    fairness: NonNegative = 0.0
    """Weight of the mean square of the difference between counterfactual texts: it draws those scores together."""
    members: AtLeastOne = 1
    """Heads on the one trunk. More than one are an ensemble: each starts at random and is fitted to its own bootstrap
    sample of the judgements (Osband et al. 2016, 1602.04621), so that they differ where the data leave room."""
    lora: Lora | None = None
    """Train low-rank adapters on the trunk instead of the trunk; they are merged into it at the end."""
    validation: ShareBelowOne = 0.1
    """The share of the *training* prompts set aside to pick the best epoch."""
    patience: AtLeastOne = 1
    """Fitting ends after this many epochs in a row that were no better."""

    @property
    def whole_rankings(self) -> bool:
        """Whether a ranking without ties costs its Plackett-Luce likelihood, and not the mean over its pairs."""
        if self.ranking_loss == "auto":
            return not (self.margin or self.label_smoothing)
        return self.ranking_loss == "plackett-luce"

    def problems(self) -> Iterator[Problem]:
        if not (self.epochs or self.head_epochs):
            yield fault("epochs", "and head_epochs are both 0, so nothing is fitted")
        if self.lora is not None and not self.epochs:
            yield fault("lora", "puts adapters on the trunk, which with epochs = 0 does not train")


@dataclass(frozen=True)
class Epoch:
    """One pass over the judgements. The validation numbers are None when nothing was set aside to measure them on."""

    loss: float
    validation_loss: float | None
    validation_accuracy: float | None


@dataclass(frozen=True)
class TrainingRecord:
    """What was done: saved beside the weights. `best` is the index of the epoch whose weights were kept.

    `pairs` and `validation_pairs` count judgements of any kind.
    """

    config: RewardModelConfig
    pairs: int
    validation_pairs: int
    steps: int
    epochs: tuple[Epoch, ...]
    best: int
