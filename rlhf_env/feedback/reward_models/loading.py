"""A scorer from wherever it was saved: a reward model, an ensemble, a classifier."""

from __future__ import annotations

from pathlib import Path

from rlhf_env import assets
from rlhf_env.errors import DataError
from rlhf_env.feedback.reward_models.scorer import Scorer
from rlhf_env.runs_on_disk import run_in

_CARDS = ("reward_model.json", "reward_ensemble.json")


def load_scorer(model: str | Path, *, device: str = "cpu") -> Scorer:
    """A reward model by folder (or hub name), told by the files in it, on a `device` ("auto" as in [policy]):

    - reward_model.json: a RewardModel that `save` wrote;
    - reward_ensemble.json: a RewardEnsemble;
    - config.json: a sequence classification model of transformers with one label, trained anywhere;
    - experiment.toml: a run that trained a reward head beside its policy (the agent sft+rm), at its best checkpoint;
    - none of these, and one folder with a reward model in it: that one (the folder of a stage).

    Raises DataError when it is none of these, ConfigError for a device that is not here.
    """
    from rlhf_env.feedback.reward_models.classifier import SequenceClassifier
    from rlhf_env.feedback.reward_models.ensemble import RewardEnsemble
    from rlhf_env.feedback.reward_models.model import RewardModel
    from rlhf_env.feedback.reward_models.of_runs import reward_model_of_run
    from rlhf_env.policies.loading import refuse_adapter

    folder = Path(assets.resolve(str(model)))
    refuse_adapter(folder)
    if (folder / "reward_model.json").is_file():
        return RewardModel.load(folder, device=device).requires_grad_(False)
    if (folder / "reward_ensemble.json").is_file():
        return RewardEnsemble.load(folder, device=device)
    if (folder / "config.json").is_file():
        return SequenceClassifier(folder, device=device)
    inside = [file.parent for name in _CARDS for file in folder.glob(f"*/{name}") if file.parent.name[0] != "."]
    if len(inside) == 1:
        return load_scorer(inside[0], device=device)
    if (run := run_in(folder.expanduser())) is not None:
        trained = reward_model_of_run(run)
        if trained is None:
            raise DataError(f"{run} is a run, whose model writes texts, and not a reward model")
        return RewardModel.load(trained, device=device).requires_grad_(False)
    if folder.exists() or str(model).startswith(("/", ".", "~")):
        raise DataError(
            f"{folder} is not a reward model: there is no reward_model.json (RewardModel.save writes one), no "
            "reward_ensemble.json and no config.json of a sequence classification model in it"
        )
    return SequenceClassifier(str(model), device=device)
