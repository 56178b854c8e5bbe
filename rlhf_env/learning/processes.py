"""Several processes that train one run: who is there, and what they exchange. No other module knows them.

`torchrun` or `accelerate launch` starts the same command several times; `join` makes one run of them. Each process runs
the same loop with the same environment, and all hold the same rollout, so that advantages, weights and draws are those
of one process. Three things are divided: rows are written by the process whose share they are in (`written`), rewards
are asked by the first process for all (`from_first`), and micro-batches are dealt out, their gradients added up
(`add_up`). Nothing else is exchanged, and agents know nothing of it.

Only the first process writes files and prints.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Self, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from rlhf_env.errors import ConfigError, DataError, DiskRefused, MissingExtra, RewardError, RlhfEnvError, RunFailed
from rlhf_env.learning import lifeline as lifelines
from rlhf_env.learning.launched import Launched, launched
from rlhf_env.learning.lifeline import Lifeline
from rlhf_env.learning.shards import is_shard
from rlhf_env.policies.policy import Written
from rlhf_env.types import Bool, Episode, Float, Observation, TokenScorer

_T = TypeVar("_T")

_BUCKET = 2**25  # numbers that are added up in one operation: it needs a copy of them
_TO_JOIN = timedelta(minutes=5)
_TO_WAIT = timedelta(days=7)  # for the others: that they are gone is noticed by the lifeline, long before


class ProcessLost(RunFailed):
    """Another process of the run has ended, so this one cannot go on. The last checkpoint is untouched."""

    def __init__(self, message: str, exit_code: int = 3) -> None:
        self.exit_code = exit_code
        super().__init__(message)


# Errors of the first process that the others act on; any other is raised there as the nearest of these.
_RAISED: tuple[type[RlhfEnvError], ...] = (RewardError, DataError, ConfigError, DiskRefused, RunFailed, RlhfEnvError)


@dataclass(frozen=True, eq=False)
class Processes:
    """The processes of a run, as one of them sees them; without arguments, one process by itself.

    What is said of several holds for one: it then costs nothing, and nothing is exchanged.
    """

    launch: Launched = field(default_factory=Launched)
    lifeline: Lifeline | None = None
    group: Any = None
    """Of torch.distributed, for what is on processors: gloo."""
    _read: dict[str, Any] = field(default_factory=dict, repr=False)  # `reader`, and what it says of each of the `texts`
    _asking: list[str] = field(default_factory=list, repr=False)  # what the first process asks for all just now

    @property
    def rank(self) -> int:
        return self.launch.rank

    @property
    def size(self) -> int:
        return self.launch.size

    @property
    def is_first(self) -> bool:
        """Whether this is the process that asks rewards, writes files and prints."""
        return self.launch.rank == 0

    def __deepcopy__(self, _memo: object) -> Self:
        return self  # of a policy that is copied, the writers are the same

    # ---------------------------------------------------------------- what is exchanged

    def from_first(self, ask: Callable[[], _T], at: str = "") -> _T:
        """What `ask` gives in the first process, which alone calls it. An error of ours is raised in all."""
        if self.size == 1:
            return ask()
        answer: list[Any] = [None, None]
        raised: RlhfEnvError | None = None
        if self.is_first:
            if at:
                self.at(at)
            self._asking.append(at)
            try:
                answer[0] = ask()
            except RlhfEnvError as error:
                raised, answer[1] = error, _plain(error)
            finally:
                self._asking.pop()
        with self.together():
            dist.broadcast_object_list(answer, src=0, group=self.group)
        if answer[1] is not None:
            kind, problems = answer[1]
            raise raised or _RAISED[kind](*problems)
        return cast(_T, answer[0])

    @property
    def is_alone(self) -> bool:
        """Whether this process now asks for all: the others wait, and take part in nothing."""
        return bool(self._asking)

    def first_of(self, value: _T) -> _T:
        """What the first process has."""
        return self.from_first(lambda: value)

    def gathered(self, value: _T) -> list[_T]:
        """What every process has, in their order."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with self.together():
            dist.all_gather_object(found, value, group=self.group)
        return found

    def largest(self, number: int) -> int:
        """The largest number that some process has."""
        if self.size == 1:
            return number
        held = torch.tensor(number)
        with self.together():
            dist.all_reduce(held, dist.ReduceOp.MAX, group=self.group)
        return int(held)

    def barrier(self) -> None:
        """Until every process is here."""
        self.largest(0)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """In place, each tensor becomes its sum over all processes: equal bits in all of them."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            with self.together():
                dist.all_reduce(flat, group=self.group if flat.device.type == "cpu" else None)
            start = 0
            for tensor in bucket:
                tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
                start += tensor.numel()

    def summed(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Each number becomes its sum over all processes; one that a process lacks is 0 there."""
        if self.size == 1:
            return dict(numbers)
        totals: dict[str, float] = {}
        for part in self.gathered({name: float(value) for name, value in numbers.items()}):
            for name, value in part.items():
                totals[name] = totals.get(name, 0.0) + value
        return totals

    # ---------------------------------------------------------------- what is divided

    def written(
        self, observation: Observation, rows: Bool, length: int, nothing: int, write: Callable[[Bool], Written]
    ) -> Written:
        """`write(rows)`, where each process writes the rows of its share, and all get the tokens of all rows.

        The share is by a row's place, so a text that is continued stays where its cache is. `nothing` is the token that
        stands where there is none. The last digits of a log-probability depend on who computed it: equal texts get
        those of the first, so that equal answers to a prompt earn the same.
        """
        if self.size == 1:
            return write(rows)
        self.at("writing texts")
        mine = np.zeros(len(rows), bool)
        mine[np.array_split(np.arange(len(rows)), self.size)[self.rank]] = True
        mine &= rows
        tokens, logprobs = np.zeros((len(rows), length), np.int64), np.zeros((len(rows), length))
        if mine.any():
            part = write(mine)
            tokens[mine], logprobs[mine] = part.tokens[mine], part.logprobs[mine]
        held = [torch.from_numpy(tokens), torch.from_numpy(logprobs)]
        self.add_up(held)
        tokens[~rows] = nothing
        first: dict[tuple[bytes, bytes], int] = {}
        ids, mask = np.asarray(observation["input_ids"]), np.asarray(observation["attention_mask"], bool)
        for row in np.flatnonzero(rows).tolist():
            text = ids[row, mask[row]].tobytes(), tokens[row].tobytes()
            logprobs[row] = logprobs[first.setdefault(text, row)]
        return Written(tokens, logprobs)

    def read_ahead(self, scorer: TokenScorer, episodes: Sequence[Episode]) -> None:
        """Each process reads some of the texts with a model that all have; then all `known` what it says of them all.

        The model's weights do not change as long as it is asked: it is a reference.
        """
        if self.size == 1 or getattr(scorer, "together", None) is not self:
            return
        self.at("reading texts with the reference")
        self._read.clear()
        distinct = {_text_of(episode): episode for episode in episodes}
        mine = self.dealt([len(episode.ids) for episode in distinct.values()])
        some = [text for text, is_mine in zip(distinct, mine, strict=True) if is_mine]
        said = scorer.response_logprobs([distinct[text] for text in some])
        texts: dict[object, Float] = {}
        for part in self.gathered(dict(zip(some, said, strict=True))):
            texts |= part
        self._read.update(reader=scorer, texts=texts)

    def known(self, reader: object, episodes: Sequence[Episode]) -> list[Float] | None:
        """What `reader` says of the texts, if all of them were read ahead with it."""
        if self._read.get("reader") is not reader:
            return None
        found = [self._read["texts"].get(_text_of(episode)) for episode in episodes]
        return None if any(each is None for each in found) else [each.copy() for each in found]

    def dealt(self, costs: Sequence[int]) -> list[bool]:
        """Which of the things that cost so much are this process's: neighbours, of about the same cost for each."""
        total, before, mine = sum(costs), 0, []
        for cost in costs:
            owner = min(self.size - 1, (2 * before + cost) * self.size // max(1, 2 * total))
            mine.append(owner == self.rank)
            before += cost
        return mine

    # ---------------------------------------------------------------- whether all are alike

    def require_equal(self, facts: Mapping[str, str]) -> None:
        """Raise ConfigError, in all processes, where some process has other `facts` than the first."""
        if self.size == 1:
            return
        everyone = self.gathered(dict(facts))
        problems = [
            f"process {rank} has another {name} than process 0: {_short(theirs.get(name, 'none'))}, and there "
            f"{_short(everyone[0].get(name, 'none'))}"
            for rank, theirs in enumerate(everyone)
            for name in everyone[0] | theirs
            if theirs.get(name) != everyone[0].get(name)
        ]
        if problems:
            more = f" (and {len(problems) - 1} more such differences)" if len(problems) > 1 else ""
            raise ConfigError(f"{problems[0]}{more}: all processes of a run must be alike")

    def require_together(self, state: object) -> None:
        """Raise RunFailed, in all processes, where the tensors of `state` are not the same in all.

        They are told by their sums.
        """
        if self.size == 1:
            return
        everyone = self.gathered([float(tensor.double().sum()) for tensor in _tensors_in(state)])
        if others := [rank for rank, sums in enumerate(everyone) if repr(sums) != repr(everyone[0])]:
            raise RunFailed(
                f"process {others[0]} holds another agent than process 0, though both learned from the same texts: "
                "something in it is not a function of its seed (an agent of your own, or different machines); the "
                "last checkpoint is untouched"
            )

    # ---------------------------------------------------------------- beginning and end

    def at(self, what: str) -> None:
        """What this process is at, as it is named if the others wait for it for long."""
        if self.lifeline is not None:
            self.lifeline.at(what)

    def speaks(self, lines: Sequence[str], status: int) -> bool:
        """Whether it is this process that prints why the run ends; it waits until one has."""
        return self.lifeline is None or self.lifeline.speaks(lines, status)

    def leave(self) -> None:
        """Part from the others, whose work is done too."""
        global _current
        if self.lifeline is None:
            return
        self.lifeline.leave()
        _current = Processes()
        with suppress(RuntimeError, ValueError):
            dist.destroy_process_group()

    @contextmanager
    def together(self) -> Iterator[None]:
        """A context for operations that all processes have to be in. Raises ProcessLost where one is gone."""
        if self.lifeline is None:
            yield
            return
        try:
            with self.lifeline.waiting():
                yield
        except RuntimeError as error:  # of torch.distributed: a connection is closed
            ending = self.lifeline.known_ending()
            if ending is None:
                why = str(error).strip().splitlines() or [type(error).__name__]
                raise ProcessLost(f"the processes of the run lost each other: {why[0]}") from error
            raise ProcessLost("; ".join(ending.lines), ending.status) from error


_current = Processes()


def current() -> Processes:
    """The processes that this one has joined; else itself alone."""
    return _current


def join() -> Processes:
    """Meet the processes that a launcher started with this one; without a launcher, this one alone.

    To be called once, before anything is read that they may differ in. Raises ConfigError where they do not meet.
    """
    global _current
    if _current.size > 1:
        return _current
    launch = launched()
    if launch.size == 1:
        return _current
    group = _meet(launch)
    lifeline = Lifeline(launch.rank, launch.size, lifelines.WAITED)

    def tell(address: str = "") -> str:
        told = [address]
        dist.broadcast_object_list(told, src=0, group=group)
        return told[0]

    try:
        one_machine = launch.local_size == launch.size
        lifeline.start("127.0.0.1" if one_machine else os.environ["MASTER_ADDR"], tell, loopback=one_machine)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"process {launch.rank} of {launch.size} does not reach process 0: {error}") from error
    _current = Processes(launch, lifeline, group)
    atexit.register(_leave_at_exit)
    return _current


def _meet(launch: Launched) -> Any:
    """The group of all processes for what is on processors. Raises ConfigError."""
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise MissingExtra("accelerate (for several processes)", "scale") from error
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    asked_for_none = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1")
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # with it, transformers reads weights in one process alone
    try:
        PartialState(cpu=asked_for_none or gpus < launch.local_size, timeout=_TO_JOIN)
        return dist.new_group(backend="gloo", timeout=_TO_WAIT)
    except (RuntimeError, ValueError, OSError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
        raise ConfigError(
            f"process {launch.rank} of {launch.size} does not meet the others at {where}: {why} (is the port free, and "
            "were all of them started?)"
        ) from error


def _leave_at_exit() -> None:
    _current.leave()


def _plain(error: RlhfEnvError) -> tuple[int, tuple[str, ...]]:
    """Which of `_RAISED` it is, and what it says."""
    kind = next(place for place, known in enumerate(_RAISED) if isinstance(error, known))
    return kind, tuple(map(str, error.problems)) if isinstance(error, ConfigError) else (str(error),)


def _text_of(episode: Episode) -> tuple[bytes, bytes, int]:
    """All that the log-probabilities of its response depend on."""
    return episode.ids.tobytes(), episode.actions.tobytes(), len(episode.prompt_ids)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in their order, in lists of one type on one device, none much larger than `_BUCKET`."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        alike = bucket and (bucket[0].dtype, bucket[0].device) == (tensor.dtype, tensor.device)
        if bucket and not (alike and sum(it.numel() for it in bucket) + tensor.numel() <= _BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _tensors_in(value: object) -> Iterator[Tensor]:
    if is_shard(value):
        return  # each process has another part
    if isinstance(value, Tensor):
        yield value.detach()
    elif isinstance(value, Mapping):
        for key in value:
            yield from _tensors_in(value[key])
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors_in(each)


def _short(fact: str) -> str:
    return fact if len(fact) <= 60 else f"{fact[:57]}..."
