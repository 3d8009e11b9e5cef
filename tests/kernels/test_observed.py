"""Where nobody looks at operators an autograd.Function takes their place, with the same bits."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import kernels

D, H = 4, 5
OPERATORS = {"torch": "kernels::packed_recurrence", "triton": "kernels::recurrence"}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"cifg": True, "peephole": True, "bias": False}),
    ("GRU", {"recurrent_dropout": 0.5}),
    ("RNN", {}),
]


class _Look(TorchDispatchMode):
    """Sees which operators run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.seen.add(operator._schema.name)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("used", [{0}, {1}, {0, 1, 2}], ids=str)
@pytest.mark.parametrize("backend", OPERATORS)
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_operator_and_function_give_the_same_bits(
    name: str, options: dict[str, Any], backend: str, used: set[int]
) -> None:
    """Also where an output is not used, whose gradient then is no tensor."""
    torch.manual_seed(3)
    # ATen has an LSTM in float32.
    dtype = torch.float64 if backend == "torch" else torch.float32
    module = getattr(kernels, name)(
        D, H, bidirectional=True, backend=backend, dtype=dtype, **options
    )
    x = torch.randn(6, 3, D, dtype=dtype, requires_grad=True)
    lengths = torch.tensor([6, 2, 5])

    def run(unused: float | None) -> list[Tensor]:
        torch.manual_seed(7)  # of the recurrent dropout
        y, final = module(x, None, lengths)
        outputs = [y, *(final if isinstance(final, tuple) else (final,))]
        factors = [1.0 if number in used else unused for number in range(len(outputs))]
        parts = zip(factors, outputs, strict=True)
        loss = sum(factor * output.square().sum() for factor, output in parts if factor is not None)
        gradients = torch.autograd.grad(loss, [x, *module.parameters()])
        return [*outputs, *gradients]

    plain = run(None)
    with _Look() as look:
        watched = run(None)
    assert {OPERATORS[backend], f"{OPERATORS[backend]}_backward"} <= look.seen
    for others in (watched, run(0.0)):
        for a, b in zip(plain, others, strict=True):
            assert torch.equal(a, b)


def test_shapes_without_data() -> None:
    lstm = kernels.LSTM(D, H, backend="triton", device="meta")
    y, (h_n, _) = lstm(torch.empty(6, 3, D, device="meta"))
    y.sum().backward()
    assert (y.shape, h_n.shape) == ((6, 3, H), (1, 3, H))
    assert lstm.get_parameter("weight_hh_l0").grad is not None


@pytest.mark.parametrize("backend", OPERATORS)
def test_weights_without_data(backend: str) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        gru = kernels.GRU(D, H, backend=backend)
    assert isinstance(gru(torch.randn(6, 3, D))[0], FakeTensor)


def test_another_default_device_is_that_of_others() -> None:
    gru = kernels.GRU(D, H, backend="torch")
    x = torch.randn(6, 3, D)
    expected = gru(x)[0]
    with torch.device("meta"):
        assert torch.equal(gru(x)[0], expected)


def test_several_gradients_at_once() -> None:
    x = torch.randn(6, 3, D, requires_grad=True)
    y = kernels.GRU(D, H, backend="triton")(x)[0]
    directions = torch.randn(2, *y.shape)
    (both,) = torch.autograd.grad(y, x, directions, retain_graph=True, is_grads_batched=True)
    each = [torch.autograd.grad(y, x, dy, retain_graph=True)[0] for dy in directions]
    torch.testing.assert_close(both, torch.stack(each))


@pytest.mark.parametrize("backend", OPERATORS)
def test_what_a_frozen_layer_gives_can_be_written_into(backend: str) -> None:
    lstm = kernels.GRU(D, H, backend=backend).requires_grad_(False)
    scale = torch.ones(H, requires_grad=True)
    y = lstm(torch.randn(6, 3, D))[0]
    expected = y.sum((0, 1))
    y.mul_(scale).sum().backward()
    torch.testing.assert_close(scale.grad, expected)


@pytest.mark.parametrize("backend", OPERATORS)
def test_no_compiler_is_imported(backend: str) -> None:
    """As the first call of an operator would, in a second or more."""
    code = (
        "import sys, torch, kernels\n"
        f"gru = kernels.GRU(4, 16, bidirectional=True, backend={backend!r})\n"
        "gru(torch.randn(3, 2, 4), None, torch.tensor([3, 2]))[0].sum().backward()\n"
        "print('torch._dynamo' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
