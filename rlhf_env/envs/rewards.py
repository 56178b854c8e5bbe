"""The reward mix and its ledger: a weighted sum of parts that keeps the parts.

`sum(weight_i * raw_i) == reward` holds exactly (the same float64 operations in the same order), for every episode.
How a part is asked, and what it answers is checked for, is `asked_part`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar, cast

import numpy as np

from rlhf_env.envs.asked_part import AskedPart, Failures
from rlhf_env.envs.asks_for_all import AsksForAll
from rlhf_env.envs.contained import lent
from rlhf_env.envs.isolation import RewardFailed
from rlhf_env.envs.reward_answers import Answers
from rlhf_env.envs.scoring import Scoring
from rlhf_env.envs.shaping import MixShaping, Shaped, Total, shaping_problems
from rlhf_env.envs.task_labels import TaskWeights, task_label
from rlhf_env.envs.waiting import Asking, WaitsOutside
from rlhf_env.errors import ConfigError, RewardError
from rlhf_env.settings import fits
from rlhf_env.types import (
    AnyReward,
    Episode,
    Float,
    FollowsTraining,
    GroupReward,
    KLPenalty,
    Remembers,
    Reward,
    Score,
    State,
    TokenReward,
    TrainerState,
)

_T = TypeVar("_T")


@dataclass(frozen=True)
class KLPart:
    """The KL penalty of a mix: what the part is called, its weight in training, and the reward itself."""

    name: str
    weight: float
    penalty: KLPenalty

    @property
    def beta(self) -> float:
        """What a nat of distance costs now: the weight times the coefficient, which a controller may have moved."""
        return self.weight * self.penalty.coefficient


class NoReward:
    """Nothing for anything, where an environment has no reward to pay."""

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        return np.zeros(len(episodes))


def require_whole_memory(reward: object, where: str) -> None:
    """Raise ConfigError where a reward has some of the methods of a memory (`Remembers`) and lacks others: it would be
    taken for one without, that is shown nothing, or that a checkpoint does not hold.

    A torch module has a state of its own, which it does not learn while it scores.
    """
    methods = ("observe", "state_dict", "load_state_dict")
    has = [name for name in methods if callable(getattr(reward, name, None))]
    if "observe" not in has and (len(has) < 2 or hasattr(reward, "named_parameters")):
        return
    if missing := [name for name in methods if name not in has]:
        said = f"{where}: {type(reward).__name__} has {' and '.join(has)} and no {' and no '.join(missing)}: a reward "
        said += "that remembers has observe(episodes), state_dict() and load_state_dict(state), any other none of them"
        raise ConfigError(said)


class RewardMix:
    """`RewardMix({"bradley_terry": (1.0, model), "kl": (0.05, KL(reference))})`.

    A bare reward instead of a pair has weight 1. Scores are validated here and nowhere else: every part must return
    one finite number per episode (per token for a TokenReward), or a RewardError names it; `failures` may say
    otherwise of a part.

    Parts that wait outside this process (`WaitsOutside`: another process, a server) are asked all at the same time, and
    while the others calculate.

    A part that answers None abstains: it is no part of that text's score. Where all parts but the KL penalty abstain,
    the text has no score.

    A part's name is the user's: anything printable. `kl` is the one part that is a KL penalty, whatever its name, or
    None; a second one is refused, because an objective has one beta. With `measures`, the mix is no objective but
    rewards that are measured side by side: then any number may be there, and `kl` is None.

    `weights` are those of the objective. What is paid in training may be something else: `shaping` (`envs.shaping`)
    says so of a part, and every Score has the weights that it was paid with. `of_tasks` are the parts that count in
    some tasks of a mixture, and how much: it is part of the objective.

    Where several processes train one run, the first asks the parts `for_all` of them, and has what they remember.
    """

    for_all: AsksForAll | None = None

    def __init__(
        self,
        parts: Mapping[str, AnyReward | tuple[float, AnyReward]],
        *,
        failures: Mapping[str, Failures] | None = None,
        measures: bool = False,
        shaping: Mapping[str, Shaped] | None = None,
        of_tasks: Mapping[str, TaskWeights] | None = None,
    ) -> None:
        pairs = {name: part if isinstance(part, tuple) else (1.0, part) for name, part in parts.items()}
        if not pairs:
            raise ConfigError("a reward mix needs at least one part")
        for name, pair in pairs.items():
            if len(pair) != 2:
                raise ConfigError(f"reward {name!r}: expected a reward or (weight, reward), got a tuple of {len(pair)}")
        for name, (weight, reward) in pairs.items():
            if not fits(weight, float):
                raise ConfigError(f"reward {name!r}: weight {weight!r} is not a finite number")
            if not isinstance(reward, (TokenReward, GroupReward, Reward)) or isinstance(reward, type):
                raise ConfigError(
                    f"reward {name!r} is no reward: {reward!r} has none of __call__(episodes), "
                    "token_rewards(episodes), group_rewards(group)"
                )
            require_whole_memory(reward, f"reward {name!r}")
        nameless = [name for name in pairs if not isinstance(name, str) or not name or not name.isprintable()]
        if nameless:
            raise ConfigError(*(f"a reward part has a name of printable characters, got {name!r}" for name in nameless))
        self.weights: dict[str, float] = {name: float(weight) for name, (weight, _) in pairs.items()}
        self.parts: dict[str, AnyReward] = {name: reward for name, (_, reward) in pairs.items()}
        self.failures: dict[str, Failures] = {name: (failures or {}).get(name, Failures()) for name in self.parts}
        self.kl = None if measures else self._kl_part()
        # Asked once: isinstance of a protocol takes longer than many a reward.
        self._asked = {name: AskedPart(name, part, self.failures[name]) for name, part in self.parts.items()}
        self._by_token = [name for name, asked in self._asked.items() if asked.by_token]
        self._by_group = [name for name, asked in self._asked.items() if asked.by_group]
        self._by_batch = [name for name, asked in self._asked.items() if asked.by_batch]
        self._remembering = {name: part for name, part in self.parts.items() if isinstance(part, Remembers)}
        self._outside = {name: part for name, part in self.parts.items() if isinstance(part, WaitsOutside)}
        self._following = {name: part for name, part in self.parts.items() if isinstance(part, FollowsTraining)}
        self.of_tasks = {name: dict(weights) for name, weights in (of_tasks or {}).items()}
        self._totals = tuple(name for name, part in self.parts.items() if isinstance(part, Total))
        self.shaping: MixShaping | None = None
        kinds = {"totals": () if shaping is None else self._totals, "tokens": self._by_token, "kl": self.kl_names}
        if problems := list(shaping_problems(shaping or {}, self.of_tasks, self.parts, **kinds)):
            raise ConfigError(*problems)
        if shaping:
            self.shaping = MixShaping(shaping, self.weights, self._totals, self.kl_names)
            self._weigh_kl()

    def _weigh_kl(self) -> None:
        """The KL penalty with the weight that it has now."""
        if self.kl is not None and self.shaping is not None and self.kl.name in self.shaping.parts:
            self.kl = replace(self.kl, weight=self.shaping.parts[self.kl.name].weight)

    def _kl_part(self) -> KLPart | None:
        found = [
            KLPart(name, self.weights[name], part) for name, part in self.parts.items() if isinstance(part, KLPenalty)
        ]
        if len(found) > 1:
            raise ConfigError(
                f"rewards {' and '.join(repr(part.name) for part in found)} are KL penalties, and an objective has "
                "one: leave the others out"
            )
        return found[0] if found else None

    @property
    def kl_names(self) -> tuple[str, ...]:
        """The name of the KL part, for `Rollout.returns(without=...)`; empty where there is none."""
        return () if self.kl is None else (self.kl.name,)

    @property
    def judges(self) -> tuple[str, ...]:
        """The names of the parts that judge a response by itself: no token part (the KL), no comparison of a group."""
        return tuple(name for name in self.parts if name not in self._by_token and name not in self._by_group)

    @property
    def needs_logprobs(self) -> bool:
        """Whether a part reads `episode.logprobs`, so that actions must carry them."""
        return any(asked.reads_logprobs for asked in self._asked.values())

    def reads_logprobs(self, name: str) -> bool:
        """Whether the part of this name does."""
        return self._asked[name].reads_logprobs

    @property
    def scores_groups(self) -> bool:
        """Whether a part, or what shapes one, looks at all answers to a prompt together."""
        return bool(self._by_group) or (self.shaping is not None and bool(self.shaping.by_group))

    @property
    def pays_otherwise(self) -> bool:
        """Whether texts may be paid with other weights or scores than the `weights` and what the parts said."""
        return self.shaping is not None or bool(self.of_tasks)

    @property
    def weights_now(self) -> dict[str, float]:
        """The weights in training of the parts whose weight a run changes."""
        parts = {} if self.shaping is None else self.shaping.parts
        return {name: part.weight for name, part in parts.items() if part.shaping.steers_weight}

    @property
    def scores_batches(self) -> bool:
        """Whether a part looks at all texts of a batch together."""
        return bool(self._by_batch)

    @property
    def waits_outside(self) -> bool:
        """Whether a part waits for another process or a server."""
        return bool(self._outside)

    def score(self, episodes: Sequence[Episode], group_size: int = 1, *, rows: int = 0) -> list[Score]:
        """One Score per episode. Neighbours of `group_size` are one group (responses to one prompt).

        `rows`: the episodes of the whole rollout, where these are some of them: `max_bad_fraction` is of those.
        """
        self.read_ahead(episodes)
        return self._told_all(partial(self._score, episodes, group_size, rows))

    def read_ahead(self, episodes: Sequence[Episode]) -> None:
        """Where several processes train one run, all of them read the texts for the KL penalty: it takes as long as
        everything else together."""
        if self.for_all is None:
            return
        for part in self.parts.values():
            if (reference := getattr(part, "reference", None)) is not None:  # of a penalty, or what measures a distance
                self.for_all.read_ahead(reference, episodes)

    def _told_all(self, ask: Callable[[], _T]) -> _T:
        return ask() if self.for_all is None else self.for_all.from_first(ask)

    def _score(self, episodes: Sequence[Episode], group_size: int, rows: int) -> list[Score]:
        if self._outside and len(self.parts) > 1:
            with Asking() as asking:
                scoring = Scoring(self, asking)
                scoring.hand_in(episodes, group_size, rows=rows)
                return scoring.scores()
        answers = {name: self._part(name, episodes, group_size, rows) for name in self.parts}
        return self._scores(episodes, answers, group_size)

    @contextmanager
    def scoring(self) -> Iterator[Scoring]:
        """A context in which texts are handed in batch by batch, and scored while the caller goes on."""
        with Asking() as asking:
            yield Scoring(self, asking)

    def _part(self, name: str, episodes: Sequence[Episode], group_size: int, rows: int) -> Answers:
        """What one part says about all of these; None of texts of tasks in which it does not count."""
        if name in self.of_tasks:
            asked = [row for row, episode in enumerate(episodes) if self._counts(name, episode)]
            found, why = self._said(name, [episodes[row] for row in asked], group_size, max(rows, len(episodes)))
            of_row = dict(zip(asked, found, strict=True))
            return [of_row.get(row) for row in range(len(episodes))], {asked[place]: did for place, did in why.items()}
        return self._said(name, episodes, group_size, rows)

    def _counts(self, name: str, episode: Episode) -> bool:
        """Whether the part is one of the text's task."""
        return name not in self.of_tasks or task_label(episode.prompt) in self.of_tasks[name]

    def speaks_of(self, task: str) -> bool:
        """Whether a part other than the KL penalty counts in the mixture's task of this label."""
        spoken = (name for name in self.parts if name not in self.kl_names and name not in self._totals)
        return any(task in self.of_tasks.get(name, (task,)) for name in spoken)

    def _said(self, name: str, episodes: Sequence[Episode], group_size: int, rows: int) -> Answers:
        """What one part says about all of these."""
        if self.for_all is not None:
            self.for_all.at(f"the reward {name!r}")
        return self._asked[name].answers(episodes, group_size, rows)

    def _scores(self, episodes: Sequence[Episode], answers: Mapping[str, Answers], group_size: int = 1) -> list[Score]:
        values = {name: found for name, (found, _) in answers.items()}
        failed = {name: why for name, (_, why) in answers.items()}
        scores = [self._score_of(row, episode, values, failed) for row, episode in enumerate(episodes)]
        return scores if self.shaping is None else self.shaping.shaped(episodes, scores, group_size)

    def _score_of(
        self,
        row: int,
        episode: Episode,
        values: Mapping[str, Sequence[float | Float | None]],
        failed: Mapping[str, Mapping[int, str]],
    ) -> Score:
        why = {name: rows[row] for name, rows in failed.items() if row in rows}
        silent = [name for name in self.parts if values[name][row] is None]
        abstained = tuple(name for name in silent if self._counts(name, episode)) if self.of_tasks else tuple(silent)
        speaking = len(self.parts) - len(silent) - len(self.kl_names) - len(self._totals)
        if any(self.failures[name].on_error == "skip" for name in why) or (silent and not speaking):
            return Score(raw={}, weights={}, failed=why, abstained=abstained)
        tokens = {name: cast(Float, values[name][row]) for name in self._by_token if name not in silent}
        raw = {
            name: float(tokens[name].sum()) if name in tokens else float(cast(float, values[name][row]))
            for name in self.parts
            if name not in silent
        }
        weights = self._weights_of(episode)
        return Score(raw=raw, weights=weights, tokens=tokens, failed=why, abstained=abstained)

    def _weights_of(self, episode: Episode) -> dict[str, float]:
        """What the text is paid with: the weights of now, in its task."""
        weights = dict(self.weights)
        if self.shaping is not None:
            weights |= {name: part.weight for name, part in self.shaping.parts.items()}
        for name, factors in self.of_tasks.items():
            weights[name] *= factors.get(task_label(episode.prompt), 0.0)
        return weights

    def require_few_failures(self, scores: Sequence[Score], episodes: Sequence[Episode]) -> None:
        """RewardError where a part has failed for too many of a whole rollout, or no episode of it has a score.

        Parts that were not asked any more, because they failed at everything, are asked again in the next rollout.
        """
        for asked in self._asked.values():
            asked.try_again()
        for name, asked in self._asked.items():
            failed = {row: score.failed[name] for row, score in enumerate(scores) if name in score.failed}
            if len(failed) > asked.failures.allowed(len(scores)):
                raise asked.too_many(failed, episodes)
        for name in scores[0].failed if not any(score.raw for score in scores) else ():
            said = scores[0].failed[name]
            raise self._asked[name].too_many(dict.fromkeys(range(len(scores)), said), episodes)

    def observe(self, episodes: Sequence[Episode], scores: Sequence[Score] = ()) -> None:
        """Show finished episodes to the parts that remember (called when the environment resets), and their `scores`
        to what shapes them."""
        if self.shaping is not None and scores:
            self.shaping.observe(episodes, scores)
            self._weigh_kl()
        moved = self._told_all(partial(self._observe, episodes))
        if self.for_all is not None and not self.for_all.is_first and self.kl is not None and self.kl.name in moved:
            self._remembering[self.kl.name].load_state_dict(moved[self.kl.name])  # agents read its coefficient

    def _observe(self, episodes: Sequence[Episode]) -> State:
        """What the KL penalty then remembers, where it does."""
        for name, part in self._remembering.items():
            try:
                with self._asked[name].contained():
                    part.observe(episodes if self._asked[name].of_this_package else lent(episodes))
            except RewardFailed as error:
                raise RewardError(f"reward {name!r} {error}, when it was shown {len(episodes)} episodes") from error
        return {name: self._remembering[name].state_dict() for name in self.kl_names if name in self._remembering}

    def follow(self, state: TrainerState) -> None:
        """Tell the parts that ask for it, and what shapes them, where training stands."""
        for part in self._following.values():
            part.follow(state)
        if self.shaping is not None:
            self.shaping.follow(state.progress)
            self._weigh_kl()

    def take_logged(self) -> dict[str, float]:
        """The numbers that parts have logged since the last time: the mean of each name."""
        return self._told_all(self._take_logged) if self._following else {}

    def _take_logged(self) -> dict[str, float]:
        logged: dict[str, list[float]] = {}
        for part in self._following.values():
            for name, values in part.take_logged().items():
                logged.setdefault(name, []).extend(values)
        return {name: math.fsum(values) / len(values) for name, values in logged.items()}

    def state_dict(self) -> State:
        shaping = {} if self.shaping is None else self.shaping.state_dict()
        return {**{name: part.state_dict() for name, part in self._remembering.items()}, **shaping}

    def load_state_dict(self, state: State) -> None:
        for name, part in self._remembering.items():
            part.load_state_dict(state[name])
        if self.shaping is not None:
            self.shaping.load_state_dict(state)
            self._weigh_kl()
