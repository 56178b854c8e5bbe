"""The stage `annotate`: people judge on the page. It makes the items, and waits until enough votes are in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Protocol

import numpy as np
from annotated_types import Ge, Le

from rlhf_env.errors import DataError, Problem, UnknownName
from rlhf_env.feedback.asking.collecting import items_of
from rlhf_env.feedback.kinds import asked_kind_names
from rlhf_env.feedback.page.keys import Keys
from rlhf_env.feedback.store.items import Criterion, VoteProgress
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.learning.configuration import from_table
from rlhf_env.pipeline.hashing import Hashes
from rlhf_env.pipeline.stages.stage import Links, Role, Site, StageOrigin, StageOutcome, linked
from rlhf_env.pipeline.stages.stores import STORE, identity_of, new_store, require_store
from rlhf_env.relative_paths import paths_of, relative_to
from rlhf_env.settings import AtLeastOne, IsPath, Name, Seed, Whole, settings
from rlhf_env.types import JsonObject, JsonView


@settings
class AnnotateStage:
    """People judge the responses of a store on the annotation page."""

    store: Annotated[Name, IsPath()] | None = None
    """The store with the responses, where it is no earlier stage's (`from`)."""
    ask: Name = "comparison"
    """The kind of judgement: comparison, rating, ranking, criteria, or a plugin's."""
    per_prompt: Whole = 1
    """How many are asked for on each prompt; 0 for all there are."""
    size: Annotated[int, Ge(2)] = 4
    """Responses in one ranking."""
    overlap: AtLeastOne = 1
    """How many people judge each."""
    criterion: Name = "overall"
    """What they judge by."""
    guidelines: str = ""
    """What the page tells them about it."""
    criteria: list[Name] | None = None
    """Of the kind criteria: their names."""
    votes: AtLeastOne | None = None
    """How many votes are enough (default: all that are asked for)."""
    serve: bool = False
    """Serve the page until enough votes are in; false: say the command that does, and end."""
    host: str = "127.0.0.1"
    """The address that the page listens on."""
    port: Annotated[int, Ge(0), Le(65535)] = 8765
    """Its port; 0 takes a free one."""
    seed: Seed = 0
    """What the items are drawn from, and the order they are shown in."""
    kind: ClassVar[str] = "annotate"
    takes: ClassVar[Mapping[Role, bool]] = {"store": False}
    gives: ClassVar[Sequence[Role]] = ("store",)
    aside: ClassVar[frozenset[str]] = frozenset({"votes", "serve", "host", "port"})
    takes_larger_budget: ClassVar[bool] = False

    def problems(self) -> Iterator[Problem]:
        if self.ask not in asked_kind_names():
            yield Problem(str(UnknownName("kind of judgement", self.ask, asked_kind_names())), ("ask",))

    @staticmethod
    def table(own: JsonView, defaults: JsonView, links: Links) -> JsonObject:
        seed = {"seed": defaults["seed"]} if "seed" in defaults else {}
        return {**seed, **own, **linked(links, "store")}

    @classmethod
    def of(cls, table: JsonView, origin: StageOrigin) -> AnnotateStage:
        made = relative_to(origin.folder, from_table(cls, table, origin.where), cls)
        assert isinstance(made, cls)
        return made

    def check(self) -> None:
        require_store(self.store)
        if self.serve:
            require_page()

    def paths(self) -> Sequence[str]:
        return paths_of(Path(), self, type(self))

    def outputs(self, folder: Path) -> Mapping[str, object]:
        return {"": str(folder / STORE)}

    def work(self, site: Site) -> StageOutcome:
        if not (site.folder / STORE).is_file():
            with new_store(site.folder, self.store) as store:
                if self.guidelines:
                    store.set_criterion(Criterion(self.criterion, self.guidelines))
                items = items_of(
                    store.responses(),
                    self.ask,
                    np.random.default_rng(self.seed),
                    per_prompt=self.per_prompt or None,
                    size=self.size,
                    overlap=self.overlap,
                    criterion=self.criterion,
                    criteria=tuple(self.criteria or ()),
                    seed=self.seed,
                )
                if not items:
                    raise DataError(f"stage {site.name!r}: nothing to judge: no prompt has answers that differ")
                store.add_items(items)
        counted, waiting = votes_by_people(self, site)
        return StageOutcome(
            {"labels": float(counted.votes)}, texts={"ended": f"{counted.votes:,} votes"}, waiting=waiting
        )

    def is_open(self) -> bool:
        return True

    def identity(self, folder: Path, hashes: Hashes) -> str | None:
        return hashes.remembered(folder / STORE, partial(identity_of, folder / STORE))


class AsksPeople(Protocol):
    """A stage that waits for votes."""

    @property
    def votes(self) -> int | None: ...
    @property
    def serve(self) -> bool: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...


def votes_by_people(stage: AsksPeople, site: Site) -> tuple[VoteProgress, str]:
    """How far the votes on a stage's store have come; and what it waits for, "" where enough are in."""
    file = site.folder / STORE
    counted = _counted(file)
    enough = min(stage.votes or counted.wanted, counted.wanted)
    if counted.votes < enough and stage.serve:
        _serve_until(stage, file, enough, site)
        counted = _counted(file)
    if counted.votes >= enough:
        return counted, ""
    link = f"http://{stage.host}:{stage.port or 8765}/#token={Keys.of(file).token}"
    call = f"rlhf-env annotate --store {file}"
    call += f" --port {stage.port}" if stage.port not in (0, 8765) else ""
    said = (
        f"{counted.votes:,} of {enough:,} votes are in. People vote at {link} while this runs: {call}; "
        f"then call again: {site.command}"
    )
    return counted, said


def require_page() -> None:
    """Raises MissingExtra where the page cannot be served."""
    import rlhf_env.feedback.page.server  # noqa: F401


def _counted(file: Path) -> VoteProgress:
    with PreferenceStore(file, check=False) as store:
        return store.progress()


def _serve_until(stage: AsksPeople, file: Path, enough: int, site: Site) -> None:
    from rlhf_env.feedback.page.server import PageConfig, serve

    def announce(judge: str, results: str) -> None:
        site.console.print(f"Open {judge}", highlight=False, soft_wrap=True)
        site.console.print(f"Results, for whoever does not judge: {results}", highlight=False, soft_wrap=True)
        site.console.print(f"The pipeline goes on when {enough:,} votes are in.", highlight=False)

    config = PageConfig(store=file, host=stage.host, port=stage.port)
    serve(config, announce, until=lambda: _counted(file).votes >= enough)
