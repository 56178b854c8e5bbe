"""pass@k: how often at least one of k answers to a prompt is a success, and its interval over prompts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_env.envs.success import Success
from rlhf_env.errors import ConfigError
from rlhf_env.feedback.reward_models.calibration import wilson_interval
from rlhf_env.lab.evaluation.metric import Measured, Metric
from rlhf_env.lab.statistics import Estimate, mean_of_seeds, pass_at_k
from rlhf_env.types import Float, Score


@dataclass(frozen=True)
class PassAt:
    """pass@k of an agent and of its reference, on the same prompts."""

    k: int
    agent: Estimate
    reference: Estimate
    difference: Estimate


def pass_metric(k: int, success: Success) -> Metric:
    """The entry of the table of metrics that measures pass@k."""
    return Metric(
        name=f"pass_at_{k}",
        title=f"pass@{k}",
        unit="share of prompts",
        meaning=f"prompts with a success ({success}) among {k} answer{'s' * (k > 1)}, in expectation",
        better="higher",
        measure=lambda replies: _measured(replies, k, success),
        form="share",
        digits=1,
        tables=("table",),
        curve="curves",
    )


def compared(ours: Measured, theirs: Measured, k: int, success: Success) -> PassAt | None:
    """None where no prompt has k answers of both that could be judged.

    Raises ConfigError where `success` compares with nothing and an answer is neither right nor wrong.
    """
    of_agent, of_reference = (_of(replies, k, success) for replies in (ours, theirs))
    prompts = [prompt for prompt in of_agent if prompt in of_reference]
    values = [{prompt: passed[prompt] for prompt in prompts} for passed in (of_agent, of_reference)]
    agent, reference = map(share_passed, values)
    if agent is None or reference is None:
        return None
    differences = np.array([values[0][prompt] - values[1][prompt] for prompt in prompts])
    return PassAt(k, agent, reference, mean_of_seeds(differences, paired=True))


def share_passed(of_prompts: dict[str, float]) -> Estimate | None:
    """The mean over prompts, each a number in [0, 1], with its 95 % interval; None without prompts."""
    values = np.array(list(of_prompts.values()))
    if not values.size:
        return None
    found = mean_of_seeds(values, paired=True)
    all_or_nothing = bool(((values == 0.0) | (values == 1.0)).all())
    if all_or_nothing or found.low is None or found.high is None:
        # Wilson's holds for shares of prompts that are solved or not, and is too wide for what lies between.
        return Estimate(found.value, *wilson_interval(found.value, len(values)))
    return Estimate(found.value, max(found.low, 0.0), min(found.high, 1.0))


def _measured(replies: Measured, k: int, success: Success) -> Estimate | None:
    """A run does not end because an evaluation on the way meets an answer that is neither right nor wrong."""
    try:
        return share_passed(_of(replies, k, success))
    except ConfigError as error:
        warnings.warn(f"pass@{k} is not measured: {error}", RuntimeWarning, stacklevel=2)
        return None


def _of(replies: Measured, k: int, success: Success) -> dict[str, float]:
    """Of each prompt with at least k answers that could be judged, how likely k of them hold a success."""
    found: dict[str, list[float]] = {}
    for prompt, solved in zip(replies.prompts, success.of(_values(replies.rollout.scores, success)), strict=True):
        if not np.isnan(solved):
            found.setdefault(prompt, []).append(float(solved))
    return {prompt: pass_at_k(len(all_of), int(sum(all_of)), k) for prompt, all_of in found.items() if len(all_of) >= k}


def _values(scores: Sequence[Score], success: Success) -> Float:
    """float64[N]: what the part says of each answer, NaN where nothing; one of the training reward before one of the
    evaluation's alone."""
    of_training, of_evaluation = f"part/{success.part}", f"gold/{success.part}"
    name = of_training if any(of_training in score.raw for score in scores) else of_evaluation
    return np.array([score.raw.get(name, np.nan) for score in scores], dtype=np.float64)
