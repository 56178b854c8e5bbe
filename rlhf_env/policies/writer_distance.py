"""How far another engine that writes in a policy's place is from the policy, measured on what it has just written."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import torch

from rlhf_env.policies.language_model import without_dropout
from rlhf_env.policies.policy import Written
from rlhf_env.policies.precision import as_float64
from rlhf_env.types import Float, Int

if TYPE_CHECKING:
    from rlhf_env.policies.language_model import LanguageModel


class WriterDistance:
    """Of up to `texts` rows, log p - log q of every token: p the policy's, recomputed, and q what the engine stated.

    It is measured when the tokens are written, while weights and `sampling` are those that they were written with.
    """

    def __init__(self, texts: int) -> None:
        self.texts = texts
        self._log_ratios: dict[int, list[Float]] = defaultdict(list)

    def read(self, policy: LanguageModel, texts: Int, lengths: Int, written: Written) -> None:
        """`texts` int64[B, L] of `lengths` int64[B] are what `written` continues."""
        counts = (written.tokens < policy.vocab_size).sum(1)
        wrote = np.flatnonzero(counts)
        if policy.sampling.greedy or not wrote.size:  # greedily, nothing is left to chance and to be compared
            return
        if not self._log_ratios:  # the first call of a rollout says which rows
            for place in np.unique(np.linspace(0, len(wrote) - 1, min(len(wrote), self.texts)).astype(int)):
                self._log_ratios[int(wrote[place])] = []
        rows = [row for row in self._log_ratios if counts[row]]
        if not rows:
            return
        width = max(int(lengths[row] + counts[row]) for row in rows)
        tokens = torch.full((len(rows), width), policy.pad_id)
        mask, where = torch.zeros(tokens.shape, dtype=torch.bool), torch.zeros(tokens.shape, dtype=torch.bool)
        for place, row in enumerate(rows):
            start, end = int(lengths[row]), int(lengths[row] + counts[row])
            tokens[place, :start] = torch.from_numpy(texts[row, :start])
            tokens[place, start:end] = torch.from_numpy(written.tokens[row, : counts[row]])
            mask[place, :end], where[place, start:end] = True, True
        with torch.no_grad(), without_dropout(policy):
            logprobs = as_float64(policy.evaluate(tokens, mask, where).logprobs)[where].numpy()
            if not policy.sampling.exact:
                kept = policy.next_tokens(tokens, mask, where).kept(policy.sampling.top_k, policy.sampling.top_p)
                logprobs = logprobs - as_float64(kept.log()).numpy()
        for row, now in zip(rows, np.split(logprobs, np.cumsum(counts[rows])[:-1]), strict=True):
            self._log_ratios[row].append(now - written.logprobs[row, : counts[row]])

    def take(self) -> dict[str, float]:
        """What was measured since the last call; nothing, where nothing was written.

        `kl` is KL(engine || policy) in nats per token, by Schulman's k3: the mean of r - 1 - log r over tokens drawn by
        the engine, r the ratio of policy to engine; never negative. `ess` is the effective sample size of the texts'
        importance weights, as a share; `ratio_p05`, `ratio_p50` and `ratio_p95` are quantiles of r.
        """
        texts = [np.concatenate(parts) for parts in self._log_ratios.values() if parts]
        self._log_ratios.clear()
        if not texts:
            return {}
        log_ratios = np.concatenate(texts)
        with np.errstate(over="ignore"):  # as far as that, infinity is the right word
            kl = float(np.mean(np.expm1(log_ratios) - log_ratios))
            quantiles = {f"ratio_p{at:02d}": float(np.exp(np.quantile(log_ratios, at / 100))) for at in (5, 50, 95)}
        of_texts = np.array([values.sum() for values in texts])
        weights = np.exp(of_texts - of_texts.max())
        ess = float(weights.sum() ** 2 / (len(weights) * (weights**2).sum()))
        return {"kl": kl, "ess": ess, **quantiles}
