"""What the environment says beside observation and reward: the `info` of a text, and that of B texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict, cast

import numpy as np
import numpy.typing as npt

from rlhf_env.types import Bool, Episode, FinishReason, Float, Int, Score

Objects = npt.NDArray[np.object_]


class Info(TypedDict, total=False):
    """Of one text: the prompt when it begins, the masks while it is written, the rest when it has ended."""

    prompt: str
    """What is asked, as text. At `reset`."""
    prompt_id: str
    """The task's name for that prompt. At `reset`."""
    action_mask: Bool
    """bool[V]: the tokens that the task allows next. Of tasks with an `action_mask` alone; at `reset`, and at each step
    while the text is written."""
    text_episode: Episode
    """The whole text: prompt with its columns, ids, response, turns, log-probabilities. At the end."""
    score: Score
    """Its parts before weights, their weights, and rewards per token, as agents and evaluations get them; empty of a
    text that was cut. At the end."""
    finish_reason: FinishReason
    """"stop" (an end token), "stop_string", "task" (the task has ended it), "length", or "truncated" (cut from
    outside). At the end."""
    prompt_length: int
    """Tokens of the prompt. At the end of a text that was scored."""
    response_length: int
    """Tokens after the prompt, the end token and what the task has said included. At the end of a text that was
    scored."""
    reward_parts: dict[str, float]
    """By part, its score before its weight; `sum(weight * part) == reward`. At the end of a text that was scored."""
    reward_weights: dict[str, float]
    """By part, its weight. At the end of a text that was scored."""
    token_rewards: dict[str, Float]
    """By part that scores tokens, float64[max_new_tokens]: each token's share before the weight, 0 after the end. At
    the end of a text that was scored."""
    reward_failures: dict[str, str]
    """By part that failed on the text, what went wrong. Only where one did."""


class VectorInfo(TypedDict, total=False):
    """Of B texts: an array over the rows for each key, and under `_key` a bool[B] of the rows that have one.

    `text_episode`, `score` and texts are arrays of objects, None where a row has none. Tables of a row (`reward_parts`)
    are tables of arrays.
    """

    prompt: Objects
    prompt_id: Objects
    action_mask: Bool
    text_episode: Objects
    score: Objects
    finish_reason: Objects
    prompt_length: Int
    response_length: Int
    reward_parts: dict[str, Float]
    reward_weights: dict[str, Float]
    token_rewards: dict[str, Float]
    reward_failures: dict[str, Objects]
    final_obs: Objects
    final_info: VectorInfo
    _prompt: Bool
    _prompt_id: Bool
    _action_mask: Bool
    _text_episode: Bool
    _score: Bool
    _finish_reason: Bool
    _prompt_length: Bool
    _response_length: Bool
    _reward_parts: Bool
    _reward_weights: Bool
    _token_rewards: Bool
    _reward_failures: Bool
    _final_obs: Bool
    _final_info: Bool


def collated(row_infos: Mapping[int, Mapping[str, object]], num_envs: int) -> VectorInfo:
    """Infos of rows as Gymnasium's vector infos: one array per key, and a mask under `_key`.

    The same as calling Gymnasium's `_add_info` for row after row, a key at a time: a third of its cost. Where a row
    itself has a `_key` (a reward part may be called so), that stands there and not the mask of `key`.
    """
    if not row_infos:
        return {}
    every_row = sorted(row_infos)
    of_rows = [row_infos[row] for row in every_row]
    infos: dict[str, object] = {}
    alike = all(info.keys() == of_rows[0].keys() for info in of_rows)
    keys = of_rows[0] if alike else dict.fromkeys(key for info in of_rows for key in info)
    for key in keys:
        rows = every_row if alike else [row for row in every_row if key in row_infos[row]]
        values = [row_infos[row][key] for row in rows]
        first = values[0]
        if isinstance(first, dict) and key != "final_obs":
            tables = cast(list[Mapping[str, object]], values)
            infos[key] = collated(dict(zip(rows, tables, strict=True)), num_envs)
        elif isinstance(first, (np.ndarray, int, float, np.number)):
            shape, dtype = (first.shape, first.dtype) if isinstance(first, np.ndarray) else ((), type(first))
            numbers = np.zeros((num_envs, *shape), dtype)
            numbers[rows] = values
            infos[key] = numbers
        else:
            objects = np.full(num_envs, None, object)
            for row, value in zip(rows, values, strict=True):
                objects[row] = value
            infos[key] = objects
        if f"_{key}" not in keys:
            mask = np.zeros(num_envs, dtype=np.bool_)
            mask[rows] = True
            infos[f"_{key}"] = mask
    return cast(VectorInfo, infos)
