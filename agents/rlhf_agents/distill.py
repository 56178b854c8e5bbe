"""Distillation: a smaller policy learns to write as a larger one does.

Two ways, and mixtures of them:

- `divergence = "sequence"`: the teacher writes, and the policy maximises the likelihood of its texts (Kim and Rush
  2016, 1606.07947). With `best_of`, the teacher's text is the best of several by reward; without a `teacher`, the
  teacher is the policy as it was at the beginning (self-distillation from best-of-n).
- a divergence of the two distributions at every token, over the whole vocabulary: "forward" KL(teacher || policy),
  "reverse" KL(policy || teacher), or "jsd", the generalised Jensen-Shannon divergence of Agarwal et al. 2024
  (2306.13649), which is near the first for a small `beta` and near the second for a large one. A share `on_policy` of
  the texts is the policy's own, so that it learns where its own words lead; the teacher writes the others.

    sequence    -log pi(token)
    forward     KL(teacher || pi)
    reverse     KL(pi || teacher)
    jsd         beta KL(teacher || m) + (1 - beta) KL(pi || m)      m = beta teacher + (1 - beta) pi
    loss        the mean of that over tokens

As in that paper, no gradient passes through the sampling of texts. So "forward" on the teacher's texts has the exact
gradient of KL(teacher || policy) of whole texts, and "reverse" on the policy's own texts lacks the part that comes from
where its tokens lead; the reward `teacher` with an agent of policy gradients has all of it, and more noise.

Every text counts in the budget, whoever wrote it. Rewards play no part but in `best_of`.

When: a larger model, or best-of-n, already writes what a smaller or cheaper one should. When not: the policy is to
become better than its teacher (an agent of policy gradients), or the teacher's tokenizer is another: that is refused.

Left out: a given set of texts beside the two writers, several teachers, divergences of hidden states.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

import numpy as np
import torch
from annotated_types import Gt, Lt

from rlhf_agents.best_of_n import BestOfN
from rlhf_env.errors import ConfigError, DataError, Problem
from rlhf_env.learning.agent import OTHERS_WROTE, Decision, Metrics, Setup, learned_state, load_learned_state
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.functional import Aggregation, minibatches, over_steps, token_weights, weighted_sum
from rlhf_env.learning.ranges import Choice, Multiple, Ranges
from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.teachers import TeacherDtype, load_teacher
from rlhf_env.policies.next_tokens import NextTokens, weighted_divergence
from rlhf_env.policies.policy import HasNextTokens, Policy
from rlhf_env.policies.precision import refined
from rlhf_env.policies.streams import RowStreams
from rlhf_env.settings import AtLeastOne, Example, IsPath, Name, Positive, Share, fault, settings
from rlhf_env.types import Bool, Observation, ResetOptions, State

_T = TypeVar("_T")


class Distill:
    """Learns from a teacher: its texts, or its distribution at every token."""

    trains = True
    off_policy = True  # what a text teaches does not depend on who wrote it
    weighs_rows = True

    @settings
    class Config:
        """The teacher, what is learned from it, and on whose texts."""

        ranges: ClassVar[Ranges] = {"lr": Multiple(0.25, 4.0), "on_policy": Choice(0.0, 0.5, 1.0)}

        teacher: Annotated[Name, IsPath(), Example("runs/large")] | None = None
        """A folder, that of a run (its best checkpoint, else its last), a shipped model or a hub name, with the
        policy's tokenizer. Left out: the policy as it was at the beginning, whose `best_of` answers are learned."""
        teacher_dtype: TeacherDtype | None = None
        """The precision of its weights (default: the policy's). It is frozen; "bfloat16" halves its memory."""
        divergence: Literal["sequence", "forward", "reverse", "jsd"] = "jsd"
        """"sequence": the likelihood of the teacher's texts. The others are divergences at every token, over the whole
        vocabulary: KL(teacher || policy), KL(policy || teacher), and a mixture of both."""
        beta: Annotated[float, Gt(0), Lt(1)] = 0.5
        """Of "jsd": the teacher's share in the mixture that both are compared with."""
        on_policy: Share | None = None
        """The share of texts that the policy writes; the teacher writes the others (default: half of them, and none
        with "sequence")."""
        best_of: AtLeastOne = 1
        """Of so many answers that the teacher writes to a prompt, the best by reward is learned. All of them count in
        the budget."""
        temperature: Positive = 1.0
        """What the logits of both are divided by before they are compared (on top of the sampling's temperature): above
        1, rare tokens count more."""
        aggregation: Aggregation = "token-mean"
        """How tokens add up to a loss (see `rlhf_env.learning.functional.token_weights`)."""
        group_size: AtLeastOne = 1
        """Neighbouring rows that answer one prompt; one writer writes all of them."""
        epochs: AtLeastOne = 1
        """Passes over a rollout."""
        minibatches: AtLeastOne = 1
        """Gradient steps per pass."""
        optimization: Optimization = Optimization(lr=5e-4)
        """Learning rate, gradient clipping and so on."""

        @property
        def share_of_policy(self) -> float:
            if self.on_policy is None:
                return 0.0 if self.divergence == "sequence" else 0.5
            return self.on_policy

        def problems(self) -> Iterator[Problem]:
            if self.divergence == "sequence":
                if self.share_of_policy > 0.0:
                    yield fault("on_policy", "'sequence' learns the teacher's texts alone: leave it out, or take 'jsd'")
                if self.temperature != 1.0:
                    yield fault("temperature", "is of distributions that are compared, and 'sequence' compares none")
            if self.divergence != "jsd" and self.beta != 0.5:
                yield fault("beta", f"is of 'jsd', and the divergence is {self.divergence!r}")
            if self.best_of > 1 and self.share_of_policy == 1.0:
                yield fault("best_of", "is of the teacher's texts, and with on_policy = 1 it writes none")
            if self.teacher is None and (self.divergence != "sequence" or self.best_of == 1):
                yield fault(
                    "teacher",
                    "is needed: a model's folder or name. (Without one, the policy learns from the best of its own "
                    "answers: divergence = 'sequence', best_of = 8)",
                )
            if self.teacher is None and self.teacher_dtype is not None:
                yield fault("teacher_dtype", "is a teacher's, and none is named")

    def __init__(self, setup: Setup, config: Config, *, teacher: Policy | None = None) -> None:
        setup.require_groups(config.group_size, least=1)
        self.setup = setup
        self.config = config
        self.policy = setup.policy
        if teacher is None and config.teacher is None:
            teacher = setup.reference
        elif teacher is None:
            teacher = load_teacher(str(config.teacher), setup.policy, setup.tokenizer, config.teacher_dtype)
        self.teacher = teacher
        self._require_comparable()
        self.optimizer = setup.engine.optimizer(self.policy.parameters(), config.optimization)
        self._best: BestOfN | None = None
        if config.best_of > 1:
            self._best = BestOfN(replace(setup, policy=self.teacher), BestOfN.Config(n=config.best_of))
        self._order = setup.stream("distill minibatches")
        self._writers = setup.stream("distill writers")
        # Others may write with the same teacher, from streams of their own.
        self._of_teacher: State = RowStreams(int(setup.stream("distill teacher").integers(2**31))).state()
        self._taught: Bool | None = None  # the rows that the teacher writes, from `begin` to `update`

    def _require_comparable(self) -> None:
        config, writes = self.config, self.config.share_of_policy < 1.0
        if config.divergence != "sequence":
            for who, policy in {"policy": self.policy, "teacher": self.teacher}.items():
                if not isinstance(policy, HasNextTokens):
                    said = f"{config.divergence!r} compares distributions, and the {who}, a {type(policy).__name__}, "
                    raise ConfigError(fault("divergence", said + "gives none: take 'sequence'"))
        if writes and self.teacher.vocab_size > self.policy.vocab_size:
            raise ConfigError(
                fault(
                    "on_policy",
                    f"the teacher has {self.teacher.vocab_size} tokens and the policy {self.policy.vocab_size}, so the "
                    "teacher may write what the policy has no word for: set on_policy = 1",
                )
            )

    def begin(self) -> ResetOptions:
        """Draws who writes which rows: `1 - on_policy` of the groups are the teacher's, on average exactly."""
        size = self.config.group_size
        groups = self.setup.batch_size // size
        count = int(np.floor((1.0 - self.config.share_of_policy) * groups + self._writers.random()))
        taught = self._writers.permutation(groups)[:count]
        self._taught = np.isin(np.arange(self.setup.batch_size) // size, taught)
        return {"group_size": size}

    def act(self, observation: Observation, /) -> Decision:
        """The texts of a rollout that is learned from, each by its writer; otherwise the policy's."""
        length, taught = self.setup.action_length, self._taught
        if taught is None or not taught.any():
            return Decision.of(self.policy.write(observation, length))
        writing = np.asarray(observation.get("writing", np.ones(len(taught), np.bool_)), np.bool_)
        tokens = np.full((len(taught), length), self.policy.vocab_size, np.int64)
        logprobs = np.zeros(tokens.shape)
        if (rows := writing & ~taught).any():
            own = self.policy.write(observation, length, rows)
            tokens[rows], logprobs[rows] = own.tokens[rows], own.logprobs[rows]
        if (rows := writing & taught).any():
            written = self._as_teacher(lambda: self._teachers(observation, rows))
            nothing = written.tokens >= self.teacher.vocab_size
            tokens[rows] = np.where(nothing, self.policy.vocab_size, written.tokens)
            logprobs[rows] = written.logprobs
        others = np.broadcast_to(taught[:, None].astype(np.float64), tokens.shape).copy()
        if length == 1:
            return Decision(tokens[:, 0], logprobs[:, 0], {OTHERS_WROTE: others[:, 0]})
        return Decision(tokens, logprobs, {OTHERS_WROTE: others})

    def _teachers(self, observation: Observation, rows: Bool) -> Decision:
        """What the teacher writes in `rows`, [n, k]: one text each, or the best of several."""
        if self._best is None:
            written = self.teacher.write(observation, self.setup.action_length, rows)
            return Decision(written.tokens[rows], written.logprobs[rows])
        numbers = np.flatnonzero(rows)
        asked: Any = {name: observation[name][numbers] for name in ("input_ids", "attention_mask")}
        if (stops := observation.get("stops")) is not None:
            asked |= {"stops": stops, "stop_states": observation["stop_states"][numbers]}
        if prompts := observation.get("prompts"):
            asked["prompts"] = [prompts[int(number)] for number in numbers]
        return self._best.act(cast(Observation, asked))

    def _as_teacher(self, write: Callable[[], _T]) -> _T:
        """`write()`, with the teacher drawing from this agent's streams."""
        others = self.teacher.sampling_state()
        self.teacher.load_sampling_state(self._of_teacher)
        try:
            return write()
        finally:
            self._of_teacher = self.teacher.sampling_state()
            self.teacher.load_sampling_state(others)

    def update(self, rollout: Rollout, /) -> Metrics:
        """`epochs` passes of gradient steps, without dropout. Raises DataError for judged answers."""
        rollout.require_finite()
        if rollout.judged:
            raise DataError("distill learns from a teacher, and these answers are judged: use dpo or kto")
        self._taught = None
        self.policy.eval()
        others = rollout.extras.get(OTHERS_WROTE, torch.zeros(rollout.tokens.shape))
        taught = ((others > 0.0) & rollout.actions).any(dim=1).double().mean().nan_to_num()
        numbers = torch.arange(len(rollout), dtype=torch.float64)[:, None].expand(rollout.tokens.shape)
        rollout = self.setup.engine.local(rollout.with_extras(number=numbers))
        read: dict[int, NextTokens] = {}
        steps = [
            self._step(rollout.select(rows), read)
            for rows in minibatches(len(rollout), self.config.minibatches, self.config.epochs, self._order)
        ]
        return {**over_steps(steps), "taught": float(taught), "lr": self.optimizer.lr}

    def _step(self, batch: Rollout, read: dict[int, NextTokens]) -> Metrics:
        """One gradient step on a minibatch; `read`: what the teacher said of rows of this rollout so far."""
        config = self.config
        weight = token_weights(batch.actions, config.aggregation, longest=self.setup.max_new_tokens)
        batch = batch.with_extras(
            weight=batch.weighted(weight),
            share=token_weights(batch.actions, "token-mean"),
        )
        metrics: Metrics = defaultdict(float)
        for rows in self.optimizer.rows(batch.lengths, group=batch.group, prompts=batch.prompt_lengths):
            part = batch.select(rows)
            if config.divergence == "sequence":
                logprobs = self.policy.evaluate(part.tokens, part.mask, part.actions).logprobs
                loss = weighted_sum(-refined(logprobs), part.extras["weight"])
                metrics["nats_per_token"] += float(weighted_sum(-refined(logprobs.detach()), part.extras["share"]))
            else:
                loss, divergences = self._divergence(part, read)
                metrics["nats_per_token"] += float((refined(divergences) * part.extras["share"][part.actions]).sum())
            self.optimizer.backward(loss)
            metrics["loss"] += float(loss.detach())
        return {**self.optimizer.summed(metrics), "grad_norm": self.optimizer.step()}

    def _divergence(self, part: Rollout, read: dict[int, NextTokens]) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of a micro-batch, and the divergence at each token of the agent [N]."""
        config = self.config
        assert config.divergence != "sequence"
        teacher = self._of_teacher_at(part, read).softened(config.temperature)
        policy = cast(HasNextTokens, self.policy)
        student = policy.next_tokens(part.tokens, part.mask, part.actions).softened(config.temperature)
        weights = part.extras["weight"][part.actions]
        return weighted_divergence(student, teacher, weights, config.divergence, config.beta)

    def _of_teacher_at(self, part: Rollout, read: dict[int, NextTokens]) -> NextTokens:
        """The teacher's distributions at a micro-batch's tokens. It is frozen, so it reads a text once an update.

        What is kept is a hidden state a token. Logits are not, so a teacher without a head reads again each epoch.
        """
        numbers = [int(number) for number in part.extras["number"][:, 0].tolist()]
        if numbers and all(number in read for number in numbers):
            known = [read[number] for number in numbers]
            return replace(known[0], states=torch.cat([it.states for it in known]))
        with torch.no_grad():
            found = cast(HasNextTokens, self.teacher).next_tokens(part.tokens, part.mask, part.actions)
        if self.config.epochs > 1 and found.head is not None:
            of_rows = torch.split(found.states, part.actions.sum(dim=1).tolist())
            read |= {number: replace(found, states=it) for number, it in zip(numbers, of_rows, strict=True)}
        return found

    def state_dict(self) -> State:
        return {
            **learned_state(self.policy, self.optimizer, self._order),
            "writers": dict(self._writers.bit_generator.state),
            "teacher": dict(self._of_teacher),
        }

    def load_state_dict(self, state: State, /) -> None:
        load_learned_state(state, self.policy, self.optimizer, self._order)
        self._writers.bit_generator.state = dict(state["writers"])
        self._of_teacher = dict(state["teacher"])
        self._taught = None
