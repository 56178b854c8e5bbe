"""A bonus for texts that are far from what was written before, as episodic memories have it (Badia et al. 2020, "Never
Give Up", arXiv 2002.06038).

    score = 1 - mean of the `neighbours` largest max(0, cosine(e, e_i)) over the remembered texts i

The embedding e of a text is a vector of its hashed n-grams, or the mean state of a language model in a folder. Neither
learns, so distances do not move while the policy does. The score decays as the memory fills with what is written: a
text is worth nothing any more when `neighbours` texts equal to it are remembered. The memory holds the last `memory`
texts, repeats too, and what has been forgotten is new again.

It is 1 as long as nothing is remembered. Texts of one rollout are compared with the same memory, whoever ends first.
Evaluations are not remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np

from rlhf_env.errors import under
from rlhf_env.settings import AtLeastOne, IsPath, Name, settings
from rlhf_env.text_measures import NgramUnit, hashed_ngrams
from rlhf_env.types import Episode, Float, State


@settings(kw_only=False, frozen=False, eq=False)
class NoveltyEmbedding:
    """The score above, in [0, 1]."""

    neighbours: AtLeastOne = 1
    """Of how many of the nearest remembered texts the likeness is averaged; of fewer, if there are fewer."""
    memory: AtLeastOne = 1_024
    """Texts that are remembered; the oldest go first."""
    n: AtLeastOne = 3
    """Longest run of tokens or words that the hashed embedding counts."""
    unit: NgramUnit = "tokens"
    """Runs of what: tokens that the agent wrote, or lower-cased words of the response."""
    dimensions: AtLeastOne = 256
    """Of the hashed embedding."""
    model: Annotated[Name, IsPath()] | None = None
    """Embed by a language model instead: a folder, or a hub name. Its mean state over the response, read by its own
    tokenizer; it never trains."""
    device: str = "cpu"
    """Where that model computes, as in [policy] (in a run: where the policy does)."""

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        self._encode = None if self.model is None else TextEncoder(self.model, self.device)
        width = self.dimensions if self._encode is None else self._encode.width
        self._remembered: Float = np.zeros((0, width))  # [M, D], unit vectors, the oldest first

    def embeddings(self, episodes: Sequence[Episode]) -> Float:
        """float64[B, D]: unit vectors; 0 where there is nothing to embed."""
        if self._encode is not None:
            found = np.stack([self._encode(episode.response) for episode in episodes])
        else:
            found = np.stack([self._counted(episode) for episode in episodes])
        lengths = np.sqrt((found**2).sum(axis=1, keepdims=True))
        return np.asarray(found / np.where(lengths > 0, lengths, 1.0))

    def _counted(self, episode: Episode) -> Float:
        places = hashed_ngrams(episode, 1, self.n, self.dimensions, self.unit)
        return np.bincount(places, minlength=self.dimensions).astype(np.float64)

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        """float64[B]."""
        return np.array([self._score(embedding) for embedding in self.embeddings(episodes)], dtype=np.float64)

    def _score(self, embedding: Float) -> float:
        if not len(self._remembered):
            return 1.0
        # Row by row: a product of matrices may round otherwise in another batch.
        alike = np.sort((self._remembered * embedding).sum(axis=1).clip(0.0, 1.0))[-self.neighbours :]
        return float(1.0 - alike.mean())

    def observe(self, episodes: Sequence[Episode], /) -> None:
        if episodes:
            self._remembered = np.concatenate([self._remembered, self.embeddings(episodes)])[-self.memory :]

    def state_dict(self) -> State:
        return {"remembered": self._remembered.copy()}

    def load_state_dict(self, state: State, /) -> None:
        self._remembered = np.array(state["remembered"], dtype=np.float64)


class TextEncoder:
    """The mean state of a language model over a text, after its final norm; each text is read alone."""

    def __init__(self, model: str, device: str) -> None:
        # torch loads here, not when the reward is listed.
        from rlhf_env.learning.models import load_tokenizer_of
        from rlhf_env.learning.policy_settings import PolicySettings
        from rlhf_env.learning.run_models import model_folder
        from rlhf_env.policies.language_model import LanguageModel

        with under("model"):
            self._tokenizer = load_tokenizer_of(PolicySettings(model=model))
            read = LanguageModel.from_pretrained(model_folder(model), pad_id=self._tokenizer.pad_id, fused=False)
        self._model = read.eval().requires_grad_(False).to(device)
        self.width = read.hidden_size

    def __call__(self, text: str) -> Float:
        """float64[H]; 0 for a text without a token. Of a text that is longer than the model reads, its beginning."""
        import torch

        ids = self._tokenizer.encode(text)[: self._model.context]
        if not ids:
            return np.zeros(self.width)
        # One column of padding more: a state is that from which the next token would be drawn.
        tokens = torch.tensor([[*ids, self._tokenizer.pad_id]], device=self._model.device)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        mask[0, -1] = False
        with torch.no_grad():
            states = self._model.evaluate(tokens, mask, torch.zeros_like(mask)).hidden[0, 1:]
        return np.asarray(states.double().mean(dim=0).cpu().numpy())
