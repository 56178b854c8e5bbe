"""A scorer from wherever it was saved: a reward model, an ensemble, a classifier."""

from __future__ import annotations

from pathlib import Path

from rlhf_env import assets
from rlhf_env.errors import DataError
from rlhf_env.feedback.reward_models.scorer import Scorer


def load_scorer(model: str | Path) -> Scorer:
    """A reward model by folder (or hub name), told by the files in it:

    - reward_model.json: a RewardModel that `save` wrote;
    - reward_ensemble.json: a RewardEnsemble;
    - config.json: a sequence classification model of transformers with one label, trained anywhere.

    Raises DataError when it is none of these.
    """
    from rlhf_env.feedback.reward_models.classifier import SequenceClassifier
    from rlhf_env.feedback.reward_models.ensemble import RewardEnsemble
    from rlhf_env.feedback.reward_models.model import RewardModel
    from rlhf_env.policies.loading import refuse_adapter

    folder = Path(assets.resolve(str(model)))
    refuse_adapter(folder)
    if (folder / "reward_model.json").is_file():
        return RewardModel.load(folder).requires_grad_(False)
    if (folder / "reward_ensemble.json").is_file():
        return RewardEnsemble.load(folder)
    if (folder / "config.json").is_file():
        return SequenceClassifier(folder)
    if folder.exists() or str(model).startswith(("/", ".", "~")):
        raise DataError(
            f"{folder} is not a reward model: there is no reward_model.json (RewardModel.save writes one), no "
            "reward_ensemble.json and no config.json of a sequence classification model in it"
        )
    return SequenceClassifier(str(model))
