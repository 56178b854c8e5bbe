"""Two levels: a manager chooses one of K options, the option's writer writes the next `action_length` tokens.

    manager     z ~ mu(z | text)          where a segment begins
    writer z    y_t ~ pi_z(y_t | text)    until the segment, or the text, ends

These are options in the sense of the option-critic (Bacon et al. 2017, arXiv 1609.05140) that last for one action of
the environment: one token, a segment, or a whole response. Each writer is a copy of the policy with two linear heads
on its last state: its bid, of which the softmax over the writers is mu, and its value Q(text, z). Both levels learn by
clipped policy gradient, each in a decision process of its own, with one critic for both (DAC, Zhang and Whiteson 2019,
arXiv 1904.12691): a writer's steps are tokens, the manager's are segments, and a text is worth
V = sum_z mu(z) Q(., z) to the manager. With one option it is PPO.

The agent states the marginal probability of each token over the options, given the tokens of its segment before it:

    p(y_t | text) = sum_z w(z) pi_z(y_t | text)    w(z) ~ mu(z | text where the segment began) prod_{j<t} pi_z(y_j)

The product over a text is the probability that the agent writes it, so the environment's KL penalty is that of the
texts. At the start it is 0, because all writers are the reference. The option of each token, its log-probability, and
the token's log-probability given the option travel with the text as `extras`; probability ratios are of those.

Writers that begin as copies may stay so. `diversity_coefficient` pays for options that can be told apart: the mutual
information between an option and its segment (variational intrinsic control, Gregor et al. 2016, arXiv 1611.07507;
DIAYN, Eysenbach et al. 2019, arXiv 1802.06070),

    I(z; segment | text) = E[log p(z | segment, text) - log mu(z | text)] = E[sum_t log pi_z(y_t) - log p(y_t | text)]

They learn p(z | segment) with a discriminator. Here all pi_z are known, so Bayes' rule gives it exactly, and both terms
of the second form are stated with the text anyway: each token is paid the difference, by which the option has become
surer. The terms of the gradient in which that payment itself moves have mean 0, so the expected gradient is that of
E[reward] - beta KL + coefficient * (the sum of I over the segments of a text), for both levels. It is another objective
than the environment's: rewards and evaluations do not have it, `mutual_information` in the metrics does.

When: a text has parts that call for different ways of writing, longer than a token, and there is memory for K models.
When not: a flat agent learns the task; this one costs more for the same.

Being exact has a price: every writer reads the whole text twice for each segment, so short segments are expensive, and
K writers are K models. Left out: writers that share a trunk (an embedding or an adapter for each option), learned ends
of options, and a manager that sets goals instead of choosing (FeUdal, Vezhnevets et al. 2017, arXiv 1703.01161).
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_env.errors import DataError, Problem
from rlhf_env.learning.advantages import explained_variance, gae, paid_to_actions
from rlhf_env.learning.agent import Decision, Metrics, Setup
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.functional import (
    clipped_policy_loss,
    clipped_value_loss,
    kl_estimate,
    minibatches,
    outside_clip,
    over_steps,
    require_exact_sampling,
    stated_log_ratio,
    token_weights,
    weighted_sum,
    whiten,
)
from rlhf_env.learning.rollout import Rollout
from rlhf_env.policies import ValueHead
from rlhf_env.policies.precision import refined
from rlhf_env.policies.streams import RowStreams
from rlhf_env.settings import AtLeastOne, NonNegative, Positive, Share, fault, settings
from rlhf_env.types import Int, JsonObject, Observation, ResetOptions, State

MOST_PLACES = 8  # of segments whose options are logged apart
EXTRAS = ("option", "segment_start", "option_logprob", "writer_logprob")


def marginal_logprobs(choice: Tensor, written: Tensor) -> Tensor:
    """[B, k]: log p of each token of a segment given the tokens before it, summed over the options.

    `choice` [B, K]: log mu(z) at the start of the segment. `written` [B, k, K]: log pi_z of each token, 0 where there
    is no token; the result is 0 there, too.
    """
    joint = choice[:, None] + written.cumsum(dim=1)
    before = torch.cat([choice[:, None], joint[:, :-1]], dim=1)
    return joint.logsumexp(-1) - before.logsumexp(-1)


class OptionScores(NamedTuple):
    """The scores of given texts by all writers, float64[B, L, K] each, K the number of options."""

    logprobs: Tensor
    """log pi_z(tokens[b, t]), where asked for."""
    choice: Tensor
    """log mu(z) of the text before tokens[b, t]."""
    values: Tensor
    """Q(., z) of the text before tokens[b, t]."""


class Options:
    """A manager and K writers."""

    trains = True
    cannot_shard = "has a model for each option, which write and learn by turns"
    policy_writes = False  # the stated log-probabilities are those of the mixture of all writers

    @settings
    class Config:
        """Both levels share these."""

        options: AtLeastOne = 2
        """K, the number of writers."""
        group_size: AtLeastOne = 1
        """Neighbouring rows that answer one prompt, for rewards that compare them."""
        lam: Share = 0.95
        """Lambda of generalised advantage estimation, per token for writers and per segment for the manager. There is
        no discount."""
        epochs: AtLeastOne = 2
        """Passes over a rollout."""
        minibatches: AtLeastOne = 1
        """Gradient steps per pass."""
        clip: Positive = 0.2
        """How far the ratio of a token's or an option's probability may move the loss."""
        whiten_advantages: bool = True
        """Mean 0 and variance 1 over the rollout's tokens, and over its segments."""
        value_coefficient: NonNegative = 0.1
        """Weight of the value loss."""
        option_entropy_coefficient: NonNegative = 0.0
        """Weight of a bonus for the entropy of the manager's choice. Without one it may settle on a single option
        early."""
        diversity_coefficient: NonNegative = 0.0
        """What a nat of mutual information between option and segment is worth, beside the reward."""
        optimization: Optimization = Optimization()
        """Learning rate, gradient clipping and so on."""

        def problems(self) -> Iterator[Problem]:
            if self.optimization.ptx_coefficient:
                said = "of options: a pretraining mix makes texts likelier for one policy, and here several write"
                yield fault("ptx_coefficient", f"{said}: leave it out")

    def __init__(self, setup: Setup, config: Config) -> None:
        setup.require_groups(config.group_size, least=1)
        require_exact_sampling(setup.policy.sampling, "options")
        self.setup = setup
        self.config = config
        self.policy = setup.policy
        self.writers = [self.policy, *(copy.deepcopy(self.policy) for _ in range(config.options - 1))]
        self.bids = nn.ModuleList(self._head() for _ in self.writers)
        self.values = nn.ModuleList(self._head() for _ in self.writers)
        trained = [parameter for writer in self.writers for parameter in writer.parameters()]
        self.optimizer = setup.engine.optimizer(
            [*trained, *self.bids.parameters(), *self.values.parameters()], config.optimization
        )
        self._order = setup.stream("options minibatches")

    def _head(self) -> ValueHead:
        return ValueHead(self.policy.hidden_size, dtype=self.policy.dtype, device=self.policy.device)

    # ---------------------------------------------------------------- writing

    def begin(self) -> ResetOptions:
        return {"group_size": self.config.group_size}

    @torch.no_grad()
    def act(self, observation: Observation, /) -> Decision:
        """Draw an option for each row; its writer then writes the next tokens."""
        texts = np.asarray(observation["input_ids"], dtype=np.int64)
        lengths = np.asarray(observation["attention_mask"]).sum(axis=1, dtype=np.int64)
        writing = np.asarray(observation.get("writing", np.ones(len(texts), dtype=np.bool_)))
        k, nothing = self.setup.action_length, self.policy.vocab_size
        # The policy's streams serve all writers, so that reseeding the policy reseeds them all.
        streams = RowStreams.of(self.policy.sampling_state())
        chances = streams.next(len(texts), 1)[:, 0]
        streams.take(writing)
        state = streams.state()
        tokens = np.full((len(texts), k), nothing, dtype=np.int64)
        logprobs, extras = np.zeros(tokens.shape), {name: np.zeros(tokens.shape) for name in EXTRAS}
        if writing.any():
            ahead = np.full((int(writing.sum()), 1), nothing, dtype=np.int64)  # one column without a token: the state
            choice = self._read_on(texts[writing], lengths[writing], ahead).choice[:, 0]
            options = np.zeros(len(texts), dtype=np.int64)
            cumulative = choice.exp().cumsum(dim=1).cpu().numpy()[:, :-1]
            options[writing] = (cumulative <= chances[writing, None]).sum(axis=1)
            for option, writer in enumerate(self.writers):
                if (rows := writing & (options == option)).any():
                    writer.load_sampling_state(state)
                    tokens[rows] = writer.write(observation, k, rows).tokens[rows]
                    state = writer.sampling_state()

            written = self._read_on(texts[writing], lengths[writing], tokens[writing]).logprobs
            own_option = torch.from_numpy(options[writing]).to(choice.device)[:, None]
            logprobs[writing] = marginal_logprobs(choice, written).cpu().numpy()
            extras["option"][:] = options[:, None]
            extras["segment_start"][:, 0] = 1.0
            extras["option_logprob"][writing] = choice.gather(1, own_option).cpu().numpy()
            extras["writer_logprob"][writing] = of_option(written, own_option.expand(-1, k)).cpu().numpy()
        self.policy.load_sampling_state(state)
        shape = tokens.shape if k > 1 else tokens.shape[:1]
        extras = {name: values.reshape(shape) for name, values in extras.items()}
        return Decision(tokens.reshape(shape), logprobs.reshape(shape), extras)

    def _read_on(self, texts: Int, lengths: Int, new: Int) -> OptionScores:
        """All writers on the k columns after each of `texts` int64[B, L], which hold `new` int64[B, k].

        In `new`, the value V stands for no token.
        """
        counts = (new < self.policy.vocab_size).sum(axis=1)
        width = int(lengths.max()) + new.shape[1]
        columns = np.arange(width)
        mask = columns < (lengths + counts)[:, None]
        where = mask & (columns >= lengths[:, None])
        tokens = np.zeros(mask.shape, dtype=np.int64)
        tokens[:, : texts.shape[1]] = texts[:, :width]
        tokens[where] = new[new < self.policy.vocab_size]
        for writer in self.writers:
            writer.eval()
        reading = self._read(torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(where))
        positions = torch.from_numpy(lengths[:, None] + np.arange(new.shape[1])).to(reading.choice.device)
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        return OptionScores(*(values[rows, positions] for values in reading))

    def _read(self, tokens: Tensor, mask: Tensor, where: Tensor) -> OptionScores:
        """All writers on texts [B, L], with log-probabilities where `where` is True."""
        evaluations = [writer.evaluate(tokens, mask, where) for writer in self.writers]
        states = [evaluation.hidden for evaluation in evaluations]
        return OptionScores(
            logprobs=torch.stack([refined(evaluation.logprobs) for evaluation in evaluations], dim=-1),
            choice=_applied(self.bids, states).log_softmax(-1),
            values=_applied(self.values, states),
        )

    # ---------------------------------------------------------------- learning

    def update(self, rollout: Rollout, /) -> Metrics:
        """`epochs` passes of gradient steps over the rollout, for both levels at once.

        Raises DataError for texts that another agent wrote: they were made by no option.
        """
        rollout.require_finite()
        missing = [name for name in EXTRAS if name not in rollout.extras]
        if missing:
            raise DataError(
                f"options learns from texts that it wrote itself, and these carry no {', '.join(missing)}: "
                "learn from texts of others with sft or dpo"
            )
        for writer in self.writers:
            writer.eval()  # with dropout, the first ratio would not be 1
        rollout = self._assess(self.setup.engine.local(rollout))
        steps = [
            self._step(rollout.select(rows))
            for rows in minibatches(len(rollout), self.config.minibatches, self.config.epochs, self._order)
        ]
        return {
            **over_steps(steps),
            "explained_variance": explained_variance(
                rollout.extras["values"], rollout.extras["targets"], rollout.actions
            ),
            "mutual_information": float(told_apart(rollout).sum() / _starts(rollout).sum().clamp(min=1)),
            **shares_by_place(rollout, self.config.options),
            "lr": self.optimizer.lr,
        }

    @torch.no_grad()
    def _assess(self, rollout: Rollout) -> Rollout:
        """The rollout with the credit of tokens and of segments, float64[B, L] each, before the update."""
        # One column more, for the state after the longest text.
        tokens, mask = F.pad(rollout.tokens, (0, 1)), F.pad(rollout.mask, (0, 1))
        parts = list(self.optimizer.rows(rollout.lengths, group=rollout.group, prompts=rollout.prompt_lengths))
        readings = [self._read(tokens[rows], mask[rows], torch.zeros_like(mask[rows])) for rows in parts]
        back = torch.cat(parts).argsort()
        choice, values = (
            torch.cat([getattr(reading, name) for reading in readings])[back] for name in ("choice", "values")
        )
        worth = (choice.exp() * values).sum(-1)  # V: the value of a text before an option is drawn
        option, starts = _options(rollout), _starts(rollout)
        own = of_option(values[:, :-1], option)
        # After a text that was cut from outside, the manager would have decided next: bootstrap its value.
        cut: JsonObject = {
            "truncated": rollout.truncated,
            "final_values": worth.gather(1, rollout.lengths[:, None])[:, 0],
        }
        paid = paid_to_actions(rollout.rewards(), rollout.mask, rollout.actions)
        paid = paid + self.config.diversity_coefficient * told_apart(rollout)
        earned = paid_to_actions(paid, rollout.mask, starts)
        advantages = gae(paid, own, rollout.actions, gamma=1.0, lam=self.config.lam, **cut)
        option_advantages = gae(earned, worth[:, :-1], starts, gamma=1.0, lam=self.config.lam, **cut)
        targets = advantages + own.masked_fill(~rollout.actions, 0.0)
        if self.config.whiten_advantages:
            advantages, option_advantages = whiten(advantages, rollout.actions), whiten(option_advantages, starts)
        self.setup.engine.credit(rollout, advantages)
        return rollout.with_extras(
            values=own, targets=targets, advantages=advantages, option_advantages=option_advantages
        )

    def _step(self, batch: Rollout) -> Metrics:
        """One gradient step on a minibatch."""
        config = self.config
        # Decisions of both levels have the same weight: log mu(z) and log pi_z(y) add up to log p(z, y).
        batch = batch.with_extras(
            weight=token_weights(batch.actions, "token-mean"), share=token_weights(_starts(batch), "token-mean")
        )
        metrics: Metrics = defaultdict(float)
        for rows in self.optimizer.rows(batch.lengths, group=batch.group, prompts=batch.prompt_lengths):
            part = batch.select(rows)
            extras, weight, share = part.extras, part.extras["weight"], part.extras["share"]
            option, starts = _options(part), _starts(part)
            reading = self._read(part.tokens, part.mask, part.actions)
            log_ratio = stated_log_ratio(of_option(reading.logprobs, option), extras["writer_logprob"], part.actions)
            option_log_ratio = stated_log_ratio(of_option(reading.choice, option), extras["option_logprob"], starts)
            entropy = -(reading.choice.exp() * reading.choice).sum(-1)

            writer_loss = weighted_sum(clipped_policy_loss(log_ratio, extras["advantages"], config.clip), weight)
            manager_loss = weighted_sum(
                clipped_policy_loss(option_log_ratio, extras["option_advantages"], config.clip),
                weight.masked_fill(~starts, 0.0),
            )
            value_loss = weighted_sum(
                clipped_value_loss(of_option(reading.values, option), extras["values"], extras["targets"], 0.0), weight
            )
            self.optimizer.backward(
                writer_loss
                + manager_loss
                + config.value_coefficient * value_loss
                - config.option_entropy_coefficient * weighted_sum(entropy, weight.masked_fill(~starts, 0.0))
            )
            with torch.no_grad():
                # KL(old || new): the tokens were drawn from the old policy, where log p - log p is 0.
                token_kl, option_kl = (
                    kl_estimate(torch.zeros_like(moved), moved, "k3") for moved in (log_ratio, option_log_ratio)
                )
                for name, value in {
                    "policy_loss": writer_loss,
                    "option_loss": manager_loss,
                    "value_loss": value_loss,
                    "approx_kl": weighted_sum(token_kl, weight),
                    "clip_fraction": weighted_sum(refined(outside_clip(log_ratio, config.clip)), weight),
                    "option_kl": weighted_sum(option_kl, share),
                    "option_entropy": weighted_sum(entropy, share),
                    "first_option": weighted_sum(refined(option == 0), share),
                }.items():
                    metrics[name] += float(value.detach())
        return {**self.optimizer.summed(metrics), "grad_norm": self.optimizer.step()}

    # ---------------------------------------------------------------- state

    def state_dict(self) -> State:
        return {
            "writers": {str(option): writer.state_dict() for option, writer in enumerate(self.writers)},
            "bids": self.bids.state_dict(),
            "values": self.values.state_dict(),
            "sampling": self.policy.sampling_state(),
            "optimizer": self.optimizer.state_dict(),
            "order": dict(self._order.bit_generator.state),
        }

    def load_state_dict(self, state: State, /) -> None:
        for option, writer in enumerate(self.writers):
            writer.load_state_dict(state["writers"][str(option)])
        self.bids.load_state_dict(state["bids"])
        self.values.load_state_dict(state["values"])
        self.policy.load_sampling_state(state["sampling"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._order.bit_generator.state = dict(state["order"])


def told_apart(rollout: Rollout) -> Tensor:
    """float64[B, L]: log pi_z(y_t) - log p(y_t), in nats; 0 off `actions`.

    Over the tokens of a segment it adds up to log p(z | segment) - log mu(z): by how much what was written says which
    option wrote it. Its mean over segments is their mutual information.
    """
    stated = refined(rollout.extras["writer_logprob"]) - refined(rollout.logprobs)
    return stated.masked_fill(~rollout.actions, 0.0)


def shares_by_place(rollout: Rollout, options: int) -> Metrics:
    """How often each option wrote the first segment of a text, the second, and so on; the last number has all later."""
    starts, option = _starts(rollout), _options(rollout)
    place = (starts.cumsum(dim=1) - 1).clamp(max=MOST_PLACES - 1)
    shares: Metrics = {}
    for segment in range(int(place[starts].max()) + 1 if bool(starts.any()) else 0):
        taken = option[starts & (place == segment)]
        for each in range(options):
            shares[f"options/segment_{segment + 1}/option_{each + 1}"] = float(refined(taken == each).mean())
    return shares


def of_option(values: Tensor, option: Tensor) -> Tensor:
    """[B, L]: values[b, t, option[b, t]] of `values` [B, L, K] and `option` int64[B, L]."""
    return values.gather(-1, option[..., None]).squeeze(-1)


def _options(rollout: Rollout) -> Tensor:
    """int64[B, L]: the option under which each token was written; 0 off `actions`, whatever the extra holds there."""
    return rollout.extras["option"].masked_fill(~rollout.actions, 0.0).long()


def _starts(rollout: Rollout) -> Tensor:
    """bool[B, L]: the first token of each segment."""
    return rollout.actions & (rollout.extras["segment_start"] > 0.0)


def _applied(heads: nn.ModuleList, states: Sequence[Tensor]) -> Tensor:
    """float64[B, L, K]: each head on its writer's states [B, L, H]."""
    return torch.stack([refined(head(state)) for head, state in zip(heads, states, strict=True)], dim=-1)
