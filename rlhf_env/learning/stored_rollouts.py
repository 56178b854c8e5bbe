"""Rollouts that an agent keeps between updates, as plain state: what a checkpoint holds, and how many bytes it has."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlhf_env.learning.rollout import Rollout
from rlhf_env.types import Episode, JsonObject, Prompt, Score, State

_TENSORS = ("tokens", "mask", "actions", "logprobs", "group", "truncated")


def to_keep(rollout: Rollout) -> Rollout:
    """The rollout on the processor, as it is kept: of a prompt, its id and its text alone, and nothing measured.

    A task's own columns may be anything, and no agent here reads them in an update. They are left out before the first
    use, so that a resumed run learns from the same things.
    """
    episodes = [
        replace(episode, prompt=Prompt(episode.prompt.id, episode.prompt.text), turns=(), messages=())
        for episode in rollout.episodes
    ]
    # Every row selected: without the columns that nobody's text reaches.
    return replace(rollout.to("cpu").select(slice(None)), episodes=tuple(episodes), measured={})


def rollout_state(rollout: Rollout) -> State:
    """The state of a rollout that `to_keep` gave: tensors and plain values, without copies."""
    parts = dict.fromkeys(name for score in rollout.scores for name in score.tokens)
    return {
        **{name: getattr(rollout, name) for name in _TENSORS},
        "extras": dict(rollout.extras),
        "weights": rollout.weights,
        "stated": rollout.stated,
        "judged": rollout.judged,
        "episodes": [_plain_episode(episode) for episode in rollout.episodes],
        "scores": [_plain_score(score) for score in rollout.scores],
        "token_rewards": {name: _laid_out(rollout, name) for name in parts},
    }


def rollout_from_state(state: State) -> Rollout:
    """The rollout that `rollout_state` gave."""
    tensors: dict[str, Any] = {name: state[name] for name in _TENSORS}
    tokens, mask = tensors["tokens"].numpy(), tensors["mask"].numpy()
    actions, logprobs = tensors["actions"].numpy(), tensors["logprobs"].numpy()
    paid = {name: values.numpy() for name, values in state["token_rewards"].items()}
    episodes, scores = [], []
    for row, (episode, score) in enumerate(zip(state["episodes"], state["scores"], strict=True)):
        start, end = int(episode["start"]), int(mask[row].sum())
        episodes.append(
            Episode(
                prompt=Prompt(episode["id"], episode["prompt"]),
                prompt_ids=tokens[row, :start].copy(),
                response=episode["response"],
                response_ids=tokens[row, start:end].copy(),
                finish_reason=episode["finish_reason"],
                actions=actions[row, start:end].copy(),
                logprobs=logprobs[row, start:end].copy() if episode["stated"] else None,
            )
        )
        scores.append(
            Score(
                raw=dict(score["raw"]),
                weights=dict(score["weights"]),
                tokens={name: paid[name][row, start:end].copy() for name in score["tokens"]},
                failed=dict(score["failed"]),
                abstained=tuple(score["abstained"]),
            )
        )
    return Rollout(
        **tensors,
        episodes=tuple(episodes),
        scores=tuple(scores),
        extras=dict(state["extras"]),
        stated=bool(state["stated"]),
        judged=bool(state["judged"]),
        weights=state["weights"],
    )


def bytes_of(state: State) -> int:
    """What `rollout_state` takes in a checkpoint: the bytes of its tensors, and of the rest as JSON."""
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    tensors += [*state["extras"].values(), *state["token_rewards"].values()]
    plain = json.dumps([state["episodes"], state["scores"]])
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) + len(plain)


def _plain_episode(episode: Episode) -> JsonObject:
    return {
        "id": episode.prompt.id,
        "prompt": episode.prompt.text,
        "start": len(episode.prompt_ids),
        "response": episode.response,
        "finish_reason": episode.finish_reason,
        "stated": episode.logprobs is not None,
    }


def _plain_score(score: Score) -> JsonObject:
    return {
        "raw": {name: float(value) for name, value in score.raw.items()},
        "weights": {name: float(value) for name, value in score.weights.items()},
        "tokens": list(score.tokens),
        "failed": dict(score.failed),
        "abstained": list(score.abstained),
    }


def _laid_out(rollout: Rollout, part: str) -> Tensor:
    """float64[B, L]: the rewards of the tokens of one part; 0 where it has none."""
    paid = torch.zeros(rollout.tokens.shape, dtype=torch.float64)
    for row, (episode, score) in enumerate(zip(rollout.episodes, rollout.scores, strict=True)):
        if part in score.tokens:
            start = len(episode.prompt_ids)
            paid[row, start : start + len(score.tokens[part])] = torch.from_numpy(score.tokens[part].copy())
    return paid
