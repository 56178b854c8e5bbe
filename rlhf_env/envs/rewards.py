"""The reward mix and its ledger: a weighted sum of parts that keeps the parts.

`sum(weight_i * raw_i) == reward` holds exactly (the same float64 operations in the same order), for every episode.
What a part answers is checked here and nowhere else, whoever answers: an object, another process, a server.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal, TypeVar, cast

import numpy as np
from annotated_types import Interval

from rlhf_env.envs.asks_for_all import AsksForAll
from rlhf_env.envs.circuit_breaker import CircuitBreaker, spread_out
from rlhf_env.envs.contained import contained, is_of_this_package, lent
from rlhf_env.envs.isolation import RewardFailed
from rlhf_env.envs.reward_answers import LARGEST_SCORE, Answers, episode_answers, token_answers
from rlhf_env.envs.scoring import Scoring
from rlhf_env.envs.shaping import MixShaping, Shaped, Total, shaping_problems
from rlhf_env.envs.task_labels import TaskWeights, task_label
from rlhf_env.envs.waiting import Asking, WaitsOutside
from rlhf_env.errors import ConfigError, RewardError
from rlhf_env.own_code import raised_at
from rlhf_env.settings import Share, fits, settings
from rlhf_env.types import (
    AnyReward,
    Episode,
    Float,
    FollowsTraining,
    GroupReward,
    KLPenalty,
    ReadsBatch,
    ReadsLogprobs,
    Remembers,
    Reward,
    Score,
    State,
    TokenReward,
    TrainerState,
)

_T = TypeVar("_T")


@settings
class Failures:
    """What becomes of episodes that a part fails to score: it raised, hung, died, or gave NaN or no sane number.

    An answer of the wrong form (their number, their type) is nobody's episode and always ends the run.
    """

    on_error: Literal["stop", "skip"] | Annotated[float, Interval(ge=-LARGEST_SCORE, le=LARGEST_SCORE)] = "stop"
    """"stop" ends the run with a RewardError. "skip" leaves the episode without a score; it is left out of the update,
    and counted. A number stands in for the score, unweighted (of a token part: for each token's)."""
    max_bad_fraction: Share = 0.1
    """More of a rollout's episodes than this end the run all the same."""

    def allowed(self, rows: int) -> int:
        """How many of `rows` episodes may fail."""
        return 0 if self.on_error == "stop" else math.floor(self.max_bad_fraction * rows + 1e-9)


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


class RewardMix:
    """`RewardMix({"bradley_terry": (1.0, model), "kl": (0.05, KL(reference))})`.

    A bare reward instead of a pair has weight 1. Scores are validated here and nowhere else: every part must return
    one finite number per episode (per token for a TokenReward), or a RewardError names it; `failures` may say
    otherwise of a part.

    A part is asked about identical texts once, unless it looks at the texts beside each (`GroupReward`, `ReadsBatch`).
    Parts that wait outside this process (`WaitsOutside`: another process, a server) are asked all at the same time, and
    while the others calculate.

    A part that answers None abstains: it is no part of that text's score. Where all parts but the KL penalty abstain,
    the text has no score.

    What a part does to the episodes it is lent, or to the process, changes nothing for others (`contained`).
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
        nameless = [name for name in pairs if not isinstance(name, str) or not name or not name.isprintable()]
        if nameless:
            raise ConfigError(*(f"a reward part has a name of printable characters, got {name!r}" for name in nameless))
        self.weights: dict[str, float] = {name: float(weight) for name, (weight, _) in pairs.items()}
        self.parts: dict[str, AnyReward] = {name: reward for name, (_, reward) in pairs.items()}
        self.failures: dict[str, Failures] = {name: (failures or {}).get(name, Failures()) for name in self.parts}
        self.kl = None if measures else self._kl_part()
        # Asked once: isinstance of a protocol takes longer than many a reward.
        self._reads_logprobs = {name for name, part in self.parts.items() if _reads_logprobs(part)}
        self._by_token = {name: part for name, part in self.parts.items() if isinstance(part, TokenReward)}
        self._by_group = {name: part for name, part in self.parts.items() if isinstance(part, GroupReward)}
        self._by_batch = {
            name for name, part in self.parts.items() if isinstance(part, ReadsBatch) and part.needs_batch
        }
        self._remembering = {name: part for name, part in self.parts.items() if isinstance(part, Remembers)}
        self._outside = {name: part for name, part in self.parts.items() if isinstance(part, WaitsOutside)}
        self._following = {name: part for name, part in self.parts.items() if isinstance(part, FollowsTraining)}
        self._calls = {name: _question(part) for name, part in self.parts.items()}
        self._of_this_package = {name for name, part in self.parts.items() if is_of_this_package(part)}
        self._breakers = {name: CircuitBreaker() for name in self.parts}
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
        return bool(self._reads_logprobs)

    def reads_logprobs(self, name: str) -> bool:
        """Whether the part of this name does."""
        return name in self._reads_logprobs

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
        allowed = self.failures[name].allowed(max(rows, len(episodes)))
        values: list[float | Float | None] = []
        failed: dict[int, str] = {}
        size = group_size if name in self._by_group else max(len(episodes), 1)
        for start in range(0, len(episodes), size):
            found, why = self._ask(name, episodes[start : start + size], allowed - len(failed))
            values += found
            failed |= {start + place: did for place, did in why.items()}
        return values, failed

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
        for breaker in self._breakers.values():
            breaker.close()
        for name, failures in self.failures.items():
            failed = {row: score.failed[name] for row, score in enumerate(scores) if name in score.failed}
            if len(failed) > failures.allowed(len(scores)):
                raise self._too_many(name, failed, episodes)
        for name in scores[0].failed if not any(score.raw for score in scores) else ():
            raise self._too_many(name, dict.fromkeys(range(len(scores)), scores[0].failed[name]), episodes)

    def _ask(self, name: str, episodes: Sequence[Episode], allowed: int) -> Answers:
        """A part's answer to one question; identical texts are in it once.

        Raises RewardError for more failures than `allowed`, and for an answer of the wrong form.
        """
        if self.for_all is not None:
            self.for_all.at(f"the reward {name!r}")
        breaker = self._breakers[name]
        if not breaker.lets_through():
            failed = dict.fromkeys(range(len(episodes)), breaker.said)
            return self._filled(name, episodes, [0.0] * len(episodes), failed, allowed)
        distinct, places = self._distinct(name, episodes)
        try:
            with self._contained(name):
                # Ours write into nothing that they are lent: tests hold them to it.
                answer = self._calls[name](distinct if name in self._of_this_package else lent(distinct))
        except (Exception, SystemExit) as error:
            found, why = self._after_error(name, distinct, allowed, error)
        else:
            found, why = (token_answers if name in self._by_token else episode_answers)(name, answer, distinct)
            if len(why) < len(distinct):
                breaker.close()
        failed = {row: why[place] for row, place in enumerate(places) if place in why}
        return self._filled(name, episodes, [found[place] for place in places], failed, allowed)

    def _distinct(self, name: str, episodes: Sequence[Episode]) -> tuple[Sequence[Episode], Sequence[int]]:
        """The episodes that differ in what the part may look at, and the place among them of each of `episodes`.

        Two are of one prompt that hold the same object, as rows of a group do: its columns may be anything.
        """
        side_by_side = name in self._by_group or name in self._by_batch
        if side_by_side or len({it.response_ids.tobytes() for it in episodes}) == len(episodes):
            return episodes, range(len(episodes))
        stated = name in self._reads_logprobs
        distinct: list[Episode] = []
        place_of: dict[tuple[int, bytes, bytes, str, bytes | None], int] = {}
        places: list[int] = []
        for it in episodes:
            logprobs = it.logprobs.tobytes() if stated and it.logprobs is not None else None
            text = id(it.prompt), it.response_ids.tobytes(), it.actions.tobytes(), it.finish_reason, logprobs
            if text not in place_of:
                place_of[text] = len(distinct)
                distinct.append(it)
            places.append(place_of[text])
        return distinct, places

    def _after_error(self, name: str, episodes: Sequence[Episode], allowed: int, error: BaseException) -> Answers:
        """Find the episodes that it was about, by asking for each of them alone."""
        if isinstance(error, RewardError) and len(episodes) > max(allowed, 0):
            raise RewardError(f"reward {name!r}: {error}") from error
        if len(episodes) == 1 or name in self._by_group or isinstance(error, RewardError):  # which is about all
            did = _what_it_did(error)
            lost = isinstance(error, RewardError) or (isinstance(error, RewardFailed) and error.lost)
            self._breakers[name].failed(len(episodes), did, lost=lost)
            failed = dict.fromkeys(range(len(episodes)), did)
            return self._filled(name, episodes, [0.0] * len(episodes), failed, allowed, error)
        if allowed <= 0 and isinstance(error, RewardFailed) and error.lost:  # to look for it would take as long again
            asked = f"when it was to score {len(episodes)} episodes (prompts {_id(episodes[0])} to {_id(episodes[-1])})"
            raise RewardError(f"reward {name!r} {_what_it_did(error)}, {asked}") from error
        values: list[float | Float | None] = [0.0] * len(episodes)
        failed = {}
        # Where a failure ends the run, the first is looked for; otherwise the first few are spread over all.
        for place in range(len(episodes)) if allowed <= 0 else spread_out(len(episodes)):
            (values[place],), why = self._ask(name, [episodes[place]], 1)
            if why:
                failed[place] = why[0]
                if len(failed) > max(allowed, 0):
                    raise self._too_many(name, failed, episodes) from error
        if not failed and allowed <= 0:
            raise RewardError(
                f"reward {name!r} {_what_it_did(error)} for {len(episodes)} episodes together, and for none alone"
            ) from error
        others = [place for place in range(len(episodes)) if place not in failed]
        if name in self._by_batch and 0 < len(others) < len(episodes):
            # What it says of a text alone is not what it says of a batch: it is asked again without what it fails on.
            found, why = self._ask(name, [episodes[place] for place in others], allowed - len(failed))
            values = [dict(zip(others, found, strict=True)).get(place, values[place]) for place in range(len(episodes))]
            failed |= {others[place]: did for place, did in why.items()}
        return values, dict(sorted(failed.items()))

    def _filled(
        self,
        name: str,
        episodes: Sequence[Episode],
        values: list[float | Float | None],
        failed: dict[int, str],
        allowed: int,
        error: BaseException | None = None,
    ) -> Answers:
        """`values` with what stands in for those that `failed`."""
        if failed and len(failed) > max(allowed, 0):
            raise self._too_many(name, failed, episodes) from error
        said = self.failures[name].on_error
        stand_in = 0.0 if isinstance(said, str) else float(said)  # of an episode to be skipped it is not looked at
        for place in failed:
            count = len(episodes[place].response_ids)
            values[place] = np.full(count, stand_in) if name in self._by_token else stand_in
        return values, failed

    def _too_many(self, name: str, failed: Mapping[int, str], episodes: Sequence[Episode]) -> RewardError:
        place, did = next(iter(failed.items()))
        first = f"{did} for episode {place} of 0..{len(episodes) - 1} (prompt {_id(episodes[place])})"
        failures = self.failures[name]
        if failures.on_error == "stop":
            return RewardError(f"reward {name!r} {first}")
        return RewardError(
            f"reward {name!r} failed for {len(failed)} of {len(episodes)} episodes, and max_bad_fraction is "
            f"{failures.max_bad_fraction:g} of a rollout: it {first}"
        )

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
                with self._contained(name):
                    part.observe(episodes if name in self._of_this_package else lent(episodes))
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

    def _contained(self, name: str) -> AbstractContextManager[None]:
        """The context in which a part is asked: another process, and our own code, change nothing to be put back."""
        trusted = name in self._outside or name in self._of_this_package
        return nullcontext() if trusted else contained(f"reward {name!r}")

    def state_dict(self) -> State:
        shaping = {} if self.shaping is None else self.shaping.state_dict()
        return {**{name: part.state_dict() for name, part in self._remembering.items()}, **shaping}

    def load_state_dict(self, state: State) -> None:
        for name, part in self._remembering.items():
            part.load_state_dict(state[name])
        if self.shaping is not None:
            self.shaping.load_state_dict(state)
            self._weigh_kl()


def _question(part: AnyReward) -> Callable[[Sequence[Episode]], object]:
    """What a part is asked with: it is a plugin's, so what it returns is looked at before it is believed."""
    if isinstance(part, TokenReward):
        return part.token_rewards
    return part.group_rewards if isinstance(part, GroupReward) else part


def _reads_logprobs(part: AnyReward) -> bool:
    return isinstance(part, ReadsLogprobs) and bool(part.needs_logprobs)


def _what_it_did(error: BaseException) -> str:
    if isinstance(error, (RewardFailed, RewardError)):
        return str(error)
    place = raised_at(error)
    return f"raised {type(error).__name__}: {error}{f' ({place})' if place else ''}"


def _id(episode: Episode) -> str:
    return repr(episode.prompt.id)
