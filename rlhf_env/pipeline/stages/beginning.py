"""The stage `base_model`: the model that everything begins with, taken as it is or made from the corpus."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, ClassVar

from rlhf_env import assets
from rlhf_env.envs.tokenizers import load_tokenizer
from rlhf_env.errors import Problem, under
from rlhf_env.learning.configuration import from_table
from rlhf_env.pipeline.base_model import Models, Recipe, make_models
from rlhf_env.pipeline.hashing import Hashes, hash_of
from rlhf_env.pipeline.stages.stage import Links, Role, Site, StageOrigin, StageOutcome
from rlhf_env.relative_paths import paths_of, relative_to
from rlhf_env.settings import IsPath, Name, PartOf, fault, settings
from rlhf_env.types import JsonObject, JsonView

_PLACEHOLDER = -1.0  # until the models are made, for the check of who asks for `$NAME.typical`


@settings
class BaseModelStage:
    """A model to begin with, `$NAME`; and beside it an independent judge of fluency, `$NAME.judge`, with the median
    log-probability of a token of people's replies under it, `$NAME.typical`: what the reward `upbeat` asks for."""

    take: Annotated[Name, IsPath()] | None = None
    """A folder, a shipped model, a hub name, a run. Without it, tokenizer, model and judge are made here, as the
    recipe says, from the conversations that the package comes with: up to 40 minutes on two cores."""
    judge: Annotated[Name, IsPath()] | None = None
    """The judge to take with it."""
    recipe: Annotated[JsonObject, PartOf(Recipe)] = field(default_factory=dict)
    """How they are made: changes to the recipe of the shipped models."""
    kind: ClassVar[str] = "base_model"
    takes: ClassVar[Mapping[Role, bool]] = {}
    gives: ClassVar[Sequence[Role]] = ("model",)
    aside: ClassVar[frozenset[str]] = frozenset()
    takes_larger_budget: ClassVar[bool] = False

    def problems(self) -> Iterator[Problem]:
        if self.recipe and self.take is not None:
            yield fault("recipe", "is how a model is made, and this one is taken: leave out one of the two")
        if self.judge is not None and self.take is None:
            yield fault("judge", "is made with the model: take both, or neither")

    @staticmethod
    def table(own: JsonView, defaults: JsonView, links: Links) -> JsonObject:
        return dict(own)

    @classmethod
    def of(cls, table: JsonView, origin: StageOrigin) -> BaseModelStage:
        made = relative_to(origin.folder, from_table(cls, table, origin.where), cls)
        assert isinstance(made, cls)
        with under("recipe"):
            from_table(Recipe, made.recipe, origin.where)
        return made

    def check(self) -> None:
        for key, model in (("take", self.take), ("judge", self.judge)):
            if model is not None and model != "tiny":
                with under(key):
                    load_tokenizer(model)

    def paths(self) -> Sequence[str]:
        return paths_of(Path(), self, type(self))

    def outputs(self, folder: Path) -> Mapping[str, object]:
        if self.take is None:
            made = Models.within(folder)
            return {"": made.base, "judge": made.judge, "typical": _typical(made, _PLACEHOLDER)}
        if self.judge is None:
            return {"": self.take}
        typical = _typical(Models(self.take, self.judge), None)
        return {"": self.take, "judge": self.judge, **({} if typical is None else {"typical": typical})}

    def work(self, site: Site) -> StageOutcome:
        if self.take is not None:
            site.console.print(f"{self.take} is taken as it is", highlight=False)
            return StageOutcome(_perplexity(Models(self.take, self.judge or self.take)), texts={"ended": "taken"})
        recipe = from_table(Recipe, self.recipe, "recipe")
        jobs = site.jobs if isinstance(site.jobs, int) else 1  # made here, also where a cluster does a benchmark's runs
        made = make_models(site.folder, recipe=recipe, jobs=jobs, console=site.console)
        return StageOutcome(_perplexity(made), texts={"ended": "made from the corpus"})

    def is_open(self) -> bool:
        return False

    def identity(self, folder: Path, hashes: Hashes) -> str | None:
        if self.take is not None:
            return hash_of([hashes.of_path(name) or name for name in (self.take, self.judge) if name])
        made = Models.within(folder)
        found = [hashes.of_path(made.base), hashes.of_path(made.judge)]
        return hash_of(found) if all(found) else None


def _typical(models: Models, otherwise: float | None) -> float | None:
    try:
        return models.typical
    except (OSError, ValueError, LookupError, TypeError):  # not made yet, or no judge of ours
        return otherwise


def _perplexity(models: Models) -> dict[str, float]:
    """On held-out replies, of models that `make_models` made."""
    try:
        recipe = Path(assets.resolve(models.judge)).parent / "recipe.json"
        measured = json.loads(recipe.read_text(encoding="utf-8"))["held_out_perplexity"]
        return {"perplexity": float(measured["base, replies, sharpened"])}
    except (OSError, ValueError, LookupError, TypeError):  # no model of ours
        return {}
