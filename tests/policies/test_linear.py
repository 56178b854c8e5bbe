"""Linear layers by oneDNN: the same matmuls and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlhf_env.policies import linear as module
from rlhf_env.policies.linear import LARGE_FOR_MKL, adapted_linear, has_onednn, has_packed, linear, matmul, round_up


@pytest.fixture(autouse=True)
def where_mkl_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN multiplies here, on Intel's processors too."""
    monkeypatch.setattr(module, "mkl_is_quick", lambda: False)


def parts(rows: int, width: int, outputs: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    stream = torch.Generator().manual_seed(0)
    shapes = (rows, width), (outputs, width), (outputs,)
    return [torch.randn(shape, dtype=dtype, generator=stream, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("shape", [(72, 8, 24), (72, 24, 8), (8, 5, 1)])
def test_products_and_gradients(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE_MATMUL", 0)
    x, weight, bias = parts(*shape)
    assert has_onednn(x)
    answer, expected = linear(x, weight, bias), torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-5)
    g = torch.randn(answer.shape, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(
        torch.autograd.grad(answer, (x, weight, bias), g),
        torch.autograd.grad(expected, (x, weight, bias), g),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_few_numbers_of_rows() -> None:
    rounded = [round_up(rows) for rows in range(1, 5000)]
    assert all(rows <= up < 1.07 * rows + 8 for rows, up in enumerate(rounded, 1))
    assert [round_up(rows) for rows in rounded] == rounded
    assert len({rows for rows in rounded if 1024 < rows <= 2048}) == 16


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(linear, tuple(parts(7, 3, 5, torch.float64)))


def test_of_a_view_and_without_what_does_not_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE_MATMUL", 0)
    x, weight, _ = parts(16, 8, 6)
    weight = weight.detach()
    answer = linear(x[::2, 1:5], weight[:, 1:5])
    torch.testing.assert_close(answer, x[::2, 1:5] @ weight[:, 1:5].T, rtol=1e-5, atol=1e-5)
    answer.sum().backward()
    assert x.grad is not None and weight.grad is None


def test_small_products_and_other_precisions_stay_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: object) -> Tensor:
        raise AssertionError("not for oneDNN")

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", nobody, raising=False)
    matmul(*[part.detach() for part in parts(8, 8, 6)])
    monkeypatch.setattr(module, "LARGE_MATMUL", 0)
    matmul(*[part.detach() for part in parts(8, 8, 6, torch.float64)])
    matmul(*[part.detach() for part in parts(9, 8, 6)])  # no round number of rows
    with pytest.raises(AssertionError, match="not for oneDNN"):
        matmul(*[part.detach() for part in parts(8, 8, 6)])


def test_where_mkl_is_quick_onednn_has_large_packed_matrices_only(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = torch.empty(LARGE_FOR_MKL - 1), torch.empty(LARGE_FOR_MKL)
    assert has_packed(small) and has_packed(large) and has_onednn(large)
    monkeypatch.setattr(module, "mkl_is_quick", lambda: True)
    assert not has_packed(small) and has_packed(large)
    assert not has_onednn(large)
    monkeypatch.setattr(module, "LARGE_MATMUL", 0)
    monkeypatch.delattr(torch.ops.mkldnn, "_linear_pointwise", raising=False)
    matmul(*[part.detach() for part in parts(8, 8, 6)])


class TestAdapted:
    """A linear layer and its low-rank adapter in one operation."""

    @staticmethod
    def inputs(dtype: torch.dtype = torch.float64, rows: int = 7) -> tuple[Tensor, ...]:
        x, weight, bias = parts(rows, 3, 5, dtype)
        a, b = parts(2, 3, 5, dtype)[0], parts(5, 2, 1, dtype)[0]
        return x, weight, bias, a, b

    def test_gradcheck(self) -> None:
        assert torch.autograd.gradcheck(lambda *some: adapted_linear(*some, 0.7), self.inputs())

    @pytest.mark.parametrize("learns", [(0, 3, 4), (3, 4), (0,), (1, 2)])
    def test_gradients_of_what_learns_alone(self, learns: tuple[int, ...]) -> None:
        inputs = [part.detach().requires_grad_(i in learns) for i, part in enumerate(self.inputs())]
        x, weight, bias, a, b = inputs
        expected = x @ weight.T + bias + 0.7 * (x @ a.T) @ b.T
        answer = adapted_linear(*inputs, 0.7)
        torch.testing.assert_close(answer, expected, rtol=0, atol=1e-12)
        g = torch.linspace(-1.0, 1.0, answer.numel(), dtype=torch.float64).view_as(answer)
        asked = [inputs[i] for i in learns]
        for ours, theirs in zip(
            torch.autograd.grad(answer, asked, g), torch.autograd.grad(expected, asked, g), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)

    def test_of_a_model_in_bfloat16_the_adapter_is_in_float32(self) -> None:
        exact = [part.detach().requires_grad_(i in (0, 3, 4)) for i, part in enumerate(self.inputs(torch.float32))]
        half = [part.detach().bfloat16() if i < 3 else part.detach() for i, part in enumerate(exact)]
        half = [part.requires_grad_(i in (0, 3, 4)) for i, part in enumerate(half)]
        answer = adapted_linear(*half, 0.7)
        assert answer.dtype == torch.bfloat16
        answer.sum().backward()
        adapted_linear(*exact, 0.7).sum().backward()
        for i, dtype in ((0, torch.bfloat16), (3, torch.float32), (4, torch.float32)):
            assert half[i].grad.dtype == dtype
            torch.testing.assert_close(half[i].grad.float(), exact[i].grad, rtol=0.05, atol=0.05)
