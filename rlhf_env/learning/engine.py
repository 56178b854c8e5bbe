"""The only place that knows devices, threads, dtypes, gradient steps and metric reduction."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf_env.errors import ConfigError, RunFailed
from rlhf_env.learning.schedules import ScheduleName, multiplier
from rlhf_env.learning.spending import Spending
from rlhf_env.settings import NonNegative, Positive, Share, ShareBelowOne, Whole, settings

LARGE = 5_000_000  # parameters from which a second thread pays

if TYPE_CHECKING:
    from rlhf_env.learning.rollout import Rollout


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
    """Tokens per backward pass, padding counted (0: no limit). Texts of like length go together."""


class Optimizer:
    """AdamW over some parameters with accumulation, clipping and the run's schedule.

    Call `backward(loss)` once per micro-batch - each loss a sum divided by the normaliser of the *whole* batch, so that
    splitting changes nothing - and `step()` once.
    """

    def __init__(self, parameters: Iterable[Tensor], settings: Optimization, engine: Engine) -> None:
        self.settings = settings
        self._engine = engine
        self._parameters = [p for p in parameters if p.requires_grad]
        self._adamw = torch.optim.AdamW(
            self._parameters,
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
        )

    @property
    def lr(self) -> float:
        """The learning rate in force at the run's present progress."""
        chosen = self.settings
        return chosen.lr * multiplier(chosen.schedule, self._engine.progress, warmup=chosen.warmup, floor=chosen.floor)

    def rows(self, lengths: Tensor, *, together: int = 1) -> Iterator[Tensor]:
        """The micro-batches of a batch of texts of `lengths` int64[B], as row numbers int64[b]; B may be 0.

        A batch within the limits is one, in its own order. Of others, texts of like length go together, the longest
        first: what does not fit into memory fails at once. Neighbours of `together` (a pair) are never parted, and go
        alone if they are beyond the limits.
        """
        size, tokens = self.settings.micro_batch_size or math.inf, self.settings.micro_batch_tokens or math.inf
        longest = lengths.reshape(-1, together).amax(dim=1).tolist()
        order: Sequence[int] = range(len(longest))
        if len(lengths) > size or len(lengths) * max(longest, default=0) > tokens:
            order = sorted(order, key=lambda unit: -longest[unit])
        batch: list[int] = []
        width = 0
        for unit in order:
            grown, width = len(batch) + together, max(width, longest[unit])
            if batch and (grown > size or grown * width > tokens):
                yield torch.tensor(batch)
                batch, width = [], longest[unit]
            batch += range(unit * together, (unit + 1) * together)
        if batch:
            yield torch.tensor(batch)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of one micro-batch."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> float:
        """One gradient step from what has been accumulated; the gradient's norm before clipping.

        Raises RunFailed when the gradient is not finite: the parameters are left as they are.
        """
        limit = self.settings.max_grad_norm or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, limit))
        if norm != norm or norm == float("inf"):
            self._adamw.zero_grad(set_to_none=True)
            raise RunFailed(f"the gradient is {norm}: lower the learning rate ({self.lr:g}) or look at the rewards")
        for group in self._adamw.param_groups:
            group["lr"] = self.lr
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        self._engine.spending.add(gradient_steps=1)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Moments by parameter index (tensors), as AdamW keeps them."""
        return {str(index): dict(values) for index, values in self._adamw.state_dict()["state"].items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        own = self._adamw.state_dict()
        # Copies, or AdamW would go on in the caller's tensors. Its own, handed back, are spared.
        moments = {
            int(index): {
                name: value if value is own["state"].get(int(index), {}).get(name) else copy.deepcopy(value)
                for name, value in values.items()
            }
            for index, values in state.items()
        }
        self._adamw.load_state_dict({"state": moments, "param_groups": own["param_groups"]})


@dataclass
class Engine:
    """One process on one device. `progress` (share of the budget spent) is written by the loop before each update."""

    spending: Spending = field(default_factory=Spending)
    device: str = "cpu"
    progress: float = 0.0

    def optimizer(self, parameters: Iterable[Tensor], settings: Optimization) -> Optimizer:
        return Optimizer(parameters, settings, self)

    def place(self, module: torch.nn.Module) -> torch.nn.Module:
        """The module, on this engine's device."""
        return module.to(self.device)

    def local(self, rollout: Rollout) -> Rollout:
        """The rollout, its tensors on this engine's device."""
        return rollout.to(self.device)

    @contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """Inside, the global generators (which dropout draws from) start at `seed`; afterwards they are as before."""
        device = torch.device(self.device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield


def set_threads(threads: int | None = None, *, parameters: int = 0) -> int:
    """Use `threads` for tensor work (default: RLHF_ENV_THREADS, else `sensible_threads(parameters)`); that number."""
    default = os.environ.get("RLHF_ENV_THREADS") or str(sensible_threads(parameters))
    wanted = default if threads is None else str(threads)
    if not wanted.isdecimal() or (chosen := int(wanted)) < 1:
        raise ConfigError(f"threads must be a whole number of at least 1, got {wanted!r}")
    torch.set_num_threads(chosen)
    return chosen


def sensible_threads(parameters: int) -> int:
    """One for a model of fewer parameters than `LARGE`, which gains nothing from two; else one per idle core.

    A core counts as idle by the load average of the last minute: threads that wait for each other on a busy machine
    spin, and make everything on it many times slower.
    """
    if parameters < LARGE:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - round(os.getloadavg()[0]))
