"""Which device a name is on this machine, and what is said where there is none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf_env.errors import ConfigError
from rlhf_env.learning.devices import find_device, placed, require_dtype
from rlhf_env.learning.engine import Engine
from rlhf_env.learning.policy_settings import PolicySettings


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    def with_gpus(cuda: int = 0, mps: bool = False, present: int = 0) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: present)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return with_gpus


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(0, False, "cpu"), (0, True, "cpu"), (1, False, "cuda:0"), (3, False, "cuda:2")]
)
def test_auto_is_the_present_cuda_gpu_or_the_processor(cuda: int, mps: bool, expected: str, machine: Any) -> None:
    machine(cuda, mps, present=max(cuda - 1, 0))
    assert find_device() == find_device("auto") == expected


def test_a_name_is_the_device_of_that_number(machine: Any) -> None:
    machine(cuda=2, mps=True)
    names = ["cpu", "cuda", "cuda:1", "mps", "mps:0"]
    assert [find_device(name) for name in names] == ["cpu", "cuda:0", "cuda:1", "mps:0", "mps:0"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cuda:7", 'device "cuda:7" is not here, this machine has cuda:0 to cuda:1: set device = "auto" or "cpu"'),
        ("mps", 'device "mps" is not here, torch finds no GPU of Apple'),
        ("gpu", 'device must be "auto", "cpu", "cuda", "cuda:N" or "mps", got \'gpu\''),
        ("cuda:", "device must be"),
        ("cuda:-1", "device must be"),
        ("CUDA", "device must be"),
        ("", "device must be"),
    ],
)
def test_what_is_not_here_is_refused(name: str, says: str, machine: Any) -> None:
    machine(cuda=2)
    with pytest.raises(ConfigError) as refused:
        find_device(name)
    assert says in str(refused.value) and refused.value.problems[0].keys == ("device",)


def test_without_a_gpu_the_reason_is_said(machine: Any) -> None:
    machine()
    with pytest.raises(ConfigError, match='device "cuda" is not here, torch finds no CUDA GPU on this machine'):
        find_device("cuda")


def test_settings_refuse_a_name_that_no_machine_has_and_keep_others() -> None:
    with pytest.raises(ConfigError, match='device must be "auto"'):
        PolicySettings(device="tpu")
    assert PolicySettings(device="cuda:3").device == "cuda:3"  # perhaps on another machine


def test_a_precision_that_the_device_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_dtype("cpu", torch.bfloat16)
    with pytest.raises(ConfigError, match='dtype "float64" does not exist on mps:0: set "float32"'):
        require_dtype("mps:0", torch.float64)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.zeros(1))
    with pytest.raises(ConfigError, match='cuda:0 cannot compute in dtype "bfloat16": set "float32"'):
        require_dtype("cuda:0", torch.bfloat16)


def test_a_model_for_which_there_is_no_room_is_refused_with_its_size() -> None:
    class Large(torch.nn.Linear):
        def to(self, *_: Any, **__: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB")

    with pytest.raises(ConfigError, match=r"cuda:0 has no room for the model, 0 KiB: take a smaller one"):
        placed(Large(2, 2), "cuda:0")


def test_the_engine_names_what_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU called {device}")
    assert [Engine(device=it).hardware for it in ("cpu", "mps:0", "cuda:1")] == ["cpu", "mps", "a GPU called cuda:1"]


def test_a_seed_of_dropout_leaves_the_generators_of_all_devices_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[Any] = []
    generators = tuple(SimpleNamespace(manual_seed=lambda seed, i=i: seeded.append((i, seed))) for i in range(2))
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: f"state of {device}")
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: seeded.append((state, str(device))))
    before = torch.default_generator.get_state()
    with Engine(device="cuda:1").seeded(5):
        assert seeded == [(1, 5)]
        assert not torch.equal(torch.default_generator.get_state(), before)
    assert seeded == [(1, 5), ("state of cuda:1", "cuda:1")]
    assert torch.equal(torch.default_generator.get_state(), before)
