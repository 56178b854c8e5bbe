"""What keeps a reward model from learning its labels by heart: training and held-out loss, with and without restraint.

Few pairs, a third of them labelled wrongly, and a two-layer model that can remember all of them: unrestrained it does,
and is sure of it. Every seed draws pairs and labels, which all settings of `RewardModelConfig` compared here share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from rich.table import Table

from rlhf_env.feedback.judgements import Author, Preference, Response
from rlhf_env.feedback.reward_models.calibration import win_probability
from rlhf_env.feedback.reward_models.config import RewardModelConfig
from rlhf_env.feedback.reward_models.fitting import fit_reward_model
from rlhf_env.feedback.reward_models.model import RewardModel
from rlhf_env.feedback.reward_models.scorer import pair_log_odds
from rlhf_env.lab.statistics import PairedComparison, compare
from rlhf_env.policies.tiny import tiny_language_model
from rlhf_env.types import Float, JsonView, Prompt

WITHOUT = "none"
RESTRAINTS: Mapping[str, JsonView] = {
    WITHOUT: {},
    "dropout": {"dropout": 0.8},
    "weight decay": {"weight_decay": 100.0},
    "early stopping": {"validation": 0.3, "patience": 1},
    "magnitude penalty": {"magnitude": 0.3},
}
"""One at a time, so strong that each shows."""

PAIRS, UNSEEN, WRONG = 60, 300, 0.33
_LETTERS = (97, 98, 99)
_SETTINGS: JsonView = {
    "learning_rate": 2e-3,
    "epochs": 20,
    "micro_batch_size": 32,
    "validation": 0.0,
    "weight_decay": 0.0,
}


@dataclass(frozen=True)
class Losses:
    """Mean negative log-likelihood of the labels in nats; ln 2 = 0.69 says nothing. Those learned from include the
    pairs that early stopping sets aside."""

    training: float
    held_out: float

    @property
    def gap(self) -> float:
        return self.held_out - self.training


def losses(restraint: str, seed: int) -> Losses:
    """Of one model, fitted under one of `RESTRAINTS` to the labels of a seed."""
    rng = np.random.default_rng(seed)
    seen, unseen = _pairs(PAIRS, rng), _pairs(UNSEEN, rng)
    trunk = tiny_language_model("gpt2", init_std=0.2, context=64, dtype=torch.float32, seed=seed).model.base_model
    config = RewardModelConfig(**{**_SETTINGS, **RESTRAINTS[restraint]})
    model, _ = fit_reward_model(seen, RewardModel(trunk), config, generator=torch.Generator().manual_seed(seed))
    return Losses(*(float(-np.log(win_probability(pair_log_odds(model, pairs))).mean()) for pairs in (seen, unseen)))


def _pairs(count: int, rng: np.random.Generator) -> list[Preference]:
    """The better response has more of the first letter; the label is wrong as often as `WRONG` says."""
    author, made = Author("policy", "letters"), []
    for i in range(count):
        asked = rng.integers(0, 90, size=3).tolist()
        sides = [
            Response(bytes(ids).decode(), author, tuple(ids), tuple(asked), "length")
            for often in ((0.6, 0.2, 0.2), (0.2, 0.4, 0.4))
            if (ids := rng.choice(_LETTERS, p=often, size=6).tolist())
        ]
        chosen, rejected = sides if rng.random() >= WRONG else sides[::-1]
        made.append(Preference(Prompt(f"{i}", f"{i}"), chosen, rejected, "annotator"))
    return made


@dataclass(frozen=True, eq=False)
class Restrained:
    """Losses of every seed by restraint; what each takes off the gap and off the held-out loss, against none."""

    found: Mapping[str, list[Losses]]
    gap: Mapping[str, PairedComparison]
    held_out: Mapping[str, PairedComparison]


def compare_restraints(seeds: int, tell: Callable[[float, str], None] = lambda done, note: None) -> Restrained:
    """Fit every setting with seeds 0, 1, ...; `tell` hears the share done."""
    found: dict[str, list[Losses]] = {name: [] for name in RESTRAINTS}
    for seed in range(seeds):
        for place, name in enumerate(RESTRAINTS):
            tell((seed + place / len(RESTRAINTS)) / seeds, f"seed {seed}, {name}")
            found[name].append(losses(name, seed))

    def against_none(measure: str) -> dict[str, PairedComparison]:
        scores: dict[str, Float] = {name: -np.array([getattr(it, measure) for it in of]) for name, of in found.items()}
        return compare(scores, WITHOUT, stream=np.random.default_rng(0))

    return Restrained(found, against_none("gap"), against_none("held_out"))


def restraint_table(result: Restrained) -> Table:
    """A row a restraint: mean losses over seeds, and how much less gap and held-out loss, with verdicts."""
    seeds = len(result.found[WITHOUT])
    table = Table(
        title=f"Loss of a reward model in nats, {PAIRS} pairs of which a third are labelled wrongly, {seeds} seeds",
        caption="Less: mean paired difference to no restraint with its 95 % interval over seeds, and a verdict (sign "
        "flips, Holm). The strengths are in rlhf_env.lab.studies.regularisation.",
        title_justify="left",
        caption_justify="left",
    )
    for heading in ("Restraint", "Training", "Held-out", "Gap", "Less gap", "Less held-out loss"):
        table.add_column(heading, justify="left" if heading == "Restraint" else "right")
    for name, of in result.found.items():
        means = [float(np.mean([getattr(it, measure) for it in of])) for measure in ("training", "held_out", "gap")]
        less = [_less(by[name]) if name in by else "" for by in (result.gap, result.held_out)]
        table.add_row(name, *(f"{value:.2f}" for value in means), *less)
    return table


def _less(it: PairedComparison) -> str:
    low, high = it.difference.low, it.difference.high
    inside = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
    return f"{it.difference.value:.2f}{inside}\n{it.verdict}"
