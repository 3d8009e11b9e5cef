"""torch.func, forward mode, torch.fx and torch.jit.trace: what they make of torch.nn's layers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp

import kernels
from kernels.backends import triton
from kernels.cells import Options, Weights

CLASSES = ["LSTM", "GRU", "RNN"]
LENGTHS = torch.tensor([7, 3, 1])
VARIANTS: list[Callable[..., nn.Module]] = [
    lambda **options: kernels.LSTM(5, 6, cifg=True, peephole=True, **options),
    lambda **options: kernels.LSTM(5, 6, proj_size=2, **options),
    lambda **options: kernels.GRU(5, 6, bidirectional=True, **options),
]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(projections|torch.jit.trace)"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


def _input(dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(7, 3, 5, dtype=dtype)


def _pair(name: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(1)
    theirs = getattr(nn, name)(5, 6, 2, bidirectional=True, dtype=dtype)
    ours = getattr(kernels, name)(5, 6, 2, bidirectional=True, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def _tangent(module: nn.Module, x: Tensor, *more: Any) -> Tensor:
    """Of the outputs, where x moves along itself."""
    tangent: Tensor = jvp(lambda x: module(x, *more)[0], (x,), (x,))[1]
    return tangent


def _gradients(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(module, parameters, (x,))[0].square().sum()

    found: dict[str, Tensor] = grad(loss)(dict(module.named_parameters()))
    return found


@pytest.mark.parametrize("name", CLASSES)
def test_tangents_are_those_of_torch(name: str) -> None:
    ours, theirs = _pair(name, torch.float64)
    expected = _tangent(theirs, _input())
    torch.testing.assert_close(_tangent(ours, _input()), expected)
    compiled = torch.compile(lambda x: _tangent(ours, x), backend="eager")
    torch.testing.assert_close(compiled(_input()), expected)
    # Of oneDNN's LSTM in float32 torch.nn has none.
    torch.testing.assert_close(_tangent(ours.float(), _input().float()), expected.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CLASSES)
def test_gradients_are_those_of_torch(name: str, dtype: torch.dtype) -> None:
    ours, theirs = _pair(name, dtype)
    torch.testing.assert_close(_gradients(ours, _input(dtype)), _gradients(theirs, _input(dtype)))


@pytest.mark.parametrize("make", VARIANTS)
def test_tangents_with_lengths_are_those_of_the_definition(make: Any) -> None:
    torch.manual_seed(1)
    ours = make(dtype=torch.float64)
    definition = make(dtype=torch.float64, backend="reference")
    definition.load_state_dict(ours.state_dict())
    more = None, LENGTHS
    expected = _tangent(definition, _input(), *more)
    assert expected.abs().sum() > 1
    torch.testing.assert_close(_tangent(ours, _input(), *more), expected)


def test_the_triton_backend_says_that_it_has_none() -> None:
    x, weights = torch.randn(2, 1, 3), [Weights(torch.randn(4, 3), torch.randn(4, 4), None, None)]
    states, options = (torch.zeros(1, 1, 4),), Options(False, None)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="backend='reference'"):
        triton.layer("rnn_tanh", x, states, weights, None, None, options)


def test_the_loss() -> None:
    logits = _input(torch.float32)
    said = torch.tensor([[1, 2], [3, 1], [0, 0]]), torch.tensor([7, 6, 5]), torch.tensor([2, 2, 0])

    def theirs(logits: Tensor) -> Tensor:
        return F.ctc_loss(logits.log_softmax(-1), *said, blank=4, reduction="sum")

    def ours(logits: Tensor) -> Tensor:
        return kernels.ctc_loss(logits, *said, blank=4, reduction="sum")

    gradient = grad(theirs)(logits)
    torch.testing.assert_close(grad(ours)(logits), gradient)
    torch.testing.assert_close(jvp(ours, (logits,), (logits,))[1], (gradient * logits).sum())


@pytest.mark.parametrize("name", CLASSES)
def test_a_layer_is_one_step_of_a_graph(name: str) -> None:
    ours, _ = _pair(name, torch.float32)
    x = _input(torch.float32)
    graph = torch.fx.symbolic_trace(nn.Sequential(ours))
    assert torch.equal(graph(x)[0], ours(x)[0])
    called = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert getattr(kernels, name.lower()) in called


@pytest.mark.parametrize("name", CLASSES)
def test_a_trace_takes_other_sizes(name: str) -> None:
    ours, _ = _pair(name, torch.float32)
    traced = torch.jit.trace(ours, (_input(torch.float32),))
    x = torch.randn(9, 2, 5)
    assert torch.equal(traced(x)[0], ours(x)[0])
