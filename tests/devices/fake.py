"""A device that is none: its tensors compute on the CPU, claim to be elsewhere, and refuse what a real device refuses.

    with FakeDevice("cuda:0") as fake:
        model.to("cuda:0")                        # from here on its parameters say that they are on cuda:0
        model(torch.arange(3))                    # RuntimeError: the ids are on the CPU
        model(torch.arange(3, device="cuda:0"))   # the numbers of the CPU, claimed to be on cuda:0

Refused, as by the real ones: an operation on tensors of two devices (save a CPU scalar, CPU row numbers as an index,
and copying), numpy without `.cpu()`, a generator of the CPU. "mps" has no float64 either. It has a global generator of
its own. How a real device rounds, which operations it lacks, and how much memory it has, this does not show.

A tensor of it holds one of the CPU. To torch's own code it is one on `meta`, whose autograd needs no device; Python
sees the device that is claimed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
CPU = torch.device("cpu")
# Operations that read tensors of two devices on purpose.
_COPIES = (aten.copy_.default, aten._foreach_copy_.default)
_INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class Elsewhere(torch.Tensor):
    """A tensor that claims a device; `inner` is the one on the CPU that has the numbers."""

    inner: torch.Tensor
    claimed: torch.device

    @staticmethod
    def __new__(cls, inner: torch.Tensor, claimed: torch.device) -> Elsewhere:
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="meta",
        )
        made.inner, made.claimed = inner, claimed
        return made

    device = property(lambda self: self.claimed)  # type: ignore[assignment]
    is_cuda = property(lambda self: self.claimed.type == "cuda")  # type: ignore[assignment]
    is_mps = property(lambda self: self.claimed.type == "mps")  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"{self.inner!r} claimed to be on {self.claimed}"

    def tolist(self) -> Any:
        return self.inner.tolist()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert {self.claimed} device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def new_tensor(self, data: Any, *, dtype: Any = None, **_: Any) -> torch.Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype).to(self.claimed)

    def __deepcopy__(self, memo: dict[int, Any]) -> Elsewhere:
        if id(self) not in memo:
            made = Elsewhere(copy.deepcopy(self.inner.detach(), memo), self.claimed)
            if getattr(self, "_is_param", False):
                made._is_param = True  # type: ignore[attr-defined]
            memo[id(self)] = made.requires_grad_(self.requires_grad)
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func}: a tensor of a fake device outside of `with FakeDevice`")


class _Dispatch(TorchDispatchMode):
    """Runs every operation on the CPU tensors inside, and claims its results to be where its arguments are."""

    def __init__(self, fake: FakeDevice) -> None:
        super().__init__()
        self.fake = fake

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        flat = pytree.tree_leaves((args, kwargs))
        elsewhere = [it for it in flat if isinstance(it, Elsewhere)]
        wanted = kwargs.get("device")
        wanted = None if wanted is None else torch.device(wanted)
        if wanted is not None and wanted.type == "meta" and not self.fake.asked_for_meta:
            wanted = self.fake.device  # torch's own code sees our tensors on meta
        if not elsewhere and (wanted is None or wanted.type != self.fake.device.type):
            return func(*args, **kwargs)
        if func is aten._fused_sdp_choice.default:
            return 0  # attention of plain matmuls: which kernel there would be is not known
        target = wanted or self.fake.device
        if elsewhere:
            self._require_one_device(func, args, flat)
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != target.type:
            raise RuntimeError(f"{func}: expected a {target.type} generator, got one of {generator.device.type}")
        self.fake.worked += 1

        known = {id(it.inner): it for it in elsewhere}
        inner_args, inner_kwargs = pytree.tree_map(_inside, (args, kwargs))
        with self._own_generator(func):
            out = func(*inner_args, **inner_kwargs)
        return pytree.tree_map(lambda value: self._claimed(value, target, known), out)

    @contextmanager
    def _own_generator(self, func: Any) -> Iterator[None]:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            yield
            return
        before = torch.default_generator.get_state()
        torch.default_generator.set_state(self.fake.generator_state)
        yield
        self.fake.generator_state = torch.default_generator.get_state()
        torch.default_generator.set_state(before)

    def _require_one_device(self, func: Any, args: Any, flat: Sequence[Any]) -> None:
        of_cpu = [it for it in flat if isinstance(it, torch.Tensor) and not isinstance(it, Elsewhere)]
        assert not any(it.is_meta for it in of_cpu), f"{func}: made behind the back of the fake device"
        if not of_cpu or func in _COPIES:
            return
        if func in _INDEXING and isinstance(args[0], Elsewhere):  # CPU row numbers are taken along
            of_cpu = [it for it in args[2:3] if isinstance(it, torch.Tensor) and not isinstance(it, Elsewhere)]
        if all(it.dim() == 0 for it in of_cpu):  # so are scalars
            return
        raise RuntimeError(
            f"{func}: expected all tensors to be on the same device, but found at least two devices, "
            f"{self.fake.device} and cpu"
        )

    def _claimed(self, value: Any, target: torch.device, known: Mapping[int, Elsewhere]) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, Elsewhere):
            return value
        if id(value) in known:  # an argument, changed in place
            return known[id(value)]
        if target.type == "cpu":
            return value
        if value.dtype == torch.float64 and not self.fake.has_float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        return Elsewhere(value, target)


def _inside(value: Any) -> Any:
    if isinstance(value, torch.device):
        return CPU
    return value.inner if isinstance(value, Elsewhere) else value


def _index(index: Any) -> Any:
    """An index with row numbers as tensors: of a list, torch would make one on what it takes for the device."""
    if isinstance(index, tuple):
        return tuple(_index(it) for it in index)
    return torch.tensor(index) if isinstance(index, (list, range)) else index


class _Functions(TorchFunctionMode):
    """Gives the fake device its number where a caller leaves it out: torch would ask a driver that is not there."""

    def __init__(self, fake: FakeDevice) -> None:
        super().__init__()
        self.fake = fake

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if "device" in kwargs:
            kwargs["device"] = self._numbered(kwargs["device"])
            if kwargs["device"] is not None and torch.device(kwargs["device"]).type == "meta":
                with patch.object(self.fake, "asked_for_meta", True):  # transformers, before it loads weights
                    return func(*args, **kwargs)
        if func is torch.Tensor.to:
            args = tuple(self._numbered(value) for value in args)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[0], Elsewhere):
            args = (args[0], _index(args[1]), *args[2:])
        if func is torch.tensor and kwargs.get("device") is not None:
            return func(*args, **kwargs | {"device": CPU}).to(kwargs["device"])
        return func(*args, **kwargs)

    def _numbered(self, value: Any) -> Any:
        if isinstance(value, (str, torch.device)):
            with torch._C.DisableTorchFunction():
                named = torch.device(value)
            if named.type == self.fake.device.type:
                return self.fake.device
        return value


def _begin_without_gradient(mode: Any) -> None:
    mode.without_gradient = torch.no_grad()
    mode.without_gradient.__enter__()


def _end_without_gradient(mode: Any, *problem: Any) -> None:
    mode.without_gradient.__exit__(*problem)


_NAME = "no GPU at all"


class FakeDevice:
    """A context in which `name` ("cuda:0", "mps:0") is a device; see the top of this file.

    `worked` counts the operations that ran on it.
    """

    def __init__(self, name: str) -> None:
        self.device = torch.device(name)
        self.has_float64 = self.device.type != "mps"
        self.worked = 0
        self.generator_state = torch.Generator().manual_seed(12345).get_state()
        self.asked_for_meta = False
        self._stack = ExitStack()

    @property
    def name(self) -> str:
        return _NAME if self.device.type == "cuda" else self.device.type

    def random_state(self) -> torch.Tensor:
        return self.generator_state.clone()

    def __enter__(self) -> FakeDevice:
        enter = self._stack.enter_context

        def set_state(value: torch.Tensor, *_: Any) -> None:
            self.generator_state = value.clone()

        def get_state(*_: Any) -> torch.Tensor:
            return self.generator_state.clone()

        def seed(value: int, *_: Any) -> None:
            self.generator_state = torch.Generator().manual_seed(value).get_state()

        def there(*_: Any, **__: Any) -> bool:
            return True

        cuda = self.device.type == "cuda"
        replaced: dict[str, Any] = {
            "torch.cuda._lazy_init": lambda: None,
            "torch.cuda.is_available": lambda: cuda,
            "torch.cuda.device_count": lambda: 1 if cuda else 0,
            "torch.cuda.current_device": lambda: 0,
            "torch.cuda.get_device_name": lambda *_: _NAME,
            "torch.cuda.mem_get_info": lambda *_: (2**40, 2**40),
            "torch.cuda.is_bf16_supported": there,
            "torch.cuda.default_generators": (SimpleNamespace(manual_seed=seed),) if cuda else (),
            "torch.backends.mps.is_available": lambda: not cuda,
        }
        for name, made in {"get_rng_state": get_state, "set_rng_state": set_state, "manual_seed": seed}.items():
            replaced[f"torch.{self.device.type}.{name}"] = made
        for name, made in replaced.items():
            enter(patch(name, made))
        # Tensors like ours cannot be made in torch's inference mode: no gradient is what matters of it here.
        enter(patch.object(torch.inference_mode, "__enter__", _begin_without_gradient))
        enter(patch.object(torch.inference_mode, "__exit__", _end_without_gradient))
        # Parameters then keep their identity when a module is moved, as they do on a real device: tied ones stay tied.
        before = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        self._stack.callback(torch.__future__.set_swap_module_params_on_conversion, before)
        torch._C._ensureCUDADeviceGuardSet()
        enter(_Dispatch(self))
        enter(_Functions(self))
        return self

    def __exit__(self, *problem: Any) -> None:
        self._stack.__exit__(*problem)
