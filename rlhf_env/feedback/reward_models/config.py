"""What a reward model is made of and how it is fitted: settings, and the record of a fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlhf_env.errors import ConfigError
from rlhf_env.plain_data import refuse_misfits

RankingLoss = Literal["pairs", "plackett-luce"]
HeadKind = Literal["linear", "reply"]


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig:
    """How to fit. `batch_size` counts judgements: pairs, rankings, ratings.

    The learning rate rises over the first `warmup` of all steps, then falls in a straight line to 0. A batch is worked
    off in micro-batches of judgements of like length: same gradient, less padding, less memory.

    What is minimised: `margin` and `label_smoothing` belong to the loss of a pair; `ranking_loss` says whether a
    ranking costs the mean over its pairs or its Plackett-Luce likelihood. See `losses.py` for all of them.

    Against overfitting: `validation` is the share of the *training* prompts set aside to pick the best epoch, and
    fitting ends after `patience` epochs in a row that were no better; `weight_decay` (matrices only); `dropout` on the
    state the head reads (the trunk's own dropout is never on); `magnitude` times the mean square of the scores.
    `centring` times the mean square of a pair's sum only moves the mean of the scores to 0. `fairness` times the mean
    square of the difference between counterfactual texts draws those scores together.

    `head` is what the score is read from: "linear", the state of the last token; or "reply", that and the mean state
    of the response and how likely the trunk, as a language model, finds it, through one hidden layer beside the linear
    one. The first `head_epochs` passes leave the trunk as it is and fit the head alone, at `head_learning_rate`: the
    trunk reads each text once, so that they cost little (Kumar et al. 2022, 2202.10054, say why it also helps the
    passes after them). With 0 `epochs` the trunk stays as it is for good.

    `members` is the number of heads on the one trunk. More than one are an ensemble: each starts at random and is
    fitted to its own bootstrap sample of the judgements (Osband et al. 2016, 1602.04621), so that they differ where the
    data leave room.
    """

    learning_rate: float = 3e-4
    epochs: int = 2
    head: HeadKind = "linear"
    head_epochs: int = 0
    head_learning_rate: float = 1e-3
    batch_size: int = 32
    micro_batch_size: int = 8
    weight_decay: float = 0.01
    warmup: float = 0.1
    max_gradient_norm: float = 1.0
    dropout: float = 0.0
    margin: float = 0.0
    label_smoothing: float = 0.0
    ranking_loss: RankingLoss = "pairs"
    centring: float = 0.0
    magnitude: float = 0.0
    fairness: float = 0.0
    members: int = 1
    validation: float = 0.1
    patience: int = 1

    def __post_init__(self) -> None:
        refuse_misfits(self)
        above_zero = ("learning_rate", "head_learning_rate", "batch_size", "micro_batch_size", "max_gradient_norm")
        whole = ("epochs", "head_epochs")
        shares = ("warmup", "dropout", "validation")
        weights = ("weight_decay", "centring", "magnitude", "fairness")
        _refuse(
            *(
                f"{name}: {getattr(self, name)!r} is not above 0"
                for name in (*above_zero, "patience", "members")
                if not getattr(self, name) > 0
            ),
            *(
                f"{name}: {getattr(self, name)!r} is not in [0, 1)"
                for name in shares
                if not 0 <= getattr(self, name) < 1
            ),
            *(
                f"{name}: {getattr(self, name)!r} is negative"
                for name in (*whole, *weights)
                if not getattr(self, name) >= 0
            ),
            *(
                []
                if 0 <= self.label_smoothing < 0.5
                else [
                    f"label_smoothing: {self.label_smoothing!r} is not in [0, 0.5): from there on labels mean nothing"
                ]
            ),
            *([] if self.epochs or self.head_epochs else ["epochs, head_epochs: both are 0, so nothing is fitted"]),
        )


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


def _refuse(*problems: str) -> None:
    if problems:
        raise ConfigError(*problems)
