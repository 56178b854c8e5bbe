"""The trackers of this package by name: one file for each library, imported when a run asks for it.

metrics.jsonl (`json_lines`) has no name here, for no run is without it.
"""

from __future__ import annotations

from rlhf_env import plugins


@plugins.hookimpl
def register_trackers(register: plugins.Register) -> None:
    home = "rlhf_env.learning.trackers"
    register("mlflow", f"{home}.mlflow:MLflow", needs="mlflow")
    register("tensorboard", f"{home}.tensorboard:TensorBoard", needs="demo")
    register("trackio", f"{home}.trackio:Trackio", needs="trackio")
    register("wandb", f"{home}.wandb:WeightsAndBiases", needs="wandb")
