"""The fake device refuses what a real one refuses, and gives the CPU's numbers: a test on it that passes means that."""

from __future__ import annotations

import copy

import pytest
import torch

from .fake import FakeDevice


def test_its_numbers_and_gradients_are_those_of_the_cpu(fake: FakeDevice) -> None:
    x, weight = torch.linspace(-1.0, 1.0, 6).reshape(2, 3), torch.tensor([0.5, -2.0, 1.0], requires_grad=True)
    there = weight.detach().to(fake.device).requires_grad_()
    (torch.tanh(x @ weight) ** 2).sum().backward()
    (torch.tanh(x.to(fake.device) @ there) ** 2).sum().backward()
    assert weight.grad is not None and there.grad is not None
    assert there.grad.device == fake.device and torch.equal(there.grad.cpu(), weight.grad)


@pytest.mark.parametrize(
    "mixing",
    [
        lambda here, there: there + here,
        lambda here, there: torch.where(there > 0, there, here),
        lambda here, there: torch.cat([there, here]),
        lambda here, there: there.masked_fill(here > 0, 0.0),
        lambda here, there: there.gather(0, torch.zeros(1, dtype=torch.int64)),
        lambda here, there: there.index_select(0, torch.zeros(1, dtype=torch.int64)),
        lambda here, there: here[there > 0],
        lambda here, there: there.add_(here),
    ],
)
def test_two_devices_in_one_operation_are_refused(mixing, fake: FakeDevice) -> None:
    here = torch.ones(3)
    with pytest.raises(RuntimeError, match="two devices"):
        mixing(here, here.to(fake.device))


def test_what_torch_allows_is_allowed(fake: FakeDevice) -> None:
    here = torch.arange(3.0)
    there = here.to(fake.device)
    assert (there * torch.tensor(2.0)).tolist() == [0.0, 2.0, 4.0]
    assert there[torch.tensor([2, 0])].tolist() == [2.0, 0.0]
    assert there[[2, 0]].tolist() == [2.0, 0.0] and there[None][..., [1]].tolist() == [[1.0]]
    there[torch.tensor([0])] = 5.0
    assert there.cpu().copy_(there).tolist() == [5.0, 1.0, 2.0] and here.tolist() == [0.0, 1.0, 2.0]


def test_numpy_and_a_generator_of_the_cpu_are_refused(fake: FakeDevice) -> None:
    there = torch.zeros(3, device=fake.device)
    with pytest.raises(TypeError, match="to numpy"):
        there.numpy()
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, generator=torch.Generator(), device=fake.device)
    assert there.cpu().numpy().sum() == 0.0


def test_only_one_of_the_two_has_float64(fake: FakeDevice) -> None:
    there = torch.zeros(3, device=fake.device)
    if fake.device.type == "cuda":
        assert there.double().dtype == torch.float64
        return
    for made in (lambda: there.double(), lambda: torch.zeros(1, dtype=torch.float64).to(fake.device)):
        with pytest.raises(TypeError, match="float64"):
            made()


def test_a_module_that_is_moved_keeps_its_tied_weights_and_a_copy_of_it_is_its_own(fake: FakeDevice) -> None:
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    module["b"].weight = module["a"].weight
    module.to(fake.device)
    assert module["a"].weight is module["b"].weight and len(list(module.parameters())) == 3
    again = copy.deepcopy(module)
    with torch.no_grad():
        again["a"].weight.add_(1.0)
    assert again["a"].weight is again["b"].weight and isinstance(again["a"].weight, torch.nn.Parameter)
    assert torch.equal(again["a"].weight.cpu(), module["a"].weight.cpu() + 1.0)


def test_what_is_random_there_leaves_the_generator_of_the_cpu_alone(fake: FakeDevice) -> None:
    before = torch.default_generator.get_state()
    one, two = (torch.rand(4, device=fake.device).cpu() for _ in range(2))
    assert not torch.equal(one, two)
    assert torch.equal(before, torch.default_generator.get_state())
