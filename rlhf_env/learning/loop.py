"""The one loop: `collect()` writes episodes with an agent, `train()` repeats it until the budget is spent."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rlhf_env.envs.rewards import RewardMix, Score
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.errors import ConfigError, DataError, RewardError, RlhfEnvError, RunFailed
from rlhf_env.learning.agent import Agent, Decision, Metrics
from rlhf_env.learning.engine import Engine
from rlhf_env.learning.functional import groups_without_spread
from rlhf_env.learning.rollout import Rollout, finished
from rlhf_env.learning.run_folder import RunFolder, read_metrics
from rlhf_env.learning.spending import Budget, Spending
from rlhf_env.learning.stopping import StoppingRule
from rlhf_env.types import Episode, Float, TokenScorer

Row = dict[str, Any]

_IDLE_LIMIT = 200


def collect(
    env: TextVectorEnv, agent: Agent, options: Mapping[str, Any] | None = None, *, seed: int | None = None
) -> Rollout:
    """Reset the environment and write until every row has ended; the finished episodes, in the order of the rows.

    `options` are added to what `agent.begin()` asks for. The environment must be in autoreset mode DISABLED (whole
    episodes only). Raises RewardError where a reward part fails more often than it may; rows that it failed on, and
    that are to be skipped, are there without a score.

    Rewards that wait outside this process score texts that have ended while the others are being written (see
    `TextVectorEnv.scoring_meanwhile`).
    """
    return collect_with(env, agent, {**agent.begin(), **(options or {})}, seed=seed)


def collect_with(env: TextVectorEnv, agent: Agent, options: Mapping[str, Any], *, seed: int | None = None) -> Rollout:
    """`collect` under exactly these options, whatever the agent would ask for."""
    if env.metadata["autoreset_mode"].value != "Disabled":
        raise ConfigError("collect() needs an environment made with autoreset_mode='Disabled'")
    observation, _ = env.reset(seed=seed, options=options)
    prompts = env.prompts
    ended: dict[int, tuple[Episode, Score]] = {}
    extras: dict[str, Float] = {}
    with env.scoring_meanwhile():
        while len(ended) < env.num_envs:
            writing = env.writing
            decision = agent.act({**observation, "writing": writing, "prompts": prompts})  # type: ignore[typeddict-item]
            before = observation["attention_mask"].sum(axis=1)
            _lay_out(extras, decision, writing, before, env)
            observation, _, _, _, infos = env.step(action_for(env, decision))
            news = finished(infos)
            if not news and np.array_equal(observation["attention_mask"].sum(axis=1), before):
                raise RunFailed(
                    "the agent wrote nothing in any row: act() must give at least one token to unfinished rows"
                )
            ended.update({row: (episode, score) for row, episode, score in news if row not in ended})
    rows = [ended[row] for row in range(env.num_envs)]
    env.reward.require_few_failures([score for _, score in rows], [episode for episode, _ in rows])
    rollout = Rollout.from_episodes(
        [episode for episode, _ in rows],
        [score for _, score in rows],
        pad_id=env.tokenizer.pad_id,
        group_size=env.group_size,
        extras={
            name: [values[row, len(episode.prompt_ids) : len(episode.ids)] for row, (episode, _) in enumerate(rows)]
            for name, values in extras.items()
        },
    )
    # What the agent stated counts, whether or not the environment asked for it as part of the action.
    carried = dict(rollout.extras)
    logprobs = carried.pop("logprobs").masked_fill(~rollout.actions, 0.0)
    return replace(rollout, logprobs=logprobs, extras=carried, stated=True)


def action_for(env: TextVectorEnv, decision: Decision) -> Any:
    """The environment's action from an agent's decision: with probabilities where the space asks for them."""
    if not env.reward.needs_logprobs:
        return decision.tokens
    return {"tokens": decision.tokens, "probs": np.exp(decision.logprobs)}


def _lay_out(extras: dict[str, Float], decision: Decision, writing: Any, lengths: Any, env: TextVectorEnv) -> None:
    """Put log-probabilities and per-token extras, [B, k], at the places [B, L] where the tokens will be written."""
    tokens = np.asarray(decision.tokens).reshape(env.num_envs, -1)
    width = env.max_prompt_tokens + env.max_new_tokens
    ends = np.cumsum(tokens == env.tokenizer.end_id, axis=1) - (tokens == env.tokenizer.end_id) > 0
    written = writing[:, None] & (tokens < env.tokenizer.vocab_size) & ~ends
    places = lengths[:, None] + np.cumsum(written, axis=1) - 1
    written &= places < width
    rows, columns = np.nonzero(written)
    for name, values in {**decision.extras, "logprobs": decision.logprobs}.items():
        target = extras.setdefault(name, np.zeros((env.num_envs, width)))
        target[rows, places[rows, columns]] = np.asarray(values).reshape(tokens.shape)[rows, columns]


class Source(Protocol):
    """Where an agent's next rollout comes from: an environment, demonstrations, preference pairs."""

    def next(self, agent: Agent, /) -> Rollout: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...


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

    def _at(self, place: int, size: int) -> int:
        epoch, offset = divmod(place, size)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(size)
        return int(self._order[offset])


class EnvSource:
    """Rollouts written in an environment; prompts in shuffled epochs, one per group.

    Rows that a reward part failed on, and that are to be skipped, are left out: whatever an agent makes of the others
    is what it would make of a rollout without them. `failed/<part>` counts the failures that a part may have.

    Where the reward part `kl` has read the texts with this `reference`, its log-probabilities go along as the extra
    "reference", so that an agent which needs them does not read the texts again.
    """

    def __init__(
        self, env: TextVectorEnv, *, seed: int, spending: Spending, reference: TokenScorer | None = None
    ) -> None:
        self.env = env
        self._reference = reference
        self._prompts = Shuffled(env.task.size, seed)
        self._spending = spending

    def next(self, agent: Agent, /) -> Rollout:
        wishes = agent.begin()
        groups = self.env.num_envs // int(wishes.get("group_size", 1))
        place = self._prompts.place
        try:
            rollout = collect_with(self.env, agent, {**wishes, "indices": self._prompts.take(groups)})
        except RlhfEnvError:
            self._prompts.place = place  # these prompts were not used up: a resumed run takes them again
            raise
        measured = {**_divergence(rollout, self.env.reward), **_failures(rollout, self.env.reward)}
        rollout = _beside_what_kl_read(replace(rollout, measured=measured), self.env.reward, self._reference)
        self.env.settle()  # so that a checkpoint taken now holds what the rewards remember of this rollout
        self._spending.add(
            episodes=len(rollout), generated_tokens=int(rollout.actions.sum()), reward_calls=len(rollout)
        )
        kept = rollout.scored | rollout.truncated
        return rollout if bool(kept.all()) else rollout.select(kept)

    def state_dict(self) -> dict[str, Any]:
        return {"place": self._prompts.place, "rewards": self.env.reward.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._prompts.place = int(state["place"])
        self.env.reward.load_state_dict(state["rewards"])


def _failures(rollout: Rollout, reward: RewardMix) -> Metrics:
    """How many rows each part failed on, of the parts that do not end the run when they do."""
    lenient = [name for name, failures in reward.failures.items() if failures.on_error != "stop"]
    return {f"failed/{name}": float(sum(name in score.failed for score in rollout.scores)) for name in lenient}


def _divergence(rollout: Rollout, reward: RewardMix) -> Metrics:
    """The mean KL to the reference of a rollout, in nats a response, where a part `kl` has scored it.

    Two estimates of the same number (see `functional.kl_estimate`): `kl` is k1, `kl_k3` is k3, which is never negative
    and less noisy while the policies are near each other. The part's controller moves its coefficient as soon as it is
    shown the rollout: ask before that.
    """
    scored = [score for score in rollout.scores if "kl" in score.raw]
    if not scored:
        return {}
    coefficient = float(getattr(reward.parts["kl"], "coefficient", 1.0))
    found = {"kl": -float(np.mean([score.raw["kl"] for score in scored])) / coefficient}
    if all("kl" in score.tokens for score in scored):
        log_ratios = [score.tokens["kl"] / -coefficient for score in scored]
        found["kl_k3"] = float(np.mean([(np.expm1(-values) + values).sum() for values in log_ratios]))
    return found


def _beside_what_kl_read(rollout: Rollout, reward: RewardMix, reference: TokenScorer | None) -> Rollout:
    """With log p_ref as the extra "reference", where it follows from what `kl` has paid for every row of this rollout.

    That is -coefficient * (log p - log p_ref) for each token, as long as the controller has not moved the coefficient.
    """
    part = reward.parts.get("kl")
    coefficient = float(getattr(part, "coefficient", 0.0))
    if reference is None or getattr(part, "reference", None) is not reference or not coefficient:
        return rollout
    if any("kl" not in score.tokens or "kl" in score.failed for score in rollout.scores):
        return rollout
    known = torch.zeros(rollout.tokens.shape, dtype=torch.float64)
    for row, (episode, score) in enumerate(zip(rollout.episodes, rollout.scores, strict=True)):
        assert episode.logprobs is not None  # `kl` has read them
        start, paid = len(episode.prompt_ids), score.tokens["kl"]
        known[row, start : start + len(paid)] = torch.from_numpy(episode.logprobs + paid / coefficient)
    return rollout.with_extras(reference=known.masked_fill(~rollout.actions, 0.0))


class DataSource:
    """Rollouts made from stored data: `make(indices)` builds one batch, in shuffled epochs."""

    def __init__(self, size: int, batch_size: int, make: Callable[[Sequence[int]], Rollout], *, seed: int) -> None:
        if size < 1:
            raise ConfigError("there is no data to train on")
        self.batch_size = min(batch_size, size)
        self._make = make
        self._indices = Shuffled(size, seed)

    def next(self, _agent: Agent, /) -> Rollout:
        return self._make(self._indices.take(self.batch_size))

    def state_dict(self) -> dict[str, Any]:
        return {"place": self._indices.place}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._indices.place = int(state["place"])


class Interrupted(RlhfEnvError):
    """The run was asked to stop (Ctrl-C, SIGTERM) and did, after its update; `exit_code` as shells expect it."""

    def __init__(self, signal_number: int, message: str) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(message)


@dataclass(frozen=True)
class Training:
    """How `train` ended: `reason` ("budget", or what `stop_when` said).

    `rows`: the metrics of this call, where there is no run folder that has them (`read_metrics`): a run of a million
    updates keeps them in a file, not in memory.
    """

    reason: str
    rows: Sequence[Row]


def train(
    agent: Agent,
    source: Source,
    budget: Budget,
    *,
    spending: Spending,
    engine: Engine,
    run: RunFolder | None = None,
    resume: bool = False,
    checkpoint_every: int = 0,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    evaluate_every: int = 0,
    stop_when: Callable[[Row], str | None] | StoppingRule | None = None,
    on_update: Callable[[Row, float], None] | None = None,
) -> Training:
    """Collect and update until `budget` is spent.

    Args:
        run: where metrics and checkpoints go; without it nothing is written.
        resume: go on from the run folder's newest valid checkpoint, if there is one.
        checkpoint_every: updates between checkpoints (0: only at the end and on interruption).
        evaluate, evaluate_every: numbers to log beside the update's own, every so many updates (and never at 0).
        stop_when: reads each row of metrics, once; a reason to stop early, or None. What a `StoppingRule` remembers
            is saved.
        on_update: called with each row and the share of the budget spent (progress bars).

    Raises Interrupted after SIGINT or SIGTERM, with the run saved; RewardError, and ConfigError for a prompt that
    cannot be used, with the run saved as of the last update; RunFailed when the budget is in a currency this agent does
    not spend; whatever else goes wrong, with the last checkpoint left as it is.
    """
    rows: list[Row] = []
    saved: int | None = None
    idle = 0  # updates in a row that spent nothing of the budget
    reason: str | None = None

    def state() -> dict[str, Any]:
        content = {"agent": agent.state_dict(), "source": source.state_dict(), "spending": spending.as_dict()}
        return content | ({"stopping": stop_when.state_dict()} if isinstance(stop_when, StoppingRule) else {})

    def save(content: Mapping[str, Any]) -> None:
        nonlocal saved
        updates = int(content["spending"]["updates"])
        if run is not None and saved != updates:
            run.save(updates, content, torch.get_num_threads())
            saved = updates

    if resume and run is not None and (restored := run.restore(torch.get_num_threads())) is not None:
        _go_on(restored[0], agent, source, spending, stop_when)
        saved = spending.updates
        for row in read_metrics(run.path):
            if row["update"] == saved > 0 and stop_when is not None and (reason := stop_when(row)):
                return Training(reason, rows)

    with _catch_signals() as caught:
        while (spent := budget.spent_fraction(spending)) < 1.0:
            started = time.perf_counter()
            engine.progress = spent
            before = state()  # what is lost in a rollout that fails, random draws too, is taken back
            try:
                rollout = source.next(agent)
            except (RewardError, ConfigError):
                save(before)
                raise
            collected = time.perf_counter()
            metrics = agent.update(rollout)
            took = time.perf_counter() - started
            spending.add(updates=1, seconds=took)
            row = {
                "update": spending.updates,
                **describe(rollout),
                **_named(metrics),
                **{f"spent/{name}": amount for name, amount in spending.as_dict().items() if name != "updates"},
                "time/collect_share": (collected - started) / took,
                "time/tokens_per_second": int(rollout.actions.sum()) / took,
            }
            if evaluate is not None and evaluate_every and spending.updates % evaluate_every == 0:
                try:
                    row |= {f"eval/{name}": value for name, value in evaluate().items()}
                except (RewardError, ConfigError):  # the update is done and not lost, only its evaluation
                    if run is not None:
                        run.log(row)
                    save(state())
                    raise
            if run is not None:
                run.log(row)
            else:
                rows.append(row)
            if on_update is not None:
                on_update(row, budget.spent_fraction(spending))
            reason = stop_when(row) if stop_when is not None else None
            if checkpoint_every and spending.updates % checkpoint_every == 0:
                save(state())
            if caught or reason:
                break
            idle = idle + 1 if budget.spent_fraction(spending) == spent else 0
            if idle >= _IDLE_LIMIT:
                limits = ", ".join(budget.limits())
                raise RunFailed(f"{idle} updates spent nothing of the budget ({limits}): this run would never end")
        save(state())
        if caught:  # in the last save, too
            where = f", saved in {run.path}" if run is not None else ""
            raise Interrupted(caught[0], f"stopped after update {spending.updates}{where}")
    return Training(reason or "budget", rows)


def _go_on(state: Mapping[str, Any], agent: Agent, source: Source, spending: Spending, stop_when: object) -> None:
    """Give everything its state back. Raises DataError for a checkpoint of another model or agent."""
    try:
        agent.load_state_dict(state["agent"])
        source.load_state_dict(state["source"])
        spending.load(state["spending"])
        if isinstance(stop_when, StoppingRule) and "stopping" in state:
            stop_when.load_state_dict(state["stopping"])
    except RlhfEnvError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # theirs: any may come
        why = str(error).strip().splitlines() or [""]
        raise DataError(
            "the checkpoint does not fit what was built: another model, task or version than the run was begun with "
            f"({type(error).__name__}: {why[-1].strip()})"
        ) from error


def describe(rollout: Rollout) -> Row:
    """What any rollout with scores says about itself: reward and its parts, lengths, how texts ended.

    `rollout/entropy` is that of the policy in nats a token, sampled: the mean of -log p over the tokens that it drew.
    Where texts answer a prompt in groups, also the share of groups whose members all earned the same but for their KL.
    """
    if not rollout.scores or not rollout.scores[0].raw:
        return {}
    totals = rollout.returns()
    lengths = rollout.actions.sum(dim=1).double()
    summary: Row = {
        "rollout/reward": float(totals.mean()),
        "rollout/reward_std": float(totals.std(unbiased=False)),
        "rollout/length": float(lengths.mean()),
        "rollout/cut_at_limit": float(np.mean([e.finish_reason == "length" for e in rollout.episodes])),
        **{f"rollout/{name}": value for name, value in rollout.measured.items()},
        "histogram/reward": histogram(totals),
    }
    if rollout.stated and bool(rollout.actions.any()):
        summary["rollout/entropy"] = -float(rollout.logprobs.sum() / rollout.actions.sum())
    if len(set(rollout.group.tolist())) < len(rollout):
        summary["rollout/groups_without_spread"] = groups_without_spread(
            rollout.returns(without=("kl",)), rollout.group, counted=rollout.scored
        )
    for name in rollout.scores[0].raw:
        values = rollout.part(name)
        summary[f"rollout/part/{name}"] = float(values.mean())
        summary[f"rollout/part/{name}_std"] = float(values.std(unbiased=False))
        summary[f"histogram/part/{name}"] = histogram(values)
    return summary


def histogram(values: Tensor, bins: int = 10) -> dict[str, Any]:
    """`values` counted in `bins` of equal width: few numbers, for a row of metrics is kept for ever.

    From the least (`low`) to the largest (`high`); where all are equal, half a unit to either side.
    """
    counts, edges = np.histogram(values.cpu().numpy(), bins=bins)
    return {"low": float(edges[0]), "high": float(edges[-1]), "counts": counts.tolist()}


def _named(metrics: Metrics) -> Metrics:
    """Agents' metrics go under train/ unless they name a section themselves."""
    return {name if "/" in name else f"train/{name}": value for name, value in metrics.items()}


@contextlib.contextmanager
def _catch_signals() -> Iterator[list[int]]:
    """Collects the first SIGINT or SIGTERM, so that the update under way is finished; a second SIGINT stops at once."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def remember(number: int, _frame: FrameType | None) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
