"""What a run needs before it begins: its experiment built and looked through, its data, and what measures it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rlhf_env.envs.tasks import prompt_at
from rlhf_env.envs.tokenizers import conversation_of, has_template
from rlhf_env.errors import ConfigError, DataError, Problem, did_you_mean, under
from rlhf_env.feedback.offline import (
    label_source,
    labels_of,
    load_fitting,
    only_labels,
    pair_source,
    pairs_of,
    require_stored_fit,
)
from rlhf_env.lab.evaluation.evaluator import Evaluator
from rlhf_env.lab.evaluation.likelihood import Likelihood
from rlhf_env.learning.agent import traits
from rlhf_env.learning.demonstrations import demonstration_source, demonstrations_of, note_on_template
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.experiment_checks import check_plugins, wants_shards
from rlhf_env.learning.models import context_before_loading, load_tokenizer_of
from rlhf_env.learning.processes import current
from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.run_models import needing_first_model
from rlhf_env.learning.run_record import config_hash
from rlhf_env.learning.sources import EnvSource, Source
from rlhf_env.learning.workplace import Workplace, build
from rlhf_env.plugins import host, name_in
from rlhf_env.policies.policy import HasContext
from rlhf_env.runs_on_disk import asked_in_plain
from rlhf_env.toml_files import naming_lines
from rlhf_env.types import JsonView


def prepare(experiment: Experiment | JsonView | str | Path, folder: str | Path | None = None) -> Workplace:
    """The experiment, built; and a look at what is used later only: every prompt, stored preferences, the gold reward.

    `folder`: a run in it goes on as it began. Raises ConfigError; of a file, with the line.
    """
    if isinstance(experiment, (str, Path)):
        with naming_lines(experiment):
            return prepare(Experiment.load(experiment), folder)
    wanted = experiment if isinstance(experiment, Experiment) else Experiment.from_table(experiment)
    wanted = replace(wanted, asks_in_plain=folder is not None and asked_in_plain(Path(folder)))
    shard = "true" if wants_shards(wanted) else "false"  # which is no part of what a run is
    current().require_equal({"experiment": config_hash(wanted.to_toml()), "[engine] shard": shard})
    _require_stored_fit(wanted)
    with needing_first_model(folder, wanted.policy):
        workplace = build(wanted)
    if workplace.rewarded or not traits(workplace.agent).imitates:
        with under("task"):
            workplace.check_prompts()
    _say_how_conversations_are_asked(workplace)
    workplace = with_data(workplace)
    _ = workplace.evaluation_rewards
    evaluator = evaluator_of(workplace)
    if isinstance(evaluator, Likelihood):
        with under("task"):
            _ = evaluator.answers
    is_better_when_lower(evaluator)  # the measure is one that there is
    return workplace


def _say_how_conversations_are_asked(workplace: Workplace) -> None:
    """Warn where messages are written down in the plain layout, which nobody asked for and is no model's own."""
    own, prompt = has_template(workplace.setup.tokenizer), prompt_at(workplace.env.task, 0, {})
    as_before = workplace.experiment.asks_in_plain and prompt.as_text
    if (own and as_before) or (conversation_of(prompt) and not own):
        why = "as when the run began, before the model's own chat template was the default"
        said = "the task's conversations are asked as lines of 'User: ...' and 'Assistant: ...'"
        warnings.warn(f"{said}: {why if own else 'the model has no chat template'}", RuntimeWarning, stacklevel=2)


def evaluator_of(workplace: Workplace, on_texts: Callable[[Rollout], None] | None = None) -> Evaluator | Likelihood:
    """What measures the workplace's agent: by what it writes or, if it imitates, by how likely given answers are.

    `on_texts` is called with what it writes, each time.
    """
    if traits(workplace.agent).imitates:
        return Likelihood(workplace, on_texts=on_texts)
    return Evaluator.of(workplace, on_texts)


def _require_stored_fit(experiment: Experiment) -> None:
    """Name every stored text that the model cannot read, before it is loaded."""
    if experiment.preferences is None or experiment.environment.over_long != "refuse":
        return
    check_plugins(experiment)
    located = experiment.located()
    context = context_before_loading(located.policy)
    if context is None:
        return
    with under("policy"):
        tokenizer = load_tokenizer_of(located.policy)
    agent = host().load("agent", name_in(dict(located.agent), "agent") or "")
    with under("preferences"):
        labels = bool(getattr(agent, "takes_labels", False))
        require_stored_fit(str(located.preferences), tokenizer, context, labels=labels)


def with_data(workplace: Workplace) -> Workplace:
    """With what the agent learns from as the source of rollouts, where that is not what it writes: the experiment's
    `preferences`, or the answers that its task gives."""
    experiment, setup = workplace.experiment, workplace.setup
    if not isinstance(workplace.source, EnvSource):
        return workplace
    rows, seed, notes = experiment.environment.num_envs, experiment.seed, workplace.notes
    context = setup.policy.context if isinstance(setup.policy, HasContext) else None
    if experiment.preferences is not None:
        with under("preferences"):
            path = str(experiment.located().preferences)
            judgements, count = load_fitting(path, setup.tokenizer, context, experiment.environment.over_long)
            if count:
                notes += (count.said_of("judgements", (context or 0) + 1),)
            if traits(workplace.agent).takes_labels and only_labels(judgements):
                labels = list(labels_of(judgements))
                labelled = label_source(labels, setup.tokenizer, rows=rows, seed=seed, reference=setup.reference)
                return replace(workplace, source=labelled, notes=notes)
            stored = pairs_of(judgements, path)
            if traits(workplace.agent).takes_margins and all(pair.margin is None for pair in stored):
                raise DataError(
                    f"{path}: the agent learns from margins, and none of the {len(stored):,} pairs has one: a column "
                    "'margin', or ratings of both answers ('chosen_rating' and 'rejected_rating'); or margin = "
                    "'ignore' in [agent]"
                )
        pairs = max(1, rows // 2)
        source: Source = pair_source(stored, setup.tokenizer, pairs=pairs, seed=seed, reference=setup.reference)
    elif traits(workplace.agent).imitates:
        with under("task"):
            wanted, over_long = traits(workplace.agent).demonstrated, experiment.environment.over_long
            answers = demonstrations_of(
                workplace.env.task, setup.tokenizer, context=context, wanted=wanted, over_long=over_long
            )
        if answers.count:
            notes += (answers.count.said_of("demonstrations", (context or 0) + 1),)
        if note := note_on_template(answers, setup.tokenizer):
            notes += (note,)
        source = demonstration_source(answers, setup.tokenizer, rows=rows, seed=seed, wanted=wanted, context=context)
    else:
        return workplace
    return replace(workplace, source=source, notes=notes)


def is_better_when_lower(evaluator: Evaluator | Likelihood) -> bool:
    """Of the measure by which the best agent is known. Raises ConfigError for a name that no measure can have."""
    best = evaluator.workplace.experiment.evaluation.best
    if best.startswith("part/"):
        return False
    by_name = {metric.name: metric for metric in evaluator.metrics}
    if best not in by_name:
        with under("evaluation"):
            raise ConfigError(Problem(f"best = {best!r} is no measure{did_you_mean(best, by_name)}", ("best",)))
    return by_name[best].better == "lower"
