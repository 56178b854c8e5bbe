"""The stage `evaluate`: runs against their references, or against each other; by rewards, or blind by annotators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Le

from rlhf_env.errors import ConfigError, DataError, Problem
from rlhf_env.feedback.asking.collecting import judge_items
from rlhf_env.feedback.asking.tournament import Contender, blind_pairs, contests, tournament
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.lab.evaluation.against_reference import RunEvaluation, evaluate_run, evaluation_tables
from rlhf_env.lab.evaluation.answers import AgentAnswers, answers_of_run
from rlhf_env.learning.configuration import from_table
from rlhf_env.pipeline.hashing import Hashes
from rlhf_env.pipeline.stages.crowds import check_crowd, crowd_of, gold_reward
from rlhf_env.pipeline.stages.judging import of_defaults
from rlhf_env.pipeline.stages.people import require_page, votes_by_people
from rlhf_env.pipeline.stages.stage import Links, Role, Site, StageOrigin, StageOutcome
from rlhf_env.pipeline.stages.stores import STORE, new_store
from rlhf_env.relative_paths import paths_of, relative_to
from rlhf_env.settings import AtLeastOne, Chooses, EachChooses, Name, Seed, fault, settings
from rlhf_env.types import JsonObject, JsonView
from rlhf_env.whole_files import write_json

REPORT = "evaluation.json"
REFERENCE_NAME = "reference"


@settings
class EvaluateStage:
    """Runs are measured on the prompts of their evaluation: one against its reference, several against each other."""

    by: Literal["rewards", "simulated", "people"] = "rewards"
    """Who judges: the rewards of the run and of its [evaluation]; or blind pairs are put before simulated annotators,
    or before people on the annotation page."""
    prompts: Annotated[int, Ge(2)] | None = None
    """How many prompts (default: as many as the run says)."""
    checkpoint: Literal["best", "last"] = "best"
    """The agent as it was at its best evaluation on the way, or as it was last."""
    reference: bool = True
    """Put the model that the first run began as among those that are compared blind."""
    gold: Annotated[JsonObject, EachChooses("reward")] = field(default_factory=dict)
    """What simulated annotators go by (default: [defaults.evaluation] rewards)."""
    task: Annotated[JsonObject, Chooses("task")] = field(default_factory=lambda: {"name": "count"})
    """Where gold is the task's own score: the task (default: that of [defaults])."""
    annotator: Annotated[JsonObject, Chooses("annotator")] = field(default_factory=lambda: {"name": "simulated"})
    """How they judge: the annotator's name, and its own settings."""
    people: AtLeastOne = 1
    """How many simulated annotators there are."""
    overlap: AtLeastOne = 1
    """How many judge each pair."""
    criterion: Name = "overall"
    """What they judge by."""
    votes: AtLeastOne | None = None
    """How many votes of people are enough (default: all that are asked for)."""
    serve: bool = False
    """Serve the page until enough votes are in; false: say the command that does, and end."""
    host: str = "127.0.0.1"
    """The address that the page listens on."""
    port: Annotated[int, Ge(0), Le(65535)] = 8765
    """Its port; 0 takes a free one."""
    seed: Seed = 0
    """What the order of a pair, the annotators' noise and the intervals are drawn from."""
    kind: ClassVar[str] = "evaluate"
    takes: ClassVar[Mapping[Role, bool]] = {"runs": True}
    gives: ClassVar[Sequence[Role]] = ()
    aside: ClassVar[frozenset[str]] = frozenset({"votes", "serve", "host", "port"})
    takes_larger_budget: ClassVar[bool] = False

    def problems(self) -> Iterator[Problem]:
        if self.by == "simulated" and self.overlap > self.people:
            yield fault("overlap", f"= {self.overlap} needs as many people, and there are {self.people}")

    @staticmethod
    def table(own: JsonView, defaults: JsonView, links: Links) -> JsonObject:
        if not links.get("runs"):
            raise ConfigError(Problem('nothing to evaluate: from = "a stage that trains"', ("from",)))
        return {**of_defaults(defaults), **own}

    @classmethod
    def of(cls, table: JsonView, origin: StageOrigin) -> EvaluateStage:
        made = relative_to(origin.folder, from_table(cls, table, origin.where), cls)
        assert isinstance(made, cls)
        return made

    def check(self) -> None:
        if self.by == "simulated":
            check_crowd(self.gold, self.annotator)
        if self.by == "people" and self.serve:
            require_page()

    def paths(self) -> Sequence[str]:
        return paths_of(Path(), self, type(self)) if self.by == "simulated" else []

    def outputs(self, folder: Path) -> Mapping[str, object]:
        return {"": str(folder / REPORT)}

    def work(self, site: Site) -> StageOutcome:
        if self.by == "rewards":
            return self._by_rewards(site)
        if not (site.folder / STORE).is_file():
            self._ask(site)
        if self.by == "people":
            counted, waiting = votes_by_people(self, site)
            if waiting:
                return StageOutcome({"labels": float(counted.votes)}, waiting=waiting)
        return self._of_votes(site)

    def is_open(self) -> bool:
        return self.by == "people"

    def identity(self, folder: Path, hashes: Hashes) -> str | None:
        return hashes.of_path(folder / REPORT)

    def _by_rewards(self, site: Site) -> StageOutcome:
        found: dict[str, RunEvaluation] = {}
        for name, run in zip(site.links["runs"], site.inputs["runs"], strict=True):
            with site.console.status(f"Evaluating {name}..."):
                found[name] = evaluate_run(run, prompts=self.prompts, checkpoint=self.checkpoint)
            site.console.print(evaluation_tables(found[name]))
        write_json(site.folder / REPORT, {"by": self.by, "runs": {name: asdict(it) for name, it in found.items()}})
        name, last = next(reversed(found.items()))
        numbers: dict[str, float] = {}
        for measure in ("gold", "proxy"):  # the first that there is
            if measure in last.win_rate and "win_rate" not in numbers:
                won = last.win_rate[measure]
                ends = {"win_low": won.low, "win_high": won.high}
                numbers |= {"win_rate": won.value, **{key: end for key, end in ends.items() if end is not None}}
                said = f"{name} against its reference by {measure}, on {last.prompts} prompts"
        numbers |= {m.name: m.agent for m in last.measures if m.name in ("gold", "proxy")}
        numbers |= {f"{m.name}_before": m.reference for m in last.measures if m.name in ("gold", "proxy")}
        if last.kl_bound is not None or last.kl:
            numbers["kl"] = last.kl_bound if last.kl_bound is not None else next(iter(last.kl.values())).value
        return StageOutcome(numbers, texts={"ended": said if "win_rate" in numbers else f"{name}: no reward to win by"})

    def _ask(self, site: Site) -> None:
        written: list[AgentAnswers] = []
        runs = list(zip(site.links["runs"], site.inputs["runs"], strict=True))
        alone = self.reference or len(runs) == 1
        with site.console.status("They write..."):
            for place, (name, run) in enumerate(runs):
                also = REFERENCE_NAME if alone and place == 0 else ""
                written += answers_of_run(run, name, prompts=self.prompts, checkpoint=self.checkpoint, reference=also)
        pairs = blind_pairs(written, overlap=self.overlap, criterion=self.criterion, seed=self.seed)
        met = {response.author.name for item in pairs.items for response in item.responses}
        if others := [name for name, _ in runs if name not in met]:
            said = f"{' and '.join(others)} cannot be compared: the answers say the same, or are to other prompts"
            raise DataError(f"stage {site.name!r}: {said}: runs answer the prompts of their own evaluation")
        with new_store(site.folder) as store:
            store.add_items(pairs.items)
            if self.by == "simulated":
                gold = gold_reward(self.gold, self.task) if self.gold else None
                crowd = crowd_of(self.annotator, gold, self.people, "")
                for place, annotator in enumerate(crowd):
                    judge_items(store, annotator, np.random.default_rng([self.seed, place]))
        said = f"{len(pairs.items):,} blind pairs on {pairs.prompts:,} prompts"
        site.console.print(f"{said}, {pairs.same:,} left out that say the same", highlight=False)

    def _of_votes(self, site: Site) -> StageOutcome:
        with PreferenceStore(site.folder / STORE) as store:
            votes = contests(store).get(self.criterion, [])
        standing = tournament(votes, np.random.default_rng(self.seed))
        write_json(
            site.folder / REPORT,
            {
                "by": self.by,
                "votes": len(votes),
                "contenders": [{"name": it.author.name, **asdict(it)} for it in standing],
            },
        )
        for each in standing:
            site.console.print(f"  {each.author.name:24} won {each.win_rate}", highlight=False, markup=False)
        labels = {"labels": float(len(votes))}
        wanted = site.links["runs"][-1]
        ours = next((it for it in standing if it.author.name == wanted), None)
        if ours is None:
            return StageOutcome(labels, texts={"ended": "no vote decides"})
        return StageOutcome({**labels, **_win(ours)}, texts={"ended": self._words(standing, ours)})

    def _words(self, standing: Sequence[Contender], ours: Contender) -> str:
        others = ", ".join(it.author.name for it in standing if it is not ours)
        who = "people" if self.by == "people" else "simulated annotators"
        return f"{ours.author.name} against {others}, blind, by {who}: {ours.comparisons:,} comparisons"


def _win(contender: Contender) -> dict[str, float]:
    rate = contender.win_rate
    return {"win_rate": rate.value, "win_low": rate.low, "win_high": rate.high}
