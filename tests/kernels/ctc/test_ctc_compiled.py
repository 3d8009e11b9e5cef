"""The CTC losses under torch.compile: one graph, and what they are without it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import kernels
from kernels.ctc.loss_operator import losses_and_slopes

T, B, V, H = 20, 4, 7, 5
TARGETS = torch.tensor([[1, 2, 2, 6], [3, 4, 0, -9], [1, 1, 1, 1], [0, 0, 0, 0]])
FRAMES = torch.tensor([20, 15, 3, 9])  # the third cannot be aligned
LENGTHS = torch.tensor([4, 2, 4, 0])
IN_A_ROW = torch.cat([row[:n] for row, n in zip(TARGETS, LENGTHS.tolist(), strict=True)])

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def _results(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """Loss and gradients, of a sum that gives losses different weights, and inf that of NaN."""
    leaves = [value.clone().requires_grad_() for value in inputs]
    loss = function(*leaves)
    weighted = loss if loss.dim() == 0 else loss.square() * torch.arange(len(loss))
    return [loss.detach(), *torch.autograd.grad(weighted.nan_to_num(posinf=0.0).sum(), leaves)]


@pytest.mark.parametrize("targets", [TARGETS, IN_A_ROW], ids=["padded", "in a row"])
@pytest.mark.parametrize("zero_infinity", [False, True], ids=["inf", "zero"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_as_without_compiler(reduction: Any, zero_infinity: bool, targets: Tensor) -> None:
    def loss(logits: Tensor) -> Tensor:
        options: dict[str, Any] = {"reduction": reduction, "zero_infinity": zero_infinity}
        said = targets.clamp(min=0), FRAMES, LENGTHS
        return kernels.ctc_loss(logits.transpose(0, 1), *said, **options)

    logits = torch.randn(B, T, V)
    logits[3, 4] = torch.nan  # of an utterance whose loss has the weight 3, or none of its own
    torch.testing.assert_close(
        _results(_compiled(loss), logits), _results(loss, logits), equal_nan=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_linear(dtype: torch.dtype) -> None:
    def loss(*layer: Tensor) -> Tensor:
        said = TARGETS, FRAMES, LENGTHS
        return kernels.linear_ctc_loss(*layer, *said, zero_infinity=True, reduction="sum")

    layer = [torch.randn(*shape, dtype=dtype) for shape in ((T, B, H), (V, H), (V,))]
    compiled, plain = _results(_compiled(loss), *layer), _results(loss, *layer)
    # In 16 bits a gradient is rounded once more.
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(compiled, plain, rtol=tolerance, atol=tolerance)


def test_nan_stays_where_it_was() -> None:
    """In padding it is not seen; in an utterance that cannot be aligned, or has no weight, it is as
    without a compiler.
    """

    def loss(logits: Tensor) -> Tensor:
        return kernels.ctc_loss(logits, TARGETS, FRAMES, LENGTHS, reduction="none")[1]

    logits = torch.randn(T, B, V)
    logits[15:, 1] = logits[:, 2] = logits[5, 3] = torch.nan
    compiled, plain = _results(_compiled(loss), logits), _results(loss, logits)
    torch.testing.assert_close(compiled, plain, equal_nan=True)
    assert compiled[1][:15, 1].any()
    assert not compiled[1][15:, 1].any()


def test_one_utterance_and_lengths_as_integers() -> None:
    logits = torch.randn(T, V)
    alone = _compiled(lambda x: kernels.ctc_loss(x, TARGETS[0], torch.tensor(T), torch.tensor(4)))
    torch.testing.assert_close(alone(logits), kernels.ctc_loss(logits, TARGETS[0], [T], [4]))
    with torch.no_grad():
        listed = _compiled(lambda x: kernels.ctc_loss(x[:, None], TARGETS[:1], [T], [4]))
        torch.testing.assert_close(listed(logits), alone(logits))


def test_wrong_lengths_are_named() -> None:
    loss = _compiled(lambda x, frames: kernels.ctc_loss(x, TARGETS, frames, LENGTHS))
    with pytest.raises(
        ValueError, match=r"input_lengths must be from 0 to 20, T, got .*\[2\] = 21"
    ):
        loss(torch.randn(T, B, V), torch.tensor([20, 15, 21, 9]))


def test_alignment_and_search_are_left_out() -> None:
    def both(logits: Tensor) -> tuple[kernels.Alignment, kernels.Hypotheses]:
        log_probs = logits.log_softmax(-1)
        aligned = kernels.ctc_align(log_probs, TARGETS.clamp(min=0), FRAMES, LENGTHS)
        return aligned, kernels.ctc_beam_search(log_probs, FRAMES, 3, nbest=2)

    logits = torch.randn(T, B, V)
    compiled, plain = torch.compile(both, backend="eager")(logits), both(logits)
    torch.testing.assert_close(compiled, plain)


def test_narrow_lengths_do_not_overflow() -> None:
    logits = torch.randn(100, 2, V)
    narrow = torch.tensor([90, 70], dtype=torch.int8)
    targets = torch.randint(1, V, (2, 90))

    def loss(logits: Tensor) -> Tensor:
        return kernels.ctc_loss(logits, targets, [100, 90], narrow, zero_infinity=True)

    torch.testing.assert_close(_compiled(loss)(logits), loss(logits))


def test_lengths_must_be_integers() -> None:
    loss = _compiled(lambda x: kernels.ctc_loss(x, TARGETS, [20.0, 15.5, 3, 9], LENGTHS))
    with pytest.raises(ValueError, match="input_lengths must be a tensor of integers"):
        loss(torch.randn(T, B, V))


def test_no_second_derivative() -> None:
    logits = torch.randn(T, B, V, requires_grad=True)
    losses, _ = losses_and_slopes(
        logits, TARGETS.clamp(min=0), FRAMES, LENGTHS, 0, "torch", with_slopes=True
    )
    with pytest.raises(RuntimeError, match="expected a first derivative only"):
        torch.autograd.grad(losses[0], logits, create_graph=True)


@pytest.mark.parametrize("with_slopes", [True, False], ids=["gradient", "loss only"])
def test_operator(with_slopes: bool) -> None:
    logits = torch.randn(B, T, V).transpose(0, 1).requires_grad_(with_slopes)
    said = TARGETS.clamp(min=0), FRAMES, LENGTHS
    torch.library.opcheck(losses_and_slopes, (logits, *said, 0, "torch", with_slopes))
