"""Responses of a model, to be judged: several to each prompt, at several temperatures, into a preference store.

    write_responses(Path("prefs.sqlite"), Responses(model="runs/sft", task={"name": "chitchat"}), console=console)

The draws are those of the settings alone. What is written is kept batch by batch, with the place in the random streams
beside the store, so that a call that was stopped goes on where it was, and comes to the texts of one that was not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, NamedTuple

from annotated_types import MinLen
from rich.console import Console

from rlhf_env.device_names import AUTO, problems_of_device
from rlhf_env.envs.rewards import NoReward, RewardMix
from rlhf_env.envs.tasks import load_task, prompt_at
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.envs.tokenizers import keeping_special
from rlhf_env.errors import Problem, under
from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.lab.progress import stage
from rlhf_env.learning.agent import Setup
from rlhf_env.learning.checkpoints import fingerprint
from rlhf_env.learning.collect import collect
from rlhf_env.learning.engine import Engine
from rlhf_env.learning.making_agents import make_agent
from rlhf_env.learning.models import load_policy, load_tokenizer_of, with_vocabulary_of
from rlhf_env.learning.policy_settings import PolicySettings
from rlhf_env.learning.prompt_lengths import require_prompts_fit
from rlhf_env.learning.spending import Spending
from rlhf_env.policies.policy import HasContext, Policy, Sampling
from rlhf_env.runs_on_disk import experiment_table_of, run_in
from rlhf_env.settings import AtLeastOne, Chooses, IsPath, Name, Positive, Seed, settings
from rlhf_env.types import Episode, JsonObject, Prompt, State, Task, Tokenizer
from rlhf_env.whole_files import write_json


@settings
class Responses:
    """What is asked of whom, how often, and how."""

    model: Annotated[Name, IsPath()]
    """Who writes: a folder, the folder of a run, a shipped model, a hub name; "tiny" with a `tokenizer`."""
    tokenizer: Annotated[Name, IsPath()] | None = None
    """Default: the model's own."""
    device: str = AUTO
    """Where the model computes, as in [policy]."""
    task: Annotated[JsonObject, Chooses("task")] = field(default_factory=lambda: {"name": "chitchat"})
    """What is asked: the task's name, and the task's own settings."""
    prompts: AtLeastOne = 1000
    """How many prompts of the task, from the first one on."""
    temperatures: Annotated[tuple[Positive, ...], MinLen(1)] = (0.7, 1.0, 1.4)
    """Each prompt is answered at each of these: two or more give answers to compare."""
    samples: AtLeastOne = 1
    """Answers to a prompt at each temperature."""
    author: str = ""
    """What the store calls the writer (default: the model, as it is named here)."""
    num_envs: AtLeastOne = 64
    """Texts side by side."""
    max_new_tokens: AtLeastOne = 24
    """The longest response, in tokens."""
    max_prompt_tokens: AtLeastOne = 32
    """The longest prompt, in tokens."""
    stop: list[str] | None = None
    """Strings that end an answer, as in [environment] (default: of a run, those that it was trained with)."""
    seed: Seed = 0
    """What the answers are drawn from."""

    def problems(self) -> Iterator[Problem]:
        yield from problems_of_device(self.device)


class AnswersWritten(NamedTuple):
    """What a call of `write_into` wrote."""

    answers: int
    tokens: int


def write_responses(store: Path, wanted: Responses, *, console: Console) -> int:
    """Write what is `wanted`, and not written yet, into a preference store, made if need be; how many answers.

    Their author is `Author("policy", NAME, TEMPERATURE)`; answers to a prompt that say the same are kept once. Beside
    the store, STORE.writing.json remembers how far the writing has come. Raises ConfigError, before anything is
    written, for a model or a task that cannot be loaded, and for prompts that are too long.
    """
    with PreferenceStore(store) as opened:
        return write_into(opened, wanted, console=console, place=store.with_name(f"{store.name}.writing.json")).answers


def write_into(
    store: PreferenceStore, wanted: Responses, *, console: Console, place: Path | None = None
) -> AnswersWritten:
    """The same into an open store. In `place` it is remembered how far the writing has come; None: nowhere."""
    with under("task"):
        task = load_task(wanted.task)
    model = PolicySettings(model=wanted.model, tokenizer=wanted.tokenizer, device=wanted.device)
    with under("model"):
        tokenizer = load_tokenizer_of(model)
        policy = load_policy(model, tokenizer, task, max_new_tokens=wanted.max_new_tokens, seed=wanted.seed)
        tokenizer = with_vocabulary_of(tokenizer, policy, wanted.model)
        tokenizer = keeping_special(tokenizer, _of_training(wanted.model, "keep_special"))
    writing = _Writing(wanted, task, tokenizer, policy)
    writing.check_prompts()
    progress = _Progress.of(place, store, writing)
    answers = tokens = 0
    with stage(console, "The model answers") as tell:
        for batch in writing.batches(progress):
            store.add_responses((it.prompt, Response.from_episode(it, batch.author)) for it in batch.episodes)
            tokens += sum(len(it.response_ids) for it in batch.episodes)
            answers += len(batch.episodes)
            progress.note(batch, policy)
            tell(
                batch.number / writing.batches_in_all, f"{answers:,} answers, temperature {batch.author.temperature:g}"
            )
    return AnswersWritten(answers, tokens)


def _of_training(model: str, setting: str) -> list[str]:
    """What a list of a run's [environment] holds: "stop", "keep_special"; nothing of another model."""
    run = run_in(Path(model).expanduser())
    return [] if run is None else list(experiment_table_of(run).get("environment", {}).get(setting, ()))


class _Batch(NamedTuple):
    number: int  # from 1 on, over all temperatures
    author: Author
    episodes: list[Episode]


class _Writing:
    """The batches in their order: temperature by temperature, at each of them sample by sample, prompts in order."""

    def __init__(self, wanted: Responses, task: Task, tokenizer: Tokenizer, policy: Policy) -> None:
        self.wanted, self.task, self.policy, self.tokenizer = wanted, task, policy, tokenizer
        self.prompts = wanted.prompts if task.size is None else min(wanted.prompts, task.size)
        self.env = TextVectorEnv(
            wanted.num_envs,
            task=task,
            reward=RewardMix({"none": NoReward()}),
            tokenizer=tokenizer,
            max_new_tokens=wanted.max_new_tokens,
            max_prompt_tokens=wanted.max_prompt_tokens,
            action_length=None,
            autoreset_mode="Disabled",
            stop=_of_training(wanted.model, "stop") if wanted.stop is None else wanted.stop,
        )
        spending = Spending()
        setup = Setup(
            policy=policy,
            reference=policy,
            tokenizer=tokenizer,
            reward=self.env.reward,
            batch_size=wanted.num_envs,
            action_length=self.env.action_length,
            max_new_tokens=self.env.max_new_tokens,
            seed=wanted.seed,
            engine=Engine(spending, str(policy.device)),
            spending=spending,
        )
        self.writer = make_agent("reference", setup)

    @property
    def batches_in_all(self) -> int:
        return -(-self.prompts // self.wanted.num_envs) * self.wanted.samples * len(self.wanted.temperatures)

    def prompt(self, index: int) -> Prompt:
        return prompt_at(self.task, index, {})

    def check_prompts(self) -> None:
        """Raise DataError with every prompt that does not fit."""
        require_prompts_fit(
            [self.task],
            self.tokenizer,
            max_prompt_tokens=self.env.max_prompt_tokens,
            max_new_tokens=self.env.max_new_tokens,
            context=self.policy.context if isinstance(self.policy, HasContext) else None,
            first=self.prompts,
        )

    def batches(self, progress: _Progress) -> Iterator[_Batch]:
        wanted, size, number = self.wanted, self.wanted.num_envs, 0
        for temperature in wanted.temperatures:
            self.policy.sampling = Sampling(temperature=temperature)
            self.policy.reseed(wanted.seed + round(1000 * temperature))
            author = Author("policy", wanted.author or wanted.model, float(temperature))
            for _ in range(wanted.samples):
                for start in range(0, self.prompts, size):
                    number += 1
                    if number < progress.batches:
                        continue
                    if number == progress.batches:  # the last one that is written
                        self.policy.load_sampling_state(progress.state)
                        continue
                    indices = list(range(start, min(start + size, self.prompts)))
                    padded = (indices * size)[:size]
                    written = collect(self.env, self.writer, {"indices": padded}).episodes
                    yield _Batch(number, author, list(written[: len(indices)]))


class _Progress:
    """How many batches are written, and the random streams after the last of them; in a file, if there is one."""

    def __init__(self, file: Path | None, key: str, batches: int = 0, state: State | None = None) -> None:
        self.file, self.key, self.batches, self.state = file, key, batches, state or {}

    @classmethod
    def of(cls, file: Path | None, store: PreferenceStore, writing: _Writing) -> _Progress:
        """As the file says, if it speaks of the same weights and settings, and of this store."""
        asked = {name: value for name, value in asdict(writing.wanted).items() if name != "device"}
        content = [asked, fingerprint(writing.policy.state_dict())]
        key = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
        known = {} if file is None else _read(file)
        if known.get("of") != key or not isinstance(known.get("batches"), int):
            return cls(file, key)
        name = writing.wanted.author or writing.wanted.model
        first = {writing.prompt(0).text}
        there = any(
            response.author.kind == "policy" and response.author.name == name and prompt.text in first
            for prompt, response in store.responses()
        )
        return cls(file, key, known["batches"], known.get("streams")) if there else cls(file, key)

    def note(self, batch: _Batch, policy: Policy) -> None:
        self.batches, self.state = batch.number, policy.sampling_state()
        if self.file is not None:
            write_json(self.file, {"of": self.key, "batches": self.batches, "streams": self.state})


def _read(file: Path) -> JsonObject:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
