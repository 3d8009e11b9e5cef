"""Outputs, final states and all gradients, against torch.nn over a PackedSequence."""

import itertools
from typing import Any

import pytest
import torch
from torch import nn

import kernels
from kernels.testing import assert_matches_torch, initial_states

CLASSES = ["LSTM", "GRU", "RNN"]
BACKENDS = ["torch", "reference"]
SHAPES = [(1, 1, 1), (1, 63, 5), (3, 2, 48), (3, 63, 1), (17, 1, 5), (17, 2, 1), (17, 63, 48)]
D = 7
EPS = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)


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
    x = torch.randn(T, B, D).to(dtype)
    states = initial_states(theirs, B) if initial else ()
    assert_matches_torch(ours, theirs, x, lengths, states)


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


@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
def test_frame_by_frame_without_gradients(options: dict[str, Any]) -> None:
    theirs, ours = nn.LSTM(D, 6, **options), kernels.LSTM(D, 6, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 3, D)
    expected = actual = None
    with torch.no_grad():
        for frame in x.split(1):
            y, expected = theirs(frame, expected)
            z, actual = ours(frame, actual, lengths=torch.ones(3, dtype=torch.int64))
            torch.testing.assert_close([z, *actual], [y, *expected], rtol=0, atol=8 * EPS)
