"""Outputs, final states and all gradients, against torch.nn over a PackedSequence."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import kernels
from kernels.testing import Results, assert_as_accurate, collect, errors, packed_call

CLASSES = ["LSTM", "GRU", "RNN"]
BACKENDS = ["torch", "reference"]
SHAPES = [(1, 1, 1), (1, 63, 5), (3, 2, 48), (3, 63, 1), (17, 1, 5), (17, 2, 1), (17, 63, 48)]
D = 7


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)


def _run(
    module: nn.Module,
    call: Callable[[nn.Module, torch.Tensor, Any], Any],  # (module, x, hx) -> y, final states
    B: int,
    T: int,
    rounded: torch.dtype,  # in which the random inputs are exact
    initial: bool,
) -> Results:
    generator = torch.Generator().manual_seed(2)
    dtype = next(module.parameters()).dtype

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(rounded).to(dtype).requires_grad_()

    x = draw(T, B, D)
    rows = module.num_layers * (2 if module.bidirectional else 1)
    states: tuple[torch.Tensor, ...] = ()
    hx: Any = None
    if initial:
        states = (draw(rows, B, module.proj_size or module.hidden_size),)
        hx = states[0]
    if initial and isinstance(module, nn.LSTM):
        states = hx = (*states, draw(rows, B, module.hidden_size))
    y, final = call(module, x, hx)
    return collect(module, x, y, final, states)


def _compare(
    name: str,
    B: int,
    T: int,
    H: int,
    *,
    backend: str,
    dtype: torch.dtype = torch.float32,
    initial: bool = True,
    **options: Any,
) -> None:
    lengths = torch.randint(1, T + 1, (B,))
    lengths[0], lengths[-1] = 1, T
    theirs = getattr(nn, name)(D, H, dtype=dtype, **options)
    ours = getattr(kernels, name)(D, H, backend=backend, dtype=dtype, **options)
    ours.load_state_dict(theirs.state_dict())
    exactly = copy.deepcopy(theirs).double()
    case = (B, T, dtype, initial)

    def packed(module: nn.Module, x: torch.Tensor, hx: Any) -> Any:
        return packed_call(module, x, hx, lengths)

    def padded(module: nn.Module, x: torch.Tensor, hx: Any) -> Any:
        return module(x, hx)

    got = _run(ours, lambda module, x, hx: module(x, hx, lengths), *case)
    exact = _run(exactly, packed, *case)
    # Both of torch's ways are rivals: oneDNN, in the padded one, sums bias gradients less exactly.
    rivals = [
        errors(_run(theirs, way, *case), _run(exactly, way, *case)) for way in (packed, padded)
    ]
    assert_as_accurate(got, exact, *rivals)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_shapes(name: str, shape: tuple[int, int, int], backend: str) -> None:
    _compare(name, *shape, bidirectional=True, backend=backend)


OPTIONS: list[dict[str, Any]] = [
    {"bidirectional": False},
    {"bias": False, "bidirectional": True},
    {"num_layers": 3, "bidirectional": True},
    {"num_layers": 2, "bias": False},
    {"num_layers": 2, "bidirectional": True, "initial": False},
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_options(name: str, options: dict[str, Any], backend: str) -> None:
    _compare(name, 5, 12, 6, backend=backend, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("bias", "bidirectional"), itertools.product([True, False], repeat=2))
def test_projection(bias: bool, bidirectional: bool, backend: str) -> None:
    options = {"proj_size": 3, "num_layers": 2, "bias": bias, "bidirectional": bidirectional}
    _compare("LSTM", 5, 12, 6, backend=backend, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_relu(backend: str) -> None:
    _compare("RNN", 5, 12, 6, nonlinearity="relu", bidirectional=True, backend=backend)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    _compare(name, 5, 12, 6, bidirectional=True, backend="torch", dtype=dtype)
