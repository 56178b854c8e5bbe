"""A bonus for texts that a small network cannot predict yet: random network distillation (Burda et al. 2018, arXiv
1810.12894).

    score = |f(x) - g(x)|^2 / u

f is a random network that never changes, g one of the same form that learns to be f on what was written, and x the
one-hot vectors of a text's hashed n-grams, added up and brought to length 1. u is the mean error of the untrained g on
random vectors of that kind: a text unlike any that was written is worth about 1, and the score decays as g learns.

g learns between rollouts alone, in steps that are no gradient steps of the budget; the texts of one rollout are
compared with the same g, whoever ends first. Evaluations teach it nothing.

Left out: Burda et al. divide by a running deviation, so that a bonus is always as large beside the others; here it
fades away. There is no second value head, and the reward is paid once a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from rlhf_env.learning.engine import Engine, Optimization
from rlhf_env.settings import AtLeastOne, Positive, Seed, settings
from rlhf_env.text_measures import NgramUnit, hashed_ngrams
from rlhf_env.types import Episode, Float, State

_TRIED = 256  # random texts that the unit is measured on
_RUNS = 8  # n-grams of each


@settings(kw_only=False, frozen=False, eq=False)
class NoveltyRND:
    """The score above, at least 0."""

    n: AtLeastOne = 3
    """Longest run of tokens or words that the networks see."""
    unit: NgramUnit = "tokens"
    """Runs of what: tokens that the agent wrote, or lower-cased words of the response."""
    dimensions: AtLeastOne = 256
    """Of the hashed one-hot vectors."""
    width: AtLeastOne = 64
    """Of the hidden layer."""
    outputs: AtLeastOne = 16
    """Numbers to predict."""
    lr: Positive = 1e-3
    """AdamW's learning rate."""
    steps: AtLeastOne = 4
    """Gradient steps on each rollout: how fast the novelty of what was written fades."""
    seed: Seed = 0
    """What both networks are drawn from."""

    low: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        stream = np.random.default_rng([self.seed, *b"random network distillation"])
        self._target, self._predictor = self._network(stream), self._network(stream)
        self._target.requires_grad_(False)
        self._optimizer = Engine().optimizer(self._predictor.parameters(), Optimization(lr=self.lr))
        places = stream.integers(self.dimensions, size=(_TRIED, _RUNS))
        self._unit = float(np.mean([self._error(self._features(row)) for row in places]))

    def _network(self, stream: np.random.Generator) -> nn.Sequential:
        """Two layers in float64, with weights of He et al. 2015: no global generator draws them."""
        layers = []
        for inputs, outputs in ((self.dimensions, self.width), (self.width, self.outputs)):
            layer = nn.Linear(inputs, outputs, dtype=torch.float64, device="meta").to_empty(device="cpu")
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(stream.normal(0.0, (2.0 / inputs) ** 0.5, (outputs, inputs))))
                layer.bias.zero_()
            layers.append(layer)
        return nn.Sequential(layers[0], nn.ReLU(), layers[1])

    def _features(self, places: np.ndarray) -> Tensor:
        """float64[D], of length 1: the sum of one-hot vectors."""
        counted = np.bincount(places, minlength=self.dimensions).astype(np.float64)
        return torch.from_numpy(counted / np.sqrt((counted**2).sum()))

    def _of(self, episode: Episode) -> Tensor:
        return self._features(hashed_ngrams(episode, 1, self.n, self.dimensions, self.unit))

    @torch.no_grad()
    def _error(self, features: Tensor) -> float:
        return float((self._target(features) - self._predictor(features)).square().mean())

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        """float64[B]."""
        # Each by itself: a product of matrices may round otherwise in another batch.
        return np.array([self._error(self._of(episode)) / self._unit for episode in episodes], dtype=np.float64)

    def observe(self, episodes: Sequence[Episode], /) -> None:
        if not episodes:
            return
        features = torch.stack([self._of(episode) for episode in episodes])
        targets = self._target(features)
        for _ in range(self.steps):
            self._optimizer.backward((self._predictor(features) - targets).square().mean())
            self._optimizer.step()

    def state_dict(self) -> State:
        predictor = {name: weight.clone() for name, weight in self._predictor.state_dict().items()}
        return {"predictor": predictor, "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: State, /) -> None:
        self._predictor.load_state_dict(state["predictor"])
        self._optimizer.load_state_dict(state["optimizer"])
