"""The stage `responses`: a model answers the prompts of a task, several times, at several temperatures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

from rlhf_env.device_names import AUTO
from rlhf_env.envs.tasks import load_task
from rlhf_env.errors import under
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.learning.configuration import from_table
from rlhf_env.learning.models import context_before_loading, load_tokenizer_of
from rlhf_env.learning.policy_settings import PolicySettings
from rlhf_env.learning.prompt_lengths import require_prompts_fit
from rlhf_env.pipeline.hashing import Hashes
from rlhf_env.pipeline.responses import Responses, write_into
from rlhf_env.pipeline.stages.stage import Links, Role, Site, StageOrigin, StageOutcome, linked
from rlhf_env.pipeline.stages.stores import STORE, identity_of
from rlhf_env.relative_paths import paths_of, relative_to
from rlhf_env.settings import Chooses, IsPath, Name, settings
from rlhf_env.shown_text import near
from rlhf_env.types import JsonObject, JsonView


@settings
class ResponsesStage(Responses):
    """A model answers prompts."""

    model: Annotated[Name, IsPath()]
    """Who writes (default: what `from` gives, or the model of [defaults.policy])."""
    tokenizer: Annotated[Name, IsPath()] | None = None
    """Default: the model's own, or that of [defaults.policy]."""
    device: str = AUTO
    """Where the model computes, as in [policy] (default: as in [defaults.policy])."""
    task: Annotated[JsonObject, Chooses("task")] = field(default_factory=lambda: {"name": "chitchat"})
    """What is asked (default: the task of [defaults])."""
    author: str = ""
    """What the store calls the writer (default: the stage that made it, or the model)."""
    kind: ClassVar[str] = "responses"
    takes: ClassVar[Mapping[Role, bool]] = {"model": False}
    gives: ClassVar[Sequence[Role]] = ("store",)
    aside: ClassVar[frozenset[str]] = frozenset({"device"})
    takes_larger_budget: ClassVar[bool] = False

    @staticmethod
    def table(own: JsonView, defaults: JsonView, links: Links) -> JsonObject:
        of_environment = {name: defaults[name] for name in _OF_ENVIRONMENT if name in defaults}
        inner = defaults.get("environment")
        if isinstance(inner, Mapping):
            of_environment |= {name: inner[name] for name in _OF_ENVIRONMENT if name in inner}
        given = {key: defaults[key] for key in ("task", "seed") if key in defaults}
        policy = defaults.get("policy")
        if isinstance(policy, Mapping):
            given |= {key: policy[key] for key in ("model", "tokenizer", "device") if key in policy}
        return {**given, **of_environment, **own, **linked(links, "model")}

    @classmethod
    def of(cls, table: JsonView, origin: StageOrigin) -> ResponsesStage:
        made = relative_to(origin.folder, from_table(cls, table, origin.where), cls)
        assert isinstance(made, cls)
        return made

    def check(self) -> None:
        with under("task"):
            load_task(self.task)
        if not Path(self.model).is_absolute() or Path(self.model).exists():
            with under("model"):
                load_tokenizer_of(self.policy)

    @property
    def policy(self) -> PolicySettings:
        return PolicySettings(model=self.model, tokenizer=self.tokenizer, device=self.device)

    def check_prompts(self, policy: PolicySettings) -> None:
        with under("task"):
            require_prompts_fit(
                [load_task(self.task)],
                load_tokenizer_of(policy),
                max_prompt_tokens=self.max_prompt_tokens,
                max_new_tokens=self.max_new_tokens,
                context=context_before_loading(policy),
                first=self.prompts,
            )

    def paths(self) -> Sequence[str]:
        return paths_of(Path(), self, type(self))

    def outputs(self, folder: Path) -> Mapping[str, object]:
        return {"": str(folder / STORE)}

    def work(self, site: Site) -> StageOutcome:
        given = {name: getattr(self, name) for name in Responses.__dataclass_fields__}
        author = self.author or next(iter(site.links.get("model", ())), "") or self.model
        site.folder.mkdir(parents=True, exist_ok=True)
        partial, place = site.folder / f".{STORE}.partial", site.folder / ".writing.json"
        with PreferenceStore(partial) as store:  # a call that was stopped left what it had written
            write_into(store, Responses(**given | {"author": author}), console=site.console, place=place)
            tokens = [len(response.ids or ()) for _, response in store.responses()]
        partial.replace(site.folder / STORE)
        place.unlink(missing_ok=True)
        said = f"{len(tokens):,} different answers"
        site.console.print(f"{said} are in {near(site.folder / STORE)}", highlight=False, soft_wrap=True)
        return StageOutcome({"tokens": float(sum(tokens)), "responses": float(len(tokens))}, texts={"ended": said})

    def is_open(self) -> bool:
        return False

    def identity(self, folder: Path, hashes: Hashes) -> str | None:
        return hashes.remembered(folder / STORE, partial(identity_of, folder / STORE))


_OF_ENVIRONMENT = ("num_envs", "max_new_tokens", "max_prompt_tokens", "stop")
