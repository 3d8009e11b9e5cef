"""The CTC loss of logits, forward and backward, against log_softmax and torch's own loss."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.bench.registry import Rival, benchmark, entrant, fault
from kernels.ctc import ctc_loss
from kernels.testing import Results, assert_as_accurate, errors

Loss = Callable[[Tensor], Tensor]  # logits [T, B, V] -> sum of losses


@dataclass(frozen=True)
class CtcShape:
    """Size of the problem: logits [T, B, V], and targets of L/2 to L labels."""

    batch: int = 32  # B
    frames: int = 400  # T
    vocabulary: int = field(default=500, metadata={"least": 2})  # V, the blank and a label
    labels: int = 60  # L


@benchmark("ctc", CtcShape)
def ctc(shape: CtcShape, device: torch.device) -> list[Rival]:
    """`kernels.ctc.ctc_loss` against `F.log_softmax` and `F.ctc_loss`, native and cuDNN's."""
    torch.manual_seed(0)
    T, B, V, L = shape.frames, shape.batch, shape.vocabulary, shape.labels
    logits = torch.randn(T, B, V, device=device)
    frames = torch.linspace(T, (T + 1) // 2, B).round().long()  # [B]
    lengths = torch.linspace(L, (L + 1) // 2, B).round().long()
    targets = torch.randint(1, V, (B, L))

    on_device = (targets.to(device), frames.to(device), lengths.to(device))
    in_a_row = torch.cat([t[:n] for t, n in zip(targets, lengths, strict=True)]).int()

    def native(x: Tensor) -> Tensor:
        return F.ctc_loss(x.log_softmax(-1), *on_device, reduction="sum", zero_infinity=True)

    def cudnn(x: Tensor) -> Tensor:  # taken by int32 labels and lengths on the host, T for all
        everywhere = torch.full((B,), T, dtype=torch.int32)
        return F.ctc_loss(x.log_softmax(-1), in_a_row, everywhere, lengths.int(), reduction="sum")

    def ours(x: Tensor) -> Tensor:
        return ctc_loss(x, *on_device, reduction="sum", zero_infinity=True)

    theirs = {"log_softmax + F.ctc_loss": native}
    if device.type == "cuda" and L < 256:
        theirs["the same, cuDNN, all frames of all"] = cudnn
    rivals = [entrant(name, partial(_rival, loss, logits)) for name, loss in theirs.items()]
    name = "kernels.ctc.ctc_loss"
    if wrong := fault(partial(_assert_right, ours, native, logits)):
        return [*rivals, Rival(name, {}, wrong=wrong)]
    return [*rivals, _rival(ours, logits, name)]


def _rival(loss: Loss, logits: Tensor, name: str) -> Rival:
    leaf = logits.clone().requires_grad_()

    def evaluate() -> object:
        with torch.inference_mode():
            return loss(logits)

    def train() -> object:
        return torch.autograd.grad(loss(leaf), leaf)

    return Rival(name, {"forward + backward": train, "loss alone": evaluate})


def _assert_right(ours: Loss, theirs: Loss, logits: Tensor) -> None:
    """A wrong result has no speed."""
    exact = _results(theirs, logits.double())
    assert_as_accurate(_results(ours, logits), exact, errors(_results(theirs, logits), exact))


def _results(loss: Loss, logits: Tensor) -> Results:
    leaf = logits.clone().requires_grad_()
    value = loss(leaf)
    return {"loss": value.detach(), "gradient": torch.autograd.grad(value, leaf)[0]}
