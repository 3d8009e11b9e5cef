"""With tensors on a GPU a layer mixes no devices and reads no value: shown without a GPU.

Fake tensors have a shape and a device, but no values: whatever would read one raises. Kernels are
replaced; what is around them runs as on a card.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import kernels
from kernels.backends import triton
from kernels.backends.triton import launch, ops
from kernels.backends.triton.plan import DEVICES, Problem, make_plan

CASES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "lstm": (kernels.LSTM, {}),
    "lstm, recomputed": (kernels.LSTM, {"recompute": True}),
    "projection": (kernels.LSTM, {"proj_size": 16}),
    "cifg with peepholes": (kernels.LSTM, {"cifg": True, "peephole": True}),
    "peepholes, recomputed": (kernels.LSTM, {"peephole": True, "recompute": True}),
    "gru": (kernels.GRU, {}),
    "gru, recomputed": (kernels.GRU, {"recompute": True}),
    "gru, recurrent dropout": (kernels.GRU, {"recurrent_dropout": 0.5}),
    "rnn without bias": (kernels.RNN, {"bias": False}),
}


class _Kernel:
    """Takes the place of a Triton kernel."""

    def __init__(self) -> None:
        self.devices: list[set[str]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def start(*arguments: Any, **_: Any) -> None:
            tensors = [value for value in arguments if isinstance(value, Tensor)]
            *tensors, lost = tensors
            assert lost.device.type == "cpu"  # the watch
            self.devices.append({tensor.device.type for tensor in tensors})

        return start


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> _Kernel:
    kernel = _Kernel()

    def planned(problem: Problem, _: torch.device) -> Any:
        return make_plan(problem, DEVICES["h200"])

    watch = SimpleNamespace(lost=torch.zeros(1, dtype=torch.int32), check=lambda: None)
    monkeypatch.setattr(ops, "forward_kernel", kernel)
    monkeypatch.setattr(ops, "backward_kernel", kernel)
    monkeypatch.setattr(ops, "plan_for", planned)
    monkeypatch.setattr(launch, "_watch", lambda _: watch)
    monkeypatch.setattr(launch, "current_device", lambda _: nullcontext())
    return kernel


@pytest.fixture
def both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operators themselves, not their fakes; autograd would need a card to run backwards."""
    forward, backward = ops.compute, ops.compute_backward

    def recurrence(*inputs: Any) -> Any:
        output = forward(*inputs)
        context: Any = SimpleNamespace(
            mark_non_differentiable=lambda *_: None, set_materialize_grads=lambda _: None
        )
        context.save_for_backward = lambda *tensors: setattr(context, "saved_tensors", tensors)
        ops._keep(context, inputs, output)
        gradients = ops._backward(context, *map(torch.empty_like, output[:3]), None, None)
        for tensor, gradient in zip(inputs, gradients, strict=True):
            if gradient is not None:
                assert (gradient.shape, gradient.device) == (tensor.shape, tensor.device)
                assert gradient.dtype == tensor.dtype
        return output

    monkeypatch.setattr(triton, "recurrence", recurrence)
    monkeypatch.setattr(ops, "recurrence_backward", backward)


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("uneven", [False, True], ids=["full", "uneven"])
@pytest.mark.parametrize("case", CASES)
def test_a_layer(
    case: str,
    uneven: bool,
    dtype: torch.dtype,
    launches: _Kernel,
    both_ways: None,
    fake: FakeTensorMode,
) -> None:
    make, options = CASES[case]
    module = make(32, 64, 2, bidirectional=True, device="cuda", dtype=dtype, **options)
    x = torch.empty(10, 4, 32, device="cuda", dtype=dtype)
    lengths = torch.empty(4, dtype=torch.int64, device="cuda") if uneven else None
    y, _ = module(x, None, lengths)
    assert y.shape == (10, 4, 2 * (module.proj_size or 64))
    assert (y.device.type, y.dtype) == ("cuda", dtype)
    assert launches.devices == [{"cuda"}] * 4  # two layers, forwards and backwards
