"""Hybrid training, sft+rm: a language-model head and a reward head learn from demonstrations and preferences together.

Each gradient step reads texts of both kinds, `step_tokens` together, of which `demonstration_share` are tokens of
demonstrations. Its loss is

    L = mean of -log p(token) over the demonstrations' answers                            (sft)
      + reward_coefficient * mean of -log sigmoid(score(chosen) - score(rejected))        (Bradley and Terry 1952)

where a score is linear in the state of a text's last token, as in a reward model that is fitted alone. `way` says what
the pairs move beside the reward head:

- "shared": the trunk, which both losses train (as in multi-task learning, Caruana 1997; a language-model loss beside a
  reward model's is what Askell et al. 2021, arXiv 2112.00861, and Yang et al. 2024, arXiv 2406.10216, use);
- "head": nothing else. The trunk is the demonstrations' alone, and its states are taken as they are;
- "adapters": low-rank adapters of the reward head's own, beside those of the language model, on one base that stays as
  it is (needs [policy.lora]);
- "separate": a second whole model, which is what training the two apart comes to, in the same steps of the same texts.

The run is a policy wherever a model is named, and a reward model wherever one of those is:
`[rewards] bradley_terry = { model = "runs/hybrid" }`, `rlhf-env scorecard runs/hybrid votes.sqlite`.

When: a policy and a reward model are both wanted, of one base, and pairs are few for a reward model of their own: the
reward head then gains from a trunk that learns to write the same answers. When not: there are no demonstrations, or the
two are to come from different models.

Left out: rankings and ratings as such (their pairs are learned), margins, several members, texts that the policy
writes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from rlhf_env.errors import ConfigError, DataError, Problem, under
from rlhf_env.feedback.offline import load_preferences, pair_episode, require_stored_fit
from rlhf_env.feedback.reward_models.losses import bradley_terry_loss
from rlhf_env.feedback.store.split import split_by_prompt
from rlhf_env.learning.agent import Decision, Demonstrated, Metrics, Setup
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.functional import over_steps
from rlhf_env.learning.losses.steps import add_likelihood
from rlhf_env.learning.rollout import Rollout, preference_pairs
from rlhf_env.learning.sources import PackedSource
from rlhf_env.policies import LanguageModel, Policy
from rlhf_env.policies.precision import refined
from rlhf_env.settings import AtLeastOne, IsPath, Positive, ShareBelowOne, fault, settings
from rlhf_env.types import Episode, Observation, ResetOptions, State

Way = Literal["shared", "head", "adapters", "separate"]

_REMEMBERED = 0.95  # of the scores' mean and square, how much one step leaves
_AT_ONCE = 64  # pairs of an evaluation that are read together


class Hybrid:
    """Imitates demonstrations and learns to tell what is preferred, in the same gradient steps."""

    trains = True
    imitates = True
    has_reward_head = True  # a run of it is a reward model, too

    @settings
    class Config:
        """What is mixed, in which share, and what the pairs may move."""

        preferences: Annotated[str, IsPath()]
        """A preference store or a file of judgements: the pairs that the reward head learns from. The demonstrations
        are the answers of [task], as with sft."""
        way: Way = "shared"
        """What pairs move beside the reward head: the trunk of both heads ("shared"), nothing ("head"), adapters of
        their own ("adapters", which needs [policy.lora]), or a second whole model ("separate")."""
        demonstration_share: Annotated[float, Gt(0), Lt(1)] = 0.5
        """The share of a step's tokens that are of demonstrations; the others are of pairs."""
        step_tokens: AtLeastOne = 2048
        """Tokens of a gradient step, which takes as many texts and pairs as fit."""
        reward_coefficient: Positive = 1.0
        """Weight of the pairs' loss beside the demonstrations'."""
        label_smoothing: Annotated[float, Ge(0), Lt(0.5)] = 0.0
        """The chance that the label of a pair is wrong."""
        held_out: ShareBelowOne = 0.1
        """The share of the pairs' prompts that are not learned from: evaluations measure the reward head on them."""
        turns: Literal["last", "every"] = "last"
        """Of a demonstrated conversation, the last answer or every one."""
        loss_on: Literal["answers", "all"] = "answers"
        """What is learned of demonstrations: the answers, or every token after a text's first."""
        optimization: Optimization = Optimization(lr=5e-4)
        """Learning rate and so on."""

        def problems(self) -> Iterator[Problem]:
            if self.turns == "every" and self.loss_on == "all":
                yield fault("turns", "'every' marks answers, and loss_on = 'all' marks every token: leave one out")
            if not 0 < round(self.demonstration_share * self.step_tokens) < self.step_tokens:
                share = f"{self.demonstration_share:g} of {self.step_tokens} tokens"
                yield fault("demonstration_share", f"{share} leave no token for one of both kinds: take more tokens")

    def __init__(self, setup: Setup, config: Config) -> None:
        self.setup = setup
        self.config = config
        self.policy = setup.policy
        self.trunk = _reward_trunk(setup.policy, config.way)
        self.reward_head = torch.nn.Parameter(
            torch.zeros(self.policy.hidden_size, dtype=self.policy.dtype, device=self.policy.device)
        )
        of_demonstrations = round(config.demonstration_share * config.step_tokens)
        self.demonstrated = Demonstrated(turns=config.turns, loss_on=config.loss_on, pack_tokens=of_demonstrations)
        with under("preferences"):
            self.pairs, self.held_out = self._read_pairs(config.step_tokens - of_demonstrations)
        own = [] if self.trunk is self.policy else list(self.trunk.parameters())
        trained = [*self.policy.parameters(), *own, self.reward_head]
        self.optimizer = setup.engine.optimizer(trained, config.optimization)
        self._dropout = setup.stream("sft+rm dropout")
        self._scores = np.zeros(3)  # decaying sums of the scores, of their squares, and of 1 for each step

    def _read_pairs(self, tokens: int) -> tuple[PackedSource, list[tuple[Episode, Episode]]]:
        """The source of pairs, and those held out. Raises DataError for pairs that cannot be read."""
        tokenizer, path = self.setup.tokenizer, self.config.preferences
        context = self.policy.context if isinstance(self.policy, LanguageModel) else None
        if context is not None:
            require_stored_fit(path, tokenizer, context - 1)  # a score reads the last token too
        learned, unseen = split_by_prompt(load_preferences(path), self.config.held_out, salt="sft+rm")
        if not learned:
            raise DataError(f"{path}: held_out = {self.config.held_out:g} leaves no pair to learn from")
        read = [
            [
                (pair_episode(it.prompt, it.chosen, tokenizer), pair_episode(it.prompt, it.rejected, tokenizer))
                for it in part
            ]
            for part in (learned, unseen)
        ]
        weights = [it.weight for it in learned]

        def batch(drawn: Sequence[int]) -> Rollout:
            return preference_pairs(
                [read[0][i][0] for i in drawn],
                [read[0][i][1] for i in drawn],
                pad_id=self.policy.pad_id,
                weights=[weights[i] for i in drawn],
            )

        lengths = [len(chosen.ids) + len(rejected.ids) for chosen, rejected in read[0]]
        seed = int(self.setup.stream("sft+rm pairs").integers(2**31))
        return PackedSource(lengths, tokens, batch, seed=seed), read[1]

    def begin(self) -> ResetOptions:
        return {}

    def act(self, observation: Observation, /) -> Decision:
        return Decision.of(self.policy.write(observation, self.setup.action_length))

    def update(self, rollout: Rollout, /) -> Metrics:
        """One gradient step on the rollout's demonstrations, with the policy's dropout, and on the next pairs.

        Stored pairs cost no label: they were counted when they were judged. Raises DataError if no token of the rollout
        is marked, and for judged answers.
        """
        rollout.require_finite()
        if rollout.judged:
            raise DataError("sft+rm imitates the rollout's texts: name the file of pairs as `preferences` in [agent]")
        if not rollout.actions.any():
            raise DataError("sft+rm: none of the texts has a token to learn (are the answers empty, or cut off?)")
        rollout = self.setup.engine.local(rollout)
        pairs = self.setup.engine.local(self.pairs.next(self))
        self.policy.train()
        try:
            with self.setup.engine.seeded(int(self._dropout.integers(2**63))):
                loss = add_likelihood(self.policy, self.optimizer, rollout)
        finally:
            self.policy.eval()
        compared = self._add_comparison(pairs)
        read, of_pairs = int(rollout.mask.sum()), int(pairs.mask.sum())
        return {
            **over_steps([{"loss": loss, **compared, "grad_norm": self.optimizer.step()}]),
            "perplexity": math.exp(loss),
            "texts": float(len(rollout)),
            "pairs": float(len(pairs) // 2),
            "demonstration_share": read / (read + of_pairs),
            "lr": self.optimizer.lr,
        }

    def _add_comparison(self, pairs: Rollout) -> Metrics:
        """Accumulate the gradient of the pairs' loss, the weighted mean over rows 2i (chosen) and 2i + 1 (rejected)."""
        weight = pairs.returns()[0::2]  # the return of a chosen answer is 1 times the weight of its pair
        loss = right = 0.0
        seen: list[Tensor] = []
        for rows in self.optimizer.rows(pairs.lengths, together=2):
            scores = self.scores(pairs.select(rows))
            terms = bradley_terry_loss(scores[0::2], scores[1::2], label_smoothing=self.config.label_smoothing)
            term = (weight[rows[0::2] // 2] * terms).sum() / weight.sum()
            self.optimizer.backward(self.config.reward_coefficient * term)
            loss += float(term.detach())
            right += float((scores[0::2] > scores[1::2]).sum()) / len(weight)
            seen.append(scores.detach())
        values = [float(score) for scores in seen for score in scores]
        sums = self.optimizer.summed(
            {
                "reward_loss": loss,
                "accuracy": right,
                "values": math.fsum(values),
                "squares": math.fsum(value * value for value in values),
            }
        )
        step = np.array([sums.pop("values") / len(pairs), sums.pop("squares") / len(pairs), 1.0])
        self._scores = _REMEMBERED * self._scores + step
        return sums

    def scores(self, texts: Rollout) -> Tensor:
        """[B]: what the reward head says of each whole text, from the state of its last token."""
        # One column more: `hidden` speaks about the state before a token, and the one after the last is wanted.
        tokens = F.pad(texts.tokens, (0, 1), value=self.policy.pad_id)
        mask = F.pad(texts.mask, (0, 1), value=False)
        with torch.no_grad() if self.config.way == "head" else nullcontext():
            hidden = self.trunk.evaluate(tokens, mask, torch.zeros_like(mask)).hidden
        last = hidden[torch.arange(len(texts), device=hidden.device), texts.lengths]
        return refined(last.to(self.reward_head.dtype) @ self.reward_head)

    @torch.no_grad()
    def measure(self) -> Metrics:
        """Of the pairs held out: in how many the reward head prefers what was preferred (equal scores: 1/2), and the
        mean negative log-likelihood. Empty where none are held out."""
        if not self.held_out:
            return {}
        self.policy.eval()
        margins: list[Tensor] = []
        for start in range(0, len(self.held_out), _AT_ONCE):
            chosen, rejected = zip(*self.held_out[start : start + _AT_ONCE], strict=True)
            pairs = preference_pairs(chosen, rejected, pad_id=self.policy.pad_id)
            scores = self.scores(self.setup.engine.local(pairs))
            margins.append(scores[0::2] - scores[1::2])
        margin = torch.cat(margins)
        right = (margin > 0).double() + 0.5 * (margin == 0).double()
        return {"preference_accuracy": float(right.mean()), "preference_loss": -float(F.logsigmoid(margin).mean())}

    def state_dict(self) -> State:
        own = {} if self.trunk is self.policy else {"reward_trunk": self.trunk.state_dict()}
        return {
            "policy": self.policy.state_dict(),
            "sampling": self.policy.sampling_state(),
            **own,
            "reward_head": self.reward_head.detach(),
            "reward_scale": self._scale(),
            "scores": self._scores.tolist(),
            "optimizer": self.optimizer.state_dict(),
            "pairs": self.pairs.state_dict(),
            "dropout": dict(self._dropout.bit_generator.state),
        }

    def _scale(self) -> dict[str, float]:
        """Mean and standard deviation of the scores of late, for whoever uses the reward head as a reward."""
        total, squares, weight = self._scores.tolist()
        if not weight:
            return {"mean": 0.0, "std": 1.0}
        mean = total / weight
        variance = squares / weight - mean * mean
        return {"mean": mean, "std": math.sqrt(variance) if variance > 0 else 1.0}

    def load_state_dict(self, state: State, /) -> None:
        self.policy.load_state_dict(state["policy"])
        self.policy.load_sampling_state(state["sampling"])
        if self.trunk is not self.policy:
            self.trunk.load_state_dict(state["reward_trunk"])
        with torch.no_grad():
            self.reward_head.copy_(state["reward_head"])
        self._scores = np.array(state["scores"], dtype=np.float64)
        self.optimizer.load_state_dict(state["optimizer"])
        self.pairs.load_state_dict(state["pairs"])
        self._dropout.bit_generator.state = dict(state["dropout"])


def _reward_trunk(policy: Policy, way: Way) -> Policy:
    """What the reward head reads: the policy itself or a copy of it, whose adapters (if it has some) alone are new.

    Raises ConfigError for a way that the policy cannot go.
    """
    if not isinstance(policy, LanguageModel):
        raise ConfigError("sft+rm trains a language model, and a table of logits has no states to score")
    if way in ("shared", "head"):
        return policy
    if policy.adapted != (way == "adapters"):
        wanted = "needs [policy.lora]" if way == "adapters" else 'is for whole models: with [policy.lora], "adapters"'
        raise ConfigError(fault("way", f'"{way}" {wanted}'))
    return copy.deepcopy(policy).eval()
