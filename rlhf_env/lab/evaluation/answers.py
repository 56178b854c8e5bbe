"""What a run's agent, or the reference that it began as, answers to the evaluation's prompts: for blind comparison."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.lab.evaluation.against_reference import ReferenceWriter
from rlhf_env.lab.evaluation.evaluator import Evaluator
from rlhf_env.lab.evaluation.runs import load_run
from rlhf_env.types import Prompt

Answers = list[tuple[Prompt, Response]]


def answers_of_run(
    folder: str | Path,
    name: str,
    *,
    prompts: int | None = None,
    checkpoint: Literal["best", "last"] = "last",
    reference: str = "",
) -> list[Answers]:
    """The answers of the agent, under the name of a policy; and, under the name `reference`, those of the model that it
    began as. Both write with the evaluator's random numbers, to `prompts` prompts (default: as many as the run says).
    """
    workplace = load_run(folder, checkpoint).workplace
    if prompts is not None:
        evaluation = replace(workplace.experiment.evaluation, prompts=prompts)
        workplace = replace(workplace, experiment=replace(workplace.experiment, evaluation=evaluation))
    evaluator = Evaluator.of(workplace)
    writers = [(name, workplace.agent)]
    if reference:
        writers.append((reference, ReferenceWriter(workplace.setup)))
    written: list[Answers] = []
    for called, writer in writers:
        rollout, _ = evaluator.texts(writer)
        author = Author("policy", called)
        written.append([(episode.prompt, Response.from_episode(episode, author)) for episode in rollout.episodes])
    return written
