"""The stage `reward_model`: a model is fitted to what a store prefers, and measured on prompts held out."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from rlhf_env.envs.tokenizers import load_tokenizer
from rlhf_env.errors import ConfigError, MissingExtra, Problem, under
from rlhf_env.feedback.reward_models.calibration import accuracy_with_interval, expected_calibration_error
from rlhf_env.feedback.reward_models.scorecard import make_scorecard
from rlhf_env.feedback.reward_models.scorer import pair_log_odds
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.lab.report.scorecard_page import write_page
from rlhf_env.learning.configuration import from_table
from rlhf_env.pipeline.hashing import Hashes
from rlhf_env.pipeline.reward_settings import RewardModelSettings
from rlhf_env.pipeline.stages.crowds import known_taste
from rlhf_env.pipeline.stages.stage import Links, Role, Site, StageOrigin, StageOutcome, linked
from rlhf_env.pipeline.stages.stores import require_store
from rlhf_env.pipeline.votes import FittedRewardModel, fit_to_votes
from rlhf_env.relative_paths import paths_of, relative_to
from rlhf_env.types import JsonObject, JsonView
from rlhf_env.whole_files import write_json

# Of a reward model's folder: what a benchmark's report shows of it, by the name that it has there.
SHOWN = {"scorecard.json": "scorecard.json", "measured.json": "reward_model.json"}

_OF_POLICY = {"model": "base", "device": "device"}


@dataclass(frozen=True)
class FitStage:
    """A reward model: the settings are those of `rlhf-env reward-model`, with the base and the store of `from`."""

    store: str
    wanted: RewardModelSettings
    kind: ClassVar[str] = "reward_model"
    takes: ClassVar[Mapping[Role, bool]] = {"store": False, "model": False}
    gives: ClassVar[Sequence[Role]] = ("reward_model",)
    aside: ClassVar[frozenset[str]] = frozenset({"device"})
    takes_larger_budget: ClassVar[bool] = False

    @staticmethod
    def table(own: JsonView, defaults: JsonView, links: Links) -> JsonObject:
        given = {"seed": defaults["seed"]} if "seed" in defaults else {}
        policy = defaults.get("policy")
        if isinstance(policy, Mapping):
            given |= {name: policy[key] for key, name in _OF_POLICY.items() if key in policy}
        return {**given, **own, **linked(links, "model", "base"), **linked(links, "store")}

    @classmethod
    def of(cls, table: JsonView, origin: StageOrigin) -> FitStage:
        rest = {key: value for key, value in table.items() if key != "store"}
        made = relative_to(origin.folder, from_table(RewardModelSettings, rest, origin.where), RewardModelSettings)
        store = table.get("store", "")
        if not isinstance(store, str):
            raise ConfigError(Problem(f"store must be a string, got {store!r}", ("store",)))
        assert isinstance(made, RewardModelSettings)
        return cls(str(origin.folder / store) if store else "", made)

    def check(self) -> None:
        require_store(self.store)
        if not Path(self.wanted.base).is_absolute() or Path(self.wanted.base).exists():
            with under("base"):
                load_tokenizer(self.wanted.base)

    def paths(self) -> Sequence[str]:
        return [self.store, *paths_of(Path(), self.wanted, RewardModelSettings)]

    def outputs(self, folder: Path) -> Mapping[str, object]:
        return {"": str(folder)}

    def work(self, site: Site) -> StageOutcome:
        fitted = fit_to_votes(self.store, site.folder, self.wanted, console=site.console, overwrite=True)
        record = fitted.record
        numbers = {"labels_used": float(record["fitted_to"])}
        if fitted.scorecard is not None:
            accuracy = fitted.scorecard.accuracy
            numbers |= {"accuracy": accuracy.value, "accuracy_low": accuracy.low, "accuracy_high": accuracy.high}
            numbers |= self._beside_the_annotator(fitted, site)
        return StageOutcome(numbers, texts={"ended": f"fitted to {int(record['fitted_to']):,} judgements"})

    def is_open(self) -> bool:
        return False

    def identity(self, folder: Path, hashes: Hashes) -> str | None:
        return hashes.of_files(folder, sorted([*folder.rglob("*.safetensors"), *folder.rglob("reward_*.json")]))

    def _beside_the_annotator(self, fitted: FittedRewardModel, site: Site) -> dict[str, float]:
        """Of an annotator whose taste is known: what its noise allows, and the scorecard's look at the taste itself.

        One pair a prompt: the interval takes pairs to be independent.
        """
        taste = known_taste(Path(self.store).parent)
        if taste is None:
            return {}
        with PreferenceStore(self.store) as store:
            _, unseen = store.split(self.wanted.held_out)
        held_out = list({preference.prompt.id: preference for preference in unseen}.values())
        log_odds = pair_log_odds(fitted.scorer, held_out)
        right = accuracy_with_interval(log_odds, np.zeros_like(log_odds))
        sides = [(p.prompt, response) for p in held_out for response in (p.chosen, p.rejected)]
        worth = taste.gold([response.episode(prompt) for prompt, response in sides])
        ceiling = taste.annotator.expected_accuracy(worth[::2] - worth[1::2])
        calibration = expected_calibration_error(log_odds)
        with site.console.status("Writing the scorecard"):
            card = make_scorecard(
                fitted.scorer,
                held_out,
                gold=[(*side, float(value)) for side, value in zip(sides, worth, strict=True)],
                gold_is=taste.name,
                rng=np.random.default_rng(self.wanted.seed),
            )
        card.save(site.folder / "scorecard.json")
        with suppress(MissingExtra):  # pictures are an extra; the numbers are not
            write_page(card, site.folder / "scorecard.html", name=site.name)
        site.console.print(
            f"Held-out accuracy {right.value:.3f} (95 % interval {right.low:.3f} to {right.high:.3f}, "
            f"{len(held_out)} pairs on unseen prompts); the annotator's own noise allows {ceiling:.3f}. "
            f"Calibration error {calibration:.3f}."
        )
        of_pairs = {"pairs": int(fitted.record["fitted_to"]), "held_out_pairs": len(held_out)}
        words = "prefers what the gold reward scores higher, with Bradley-Terry noise of temperature "
        words += f"{taste.annotator.temperature:g} (in units of gold)"
        found: JsonObject = {"accuracy": right.value, "low": right.low, "high": right.high, **of_pairs}
        found |= {"calibration_error": calibration, "ceiling": ceiling, "annotator": words}
        write_json(site.folder / "measured.json", found)
        accuracy = {"accuracy": right.value, "accuracy_low": right.low, "accuracy_high": right.high}
        return {**accuracy, "ceiling": ceiling, "calibration_error": calibration}


def show_in(benchmark: Path, model: Path) -> None:
    """Put what is known of a reward model where the report of a benchmark looks for it."""
    for name, shown_as in SHOWN.items():
        if (model / name).is_file():
            shutil.copy(model / name, benchmark / shown_as)
