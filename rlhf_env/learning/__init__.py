"""How an agent learns: rollouts, the loop, the run folder. Trackers, stopping rules and losses are registered here.

Their modules are imported when a run asks for them: listing plugins loads none.
"""

from __future__ import annotations

from rlhf_env import plugins


@plugins.hookimpl
def register_trackers(register: plugins.Register) -> None:
    """One file for each library. metrics.jsonl (`trackers.json_lines`) has no name, for no run is without it."""
    register("mlflow", "rlhf_env.learning.trackers.mlflow:MLflow", needs="mlflow")
    register("tensorboard", "rlhf_env.learning.trackers.tensorboard:TensorBoard", needs="demo")
    register("trackio", "rlhf_env.learning.trackers.trackio:Trackio", needs="trackio")
    register("wandb", "rlhf_env.learning.trackers.wandb:WeightsAndBiases", needs="wandb")


@plugins.hookimpl
def register_stopping_rules(register: plugins.Register) -> None:
    register("brake", "rlhf_env.learning.stopping:Brake")
    register("max_kl", "rlhf_env.learning.stopping:MaxKL")
    register("patience", "rlhf_env.learning.stopping:Patience")


@plugins.hookimpl
def register_token_losses(register: plugins.Register) -> None:
    for name, function in {
        "clip": "clip_loss",
        "dapo": "dapo_loss",
        "dr-grpo": "dr_grpo_loss",
        "gspo": "gspo_loss",
        "cispo": "cispo_loss",
        "sapo": "sapo_loss",
        "clip-cov": "clip_cov_loss",
        "reinforce++": "batch_scaled_loss",
        "maxrl": "maxrl_loss",
    }.items():
        register(name, f"rlhf_env.learning.losses.tokens:{function}")


@plugins.hookimpl
def register_pair_losses(register: plugins.Register) -> None:
    for name in ("sigmoid", "ipo", "hinge", "robust", "apo-zero", "apo-down", "sppo", "simpo", "orpo", "cpo"):
        register(name, f"rlhf_env.learning.losses.pairs:{name.replace('-', '_')}_loss")
