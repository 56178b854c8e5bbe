"""One part of a reward mix: how it is asked, and what becomes of the episodes that it fails to score.

What a part answers is checked here and nowhere else, whoever answers: an object, another process, a server.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Literal

import numpy as np
from annotated_types import Interval

from rlhf_env.envs.circuit_breaker import CircuitBreaker, spread_out
from rlhf_env.envs.contained import contained, is_of_this_package, lent
from rlhf_env.envs.isolation import RewardFailed
from rlhf_env.envs.reward_answers import LARGEST_SCORE, Answers, episode_answers, token_answers
from rlhf_env.envs.waiting import WaitsOutside
from rlhf_env.errors import RewardError
from rlhf_env.own_code import error_in_words
from rlhf_env.settings import Share, settings
from rlhf_env.types import AnyReward, Episode, Float, GroupReward, ReadsBatch, ReadsLogprobs, TokenReward


@settings
class Failures:
    """What becomes of episodes that a part fails to score: it raised, hung, died, or gave NaN or no sane number.

    An answer of the wrong form (their number, their type) is nobody's episode and always ends the run.
    """

    on_error: Literal["stop", "skip"] | Annotated[float, Interval(ge=-LARGEST_SCORE, le=LARGEST_SCORE)] = "stop"
    """"stop" ends the run with a RewardError. "skip" leaves the episode without a score; it is left out of the update,
    and counted. A number stands in for the score, unweighted (of a token part: for each token's)."""
    max_bad_fraction: Share = 0.1
    """With "skip" or a number: if a larger share of a rollout's episodes fails, the run ends anyway."""

    def allowed(self, rows: int) -> int:
        """How many of `rows` episodes may fail."""
        return 0 if self.on_error == "stop" else math.floor(self.max_bad_fraction * rows + 1e-9)


class AskedPart:
    """`AskedPart("length", Length(target=12), Failures()).answers(episodes, group_size=1, rows=64)`.

    Identical texts are asked about once, unless the part looks at the texts beside each (`GroupReward`, `ReadsBatch`).
    What it does to the episodes it is lent, or to the process, changes nothing for others (`contained`).

    Attributes:
        name: what the user calls the part; errors name it.
        question: what it is asked with, a method of the reward.
        by_token: whether it answers for each token.
        by_group: whether it compares the answers to one prompt.
        by_batch: whether it looks at all texts of a batch together.
        reads_logprobs: whether it reads `episode.logprobs`.
        of_this_package: whether it is our own: tests hold those to what is enforced of others.
    """

    def __init__(self, name: str, part: AnyReward, failures: Failures) -> None:
        self.name, self.failures = name, failures
        # Asked once: isinstance of a protocol takes longer than many a reward.
        self.by_token = isinstance(part, TokenReward)
        self.by_group = isinstance(part, GroupReward)
        self.by_batch = isinstance(part, ReadsBatch) and bool(part.needs_batch)
        self.reads_logprobs = isinstance(part, ReadsLogprobs) and bool(part.needs_logprobs)
        self.of_this_package = is_of_this_package(part)
        self.question = _question(part)
        self._trusted = self.of_this_package or isinstance(part, WaitsOutside)
        self._breaker = CircuitBreaker()

    def answers(self, episodes: Sequence[Episode], group_size: int, rows: int) -> Answers:
        """What it says about all of these, of a rollout of `rows`; neighbours of `group_size` are one group.

        Raises RewardError for more failures than are allowed, and for an answer of the wrong form.
        """
        allowed = self.failures.allowed(max(rows, len(episodes)))
        values: list[float | Float | None] = []
        failed: dict[int, str] = {}
        size = group_size if self.by_group else max(len(episodes), 1)
        for start in range(0, len(episodes), size):
            found, why = self._ask(episodes[start : start + size], allowed - len(failed))
            values += found
            failed |= {start + place: did for place, did in why.items()}
        return values, failed

    def contained(self) -> AbstractContextManager[None]:
        """The context in which it is asked: another process, and our own code, change nothing to be put back."""
        return nullcontext() if self._trusted else contained(f"reward {self.name!r}")

    def try_again(self) -> None:
        """Where it was not asked any more, because it failed at everything, it is asked the next time."""
        self._breaker.close()

    def too_many(self, failed: Mapping[int, str], episodes: Sequence[Episode]) -> RewardError:
        """What to raise where it `failed` for these places of `episodes`."""
        place, did = next(iter(failed.items()))
        first = f"{did} for episode {place} of 0..{len(episodes) - 1} (prompt {_id(episodes[place])})"
        if self.failures.on_error == "stop":
            return RewardError(f"reward {self.name!r} {first}")
        return RewardError(
            f"reward {self.name!r} failed for {len(failed)} of {len(episodes)} episodes, and max_bad_fraction is "
            f"{self.failures.max_bad_fraction:g} of a rollout: it {first}"
        )

    def _ask(self, episodes: Sequence[Episode], allowed: int) -> Answers:
        """Its answer to one question; identical texts are in it once."""
        if not self._breaker.lets_through():
            failed = dict.fromkeys(range(len(episodes)), self._breaker.said)
            return self._filled(episodes, [0.0] * len(episodes), failed, allowed)
        distinct, places = self._distinct(episodes)
        try:
            with self.contained():
                # Ours write into nothing that they are lent: tests hold them to it.
                answer = self.question(distinct if self.of_this_package else lent(distinct))
        except (Exception, SystemExit) as error:
            found, why = self._after_error(distinct, allowed, error)
        else:
            found, why = (token_answers if self.by_token else episode_answers)(self.name, answer, distinct)
            if len(why) < len(distinct):
                self._breaker.close()
        failed = {row: why[place] for row, place in enumerate(places) if place in why}
        return self._filled(episodes, [found[place] for place in places], failed, allowed)

    def _distinct(self, episodes: Sequence[Episode]) -> tuple[Sequence[Episode], Sequence[int]]:
        """The episodes that differ in what it may look at, and the place among them of each of `episodes`.

        Two are of one prompt that hold the same object, as rows of a group do: its columns may be anything.
        """
        side_by_side = self.by_group or self.by_batch
        if side_by_side or len({it.response_ids.tobytes() for it in episodes}) == len(episodes):
            return episodes, range(len(episodes))
        distinct: list[Episode] = []
        place_of: dict[tuple[int, bytes, bytes, str, bytes | None], int] = {}
        places: list[int] = []
        for it in episodes:
            logprobs = it.logprobs.tobytes() if self.reads_logprobs and it.logprobs is not None else None
            text = id(it.prompt), it.response_ids.tobytes(), it.actions.tobytes(), it.finish_reason, logprobs
            if text not in place_of:
                place_of[text] = len(distinct)
                distinct.append(it)
            places.append(place_of[text])
        return distinct, places

    def _after_error(self, episodes: Sequence[Episode], allowed: int, error: BaseException) -> Answers:
        """Find the episodes that it was about, by asking for each of them alone."""
        name = self.name
        if isinstance(error, RewardError) and len(episodes) > max(allowed, 0):
            raise RewardError(f"reward {name!r}: {error}") from error
        if len(episodes) == 1 or self.by_group or isinstance(error, RewardError):  # which is about all
            did = _what_it_did(error)
            lost = isinstance(error, RewardError) or (isinstance(error, RewardFailed) and error.lost)
            self._breaker.failed(len(episodes), did, lost=lost)
            failed = dict.fromkeys(range(len(episodes)), did)
            return self._filled(episodes, [0.0] * len(episodes), failed, allowed, error)
        if allowed <= 0 and isinstance(error, RewardFailed) and error.lost:  # to look for it would take as long again
            asked = f"when it was to score {len(episodes)} episodes (prompts {_id(episodes[0])} to {_id(episodes[-1])})"
            raise RewardError(f"reward {name!r} {_what_it_did(error)}, {asked}") from error
        values: list[float | Float | None] = [0.0] * len(episodes)
        failed = {}
        # Where a failure ends the run, the first is looked for; otherwise the first few are spread over all.
        for place in range(len(episodes)) if allowed <= 0 else spread_out(len(episodes)):
            (values[place],), why = self._ask([episodes[place]], 1)
            if why:
                failed[place] = why[0]
                if len(failed) > max(allowed, 0):
                    raise self.too_many(failed, episodes) from error
        if not failed and allowed <= 0:
            raise RewardError(
                f"reward {name!r} {_what_it_did(error)} for {len(episodes)} episodes together, and for none alone"
            ) from error
        others = [place for place in range(len(episodes)) if place not in failed]
        if self.by_batch and 0 < len(others) < len(episodes):
            # What it says of a text alone is not what it says of a batch: it is asked again without what it fails on.
            found, why = self._ask([episodes[place] for place in others], allowed - len(failed))
            values = [dict(zip(others, found, strict=True)).get(place, values[place]) for place in range(len(episodes))]
            failed |= {others[place]: did for place, did in why.items()}
        return values, dict(sorted(failed.items()))

    def _filled(
        self,
        episodes: Sequence[Episode],
        values: list[float | Float | None],
        failed: dict[int, str],
        allowed: int,
        error: BaseException | None = None,
    ) -> Answers:
        """`values` with what stands in for those that `failed`."""
        if failed and len(failed) > max(allowed, 0):
            raise self.too_many(failed, episodes) from error
        said = self.failures.on_error
        stand_in = 0.0 if isinstance(said, str) else float(said)  # of an episode to be skipped it is not looked at
        for place in failed:
            count = len(episodes[place].response_ids)
            values[place] = np.full(count, stand_in) if self.by_token else stand_in
        return values, failed


def _question(part: AnyReward) -> Callable[[Sequence[Episode]], object]:
    """What a part is asked with: it is a plugin's, so what it returns is looked at before it is believed."""
    if isinstance(part, TokenReward):
        return part.token_rewards
    return part.group_rewards if isinstance(part, GroupReward) else part


def _what_it_did(error: BaseException) -> str:
    if isinstance(error, (RewardFailed, RewardError)):
        return str(error)
    return f"raised {error_in_words(error)}"


def _id(episode: Episode) -> str:
    return repr(episode.prompt.id)
