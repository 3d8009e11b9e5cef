"""Where nobody looks at operators an autograd.Function takes their place, and nobody can tell."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
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
