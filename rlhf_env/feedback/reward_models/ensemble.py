"""Several reward models as one: their mean, or what they agree on.

Coste et al. 2024, "Reward Model Ensembles Help Mitigate Overoptimization" (2310.02743): where members that saw the same
data disagree, the data did not decide, and a policy that is rewarded for going there is rewarded for an error.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from rlhf_env.errors import ConfigError, DataError, RunFailed
from rlhf_env.feedback.judgements import Response
from rlhf_env.feedback.reward_models.config import Combination
from rlhf_env.feedback.reward_models.model import RewardModel
from rlhf_env.feedback.reward_models.scorer import LimitedScorer, Scorer
from rlhf_env.types import Episode, Float, Prompt

_CARD = "reward_ensemble.json"
_FORMAT = 1


def combined(scores: Float, combination: Combination, *, penalty: float = 1.0) -> Float:
    """float64[B] from what M members say, float64[M, B] (Coste et al. 2024, section 4).

    - "mean": (1 / M) sum of R_i;
    - "worst": the lowest R_i (worst-case optimisation, WCO);
    - "uncertainty": the mean minus `penalty` times the variance (1 / M) sum of (R_i - mean)^2 (UWO);
    - "entropic": -beta log((1 / M) sum of exp(-R_i / beta)) with beta = 1 / (2 `penalty`) (arXiv 2606.09073): to second
      order in the differences of the members it is "uncertainty" with the same penalty, it is the mean at penalty 0 and
      tends to "worst" for large ones, and it never leaves the range of the members, as "uncertainty" does.
    """
    if combination == "mean":
        return np.asarray(scores.mean(axis=0))
    if combination == "worst":
        return np.asarray(scores.min(axis=0))
    if combination == "uncertainty":
        return np.asarray(scores.mean(axis=0) - penalty * scores.var(axis=0))
    if combination == "entropic":
        if penalty == 0.0:
            return np.asarray(scores.mean(axis=0))
        lowest = scores.min(axis=0)  # whose term is exp(0): nothing overflows
        share = np.exp(-2.0 * penalty * (scores - lowest)).mean(axis=0)
        return np.asarray(lowest - np.log(share) / (2.0 * penalty))
    raise ConfigError(f"combination: {combination!r} is none of {', '.join(get_args(Combination))}")


@dataclass(frozen=True)
class RewardEnsemble:
    """Separate models as one `Scorer`; a model with several heads is as many members.

    Members are brought to one unit, that of their mean log-odds, so that none is louder than the others for having been
    normalised by a smaller spread.
    """

    models: Sequence[Scorer]

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("an ensemble needs at least one model")

    @property
    def log_odds_per_point(self) -> float:
        return float(np.mean([model.log_odds_per_point for model in self.models]))

    @property
    def members(self) -> int:
        return sum(model.members for model in self.models)

    @property
    def context(self) -> int | None:
        """That of the member that reads least."""
        limits = [model.context for model in self.models if isinstance(model, LimitedScorer)]
        return min((limit for limit in limits if limit is not None), default=None)

    def lengths(self, responses: Sequence[tuple[Prompt, Response]]) -> list[int]:
        each = [model.lengths(responses) for model in self.models if isinstance(model, LimitedScorer)]
        return [max(counts, default=0) for counts in zip(*each, strict=True)] if each else [0] * len(responses)

    def score(self, episodes: Sequence[Episode]) -> Float:
        """float64[B]: the mean of all members."""
        return combined(self.score_members(episodes), "mean")

    def score_members(self, episodes: Sequence[Episode]) -> Float:
        """float64[M, B], M over all models."""
        unit = self.log_odds_per_point
        return np.concatenate(
            [model.score_members(episodes) * (model.log_odds_per_point / unit) for model in self.models]
        )

    def score_responses(self, responses: Sequence[tuple[Prompt, Response]]) -> Float:
        """float64[B]: the mean of all members."""
        unit = self.log_odds_per_point
        each = [model.score_responses(responses) * (model.log_odds_per_point / unit) for model in self.models]
        return np.asarray(np.average(each, axis=0, weights=[model.members for model in self.models]))

    def save(self, path: str | Path) -> None:
        """Write a folder with a folder per model, whole or not at all, in place of an older ensemble.

        Raises ConfigError when something else is in the way or a model was trained elsewhere (name its folder in the
        `ensemble` reward instead), RunFailed when it cannot be written.
        """
        path = Path(path)
        if path.exists() and not (path / _CARD).is_file() and not (path.is_dir() and not any(path.iterdir())):
            raise ConfigError(f"reward ensemble {path}: there is something else at this path: name another one")
        names = [f"model-{i}" for i in range(len(self.models))]
        half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            half.mkdir(parents=True)
            for name, model in zip(names, self.models, strict=True):
                if not isinstance(model, RewardModel):
                    raise ConfigError(f"reward ensemble {path}: {type(model).__name__} is not ours to save")
                model.save(half / name)
            card = {"format": _FORMAT, "models": names}
            (half / _CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
            if path.is_dir():
                shutil.rmtree(path)
            half.rename(path)
        except OSError as error:
            raise RunFailed(f"reward ensemble {path}: cannot be written: {error}") from error
        finally:
            shutil.rmtree(half, ignore_errors=True)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "cpu") -> RewardEnsemble:
        """The ensemble that `save` wrote. Raises DataError for others."""
        file = Path(path) / _CARD
        try:
            card = json.loads(file.read_text(encoding="utf-8"))
            if card["format"] != _FORMAT:
                raise DataError(f"{file} has format {card['format']}, and this rlhf-env reads format {_FORMAT}")
            names = [str(name) for name in card["models"]]
        except DataError:
            raise
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{file} cannot be read: {type(error).__name__}: {error}") from error
        if any(Path(name).name != name for name in names):
            raise DataError(f"{file} names a model outside its folder")
        return cls([RewardModel.load(Path(path) / name, device=device).requires_grad_(False) for name in names])
