"""An OpenAI-compatible server writes texts that are only measured: `vllm serve`, llama.cpp's server, or any other.

`POST URL/completions` is what is used: the prompt as text, special tokens and all, and of the answer
`choices[0].text` and `finish_reason`. Nothing can be learned from such texts: which tokens were drawn, and how likely
each was to the server, is not known. They are encoded again here, and the log-probabilities that are stated are those
of the run's own model: a distance to the reference says something where the server has that model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rlhf_env.envs.stop_strings import cut_after
from rlhf_env.envs.tokenizers import FileTokenizer
from rlhf_env.errors import ConfigError, Problem, WriterFailed
from rlhf_env.policies.language_model import without_dropout
from rlhf_env.policies.policy import Sampling, Written
from rlhf_env.policies.precision import as_float64
from rlhf_env.settings import AtLeastOne, Name, Positive, fault, settings
from rlhf_env.types import Bool, Float, Observation, Tokenizer
from rlhf_env.web_calls import LONGEST_ANSWER, RequestRefused, Server

if TYPE_CHECKING:
    from rlhf_env.policies.language_model import LanguageModel

_OURS = ("prompt", "model", "max_tokens", "temperature", "top_p", "top_k", "seed", "n", "stream")
_BYTES_A_TOKEN = 64  # of an answer, at most


@settings
class ServerSettings:
    """Where the server is, and how it is asked. Every request says temperature, top_p, top_k and a seed."""

    url: str
    """Where the API is, up to its version: "http://localhost:8000/v1". By https://; by http:// to this machine alone,
    or where `unencrypted` says so."""
    model: Name
    """What the server calls the model."""
    token_env: str = ""
    """The environment variable that holds the key, sent as `Authorization: Bearer ...`."""
    unencrypted: bool = False
    """Allow http:// to another machine: whoever is on the way there reads texts and key."""
    fields: dict[str, object] = field(default_factory=lambda: {"min_p": 0.0})
    """More fields of each request. llama.cpp's server leaves out what is unlikely unless `min_p` is 0."""
    attempts: AtLeastOne = 4
    """How often one text is asked for, at most. A server's Retry-After is waited for."""
    patience: Positive = 120.0
    """Seconds for one answer, from connecting to its last byte."""
    deadline: Positive = 600.0
    """Seconds for all attempts at one text and the pauses between them."""
    connections: AtLeastOne = 4
    """Texts that the server is asked for at the same time."""

    def problems(self) -> Iterator[Problem]:
        yield from self.server().problems(only_secure=not self.unencrypted)
        for name in self.fields:
            if name in _OURS:
                yield fault("fields", f"has {name!r}, which is not for them to say: {', '.join(_OURS)}")
        try:
            json.dumps(self.fields)
        except (TypeError, ValueError) as error:
            yield fault("fields", f"cannot be written as JSON: {error}")

    def server(self) -> Server:
        url = f"{self.url.rstrip('/')}/completions"
        return Server(url, self.token_env, self.attempts, self.patience, self.deadline)


class ServerWriter:
    """Texts of a server, for evaluations and best-of-n; see `TextWriter`."""

    of_training = False
    max_kl = float("inf")

    def __init__(self, wanted: ServerSettings, tokenizer: Tokenizer) -> None:
        self.wanted, self.name = wanted, f"{wanted.model} at {wanted.server().shown_url}"
        self._server, self._tokenizer = wanted.server(), tokenizer
        self._answers = False  # whether it has been seen to

    def check(self, policy: LanguageModel) -> None:
        """Ask for one token, once. ConfigError, in one line, where the server does not answer, or not as it should."""
        if self._answers:
            return
        try:
            self._ask([policy.end_id], 0.0, 1, policy.sampling)
        except RequestRefused as error:
            raise ConfigError(str(error)) from error
        self._answers = True

    def write(
        self,
        policy: LanguageModel,
        _weights: tuple[object, ...],
        observation: Observation,
        rows: Bool,
        numbers: Float,
    ) -> Written:
        """Up to k tokens for each of `rows`. Raises WriterFailed."""
        texts = np.asarray(observation["input_ids"], np.int64)
        lengths = np.asarray(observation["attention_mask"], bool).sum(1)
        asked = np.flatnonzero(rows)
        length = numbers.shape[1]
        tokens = np.full(numbers.shape, policy.vocab_size, np.int64)

        def of(row: int) -> list[int]:
            text, ended = self._ask(texts[row, : lengths[row]].tolist(), numbers[row, 0], length, policy.sampling)
            return self._encoded(text, length, ended=ended)

        with ThreadPoolExecutor(self.wanted.connections, thread_name_prefix="writer") as threads:
            try:
                for row, ids in zip(asked, threads.map(of, asked.tolist()), strict=True):
                    tokens[row, : len(ids)] = ids
            except RequestRefused as error:
                threads.shutdown(wait=False, cancel_futures=True)
                self._server.hang_up()
                raise WriterFailed(f"no text came: {error}") from error
        tokens = cut_after(observation, tokens, policy.vocab_size)
        return Written(tokens, _stated(policy, texts, lengths, tokens))

    def take_distance(self) -> dict[str, float]:
        return {}

    def _ask(self, prompt: Sequence[int], number: float, length: int, sampling: Sampling) -> tuple[str, bool]:
        """A text, and whether it has ended by itself. Raises RequestRefused."""
        drawn: dict[str, Any] = {"temperature": 0.0}
        if not sampling.greedy:
            drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        request = {
            **self.wanted.fields,
            **drawn,
            "model": self.wanted.model,
            "prompt": self._text(prompt),
            "max_tokens": length,
            "seed": int(number * 2.0**31),
        }
        most = LONGEST_ANSWER + _BYTES_A_TOKEN * length
        content = self._server.post(json.dumps(request).encode(), most, f"{length} tokens")
        try:
            choice = json.loads(content)["choices"][0]
            text, reason = choice["text"], choice["finish_reason"]
        except (ValueError, RecursionError, KeyError, IndexError, TypeError) as error:
            wanted = "choices[0].text and finish_reason, as of OpenAI's completions, are expected"
            raise self._server.refusal(f"the answer is no completion: {wanted}") from error
        return (text if isinstance(text, str) else ""), reason == "stop"

    def _text(self, ids: Sequence[int]) -> str:
        """With special tokens, which a chat template has put there."""
        if isinstance(self._tokenizer, FileTokenizer):
            return str(self._tokenizer.own.decode(list(ids), skip_special_tokens=False))
        return self._tokenizer.decode(ids)

    def _encoded(self, text: str, length: int, *, ended: bool) -> list[int]:
        try:
            ids = self._tokenizer.encode(text)
        except ConfigError as error:  # it has no tokens for this
            raise WriterFailed(f"{self.name} wrote what the run's tokenizer cannot read: {error}") from error
        return [*ids[: length - 1], self._tokenizer.end_id] if ended and len(ids) < length else ids[:length]


def _stated(policy: LanguageModel, texts: Any, lengths: Any, tokens: Any) -> Float:
    """float64[B, k]: log p of the tokens int64[B, k] that continue `texts`, of the policy itself; 0 where none is."""
    counts = (tokens < policy.vocab_size).sum(1)
    width = int((lengths + counts).max())
    whole, mask = np.full((len(texts), width), policy.pad_id), np.zeros((len(texts), width), bool)
    where, stated = mask.copy(), np.zeros(tokens.shape)
    for row in np.flatnonzero(counts):
        start, end = lengths[row], lengths[row] + counts[row]
        whole[row, :start], whole[row, start:end] = texts[row, :start], tokens[row, : counts[row]]
        mask[row, :end], where[row, start:end] = True, True
    if counts.any():
        asked: Callable[[Any], torch.Tensor] = torch.from_numpy
        with torch.no_grad(), without_dropout(policy):
            found = policy.evaluate(asked(whole), asked(mask), asked(where)).logprobs
        stated[tokens < policy.vocab_size] = as_float64(found).numpy()[where]
    return stated
