"""The rollout: finished episodes as tensors, from which every agent learns, whether they were sampled or stored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_env.envs.infos import VectorInfo
from rlhf_env.errors import RunFailed
from rlhf_env.policies.precision import finest, moved
from rlhf_env.types import Episode, Float, Score


@dataclass(frozen=True)
class Rollout:
    """B finished texts as tensors, with their episodes and scores; L is the longest text, prompt and response.

    Every [B, L] tensor is about `tokens[b, t]` itself, not about the token after it.
    """

    tokens: Tensor
    """int64[B, L], padded on the right."""
    mask: Tensor
    """bool[B, L], True on text."""
    actions: Tensor
    """bool[B, L], True on tokens that the agent wrote."""
    logprobs: Tensor
    """float64[B, L]: of the agent's tokens, under the policy that wrote them; 0 elsewhere."""
    group: Tensor
    """int64[B]: rows with the same number answer the same prompt."""
    truncated: Tensor
    """bool[B]: the row was cut from outside, so that a value has to be bootstrapped there."""
    episodes: Sequence[Episode]
    scores: Sequence[Score]
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """float64[B, L] each: what the agent's `act` attached to its tokens."""
    stated: bool = False
    """Whether `logprobs` are known; if not, they are 0."""
    judged: bool = False
    """Whether the rewards are stored judgements, 1 for what is preferred or desirable and 0 for the rest."""
    measured: Mapping[str, float] = field(default_factory=dict)
    """Numbers about the whole batch that whoever made it measured, for the log."""
    weights: Tensor | None = None
    """float64[B]: how much each row counts in a loss, for rows that were not drawn with equal probability; None: 1."""

    @classmethod
    def from_episodes(
        cls,
        episodes: Sequence[Episode],
        scores: Sequence[Score],
        *,
        pad_id: int,
        group_size: int = 1,
        extras: Mapping[str, Sequence[Float]] | None = None,
    ) -> Rollout:
        """Pad on the right. `extras` hold one float64[T] per episode. Every `group_size` neighbours are a group."""
        length = max(len(episode.prompt_ids) + len(episode.response_ids) for episode in episodes)
        shape = (len(episodes), length)
        tokens = np.full(shape, pad_id, dtype=np.int64)
        mask, actions = np.zeros(shape, dtype=np.bool_), np.zeros(shape, dtype=np.bool_)
        logprobs = np.zeros(shape)
        laid_out = {name: np.zeros(shape) for name in extras or {}}
        for row, episode in enumerate(episodes):
            start, end = len(episode.prompt_ids), len(episode.prompt_ids) + len(episode.response_ids)
            tokens[row, :start], tokens[row, start:end] = episode.prompt_ids, episode.response_ids
            mask[row, :end] = True
            actions[row, start:end] = episode.actions
            if episode.logprobs is not None:
                logprobs[row, start:end] = np.where(episode.actions, episode.logprobs, 0.0)
            for name, values in (extras or {}).items():
                laid_out[name][row, start:end] = values[row]
        return cls(
            tokens=torch.from_numpy(tokens),
            mask=torch.from_numpy(mask),
            actions=torch.from_numpy(actions),
            logprobs=torch.from_numpy(logprobs),
            group=torch.arange(len(episodes)) // group_size,
            truncated=torch.tensor([episode.finish_reason == "truncated" for episode in episodes]),
            episodes=tuple(episodes),
            scores=tuple(scores),
            extras={name: torch.from_numpy(values) for name, values in laid_out.items()},
            stated=all(episode.logprobs is not None for episode in episodes),
        )

    @classmethod
    def joined(cls, parts: Sequence[Rollout], *, pad_id: int) -> Rollout:
        """The rows of several rollouts as one. Groups of different rollouts stay apart; they are numbered anew.

        Extras are those that all the rollouts have; what was measured about each of them is left out.
        """
        length = max(part.tokens.shape[1] for part in parts)
        names = [name for name in parts[0].extras if all(name in part.extras for part in parts)]
        groups: list[Tensor] = []
        for part in parts:
            first = int(groups[-1].max()) + 1 if groups and len(groups[-1]) else 0
            groups.append(first + torch.unique(part.group, return_inverse=True)[1])

        def side_by_side(tensors: Sequence[Tensor], fill: float) -> Tensor:
            return torch.cat([F.pad(tensor, (0, length - tensor.shape[1]), value=fill) for tensor in tensors])

        weighted = any(part.weights is not None for part in parts)
        return cls(
            tokens=side_by_side([part.tokens for part in parts], pad_id),
            mask=side_by_side([part.mask for part in parts], False),
            actions=side_by_side([part.actions for part in parts], False),
            logprobs=side_by_side([part.logprobs for part in parts], 0.0),
            group=torch.cat(groups),
            truncated=torch.cat([part.truncated for part in parts]),
            episodes=tuple(episode for part in parts for episode in part.episodes),
            scores=tuple(score for part in parts for score in part.scores),
            extras={name: side_by_side([part.extras[name] for part in parts], 0.0) for name in names},
            stated=all(part.stated for part in parts),
            judged=all(part.judged for part in parts),
            weights=torch.cat([part.row_weights for part in parts]) if weighted else None,
        )

    def __len__(self) -> int:
        return len(self.episodes)

    @property
    def row_weights(self) -> Tensor:
        """float64[B]: `weights`, or 1 each."""
        if self.weights is not None:
            return self.weights
        return torch.ones(len(self), dtype=finest(self.tokens.device), device=self.tokens.device)

    def weighted(self, values: Tensor) -> Tensor:
        """`values` [B] or [B, L], each row times its weight; the same tensor where rows have none."""
        if self.weights is None:
            return values
        return values * (self.weights if values.dim() == 1 else self.weights[:, None])

    @property
    def lengths(self) -> Tensor:
        """int64[B]: tokens of prompt and response."""
        return self.mask.sum(dim=1)

    @property
    def prompt_lengths(self) -> Tensor:
        """int64[B]: tokens before the first that was written; 0 where none was."""
        return self.actions.int().argmax(dim=1)

    def rewards(self, *, without: Sequence[str] = ()) -> Tensor:
        """float64[B, L]: the weighted rewards at the tokens that earned them, leaving out the parts named.

        Parts with token rewards stand at their tokens, the others at the last token. A row sums to the episode's
        reward.
        """
        paid = torch.zeros(self.tokens.shape, dtype=torch.float64)
        for row, (episode, score) in enumerate(zip(self.episodes, self.scores, strict=True)):
            start, end = len(episode.prompt_ids), len(episode.prompt_ids) + len(episode.response_ids)
            for name, raw in score.raw.items():
                if name in without or end == start:
                    continue
                if name in score.tokens:
                    paid[row, start:end] += score.weights[name] * torch.from_numpy(score.tokens[name])
                else:
                    paid[row, end - 1] += score.weights[name] * raw
        return moved(paid, self.tokens.device)

    def returns(self, *, without: Sequence[str] = ()) -> Tensor:
        """float64[B]: the weighted sum of reward parts of each episode, leaving out the parts named."""
        return torch.tensor(
            [
                sum((score.weights[name] * raw for name, raw in score.raw.items() if name not in without), 0.0)
                for score in self.scores
            ],
            dtype=finest(self.tokens.device),
            device=self.tokens.device,
        )

    @property
    def scored(self) -> Tensor:
        """bool[B]: rows that have a reward. Rows that were cut from outside, that a part failed on, or about which no
        part had anything to say, have none."""
        return torch.tensor([bool(score.raw) for score in self.scores], dtype=torch.bool, device=self.tokens.device)

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the reward parts that have scored a row."""
        return tuple(dict.fromkeys(name for score in self.scores for name in score.raw))

    def require_finite(self) -> None:
        """Refuse numbers that are none: `logprobs` and `extras` at the agent's tokens, and scores.

        Raises RunFailed with the name of the tensor, row and position. An update asks before it changes anything: a
        single NaN would be in every parameter after one gradient step.
        """
        tensors = {"logprobs": self.logprobs, **{f"extra {name!r}": values for name, values in self.extras.items()}}
        if self._is_finite():
            return
        problems = [
            f"{name} of row {row} is {float(values[row, position])} at position {position}"
            for name, values in tensors.items()
            for row, position in (~values.isfinite() & self.actions).nonzero().tolist()
        ]
        for row, score in enumerate(self.scores):
            numbers: dict[str, float | Float] = {**score.tokens, **score.raw}
            broken = [name for name, values in numbers.items() if not np.isfinite(values).all()]
            problems += [f"reward part {name!r} of row {row} is {score.raw.get(name)}" for name in broken]
        if problems:
            more = f" (one of {len(problems)} such numbers)" if len(problems) > 1 else ""
            raise RunFailed(
                f"in the rollout, {problems[0]}{more}. Nothing was learned from it; look at the policy that wrote it: "
                "have its parameters diverged (lower the learning rate), or are stored numbers damaged?"
            )

    def _is_finite(self) -> bool:
        """Whether all is well with those numbers, asked of all of them at once."""
        if any(bool((~values.isfinite() & self.actions).any()) for values in (self.logprobs, *self.extras.values())):
            return False
        tokens = [np.asarray(values) for score in self.scores for values in score.tokens.values()]
        return all(math.isfinite(raw) for score in self.scores for raw in score.raw.values()) and (
            not tokens or bool(np.isfinite(np.concatenate(tokens)).all())
        )

    def part(self, name: str) -> Tensor:
        """float64[B], on the processor: one reward part, unweighted; NaN in rows that it has not scored."""
        return torch.tensor([score.raw.get(name, math.nan) for score in self.scores], dtype=torch.float64)

    def to(self, device: str | torch.device) -> Rollout:
        """The same rollout with its tensors on `device`, in float32 where there is no float64."""
        place = torch.device(device)
        named = ("tokens", "mask", "actions", "logprobs", "group", "truncated")
        extras = {name: moved(values, place) for name, values in self.extras.items()}
        tensors: Mapping[str, Any] = {name: moved(getattr(self, name), place) for name in named}
        weights = None if self.weights is None else moved(self.weights, place)
        return replace(self, **tensors, extras=extras, weights=weights)

    def with_extras(self, **extras: Tensor) -> Rollout:
        """The same rollout with more [B, L] tensors in `extras`."""
        return replace(self, extras={**self.extras, **extras})

    def select(self, rows: Tensor | slice | Sequence[int]) -> Rollout:
        """Some rows, cropped to the longest of them."""
        indices = torch.arange(len(self))[rows].to(self.tokens.device)
        length = int(self.lengths[indices].max()) if len(indices) else 0
        numbers = indices.tolist()

        def crop(tensor: Tensor) -> Tensor:
            return tensor[indices, :length]

        return replace(
            self,
            tokens=crop(self.tokens),
            mask=crop(self.mask),
            actions=crop(self.actions),
            logprobs=crop(self.logprobs),
            group=self.group[indices],
            truncated=self.truncated[indices],
            episodes=tuple(self.episodes[i] for i in numbers),
            scores=tuple(self.scores[i] for i in numbers),
            extras={name: crop(values) for name, values in self.extras.items()},
            weights=None if self.weights is None else self.weights[indices],
        )


def finished(infos: VectorInfo) -> list[tuple[int, Episode, Score]]:
    """The episodes that ended in a vector environment's step, as its infos hold them: (row, episode, score)."""
    ended = np.flatnonzero(infos["_text_episode"]) if "text_episode" in infos else ()
    return [(int(row), infos["text_episode"][row], infos["score"][row]) for row in ended]


def demonstrations(episodes: Sequence[Episode], *, pad_id: int) -> Rollout:
    """Texts to imitate as a rollout without rewards; `actions` are the tokens of the answers."""
    return Rollout.from_episodes(episodes, [Score(raw={}, weights={})] * len(episodes), pad_id=pad_id)


def labelled_answers(episodes: Sequence[Episode], desirable: Sequence[bool], *, pad_id: int) -> Rollout:
    """Answers that were judged one by one as a rollout: reward 1 for a desirable answer, 0 for an undesirable one."""
    scores = [
        Score(raw={"preference": float(good)}, weights={"preference": 1.0})
        for _, good in zip(episodes, desirable, strict=True)
    ]
    return replace(Rollout.from_episodes(episodes, scores, pad_id=pad_id), judged=True)


def preference_pairs(
    chosen: Sequence[Episode],
    rejected: Sequence[Episode],
    *,
    pad_id: int,
    weights: Sequence[float] | None = None,
    margins: Sequence[float | None] | None = None,
) -> Rollout:
    """Preference pairs as a rollout: rows 2i (chosen, reward 1) and 2i + 1 (rejected, reward 0) are one group.

    `weights`, above 0, are the weights of the pairs (default: 1 each); they become those of the part "preference".
    `margins` say by how much the chosen answer is better: the part "margin" of both rows, of weight 0, where it is not
    None.
    """
    rows = [episode for pair in zip(chosen, rejected, strict=True) for episode in pair]
    each = [1.0] * len(chosen) if weights is None else weights
    scores = []
    for i in range(len(rows)):
        margin = None if margins is None else margins[i // 2]
        known = {} if margin is None else {"margin": margin}
        weight = {"preference": each[i // 2], **dict.fromkeys(known, 0.0)}
        scores.append(Score(raw={"preference": 1.0 - i % 2, **known}, weights=weight))
    return replace(Rollout.from_episodes(rows, scores, pad_id=pad_id, group_size=2), judged=True)
