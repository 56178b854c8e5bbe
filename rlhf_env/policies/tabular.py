"""A table of logits, one row for each state: the policy of worlds so small that everything can be summed over."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.policies.decoding import draw
from rlhf_env.policies.language_model import padded
from rlhf_env.policies.policy import Sampling, TextEvaluation, Written
from rlhf_env.policies.streams import RowStreams
from rlhf_env.types import Bool, Episode, Float, Observation, State


@dataclass(frozen=True)
class ResponseTree:
    """Every response of at most `longest` out of `symbols` tokens, and the states in which they are written.

    A state is what has been written so far, as long as a token is still to be chosen: one of the symbols
    0..symbols - 1, or the end, whose id is `symbols`. At the length limit nothing is chosen any more, so that a
    response of full length has no end token. Texts are numbered shorter before longer, else in the order of their ids,
    as in `Enumerable.responses`: text i followed by symbol a is text i * symbols + 1 + a, and the text of state i is
    that of response i.
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
        """N, the number of responses: 1 + 4 + 16 + 64 = 85 of four symbols, at most three long."""
        return self.states + int(self.symbols**self.longest)

    @cached_property
    def _written(self) -> list[list[tuple[int, int]]]:
        """For each response, (state, token) of each choice."""
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
        """The state in which each token was chosen and the token's id, int64[N, T] each, 0 off `mask`."""
        filled = [[*path, *[(0, 0)] * (self.longest - len(path))] for path in self._written]
        state, token = torch.tensor(filled).unbind(-1)
        return state, token


class TabularPolicy(nn.Module):
    """A softmax over a row of logits for every state, as a `Policy`; see there for the methods.

    It speaks the language of `AlphabetTokenizer` (symbols, then end, then pad) and answers the one `prompt`, a list of
    ids; padding has probability 0 and no logit. `hidden` is the state as a one-hot vector, so that a `ValueHead` on it
    is a table of values; it is 0 where nothing is left to choose. Logits start normal with standard deviation
    `init_std`, drawn from `seed`, which also starts the stream that `write` draws from.
    """

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
        """Rows whose response has ended, or is as long as can be, are given nothing."""
        texts, mask = np.asarray(observation["input_ids"], np.int64), np.asarray(observation["attention_mask"], bool)
        rows = observation.get("writing") if rows is None else rows
        rows = np.ones(len(texts), bool) if rows is None else np.asarray(rows, bool)
        if (mask[:, 1:] > mask[:, :-1]).any():
            raise ConfigError("attention_mask: observations are padded on the right")
        uniforms = self._streams.next(len(texts), length)
        tokens, logprobs = np.full(uniforms.shape, self.vocab_size, np.int64), np.zeros(uniforms.shape)

        asked = np.flatnonzero(rows)
        after = self._states(torch.from_numpy(texts[asked]), torch.from_numpy(mask[asked]))
        ends = torch.from_numpy(mask[asked].sum(1))
        state = np.full(len(texts), -1)
        state[asked] = after.gather(1, ends[:, None]).squeeze(1).numpy()
        logits = self.logits.detach()
        for place in range(length):
            live = np.flatnonzero((state >= 0) & (state < self.tree.states))
            if not len(live):
                break
            drawn, logprobs[live, place] = draw(logits[state[live]], uniforms[live, place], self.sampling)
            tokens[live, place] = drawn
            state[live] = np.where(drawn == self.end_id, -1, state[live] * self.tree.symbols + 1 + drawn)
        self._streams.take((tokens < self.vocab_size).sum(1))
        return Written(tokens, logprobs)

    def evaluate(self, tokens: Tensor, mask: Tensor, where: Tensor) -> TextEvaluation:
        tokens = tokens.to(self.device)
        mask, where = mask.to(self.device, torch.bool), where.to(self.device, torch.bool)
        if (where & ~mask).any():
            raise ConfigError("where: asks for a place outside the text (mask is False there)")
        state = self._states(tokens, mask)[:, :-1]
        exists = (state >= 0) & (state < self.tree.states)
        if (where & ~exists).any():
            raise ConfigError(
                "where: asks for a token that no state of this table chooses: of the prompt, after the end token, or "
                f"beyond the {self.tree.longest} tokens of the longest response"
            )
        scores = self.logits[state[where]]
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) / self.sampling.temperature
        distributions = scores.log_softmax(-1)
        entropy = -(distributions.exp() * distributions).sum(-1)
        every = F.pad(distributions, (0, 1), value=-torch.inf)  # padding is a token of the vocabulary, never chosen
        chosen = every.gather(-1, tokens[where].unsqueeze(-1)).squeeze(-1)
        nothing = torch.zeros(tokens.shape, dtype=scores.dtype, device=self.device)
        # A state is told where text precedes, the first padding place included.
        told = exists & F.pad(mask, (1, 0))[:, :-1]
        hidden = F.one_hot(state.masked_fill(~told, 0), self.tree.states).to(self.dtype) * told[..., None]
        return TextEvaluation(nothing.masked_scatter(where, chosen), nothing.masked_scatter(where, entropy), hidden)

    @torch.no_grad()
    def response_logprobs(self, episodes: Sequence[Episode], /) -> list[Float]:
        if not episodes:
            return []
        logprobs = self.evaluate(*padded(episodes, self.pad_id)).logprobs.double().cpu().numpy()
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
        """int64[B, L + 1]: the number of the response that stands before each place; -1 inside the prompt, and where
        what stands there is no response (something follows the end, say). DataError for another prompt."""
        rows, length = tokens.shape
        prompt = torch.tensor(self.prompt, device=tokens.device)
        states = torch.full((rows, length + 1), -1, device=tokens.device)
        state = torch.zeros(rows, dtype=torch.int64, device=tokens.device)
        seen = torch.zeros_like(state)
        for t in range(length):
            reading, token = mask[:, t], tokens[:, t]
            asking = reading & (seen < len(prompt))
            other = asking & (token != prompt[seen.clamp(max=len(prompt) - 1)])
            if other.any():
                row = int(other.nonzero()[0])
                raise DataError(f"row {row}: this table answers the prompt {list(self.prompt)} and no other")
            states[:, t] = state.masked_fill(seen < len(prompt), -1)
            goes_on = (state >= 0) & (state < self.tree.states) & (token >= 0) & (token < self.tree.symbols)
            grown = torch.where(goes_on, state * self.tree.symbols + 1 + token, -1)
            state = torch.where(reading & ~asking, grown, state)
            seen = seen + reading
        states[:, length] = state.masked_fill(seen < len(prompt), -1)
        return states
