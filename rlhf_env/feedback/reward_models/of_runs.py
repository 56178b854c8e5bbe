"""The reward model of a run that trained one beside its policy (the agent sft+rm), as a folder like any other's.

    reward_model_of_run(Path("runs/hybrid"))  # runs/hybrid/reward_model/step-00000040-0c1f...

The folder is made when it is first asked for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from rlhf_env import plugins
from rlhf_env.errors import ConfigError, DataError, DiskRefused, UnknownName
from rlhf_env.feedback.reward_models.model import RewardModel
from rlhf_env.learning.run_models import TrainedModel
from rlhf_env.own_code import label_of
from rlhf_env.runs_on_disk import experiment_table_of
from rlhf_env.whole_files import folder_written

FOLDER, CARD = "reward_model", "reward_model.json"


def reward_model_of_run(run: Path) -> Path | None:
    """The folder of the reward model in a run's best checkpoint, or in its last where no best one was kept; None for a
    run that trained none.

    It lies in the run's folder, appears whole or not at all, and is used again until the run has another checkpoint.
    Raises ConfigError, in one line, for a run without a checkpoint that can be used, or where it cannot be written.
    """
    try:
        trained = TrainedModel.of(run, "best")
    except ConfigError:
        if _has_reward_head(label_of(experiment_table_of(run).get("agent", {}), "ppo")):
            raise
        return None
    seal = str(trained.manifest["sha256"])[:12]
    folder = run / FOLDER / f"{trained.checkpoint.name}-{seal}"
    if (folder / CARD).is_file():
        return folder
    state = trained.agent_state()
    if not isinstance(state.get("reward_head"), torch.Tensor):
        return None
    try:
        with folder_written(folder, first=True) as made:
            half = made / "trunk"
            half.mkdir()
            trained.write(half, weights="reward_trunk" if "reward_trunk" in state else "policy")
            _reward_model(half, state["reward_head"], state["reward_scale"]).save(made / "whole")
            for file in (made / "whole").iterdir():
                file.rename(made / file.name)
            (made / "whole").rmdir()
            for file in half.iterdir():
                file.unlink()
            half.rmdir()
    except (OSError, DiskRefused, SafetensorError) as error:
        why = getattr(error.__cause__ or error, "strerror", None) or error
        raise DataError(f"run {run}: its reward model cannot be written into its folder: {why}") from error
    return folder


def _has_reward_head(agent: str) -> bool:
    try:
        return bool(getattr(plugins.host().load("agent", agent), "has_reward_head", False))
    except UnknownName:  # of a package that is not here
        return False


def _reward_model(trunk: Path, head: torch.Tensor, scale: dict[str, float]) -> RewardModel:
    """A score is (head * state of the last token - mean) / std, as of a reward model that was fitted alone."""
    model = RewardModel.from_trunk(trunk, dtype=head.dtype)
    with torch.no_grad():
        model.heads.copy_(head[None])
    model.mean, model.std = np.array([scale["mean"]]), float(scale["std"])
    return model
