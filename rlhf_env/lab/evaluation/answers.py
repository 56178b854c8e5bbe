"""What agents, models and files answer to the same prompts: for blind comparison."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from rlhf_env.device_names import AUTO
from rlhf_env.envs.rewards import NoReward, RewardMix
from rlhf_env.envs.tasks import held_out
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.errors import ConfigError
from rlhf_env.feedback.asking.collecting import read_responses
from rlhf_env.feedback.interchange.provenance import prompt_from
from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.lab.evaluation.against_reference import ReferenceWriter
from rlhf_env.lab.evaluation.another_reference import load_other
from rlhf_env.lab.evaluation.evaluator import Evaluator, longest_prompt
from rlhf_env.lab.evaluation.runs import load_run
from rlhf_env.learning.collect import collect_with
from rlhf_env.policies.low_precision import writing_exactly
from rlhf_env.runs_on_disk import run_in
from rlhf_env.types import Prompt

AgentAnswers = list[tuple[Prompt, Response]]


def answers_of(
    sources: Mapping[str, str],
    *,
    prompts: int | None = None,
    checkpoint: Literal["best", "last"] = "best",
    trust_code: bool = False,
    device: str = AUTO,
    on_source: Callable[[int], None] = lambda _: None,
) -> list[AgentAnswers]:
    """What each source, by the name that results speak of, has answered or answers now.

    A source is a run's folder; a model (folder, shipped, hub name), which answers what the first run among the sources
    is evaluated on; the evaluation.json or result file of a run; or a table with the columns prompt and response.
    Raises ConfigError for what is none of these, and for a model without a run beside it.
    """
    runs = [path for path in sources.values() if run_in(Path(path).expanduser()) is not None]
    written = []
    for place, (name, path) in enumerate(sources.items()):
        on_source(place)
        if path in runs:
            given = {"prompts": prompts, "checkpoint": checkpoint, "trust_code": trust_code, "device": device}
            written += answers_of_run(_run_folder(path), name, **given)  # type: ignore[arg-type]
        elif Path(path).is_file() or (Path(path).suffix and not Path(path).is_dir()):
            written.append(_answers_in(Path(path), Author("policy", name)))
        elif not runs:
            if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
                raise ConfigError(f"{path} holds no run: it has no experiment.toml (rlhf-env train makes such folders)")
            raise ConfigError(
                f"{path}: a model answers the prompts of a run, and no run is among the sources: name one, or give "
                "files of answers"
            )
        else:
            written.append(_answers_of_model(path, name, _run_folder(runs[0]), prompts, trust_code, device))
    return written


def _run_folder(path: str) -> Path:
    folder = Path(path).expanduser()
    return run_in(folder) or folder


def _answers_in(path: Path, author: Author) -> AgentAnswers:
    """The answers in a file."""
    if path.suffix.lower() != ".json":
        return read_responses(path, author)
    try:
        samples = json.loads(path.read_text(encoding="utf-8"))["samples"]
        return [(prompt_from(it["prompt"], {}), Response(it["response"], author)) for it in samples]
    except (OSError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, ConfigError):
            error.found_in(str(path))
            raise
        raise ConfigError(f"{path}: no samples of a run can be read from it: {error!r}") from error


def _answers_of_model(
    model: str, name: str, run: Path, prompts: int | None, trust_code: bool, device: str
) -> AgentAnswers:
    """A model with a tokenizer of its own answers what the run is evaluated on, with the evaluator's seed."""
    workplace = load_run(run, trust_code=trust_code, device=device).workplace
    policy, tokenizer = load_other(workplace, model)
    evaluation, ours = workplace.experiment.evaluation, workplace.env
    rows = prompts or evaluation.prompts
    asked = replace(workplace.experiment, evaluation=replace(evaluation, prompts=rows))
    env = TextVectorEnv(
        rows,
        task=held_out(ours.task),
        reward=RewardMix({"none": NoReward()}),
        tokenizer=tokenizer,
        max_new_tokens=ours.max_new_tokens,
        max_prompt_tokens=longest_prompt(replace(workplace, experiment=asked), tokenizer),
        action_length=ours.action_length,
        autoreset_mode="Disabled",
        stop=ours.stop,
    )
    seed = evaluation.seed + 1_000_003 * workplace.experiment.seed
    policy.reseed(seed)
    setup = replace(workplace.setup, policy=policy, reference=policy, tokenizer=tokenizer, reward=env.reward)
    with writing_exactly(policy):
        rollout = collect_with(env, ReferenceWriter(setup), {"indices": list(range(rows))}, seed=seed)
    author = Author("policy", name)
    return [(episode.prompt, Response.from_episode(episode, author)) for episode in rollout.episodes]


def answers_of_run(
    folder: str | Path,
    name: str,
    *,
    prompts: int | None = None,
    checkpoint: Literal["best", "last"] = "last",
    reference: str = "",
    trust_code: bool = False,
    device: str = AUTO,
) -> list[AgentAnswers]:
    """The answers of the agent, under the name of a policy; and, under the name `reference`, those of the model that it
    began as. Both write with the evaluator's random numbers, to `prompts` prompts (default: as many as the run says).
    `trust_code` and `device`: see `load_run`.
    """
    workplace = load_run(folder, checkpoint, trust_code=trust_code, device=device).workplace
    evaluation = replace(workplace.experiment.evaluation, samples=1, pass_at=[])  # one answer to each prompt
    if prompts is not None:
        evaluation = replace(evaluation, prompts=prompts)
    workplace = replace(workplace, experiment=replace(workplace.experiment, evaluation=evaluation))
    evaluator = Evaluator.of(workplace)
    writers = [(name, workplace.agent)]
    if reference:
        writers.append((reference, ReferenceWriter(workplace.setup)))
    written: list[AgentAnswers] = []
    for called, writer in writers:
        rollout, _ = evaluator.texts(writer)
        author = Author("policy", called)
        written.append([(episode.prompt, Response.from_episode(episode, author)) for episode in rollout.episodes])
    return written
