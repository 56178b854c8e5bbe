"""Every kind of stage, by the word that a file has for it."""

from __future__ import annotations

from rlhf_env.errors import UnknownName
from rlhf_env.lab.benchmark.grid import Grid
from rlhf_env.learning.experiment import Experiment
from rlhf_env.pipeline.reward_settings import RewardModelFile
from rlhf_env.pipeline.stages.beginning import BaseModelStage
from rlhf_env.pipeline.stages.comparing import BenchStage
from rlhf_env.pipeline.stages.evaluating import EvaluateStage
from rlhf_env.pipeline.stages.fitting import FitStage
from rlhf_env.pipeline.stages.judging import JudgeStage
from rlhf_env.pipeline.stages.people import AnnotateStage
from rlhf_env.pipeline.stages.stage import Stage
from rlhf_env.pipeline.stages.training import SftStage, TrainStage
from rlhf_env.pipeline.stages.writing import ResponsesStage

STAGES: dict[str, type[Stage]] = {
    stage.kind: stage
    for stage in (
        BaseModelStage,
        SftStage,
        ResponsesStage,
        JudgeStage,
        AnnotateStage,
        FitStage,
        TrainStage,
        EvaluateStage,
        BenchStage,
    )
}


def stage_of_kind(kind: str) -> type[Stage]:
    """Raises UnknownName."""
    if kind not in STAGES:
        raise UnknownName("kind of stage", kind, STAGES)
    return STAGES[kind]


def settings_by_kind() -> dict[str, list[type]]:
    """By kind, the classes that say what can be set in such a stage; the first is what it is about."""
    others: dict[str, list[type]] = {
        "sft": [Experiment],
        "train": [Experiment],
        "bench": [Grid, Experiment],
        "reward_model": [RewardModelFile],
    }
    return {kind: others.get(kind, [stage]) for kind, stage in STAGES.items()}
