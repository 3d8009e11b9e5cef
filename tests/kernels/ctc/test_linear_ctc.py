"""The output layer and the loss in one: the same as both after each other, in less memory."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels.ctc import ctc_loss, linear, linear_ctc_loss, loss_torch
from kernels.testing import Results, assert_as_accurate, errors

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of log2(0)
backends = pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
T, B, H, V = 11, 3, 6, 9
LABELS = (torch.tensor([[1, 2, 2], [8, 3, 1], [4, 4, 4]]), [11, 7, 2], [3, 2, 3])


@pytest.fixture(autouse=True)
def _several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "CHUNK", 4 * B * V + 1)  # of 4, 4 and 3 frames


def _inputs(dtype: torch.dtype, batch_first: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    hidden = torch.randn(B, T, H, generator=generator).half().to(dtype)
    hidden = hidden.transpose(0, 1) if batch_first else hidden.transpose(0, 1).contiguous()
    weight = torch.randn(V, H, generator=generator).half().to(dtype)
    bias = torch.randn(V, generator=generator).half().to(dtype)
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


def _results(loss: Tensor, *inputs: Tensor) -> Results:
    gradients = torch.autograd.grad(loss, inputs)
    names = ("hidden", "weight", "bias")
    return {"loss": loss.detach(), **dict(zip(names, gradients, strict=False))}


def _separately(dtype: torch.dtype, with_bias: bool) -> Results:
    hidden, weight, bias = _inputs(dtype)
    logits = F.linear(hidden, weight, bias if with_bias else None)
    targets, frames, lengths = LABELS
    loss = F.ctc_loss(logits.log_softmax(-1), targets, frames, lengths, zero_infinity=True)
    return _results(loss, hidden, weight, *([bias] if with_bias else []))


@backends
@pytest.mark.parametrize("chunk", [4 * B * V + 1, T * B * V], ids=["chunks", "at once"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_both_after_each_other(
    *,
    with_bias: bool,
    batch_first: bool,
    chunk: int,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear, "CHUNK", chunk)
    hidden, weight, bias = _inputs(torch.float32, batch_first)
    loss = linear_ctc_loss(
        *(hidden, weight, bias if with_bias else None, *LABELS),
        zero_infinity=True,
        backend=backend,
    )
    exact = _separately(torch.float64, with_bias)
    rival = errors(_separately(torch.float32, with_bias), exact)
    ours = _results(loss, hidden, weight, *([bias] if with_bias else []))
    assert_as_accurate(ours, exact, rival)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_gradients_only_where_they_are_wanted(frozen: str) -> None:
    inputs = dict(zip(("hidden", "weight", "bias"), _inputs(torch.float64), strict=True))
    wanted = {name: value for name, value in inputs.items() if name != frozen}
    inputs[frozen] = inputs[frozen].detach()
    loss = linear_ctc_loss(*inputs.values(), *LABELS, zero_infinity=True)
    gradients = torch.autograd.grad(loss, list(wanted.values()))
    exact = _separately(torch.float64, True)
    for name, gradient in zip(wanted, gradients, strict=True):
        torch.testing.assert_close(gradient, exact[name])


@backends
def test_half_precision_logits_sum_in_float32(backend: str) -> None:
    hidden, weight, bias = _inputs(torch.float16)
    loss = linear_ctc_loss(hidden, weight, bias, *LABELS, zero_infinity=True, backend=backend)
    assert loss.dtype == torch.float32
    logits = F.linear(hidden, weight, bias)
    separate = ctc_loss(logits, *LABELS, zero_infinity=True, backend=backend)
    torch.testing.assert_close(loss, separate, rtol=1e-6, atol=0)
    ours = _results(loss, hidden, weight, bias)
    assert {g.dtype for name, g in ours.items() if name != "loss"} == {torch.float16}
    exact = _separately(torch.float64, True)
    rival = errors(_results(separate, hidden, weight, bias), exact)
    assert_as_accurate(ours, exact, rival)


def test_autocast_computes_in_its_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "compute_dtype", lambda x: torch.bfloat16)
    inputs = _inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_ctc_loss(*inputs, *LABELS, zero_infinity=True)
    logits = F.linear(*(tensor.bfloat16() for tensor in inputs))
    torch.testing.assert_close(loss, ctc_loss(logits, *LABELS, zero_infinity=True))
    assert {g.dtype for g in torch.autograd.grad(loss, inputs)} == {torch.float32}


def test_a_backward_pass_under_autocast_is_as_precise_as_its_forward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear, "CHUNK", 1)  # so that the logits are made again
    inputs = _inputs(torch.float32)
    loss = linear_ctc_loss(*inputs, *LABELS, zero_infinity=True)
    expected = torch.autograd.grad(loss, inputs, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(loss, inputs)
    assert all(map(torch.equal, found, expected))


class Largest(TorchDispatchMode):
    """Watches the elements of the largest tensor that any operator returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return result


@pytest.mark.parametrize("fused", [False, True])
def test_logits_exist_for_a_chunk_only(fused: bool) -> None:
    hidden, weight, bias = _inputs(torch.float32)
    with Largest() as largest:
        if fused:
            loss = linear_ctc_loss(hidden, weight, bias, *LABELS, zero_infinity=True)
        else:
            loss = ctc_loss(F.linear(hidden, weight, bias), *LABELS, zero_infinity=True)
        torch.autograd.grad(loss, (hidden, weight, bias))
    alpha = T * B * 7  # three labels and the blanks about them
    assert largest.elements == (alpha if fused else T * B * V)


def test_no_gradient_is_worked_out_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    occupy = loss_torch.occupy

    def noted(emissions: Tensor, alphabet: Any, with_gradient: bool) -> Any:
        asked.append(with_gradient)
        return occupy(emissions, alphabet, with_gradient)

    monkeypatch.setattr(loss_torch, "occupy", noted)
    inputs = _inputs(torch.float32)  # parameters want one, also under no_grad
    with torch.no_grad():
        linear_ctc_loss(*inputs, *LABELS)
    linear_ctc_loss(*inputs, *LABELS)
    assert asked == [False, True]
