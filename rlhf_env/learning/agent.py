"""What an agent is: an `act`, an `update` and a state. Everything else belongs to the loop."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np

from rlhf_env.errors import ConfigError, DataError, RlhfEnvError, RunFailed
from rlhf_env.learning.engine import Engine, Optimizer
from rlhf_env.learning.spending import Spending
from rlhf_env.own_code import naming_who_raised, raised_at
from rlhf_env.settings import fault
from rlhf_env.shown_text import type_in_words
from rlhf_env.types import Float, Int, Observation, ResetOptions, State, Task, Tokenizer

if TYPE_CHECKING:
    from rlhf_env.envs.rewards import RewardMix
    from rlhf_env.learning.rollout import Rollout
    from rlhf_env.policies.policy import Policy, Written

Metrics = dict[str, float]


OTHERS_WROTE = "others_wrote"
"""The extra of a decision that is 1 at tokens which somebody else than `setup.policy` wrote, a teacher for instance."""


@dataclass(frozen=True)
class Decision:
    """One action for every row.

    `tokens` int64[B, k] (or [B] at action length 1), the value V where nothing is written; `logprobs` float64 of the
    same shape: log p(token) under the policy that acted. `extras` are per-token arrays of that shape that the rollout
    carries to `update`, laid out along the text.
    """

    tokens: Int
    logprobs: Float
    extras: Mapping[str, Float] = field(default_factory=dict)

    @classmethod
    def of(cls, written: Written) -> Decision:
        """What a policy wrote, in the shape of the environment's action: [B, k], or [B] when k is 1."""
        if written.tokens.shape[1] == 1:
            return cls(written.tokens[:, 0], written.logprobs[:, 0])
        return cls(written.tokens, written.logprobs)


class Agent(Protocol):
    """A way to act in the environment and to learn from finished episodes.

    An agent plugin is a class built as `Class(setup, Class.Config(...))`; `Config` is a frozen keyword-only dataclass.
    One that wraps another takes it as a third argument named `agent`; in a file, that one has a table of its own:
    `agent = { name = "ppo", lr = 1e-4 }`.

    What a class may say of itself beyond that are the protocols below; `traits` reads them, and has the default for
    who says nothing.
    """

    def begin(self) -> ResetOptions:
        """Options for the next `env.reset`: group size, level, ..."""

    def act(self, observation: Observation, /) -> Decision:
        """Choose the next tokens of every row (those of finished rows are ignored)."""

    def update(self, rollout: Rollout, /) -> Metrics:
        """Learn from one batch of finished episodes; finite numbers for the log."""

    def state_dict(self) -> State:
        """Everything `act` and `update` depend on: nested dicts of tensors, arrays and plain values."""

    def load_state_dict(self, state: State, /) -> None: ...


@runtime_checkable
class SaysIfItTrains(Protocol):
    """`trains = False`: a control, measured as it is."""

    @property
    def trains(self) -> bool: ...


@runtime_checkable
class SaysIfItImitates(Protocol):
    """`imitates = True`: it learns from demonstrations and not from its own texts."""

    @property
    def imitates(self) -> bool: ...


@runtime_checkable
class SaysIfItTakesLabels(Protocol):
    """`takes_labels = True`: stored judgements of single answers, desirable or not, are enough for it."""

    @property
    def takes_labels(self) -> bool: ...


@runtime_checkable
class SaysIfItTakesMargins(Protocol):
    """`takes_margins = True`: it learns by how much the preferred answer of a pair is better."""

    @property
    def takes_margins(self) -> bool: ...


@runtime_checkable
class SaysWhoWrites(Protocol):
    """`policy_writes = False`: its texts are not `setup.policy`'s alone, so others say how likely they are."""

    @property
    def policy_writes(self) -> bool: ...


class LearnsOffPolicy(Protocol):
    """`off_policy = True`, said by the class: it learns rightly from texts of a policy that is not quite its own.

    Its probability ratios are relative to the log-probabilities that the rollout states, or its loss does not depend on
    who wrote a text. Whoever says nothing does not, and `[policy] writer_dtype` is refused with it.
    """

    off_policy: bool


class CannotShard(Protocol):
    """`cannot_shard = "learns with an optimizer of its own"`, said by the class: why it cannot train a model that is
    divided among processes (`[engine] shard`). Whoever says nothing computes its loss from micro-batches of
    `Optimizer.rows`, of which some may have no rows there, and asks the policy for each of them alike.
    """

    cannot_shard: str


class WeighsRows(Protocol):
    """`weighs_rows = True`, said by the class: in its loss, each row counts as much as `Rollout.weights` says.

    Whoever draws texts or prompts with unequal probability corrects for it by these weights.
    """

    weighs_rows: bool


@runtime_checkable
class BoundsItsKL(Protocol):
    """`kl_bound`, in nats a response: of a distance to the policy that cannot be measured."""

    @property
    def kl_bound(self) -> float | None: ...


@dataclass(frozen=True, kw_only=True)
class Demonstrated:
    """How an agent that imitates wants its demonstrations."""

    turns: Literal["last", "every"] = "last"
    """Of a conversation, the last answer or every one."""
    loss_on: Literal["answers", "all"] = "answers"
    """Which tokens are marked as the agent's: those of answers, or all but the first of a text."""
    pack_tokens: int = 0
    """The tokens of a rollout, which takes as many texts as fit; 0: a fixed number of texts."""


@runtime_checkable
class SaysHowItImitates(Protocol):
    """`demonstrated`: which demonstrations it wants, and how many in a rollout."""

    @property
    def demonstrated(self) -> Demonstrated: ...


@runtime_checkable
class MeasuresItself(Protocol):
    """An agent that learns more than a policy: numbers of the rest, on data that it does not learn from."""

    def measure(self) -> Metrics: ...


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What an agent says of itself; see the protocols above."""

    trains: bool = True
    imitates: bool = False
    takes_labels: bool = False
    takes_margins: bool = False
    demonstrated: Demonstrated = Demonstrated()
    policy_writes: bool = True
    kl_bound: float | None = None


class Around:
    """What every agent that wraps another has: it is asked of the agent inside what it does not say itself.

    In the run's loop it stands for that agent: `trains`, `policy`, `kl_bound` are that one's.
    """

    agent: Agent

    @property
    def trains(self) -> bool:
        return traits(self.agent).trains

    @property
    def imitates(self) -> bool:
        return traits(self.agent).imitates

    @property
    def policy_writes(self) -> bool:
        return traits(self.agent).policy_writes

    @property
    def kl_bound(self) -> float | None:
        return traits(self.agent).kl_bound

    def __getattr__(self, name: str) -> Any:
        if name == "agent":  # not set yet, while this object is being copied
            raise AttributeError(name)
        return getattr(self.agent, name)

    def begin(self) -> ResetOptions:
        return wishes_of(self.agent)

    def act(self, observation: Observation, /) -> Decision:
        return decision_of(self.agent, observation)


def asking(agent: Agent, method: str) -> AbstractContextManager[None]:
    """The context in which a method of an agent is called: what its author's code raises becomes RunFailed."""
    return naming_who_raised(f"{called(agent)}: {method}()")


def agent_state(agent: Agent) -> State:
    """What the agent keeps in a checkpoint."""
    with asking(agent, "state_dict"):
        return agent.state_dict()


def give_back(agent: Agent, state: State) -> None:
    """Give the agent its state of a checkpoint. Raises DataError where that is not of this agent or model."""
    try:
        agent.load_state_dict(state)
    except RlhfEnvError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # theirs: any may come
        raise does_not_fit(error) from error


def does_not_fit(error: Exception) -> DataError:
    """What to raise where a state could not be given back."""
    why = str(error).strip().splitlines() or [""]
    place = raised_at(error)
    return DataError(
        "the checkpoint does not fit what was built: another model, task or version than the run was started with "
        f"({type(error).__name__}: {why[-1].strip()}{f'; {place}' if place else ''})"
    )


def wishes_of(agent: Agent) -> ResetOptions:
    """What the agent asks of the next reset. Raises RunFailed where that is not options by name."""
    with asking(agent, "begin"):
        wishes: object = agent.begin()
    if not isinstance(wishes, Mapping) or not all(isinstance(name, str) for name in wishes):
        came = (
            f"{type(wishes).__name__} whose keys are no strings"
            if isinstance(wishes, Mapping)
            else type_in_words(wishes)
        )
        raise RunFailed(f"{called(agent)}: begin() gave {came}: a dict of reset options by name is needed, or {{}}")
    return wishes


def decision_of(agent: Agent, observation: Observation) -> Decision:
    """What the agent decides. Raises RunFailed where that is no Decision, or has not one number for each token.

    What the tokens are, the environment looks at.
    """
    with asking(agent, "act"):
        decision: object = agent.act(observation)
    if not isinstance(decision, Decision):
        remedy = "a rlhf_env.Decision(tokens, logprobs) is needed"
        raise RunFailed(f"{called(agent)}: act() gave {type_in_words(decision)}: {remedy}")
    if not isinstance(decision.extras, Mapping):
        raise RunFailed(
            f"{called(agent)}: act() gave {type_in_words(decision.extras)} as extras: a dict of arrays is needed"
        )
    rows, shape = len(observation["input_ids"]), None
    for name, values in {"tokens": decision.tokens, "logprobs": decision.logprobs, **decision.extras}.items():
        try:
            array = np.asarray(values)
        except Exception as error:  # ragged lists; tensors, of which the error says what to do
            said = " ".join(f"{type(error).__name__}: {error}".split())
            raise RunFailed(f"{called(agent)}: act() gave {name} that are no array: {said}") from error
        if array.dtype.kind not in "fiub":
            said = f"gave {type_in_words(values) if array.ndim == 0 else array.dtype} as {name}"
            raise RunFailed(f"{called(agent)}: act() {said}: numbers are needed, one for each token of each row")
        shape = array.shape if shape is None else shape
        if array.shape[:1] != (rows,) or array.size != np.prod(shape, dtype=int):
            said = f"gave {name} of shape {array.shape} for {rows} rows and tokens of shape {shape}"
            raise RunFailed(f"{called(agent)}: act() {said}: one number for each token of each row is needed")
    return decision


def called(agent: Agent) -> str:
    """As a message names it: of agents around another, the one inside."""
    while isinstance(agent, Around):
        agent = agent.agent
    return f"the agent {type(agent).__name__}"


def traits(agent: Agent) -> Traits:
    """Who says nothing trains, on texts that its policy writes; whoever does not train gives texts of another."""
    trains = bool(agent.trains) if isinstance(agent, SaysIfItTrains) else True
    bound = agent.kl_bound if isinstance(agent, BoundsItsKL) else None
    return Traits(
        trains=trains,
        imitates=bool(agent.imitates) if isinstance(agent, SaysIfItImitates) else False,
        takes_labels=bool(agent.takes_labels) if isinstance(agent, SaysIfItTakesLabels) else False,
        takes_margins=bool(agent.takes_margins) if isinstance(agent, SaysIfItTakesMargins) else False,
        demonstrated=agent.demonstrated if isinstance(agent, SaysHowItImitates) else Demonstrated(),
        policy_writes=bool(agent.policy_writes) if isinstance(agent, SaysWhoWrites) else trains,
        kl_bound=None if bound is None else float(bound),
    )


@dataclass(frozen=True)
class Setup:
    """What a run lends to its agent.

    `policy` is the writer to train; `reference` its frozen initial copy; `batch_size` the rows of a rollout (B);
    `reward` the environment's mix; `task` where its prompts come from (None: a run on stored data). Random draws of
    an agent come from `stream(purpose)`.
    """

    policy: Policy
    reference: Policy
    tokenizer: Tokenizer
    reward: RewardMix
    batch_size: int
    action_length: int
    max_new_tokens: int
    seed: int
    engine: Engine = field(default_factory=Engine)
    spending: Spending = field(default_factory=Spending)
    task: Task | None = None

    @property
    def beta(self) -> float:
        """The weight of the KL penalty in the environment's objective; 0 when it has none.

        Agents that carry the KL term themselves (DPO's implicit one) read it here, so the objective stays the
        environment's.
        """
        return 0.0 if self.reward.kl is None else self.reward.kl.beta

    def stream(self, purpose: str) -> np.random.Generator:
        """An own random stream for each purpose, derived from the run's seed."""
        return np.random.default_rng([self.seed, *purpose.encode()])

    def require_groups(self, group_size: int, least: int = 2) -> None:
        """Refuse a group size that compares nothing, or that does not fit the batch."""
        if group_size < least:
            raise ConfigError(
                fault("group_size", f"must be at least {least}, to compare responses to a prompt, got {group_size}")
            )
        if self.batch_size % group_size:
            raise ConfigError(
                fault("group_size", f"{group_size} does not divide the batch of {self.batch_size} rows (num_envs)")
            )


def learned_state(policy: Policy, optimizer: Optimizer, order: np.random.Generator) -> State:
    """The state of an agent that is a policy, its optimizer and the stream its minibatches are drawn from."""
    return {
        "policy": policy.state_dict(),
        "sampling": policy.sampling_state(),
        "optimizer": optimizer.state_dict(),
        "order": dict(order.bit_generator.state),
    }


def load_learned_state(state: State, policy: Policy, optimizer: Optimizer, order: np.random.Generator) -> None:
    """Give `learned_state` back."""
    policy.load_state_dict(state["policy"])
    policy.load_sampling_state(state["sampling"])
    optimizer.load_state_dict(state["optimizer"])
    order.bit_generator.state = dict(state["order"])
