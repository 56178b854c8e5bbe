"""What the head "reply" of a reward model reads beside the last state: how likely the trunk finds the response."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

_LOGITS_AT_ONCE = 2**26  # 256 MB of float32
# By what the head divides the trunk's logits to see its likelihoods, which are as sharp as whoever
# trained the trunk left them; how many numbers it reads about them; the width of its hidden layer.
_TEMPERATURES = (1.0, 1.25, 1.6)
LIKELIHOODS, NEURONS = 2 * len(_TEMPERATURES) + 3, 128


class HiddenLayer(nn.Module):
    """[B, F'] to [B, F' + 128]: the features brought to one scale, and beside them a GELU layer of them."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.centre: Tensor
        self.scale: Tensor
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        # Its own stream: fitting begins at the same place whoever drew from the global one.
        start = torch.randn(NEURONS, features, generator=torch.Generator().manual_seed(0)) / features**0.5
        self.weight, self.bias = nn.Parameter(start), nn.Parameter(torch.zeros(NEURONS))

    def forward(self, features: Tensor) -> Tensor:
        even = (features - self.centre) / self.scale
        return torch.cat([even, nn.functional.gelu(nn.functional.linear(even, self.weight, self.bias))], dim=1)

    @torch.no_grad()
    def measure(self, features: Tensor) -> None:
        """Take the scale from the features of the texts to be fitted to."""
        spread = features.std(dim=0)
        self.centre.copy_(features.mean(dim=0))
        self.scale.copy_(torch.where(spread > 0, spread, torch.ones_like(spread)))


def likelihoods_of(hidden: Tensor, embeddings: Tensor, ids: Tensor, response: Tensor, lengths: Tensor) -> Tensor:
    """[B, 9]: over the response's tokens, at each temperature, the mean log-probability and the mean entropy of the
    distributions they came from; at the first, the log-probability of the least likely and of the last; their number.

    `hidden` [B, L, H], `ids` [B, L]; `response` [B, L] is True on the response. Logits are states times embeddings:
    where a model scales or caps them on the way, these are not quite its own.
    """
    # What token t is likely to be is said at t - 1, and of a first token nothing is said.
    written = nn.functional.pad(response[:, 1:], (1, 0))
    states, tokens = hidden[written.roll(-1, dims=1)], ids[written]
    columns = torch.cat(
        [
            hidden.new_zeros(0, 2 * len(_TEMPERATURES)),  # there may be no token at all
            *(_of_tokens(some @ embeddings.T, token) for some, token in _in_parts(states, tokens, len(embeddings))),
        ]
    )
    table = hidden.new_zeros(*ids.shape, columns.shape[1]).masked_scatter(written[..., None], columns)
    count = written.sum(dim=1)
    first = table[..., 0]
    ends = torch.stack([first.min(dim=1).values, first.gather(1, lengths[:, None] - 1)[:, 0], count.to(first)], dim=1)
    return torch.cat([table.sum(dim=1) / count.clamp(min=1)[:, None], ends], dim=1)


def _in_parts(states: Tensor, tokens: Tensor, vocabulary: int) -> Iterator[tuple[Tensor, Tensor]]:
    at_once = max(1, _LOGITS_AT_ONCE // vocabulary)
    for start in range(0, len(tokens), at_once):
        yield states[start : start + at_once], tokens[start : start + at_once]


def _of_tokens(logits: Tensor, tokens: Tensor) -> Tensor:
    """[N, 6]: log-probability of the token and entropy, at each temperature; logits [N, V]."""
    columns = []
    for temperature in _TEMPERATURES:
        logprobs = (logits / temperature).log_softmax(dim=1)
        columns += [logprobs.gather(1, tokens[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(dim=1)]
    return torch.stack(columns, dim=1)
