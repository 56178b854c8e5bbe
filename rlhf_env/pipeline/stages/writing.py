"""The stage `responses`: a model answers the prompts of a task, several times, at several temperatures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

from annotated_types import MinLen
from rich.console import Console

from rlhf_env.envs.rewards import NoReward, RewardMix
from rlhf_env.envs.tasks import load_task
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.envs.tokenizers import load_tokenizer
from rlhf_env.errors import under
from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.lab.progress import stage
from rlhf_env.learning.agent import Setup
from rlhf_env.learning.collect import collect
from rlhf_env.learning.configuration import from_table
from rlhf_env.learning.engine import Engine
from rlhf_env.learning.making_agents import make_agent
from rlhf_env.learning.spending import Spending
from rlhf_env.pipeline.hashing import Hashes
from rlhf_env.pipeline.stages.stage import Links, Origin, Outcome, Role, Site, linked
from rlhf_env.pipeline.stages.stores import STORE, identity_of, new_store
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.policy import Sampling
from rlhf_env.relative_paths import paths_of, relative_to
from rlhf_env.settings import AtLeastOne, Chooses, IsPath, Name, Positive, Seed, settings
from rlhf_env.types import Episode, JsonObject, JsonView, Task


@settings
class ResponsesStage:
    """A model answers prompts."""

    model: Annotated[Name, IsPath()]
    """Who writes (default: what `from` gives, or the model of [defaults.policy])."""
    task: Annotated[JsonObject, Chooses("task")] = field(default_factory=lambda: {"name": "chitchat"})
    """What is asked (default: the task of [defaults])."""
    prompts: AtLeastOne = 1000
    """How many prompts of the task, from the first one on."""
    temperatures: Annotated[tuple[Positive, ...], MinLen(1)] = (0.7, 1.0, 1.4)
    """One answer to a prompt is sampled at each of these: two or more give answers to compare."""
    author: str = ""
    """What the store calls the writer (default: the stage that made it, or the model)."""
    num_envs: AtLeastOne = 64
    """Texts side by side."""
    max_new_tokens: AtLeastOne = 24
    """The longest response, in tokens."""
    max_prompt_tokens: AtLeastOne = 32
    """The longest prompt, in tokens."""
    seed: Seed = 0
    """What the answers are drawn from."""
    kind: ClassVar[str] = "responses"
    takes: ClassVar[Mapping[Role, bool]] = {"model": False}
    gives: ClassVar[Sequence[Role]] = ("store",)
    aside: ClassVar[frozenset[str]] = frozenset()

    @staticmethod
    def table(own: JsonView, defaults: JsonView, links: Links) -> JsonObject:
        of_environment = {name: defaults[name] for name in _OF_ENVIRONMENT if name in defaults}
        inner = defaults.get("environment")
        if isinstance(inner, Mapping):
            of_environment |= {name: inner[name] for name in _OF_ENVIRONMENT if name in inner}
        given = {key: defaults[key] for key in ("task", "seed") if key in defaults}
        policy = defaults.get("policy")
        if isinstance(policy, Mapping) and "model" in policy:
            given["model"] = policy["model"]
        return {**given, **of_environment, **own, **linked(links, "model")}

    @classmethod
    def of(cls, table: JsonView, origin: Origin) -> ResponsesStage:
        made = relative_to(origin.folder, from_table(cls, table, origin.where), cls)
        assert isinstance(made, cls)
        return made

    def check(self) -> None:
        with under("task"):
            load_task(self.task)
        if not Path(self.model).is_absolute() or Path(self.model).exists():
            with under("model"):
                load_tokenizer(self.model)

    def paths(self) -> Sequence[str]:
        return paths_of(Path(), self, type(self))

    def outputs(self, folder: Path) -> Mapping[str, object]:
        return {"": str(folder / STORE)}

    def work(self, site: Site) -> Outcome:
        author = self.author or next(iter(site.links.get("model", ())), "") or self.model
        with new_store(site.folder) as store:
            tokens = self._write(store, author, site.console)
            count = store.counts().responses
        said = f"{count:,} different answers"
        site.console.print(f"{said} are in {site.folder / STORE}", highlight=False, soft_wrap=True)
        return Outcome({"tokens": float(tokens), "responses": float(count)}, texts={"ended": said})

    def _write(self, store: PreferenceStore, name: str, console: Console) -> int:
        task = load_task(self.task)
        prompts = self.prompts if task.size is None else min(self.prompts, task.size)
        total, done, tokens = prompts * len(self.temperatures), 0, 0
        with stage(console, "The model answers") as tell:
            for temperature in self.temperatures:
                author = Author("policy", name, temperature)
                for batch in self._batches(task, prompts, temperature):
                    for episode in batch:
                        store.add_response(episode.prompt, Response.from_episode(episode, author))
                        tokens += len(episode.response_ids)
                    done += len(batch)
                    tell(done / total, f"{done:,} answers, temperature {temperature}")
        return tokens

    def _batches(self, task: Task, prompts: int, temperature: float) -> Iterator[list[Episode]]:
        policy = LanguageModel.from_pretrained(self.model, sampling=Sampling(temperature=temperature))
        policy.reseed(self.seed + round(1000 * temperature))
        tokenizer = load_tokenizer(self.model)
        env = TextVectorEnv(
            self.num_envs,
            task=task,
            reward=RewardMix({"none": NoReward()}),
            tokenizer=tokenizer,
            max_new_tokens=self.max_new_tokens,
            max_prompt_tokens=self.max_prompt_tokens,
            action_length=None,
            autoreset_mode="Disabled",
        )
        spending = Spending()
        setup = Setup(
            policy=policy,
            reference=policy,
            tokenizer=tokenizer,
            reward=env.reward,
            batch_size=self.num_envs,
            action_length=env.action_length,
            max_new_tokens=env.max_new_tokens,
            seed=self.seed,
            engine=Engine(spending),
            spending=spending,
        )
        writer = make_agent("reference", setup)
        for start in range(0, prompts, self.num_envs):
            wanted = list(range(start, min(start + self.num_envs, prompts)))
            padded = (wanted * self.num_envs)[: self.num_envs]
            yield list(collect(env, writer, {"indices": padded}).episodes[: len(wanted)])

    def is_open(self) -> bool:
        return False

    def identity(self, folder: Path, hashes: Hashes) -> str | None:
        return hashes.remembered(folder / STORE, partial(identity_of, folder / STORE))


_OF_ENVIRONMENT = ("num_envs", "max_new_tokens", "max_prompt_tokens")
