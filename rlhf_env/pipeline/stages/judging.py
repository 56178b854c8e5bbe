"""The stage `judge`: simulated annotators, whose taste and noise are known, or a model, judge what a store holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge

from rlhf_env.errors import DataError, Problem, UnknownName
from rlhf_env.feedback.asking.annotators import Annotator
from rlhf_env.feedback.asking.collecting import items_of, judge_items
from rlhf_env.feedback.asking.pairs import collect_pairs
from rlhf_env.feedback.kinds import asked_kind_names
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.learning.configuration import from_table
from rlhf_env.pipeline.hashing import Hashes
from rlhf_env.pipeline.stages.crowds import check_crowd, crowd_of, gold_reward, keep_taste
from rlhf_env.pipeline.stages.stage import Links, Role, Site, StageOrigin, StageOutcome, linked
from rlhf_env.pipeline.stages.stores import STORE, identity_of, new_store, require_store
from rlhf_env.relative_paths import paths_of, relative_to
from rlhf_env.settings import AtLeastOne, Chooses, EachChooses, IsPath, Name, Seed, fault, settings
from rlhf_env.shown_text import near
from rlhf_env.types import JsonObject, JsonView


@settings
class JudgeStage:
    """Simulated annotators judge the responses of a store."""

    store: Annotated[Name, IsPath()] | None = None
    """The store with the responses, where it is no earlier stage's (`from`)."""
    gold: Annotated[JsonObject, EachChooses("reward")] = field(default_factory=dict)
    """What the annotators go by: rewards, as in [rewards] (default: those of [defaults.evaluation]); a model that
    judges by a rubric goes by none."""
    task: Annotated[JsonObject, Chooses("task")] = field(default_factory=lambda: {"name": "count"})
    """Where gold is the task's own score: the task (default: that of [defaults])."""
    annotator: Annotated[JsonObject, Chooses("annotator")] = field(default_factory=lambda: {"name": "simulated"})
    """How they judge: the annotator's name, and its own settings."""
    people: AtLeastOne = 1
    """How many annotators there are."""
    person: str = ""
    """What the store calls them (default: the annotator's name); several get a number each."""
    ask: Name = "comparison"
    """The kind of judgement: comparison, rating, ranking, criteria, or a plugin's."""
    per_prompt: AtLeastOne = 1
    """How many are asked for on each prompt."""
    size: Annotated[int, Ge(2)] = 4
    """Responses in one ranking."""
    overlap: AtLeastOne = 1
    """How many of the annotators judge each."""
    criterion: Name = "overall"
    """What they judge by."""
    seed: Seed = 0
    """What pairs, their order and the annotators' noise are drawn from."""
    kind: ClassVar[str] = "judge"
    takes: ClassVar[Mapping[Role, bool]] = {"store": False}
    gives: ClassVar[Sequence[Role]] = ("store",)
    aside: ClassVar[frozenset[str]] = frozenset()
    takes_larger_budget: ClassVar[bool] = False

    def problems(self) -> Iterator[Problem]:
        if self.overlap > self.people:
            yield fault("overlap", f"= {self.overlap} needs as many people, and there are {self.people}")
        if self.ask not in asked_kind_names():
            yield Problem(str(UnknownName("kind of judgement", self.ask, asked_kind_names())), ("ask",))

    @staticmethod
    def table(own: JsonView, defaults: JsonView, links: Links) -> JsonObject:
        return {**of_defaults(defaults), **own, **linked(links, "store")}

    @classmethod
    def of(cls, table: JsonView, origin: StageOrigin) -> JudgeStage:
        made = relative_to(origin.folder, from_table(cls, table, origin.where), cls)
        assert isinstance(made, cls)
        return made

    def check(self) -> None:
        require_store(self.store)
        check_crowd(self.gold, self.annotator)

    def paths(self) -> Sequence[str]:
        return paths_of(Path(), self, type(self))

    def outputs(self, folder: Path) -> Mapping[str, object]:
        return {"": str(folder / STORE)}

    def work(self, site: Site) -> StageOutcome:
        gold = gold_reward(self.gold, self.task) if self.gold else None
        crowd = crowd_of(self.annotator, gold, self.people, self.person)
        with site.console.status("The annotators judge..."), new_store(site.folder, self.store) as store:
            votes = self._votes(store, crowd)
            if not votes:
                raise DataError(
                    f"stage {site.name!r}: nothing to judge: no prompt in {self.store} has answers that differ: write "
                    "several, at temperatures above 0"
                )
        if self.people == 1 and self.gold:
            keep_taste(site.folder, self.gold, self.task, self.annotator)
        said = "an annotator" if self.people == 1 else f"{self.people} annotators"
        file = near(site.folder / STORE)
        site.console.print(f"{votes:,} judgements by {said}, in {file}", soft_wrap=True, highlight=False)
        return StageOutcome({"labels": float(votes)}, texts={"ended": f"{votes:,} judgements by {said}"})

    def _votes(self, store: PreferenceStore, crowd: Sequence[Annotator]) -> int:
        rng = np.random.default_rng(self.seed)
        if self.ask == "comparison" and self.people == 1:
            candidates = [(response.episode(prompt), response.author) for prompt, response in store.responses()]
            judged = collect_pairs(
                candidates, crowd[0], rng, store=store, pairs_per_prompt=self.per_prompt, criterion=self.criterion
            )
            return len(judged)
        items = items_of(
            store.responses(),
            self.ask,
            rng,
            per_prompt=self.per_prompt,
            size=self.size,
            overlap=self.overlap,
            criterion=self.criterion,
            seed=self.seed,
        )
        store.add_items(items)
        votes = 0
        for place, annotator in enumerate(crowd):
            votes += judge_items(store, annotator, np.random.default_rng([self.seed, place]))
        return votes

    def is_open(self) -> bool:
        return False

    def identity(self, folder: Path, hashes: Hashes) -> str | None:
        return hashes.remembered(folder / STORE, partial(identity_of, folder / STORE))


def of_defaults(defaults: JsonView) -> JsonObject:
    """What judges go by where their stage does not say: the gold reward, the task and the seed of [defaults]."""
    evaluation = defaults.get("evaluation", {})
    gold = evaluation.get("rewards") if isinstance(evaluation, Mapping) else None
    found = {"gold": gold, "task": defaults.get("task"), "seed": defaults.get("seed")}
    return {key: value for key, value in found.items() if value is not None}
