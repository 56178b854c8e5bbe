"""The table of metrics: what is measured of an agent's replies, what each number means, and where a report shows it.

One entry of `METRICS` is all that a metric takes. The evaluator measures it, results keep it under its name, and the
report makes its column, its curve and its line in the legend from the words of the entry.

A plugin offers a metric through the hook `register_metrics` (in a script: `rlhf_env.register_metric`):

    LOUD = Metric(name="loud", title="Loud", unit="share of replies", meaning="replies that shout",
                  measure=lambda replies: float(np.mean(["!" in text for text in replies.texts])), form="share")

    @hookimpl
    def register_metrics(register):
        register("loud", "my_package.metrics:LOUD")

and an experiment asks for it by name, `metrics = ["loud"]` in [evaluation], or where it is: `["loud.py:LOUD"]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rlhf_env import plugins
from rlhf_env.envs.success import Success
from rlhf_env.envs.tasks import well_formed
from rlhf_env.errors import PluginError
from rlhf_env.lab.evaluation.metric import Measured, Metric, MetricValue
from rlhf_env.lab.evaluation.passing import pass_metric
from rlhf_env.lab.statistics import student_mean
from rlhf_env.own_code import OwnCode, names_code
from rlhf_env.text_measures import distinct_n

if TYPE_CHECKING:
    from rlhf_env.learning.experiment import EvaluationSettings
    from rlhf_env.learning.rollout import Rollout


def _kl(replies: Measured) -> MetricValue:
    if replies.kl_bound is not None:
        return replies.kl_bound
    return student_mean(replies.divergence, replies.prompts)


def entropy(rollout: Rollout) -> float:
    """Of the policy that wrote the rollout, in nats per token: the mean of -log p over the tokens that it drew."""
    return -float(rollout.logprobs.sum()) / max(int(rollout.actions.sum()), 1)


def _cut_at_limit(replies: Measured) -> float:
    return float(np.mean([episode.finish_reason == "length" for episode in replies.episodes]))


def _format_failures(replies: Measured) -> float:
    return float(np.mean([not well_formed(replies.task, episode) for episode in replies.episodes]))


def _inference_tokens(replies: Measured) -> float:
    return (int(replies.rollout.actions.sum()) + replies.thrown_away) / len(replies.episodes)


def _prompts_in_training(replies: Measured) -> MetricValue:
    asked = replies.asked
    return None if asked is None or asked.in_training is None else float(asked.in_training)


def _prompts_cut(replies: Measured) -> MetricValue:
    return float(replies.asked.cut) if replies.asked is not None and replies.asked.cut else None


def _prompts_left_out(replies: Measured) -> MetricValue:
    return float(replies.asked.left_out) if replies.asked is not None and replies.asked.left_out else None


METRICS: tuple[Metric, ...] = (
    Metric(
        name="gold",
        title="Gold reward",
        heading="Gold",
        meaning="reward that no agent was trained on",
        better="higher",
        measure=lambda replies: replies.rewards.get("gold"),
        tables=("table",),
        curve="curves",
    ),
    Metric(
        name="proxy",
        title="Proxy reward",
        heading="Proxy",
        meaning="reward that the agents were trained on: its parts that judge a reply alone, without KL",
        better="higher",
        measure=lambda replies: replies.rewards.get("proxy"),
        tables=("table",),
        curve="curves",
    ),
    Metric(
        name="objective",
        title="Objective",
        meaning="the whole reward that training maximises, KL and what compares a group included",
        better="higher",
        measure=lambda replies: replies.rewards["objective"],
        tables=(),
    ),
    Metric(
        name="kl",
        title="KL to the reference",
        heading="KL",
        unit="nats per reply",
        meaning="distance to the reference, estimated from the replies",
        measure=_kl,
        tables=("table",),
        exact="kl_exact",
        bound="kl_is_bound",
    ),
    Metric(
        name="kl_exact",
        title="KL to the reference, exact",
        unit="nats per reply",
        meaning="the distance as a sum over all texts, where these are few enough",
        measure=lambda replies: replies.kl_exact,
        tables=(),
    ),
    Metric(
        name="kl_is_bound",
        title="KL is a bound",
        meaning="1 where the KL is the agent's analytic upper bound, not an estimate",
        measure=lambda replies: float(replies.kl_bound is not None),
        digits=0,
        tables=(),
    ),
    Metric(
        name="length",
        title="Length",
        unit="tokens per reply",
        meaning="how long the replies are, the end token included",
        measure=lambda replies: float(np.mean([episode.actions.sum() for episode in replies.episodes])),
        digits=1,
        tables=("table",),
        curve="drift",
    ),
    Metric(
        name="distinct_2",
        title="Diversity",
        heading="Distinct-2",
        unit="share of word pairs",
        meaning="different word pairs over all word pairs of all replies",
        better="higher",
        measure=lambda replies: distinct_n(replies.texts, 2),
        tables=("table",),
        curve="drift",
    ),
    Metric(
        name="entropy",
        title="Entropy",
        unit="nats per token",
        meaning="of the policy, on the tokens that it drew",
        measure=lambda replies: None if replies.kl_bound is not None or replies.resampled else entropy(replies.rollout),
    ),
    Metric(
        name="distinct_replies",
        title="Different replies",
        heading="Different",
        unit="share of replies",
        meaning="different replies over all replies",
        better="higher",
        measure=lambda replies: len(set(replies.texts)) / len(replies.texts),
        form="share",
        digits=1,
    ),
    Metric(
        name="cut_at_limit",
        title="Cut at the limit",
        heading="Cut",
        unit="share of replies",
        meaning="replies cut off at the limit of their length",
        better="lower",
        measure=_cut_at_limit,
        form="share",
        digits=1,
    ),
    Metric(
        name="format_failures",
        title="Off form",
        unit="share of replies",
        meaning="replies without the form that the task asks for, or without an end",
        better="lower",
        measure=_format_failures,
        form="share",
        digits=1,
    ),
    Metric(
        name="rows_without_score",
        title="Replies without a score",
        unit="replies",
        meaning="left out of all numbers, because a reward failed on them",
        better="lower",
        measure=lambda replies: float(replies.unscored) or None,
        form="count",
        tables=(),
    ),
    Metric(
        name="prompts",
        title="Prompts",
        unit="prompts",
        meaning="different prompts that were answered",
        measure=lambda replies: float(len(set(replies.prompts))),
        form="count",
        tables=(),
    ),
    Metric(
        name="prompts_in_training",
        title="Prompts of training",
        unit="prompts",
        meaning="of the prompts asked, those that training uses too: 0 where all were held out",
        better="lower",
        measure=_prompts_in_training,
        form="count",
        tables=(),
    ),
    Metric(
        name="prompts_cut",
        title="Prompts cut",
        unit="prompts",
        meaning="of the prompts asked, those that were too long and cut",
        measure=_prompts_cut,
        form="count",
        tables=(),
    ),
    Metric(
        name="prompts_left_out",
        title="Prompts left out",
        unit="prompts",
        meaning="too long to be asked, and left out",
        measure=_prompts_left_out,
        form="count",
        tables=(),
    ),
    Metric(
        name="generated_tokens",
        spent=True,
        title="Train tokens",
        unit="tokens",
        meaning="generated in training",
        better="lower",
        form="count",
        tables=("table", "spending"),
        spread=False,
    ),
    Metric(
        name="reward_calls",
        spent=True,
        title="Reward calls",
        unit="replies",
        meaning="replies scored in training",
        better="lower",
        form="count",
        tables=("spending",),
        spread=False,
    ),
    Metric(
        name="preference_labels",
        spent=True,
        title="Labels",
        unit="pairs",
        meaning="preferences between two replies that training used",
        better="lower",
        form="count",
        tables=("spending",),
        spread=False,
    ),
    Metric(
        name="gradient_steps",
        spent=True,
        title="Gradient steps",
        unit="steps",
        meaning="steps of the optimizer in training",
        better="lower",
        form="count",
        tables=("spending",),
        spread=False,
    ),
    Metric(
        name="gradient_tokens",
        spent=True,
        title="Gradient tokens",
        unit="tokens",
        meaning="read, prompts and every pass too, to compute gradients in training",
        better="lower",
        form="count",
        tables=("spending",),
        spread=False,
    ),
    Metric(
        name="inference_tokens",
        title="Reply tokens",
        unit="tokens per reply",
        meaning="written for each reply that is shown, thrown away ones included",
        better="lower",
        measure=_inference_tokens,
        form="count",
        tables=("table", "spending"),
    ),
    Metric(
        name="seconds",
        spent=True,
        title="Seconds",
        unit="seconds",
        meaning="wall time of training",
        better="lower",
        digits=0,
        tables=("table", "spending"),
    ),
)


def metrics_of(evaluation: EvaluationSettings) -> tuple[Metric, ...]:
    """What an experiment measures: the table, the metrics of plugins, and pass@k for each k that is asked for."""
    success = Success.read(evaluation.success)
    passing = [pass_metric(k, success) for k in dict.fromkeys(evaluation.pass_at)]
    return (*with_plugins(evaluation.metrics or ()), *passing)


def with_plugins(names: Sequence[str]) -> tuple[Metric, ...]:
    """The table and, below it, the metrics of plugins with these names. Raises ConfigError for one that is none."""
    return (*METRICS, *map(_of_plugin, dict.fromkeys(names)))


def _of_plugin(name: str) -> Metric:
    code = OwnCode(name) if names_code(name) else None
    entry = plugins.host().entry("metric", code or name)
    metric = entry.load()
    who = f"the metric {name!r} of {entry.origin}"
    if code is not None and isinstance(metric, Metric):
        name, who = metric.name, f"the metric {code.shown()}"
    if code is not None and not isinstance(metric, Metric):
        raise plugins.wrong_kind("metric", code, metric)
    if not isinstance(metric, Metric):
        raise PluginError(f"{who} is {metric!r}, and not a Metric of {Metric.__module__}")
    if metric.name != name:
        raise PluginError(f"{who} calls itself {metric.name!r}: register it under its own name")
    if any(own.name == name for own in METRICS):
        raise PluginError(f"{who} has the name of a metric that is there already: give it another one")
    if metric.measure is None:
        raise PluginError(f"{who} has no `measure`")
    return metric


def meaning_of(key: str, metrics: Sequence[Metric] = METRICS) -> str:
    """What a number that an evaluation logged means, and its unit; empty for a key of none of the `metrics`."""
    key = key.removeprefix("eval/")
    if key.startswith("part/"):
        return f"reward part {key.removeprefix('part/')}, before its weight"
    if key.startswith("earned/"):
        return f"what the part {key.removeprefix('earned/')} comes to in the objective, where it is of some tasks alone"
    if key.startswith("task/") and key.count("/") > 1:
        label, _, name = key.removeprefix("task/").rpartition("/")
        if name == "replies":
            return f"replies to prompts of the task {label} of the mixture"
        return f"{words}, on the task {label} of the mixture" if (words := meaning_of(name, metrics)) else ""
    for ending, words in (
        ("_std", "spread over replies of: "),
        ("_low", "lower end of: "),
        ("_high", "upper end of: "),
    ):
        metric = next((entry for entry in metrics if entry.name == key.removesuffix(ending)), None)
        if metric is not None:
            unit = f" ({metric.unit})" if metric.unit else ""
            return f"{words if key != metric.name else ''}{metric.meaning}{unit}"
    return ""
