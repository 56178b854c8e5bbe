"""Where an agent's rollouts come from: written in an environment, or read from stored data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from rlhf_env.envs.rewards import KLPart, RewardMix
from rlhf_env.envs.task_labels import mixture_of, task_label
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.errors import ConfigError, RlhfEnvError, WriterFailed
from rlhf_env.learning.advantages import groups_without_spread
from rlhf_env.learning.agent import Agent, Metrics, wishes_of
from rlhf_env.learning.collect import collect_with
from rlhf_env.learning.functional import effective_sample_size
from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.spending import Budget, Spending
from rlhf_env.policies.ahead_writer import AheadWriter
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.low_precision import copy_writes, other_writer
from rlhf_env.policies.policy import Policy, TextWriter
from rlhf_env.types import ResetOptions, State, TokenScorer, TrainerState

WRITER = "writer/"  # the section of the log that an engine has which writes in the policy's place

# Texts of a rollout that its policy reads to find out how far the copy that wrote them is from it: a few, as reading
# them costs a forward pass.
RATIO_TEXTS = 8


class Source(Protocol):
    """Where an agent's next rollout comes from: an environment, demonstrations, preference pairs."""

    def next(self, agent: Agent, /) -> Rollout: ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State, /) -> None: ...


class Shuffled:
    """Indices 0..size-1 in shuffled epochs, a pure function of (seed, place): resuming needs the place alone."""

    def __init__(self, size: int | None, seed: int) -> None:
        self.size, self.seed, self.place = size, seed, 0
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)

    def take(self, count: int) -> list[int]:
        """The next `count` indices. An unbounded source gives new ones for ever."""
        start, self.place = self.place, self.place + count
        if self.size is None:
            # Below 2^31, so that a seed and an index fit side by side in a task's own seed.
            return [int(np.random.default_rng([self.seed, i]).integers(2**31)) for i in range(start, start + count)]
        return [self._at(i, self.size) for i in range(start, start + count)]

    def peek(self, count: int) -> list[int]:
        """What `take` will give."""
        place = self.place
        try:
            return self.take(count)
        finally:
            self.place = place

    def _at(self, place: int, size: int) -> int:
        epoch, offset = divmod(place, size)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(size)
        return int(self._order[offset])


class EnvSource:
    """Rollouts written in an environment; prompts in shuffled epochs, one per group, unless the agent asks for others
    (`indices` of what its `begin` gives).

    Rows that a reward part failed on, and that are to be skipped, and rows about which no part has anything to say, are
    left out: whatever an agent makes of the others is what it would make of a rollout without them. `failed/<part>`
    counts the failures that a part may have, `abstained/<part>` the rows it said nothing about, and `unscored` the
    rows without a score, where there are some. `logged/<name>` is the mean of what reward functions log. Where rewards
    are shaped, or are of some tasks alone, `earned/<part>` adds up to the reward and `weight/<part>` is what a run has
    changed a weight to; of a mixture, `task/<label>/reward` is that of each task.

    Where the mix's KL penalty has read the texts with this `reference`, its log-probabilities go along as the extra
    "reference", so that an agent which needs them does not read the texts again.

    Where a copy of `policy` in low precision writes for it, `ess` and `ratio_p05` to `ratio_p95` say how far the two
    are apart; where another engine does, `writer/kl` and others do, and WriterFailed is raised where that is too far.
    Where that is a process which writes ahead, the next texts are begun as soon as these are there.
    """

    def __init__(
        self,
        env: TextVectorEnv,
        *,
        seed: int,
        spending: Spending,
        reference: TokenScorer | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.env = env
        self._policy = policy
        self._reference = reference
        self._prompts = Shuffled(env.task.size, seed)
        self._spending = spending
        self._mixes = mixture_of(env.task) is not None

    def next(self, agent: Agent, /) -> Rollout:
        wishes = wishes_of(agent)
        groups = self.env.num_envs // int(wishes.get("group_size", 1))
        place = self._prompts.place
        self.env.reward.take_logged()  # of an evaluation, or of a rollout that failed
        try:
            indices = wishes["indices"] if "indices" in wishes else self._prompts.take(groups)
            rollout = collect_with(self.env, agent, {**wishes, "indices": indices})
        except RlhfEnvError:
            self._prompts.place = place  # these prompts were not used up: a resumed run takes them again
            raise
        mix = self.env.reward
        logged = {f"logged/{name}": value for name, value in mix.take_logged().items()}
        measured = {**_divergence(rollout, mix.kl), **_failures(rollout, mix), **_abstentions(rollout), **logged}
        measured |= {**_paid(rollout, mix), **_by_task(rollout, self._mixes)}
        if (writer := other_writer(self._policy)) is not None:
            measured |= _of_writer(writer)
            if isinstance(writer, AheadWriter):
                measured[f"{WRITER}staleness"] = float(self._spending.updates - writer.update)
        elif self._policy is not None and copy_writes(self._policy):
            measured |= _off_policy(rollout, self._policy)
        rollout = _beside_what_kl_read(rollout, mix.kl, self._reference)
        self.env.settle()  # so that a checkpoint taken now holds what the rewards remember of this rollout
        self._spending.add(
            episodes=len(rollout), generated_tokens=int(rollout.actions.sum()), reward_calls=len(rollout)
        )
        if isinstance(writer, AheadWriter):
            self._write_ahead(writer, wishes, groups)
        kept = rollout.scored | rollout.truncated
        rollout = rollout if bool(kept.all()) else rollout.select(kept)
        return replace(rollout, measured={**measured, **_spread(rollout, mix.kl_names), **_worth(rollout, mix)})

    def _write_ahead(self, writer: AheadWriter, wishes: ResetOptions, groups: int) -> None:
        """Let `writer` have the present weights, and begin the texts that will probably be asked for: the next prompts,
        if the agent wishes what it wished for this rollout.

        That is a guess, and if it is wrong, a loss of time. The environment is reset once more for the rollout itself.
        """
        policy = self._policy
        assert isinstance(policy, LanguageModel)
        writer.hand_over(policy, self._spending.updates)
        if "indices" in wishes:  # chosen by what is learned only now
            return
        env = self.env
        try:
            observation, _ = env.reset(options={**wishes, "indices": self._prompts.peek(groups)})
        except RlhfEnvError:  # it will be said when they are asked for
            return
        if env.stops is not None:
            observation |= {"stops": env.stops, "stop_states": env.stop_states}
        writer.ask_ahead(policy, observation, env.max_new_tokens)

    def follow(self, budget: Budget) -> None:
        """Tell the rewards that ask for it where training stands."""
        spent, size = self._spending, self.env.task.size
        episodes = math.inf if budget.episodes is None else math.ceil(budget.episodes / self.env.num_envs)
        updates = min(math.inf if budget.updates is None else budget.updates, episodes)
        if math.isinf(updates):  # counted in something else: as it has gone so far
            updates = max(spent.updates + 1, round(spent.updates / (budget.spent_fraction(spent) or 1.0)))
        self.env.reward.follow(
            TrainerState(
                global_step=spent.updates,
                max_steps=int(updates),
                epoch=self._prompts.place / size if size else 0.0,
                num_input_tokens_seen=spent.generated_tokens,
                progress=min(budget.spent_fraction(spent), 1.0),
            )
        )

    def state_dict(self) -> State:
        own: State = {"place": self._prompts.place, "rewards": self.env.reward.state_dict()}
        writer = other_writer(self._policy)
        return own | {"ahead": writer.state_dict()} if isinstance(writer, AheadWriter) else own

    def load_state_dict(self, state: State, /) -> None:
        self._prompts.place = int(state["place"])
        self.env.reward.load_state_dict(state["rewards"])
        writer = other_writer(self._policy)
        if isinstance(writer, AheadWriter):
            writer.load_state_dict(state["ahead"])


def _of_writer(writer: TextWriter) -> Metrics:
    """How far another engine that wrote is from the policy. Raises WriterFailed where that is too far to learn from."""
    distance = {f"{WRITER}{name}": value for name, value in writer.take_distance().items()}
    kl = distance.get(f"{WRITER}kl", 0.0)
    if not kl <= writer.max_kl:
        raise WriterFailed(
            f"what {writer.name} wrote is {kl:.3g} nats per token away from the policy (writer/kl), and max_kl = "
            f"{writer.max_kl:g}: nothing was learned from it. It computes in another precision, or with other weights "
            "than the policy has"
        )
    return distance


def _off_policy(rollout: Rollout, policy: TokenScorer) -> Metrics:
    """How far `policy` is from the copy of it that wrote a rollout, on a few of its texts.

    `ess` is the effective sample size of their importance weights, as a share of the texts (1: all weigh the same);
    `ratio_p05`, `ratio_p50` and `ratio_p95` are quantiles of the probability ratio of their tokens.
    """
    rows = np.unique(np.linspace(0, len(rollout) - 1, min(len(rollout), RATIO_TEXTS)).astype(int))
    now = policy.response_logprobs([rollout.episodes[row] for row in rows])
    stated = rollout.logprobs.cpu().numpy()
    log_ratios = []
    for row, logprobs in zip(rows, now, strict=True):
        episode = rollout.episodes[row]
        written = stated[row, len(episode.prompt_ids) : len(episode.ids)]
        log_ratios.append((logprobs - written)[np.asarray(episode.actions, dtype=bool)])
    tokens = np.concatenate(log_ratios)
    if not tokens.size:
        return {}
    quantiles = {f"ratio_p{at:02d}": float(np.exp(np.quantile(tokens, at / 100))) for at in (5, 50, 95)}
    return {"ess": effective_sample_size(np.array([values.sum() for values in log_ratios])), **quantiles}


def _failures(rollout: Rollout, reward: RewardMix) -> Metrics:
    """How many rows each part failed on, of the parts that do not end the run when they do."""
    lenient = [name for name, failures in reward.failures.items() if failures.on_error != "stop"]
    return {f"failed/{name}": float(sum(name in score.failed for score in rollout.scores)) for name in lenient}


def _abstentions(rollout: Rollout) -> Metrics:
    """Where a part said nothing about some row: how many rows those are, of each part, and how many have no score."""
    names = dict.fromkeys(name for score in rollout.scores for name in score.abstained)
    if not names:
        return {}
    silent = {f"abstained/{name}": float(sum(name in score.abstained for score in rollout.scores)) for name in names}
    return {**silent, "unscored": float((~rollout.scored & ~rollout.truncated).sum())}


def _paid(rollout: Rollout, reward: RewardMix) -> Metrics:
    """Where texts are paid otherwise than the parts say (shaping, tasks): `weight/<part>` of what a run changes, and
    `earned/<part>`, the mean over texts of what each line of the ledger came to, which add up to the reward."""
    scores = [score for score in rollout.scores if score.raw]
    if not reward.pays_otherwise or not scores:
        return {}
    names = dict.fromkeys(name for score in scores for name in score.raw)
    earned = {
        f"earned/{name}": math.fsum(score.weights[name] * score.raw[name] for score in scores if name in score.raw)
        / len(scores)
        for name in names
    }
    return {**{f"weight/{name}": weight for name, weight in reward.weights_now.items()}, **earned}


def _by_task(rollout: Rollout, mixes: bool) -> Metrics:
    """Of a mixture, the mean reward of each task's texts, and how many there are."""
    if not mixes:
        return {}
    rewards: dict[str, list[float]] = {}
    for episode, score in zip(rollout.episodes, rollout.scores, strict=True):
        if score.raw:
            rewards.setdefault(task_label(episode.prompt), []).append(score.total)
    means = {f"task/{label}/reward": math.fsum(values) / len(values) for label, values in rewards.items()}
    return {**means, **{f"task/{label}/texts": float(len(values)) for label, values in rewards.items()}}


def _spread(rollout: Rollout, kl: Sequence[str] = ()) -> Metrics:
    """Where texts answer a prompt in groups: the share of groups whose members all earned the same but for their KL."""
    if not rollout.scores or len(set(rollout.group.tolist())) == len(rollout):
        return {}
    returns = rollout.returns(without=kl)
    return {"groups_without_spread": groups_without_spread(returns, rollout.group, counted=rollout.scored)}


def _worth(rollout: Rollout, reward: RewardMix) -> Metrics:
    """The spread of what the texts earned without their KL, where that is not all they earn."""
    if not bool(rollout.scored.any()) or len(reward.parts) == len(reward.kl_names):
        return {}
    returns = rollout.returns(without=reward.kl_names)[rollout.scored]
    return {"reward_without_kl_std": float(returns.std(unbiased=False))}


def _divergence(rollout: Rollout, kl: KLPart | None) -> Metrics:
    """The mean KL to the reference of a rollout, in nats per response, where the mix has a KL penalty that scored it.

    `kl_std` is its spread over the texts. Two estimates of the same number (see `functional.kl_estimate`): `kl` is k1,
    `kl_k3` is k3, which is never negative and less noisy while the policies are near each other. The penalty's
    controller moves its coefficient as soon as it is shown the rollout: ask before that.
    """
    scores = [score for score in rollout.scores if score.raw]
    if kl is None or not scores or not kl.penalty.coefficient:
        return {}
    coefficient = float(kl.penalty.coefficient)
    log_ratios = [score.tokens[kl.name] / -coefficient for score in scores]
    return {
        "kl": -float(np.mean([score.raw[kl.name] for score in scores])) / coefficient,
        "kl_std": float(np.std([score.raw[kl.name] for score in scores])) / abs(coefficient),
        "kl_k3": float(np.mean([(np.expm1(-values) + values).sum() for values in log_ratios])),
    }


def _beside_what_kl_read(rollout: Rollout, kl: KLPart | None, reference: TokenScorer | None) -> Rollout:
    """With log p_ref as the extra "reference", where it follows from what the KL penalty has paid for every row.

    That is -coefficient * (log p - log p_ref) for each token, as long as the controller has not moved the coefficient.
    """
    if kl is None or reference is None or kl.penalty.reference is not reference or not kl.penalty.coefficient:
        return rollout
    if any(kl.name not in score.tokens or kl.name in score.failed for score in rollout.scores):
        return rollout
    coefficient = float(kl.penalty.coefficient)
    known = torch.zeros(rollout.tokens.shape, dtype=torch.float64)
    for row, (episode, score) in enumerate(zip(rollout.episodes, rollout.scores, strict=True)):
        assert episode.logprobs is not None  # the penalty has read them
        start, paid = len(episode.prompt_ids), score.tokens[kl.name]
        known[row, start : start + len(paid)] = torch.from_numpy(episode.logprobs + paid / coefficient)
    return rollout.with_extras(reference=known.masked_fill(~rollout.actions, 0.0))


class DataSource:
    """Rollouts made from stored data: `make(indices)` builds one batch, in shuffled epochs."""

    def __init__(self, size: int, batch_size: int, make: Callable[[Sequence[int]], Rollout], *, seed: int) -> None:
        if size < 1:
            raise ConfigError("there is no data to train on")
        self.batch_size = min(batch_size, size)
        self._make, self._size = make, size
        self._indices = Shuffled(size, seed)

    def updates_of(self, epochs: float) -> int:
        """How many rollouts hold everything so many times."""
        return math.ceil(epochs * (self._size / self.batch_size) - 1e-9)

    def next(self, _agent: Agent, /) -> Rollout:
        rollout = self._make(self._indices.take(self.batch_size))
        return replace(rollout, measured={**rollout.measured, **_spread(rollout)})

    def state_dict(self) -> State:
        return {"place": self._indices.place}

    def load_state_dict(self, state: State, /) -> None:
        self._indices.place = int(state["place"])


class PackedSource:
    """Rollouts of as many texts as have `tokens` together, in shuffled epochs; `lengths` are the tokens of each text.

    Steps then learn from like amounts of text, however long the texts are. Texts keep the order in which they were
    drawn, so none is favoured for its length: a rollout ends before the text that no longer fits. A text that is longer
    than `tokens` is a rollout by itself. `make(indices)` builds one.

    Texts are never put into one row: nothing attends from one to another in any model family, and where the layers are
    known (`policies.trunk`) rows cost no padding.
    """

    def __init__(
        self, lengths: Sequence[int], tokens: int, make: Callable[[Sequence[int]], Rollout], *, seed: int
    ) -> None:
        if not lengths:
            raise ConfigError("there is no data to train on")
        self._lengths, self._tokens, self._make = list(lengths), tokens, make
        self._seed = seed
        self._indices = Shuffled(len(lengths), seed)

    def updates_of(self, epochs: float) -> int:
        """How many rollouts hold everything so many times."""
        drawn, updates = Shuffled(len(self._lengths), self._seed), 0
        while drawn.place < epochs * len(self._lengths) - 1e-9:
            self._take(drawn)
            updates += 1
        return updates

    def next(self, _agent: Agent, /) -> Rollout:
        return self._make(self._take(self._indices))

    def _take(self, drawn: Shuffled) -> list[int]:
        """The next texts: the first, and those after it that still fit; none of them twice."""
        taken = drawn.take(1)
        room = self._tokens - self._lengths[taken[0]]
        while len(taken) < len(self._lengths):
            (following,) = drawn.take(1)
            room -= self._lengths[following]
            if room < 0 or following in taken:
                drawn.place -= 1  # it begins the next rollout
                break
            taken.append(following)
        return taken

    def state_dict(self) -> State:
        return {"place": self._indices.place}

    def load_state_dict(self, state: State, /) -> None:
        self._indices.place = int(state["place"])
