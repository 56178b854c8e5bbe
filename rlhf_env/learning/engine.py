"""Gradient steps, dtypes and metric reduction, on the device of a run: agents know none of them."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Protocol, TypeVar

import torch
from torch import Tensor

from rlhf_env.errors import ConfigError, Problem, RunFailed
from rlhf_env.learning.devices import placed, seeded_on
from rlhf_env.learning.processes import Processes
from rlhf_env.learning.schedules import ScheduleName, multiplier
from rlhf_env.learning.shards import cut_like, is_shard, joined_like, part_of
from rlhf_env.learning.spending import Spending
from rlhf_env.policies.precision import moved
from rlhf_env.settings import AtLeastOne, Chooses, NonNegative, Positive, Share, ShareBelowOne, Whole, fault, settings
from rlhf_env.types import JsonObject, State

_HALF = (torch.bfloat16, torch.float16)  # too coarse for what an optimizer adds in one step
_MASTER = "master"  # in an optimizer's state, the copy in float32 that is trained
_TEXTS_READ = "texts_read"  # in an optimizer's state, how many texts the pretraining mix has taken

# Where one text is nearly all that `Engine.most_tokens` allows, or more, other answers to its prompt go with it while
# they take no more than this times what it takes: read with each answer, a long prompt costs most of the time.
MORE_ANSWERS = 4 / 3


if TYPE_CHECKING:
    from rlhf_env.learning.rollout import Rollout
    from rlhf_env.types import Episode

_Module = TypeVar("_Module", bound=torch.nn.Module)
_OnDevice = TypeVar("_OnDevice", "Rollout", Tensor)


@settings
class Optimization:
    """How gradients become steps; the same settings for every agent that trains."""

    lr: Positive = 2e-4
    """AdamW's learning rate."""
    schedule: ScheduleName = "constant"
    """The course of the learning rate over the budget."""
    warmup: Share = 0.0
    """The share of the budget over which the learning rate rises to `lr`."""
    floor: Share = 0.0
    """What a falling schedule ends at, as a share of `lr`."""
    weight_decay: NonNegative = 0.0
    """AdamW's weight decay."""
    beta1: ShareBelowOne = 0.9
    """AdamW's decay of the mean of gradients."""
    beta2: ShareBelowOne = 0.95
    """AdamW's decay of the mean of their squares."""
    max_grad_norm: NonNegative = 1.0
    """The gradient is scaled down to this norm (0: never)."""
    micro_batch_size: Whole = 0
    """Rows per backward pass (0: no limit). It saves memory, and changes no result but its last digits."""
    micro_batch_tokens: Whole = 4096
    """Tokens per backward pass (0: no limit), as many as are computed: where equal beginnings are read once, a prompt
    counts once for all its answers, which go together; elsewhere padding counts, and texts of like length go together.
    With adapters on a processor there are fewer tokens where so many would need more than about 0.7 GB."""
    ptx_coefficient: NonNegative = 0.0
    """Weight of the pretraining mix, per token of its texts (0: none): each gradient step also raises the likelihood of
    given texts (PPO-ptx, Ouyang et al. 2022, 2203.02155, eq. 2). The paper's gamma weighs whole texts: the same up to
    their mean length."""
    ptx_data: Annotated[JsonObject, Chooses("task")] = field(default_factory=dict)
    """Where its texts come from, a table like [task]: `{ name = "file", path = "texts.jsonl" }`. A prompt with a
    column "completion" is a demonstration, of which the completion is predicted; otherwise the prompt itself is the
    text."""
    ptx_rows: AtLeastOne = 16
    """Its texts per gradient step, in shuffled epochs."""

    def problems(self) -> Iterator[Problem]:
        if (self.ptx_coefficient > 0.0) != bool(self.ptx_data):
            yield fault("ptx_coefficient", "above 0 and ptx_data belong together: give both, or neither")


class Mixed(Protocol):
    """Texts whose likelihood every gradient step raises, beside what an agent learns."""

    texts_read: int
    """Where they are in their shuffled epochs: all that a resumed run needs to know."""

    def add_gradient(self, optimizer: Optimizer) -> float:
        """Accumulate the weighted gradient of the next texts; their mean negative log-likelihood per token."""


class Optimizer:
    """AdamW with gradient accumulation, gradient clipping and the run's learning-rate schedule.

    Call `backward(loss)` once per micro-batch, then `step()` once. Each loss must be a sum that is divided by the
    normaliser of the *whole* batch; then splitting the batch changes nothing.

    Of parameters in half precision a master copy in float32 is trained, with moments in float32; after each step the
    parameters are the copy, rounded (Micikevicius et al. 2018, 1710.03740, section 3.1). Gradients of micro-batches
    are summed in float32.

    With `ptx_coefficient`, `step` adds the gradient of given texts first, whatever the agent's own loss is.
    """

    def __init__(
        self, parameters: Iterable[Tensor], settings: Optimization, engine: Engine, mixed: Mixed | None = None
    ) -> None:
        self.settings = settings
        self._engine = engine
        self._mixed = mixed
        self._reading = 0  # tokens of the micro-batch that `rows` gave last
        self._read = 0  # of those since the last step, where other processes read others
        self._dealt = self._handed_in = False  # since the last step: micro-batches, and the sums over them
        parameters = [p for p in parameters if p.requires_grad]
        # What AdamW moves: the parameters, or the part of them that is here, or copies of it in float32.
        own = [part_of(p) if is_shard(p) else p for p in parameters]
        self._trained = [p.detach().float().clone() if p.dtype in _HALF else p for p in own]
        self._rounded = {i: p for i, p in enumerate(parameters) if p.dtype in _HALF}
        self._shards = {i: p for i, p in enumerate(parameters) if is_shard(p)}
        self._adamw = torch.optim.AdamW(
            self._trained,
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
            # On a processor, torch's default passes over the moments of each weight a dozen times: ten times as long.
            fused=True if all(p.device.type == "cpu" for p in self._trained) else None,
        )

    @property
    def lr(self) -> float:
        """The learning rate at the run's present progress."""
        settings = self.settings
        return settings.lr * multiplier(
            settings.schedule, self._engine.progress, warmup=settings.warmup, floor=settings.floor
        )

    def rows(
        self, lengths: Tensor, *, together: int = 1, group: Tensor | None = None, prompts: Tensor | None = None
    ) -> Iterator[Tensor]:
        """The micro-batches of a batch of texts of `lengths` int64[B], as row numbers int64[b]; B may be 0.

        A batch within the limits is one micro-batch, in its own order. A larger batch is sorted by length, the longest
        texts first, so that a micro-batch that does not fit into memory fails at once. Every `together` neighbours (2:
        a pair) stay in one micro-batch; if they alone exceed the limits, they are one.

        `group` int64[B]: rows with the same number answer the same prompt, of `prompts` int64[B] tokens. Where equal
        beginnings of a micro-batch are computed once (`Engine.shares_prefixes`), tokens count as they are computed, a
        prompt once and padding not at all; groups are sorted by their longest texts, and one that fits into a
        micro-batch is not parted.

        Where several processes learn, they are dealt out: each gets the micro-batches of some of the rows, of about as
        many tokens as the others', and `step` adds the gradients up. Sums over micro-batches are those of this process,
        until `summed` has added them up. Without gradients (`torch.no_grad`), every process gets all rows. Where a
        model is divided among them (`sharding`), all get equally many micro-batches, some of which have no rows.
        """
        batches = self._micro_batches(lengths, together, group, prompts)
        if self._shards and torch.is_grad_enabled():
            mine = list(batches)
            most = self._engine.processes.largest(len(mine))
            batches = iter(mine + [[]] * (most - len(mine)))
        for batch in batches:
            self._reading = int(lengths[batch].sum())
            yield torch.tensor(batch, dtype=torch.int64)

    def _micro_batches(
        self, lengths: Tensor, together: int, group: Tensor | None, prompts: Tensor | None
    ) -> Iterator[list[int]]:
        """Those of this process."""
        processes = self._engine.processes
        dealt = processes.size > 1 and torch.is_grad_enabled()
        size, tokens = self.settings.micro_batch_size or math.inf, self.settings.micro_batch_tokens or math.inf
        most = (self._engine.most_tokens or math.inf) if self.settings.micro_batch_tokens else math.inf
        shares = self._engine.shares_prefixes
        texts = lengths.tolist()
        longest = lengths.reshape(-1, together).amax(dim=1).tolist()
        groups = list(range(len(longest))) if group is None else group[::together].tolist()
        asked = [0] * len(longest) if group is None or prompts is None else prompts[::together].tolist()
        answered = [
            total - together * prompt
            for total, prompt in zip(lengths.reshape(-1, together).sum(dim=1).tolist(), asked, strict=True)
        ]
        whole = len(texts) * max(longest, default=0)
        if shares:
            whole = sum(answered) + sum(dict(zip(groups, asked, strict=True)).values())
        order: Sequence[int] = range(len(longest))
        if dealt or len(texts) > size or whole > min(tokens, most):
            order = sorted(order, key=lambda unit: -longest[unit])
            if group is not None and shares:
                first: dict[int, int] = {}  # where the longest text of a group stands
                for place, unit in enumerate(order):
                    first.setdefault(groups[unit], place)
                order = sorted(order, key=lambda unit: first[groups[unit]])  # the longest of each group first, still
        if dealt:
            self._dealt = True
            costs = [sum(texts[unit * together : (unit + 1) * together]) for unit in order]
            order = [unit for unit, mine in zip(order, processes.dealt(costs), strict=True) if mine]
        of_group: dict[int, int] = {}  # what the whole of it costs
        for unit in order:
            of_group[groups[unit]] = of_group.get(groups[unit], asked[unit]) + answered[unit]
        limit = min(tokens, most)
        batch: list[int] = []
        there: set[int] = set()  # the groups of the batch
        width, count, alone = 0, 0, 0
        for unit in order:
            rows, width = len(batch) + together, max(width, longest[unit])
            new = asked[unit] + answered[unit] if shares else together * longest[unit]  # what it costs by itself
            begun = groups[unit] in there
            parted = shares and not begun and count + of_group[groups[unit]] > limit >= of_group[groups[unit]]
            count = rows * width if not shares else count + new - (asked[unit] if begun else 0)
            room = max(limit, min(tokens, alone * MORE_ANSWERS)) if there == {groups[unit]} else limit
            if batch and (rows > size or count > room or parted):
                yield batch
                batch, there, width, count = [], set(), longest[unit], new
            if not batch:
                alone = new
            batch += range(unit * together, (unit + 1) * together)
            there.add(groups[unit])
        if batch:
            yield batch

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of one micro-batch."""
        with self._engine.processes.together() if self._shards else nullcontext():
            loss.backward()  # type: ignore[no-untyped-call]
        self._read += self._reading
        if self._engine.processes.size == 1:
            self._count_read()
        self._reading = 0  # a second loss on the same texts shares their forward pass
        for index, parameter in {**self._shards, **self._rounded}.items():
            master = self._trained[index]
            if parameter.grad is not None:
                gradient = part_of(parameter.grad)
                master.grad = gradient.to(master.dtype) if master.grad is None else master.grad.add_(gradient)
                parameter.grad = None

    def summed(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Sums over the micro-batches of `rows`, over those of all processes: what is logged, before each `step`."""
        self._handed_in = True
        return self._engine.processes.summed(sums)

    def _count_read(self) -> None:
        self._engine.spending.add(gradient_tokens=self._read)
        self._read = 0

    def _add_up(self) -> None:
        """The gradients, and what was read for them, of all processes."""
        processes = self._engine.processes
        processes.at("adding gradients up")
        if self._dealt and not self._handed_in:
            raise RunFailed(
                "this agent logs sums over micro-batches that are dealt out to several processes, and does not add "
                "them up: `return {**self.optimizer.summed(metrics), ...}` before `step()`, or train in one process"
            )
        self._dealt = self._handed_in = False
        apart = [p for i, p in enumerate(self._trained) if i not in self._shards]  # of the others, FSDP2 has done it
        held = torch.tensor([self._read, *(p.grad is not None for p in apart)])
        processes.add_up([held])
        self._read, *learned = held.tolist()
        self._count_read()
        gradients = []
        for parameter, count in zip(apart, learned, strict=True):
            if count and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if count and parameter.grad is not None:
                gradients.append(parameter.grad)
        processes.add_up(gradients)

    def step(self) -> float:
        """One gradient step with the accumulated gradient; returns its norm before clipping.

        A gradient of exactly 0 teaches nothing, and no step is taken: AdamW would move the parameters all the same, by
        its moments and its weight decay. Raises RunFailed when the gradient is not finite; the parameters do not change
        then.
        """
        if self._mixed is not None:
            self._engine.measure(ptx_loss=self._mixed.add_gradient(self))
        if self._engine.processes.size > 1:
            self._add_up()
        limit = self.settings.max_grad_norm or float("inf")
        total = self._norm()
        norm = float(total)
        if norm != norm or norm == float("inf"):
            self._adamw.zero_grad(set_to_none=True)
            raise RunFailed(f"the gradient is {norm}: lower the learning rate ({self.lr:g}) or look at the rewards")
        if norm == 0.0:
            self._adamw.zero_grad(set_to_none=True)
            return norm
        if norm > limit:  # otherwise a pass over all gradients would multiply them by 1
            torch.nn.utils.clip_grads_with_norm_(self._trained, limit, total)
        for group in self._adamw.param_groups:
            group["lr"] = self.lr
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        with torch.no_grad():
            for index, parameter in self._rounded.items():
                part_of(parameter).copy_(self._trained[index])
        self._engine.spending.add(gradient_steps=1)
        return norm

    def _norm(self) -> Tensor:
        """Of the whole gradient, in all processes the same."""
        here = [p.grad for p in self._trained if p.grad is not None]
        if not self._shards:
            return torch.nn.utils.get_total_norm(here)
        in_parts = [self._trained[i].grad for i in self._shards]
        everywhere = [p.grad for i, p in enumerate(self._trained) if i not in self._shards and p.grad is not None]
        square = torch.nn.utils.get_total_norm([g for g in in_parts if g is not None]).double().square().cpu()
        self._engine.processes.add_up([square])
        square += torch.nn.utils.get_total_norm(everywhere).double().square().cpu()
        return square.sqrt().to(self._trained[0])

    def state_dict(self) -> State:
        """Moments by parameter index (tensors), as AdamW keeps them, the master copies of rounded parameters, and how
        many texts the pretraining mix has taken."""
        state = {str(index): dict(values) for index, values in self._adamw.state_dict()["state"].items()}
        for index in self._rounded:
            if str(index) in state:  # before its first step it is the parameter itself
                state[str(index)][_MASTER] = self._trained[index]
        for index, parameter in self._shards.items():
            if str(index) in state:
                state[str(index)] = {
                    name: value if name == "step" else joined_like(value, parameter)
                    for name, value in state[str(index)].items()
                }
        return state if self._mixed is None else {**state, _TEXTS_READ: self._mixed.texts_read}

    def load_state_dict(self, state: State) -> None:
        """The state that `state_dict` gave; the parameters themselves have been loaded already."""
        if self._mixed is not None:
            self._mixed.texts_read = int(state.get(_TEXTS_READ, 0))
        state = {index: values for index, values in state.items() if index != _TEXTS_READ}
        state = {index: dict(values) for index, values in state.items()}
        for index, parameter in self._shards.items():
            for name, value in state.get(str(index), {}).items():
                if name != "step":
                    state[str(index)][name] = cut_like(value, parameter)
        with torch.no_grad():
            for index, parameter in self._rounded.items():
                self._trained[index].copy_(state.get(str(index), {}).get(_MASTER, part_of(parameter)))
        own = self._adamw.state_dict()
        # AdamW updates these tensors in place, so it gets copies of the caller's. Tensors that are its own already are
        # not copied.
        moments = {
            int(index): {
                name: value if _is_same(value, own["state"].get(int(index), {}).get(name)) else copy.deepcopy(value)
                for name, value in values.items()
                if name != _MASTER
            }
            for index, values in state.items()
        }
        self._adamw.load_state_dict({"state": moments, "param_groups": own["param_groups"]})


def _is_same(one: object, other: object) -> bool:
    """Whether two values are one tensor: parts of sharded ones come back as other objects with the same memory."""
    if isinstance(one, Tensor) and isinstance(other, Tensor) and one.numel() and one.shape == other.shape:
        return one.data_ptr() == other.data_ptr()
    return one is other


@dataclass
class Engine:
    """This process and its device. Before each update, the loop sets `progress`, the share of the budget spent by
    then."""

    spending: Spending = field(default_factory=Spending)
    device: str = "cpu"
    progress: float = 0.0
    most_tokens: int = 0
    """Of a backward pass, whatever larger number `micro_batch_tokens` is (0: no such limit)."""
    shares_prefixes: bool = False
    """Whether the policy computes what texts of a micro-batch have in common once, as `trunk` does."""
    processes: Processes = field(default_factory=Processes)
    """Those that train this run together."""
    mix: Callable[[Optimization], Mixed] | None = field(default=None, repr=False)
    """Reads the texts of `ptx_data` for the run's policy; `making_agents` sets it."""
    credited: tuple[Sequence[Episode], Tensor] | None = field(default=None, repr=False)
    """The texts of the last update and the advantages [B, L] of their tokens, where `wants_credit` and the agent has
    told them."""
    wants_credit: bool = False
    """Whether somebody will look at `credited`."""
    _measured: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list), repr=False)

    def optimizer(self, parameters: Iterable[Tensor], settings: Optimization) -> Optimizer:
        """Raises ConfigError or DataError for texts of the pretraining mix that cannot be used."""
        if not settings.ptx_coefficient:
            return Optimizer(parameters, settings, self)
        if self.mix is None:
            said = "texts are read for the policy of a run, and there is none: make the agent with make_agent"
            raise ConfigError(fault("ptx_data", said))
        return Optimizer(parameters, settings, self, self.mix(settings))

    def measure(self, **numbers: float) -> None:
        """Note numbers of a gradient step that are not the agent's own."""
        for name, value in numbers.items():
            self._measured[name].append(value)

    def credit(self, rollout: Rollout, advantages: Tensor) -> None:
        """Tell which advantages [B, L], or [B] for whole texts, an update gives the texts of a rollout."""
        if self.wants_credit:
            of_tokens = advantages if advantages.dim() > 1 else advantages[:, None].expand(rollout.tokens.shape)
            self.credited = rollout.episodes, of_tokens

    def take_measured(self) -> dict[str, float]:
        """The means of what was noted since the last call."""
        means = {name: sum(values) / len(values) for name, values in self._measured.items()}
        self._measured.clear()
        return means

    @property
    def hardware(self) -> str:
        """What computes, by its name: another one rounds otherwise. "cpu" is any processor."""
        kind = torch.device(self.device).type
        return torch.cuda.get_device_name(self.device) if kind == "cuda" else kind

    def place(self, module: _Module) -> _Module:
        """The module, on this engine's device."""
        return placed(module, self.device)

    def local(self, values: _OnDevice) -> _OnDevice:
        """A rollout's tensors, or a tensor, on this engine's device; float32 instead of float64 where it has none."""
        if isinstance(values, Tensor):
            return moved(values, torch.device(self.device))
        return values.to(self.device)

    @contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """Inside, torch's global generators (dropout draws from them) start at `seed`; afterwards they are restored.

        Those of the processor and of this engine's device. Each kind of device draws other numbers from one seed; so
        does each of several processes, whose texts are others.
        """
        seed = (seed + self.processes.rank * 0x9E3779B97F4A7C15) % 2**63
        device = torch.device(self.device)
        with torch.random.fork_rng(devices=[]), seeded_on(device, seed):
            torch.default_generator.manual_seed(seed)
            yield
