"""`check_reward`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlhf_env.envs.contained import is_of_this_package
from rlhf_env.envs.reward_functions import FunctionReward, as_reward
from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.envs.tasks import load_task
from rlhf_env.envs.tokenizers import ByteTokenizer
from rlhf_env.errors import ConfigError, ContractError
from rlhf_env.testing.episodes import episodes_of, in_groups
from rlhf_env.testing.kept_state import kept_by, kept_since
from rlhf_env.testing.observing import broken, global_randomness_untouched, raised
from rlhf_env.testing.remedies import OF_REWARDS, mended
from rlhf_env.types import (
    AnyReward,
    BoundedAbove,
    BoundedBelow,
    Episode,
    Float,
    GroupReward,
    JsonView,
    ReadsBatch,
    Remembers,
    Tokenizer,
    TokenReward,
)


def check_reward(
    reward: AnyReward | Callable[..., Any],
    *,
    low: float | None = None,
    high: float | None = None,
    seed: int = 0,
    meta: JsonView | None = None,
    tokenizer: Tokenizer | None = None,
    longest: int = 10_000,
    tolerance: float = 1e-12,
) -> None:
    """Attack a reward with generated episodes; raise ContractError at the first rule it breaks.

    The rules, by the `rule` of the error: "raised" (it scores every text), "count" (one float per episode, token or
    member), "finite", "range", "deterministic" (same question, same bits), "pure" (episodes stay as they are),
    "global random state", "batch mates" (neither the number of episodes nor the others among them nor their order
    changes a score by more than `tolerance`; of a function in TRL's convention and whatever else reads its batch, this
    is not asked), "memory" (scoring teaches nothing; a saved state loads). None, an abstention, is an answer.

    Args:
        reward: a Reward, TokenReward or GroupReward, or a function in TRL's convention.
        low, high: the range each value must keep (of a TokenReward: each token's); the attributes of that name where
            the reward has them. None is no bound.
        meta: columns of the task that the reward reads, the same for every prompt.
        tokenizer: whose ids the episodes carry (a reward with a model inside knows one vocabulary); bytes by default.
        longest: characters of the longest response. Lower it for a reward with a limited context.
    """
    if isinstance(reward, type):
        name = reward.__name__
        raise ContractError("raised", f"{name} is a class: check an instance, {name}(...)", "hand over an instance")
    with mended(OF_REWARDS):
        _check(reward, low, high, episodes_of(np.random.default_rng(seed), meta, tokenizer, longest), seed, tolerance)


def check_reward_table(name: str, table: JsonView, columns: JsonView | None = None) -> list[str]:
    """`check_reward` of a part as [rewards] has it, with bytes as tokens; what is no mistake for certain, in words.

    `columns` are the task's that it reads, each with the value that every prompt of the check has. Raises ConfigError
    where a function takes a column that is not among them.
    """
    columns, tokenizer = dict(columns or {}), ByteTokenizer()
    task = load_task("count") if table.get("plugin", name) == "task" else None
    reward = load_rewards({name: table}, task, {"tokenizer": tokenizer}).parts[name]
    if isinstance(reward, FunctionReward) and (missing := reward.missing(columns)):
        raise ConfigError(f"{missing}. Where it is a column of the task, say what stands there: {_COLUMN}")
    written = reward.function if isinstance(reward, FunctionReward) else reward
    before = kept_by(written)
    check_reward(reward, meta=columns, tokenizer=tokenizer)
    if is_of_this_package(reward) or isinstance(reward, Remembers):
        return []
    return [
        f"{name} changed while it was asked, and no checkpoint holds it: as a cache that is right, but if a score "
        "depends on it, a resumed run has other scores: a class with observe, state_dict and load_state_dict is saved"
        for name in kept_since(before, written)
    ]


_COLUMN = "--column NAME=TEXT (Python: check_reward(..., meta={'NAME': 'TEXT'}))"
_TOKEN = "response token"
_METHODS = ("__call__", "token_rewards", "group_rewards")


def _remedy_for(error: BaseException, reward: Any, episodes: Sequence[Episode]) -> str:
    """How to mend a reward that raised, where more is known than that every text is to have a score."""
    key = error.args[0] if isinstance(error, KeyError) and error.args else None
    if isinstance(key, str) and all(key not in episode.prompt.meta for episode in episodes):
        return f"if {key!r} is a column of the task, say what stands there: {_COLUMN}"
    written = reward.function if isinstance(reward, FunctionReward) else reward
    if not any(callable(getattr(written, method, None)) for method in _METHODS):
        return "a reward has `__call__(self, episodes)`, or `token_rewards`, or `group_rewards`, or is a function"
    return ""


def _check(
    reward: AnyReward | Callable[..., Any],
    low: float | None,
    high: float | None,
    episodes: Sequence[Episode],
    seed: int,
    tolerance: float,
) -> None:
    scored = as_reward(reward)
    if low is None and isinstance(scored, BoundedBelow):
        low = scored.low
    if high is None and isinstance(scored, BoundedAbove):
        high = scored.high
    score = _Asked(scored, low, high)
    before = copy.deepcopy(scored.state_dict()) if isinstance(scored, Remembers) else None

    # A GroupReward sees the answers to one prompt; the others see whatever is in the batch.
    batches = in_groups(episodes) if isinstance(scored, GroupReward) else [episodes]
    for batch in batches:
        together = score(batch)
        again = score(batch)
        for episode, first, second in zip(batch, together, again, strict=True):
            if first.tobytes() != second.tobytes():
                raise broken("deterministic", "the same score when asked twice", f"{first} and {second}", episode)
        if isinstance(scored, ReadsBatch) and scored.needs_batch:
            score(batch[:1])
            continue
        order = np.random.default_rng(seed).permutation(len(batch))
        _same_scores("in another order", batch, together, order, score([batch[i] for i in order]), tolerance)
        if isinstance(scored, GroupReward):
            score(batch[:1])
            score(batch[:2])
            continue
        alone = [score([episode])[0] for episode in batch]
        _same_scores("alone", batch, together, np.arange(len(batch)), alone, tolerance)
        twins = score([batch[0], batch[-1], batch[0]])
        _same_scores("beside other mates", batch, together, np.array([0, len(batch) - 1, 0]), twins, tolerance)

    if isinstance(scored, Remembers):
        _check_memory(scored, before)


class _Asked:
    """The reward, asked under observation: each answer has been checked for count, finiteness, range and side effects.

    An answer is one float64 array per episode: its one score (none, where it abstains), or of a TokenReward its token
    scores.
    """

    def __init__(self, reward: Any, low: float | None, high: float | None) -> None:
        self.reward, self.low, self.high = reward, low, high

    def __call__(self, episodes: Sequence[Episode]) -> list[Float]:
        kept = copy.deepcopy(list(episodes))
        handed = list(episodes)
        with global_randomness_untouched("the reward"):
            answer = self._answer(handed, kept)
        if len(handed) != len(kept):
            raise ContractError("pure", f"the reward changed the list it was handed: {len(kept)} -> {len(handed)}")
        for now, then in zip(handed, kept, strict=True):
            if now != then or now.prompt.meta != then.prompt.meta:
                raise broken("pure", "episodes that stay as they are", "a changed one", then)
        for episode, values in zip(kept, answer, strict=True):
            bad = values[~np.isfinite(values)]
            if bad.size:
                raise broken("finite", "finite numbers", str(bad[0]), episode)
            if self.low is not None and (values < self.low).any():
                raise broken("range", f"at least {self.low}", str(values.min()), episode)
            if self.high is not None and (values > self.high).any():
                raise broken("range", f"at most {self.high}", str(values.max()), episode)
        return answer

    def _answer(self, handed: list[Episode], kept: Sequence[Episode]) -> list[Float]:
        """The reward's answer to `handed`, counted against `kept`: the reward may have changed what it was handed."""
        if isinstance(self.reward, TokenReward):
            rows = self._ask(lambda: [np.asarray(row) for row in self.reward.token_rewards(handed)], kept)
            if len(rows) != len(kept):
                raise ContractError("count", f"expected {len(kept)} arrays, one per episode, got {len(rows)}")
            return [
                _numbers(row, len(episode.response_ids), _TOKEN, [episode])
                for row, episode in zip(rows, kept, strict=True)
            ]
        call = self.reward.group_rewards if isinstance(self.reward, GroupReward) else self.reward
        answer = self._ask(lambda: call(handed), kept)
        silent: list[int] = []
        if isinstance(answer, (list, tuple)):
            silent = [place for place, value in enumerate(answer) if value is None]
            answer = [0.0 if value is None else value for value in answer]
        values = _numbers(self._ask(lambda: np.asarray(answer), kept), len(kept), "episode", kept)
        return [np.zeros(0) if place in silent else values[place : place + 1] for place in range(len(kept))]

    def _ask(self, call: Callable[[], Any], episodes: Sequence[Episode]) -> Any:
        try:
            return call()
        except (Exception, SystemExit) as error:  # whatever a plugin raises, the report names the text that made it
            blamed = self._to_blame(episodes)
            made = broken("raised", "a score for every text", raised(error), *blamed)
            made.add_remedy(_remedy_for(error, self.reward, blamed))
            raise made from error

    def _to_blame(self, episodes: Sequence[Episode]) -> Sequence[Episode]:
        """The first text that cannot be scored alone; all of them, where each can."""
        if isinstance(self.reward, GroupReward):
            return episodes
        call = self.reward.token_rewards if isinstance(self.reward, TokenReward) else self.reward
        for episode in copy.deepcopy(list(episodes)):
            try:
                call([episode])
            except (Exception, SystemExit):
                return [episode]
        return episodes


def _numbers(values: Any, count: int, what: str, episodes: Sequence[Episode]) -> Float:
    if values.dtype.kind not in "fiub" or values.shape != (count,):
        came = f"{values.dtype} of shape {values.shape}"
        made = broken("count", f"one float per {what}, shape ({count},)", came, *episodes)
        if what == _TOKEN:
            made.add_remedy(
                "return one array for each episode, as long as its `response_ids`: tokens, not characters, and the end "
                "token counts"
            )
        raise made
    floats: Float = values.astype(np.float64)
    return floats


def _same_scores(
    how: str, batch: Sequence[Episode], together: Sequence[Float], rows: Any, answers: Sequence[Float], tolerance: float
) -> None:
    for row, answer in zip(rows, answers, strict=True):
        if len(answer) != len(together[row]) or not np.allclose(answer, together[row], rtol=0.0, atol=tolerance):
            expected, came = f"{together[row]}, its score in a batch of {len(batch)}", f"{answer} {how}"
            raise broken("batch mates", expected, came, batch[row])


def _check_memory(reward: Remembers, before: JsonView | None) -> None:
    state = reward.state_dict()
    if repr(state) != repr(before):
        raise ContractError("memory", f"scoring changed the state from {before} to {state}: learn in observe() only")
    try:
        reward.load_state_dict(copy.deepcopy(state))
    except (Exception, SystemExit) as error:
        raise ContractError("memory", f"its own state_dict does not load: {type(error).__name__}: {error}") from error
    if repr(reward.state_dict()) != repr(state):
        raise ContractError("memory", f"state {state} loads as {reward.state_dict()}")
