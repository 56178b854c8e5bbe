"""Texts of a run with the numbers of each of their tokens, in its folder: what `rlhf-env watch` shows of them.

`texts.jsonl` has a line for each text, after a first line that says how much was left out. The file is bounded: where
it grows beyond its limit, every second occasion is dropped, and from then on only every second one is kept, and so
on. That depends on nothing but what is recorded, so that a run that was resumed ends with the same file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le

from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.trackers.json_lines import drop_half_line
from rlhf_env.settings import Whole, settings
from rlhf_env.types import Episode, Float, JsonObject, JsonView, Score, Tokenizer
from rlhf_env.whole_files import WAY_ON, refused, write_whole

TEXTS_FILE = "texts.jsonl"
Occasion = Literal["evaluation", "rollout"]
TOKENS = 2048
"""Tokens of a text of which the numbers are kept."""
_PIECES = 8  # tokens that may be needed to make one character


@settings
class RecordedTextsSettings:
    """Which texts a run keeps, with the numbers of each of their tokens: `rlhf-env watch` shows them."""

    of_evaluation: Whole = 16
    """How many texts of an evaluation are kept (0: none), those of its first prompts."""
    of_rollout: Whole = 8
    """How many texts of a rollout are kept (0: none), with the advantages that the agent gave their tokens."""
    rollouts_every: Annotated[int, Ge(1)] = 10
    """Keep texts of every rollout (1), of every tenth (10), ..."""
    megabytes: Annotated[int, Ge(1), Le(4096)] = 16
    """The most that the file may have. Beyond it, every second evaluation and rollout in it is dropped, and only every
    second one is kept from there on."""


class RecordedTexts:
    """The file, open to be written in a run's folder.

    Every method that writes raises DiskRefused where the disk does not take it.
    """

    def __init__(self, file: Path, megabytes: int) -> None:
        self._file = file
        self._limit = megabytes * 1_000_000
        drop_half_line(file)
        self._stride = _stride_of(file)
        self._there = {(row["source"], row["update"]) for _, row in _rows(file)}

    def write(
        self, source: Occasion, update: int, occasion: int, texts: Iterable[JsonView], *, last: bool = False
    ) -> None:
        """Keep `texts`, the `occasion`-th (0, 1, ...) of their source; one that is left out now stays out.

        `last`: those of an evaluation after the last update, which a run that goes on from there does not have.
        """
        if occasion % self._stride:
            return
        if (source, update) in self._there:  # of a run that was killed before it could say that it had them
            self._keep(lambda row: (row["source"], row["update"]) != (source, update))
        head: JsonObject = {"source": source, "update": update, "occasion": occasion}
        lines, size = [], 0
        for index, text in enumerate(texts):
            row = {**head, "index": index, **text, **({"last": True} if last else {})}
            line = json.dumps(row, allow_nan=False, separators=(",", ":")) + "\n"
            size += len(line)
            if size > self._limit / 8:  # the first occasion, the last one and a few between have room
                break
            lines.append(line)
        if not lines:
            return
        try:
            new = not self._file.exists()
            with self._file.open("a", encoding="ascii") as stream:
                stream.write((_head(1) if new else "") + "".join(lines))
        except OSError as error:
            raise refused(str(self._file), error, *WAY_ON, self._file.parent) from error
        self._there.add((source, update))
        while self._file.stat().st_size > self._limit:
            self._stride *= 2
            self._keep(lambda row: row["occasion"] % self._stride == 0)

    def sync(self) -> None:
        """Make what was recorded outlive a power cut."""
        if self._file.exists():
            with self._file.open("a") as stream:
                os.fsync(stream.fileno())

    def rewind(self, update: int) -> None:
        """Keep what was recorded up to `update`."""
        self._keep(lambda row: row["update"] <= update and not row.get("last"))

    def _keep(self, wanted: Callable[[JsonView], bool]) -> None:
        if not self._file.exists():
            return
        kept = [(line, row) for line, row in _rows(self._file) if wanted(row)]
        write_whole(self._file, _head(self._stride).encode() + b"".join(line for line, _ in kept))
        self._there = {(row["source"], row["update"]) for _, row in kept}


def _head(stride: int) -> str:
    return json.dumps({"format": 1, "stride": stride}) + "\n"


def _stride_of(file: Path) -> int:
    try:
        with file.open("rb") as stream:
            stride = json.loads(stream.readline())["stride"]
    except (OSError, ValueError, LookupError, TypeError):
        return 1
    return stride if isinstance(stride, int) and stride >= 1 else 1


def _rows(file: Path) -> list[tuple[bytes, JsonObject]]:
    """The lines that are texts, each with what it holds; a damaged one is none."""
    found = []
    for line in (file.read_bytes() if file.exists() else b"").splitlines(keepends=True):
        try:
            row = json.loads(line)
            _ = row["source"], row["update"] + row["occasion"]
        except (ValueError, LookupError, TypeError):
            continue
        found.append((line, row))
    return found


def recorded_text(
    episode: Episode,
    score: Score,
    tokenizer: Tokenizer,
    *,
    weights: Mapping[str, float],
    log_ratio: Float | None,
    advantages: Float | None = None,
) -> JsonObject:
    """A text as the file has it: prompt, response, how it ended, reward and parts, and its tokens with their numbers.

    `weights`: of the parts that make the reward; `score` may have more. `log_ratio` and `advantages`: float64[T], where
    they are known. The numbers of tokens are the weighted reward that was paid for each (what a text earned as a whole
    stands at its last one), log p - log p_ref, and the advantage; and each part that rewards tokens, unweighted.
    """
    ids, count = [int(i) for i in episode.response_ids[:TOKENS]], len(episode.response_ids)
    paid, total, by_token = np.zeros(max(count, 1)), 0.0, {}
    for name, weight in weights.items():
        if name not in score.raw:
            continue
        total += weight * score.raw[name]
        if name in score.tokens:
            paid[:count] += weight * score.tokens[name]
            by_token[f"part/{name}"] = np.asarray(score.tokens[name])
        else:
            paid[-1] += weight * score.raw[name]
    numbers = {"reward": paid[:count]} if score.raw else {}
    numbers |= {} if log_ratio is None else {"log_ratio": log_ratio}
    numbers |= {} if advantages is None else {"advantage": advantages}
    given = [i for i, own in enumerate(episode.actions[:TOKENS]) if not own]
    return {
        "prompt_id": episode.prompt.id,
        "prompt": str(episode.prompt.meta.get("turn", episode.prompt.text)),
        "response": episode.response,
        "finish_reason": episode.finish_reason,
        "length": int(np.sum(episode.actions)),
        **({"reward": _rounded(total)} if score.raw else {}),
        "parts": {name: _rounded(raw) for name, raw in score.raw.items()},
        **({} if log_ratio is None else {"kl": _rounded(float(log_ratio.sum()))}),
        "tokens": pieces(tokenizer, ids),
        **({"given": given} if given else {}),
        "numbers": {name: [_rounded(v) for v in values[:TOKENS]] for name, values in (numbers | by_token).items()},
    }


def texts_of_rollout(
    rollout: Rollout,
    count: int,
    tokenizer: Tokenizer,
    kl: str | None,
    credited: tuple[Sequence[Episode], Any] | None,
) -> list[JsonObject]:
    """The first `count` texts of a rollout. `kl` is the part that charges for log-ratios; `credited` the texts and the
    advantages [B, L] of an agent's update, where the agent has told them."""
    reference = rollout.extras.get("reference")
    rows_of = {} if credited is None else {id(episode): row for row, episode in enumerate(credited[0])}
    found = []
    for row in range(min(count, len(rollout))):
        episode, score = rollout.episodes[row], rollout.scores[row]
        start, end = len(episode.prompt_ids), len(episode.ids)
        ratio = None
        if reference is not None and rollout.stated:
            against = reference[row, start:end].double().cpu()
            own = rollout.logprobs[row, start:end].double().cpu()
            ratio = (own - against).masked_fill(~rollout.actions[row, start:end].cpu(), 0.0).numpy()
        advantages = None
        if credited is not None and (place := rows_of.get(id(episode))) is not None:
            own_tokens = rollout.actions[row, start:end].cpu()
            advantages = credited[1][place, start:end].detach().double().cpu().masked_fill(~own_tokens, 0.0).numpy()
        weights = {name: score.weights[name] for name in score.raw}
        text = recorded_text(episode, score, tokenizer, weights=weights, log_ratio=ratio, advantages=advantages)
        if kl is not None:  # the log-ratios say the same
            text["numbers"].pop(f"part/{kl}", None)
        found.append(text)
    return found


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text; the last of several that make one character has it, the others have nothing."""
    found: list[str] = []
    begin = done = 0  # decoding begins a little earlier: what a token reads as may depend on the one before it
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[begin:end])
        if text.endswith("\ufffd") and end < len(ids) and end - done < _PIECES:
            found.append("")
            continue
        found.append(text[len(tokenizer.decode(ids[begin:done])) :])
        begin, done = done, end
    return found


def _rounded(value: float) -> float | None:
    """To five digits, for a file with a few numbers for each token; None where it is no number."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
