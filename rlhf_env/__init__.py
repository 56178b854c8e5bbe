"""Text generation as a Gymnasium environment, rewards and RLHF agents as plugins, and a laboratory to compare them.

Importing this package registers the environments; torch and transformers load when a policy is built.

What may be imported: the names below, from this package; the exceptions in `rlhf_env.errors`; the checks for authors of
plugins in `rlhf_env.testing`. Everything else may move or change without notice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register, registry

if TYPE_CHECKING:
    from rlhf_env.envs.reward_functions import from_function as from_function
    from rlhf_env.envs.rewards import RewardMix as RewardMix
    from rlhf_env.envs.text_env import TextEnv as TextEnv
    from rlhf_env.envs.text_vector_env import TextVectorEnv as TextVectorEnv
    from rlhf_env.envs.tokenizers import load_tokenizer as load_tokenizer
    from rlhf_env.feedback.reward_models.loading import load_scorer as load_scorer
    from rlhf_env.feedback.store.store import PreferenceStore as PreferenceStore
    from rlhf_env.lab.benchmark.grid import Grid as Grid
    from rlhf_env.lab.benchmark.reading import read_results as read_results
    from rlhf_env.lab.benchmark.run import run_benchmark as run_benchmark
    from rlhf_env.lab.evaluation.against_reference import evaluate_run as evaluate_run
    from rlhf_env.lab.evaluation.evaluator import Evaluator as Evaluator
    from rlhf_env.lab.evaluation.metric import Metric as Metric
    from rlhf_env.lab.evaluation.runs import Run as Run
    from rlhf_env.lab.evaluation.runs import load_run as load_run
    from rlhf_env.lab.evaluation.runs import run as run
    from rlhf_env.lab.report.formats import markdown_table as markdown_table
    from rlhf_env.lab.report.report import write_report as write_report
    from rlhf_env.learning.agent import Agent as Agent
    from rlhf_env.learning.agent import Decision as Decision
    from rlhf_env.learning.agent import Setup as Setup
    from rlhf_env.learning.collect import collect as collect
    from rlhf_env.learning.engine import Optimization as Optimization
    from rlhf_env.learning.experiment import EngineSettings as EngineSettings
    from rlhf_env.learning.experiment import EnvironmentSettings as EnvironmentSettings
    from rlhf_env.learning.experiment import EvaluationSettings as EvaluationSettings
    from rlhf_env.learning.experiment import Experiment as Experiment
    from rlhf_env.learning.losses.declaring import PairLoss as PairLoss
    from rlhf_env.learning.losses.declaring import TokenLoss as TokenLoss
    from rlhf_env.learning.policy_settings import PolicySettings as PolicySettings
    from rlhf_env.learning.rollout import Rollout as Rollout
    from rlhf_env.learning.rollout import finished as finished
    from rlhf_env.learning.spending import Budget as Budget
    from rlhf_env.learning.workplace import Workplace as Workplace
    from rlhf_env.learning.workplace import build as build
    from rlhf_env.pipeline.reward_settings import RewardModelSettings as RewardModelSettings
    from rlhf_env.pipeline.running import PipelineRun as PipelineRun
    from rlhf_env.pipeline.running import run_pipeline as run_pipeline
    from rlhf_env.pipeline.votes import fit_to_votes as fit_to_votes
    from rlhf_env.plugins import Register as Register
    from rlhf_env.plugins import hookimpl as hookimpl
    from rlhf_env.plugins import register_agent as register_agent
    from rlhf_env.plugins import register_annotator as register_annotator
    from rlhf_env.plugins import register_judgement as register_judgement
    from rlhf_env.plugins import register_metric as register_metric
    from rlhf_env.plugins import register_pair_loss as register_pair_loss
    from rlhf_env.plugins import register_reward as register_reward
    from rlhf_env.plugins import register_stopping_rule as register_stopping_rule
    from rlhf_env.plugins import register_task as register_task
    from rlhf_env.plugins import register_token_loss as register_token_loss
    from rlhf_env.plugins import register_tracker as register_tracker
    from rlhf_env.policies.language_model import LanguageModel as LanguageModel
    from rlhf_env.policies.policy import Policy as Policy
    from rlhf_env.policies.policy import Sampling as Sampling
    from rlhf_env.policies.tiny import tiny_language_model as tiny_language_model
    from rlhf_env.types import Episode as Episode
    from rlhf_env.types import GroupReward as GroupReward
    from rlhf_env.types import Observation as Observation
    from rlhf_env.types import Prompt as Prompt
    from rlhf_env.types import Reward as Reward
    from rlhf_env.types import Score as Score
    from rlhf_env.types import Task as Task
    from rlhf_env.types import Tokenizer as Tokenizer
    from rlhf_env.types import TokenReward as TokenReward

__version__ = "0.1.0"

# The public names, by what they are for, and the module that each is imported from.
_HOMES = {
    # Run an experiment, and read a run back.
    "Experiment": "rlhf_env.learning.experiment",
    "PolicySettings": "rlhf_env.learning.policy_settings",
    "EnvironmentSettings": "rlhf_env.learning.experiment",
    "EvaluationSettings": "rlhf_env.learning.experiment",
    "EngineSettings": "rlhf_env.learning.experiment",
    "Budget": "rlhf_env.learning.spending",
    "run": "rlhf_env.lab.evaluation.runs",
    "Run": "rlhf_env.lab.evaluation.runs",
    "load_run": "rlhf_env.lab.evaluation.runs",
    "evaluate_run": "rlhf_env.lab.evaluation.against_reference",
    # Compare agents.
    "Grid": "rlhf_env.lab.benchmark.grid",
    "run_benchmark": "rlhf_env.lab.benchmark.run",
    "read_results": "rlhf_env.lab.benchmark.reading",
    "markdown_table": "rlhf_env.lab.report.formats",
    "write_report": "rlhf_env.lab.report.report",
    # The whole way, as stages of one file.
    "run_pipeline": "rlhf_env.pipeline.running",
    "PipelineRun": "rlhf_env.pipeline.running",
    # The pieces of an experiment.
    "build": "rlhf_env.learning.workplace",
    "Workplace": "rlhf_env.learning.workplace",
    "Evaluator": "rlhf_env.lab.evaluation.evaluator",
    "collect": "rlhf_env.learning.collect",
    "Rollout": "rlhf_env.learning.rollout",
    "finished": "rlhf_env.learning.rollout",
    # The environment, its tasks and its rewards.
    "TextEnv": "rlhf_env.envs.text_env",
    "TextVectorEnv": "rlhf_env.envs.text_vector_env",
    "Episode": "rlhf_env.types",
    "Observation": "rlhf_env.types",
    "Prompt": "rlhf_env.types",
    "Task": "rlhf_env.types",
    "Tokenizer": "rlhf_env.types",
    "load_tokenizer": "rlhf_env.envs.tokenizers",
    "Reward": "rlhf_env.types",
    "TokenReward": "rlhf_env.types",
    "GroupReward": "rlhf_env.types",
    "RewardMix": "rlhf_env.envs.rewards",
    "Score": "rlhf_env.types",
    "from_function": "rlhf_env.envs.reward_functions",
    # Who writes, and who learns.
    "Policy": "rlhf_env.policies.policy",
    "Sampling": "rlhf_env.policies.policy",
    "LanguageModel": "rlhf_env.policies.language_model",
    "tiny_language_model": "rlhf_env.policies.tiny",
    "Agent": "rlhf_env.learning.agent",
    "Decision": "rlhf_env.learning.agent",
    "Setup": "rlhf_env.learning.agent",
    "Optimization": "rlhf_env.learning.engine",
    # What people prefer, and models of it.
    "PreferenceStore": "rlhf_env.feedback.store.store",
    "load_scorer": "rlhf_env.feedback.reward_models.loading",
    "fit_to_votes": "rlhf_env.pipeline.votes",
    "RewardModelSettings": "rlhf_env.pipeline.reward_settings",
    # Plugins.
    "PairLoss": "rlhf_env.learning.losses.declaring",
    "TokenLoss": "rlhf_env.learning.losses.declaring",
    "Metric": "rlhf_env.lab.evaluation.metric",
    "hookimpl": "rlhf_env.plugins",
    "Register": "rlhf_env.plugins",
    "register_agent": "rlhf_env.plugins",
    "register_annotator": "rlhf_env.plugins",
    "register_judgement": "rlhf_env.plugins",
    "register_metric": "rlhf_env.plugins",
    "register_pair_loss": "rlhf_env.plugins",
    "register_reward": "rlhf_env.plugins",
    "register_stopping_rule": "rlhf_env.plugins",
    "register_task": "rlhf_env.plugins",
    "register_token_loss": "rlhf_env.plugins",
    "register_tracker": "rlhf_env.plugins",
}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    """Public names load on first use, so that `import rlhf_env` stays quick."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


# Token-v0: one token a step (the token-level MDP). Response-v0: one whole response a step.
for _name, _action_length in (("Token", 1), ("Response", None)):
    if f"rlhf_env/{_name}-v0" not in registry:
        register(
            id=f"rlhf_env/{_name}-v0",
            entry_point="rlhf_env.envs.text_env:TextEnv",
            vector_entry_point="rlhf_env.envs.text_vector_env:TextVectorEnv",
            kwargs={"action_length": _action_length},
        )
del _name, _action_length
