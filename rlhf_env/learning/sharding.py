"""A model divided among the processes of a run, by torch's FSDP2 (`fully_shard`).

Each process keeps its part of every weight, of its gradient and of its moments. One layer at a time is whole: it is
gathered before it computes, forwards and backwards, and its gradient is added up and divided again (Rajbhandari et al.
2020, 1910.02054, the third stage; Zhao et al. 2023, 2304.11277). Embeddings, the head and whatever else is in no layer
are one more group, so that a head which shares its matrix with the embedding is in one group with it.

Texts are computed by code of this library that takes weights out of the model's modules, and not by calling these. So
what FSDP2 looks after are not the modules themselves but a `_Unit` around each layer, which is called with what to
compute. The model stays as it is, but that its weights are divided.

Whoever gathers waits for all others: every process computes equally many times, with nothing where it has no rows
(`Optimizer.rows` gives empty micro-batches, `LanguageModel.evaluate` reads one made-up text for them). While texts are
written, the model is whole in every process: token by token, gathering would cost more than all else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rlhf_env.errors import ConfigError, Problem, RunFailed
from rlhf_env.learning.checkpoints import fingerprint
from rlhf_env.learning.processes import Processes
from rlhf_env.learning.shards import cut_like, is_shard, joined_like
from rlhf_env.policies.anatomy import Anatomy
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.policy import Policy, all_weights
from rlhf_env.policies.recomputation import layers_of

_T = TypeVar("_T")

SHARD = ("engine", "shard")


class _Unit(nn.Module):
    """Modules whose weights are gathered together. It computes what it is called with."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, run: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return run(*arguments, **named)


class Shards:
    """How one model is divided, or several of the same kind that share weights (below adapters).

    All processes call every method alike. Raises ConfigError for a model that cannot be divided.
    """

    def __init__(self, models: Sequence[LanguageModel], processes: Processes) -> None:
        self._processes = processes
        self._whole = False
        self.gathers = 0
        """How often the whole model was gathered: weights differ only from one time to another."""
        self._anatomies = {id(model): model.anatomy() for model in models}
        self.fingerprints = {id(model): fingerprint(all_weights(model)) for model in models}
        processes.require_equal({"model (sha256 of its weights)": " ".join(self.fingerprints.values())})
        layers = list(zip(*(layers_of(model.model) for model in models), strict=True))
        _require_divisible(models, [layer for each in layers for layer in each], models[0].anatomy())
        self._units = [_Unit(each) for each in layers]
        inside = {id(module) for unit in self._units for module in unit.modules()}
        outside = [
            module
            for model in models
            for module in model.model.modules()
            if id(module) not in inside and any(True for _ in module.parameters(recurse=False))
        ]
        self._root = _Unit([_Alone(module) for module in outside] + list(self._units))
        for model in models:
            model.let_go()
        self._divide(models[0].device, models[0].dtype)

    def _divide(self, device: torch.device, dtype: torch.dtype) -> None:
        from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        size = self._processes.size
        if device.type == "cpu":
            mesh = DeviceMesh.from_group(self._processes.group, "cpu")
        else:
            mesh = init_device_mesh(device.type, (size,))
        # Sums over processes are rounded once, as those over micro-batches are.
        half = dtype in (torch.bfloat16, torch.float16)
        precision = MixedPrecisionPolicy(reduce_dtype=torch.float32 if half else None, cast_forward_inputs=False)
        everything: list[Any] = [*self._units, self._root]
        try:
            with self._processes.together():
                for unit in everything:
                    fully_shard(unit, mesh=mesh, reshard_after_forward=unit is not self._root, mp_policy=precision)
                for unit in everything:
                    unit.set_gradient_divide_factor(1.0)  # gradients are sums, as losses are
                    unit.set_force_sum_reduction_for_comms(True)
                self._root(lambda: None)  # it, and none of the layers, is where a pass begins
                self._root.reshard()  # type: ignore[operator]
        except (ValueError, NotImplementedError, AssertionError) as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(Problem(f"the model cannot be sharded by torch's fully_shard: {why}", SHARD)) from error

    # ---------------------------------------------------------------- passes, a layer at a time

    def run(self, compute: Callable[..., _T], *arguments: Tensor) -> _T:
        """`compute(*arguments)`, within which `layer` may be called. What is in no layer is whole meanwhile, and with
        gradients until the backward pass is through."""
        self._require_all()
        self.release()
        with self._processes.together():
            result: _T = self._root(compute, *arguments)
        return result

    def anatomy_of(self, model: object) -> Anatomy | None:
        return self._anatomies[id(model)]

    def layer(self, number: int, compute: Callable[..., _T], *arguments: Any, **named: Any) -> _T:
        """`compute(...)`, with the weights of one layer."""
        result: _T = self._units[number](compute, *arguments, **named)
        return result

    @contextmanager
    def calling_layers(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model's own code computes each of its layers by `layer`."""
        layers = layers_of(model)
        before = [vars(layer).get("forward") for layer in layers]
        for number, layer in enumerate(layers):
            layer.forward = partial(self.layer, number, layer.forward)
        try:
            yield
        finally:
            for layer, own in zip(layers, before, strict=True):
                if own is None:
                    del layer.forward
                else:
                    layer.forward = own

    # ---------------------------------------------------------------- the whole model

    def gather(self) -> None:
        """Make the model whole in every process, until `release` or the next pass."""
        self._require_all()
        if not self._processes.largest(int(not self._whole)):
            return
        self.release()
        self._processes.at("gathering the model, to write")
        with self._processes.together():
            for unit in (self._root, *self._units):
                unit.unshard()  # type: ignore[operator]
        self._whole = True
        self.gathers += 1

    def release(self) -> None:
        """Divide it again."""
        for unit in (self._root, *self._units):
            unit.reshard()  # type: ignore[operator]
        self._whole = False

    def release_unless(self, needed: bool) -> None:
        """Divide it again, unless some process needs it whole."""
        if not self._processes.largest(int(needed)):
            self.release()

    def most(self, count: int) -> int:
        """The largest count of all processes."""
        return self._processes.largest(count)

    def of_copy(self, model: LanguageModel) -> Shards:
        """The same for a model that was copied while this one was whole."""
        return Shards([model], self._processes)

    def cut(self, weights: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        """Of whole weights the parts that are here of `own`."""
        return {
            name: joined_like(cut_like(value, own[name]), own[name]) if is_shard(own.get(name)) else value
            for name, value in weights.items()
        }

    def _require_all(self) -> None:
        if self._processes.is_alone:
            raise RunFailed(
                "a sharded model is read where the first process asks for all (by a reward or a metric of its own): "
                "the others do not take part, and it has only its part of the weights; train without `shard`"
            )


class _Alone(nn.Module):
    """A module's own weights, without those of the modules in it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._parameters = module._parameters  # the same table: weights that are exchanged here are exchanged there


def shard(policy: Policy, reference: Policy, processes: Processes) -> None:
    """Divide both among the processes: together where they share their weights, else each by itself."""
    if not isinstance(policy, LanguageModel) or not isinstance(reference, LanguageModel):
        raise ConfigError(Problem("shard = true: a table of logits has no layers to divide: leave it out", SHARD))
    if policy.adapted:
        policy.shards = reference.shards = Shards([policy, reference], processes)
        return
    reference.shards = Shards([reference], processes)
    policy.shards = Shards([policy], processes)


def weights_told(policy: Policy) -> str:
    """The fingerprint of all weights of a policy; of one that is divided, of those that it began with."""
    shards = getattr(policy, "shards", None)
    if isinstance(shards, Shards):
        return shards.fingerprints[id(policy)]
    return fingerprint(all_weights(policy))


def _require_divisible(models: Sequence[LanguageModel], layers: Sequence[Any], anatomy: Anatomy | None) -> None:
    name = type(models[0].model).__name__
    if not layers:
        raise ConfigError(Problem(f"shard = true: {name} has no layers that could be divided: leave it out", SHARD))
    if anatomy is not None:
        apart = len(anatomy.layers) * len(models) != len(layers)
        held = [{id(module) for module in layer.modules()} for layer in layers[:: len(models)]]
        if apart or any(id(layer.out) not in own for layer, own in zip(anatomy.layers, held, strict=True)):
            raise ConfigError(Problem(f"shard = true: the layers of {name} are not those that compute it", SHARD))
    seen: dict[int, int] = {}
    places = {id(module): place // len(models) for place, layer in enumerate(layers) for module in layer.modules()}
    for model in models:
        for module in model.model.modules():
            for weight in module._parameters.values():
                place = places.get(id(module), -1)
                if weight is not None and seen.setdefault(id(weight), place) != place:
                    said = f"shard = true: layers of {name} share a weight with others, which FSDP2 cannot divide"
                    raise ConfigError(Problem(f"{said}: leave it out", SHARD))
