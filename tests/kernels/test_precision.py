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


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_on_a_cpu_breaks_no_graph(dtype: torch.dtype) -> None:
    lstm, linear = kernels.LSTM(5, 3), torch.nn.Linear(3, 4)
    lengths = torch.tensor([6, 4])

    def loss(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype):
            y = lstm(x, None, lengths)[0]
            said = torch.tensor([[1, 2], [3, 1]]), lengths, torch.tensor([2, 1])
            return kernels.linear_ctc_loss(y, linear.weight, linear.bias, *said)

    x = torch.randn(6, 2, 5)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), loss(x))
