"""A table of logits, one row per state: a policy for tasks so small that one can sum over all responses."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.policies.decoding import draw
from rlhf_env.policies.language_model import padded
from rlhf_env.policies.next_tokens import NextTokens
from rlhf_env.policies.policy import ALONE, Sampling, TextEvaluation, WritesTogether, Written
from rlhf_env.policies.precision import as_float64
from rlhf_env.policies.streams import RowStreams
from rlhf_env.types import Bool, Episode, Float, Int, Observation, State


@dataclass(frozen=True)
class ResponseTree:
    """All responses of at most `longest` tokens out of `symbols`, and the states in which they are written.

    A state is the text so far, of fewer than `longest` symbols. In a state the policy draws one of the symbols
    0..symbols - 1, or the end token, whose id is `symbols`. A response of full length has no end token, because nothing
    is drawn after it. Texts are numbered by length, and those of one length in the order of their ids, as in
    `Enumerable.responses`: text i followed by symbol a is text i * symbols + 1 + a. State i and response i have one
    text.
    """

    symbols: int
    longest: int

    def __post_init__(self) -> None:
        if self.symbols < 1 or self.longest < 1:
            raise ConfigError(f"a tree of responses needs symbols and longest >= 1, got {self.symbols}, {self.longest}")

    @property
    def states(self) -> int:
        """The number of states: texts of fewer than `longest` symbols."""
        return sum(int(self.symbols**length) for length in range(self.longest))

    @property
    def responses(self) -> int:
        """N, the number of responses: 1 + 4 + 16 + 64 = 85 for four symbols and at most three tokens."""
        return self.states + int(self.symbols**self.longest)

    @cached_property
    def _written(self) -> list[list[tuple[int, int]]]:
        """For each response, the (state, token) of every draw."""
        paths: list[list[tuple[int, int]]] = [[]]
        for text in range(1, self.responses):
            parent, symbol = divmod(text - 1, self.symbols)
            paths.append([*paths[parent], (parent, symbol)])
        return [[*path, (text, self.symbols)] if text < self.states else path for text, path in enumerate(paths)]

    @cached_property
    def mask(self) -> Tensor:
        """bool[N, T], True on tokens: T is `longest`, and the end token counts where there is one."""
        return torch.tensor([[t < len(path) for t in range(self.longest)] for path in self._written])

    @cached_property
    def choices(self) -> tuple[Tensor, Tensor]:
        """The state in which each token is drawn, and the token's id: int64[N, T] each, 0 where `mask` is False."""
        filled = [[*path, *[(0, 0)] * (self.longest - len(path))] for path in self._written]
        state, token = torch.tensor(filled).unbind(-1)
        return state, token


class TabularPolicy(nn.Module):
    """A softmax over a row of logits per state, as a `Policy`; see there for the methods.

    Its vocabulary is that of `AlphabetTokenizer` (symbols, then end, then pad). It answers one `prompt`, a list of ids,
    and no other. Padding has probability 0 and no logit. `hidden` is the state as a one-hot vector, so that a
    `ValueHead` on it is a table of values; it is 0 where no token is drawn any more. Logits are initialised with normal
    numbers of standard deviation `init_std`, drawn from `seed`, which also starts the stream that `write` draws from.
    """

    together: WritesTogether = ALONE

    def __init__(
        self,
        symbols: int,
        longest: int,
        *,
        prompt: Sequence[int] = (0,),
        init_std: float = 0.5,
        dtype: torch.dtype = torch.float64,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.tree = ResponseTree(symbols, longest)
        self.prompt = tuple(int(token) for token in prompt)
        if not self.prompt or not all(0 <= token < symbols for token in self.prompt):
            raise ConfigError(f"prompt: one or more of the symbols 0..{symbols - 1}, got {list(prompt)}")
        self.sampling = sampling
        start = np.random.default_rng([seed, *b"table"]).normal(0.0, init_std, (self.tree.states, symbols + 1))
        self.logits = nn.Parameter(torch.from_numpy(start).to(dtype))
        self._streams = RowStreams(seed)

    @property
    def device(self) -> torch.device:
        return self.logits.device

    @property
    def dtype(self) -> torch.dtype:
        return self.logits.dtype

    @property
    def vocab_size(self) -> int:
        return self.tree.symbols + 2

    @property
    def end_id(self) -> int:
        return self.tree.symbols

    @property
    def pad_id(self) -> int:
        return self.tree.symbols + 1

    @property
    def hidden_size(self) -> int:
        return self.tree.states

    def write(self, observation: Observation, length: int, rows: Bool | None = None) -> Written:
        """As in `Policy`. Rows whose response has ended, or has its full length, get no token."""
        texts, mask = np.asarray(observation["input_ids"], np.int64), np.asarray(observation["attention_mask"], bool)
        rows = observation.get("writing") if rows is None else rows
        rows = np.ones(len(texts), bool) if rows is None else np.asarray(rows, bool)
        if (mask[:, 1:] > mask[:, :-1]).any():
            raise ConfigError("attention_mask: observations are padded on the right")
        uniforms = self._streams.next(len(texts), length)
        write = partial(self._write, observation, texts, mask, uniforms)
        written = self.together.written(observation, rows, length, self.vocab_size, write)
        self._streams.take((written.tokens < self.vocab_size).sum(1))
        return written

    def _write(self, observation: Observation, texts: Int, mask: Bool, uniforms: Float, rows: Bool) -> Written:
        """What these rows write, one token for each column of `uniforms` float64[B, k]; the streams stay."""
        tokens, logprobs = np.full(uniforms.shape, self.vocab_size, np.int64), np.zeros(uniforms.shape)
        asked = np.flatnonzero(rows)
        after = self._states(torch.from_numpy(texts[asked]), torch.from_numpy(mask[asked]))
        ends = torch.from_numpy(mask[asked].sum(1))
        state = np.full(len(texts), -1)
        state[asked] = after.gather(1, ends[:, None]).squeeze(1).numpy()
        logits = self.logits.detach()
        stops = observation.get("stops")
        stop_states = np.array(observation.get("stop_states", np.zeros(len(texts))), np.int64)
        for step in range(uniforms.shape[1]):
            live = np.flatnonzero((state >= 0) & (state < self.tree.states))
            if not len(live):
                break
            drawn, logprobs[live, step] = draw(logits[state[live]], uniforms[live, step], self.sampling)
            tokens[live, step] = drawn
            state[live] = np.where(drawn == self.end_id, -1, state[live] * self.tree.symbols + 1 + drawn)
            if stops is not None:
                stop_states[live] = stops.after(stop_states[live], drawn)
                state[live[stops.completed(stop_states[live])]] = -1
        return Written(tokens, logprobs)

    def evaluate(self, tokens: Tensor, mask: Tensor, where: Tensor) -> TextEvaluation:
        tokens, where = tokens.to(self.device), where.to(self.device, torch.bool)
        state, exists, mask = self._checked_states(tokens, mask, where)
        scores = self.logits[state[where]]
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) / self.sampling.temperature
        distributions = scores.log_softmax(-1)
        entropy = -(distributions.exp() * distributions).sum(-1)
        # Padding is a token of the vocabulary with probability 0.
        with_padding = F.pad(distributions, (0, 1), value=-torch.inf)
        logprobs = with_padding.gather(-1, tokens[where].unsqueeze(-1)).squeeze(-1)
        nothing = torch.zeros(tokens.shape, dtype=scores.dtype, device=self.device)
        # There is a state wherever text precedes, the first token of padding included.
        has_state = exists & F.pad(mask, (1, 0))[:, :-1]
        hidden = F.one_hot(state.masked_fill(~has_state, 0), self.tree.states).to(self.dtype) * has_state[..., None]
        return TextEvaluation(nothing.masked_scatter(where, logprobs), nothing.masked_scatter(where, entropy), hidden)

    def next_tokens(self, tokens: Tensor, mask: Tensor, where: Tensor) -> NextTokens:
        """The distributions that the tokens at `where` were drawn from, row by row; arguments as in `evaluate`."""
        tokens, where = tokens.to(self.device), where.to(self.device, torch.bool)
        state, _, _ = self._checked_states(tokens, mask, where)
        logits = F.pad(self.logits[state[where]], (0, 1), value=-torch.inf)  # padding
        return NextTokens(logits, None, self.sampling.temperature)

    def _checked_states(self, tokens: Tensor, mask: Tensor, where: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States int64[B, L], which of them exist bool[B, L], and `mask` on this device. Raises ConfigError."""
        mask = mask.to(self.device, torch.bool)
        if (where & ~mask).any():
            raise ConfigError("where: asks for a token outside the text (mask is False there)")
        state = self._states(tokens, mask)[:, :-1]
        exists = (state >= 0) & (state < self.tree.states)
        if (where & ~exists).any():
            raise ConfigError(
                "where: asks for a token that this table never draws: of the prompt, after the end token, or "
                f"beyond the {self.tree.longest} tokens of the longest response"
            )
        return state, exists, mask

    @torch.no_grad()
    def response_logprobs(self, episodes: Sequence[Episode], /) -> list[Float]:
        if not episodes:
            return []
        if (known := self.together.known(self, episodes)) is not None:
            return known
        logprobs = as_float64(self.evaluate(*padded(episodes, self.pad_id)).logprobs).numpy()
        return [
            row[len(episode.prompt_ids) : len(episode.ids)].copy()
            for row, episode in zip(logprobs, episodes, strict=True)
        ]

    def frozen_copy(self) -> TabularPolicy:
        frozen = copy.deepcopy(self)
        return frozen.eval().requires_grad_(False)

    def reseed(self, seed: int) -> None:
        self._streams = RowStreams(seed)

    def sampling_state(self) -> State:
        return self._streams.state()

    def load_sampling_state(self, state: Mapping[str, object], /) -> None:
        self._streams = RowStreams.of(state)

    def _states(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """int64[B, L + 1]: the number of the response before each token, and before the end of the row.

        -1 inside the prompt, and where the text before is no response (if it goes on after the end token, for
        instance). DataError for another prompt.
        """
        rows, length = tokens.shape
        prompt = torch.tensor(self.prompt, device=tokens.device)
        states = torch.full((rows, length + 1), -1, device=tokens.device)
        state = torch.zeros(rows, dtype=torch.int64, device=tokens.device)
        tokens_read = torch.zeros_like(state)
        for t in range(length):
            is_text, token = mask[:, t], tokens[:, t]
            in_prompt = is_text & (tokens_read < len(prompt))
            differs = in_prompt & (token != prompt[tokens_read.clamp(max=len(prompt) - 1)])
            if differs.any():
                row = int(differs.nonzero()[0])
                raise DataError(f"row {row}: this table answers the prompt {list(self.prompt)} and no other")
            states[:, t] = state.masked_fill(tokens_read < len(prompt), -1)
            is_symbol = (state >= 0) & (state < self.tree.states) & (token >= 0) & (token < self.tree.symbols)
            longer = torch.where(is_symbol, state * self.tree.symbols + 1 + token, -1)
            state = torch.where(is_text & ~in_prompt, longer, state)
            tokens_read = tokens_read + is_text
        states[:, length] = state.masked_fill(tokens_read < len(prompt), -1)
        return states
