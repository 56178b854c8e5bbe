"""How a reward model is fitted to people's votes: every setting, from a file, the command line, or both."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from annotated_types import Ge, Lt

from rlhf_env.device_names import AUTO, problems_of_device
from rlhf_env.envs.over_long import OverLong
from rlhf_env.errors import ConfigError, Problem
from rlhf_env.feedback.reward_models.config import RewardModelConfig
from rlhf_env.learning.configuration import from_table
from rlhf_env.relative_paths import relative_to
from rlhf_env.settings import AtLeastOne, IsPath, Name, Positive, Seed, fault, hints_of, marks_of, settings
from rlhf_env.toml_files import lines_of, narrowed, read_toml
from rlhf_env.types import JsonObject

RewardLoss = Literal["by kind", "bradley-terry", "margins", "ranking-pairs", "plackett-luce", "likert"]


@settings
class RewardModelSettings:
    """How a reward model is fitted to votes, and to which of them."""

    base: Annotated[Name, IsPath()]
    """The language model that it is built on: a folder, a run, a shipped model (`rlhf-env/chitchat`), a hub name."""
    # ---------------------------------------------------------------- which judgements
    held_out: Annotated[float, Ge(0), Lt(1)] = 1 / 6
    """The share of the prompts that is measured on and not fitted to. With 0 nothing is measured."""
    criterion: str = ""
    """What the responses were judged by. Default: "overall", or the only one there is."""
    annotators: tuple[Name, ...] = ()
    """Learn from these annotators only."""
    without: tuple[Name, ...] = ()
    """Leave these annotators out."""
    diverse: AtLeastOne | None = None
    """Fit to this many of the judgements only, chosen so that their texts lie far apart (k-centre: Gonzalez 1985)."""
    over_long: OverLong = "refuse"
    """What is done about texts that are longer than the model's context. Cut are prompts, at their beginning ("cut
    left"), end or middle, and answers where that is not enough, at their end."""
    annotator: str = ""
    """Who judged what a file does not say who. Default: the file's name."""
    layout: str = ""
    """The layout of a published set that a file is in (`preferences layouts` lists them). Default: its columns tell."""
    limit: AtLeastOne | None = None
    """Only so many rows of a file, from its beginning."""
    label_config: Annotated[str, IsPath()] | None = None
    """Label Studio's labeling configuration (XML), which says what each tag is about."""
    buckets: tuple[Name, ...] = ()
    """The names of Label Studio's buckets, the best first."""
    skip: bool = False
    """Leave out lines of a file that cannot be read, and count them."""
    # ---------------------------------------------------------------- what is learned of them
    votes: Literal["each", "majority", "dawid-skene"] = "majority"
    """Of what several people judged: "each" vote counts by itself; the "majority" does; or each person counts by how
    often they are right, which "dawid-skene" estimates (needs crowd-kit, the extra `crowd`)."""
    loss: RewardLoss = "by kind"
    """ "by kind": Bradley-Terry's of comparisons, Plackett-Luce's of rankings (of those with ties the mean over their
    pairs), Likert's of ratings, together.
    "bradley-terry": everything becomes pairs. "margins": the same, and a pair's own margin ("much better") is asked
    for. "ranking-pairs", "plackett-luce": rankings and comparisons. "likert": ratings alone."""
    margin_scale: Positive = 1.0
    """With "margins": log-odds for each point of the annotators' scale."""
    # ---------------------------------------------------------------- how
    reward_model: RewardModelConfig = field(
        default_factory=lambda: RewardModelConfig(epochs=8, batch_size=16, patience=3)
    )
    """The fit itself. More passes than a large set of pairs needs: a few hundred votes are few gradient steps, and the
    best pass is kept."""
    models: AtLeastOne = 1
    """Separate models, each with a trunk of its own (Coste et al. 2024, 2310.02743): `members` share one, for a
    fraction of the cost, and agree more."""
    dtype: Literal["float32", "float64"] = "float32"
    """The type of the weights."""
    device: str = AUTO
    """Where it is fitted: "cpu", "cuda", "cuda:1", "mps"; "auto": a CUDA GPU if there is one, else the processor."""
    seed: Seed = 0
    """What the order, the dropout, first heads and bootstraps are drawn from."""
    groups: Annotated[str, IsPath()] | None = None
    """With `fairness`: "gender", or a CSV file of words with a column for each group; its header names them."""
    wanted: Annotated[Name, IsPath()] | None = None
    """Importance weights: the policy (a model) whose texts the reward model is for, where `drawn` wrote the pairs."""
    drawn: Annotated[Name, IsPath()] | None = None
    """Importance weights: the policy that wrote the pairs."""
    wanted_temperature: Positive = 1.0
    """What the wanted policy samples at."""
    drawn_temperature: Positive = 1.0
    """What the texts of the pairs were sampled at."""
    weight_cap: Annotated[float, Ge(1)] = 10.0
    """The largest importance weight."""

    def problems(self) -> Iterator[Problem]:
        yield from problems_of_device(self.device)
        if self.reward_model.fairness and self.groups is None:
            yield fault("groups", 'must be given with fairness: "gender", or a CSV file of words, one group a column')
        if self.groups is not None and not self.reward_model.fairness:
            yield fault("groups", "is for a fairness above 0")
        if (self.wanted is None) != (self.drawn is None):
            missing, given = ("drawn", "wanted") if self.drawn is None else ("wanted", "drawn")
            yield fault(missing, f"must be given with {given}: weights are of one policy against another")
        if both := set(self.annotators) & set(self.without):
            yield fault("without", f"names {', '.join(sorted(both))}, and so does annotators")
        if self.loss not in ("by kind", "plackett-luce") and self.reward_model.ranking_loss == "plackett-luce":
            yield fault("loss", f'is "{self.loss}", and ranking_loss "{self.reward_model.ranking_loss}": give one')

    def to_toml(self, *, relative_to: Path) -> str:
        """Every setting that is in force, as a file in a folder that `rlhf-env reward-model --config` takes."""
        table = _without_none(asdict(self))
        paths = {
            name for name, hint in hints_of(type(self)).items() if any(isinstance(it, IsPath) for it in marks_of(hint))
        }
        for name in paths & table.keys():
            if Path(table[name]).exists():
                table[name] = os.path.relpath(table[name], relative_to)
        table.pop("out", None)  # it is where this file is
        return tomli_w.dumps(table)


@settings
class RewardModelFile(RewardModelSettings):
    """The same with what the command line says beside it."""

    store: Annotated[Name, IsPath()] | None = None
    """The judgements: a preference store, or a file that `preferences import` reads."""
    out: Annotated[Name, IsPath()] | None = None
    """The folder of the reward model."""


class GivenSettings:
    """Settings from a file and from the command line, which wins; and whose fault a problem is."""

    def __init__(self, file: Path | None, given: JsonObject, words: Mapping[str, str]) -> None:
        """`given` are those of the command line, `words` what stood there for each: {"members": "--members 3"}."""
        self.file, self.given, self.words = file, given, words
        in_file = {} if file is None else read_toml(file)
        if file is not None:
            led = relative_to(file.parent, in_file, RewardModelFile)
            assert isinstance(led, dict)
            in_file = led
        self.table: JsonObject = {**in_file, **given}
        self.replaced = {name: in_file[name] for name in given if in_file.get(name, given[name]) != given[name]}
        """What the file says and the command line says otherwise."""

    def made(self, **required: str) -> RewardModelFile:
        """`required`: what must be in one of the two, and what to say where it is in neither."""
        missing = [Problem(what) for name, what in required.items() if self.table.get(name) in (None, "")]
        found: list[str] = []
        made = None
        try:
            made = from_table(RewardModelFile, {"base": "-", **self.table}, _HERE)
        except ConfigError as error:
            error.change(self.located)
            found = list(error.problems)
        if missing or found or made is None:
            store = self.table.get("store")
            if isinstance(store, str) and store and not Path(store).exists():
                missing.append(no_such_file(store))  # otherwise whoever reads it says so
            raise ConfigError(*missing, *found)
        return made

    def located(self, problem: Problem) -> Problem:
        """The problem with the words of the command line, or the line of the file, that it is about."""
        problem = Problem(problem.replace(f"{_HERE} reward_model: ", f"{_HERE}: ", 1), problem.keys)
        keys = narrowed(problem.keys, self.table)
        if keys and keys[0] in self.words:
            named = f"{keys[0]}" if problem.startswith(f"{keys[0]}: ") else _HERE
            return problem.led_by(self.words[str(keys[0])], instead_of=named)
        if self.file is None:
            return Problem(problem.removeprefix(f"{_HERE}: "), problem.keys)
        line = lines_of(self.file.read_text(encoding="utf-8")).get(keys) if keys else None
        if not keys and not problem.startswith(_HERE):  # of the data, not of a setting
            return problem
        return problem.led_by(f"{self.file}" if line is None else f"{self.file}, line {line}", instead_of=_HERE)


_HERE = "[reward-model]"


def no_such_file(store: str | Path) -> Problem:
    return Problem(f"{store}: there is no such file: a preference store, or a file of judgements, is needed")


def spoken_share(words: str) -> float:
    """0.2 or 1/6. Raises ConfigError for what is no share."""
    try:
        above, _, below = words.partition("/")
        return float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise ConfigError(f"--held-out {words}: a share such as 0.2 or 1/6 is needed") from error


def spoken_setting(words: str) -> tuple[str, object]:
    """KEY=VALUE, the value as in TOML; a bare word is a string. Raises ConfigError."""
    name, equals, value = words.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set {words}: {words!r} is not of the form NAME=VALUE")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        return name.strip(), value.strip()


def _without_none(table: Mapping[str, Any]) -> JsonObject:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value
        for key, value in table.items()
        if value is not None
    }
