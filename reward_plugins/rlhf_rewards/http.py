"""Scores from a server: it gets `POST {"prompts": [...], "responses": [...]}` and answers `{"scores": [...]}`.

Temporary failures are tried again, `attempts` times in all and within `deadline` seconds: a connection that is refused
or broken, an answer that does not come in time, a status of 5xx, 408 or 429; a `Retry-After` is waited for. Permanent
failures are errors at once: any other status, redirects (which are not followed), and an answer that is not one finite
number per text. No score is invented: the caller gets the server's scores or a RewardError.

    judge = {plugin = "http", url = "https://example.org/score", token_env = "JUDGE_TOKEN"}

During a rollout, the server scores finished texts while the others are still being written. That needs texts that end
in different steps: `action_length = 16`, for example, but not whole responses, which all end in the same step.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import field
from functools import cached_property

import numpy as np

from rlhf_env.errors import Problem, RewardError
from rlhf_env.settings import AtLeastOne, Positive, settings
from rlhf_env.types import Episode, Float
from rlhf_env.web_calls import LONGEST_ANSWER, Server

_BYTES_A_SCORE = 64


@settings(kw_only=False, frozen=False, eq=False)
class Http:
    """Scores from a server; no other address than `url` is contacted."""

    url: str
    """http:// or https://. A user name and password in it are sent as basic authentication. Messages leave them out,
    and what follows a "?"; the run folder's experiment.toml does not."""
    token_env: str = ""
    """The environment variable that holds a token, sent as `Authorization: Bearer ...`."""
    attempts: AtLeastOne = 4
    """How often one batch is asked for, at most."""
    patience: Positive = 10.0
    """Seconds for one answer, from connecting to its last byte."""
    deadline: Positive = 60.0
    """Seconds for all attempts and the pauses between them."""
    connections: AtLeastOne = 1
    """Batches that the server may be asked about at the same time, where texts end one after the other."""
    seed: int = 0
    """Draws the pauses: each is between half and all of 0.25 s, 0.5 s, 1 s and so on, up to 8 s, so that many runs do
    not come back at the same moment."""
    jitter: np.random.Generator | None = field(default=None, repr=False)
    """Draws the pauses instead of `seed`."""

    def problems(self) -> Iterator[Problem]:
        yield from self._server.problems()

    @cached_property
    def _server(self) -> Server:
        jitter = np.random.default_rng(self.seed) if self.jitter is None else self.jitter
        return Server(self.url, self.token_env, self.attempts, self.patience, self.deadline, jitter)

    def __repr__(self) -> str:
        return f"Http({self._server.shown_url})"

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        """float64[B]. Raises RewardError."""
        if not episodes:
            return np.zeros(0)
        body = json.dumps(
            {"prompts": [it.prompt.text for it in episodes], "responses": [it.response for it in episodes]}
        ).encode()
        count = len(episodes)
        most = LONGEST_ANSWER + _BYTES_A_SCORE * count
        return self._scores(self._server.post(body, most, f"{count} scores"), count)

    def hang_up(self) -> None:
        """End the calls in other threads."""
        self._server.hang_up()

    def _scores(self, content: bytes, count: int) -> Float:
        def refuse_constant(name: str) -> float:
            raise ValueError(f"{name} is not a score")

        try:
            answer = json.loads(content, parse_constant=refuse_constant)
        except (ValueError, RecursionError) as error:
            raise self._refusal(f"the answer is not JSON: {error}") from error
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, list):
            raise self._refusal('the answer has no list "scores": {"scores": [0.5, ...]} is expected')
        if len(scores) != count:
            raise self._refusal(f"{len(scores)} scores for {count} texts")
        for place, score in enumerate(scores):
            if isinstance(score, bool) or not isinstance(score, (int, float)):
                raise self._refusal(f"score {place} is {json.dumps(score)[:40]}, not a number")
            if not abs(score) <= sys.float_info.max:  # 1e999 is JSON, and so is a whole number of 400 digits
                raise self._refusal(f"score {place} is not finite")
        return np.array(scores, dtype=np.float64)

    def _refusal(self, what: str) -> RewardError:
        return self._server.refusal(what)
