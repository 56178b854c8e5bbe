"""A language model behind an OpenAI-compatible endpoint: questions in, its words out, in order; nothing is asked twice.

`POST URL/chat/completions` is the whole of what is used, with the fields `model`, `messages`, `temperature`,
`max_tokens` and what `fields` adds; of the answer, `choices[0].message.content` and `usage`. So it may be OpenAI, vLLM,
llama.cpp, or anything else that speaks so.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np

from rlhf_env.envs.isolation import RewardFailed
from rlhf_env.errors import Problem
from rlhf_env.feedback.judging.answer_cache import AnswerCache, Completion, default_cache, key_of
from rlhf_env.settings import AtLeastOne, IsPath, Name, NonNegative, Positive, Whole, fault, settings
from rlhf_env.types import JsonObject
from rlhf_env.web_calls import LONGEST_ANSWER, RequestRefused, Server

_OURS = ("messages", "model", "temperature", "max_tokens", "n", "stream")  # of a request's fields
_BYTES_A_TOKEN = 64  # of an answer, at most


@dataclass
class Spent:
    """What was asked of a server since it was last looked at, by all threads together."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: int = 0
    """Questions that were not asked, because the answer was there."""

    def __str__(self) -> str:
        tokens = f"{self.prompt_tokens:,} prompt tokens, {self.completion_tokens:,} completion tokens"
        return f"{self.requests:,} questions asked, {self.cached:,} answered before; {tokens}"


@settings(frozen=False, eq=False)
class ChatModel:
    """A language model behind an OpenAI-compatible endpoint."""

    url: str
    """Where the API is, up to its version: "https://api.openai.com/v1", "http://localhost:8000/v1". By https://; by
    http:// to this machine alone, or where `unencrypted` says so."""
    model: Name
    """What the server calls the model."""
    token_env: str = ""
    """The environment variable that holds the key, sent as `Authorization: Bearer ...`. The key itself stands in no
    file and no message."""
    unencrypted: bool = False
    """Allow http:// to another machine: whoever is on the way there reads texts and key."""
    temperature: NonNegative = 0.0
    """Of the judge; above 0, each of several votes is another draw."""
    max_tokens: Whole = 512
    """Of one answer of the judge; 0 leaves the field out (for servers that want another name for it, in `fields`)."""
    fields: dict[str, object] = field(default_factory=dict)
    """More fields of each request, as the server's manual says: {"top_p" = 0.9, "seed" = 1}."""
    attempts: AtLeastOne = 4
    """How often one question is asked, at most. A server's Retry-After is waited for."""
    patience: Positive = 60.0
    """Seconds for one answer, from connecting to its last byte."""
    deadline: Positive = 300.0
    """Seconds for all attempts at one question and the pauses between them."""
    connections: AtLeastOne = 4
    """Questions that the server is asked at the same time."""
    cache: Annotated[str, IsPath()] = ""
    """The file in which answers are kept, for all runs that ask the same (default: judges.sqlite in
    `$RLHF_ENV_CACHE`, or in ~/.cache/rlhf-env). A run that resumes asks nothing twice."""
    cache_mb: Whole = 256
    """Mebibytes that it may hold, before the oldest answers go; 0 keeps none."""
    _spent: Spent = field(default_factory=Spent, init=False, repr=False)
    _turn: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _rounds: list[threading.Event] = field(default_factory=list, init=False, repr=False)
    _caches: dict[int, AnswerCache] = field(default_factory=dict, init=False, repr=False)  # by process

    def problems(self) -> Iterator[Problem]:
        yield from self._server.problems(only_secure=not self.unencrypted)
        for name in self.fields:
            if name in _OURS:
                yield fault("fields", f"has {name!r}, which is not for them to say: {', '.join(_OURS)}")
        try:
            json.dumps(self.fields)
        except (TypeError, ValueError) as error:
            yield fault("fields", f"cannot be written as JSON: {error}")

    @cached_property
    def _free(self) -> threading.BoundedSemaphore:
        """What `connections` leaves to ask, whoever asks: several threads may call a reward at the same time."""
        return threading.BoundedSemaphore(self.connections)

    @cached_property
    def _server(self) -> Server:
        url = f"{self.url.rstrip('/')}/chat/completions"
        return Server(url, self.token_env, self.attempts, self.patience, self.deadline, np.random.default_rng(0))

    @property
    def _cache(self) -> AnswerCache | None:
        """Opened at the first question, in each process: a connection to a database does not survive a fork."""
        if not self.cache_mb:
            return None
        with self._turn:
            if os.getpid() not in self._caches:
                path = Path(self.cache).expanduser() if self.cache else default_cache()
                self._caches[os.getpid()] = AnswerCache(path, self.cache_mb << 20)
            return self._caches[os.getpid()]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r} at {self._server.shown_url})"

    def spent(self) -> Spent:
        """What was asked since the last call of this."""
        with self._turn:
            now, self._spent = self._spent, Spent()
        return now

    def hang_up(self) -> None:
        """End the questions that other threads ask."""
        for over in tuple(self._rounds):
            over.set()
        self._server.hang_up()

    def ask(self, questions: Sequence[tuple[str, int]]) -> list[str]:
        """What the model says to each: (text, the how-manieth time it is asked). Equal ones are asked once.

        Raises RewardError where the server answers nobody (the key, the address), RewardFailed where it has no answer
        to one of these. Those that were answered before that are kept.
        """
        if not questions:
            return []
        cache, distinct = self._cache, list(dict.fromkeys(questions))
        over = threading.Event()  # no further question: one has failed, or the run hangs up
        self._rounds.append(over)
        try:
            with ThreadPoolExecutor(min(self.connections, len(distinct)), thread_name_prefix="judge") as threads:
                asked = {it: threads.submit(self._answer, *it, cache, over) for it in distinct}
        finally:
            self._rounds.remove(over)
        found = {it: answer.result() for it, answer in asked.items() if answer.exception() is None}
        for answer in asked.values():
            if isinstance(error := answer.exception(), BaseException) and not isinstance(error, _NotAsked):
                raise error
        if len(found) < len(distinct):
            raise self._server.refusal("the run ended the call before it was asked")
        return [found[it].said for it in questions]

    def _answer(self, text: str, vote: int, cache: AnswerCache | None, over: threading.Event) -> Completion:
        request: JsonObject = {
            **self.fields,
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": self.temperature,
            **({"max_tokens": self.max_tokens} if self.max_tokens else {}),
        }
        key = key_of({"url": self._server.shown_url, "vote": vote, "request": request})
        if cache is not None and (known := cache.get(key)) is not None:
            with self._turn:
                self._spent.cached += 1
            return known
        if over.is_set():
            raise _NotAsked
        try:
            most = LONGEST_ANSWER + _BYTES_A_TOKEN * self.max_tokens
            with self._turn:
                self._spent.requests += 1
                free = self._free
            with free:
                content = self._server.post(json.dumps(request).encode(), most, f"{self.max_tokens} tokens")
            answer = self._read(content)
        except RequestRefused as error:
            over.set()
            if error.about_all:
                raise
            raise RewardFailed(str(error), lost=True) from error
        except BaseException:
            over.set()
            raise
        with self._turn:
            self._spent.prompt_tokens += answer.prompt_tokens
            self._spent.completion_tokens += answer.completion_tokens
        if cache is not None:
            cache.put(key, answer)
        return answer

    def _read(self, content: bytes) -> Completion:
        """Raises RequestRefused for what is no chat completion."""
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise self._server.refusal(f"the answer is not JSON: {error}", about_all=False) from error
        try:
            said = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError) as error:
            wanted = "choices[0].message.content, as of OpenAI's chat completions, is expected"
            raise self._server.refusal(f"the answer is no chat completion: {wanted}", about_all=False) from error
        usage = answer.get("usage")
        counted = [usage.get(name) if isinstance(usage, dict) else 0 for name in ("prompt_tokens", "completion_tokens")]
        tokens = [it if isinstance(it, int) and 0 <= it < 2**53 else 0 for it in counted]
        return Completion(said if isinstance(said, str) else "", *tokens)  # null: it refused, or called a tool


class _NotAsked(Exception):
    """Another question of the same round had failed before."""
