from collections.abc import Iterator

import pytest
import torch

import kernels
from kernels.precision import float32_products


@pytest.fixture
def switch() -> Iterator[None]:
    everything = torch.backends.fp32_precision
    products = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.fp32_precision = everything
    torch.backends.cuda.matmul.fp32_precision = "none" if products == everything else products


@pytest.mark.usefixtures("switch")
@pytest.mark.parametrize("asked", ["ieee", "tf32", None])
def test_a_precision_that_was_inherited_goes_on_to_be(asked: str | None) -> None:
    torch.backends.cuda.matmul.fp32_precision = "none"
    torch.backends.fp32_precision = "tf32"
    with float32_products(asked):
        assert torch.backends.cuda.matmul.fp32_precision == (asked or "tf32")
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    torch.backends.fp32_precision = "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"


@pytest.mark.usefixtures("switch")
def test_a_precision_that_was_asked_for_comes_back() -> None:
    torch.backends.fp32_precision = "ieee"
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    with float32_products("ieee"):
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_backward_pass_is_as_precise_as_its_forward_pass(backend: str) -> None:
    """Autograd takes the autocast of whoever calls it along, and it would round to 8 bits."""
    gru = kernels.GRU(5, 7, bidirectional=True, backend=backend)
    x = torch.randn(6, 3, 5, requires_grad=True)
    y = gru(x, None, [6, 4, 1])[0].square().sum()
    inputs = [x, *gru.parameters()]
    expected = torch.autograd.grad(y, inputs, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(y, inputs)
    assert all(map(torch.equal, found, expected))
