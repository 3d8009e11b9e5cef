"""The definition itself: against torch.nn in float64, and its gradients against differences."""

from typing import Any

import pytest
import torch
from torch import nn

import kernels
from kernels.testing import packed_call

CASES: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"proj_size": 1}),
    ("GRU", {}),
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu"}),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_float64_equals_torch(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    options = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64, **options}
    theirs = getattr(nn, name)(4, 5, **options)
    ours = getattr(kernels, name)(4, 5, backend="reference", **options)
    ours.load_state_dict(theirs.state_dict())
    x, lengths = torch.randn(9, 3, 4, dtype=torch.float64), torch.tensor([4, 9, 1])
    got, expected = ours(x, None, lengths), packed_call(theirs, x, None, lengths)
    eps = torch.finfo(torch.float64).eps
    # Values stay below 1, sums have about 10 terms, and errors pass through 9 steps.
    torch.testing.assert_close(got, expected, rtol=0, atol=100 * eps)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_gradcheck(name: str, options: dict[str, Any], backend: str) -> None:
    torch.manual_seed(0)
    module = getattr(kernels, name)(
        2, 2, bidirectional=True, backend=backend, dtype=torch.float64, **options
    )
    lengths = torch.tensor([3, 1])
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    hx = [torch.randn(2, 2, module.proj_size or 2, dtype=torch.float64, requires_grad=True)]
    if name == "LSTM":
        hx.append(torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True))
    names = [parameter for parameter, _ in module.named_parameters()]

    def call(x: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, ...]:
        states, parameters = rest[: len(hx)], rest[len(hx) :]
        start: Any = states if name == "LSTM" else states[0]
        named = dict(zip(names, parameters, strict=True))
        y, final = torch.func.functional_call(module, named, (x, start, lengths))
        return (y, *(final if name == "LSTM" else (final,)))

    assert torch.autograd.gradcheck(call, (x, *hx, *module.parameters()))
